"""The store, by one process: what it makes, finds, changes and removes."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sandbox.states import ROOT, allocations, check_whole, wanted
from voidbox.errors import ConfigError
from voidbox.sandbox.state.state_folder import SUSPENDED, StateFolder
from voidbox.sandbox.state.store import Event, State, Store


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "state")


@pytest.fixture
def store(folder: str) -> Iterator[Store]:
    with Store(folder) as store:
        yield store


def test_a_life(store: Store, folder: str) -> None:
    made = store.create(wanted("web", envs={"A": "ä\udcff"}, net={"allow": ["*"]}))
    assert (made.name, made.state, made.cid, made.pid) == ("web", State.CREATING, 3, 0)
    with closing(Store(folder)) as owner:
        adopted = owner.adopt(made.id)
        assert adopted == made._replace(pid=os.getpid())
        store.release(made.id)
        assert store.is_alive(made.id)
        running = owner.update(made.id, Event.BOOTED)
        assert running.state is State.RUNNING
        assert running.started_at is not None
        assert running.started_at >= made.created_at
        assert store.read("web") == store.read(made.id) == store.read(made.id[:4]) == running
        assert owner.allocate_port(made.id) == 9000
        ended = owner.update(made.id, Event.ENDED, reason="it was stopped")
        assert (ended.state, ended.reason, ended.ports) == (State.STOPPED, "it was stopped", ())
        assert ended.ended_at is not None
        assert ended.ended_at >= running.started_at
        assert allocations(folder) == {
            **{"version": 1, "cids": {}, "ports": {}, "next_port": 9001},
            "names": {"web": made.id},
        }
    assert not store.is_alive(made.id)
    assert store.clean() == []
    assert store.list() == [ended]
    store.remove(made.id)
    assert store.list() == []
    assert check_whole(folder) == []


def test_what_is_brought_to_the_disk(
    store: Store, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a host without power takes with it is not waited for: a start is quick on any disk."""
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    made = store.create(wanted("web", secret_envs=("KEY",)), {"KEY": "x"})
    store.adopt(made.id)
    for event in (Event.BOOTED, Event.PAUSE, Event.RESUME):
        store.update(made.id, event)
    assert not synced
    store.update(made.id, Event.SUSPEND)
    here = f"{folder}/sandboxes"
    own = f"{here}/{made.id}"
    lasting = {here, own, f"{own}/secret", f"{own}/secret-envs", f"{own}/state.json.new"}
    assert set(synced) == lasting
    synced.clear()
    Path(own, "machine/suspended").mkdir(parents=True)
    store.wake(made.id)  # it may have to go back to that
    assert set(synced) == {own, f"{own}/state.json.new"}


def test_one_that_is_woken_is_not_discarded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By somebody else, after it was seen to be suspended."""
    made = store.create(wanted("web"))
    store.adopt(made.id)
    store.update(made.id, Event.BOOTED)
    suspended = store.update(made.id, Event.SUSPEND)
    store.release(made.id)
    store.wake(made.id)
    monkeypatch.setattr(store, "read", lambda key: suspended)
    with pytest.raises(ConfigError, match="is not suspended"):
        store.discard_suspended(made.id)
    assert Store(store.folder).read(made.id).state is State.CREATING


def test_a_life_costs_no_reading_of_others(
    store: Store, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [store.create(wanted()) for _ in range(5)]
    reader = Store(folder)
    read: list[str] = []
    load = StateFolder.load
    monkeypatch.setattr(StateFolder, "load", lambda self, id: read.append(id) or load(self, id))
    made = store.create(wanted("web"))
    assert reader.read("web").id == made.id
    assert store.clean() == []
    store.rename(made.id, "net")
    store.release(made.id)
    store.clean()
    store.remove(made.id)
    assert not set(read) & {other.id for other in others}


@pytest.mark.parametrize("index", [None, {"names": {}}, {"cids": {}, "names": {}}, {"cids": {}}])
def test_an_index_that_is_wrong_is_made_anew(
    store: Store, folder: str, index: dict[str, Any] | None
) -> None:
    made = [store.create(wanted(name)) for name in ("a", "b")]
    whole = allocations(folder)
    path = Path(folder, "allocations", "allocations.json")
    if index is None:
        path.unlink()
    else:
        path.write_text(json.dumps({**whole, **index}))
    assert Store(folder).read("b") == made[1]
    store.clean()
    assert allocations(folder) == whole
    with pytest.raises(ConfigError, match="called b already"):
        store.create(wanted("b"))
    assert store.create(wanted()).cid == 5


def test_no_two_records_look_alike(store: Store, folder: str) -> None:
    """By a file's time it is known whether it is another one: the kernel's steps are too long."""
    made = store.create(wanted("web"))
    times = set()
    for _ in range(50):
        store.update(made.id, reason="")
        times.add(os.stat(f"{folder}/sandboxes/{made.id}/state.json").st_mtime_ns)
    assert len(times) == 50


def test_an_index_without_names_is_of_an_older_voidbox(store: Store, folder: str) -> None:
    store.create(wanted("a"))
    path = Path(folder, "allocations", "allocations.json")
    old = allocations(folder)
    del old["names"]
    path.write_text(json.dumps(old))
    with pytest.raises(ConfigError, match="called a already"):
        store.create(wanted("a"))
    assert store.create(wanted("b")).cid == 4
    assert not Path(folder, "set-aside").exists()


def test_who_starts_many_cleans_once_a_second(store: Store, folder: str) -> None:
    made = store.create(wanted())
    store.clean()
    store.release(made.id)  # as if its process had been killed
    store.clean_at_times()
    assert store.read(made.id).state is State.CREATING
    os.utime(f"{folder}/allocations/cleaned", (0, 0))
    store.clean_at_times()
    assert store.read(made.id).state is State.CRASHED


def test_only_the_user_can_look_in(store: Store) -> None:
    made = store.create(wanted())
    for path in (store.folder, store.path(made.id)):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    for name in ("state.json", "secret", "alive"):
        assert stat.S_IMODE(os.stat(store.path(made.id, name)).st_mode) == 0o600
    assert len(store.secret(made.id)) == 32
    assert store.secret(made.id) != store.secret(store.create(wanted()).id)


def test_a_list_has_the_oldest_first(store: Store) -> None:
    made = [store.create(wanted(name)) for name in ("c", "a", "b")]
    assert store.list() == made
    assert [record.cid for record in made] == [3, 4, 5]


def test_a_name_is_one_sandbox_s_until_it_is_removed(store: Store) -> None:
    first = store.create(wanted("web"))
    with pytest.raises(ConfigError, match="there is a sandbox called web already, which is crea"):
        store.create(wanted("web"))
    store.update(first.id, Event.FAILED)
    with pytest.raises(ConfigError, match="which is crashed: .* voidbox rm web"):
        store.create(wanted("web"))
    store.remove(first.id)
    assert store.create(wanted("web")).id != first.id
    assert len(store.list()) == 1


@pytest.mark.parametrize("name", ["a/b", "../a", "..", "a\0b", "-x", "0123456789ab"])
def test_names_that_cannot_be(store: Store, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a sandbox's name"):
        store.create(wanted(name))
    made = store.create(wanted("good"))
    with pytest.raises(ConfigError, match="cannot be a sandbox's name"):
        store.rename(made.id, name)
    assert store.list() == [made]


@pytest.mark.parametrize(
    "key", ["none", "", "a/b", "../../etc", "/", "\0", "beef", "0123456789ab", "x\ny", "\udcff"]
)
def test_unknown_ones(store: Store, key: str) -> None:
    store.create(wanted())
    for ask in (store.read, store.remove, store.path, store.is_alive, store.secret, store.adopt,
                store.update, store.allocate_port, store.open_owner):  # fmt: skip
        if ask in (store.path, store.is_alive, store.open_owner) and key == "0123456789ab":
            continue  # that is an ID; what is not there is dead
        with pytest.raises(ConfigError, match="^no sandbox .*: voidbox ps -a lists them$") as error:
            ask(key)
        assert str(error.value).isprintable()
    assert not store.is_alive("0123456789ab")
    assert store.open_owner("0123456789ab") is None


def test_a_name_beats_an_id_s_beginning(store: Store) -> None:
    first = store.create(wanted("first"))
    second = store.create(wanted(first.id[:4]))
    assert store.read(first.id[:4]) == second
    assert store.read(first.id[:5]) == first


def test_a_beginning_of_several(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["abcd00000000", "abcd11111111"])
    monkeypatch.setattr("voidbox.sandbox.state.names.new_id", lambda: next(ids))
    store.create(wanted("one"))
    store.create(wanted("two"))
    with pytest.raises(ConfigError, match=r"abcd00000000 \(one\), abcd11111111 \(two\)"):
        store.read("abcd")
    assert store.read("abcd1").name == "two"


def test_a_rename(store: Store) -> None:
    first, second = store.create(wanted("a")), store.create(wanted("b"))
    with pytest.raises(ConfigError, match="there is a sandbox called b already"):
        store.rename(first.id, "b")
    assert store.rename(second.id, "b") == second
    assert store.rename(first.id, "c") == store.read("c") == first._replace(name="c")
    with pytest.raises(ConfigError, match="no sandbox a"):
        store.read("a")


def test_what_an_update_cannot_change(store: Store) -> None:
    made = store.create(wanted())
    with pytest.raises(TypeError, match="cannot change cid, state"):
        store.update(made.id, state=State.RUNNING, cid=9)
    with pytest.raises(ConfigError, match="a sandbox that is creating cannot be paused"):
        store.update(made.id, Event.PAUSE)
    with pytest.raises(ConfigError, match="a sandbox's timeout_s cannot be 'x'"):
        store.update(made.id, timeout_s="x")
    assert store.list() == [made]


def test_only_one_process_adopts(store: Store, folder: str) -> None:
    made = store.create(wanted("web"))
    store.adopt(made.id)
    with Store(folder) as other, pytest.raises(ConfigError, match="web has a process already"):
        other.adopt(made.id)
    assert store.is_alive(made.id)
    store.release(made.id)
    assert not store.is_alive(made.id)


def test_a_live_one_is_not_removed_and_not_cleaned(store: Store, folder: str) -> None:
    made = store.create(wanted("web"))
    with Store(folder) as other:
        Path(store.path(made.id) + "/control.sock").touch()
        assert other.clean() == []
        with pytest.raises(ConfigError, match="web is alive: stop it first, with voidbox stop web"):
            other.remove(made.id)
        other.adopt(made.id)
        store.update(made.id, Event.ENDED)  # its process is about to end, not yet gone
        with pytest.raises(ConfigError, match="web is alive"):
            store.remove(made.id)
        assert os.path.exists(store.path(made.id) + "/control.sock")
        store.release(made.id)
        other.remove(made.id)  # that is --rm: its own process removes it
    assert not os.path.exists(store.path(made.id))


def test_a_killed_one_is_cleaned_by_the_next_command(store: Store, folder: str) -> None:
    with Store(folder) as owner:
        made = owner.create(wanted("web"))
        owner.adopt(made.id)
        owner.update(made.id, Event.BOOTED)
        owner.allocate_port(made.id)
        for name in ("control.sock", "vsock.sock", "vsock.sock_5001"):
            Path(owner.path(made.id), name).touch()
        Path(owner.path(made.id, "console.log")).write_bytes(
            b"x" * 9000 + b"\n\xff\x1b[2Jpanic\r\n"
        )
    (crashed,) = store.clean()
    assert allocations(folder)["cids"] == allocations(folder)["ports"] == {}
    assert (crashed.state, crashed.reason) == (State.CRASHED, "its process was killed")
    assert crashed.crash.endswith("x\n\ufffd[2Jpanic")
    assert len(crashed.crash) < 9000
    assert store.clean() == []
    assert store.list() == [crashed]
    assert sorted(os.listdir(store.path(made.id))) == [
        "alive", "console.log", "secret", "state.json",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="a sandbox that is crashed cannot boot"):
        store.update(made.id, Event.BOOTED)
    with pytest.raises(ConfigError, match="or has ended"):
        store.adopt(made.id)


def test_a_running_one_that_is_killed_has_crashed_whatever_it_was_woken_from(
    store: Store, folder: str
) -> None:
    with Store(folder) as owner:
        made = owner.create(wanted())
        owner.update(made.id, Event.BOOTED)
        Path(owner.path(made.id, SUSPENDED)).mkdir(parents=True)
    assert [record.state for record in store.clean()] == [State.CRASHED]


def test_one_of_a_pool_that_was_only_made_is_removed(store: Store, folder: str) -> None:
    with Store(folder) as program:
        program.create(wanted(is_pooled=True))
    store.clean()
    assert not store.list() and check_whole(folder) == []


def test_a_killed_one_that_removes_itself_is_removed(store: Store, folder: str) -> None:
    with Store(folder) as owner:
        killed = owner.create(wanted(removes_itself=True))
        ended = owner.create(wanted(removes_itself=True))
        owner.update(ended.id, Event.ENDED)
    assert [record.id for record in store.clean()] == [killed.id]
    assert check_whole(folder) == []


def test_half_made_folders_are_deleted(store: Store, folder: str) -> None:
    made = store.create(wanted())
    for name in (".new-0123456789ab", ".removed-0123456789ab"):
        Path(folder, "sandboxes", name).mkdir()
        Path(folder, "sandboxes", name, "state.json").write_text("{")
    assert store.clean() == []
    assert os.listdir(f"{folder}/sandboxes") == [made.id]


def test_ports(store: Store, folder: str) -> None:
    first, second = store.create(wanted()), store.create(wanted("web"))
    assert [store.allocate_port(first.id) for _ in range(3)] == [9000, 9001, 9002]
    assert store.allocate_port(second.id) == 9003
    store.release_port(second.id, 9001)  # not its own
    store.release_port(first.id, 9001)
    store.release_port(first.id, 9001)
    assert store.read(first.id).ports == (9000, 9002)
    assert allocations(folder)["ports"] == {"9000": first.id, "9002": first.id, "9003": second.id}
    store.update(second.id, Event.ENDED)
    with pytest.raises(ConfigError, match="web is stopped"):
        store.allocate_port(second.id)
    assert store.allocate_port(first.id) == 9004


def test_the_process_of_a_sandbox(store: Store, folder: str) -> None:
    made = store.create(wanted())
    assert store.open_owner(made.id) is None  # it has none yet
    script = (
        "import sys; from voidbox.sandbox.state.store import Store;"
        "Store(sys.argv[1]).adopt(sys.argv[2]); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, folder, made.id],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        store.release(made.id)
        owner = store.open_owner(made.id)
        assert owner is not None
        assert select.select([owner], [], [], 0)[0] == []
        signal.pidfd_send_signal(owner, signal.SIGKILL)
        assert select.select([owner], [], [], 20)[0] == [owner]
        os.close(owner)
        assert not store.is_alive(made.id)
        assert store.open_owner(made.id) is None
    assert [record.id for record in store.clean()] == [made.id]


def test_the_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOIDBOX_STATE", "mine")
    assert Store().folder == str(tmp_path / "mine")
    monkeypatch.delenv("VOIDBOX_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert Store().folder == str(tmp_path / "xdg" / "voidbox")
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "xdg"):  # what is not absolute is not meant
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        assert Store().folder == str(tmp_path / ".local/state/voidbox")


def test_slow_imports_wait_until_they_are_needed(folder: str) -> None:
    script = (
        "import sys; from voidbox.sandbox.state.store import Store;"
        " s = Store(); s.clean(); s.list();"
        "print(*({'pathlib', 'logging', 'shutil', 'asyncio', 'dataclasses', 'subprocess'}"
        " & sys.modules.keys()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "VOIDBOX_STATE": "", "XDG_STATE_HOME": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (found.stdout, found.stderr) == ("\n", "")


def test_a_path_too_long_for_sockets(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 80)
    with Store(str(folder)) as store:
        made = store.create(wanted())
        assert store.path(made.id, "console.log")
        with pytest.raises(ConfigError, match="bytes too long a path for sockets in it"):
            store.path(made.id, "vsock.sock")


def test_peeking_reads_a_record_only_if_it_has_changed(
    store: Store, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.create(wanted("a"))
    other = Store(folder)
    assert store.peek(made.id) == made
    with monkeypatch.context() as patch:
        patch.setattr(store, "read", lambda id: pytest.fail("it has not changed"))
        assert store.peek(made.id) == made
    for timeout_s in (1.0, 2.0, 3.0):
        other.update(made.id, timeout_s=timeout_s)
        assert store.peek(made.id).timeout_s == timeout_s
    other.release(made.id)
    store.release(made.id)
    store.remove(made.id)
    with pytest.raises(ConfigError, match="no sandbox"):
        store.peek(made.id)
