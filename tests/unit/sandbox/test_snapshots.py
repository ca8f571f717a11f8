"""Snapshots made and restored by real processes of sandboxes, whose machines are fake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.agent.conftest import USER
from tests.unit.sandbox.owned import DEADLINE_S, FAKE_OWNER, Sandboxes, wait_until
from voidbox.agent import protocol
from voidbox.agent.client import AgentClient
from voidbox.cli import resume
from voidbox.cli.ending import begin_kill, finish_kill
from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout
from voidbox.sandbox import launch as launching
from voidbox.sandbox.process import restoring
from voidbox.sandbox.process.sandbox import Sandbox
from voidbox.sandbox.process.snapshotting import Snapshotting
from voidbox.sandbox.snapshots import record as records
from voidbox.sandbox.snapshots.restored import record_of, refuse_fixed
from voidbox.sandbox.snapshots.shelf import Shelf
from voidbox.sandbox.snapshots.templates import Templates
from voidbox.sandbox.state.lifecycle import Event, State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.state_folder import MACHINE, SUSPENDED
from voidbox.vmm.config import MachineConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[Sandboxes]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="vbx") as folder:  # short: there are sockets in it
        found = Sandboxes(Path(folder))
        yield found
        found.close()


def shelf(boxes: Sandboxes) -> Shelf:
    return Shelf(boxes.store.folder)


def save(boxes: Sandboxes, box: SandboxRecord, name: str = "") -> str:
    answer = boxes.control(box).request("snapshot", name=name)
    return str(answer["snapshot"])


def restore(boxes: Sandboxes, id: str, **changes: object) -> SandboxRecord:
    wanted = record_of(shelf(boxes).find(id).record)._replace(**changes)  # type: ignore[arg-type]
    record = boxes.store.create(wanted)
    boxes._ids.append(record.id)
    launching.launch(boxes.store, record, owner=FAKE_OWNER)
    return boxes.store.read(record.id)


def wake(boxes: Sandboxes, box: SandboxRecord) -> SandboxRecord:
    return launching.wake(boxes.store, box.id, owner=FAKE_OWNER)


def suspend(boxes: Sandboxes, box: SandboxRecord) -> SandboxRecord:
    boxes.control(box).request("suspend")
    return boxes.wait_ended(box)


def output(client: AgentClient, line: str) -> bytes:
    return b"".join(data for _, data in client.exec(shell=line, user=USER).output())


# Snapshots.


def test_a_snapshot_becomes_a_sandbox_of_its_own(boxes: Sandboxes) -> None:
    box = boxes.launch(name="first", envs={"A": "1"})
    id = save(boxes, box, "ready")
    found = shelf(boxes).find("ready")
    assert (found.record.id, found.record.kind, found.record.sandbox.name) == (
        id, "snapshot", "first",
    )  # fmt: skip
    assert shelf(boxes).find(id[:4]).record.id == id
    copy = restore(boxes, "ready")
    assert copy.state is State.RUNNING
    assert (copy.snapshot, copy.envs) == (id, {"A": "1"})
    assert {copy.id, copy.name, copy.cid}.isdisjoint({box.id, box.name, box.cid})
    with boxes.connect(copy) as client:
        assert output(client, "echo hello") == b"hello\n"
    with boxes.connect(box) as client:
        assert output(client, "echo hello") == b"hello\n"
    second = save(boxes, copy)
    assert shelf(boxes).find(second).record.parent == id


def test_one_that_was_held_goes_on_by_itself_from_then_on(boxes: Sandboxes) -> None:
    """A pool's, that somebody was given: suspended it is woken, and a copy of it starts, as any."""
    box = boxes.launch(is_held=True, is_pooled=True)  # it boots, so it is not held
    id = save(boxes, box)
    suspend(boxes, box)
    woken = wake(boxes, box)
    assert woken.state is State.RUNNING
    with boxes.connect(woken) as client:
        assert output(client, "echo awake") == b"awake\n"
    copy = restore(boxes, id)
    assert (copy.state, copy.is_pooled) == (State.RUNNING, False)
    with boxes.connect(copy) as client:
        assert output(client, "echo copy") == b"copy\n"


@pytest.mark.parametrize(
    ("name", "host"),
    [("quiet-otter-3fa2", "quiet-otter-3fa2"), ("My_box.2", "My-box-2"), ("a.", "a")],
)
def test_a_copys_host_is_called_by_its_name(name: str, host: str) -> None:
    assert restoring._host_name(name) == host


def test_the_secret_of_the_original_does_not_open_the_copy(boxes: Sandboxes) -> None:
    box = boxes.launch()
    copy = restore(boxes, save(boxes, box))
    assert boxes.store.secret(box.id) != boxes.store.secret(copy.id)
    from voidbox.agent import connect
    from voidbox.sandbox.endpoint import StoredEndpoint

    with pytest.raises(AgentError):
        connect.connect(StoredEndpoint(boxes.store, copy), boxes.store.secret(box.id), DEADLINE_S)


def test_a_guest_that_does_not_adopt_is_ended(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = save(boxes, boxes.launch())
    monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", "no-adopt")
    wanted = boxes.store.create(record_of(shelf(boxes).find(id).record))
    with pytest.raises(AgentError, match="did not become one of its own, and was ended"):
        launching.launch(boxes.store, wanted, owner=FAKE_OWNER)
    assert not boxes.store.is_alive(wanted.id)
    log = boxes.file(wanted, "owner.log")
    assert "published" not in log


def test_nobody_reaches_a_copy_before_it_is_one_of_its_own(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the serial line nor by a port that is published just then."""
    id = save(boxes, boxes.launch())
    monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", "waits")
    wanted = boxes.store.create(record_of(shelf(boxes).find(id).record))
    boxes._ids.append(wanted.id)
    thread = threading.Thread(target=launching.launch, args=(boxes.store, wanted, None, FAKE_OWNER))
    thread.start()
    try:
        wait_until(lambda: os.path.exists(boxes.store.path(wanted.id, "agent.pid")), "no start")
        with pytest.raises(AgentError, match="has not been made yet"):
            boxes.control(wanted).request_socket("connect_serial")
        with pytest.raises(AgentError, match="has not been made yet"):
            boxes.control(wanted).request("port_add", publish="0:80")
        assert boxes.store.read(wanted.id).state is State.CREATING
    finally:
        Path(boxes.store.path(wanted.id, "go")).touch()
        thread.join()
    with boxes.control(wanted).request_socket("connect_serial") as line:
        assert line.recv(100) == b"hello from the line"


def test_a_name_is_taken_once(boxes: Sandboxes) -> None:
    box = boxes.launch()
    save(boxes, box, "ready")
    with pytest.raises(ConfigError, match="there is a snapshot called ready already"):
        save(boxes, box, "ready")
    with pytest.raises(ConfigError, match="cannot be a sandbox's name"):
        save(boxes, box, "no name")
    with pytest.raises(ConfigError, match="no snapshot other: voidbox snapshot ls lists them"):
        shelf(boxes).find("other")


def test_no_name_is_no_snapshots(boxes: Sandboxes) -> None:
    """As of a variable that is not set: `voidbox snapshot rm "$NAME"`."""
    save(boxes, boxes.launch())
    for find in (shelf(boxes).find, shelf(boxes).id_of):
        with pytest.raises(ConfigError, match="no snapshot ''"):
            find("")


def test_what_a_copy_may_do_is_not_the_machines_to_say(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process may have been taken over: the next sandbox would have no jail, and any disk."""
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "lies")
    box = boxes.launch()
    made = shelf(boxes).find(save(boxes, box, "ready"))
    assert made.record.sandbox == boxes.store.read(box.id)
    assert records.read_secret(made.folder) == boxes.store.secret(box.id)
    assert sorted(os.listdir(made.folder)) == [
        *("digests", "machine.bin", "memory", "secret", "snapshot.json")
    ]
    assert os.listdir(boxes.store.path(box.id, MACHINE)) == []


def test_two_at_once_are_refused(boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "waits")
    box = boxes.launch()
    made: list[str] = []
    thread = threading.Thread(target=lambda: made.append(save(boxes, box)))
    thread.start()
    try:
        wait_until(lambda: os.path.isdir(shelf(boxes).path), "no snapshot began")
        with pytest.raises(ConfigError, match="is being made: wait until it is done"):
            save(boxes, box)
    finally:
        Path(boxes.store.path(box.id, "go")).touch()
        thread.join()
    assert [one.record.id for one in shelf(boxes).all()] == made


def test_a_name_is_taken_while_its_snapshot_is_written(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = boxes.launch()
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "waits")
    box = boxes.launch()
    made: list[str] = []
    thread = threading.Thread(target=lambda: made.append(save(boxes, box, "ready")))
    thread.start()
    try:
        wait_until(lambda: os.path.isdir(f"{shelf(boxes).path}/ready.part"), "no snapshot began")
        with pytest.raises(ConfigError, match="ready: it is being made right now"):
            save(boxes, other, "ready")
    finally:
        Path(boxes.store.path(box.id, "go")).touch()
        thread.join()
    with pytest.raises(ConfigError, match="there is a snapshot called ready already"):
        save(boxes, other, "ready")
    assert os.listdir(shelf(boxes).path) == made


def test_a_full_disk_leaves_nothing_and_the_sandbox_goes_on(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "full")
    box = boxes.launch()
    with pytest.raises(HostError, match="No space left"):
        save(boxes, box)
    with pytest.raises(HostError, match="No space left"):
        boxes.control(box).request("suspend")
    assert shelf(boxes).all() == []
    assert boxes.store.read(box.id).state is State.RUNNING
    with boxes.connect(box) as client:
        assert output(client, "echo hello") == b"hello\n"
        assert client.request(protocol.PROCESSES, {}, "")["processes"] == []


def test_a_process_that_is_killed_leaves_nothing_listed(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "killed")
    box = boxes.launch()
    with pytest.raises(AgentError):
        save(boxes, box)
    boxes.wait_ended(box)
    assert [name[-5:] for name in os.listdir(boxes.store.path(box.id, MACHINE))] == [".part"]
    assert shelf(boxes).all() == []
    boxes.store.clean()
    assert os.listdir(boxes.store.path(box.id, MACHINE)) == []


def test_what_is_paused_can_be_saved_and_stays_so(boxes: Sandboxes) -> None:
    box = boxes.launch()
    boxes.control(box).request("pause")
    id = save(boxes, box)
    assert boxes.store.read(box.id).state is State.PAUSED
    # Its agent was told, as that of one that runs is; without PID 1's rights it cannot freeze.
    assert "the guest's processes could not be frozen" in log_of(boxes, box)
    assert "not released" not in log_of(boxes, box)
    copy = restore(boxes, id)
    assert (copy.state, copy.paused_at, copy.stood_still_s()) == (State.RUNNING, None, 0.0)
    stat = Path(f"/proc/{boxes.agent_pid(box)}/stat").read_text()
    assert stat.rpartition(")")[2].split()[0] == "T", "it runs on"
    boxes.control(box).request("resume")
    with boxes.connect(box) as client:
        assert output(client, "echo hello") == b"hello\n"


@pytest.mark.parametrize(
    ("values", "way_out"),
    [
        ({"workspace": "/tmp", "workspace_mode": "rw"}, "as a copy"),
        ({"disks": ("/tmp/disk.img",)}, "overlay=FILE"),
    ],
)
def test_what_no_copy_can_hold_is_refused_with_the_way_out(
    boxes: Sandboxes, values: dict[str, object], way_out: str
) -> None:
    Path("/tmp/disk.img").touch()
    box = boxes.launch(**values)
    with pytest.raises(ConfigError, match=way_out):
        save(boxes, box)


def test_files_that_it_rests_on_are_checked(boxes: Sandboxes, tmp_path: Path) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(b"disk")
    box = boxes.launch(disks=(f"{base},ro",))
    id = save(boxes, box)
    restore(boxes, id)
    os.utime(base, ns=(1, 1))
    with pytest.raises(ConfigError, match=rf"rests on {base}, which has changed since"):
        restore(boxes, id)
    base.unlink()
    with pytest.raises(ConfigError, match="rests on a file that is gone"):
        restore(boxes, id)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 1, "id": 5}', b"\xff" * 100]
)
def test_a_damaged_description_is_one_clear_line(boxes: Sandboxes, content: bytes) -> None:
    id = save(boxes, boxes.launch())
    path = Path(shelf(boxes).path, id, records.FILE)
    path.chmod(0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"the snapshot {id} is damaged: ") as caught:
        shelf(boxes).find(id)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"; voidbox snapshot rm {id} removes it")
    assert shelf(boxes).all() == []
    shelf(boxes).remove(shelf(boxes).id_of(id))
    assert os.listdir(shelf(boxes).path) == []


def test_a_newer_description_says_so(boxes: Sandboxes) -> None:
    id = save(boxes, boxes.launch())
    path = Path(shelf(boxes).path, id, records.FILE)
    path.chmod(0o600)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 9}))
    with pytest.raises(ConfigError, match="newer voidbox"):
        shelf(boxes).find(id)


def test_a_quota_is_kept(boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOIDBOX_SNAPSHOT_QUOTA", "4K")
    box = boxes.launch()
    save(boxes, box)
    with pytest.raises(ConfigError, match="voidbox snapshot prune or rm frees some"):
        save(boxes, box)


def test_what_a_machine_is_made_of_cannot_be_changed() -> None:
    refuse_fixed({})
    with pytest.raises(ConfigError, match="memory='1G': a sandbox that is restored has what"):
        refuse_fixed({"memory": "1G"})


def test_forks_are_swept_when_nobody_took_them_away(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = boxes.launch()
    boxes.control(box).request("snapshot", fork=True)
    shelf(boxes).sweep()
    assert len(shelf(boxes).all()) == 1
    later = time.time() + 4000
    monkeypatch.setattr("voidbox.sandbox.snapshots.shelf.time.time", lambda: later)
    shelf(boxes).sweep()
    assert shelf(boxes).all() == []


def test_what_a_fork_uses_is_left_to_it(boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    id = str(boxes.control(boxes.launch()).request("snapshot", fork=True)["snapshot"])
    later = time.time() + 4000
    with closing(shelf(boxes).lend(id)) as lent:
        monkeypatch.setattr("voidbox.sandbox.snapshots.shelf.time.time", lambda: later)
        shelf(boxes).sweep()
        assert [one.record for one in shelf(boxes).all()] == [lent.record]
    assert os.listdir(shelf(boxes).path) == []
    lent.close()


def test_a_guest_that_was_asked_to_stand_still_is_let_go_whatever_it_answers(
    boxes: Sandboxes,
) -> None:
    """The answer comes too late, say: its processes would stand still for a minute."""
    asked: list[int] = []

    def call(kind: int, values: object, what: str) -> SimpleNamespace:
        asked.append(kind)

        def result(timeout_s: float) -> dict[str, object]:
            if kind == protocol.QUIESCE:
                raise SandboxTimeout("the agent did not answer")
            return {}

        return SimpleNamespace(result=result)

    link = SimpleNamespace(call=call, capabilities=protocol.CAN_ADOPT)
    record = boxes.create()._replace(state=State.RUNNING)
    sandbox = SimpleNamespace(
        current_record=lambda: record,
        with_agent=lambda call, timeout_s: call(SimpleNamespace(link=link)),
        machine=SimpleNamespace(config=MachineConfig("kernel")),
    )
    with pytest.raises(SandboxTimeout):
        Snapshotting(boxes.store, sandbox).create("", False)  # type: ignore[arg-type]
    assert asked == [protocol.QUIESCE, protocol.RELEASE]


# Suspended sandboxes.


def test_a_suspended_sandbox_is_woken_as_it_was(boxes: Sandboxes) -> None:
    box = boxes.launch(timeout_s=1000.0)
    suspended = suspend(boxes, box)
    assert suspended.state is State.SUSPENDED
    assert not boxes.store.is_alive(box.id)
    assert boxes.store.clean() == []
    assert boxes.store.read(box.id).state is State.SUSPENDED
    assert os.path.isdir(boxes.store.path(box.id, SUSPENDED))
    time.sleep(0.2)
    other = boxes.create()  # the CID is kept
    assert other.cid != box.cid
    woken = wake(boxes, box)
    assert (woken.state, woken.cid, woken.name) == (State.RUNNING, box.cid, box.name)
    assert woken.started_at is not None and box.started_at is not None
    assert woken.started_at > box.started_at  # by as long as it was away
    assert not os.path.exists(boxes.store.path(box.id, SUSPENDED))
    with boxes.connect(woken) as client:
        assert output(client, "echo hello") == b"hello\n"
    assert suspend(boxes, box).state is State.SUSPENDED  # and again


def test_nobody_misses_a_guest_that_stands_still_to_be_suspended(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Much memory on a slow disk: neither its heartbeat nor its time limit ends it."""
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "waits")
    box = boxes.launch("nervous")
    boxes.control(box).request("set_timeout", timeout=2.0)
    thread = threading.Thread(target=lambda: boxes.control(box).request("suspend"))
    thread.start()
    part = boxes.store.path(box.id, f"{SUSPENDED}.part")
    wait_until(lambda: os.path.isdir(part), "no snapshot began")
    time.sleep(3)  # a nervous one misses it within a second
    Path(boxes.store.path(box.id, "go")).touch()
    thread.join()
    assert boxes.wait_ended(box).state is State.SUSPENDED


def test_one_that_cannot_be_woken_stays_suspended(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = boxes.launch()
    suspend(boxes, box)
    for problem in ("bad", "no-adopt"):
        monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", problem)
        with pytest.raises((HostError, AgentError)):
            wake(boxes, box)
        found = boxes.store.read(box.id)
        assert found.state is State.SUSPENDED
        assert "could not be woken" in found.reason
        assert os.path.isdir(boxes.store.path(box.id, SUSPENDED))
    monkeypatch.delenv("VOIDBOX_FAKE_RESTORE")
    assert wake(boxes, box).state is State.RUNNING
    assert boxes.store.read(box.id).reason == ""


@pytest.mark.parametrize("name", ["disk.img", "suspended/secret", "suspended", "other"])
def test_no_link_is_followed_out_of_what_a_machine_may_write(boxes: Sandboxes, name: str) -> None:
    """The worker that was taken over is gone; the next one would get what its names lead to."""
    box = boxes.launch()
    suspend(boxes, box)
    path, elsewhere = Path(boxes.store.path(box.id, MACHINE), name), boxes._folder / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match=f"{name} is neither a file nor a folder"):
        wake(boxes, box)
    with pytest.raises(ConfigError, match="is a link|cannot be read: Too many levels"):
        restoring._open(str(path.parent if path.name == "secret" else path), "one")
    path.unlink()
    if elsewhere.exists():
        elsewhere.rename(path)
    assert boxes.store.read(box.id).state is State.SUSPENDED
    assert wake(boxes, box).state is State.RUNNING


def test_a_process_killed_while_it_wakes_leaves_it_suspended(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = boxes.launch()
    suspend(boxes, box)
    monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", "killed")
    with pytest.raises(HostError):
        wake(boxes, box)
    assert boxes.store.clean() == []
    assert boxes.store.read(box.id).state is State.SUSPENDED


def test_a_suspended_sandbox_ends_by_request(boxes: Sandboxes) -> None:
    box = boxes.launch()
    with pytest.raises(ConfigError, match="is not suspended"):
        boxes.store.discard_suspended(box.id)
    suspend(boxes, box)
    assert boxes.store.discard_suspended(box.id).state is State.STOPPED
    assert not os.path.exists(boxes.store.path(box.id, SUSPENDED))
    with pytest.raises(ConfigError, match="stopped cannot be woken"):
        wake(boxes, box)


def test_one_killed_while_it_is_suspended_has_ended(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "dies")
    box = boxes.launch()
    with pytest.raises(HostError, match="the machine has ended"):
        boxes.control(box).request("suspend")
    found = boxes.wait_ended(box)
    assert found.state is State.STOPPED
    assert not os.path.exists(boxes.store.path(box.id, SUSPENDED))


def test_one_that_removes_itself_is_not_suspended(boxes: Sandboxes) -> None:
    box = boxes.launch(removes_itself=True)
    with pytest.raises(ConfigError, match="without --rm"):
        boxes.control(box).request("suspend")


def test_two_that_wake_it_at_once_both_get_it(boxes: Sandboxes) -> None:
    box = boxes.launch()
    suspend(boxes, box)
    states: list[State] = []
    threads = [
        threading.Thread(target=lambda: states.append(wake(boxes, box).state)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == [State.RUNNING] * 2


def test_who_wakes_after_one_that_was_killed_does_not_wait_for_it(boxes: Sandboxes) -> None:
    box = boxes.launch()
    suspend(boxes, box)
    boxes.store.wake(box.id)
    boxes.store.release(box.id)  # as its end does
    began = time.monotonic()
    assert wake(boxes, box).state is State.RUNNING
    assert time.monotonic() - began < DEADLINE_S


def test_who_resumes_what_somebody_is_waking_waits_for_it(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = boxes.launch()
    suspend(boxes, box)
    Path(boxes.store.path(box.id, "agent.pid")).unlink()
    monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", "waits")
    waking = threading.Thread(target=wake, args=(boxes, box))
    waking.start()
    wait_until(lambda: os.path.exists(boxes.store.path(box.id, "agent.pid")), "no start")
    found = boxes.store.read(box.id)
    assert found.state is State.CREATING
    threading.Timer(0.2, Path(boxes.store.path(box.id, "go")).touch).start()
    resume._resume(boxes.store, found)
    assert boxes.store.read(box.id).state is State.RUNNING
    waking.join()


def test_one_that_ends_while_it_wakes_is_not_on_the_disk_any_more(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = boxes.launch()
    suspend(boxes, box)
    Path(boxes.store.path(box.id, "agent.pid")).unlink()
    monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", "waits")
    failed: list[BaseException] = []

    def try_to_wake() -> None:
        try:
            wake(boxes, box)
        except AgentError as error:
            failed.append(error)

    thread = threading.Thread(target=try_to_wake)
    thread.start()
    try:
        wait_until(lambda: os.path.exists(boxes.store.path(box.id, "agent.pid")), "no start")
        boxes.control(box).request("stop")
    finally:
        Path(boxes.store.path(box.id, "go")).touch()
        thread.join()
    assert failed and boxes.wait_ended(box).state is State.STOPPED
    assert not os.path.exists(boxes.store.path(box.id, SUSPENDED))


def test_a_port_that_is_taken_is_told_before_the_guest_runs(boxes: Sandboxes) -> None:
    """A guest that has run is another than its disk's: it could never be woken again."""
    box = boxes.launch(net={"publish": []})
    suspend(boxes, box)
    agent = Path(boxes.store.path(box.id, "agent.pid"))
    agent.unlink()
    with socket.create_server(("127.0.0.1", 0)) as other:
        forward = f"127.0.0.1:{other.getsockname()[1]}:80"
        boxes.store.update(box.id, forwards=(forward,))
        with pytest.raises(HostError, match=f"cannot publish {forward}: another program has"):
            wake(boxes, box)
    assert boxes.store.read(box.id).state is State.SUSPENDED
    assert not agent.exists()


def test_one_whose_process_cannot_say_so_is_suspended_all_the_same(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has just room for the guest's memory, say, and none for the last word."""
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "waits")
    box = boxes.launch()
    thread = threading.Thread(target=lambda: boxes.control(box).request("suspend"))
    thread.start()
    part = boxes.store.path(box.id, f"{SUSPENDED}.part")
    wait_until(lambda: os.path.isdir(part), "no snapshot began")
    obstacle = boxes.store.path(box.id, "state.json.new")
    os.mkdir(obstacle)
    Path(boxes.store.path(box.id, "go")).touch()
    thread.join()
    assert boxes.wait_ended(box).state is State.RUNNING
    os.rmdir(obstacle)
    assert boxes.store.clean() == []
    assert boxes.store.read(box.id).state is State.SUSPENDED
    assert wake(boxes, box).state is State.RUNNING


def test_one_that_was_stopping_has_crashed_whatever_is_on_the_disk(boxes: Sandboxes) -> None:
    """Its suspension failed, and what there was of it could not be deleted."""
    store = boxes.store
    box = store.update(boxes.create().id, Event.BOOTED)
    folder = Path(store.path(box.id, SUSPENDED))
    folder.mkdir(parents=True)
    made = records.SnapshotRecord(box.id, "", records.SUSPENDED, 1.0, "", {}, "0.1.0", box)
    (folder / records.FILE).write_bytes(made.encode())
    store.update(box.id, Event.STOP)
    store.release(box.id)
    assert [one.state for one in store.clean()] == [State.CRASHED]


def test_one_that_was_woken_since_has_crashed_if_it_is_killed(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was woken from could not be deleted, and is of another time."""
    box = boxes.launch()
    suspend(boxes, box)
    monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", "stuck")
    assert wake(boxes, box).state is State.RUNNING
    assert os.path.isdir(boxes.store.path(box.id, SUSPENDED))
    with boxes.connect(box) as client:
        assert output(client, "echo hello") == b"hello\n"
    fd = boxes.store.open_owner(box.id)
    assert fd is not None
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    os.close(fd)
    boxes.wait_ended(box)
    assert [one.state for one in boxes.store.clean()] == [State.CRASHED]


def test_one_that_ends_is_not_suspended(boxes: Sandboxes) -> None:
    """It was asked to stop between the look at its state and its suspension's beginning."""
    store = boxes.store
    box = store.update(boxes.create().id, Event.BOOTED)
    sandbox = Sandbox(store, box, None)
    sandbox.ports = SimpleNamespace(list=lambda: [])  # type: ignore[assignment]
    machine = SimpleNamespace(is_paused=False, stop=lambda: None, press_power_button=lambda: None)
    sandbox.guest = SimpleNamespace(machine=machine)  # type: ignore[assignment]
    sandbox.client = SimpleNamespace(is_serial=False, shut_down=lambda timeout_s: None)  # type: ignore[assignment]
    sandbox.stop(reason="it was idle")
    try:
        with pytest.raises(AgentError, match="it ends: it was idle"):
            sandbox.begin_suspend()
    finally:
        sandbox.ended.set()
        sandbox.stopping.join()
        os.close(sandbox.ended_fd)
        sandbox.limits.close()
        sandbox.relay.close()


def test_who_stops_it_while_it_is_suspended_ends_it(boxes: Sandboxes) -> None:
    """The process was gone when it was asked, and so was what it could be asked."""
    box = boxes.launch()
    suspend(boxes, box)
    begin_kill(boxes.store, box)
    finish_kill(boxes.store, box)
    assert boxes.store.read(box.id).state is State.STOPPED


# Templates.


def test_a_snapshot_waits_for_the_template_that_nobody_asked_for(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "slow")
    box = boxes.launch(**kind(boxes))
    id = save(boxes, box)
    assert [one.record.id for one in shelf(boxes).all()] == [id]
    wait_for_template(boxes)


def test_a_template_that_is_deleted_meanwhile_is_passed_over(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes.launch(**kind(boxes))
    wait_for_template(boxes)

    def sizes(folder: str) -> object:
        raise FileNotFoundError(folder)

    monkeypatch.setattr("voidbox.snapshot.folder.sizes", sizes)
    assert Templates(boxes.store.folder).prune(1, 1 << 30) == ([], 0)


def kind(boxes: Sandboxes, **values: object) -> dict[str, object]:
    kernel = boxes._folder / "kernel"
    if not kernel.exists():
        kernel.write_bytes(b"kernel")
    return {"kernel": str(kernel), **values}


def wait_for_template(boxes: Sandboxes, count: int = 1) -> list[str]:
    folder = Templates(boxes.store.folder).path
    found: list[str] = []

    def is_there() -> bool:
        found[:] = [name for name in os.listdir(folder) if not name.endswith(".part")]
        return len(found) == count

    wait_until(lambda: os.path.isdir(folder) and is_there(), "no template")
    return found


def log_of(boxes: Sandboxes, box: SandboxRecord) -> str:
    return boxes.file(box, "owner.log")


def test_the_second_of_a_kind_is_restored(boxes: Sandboxes) -> None:
    first = boxes.launch(**kind(boxes))
    (key,) = wait_for_template(boxes)
    assert "restored from" not in log_of(boxes, first)
    second = boxes.launch(**kind(boxes, envs={"B": "2"}))
    assert f"templates/{key}" in log_of(boxes, second)
    assert second.snapshot == ""
    assert boxes.store.secret(first.id) != boxes.store.secret(second.id)
    with boxes.connect(second) as client:
        assert output(client, "echo hello") == b"hello\n"
    cold = boxes.launch(**kind(boxes, is_cold=True))
    assert "restored from" not in log_of(boxes, cold)
    other = boxes.launch(**kind(boxes, cpus=2))
    assert "restored from" not in log_of(boxes, other)
    wait_for_template(boxes, 2)


def test_the_first_of_a_template_is_learnt_from(boxes: Sandboxes) -> None:
    boxes.launch(**kind(boxes))
    (key,) = wait_for_template(boxes)
    known = Path(Templates(boxes.store.folder).place(key), "working-set")
    assert not known.exists()
    second, third = (boxes.launch(**kind(boxes)) for _ in range(2))
    wait_until(known.exists, "nobody looked at it")
    by = known.read_text()
    assert os.path.basename(by) in (second.id, third.id)
    fourth = boxes.launch(**kind(boxes))
    assert "the guest has touched" not in log_of(boxes, fourth)
    assert known.read_text() == by


def test_another_kernel_is_another_kind(boxes: Sandboxes) -> None:
    boxes.launch(**kind(boxes))
    wait_for_template(boxes)
    (boxes._folder / "kernel").write_bytes(b"another kernel")
    box = boxes.launch(**kind(boxes))
    assert "restored from" not in log_of(boxes, box)


@pytest.mark.parametrize("problem", ["bad", "no-adopt"])
def test_a_template_that_fails_is_set_aside_and_the_sandbox_boots(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    boxes.launch(**kind(boxes))
    (key,) = wait_for_template(boxes)
    monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", problem)
    box = boxes.launch(**kind(boxes))
    assert box.state is State.RUNNING
    assert "so the sandbox boots" in log_of(boxes, box)
    with boxes.connect(box) as client:
        assert output(client, "echo hello") == b"hello\n"
    assert not os.path.exists(Templates(boxes.store.folder).place(key))
    (aside,) = os.listdir(f"{boxes.store.folder}/set-aside")
    assert f"template-{key}" in aside


def test_a_template_is_not_to_blame_for_what_does_not_boot_either(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of memory, say, that its own limit denies it: others are restored all the same."""
    boxes.launch(**kind(boxes))
    wait_for_template(boxes)
    for step in ("RESTORE", "BOOT"):
        monkeypatch.setenv(f"VOIDBOX_FAKE_{step}", "bad")
    with pytest.raises(ConfigError, match="the kernel is no kernel"):
        boxes.launch(**kind(boxes))
    for step in ("RESTORE", "BOOT"):
        monkeypatch.delenv(f"VOIDBOX_FAKE_{step}")
    assert "restored from" in log_of(boxes, boxes.launch(**kind(boxes)))


def test_no_more_templates_are_made_of_a_kind_that_is_never_restored(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second start would fail first, after half a minute at worst."""
    templates = Templates(boxes.store.folder)
    boxes.launch(**kind(boxes))
    (key,) = wait_for_template(boxes)
    folder = templates.place(key)
    for _ in range(3):
        shutil.copytree(folder, f"{folder}-copy")
        templates.set_aside(folder)
        os.rename(f"{folder}-copy", folder)
    templates.prune()
    box = boxes.launch(**kind(boxes))
    wait_until(lambda: "no template: 3 of this kind" in log_of(boxes, box), "it is not told")
    assert os.listdir(templates.path) == []
    later = time.time() + 2 * 24 * 3600
    monkeypatch.setattr("voidbox.sandbox.snapshots.templates.time.time", lambda: later)
    templates.check_worth(key)


def test_a_full_disk_is_no_reason_not_to_start(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "full")
    box = boxes.launch(**kind(boxes))
    wait_until(lambda: "no template: cannot write" in log_of(boxes, box), "it is not told")
    assert boxes.store.read(box.id).state is State.RUNNING


def test_templates_can_be_turned_off(boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOIDBOX_TEMPLATES", "off")
    boxes.launch(**kind(boxes))
    assert not os.path.exists(Templates(boxes.store.folder).path)


def test_those_used_longest_ago_go_first(boxes: Sandboxes) -> None:
    templates = Templates(boxes.store.folder)
    for cpus in (1, 2, 3):
        boxes.launch(**kind(boxes, cpus=cpus))
        wait_for_template(boxes, cpus)
    keys = {
        records.load(templates.place(key)).sandbox.cpus: key for key in os.listdir(templates.path)
    }
    for age, cpus in enumerate((2, 3, 1)):
        os.utime(templates.place(keys[cpus]), (1000 - age, 1000 - age))
    assert templates.find(keys[1])  # which is used now
    assert templates.prune(2, 1 << 30)[0] == [keys[3]]
    assert sorted(os.listdir(templates.path)) == sorted([keys[1], keys[2]])
    (boxes._folder / "kernel").unlink()
    gone, freed = templates.prune()
    assert sorted(gone) == sorted([keys[1], keys[2]])
    assert freed > 0


@pytest.mark.parametrize("verb", ["kill", "stop"])
def test_a_sandbox_that_lives_for_a_moment_leaves_a_template_too(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "slow")
    box = boxes.launch(**kind(boxes))
    boxes.control(box).request(verb)
    boxes.wait_ended(box)
    assert wait_for_template(boxes)
    second = boxes.launch(**kind(boxes))
    assert "restored from" in log_of(boxes, second)


def test_a_program_that_is_gone_is_not_waited_for(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "slow")
    reader, writer = os.pipe()
    box = boxes.launch(parent_fd=reader, is_owned=True, **kind(boxes))
    os.close(reader)
    os.close(writer)
    boxes.wait_ended(box)
    assert "no template: the machine's process has ended" in log_of(boxes, box)


def test_a_sandbox_killed_while_its_template_is_written(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "slow")
    box = boxes.launch(**kind(boxes))
    fd = boxes.store.open_owner(box.id)
    assert fd is not None
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    os.close(fd)
    boxes.wait_ended(box)
    monkeypatch.delenv("VOIDBOX_FAKE_SNAPSHOT")
    second = boxes.launch(**kind(boxes))
    assert "restored from" not in log_of(boxes, second)
    wait_for_template(boxes)
