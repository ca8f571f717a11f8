"""Our own SDK against a server: AsyncSandbox and Sandbox with remote=, with stand-ins."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.sandbox.conftest import in_event_loop
from tests.unit.serve.conftest import DEADLINE_S, StandIn, wait_until
from voidbox import AsyncSandbox, Sandbox
from voidbox.errors import AgentError, ConfigError, HostError, VoidboxError

pytestmark = pytest.mark.slow


@pytest.fixture
def remote(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VOIDBOX_API_KEY", server.key)
    monkeypatch.delenv("VOIDBOX_REMOTE", raising=False)
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def shared(server: StandIn) -> Iterator[Sandbox]:
    """One for all that do it no harm."""
    os.environ["VOIDBOX_API_KEY"] = server.key
    with Sandbox.create(remote=f"http://127.0.0.1:{server.port}", envs={"A": "1"}) as sandbox:
        yield sandbox


def test_commands(shared: Sandbox) -> None:
    result = shared.commands.run("echo $A; echo $B >&2; exit 3", envs={"B": "2"})
    assert (result.stdout, result.stderr, result.exit_code) == ("1\n", "2\n", 3)
    assert shared.commands.run("cat", input=b"x" * 1_000_000).stdout == "x" * 1_000_000
    handle = shared.commands.run("echo up; read x; echo got $x", background=True, stdin=True)
    handle.send_stdin("it\n")
    assert handle.wait().stdout == "up\ngot it\n"
    assert shared.exec("echo", "no shell: $A").stdout == "no shell: $A\n"


def test_files(shared: Sandbox, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    path = str(tmp_path / "far")
    shared.files.write(path, data)
    assert shared.files.read(path, format="bytes") == data
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "a").write_bytes(data)
    shared.files.upload(str(tmp_path / "near"), str(tmp_path / "up"))
    shared.files.download(str(tmp_path / "up"), str(tmp_path / "down"))
    assert (tmp_path / "down" / "a").read_bytes() == data


def test_what_it_tells(server: StandIn, shared: Sandbox, remote: str) -> None:
    info = shared.get_info()
    assert info.is_running and info.name == shared.name and info.metadata == {}
    assert info.kernel == "kernel" and server.where not in repr(info)
    assert shared.is_running() and shared.get_metrics().host_memory_bytes > 0
    assert [one.sandbox_id for one in Sandbox.list(remote=remote)] == [shared.sandbox_id]
    assert "the guest boots" in "\n".join(shared.logs())
    again = Sandbox.connect(shared.name, remote=remote)
    assert again.commands.run("echo $A").stdout == "1\n"
    again.close()
    assert shared.is_running()


def test_the_environment_names_the_server(
    shared: Sandbox, remote: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VOIDBOX_REMOTE", remote)
    assert [one.name for one in Sandbox.list()] == [shared.name]
    assert Sandbox.list(state_folder=str(tmp_path / "here")) == []


@pytest.mark.slow
@in_event_loop
async def test_a_life(server: StandIn, remote: str) -> None:
    sandbox = await AsyncSandbox.create(
        remote=remote, name="far", metadata={"a": "b"}, timeout=600, idle_timeout=500
    )
    info = await sandbox.get_info()
    assert (info.name, dict(info.metadata), info.idle_timeout_s) == ("far", {"a": "b"}, 500)
    await sandbox.set_timeout(900)
    end_at = (await sandbox.get_info()).end_at
    assert end_at is not None and info.end_at is not None and end_at > info.end_at + 100
    await sandbox.pause()
    assert (await sandbox.get_info()).state == "paused"
    await sandbox.resume()
    assert (await sandbox.commands.run("echo on")).stdout == "on\n"
    await sandbox.suspend()
    assert (await sandbox.get_info()).state == "suspended"
    assert not await sandbox.is_running()
    again = await AsyncSandbox.connect("far", remote=remote)
    assert (await again.commands.run("echo awake")).stdout == "awake\n"
    saved = await again.snapshot("far-1")
    copy = await AsyncSandbox.create(remote=remote, snapshot=saved)
    (fork,) = await again.fork()
    assert not isinstance(fork, Exception)
    ids = {again.sandbox_id, copy.sandbox_id, fork.sandbox_id}
    assert len(ids) == 3 and ids <= set(server.records())
    assert (await fork.commands.run("echo fork")).stdout == "fork\n"
    await again.stop()
    assert await copy.kill() and await fork.kill() and not await fork.kill()
    assert not ids & set(server.records())
    with pytest.raises(AgentError, match="ended by this program"):
        await copy.commands.run("true")


@pytest.mark.slow
def test_an_idle_sandbox_ends(server: StandIn, remote: str) -> None:
    """What the server itself asks of it is no use of it."""
    sandbox = Sandbox.create(remote=remote, idle_timeout=7)
    sandbox.commands.run("true")
    wait_until(lambda: sandbox.sandbox_id not in server.records(), "it never ended")
    sandbox.close()


@pytest.mark.slow
@in_event_loop
async def test_its_end_is_told(server: StandIn, remote: str) -> None:
    sandbox = await AsyncSandbox.create(remote=remote, timeout=600)
    await sandbox.commands.run("true")
    assert server.api("DELETE", f"/sandboxes/{sandbox.sandbox_id}").status == 204
    with pytest.raises(AgentError, match="has ended"):
        await sandbox.commands.run("true")
    assert not await sandbox.is_running() and not await sandbox.kill()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"disks": ["/x"]}, "disks= from afar"),
        ({"publish": ["80:80"]}, "publish= from afar"),
        ({"allow_host_ports": [22]}, "allow_host_ports= from afar"),
        ({"volumes": ["/etc:/mnt"]}, "volumes= from afar"),
        ({"jail": "off"}, "jail= from afar"),
        ({"workspace": "/tmp"}, "workspace= from afar"),
        ({"keep": True}, "keep= from afar"),
        ({"kernel": Path("/boot/x")}, "images by their names"),
        ({"image": Path("/x.cpio")}, "images by their names"),
        ({"image": "/etc/passwd"}, "template '/etc/passwd' not found"),
        ({"memory": "64G"}, "512 MiB at most"),
        ({"cpus": 64}, "from 1 to 1"),
        ({"timeout": 1e6}, "timeout: give a number"),
        ({"metadata": {"voidbox.serve": "{}"}}, "the server's own"),
        ({"snapshot": "none-such"}, "not found"),
    ],
)
@in_event_loop
async def test_what_a_server_does_not_carry(
    server: StandIn, remote: str, options: dict[str, object], why: str
) -> None:
    before = server.records()
    with pytest.raises(ConfigError) as caught:
        await AsyncSandbox.create(remote=remote, **options)  # type: ignore[arg-type]
    assert why in str(caught.value) and "\n" not in str(caught.value)
    assert server.records() == before


def test_operations_that_a_server_does_not_carry(shared: Sandbox) -> None:
    for action in (
        lambda: shared.ports.add("8080:80"),
        lambda: shared.set_limits({"cpu": 2.0}),
        lambda: shared.secrets.list(),
        lambda: shared.sync_back(),
    ):
        with pytest.raises(ConfigError) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_keys(
    server: StandIn, shared: Sandbox, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_API_KEY", server.add_key("stranger", "run"))
    assert Sandbox.list(remote=remote) == []
    with pytest.raises(ConfigError, match="not found"):
        Sandbox.connect(shared.sandbox_id, remote=remote)
    monkeypatch.setenv("VOIDBOX_API_KEY", server.add_key("reader", "read"))
    with pytest.raises(ConfigError, match="no scope 'run'"):
        Sandbox.create(remote=remote)
    monkeypatch.setenv("VOIDBOX_API_KEY", "e2b_wrong")
    with pytest.raises(ConfigError, match="Invalid API key"):
        Sandbox.list(remote=remote)


@pytest.mark.parametrize("name", ["stranger2", None])
def test_the_way_to_another_keys_agent(server: StandIn, shared: Sandbox, name: str | None) -> None:
    key = server.add_key(name, "run") if name else "e2b_wrong"
    answer = server.request(
        "GET",
        f"/voidbox/v1/sandboxes/{shared.sandbox_id}/agent",
        headers={
            "X-API-KEY": key,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        },
    )
    assert answer.status == (404 if name else 401)


def test_a_key_that_is_removed_ends_what_goes_on(
    server: StandIn, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_API_KEY", server.add_key("leaver", "run"))
    sandbox = Sandbox.create(remote=remote)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            sandbox.commands.run("sleep 1000")
        except VoidboxError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: sandbox.commands.list(), "the command runs")
    server.remove_key("leaver")
    thread.join(DEADLINE_S)
    assert ended and "Invalid API key" in str(ended[0]), ended
    boss = server.add_key("boss-of-all", "admin")
    sandbox_id = sandbox.sandbox_id
    assert server.api("DELETE", f"/sandboxes/{sandbox_id}", key=boss).status == 204
    sandbox.close()


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOIDBOX_API_KEY", "k")
    with pytest.raises(HostError, match="cannot reach http://127.0.0.1:1: .*refused"):
        Sandbox.list(remote="http://127.0.0.1:1")


def test_many_at_once_and_one_that_vanishes(server: StandIn, shared: Sandbox, remote: str) -> None:
    problems: list[object] = []

    def use(number: int) -> None:
        try:
            one = Sandbox.connect(shared.sandbox_id, remote=remote)
            assert one.commands.run(f"echo {number}").stdout == f"{number}\n"
            one.close()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not problems


@pytest.mark.slow
def test_a_server_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), {})
        try:
            monkeypatch.setenv("VOIDBOX_API_KEY", server.key)
            sandbox = Sandbox.create(remote=f"http://127.0.0.1:{server.port}", timeout=600)
            assert sandbox.commands.run("echo 1").stdout == "1\n"
            server.kill()
            with pytest.raises(VoidboxError):
                sandbox.commands.run("echo 2", request_timeout=2)
            server.start()
            wait_until(lambda: sandbox.is_running(), "the server did not find it")
            assert sandbox.commands.run("echo 3").stdout == "3\n"
            sandbox.kill()
            assert server.records() == []
            assert "Traceback" not in server.log.read_text()
        finally:
            server.close()


def test_the_servers_log_shows_no_fault(server: StandIn) -> None:
    assert "Traceback" not in server.log.read_text()
