"""Commands of a sandbox, by the real SDK on the real agent."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.unit.sandbox.conftest import Box, in_event_loop
from voidbox.agent.call import RequestFailed
from voidbox.errors import AgentError, CommandFailed, CommandTimeout, ConfigError, SandboxTimeout
from voidbox.sdk.command_handle import AsyncCommandHandle
from voidbox.sdk.command_result import Collector


@in_event_loop
async def test_a_result(box: Box) -> None:
    result = await box.commands.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)


@in_event_loop
async def test_a_list_is_no_shell(box: Box) -> None:
    result = await box.commands.run(["echo", "$HOME; a  b"])
    assert result.stdout == "$HOME; a  b\n"


@in_event_loop
async def test_where_and_with_what_it_runs(box: Box, guest: Path) -> None:
    (guest / "sub").mkdir()
    script = "pwd; echo $FROM_SANDBOX $OWN"
    result = await box.commands.run(script, cwd="sub", envs={"OWN": "2"})
    assert result.stdout == f"{guest}/sub\n1 2\n"
    assert (await box.commands.run("pwd")).stdout == f"{guest}\n"
    result = await box.commands.run("echo $FROM_SANDBOX", envs={"FROM_SANDBOX": "mine"})
    assert result.stdout == "mine\n"


@in_event_loop
async def test_input(box: Box) -> None:
    assert (await box.commands.run("cat; echo end", input="zwölf\n")).stdout == "zwölf\nend\n"
    assert (await box.commands.run(["cat"], input=b"\0\xff")).stdout_bytes == b"\0\xff"
    assert (await box.commands.run("cat; echo end", input="")).stdout == "end\n"
    for bad in ({"input": "a", "stdin": "b"}, {"input": "a", "stdin": True}, {"input": 5}):
        with pytest.raises(ConfigError, match="input"):
            await box.commands.run("cat", **bad)  # type: ignore[call-overload]


@in_event_loop
async def test_what_is_too_long_for_a_command(box: Box) -> None:
    for envs in (
        {"A": "x" * (3 << 20)},
        {f"A{number}": "x" * 100_000 for number in range(30)},
        {"A": "x" * (128 << 10)},
    ):
        with pytest.raises(ConfigError, match=r"envs: .* into a file$"):
            await box.commands.run("true", envs=envs)
    with pytest.raises(ConfigError, match="the command: .* into a file$"):
        await box.commands.run("true " + "x" * (128 << 10))
    envs = {f"A{number}": "x" * 130_000 for number in range(7)}
    result = await box.commands.run(["sh", "-c", "echo ${#A6}"], envs=envs)
    assert result.stdout == "130000\n"


@in_event_loop
async def test_a_request_that_is_too_long_is_refused_and_others_go_on(box: Box) -> None:
    handle = await box.commands.start("cat", stdin=True)
    for path in ("/" + "x" * (3 << 20), "/\ud800"):
        with pytest.raises(ConfigError):
            await box.files.read(path)
    await handle.close_stdin()
    assert (await handle.wait()).exit_code == 0


@in_event_loop
async def test_check(box: Box) -> None:
    with pytest.raises(CommandFailed, match="exit 4: exit code 4: no such thing") as caught:
        await box.commands.run("echo no such thing >&2; exit 4", check=True)
    assert caught.value.result.exit_code == 4
    with pytest.raises(CommandFailed, match="signal 9"):
        await box.commands.run("kill -9 $$", check=True)
    assert (await box.commands.run("true", check=True)).exit_code == 0
    with pytest.raises(CommandFailed) as caught:
        await box.commands.run(r"printf 'a\n\033[2Jb\n' >&2; exit 1", check=True)
    assert str(caught.value).isprintable()


@in_event_loop
async def test_what_cannot_be_executed(box: Box, guest: Path) -> None:
    (guest / "data").write_text("x")
    for name, code in (("no-such-program", 127), (str(guest / "data"), 126)):
        result = await box.commands.run([name])
        assert result.exit_code == code and result.error
    with pytest.raises(CommandFailed, match="no-such-program: exit code 127"):
        await box.commands.run(["no-such-program"], check=True)
    handle = await box.commands.start(["no-such-program"])
    with pytest.raises(AgentError, match="no-such-program"):
        _ = handle.pid
    assert (await handle.wait()).exit_code == 127


@in_event_loop
async def test_signals_count_as_in_a_shell(box: Box) -> None:
    result = await box.commands.run("kill -TERM $$")
    assert (result.exit_code, result.signal) == (128 + signal.SIGTERM, signal.SIGTERM)


@in_event_loop
async def test_callbacks_get_text_and_may_be_coroutines(box: Box) -> None:
    out: list[str] = []
    err: list[str] = []

    async def take(text: str) -> None:
        await asyncio.sleep(0)
        err.append(text)

    result = await box.commands.run(
        r"printf 'a\303'; sleep 0.1; printf '\244b'; echo e >&2",
        on_stdout=out.append,
        on_stderr=take,
    )
    assert "".join(out) == "aäb" == result.stdout and "�" not in "".join(out)
    assert "".join(err) == "e\n"


@in_event_loop
async def test_half_a_character_at_the_end_is_told_too(box: Box) -> None:
    out: list[str] = []
    result = await box.commands.run(r"printf 'a\303'", on_stdout=out.append)
    assert "".join(out) == "a�" == result.stdout
    handle = await box.commands.start(r"printf 'a\303'; printf '\303' >&2")
    found = sorted([output async for output in handle])
    assert found == [
        ("stderr", b"", "�"), ("stderr", b"\xc3", ""),
        ("stdout", b"", "�"), ("stdout", b"a\xc3", "a"),
    ]  # fmt: skip
    async with await box.pty.create(cmd=r"printf '\303'") as pty:
        assert [data async for data in pty] == [b"\xc3"]


@in_event_loop
async def test_what_a_callback_raises_ends_the_command(box: Box, guest: Path) -> None:
    def refuse(text: str) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        await box.commands.run("echo $$; exec sleep 60", on_stdout=refuse)
    while any(info.is_running for info in await box.commands.list()):
        await asyncio.sleep(0.01)


@in_event_loop
async def test_iterating_over_output(box: Box) -> None:
    handle = await box.commands.start("echo one; echo two >&2; sleep 0.05; echo three")
    found = [(output.stream, output.text) async for output in handle]
    assert sorted(found) == [("stderr", "two\n"), ("stdout", "one\n"), ("stdout", "three\n")]
    result = await handle.wait()
    assert (result.stdout, result.stderr) == ("one\nthree\n", "two\n")


@in_event_loop
async def test_a_started_command_waits_for_its_reader(box: Box) -> None:
    handle = await box.commands.start("head -c 20000000 /dev/zero; echo done >&2")
    await asyncio.sleep(0.3)
    result = await handle.wait()
    assert len(result.stdout_bytes) == 20_000_000 and result.stderr == "done\n"


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
@in_event_loop
async def test_all_input_at_once(box: Box, size: int) -> None:
    data = os.urandom(size)
    result = await box.commands.run("cat", stdin=data)
    assert result.stdout_bytes == data


@in_event_loop
async def test_input_that_nobody_reads(box: Box) -> None:
    result = await box.commands.run("exec <&-; echo ok", stdin=bytes(5_000_000))
    assert result.stdout == "ok\n"


@in_event_loop
async def test_input_piece_by_piece(box: Box) -> None:
    handle = await box.commands.run(
        "while read x; do echo got $x; done", background=True, stdin=True
    )
    await handle.send_stdin("one\n")
    assert (await handle.read()) == ("stdout", b"got one\n", "got one\n")
    await handle.send_stdin(b"two\n")
    await handle.close_stdin()
    assert (await handle.wait()).stdout == "got one\ngot two\n"


@in_event_loop
async def test_no_input_is_an_end_of_file(box: Box) -> None:
    assert (await box.commands.run("cat; echo end")).stdout == "end\n"


@in_event_loop
async def test_input_of_any_form(box: Box, guest: Path) -> None:
    (guest / "f").write_text("ä file")
    assert (await box.commands.run("cat; echo end", stdin=None)).stdout == "end\n"
    assert (await box.commands.run("cat", stdin="text ä")).stdout == "text ä"
    with (guest / "f").open() as text, (guest / "f").open("rb") as data:
        for file in (text, data):
            assert (await box.commands.run("cat", stdin=file)).stdout == "ä file"
    for wrong in ("\udc80", 5, ["a"], text):  # the last is closed
        with pytest.raises(ConfigError, match="input|stdin"):
            await box.commands.run("cat", stdin=wrong)  # type: ignore[call-overload]
    handle = await box.commands.start("cat", stdin=True)
    for wrong in ("\udc80", 5, None):
        with pytest.raises(ConfigError, match="input"):
            await handle.send_stdin(wrong)  # type: ignore[arg-type]
    await handle.detach()


@in_event_loop
async def test_input_ends_whatever_becomes_of_it(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*arguments: object, **options: object) -> None:
        raise SandboxTimeout("the guest takes nothing")

    monkeypatch.setattr(AsyncCommandHandle, "send_stdin", fail)
    handle = await box.commands.start("cat; echo end", stdin="x")
    assert (await handle.wait(60)).stdout == "end\n"
    assert handle._feeder is not None and isinstance(handle._feeder.exception(), SandboxTimeout)


@in_event_loop
async def test_reading_waits_for_so_many_seconds(box: Box) -> None:
    handle = await box.commands.start("read x; echo $x", stdin=True)
    with pytest.raises(SandboxTimeout, match="still runs"):
        await handle.read(0.05)
    with pytest.raises(ConfigError, match="timeout"):
        await handle.read(-1)
    await handle.send_stdin("y\n")
    assert await handle.read(10) == ("stdout", b"y\n", "y\n")
    await handle.detach()


@in_event_loop
async def test_a_background_command(box: Box) -> None:
    handle = await box.commands.run("echo $$; exec sleep 60", background=True)
    output = await handle.read()
    assert output is not None and output.text == f"{handle.pid}\n"
    listed = {info.pid: info for info in await box.commands.list()}
    assert listed[handle.pid].is_running and listed[handle.pid].argv[0] == "/bin/sh"
    assert await handle.kill()
    result = await handle.wait()
    assert (result.exit_code, result.signal) == (137, 9)
    assert not await handle.kill()
    assert not await box.commands.kill(2**22 + 1)


@in_event_loop
async def test_a_background_command_is_found_again(box: Box) -> None:
    handle = await box.commands.run("echo early; read x; echo late $x", background=True, stdin=True)
    await handle.read()
    await handle.detach()
    box.agent.close()
    other = Box(box.endpoint._path, Path("/tmp"))
    try:
        again = await other.commands.connect(handle.pid)
        await again.send_stdin("x\n")
        assert (await again.wait()).stdout == "early\nlate x\n"
        with pytest.raises(RequestFailed) as caught:
            await (await other.commands.connect(2**22 + 1)).wait()
        assert caught.value.code == "ESRCH"
    finally:
        other.close()


@in_event_loop
async def test_a_background_commands_handle_that_is_dropped_takes_no_place(box: Box) -> None:
    handle = await box.commands.run("exec sleep 60", background=True)
    again = await box.commands.connect(handle.pid)
    pid, calls = handle.pid, (await box.agent.link())._calls
    while len(calls) < 2:
        await asyncio.sleep(0.01)
    del handle, again
    while calls:
        await asyncio.sleep(0.01)
    assert await box.commands.kill(pid)  # it goes on


@in_event_loop
async def test_output_that_nobody_followed_in_time_is_counted(box: Box) -> None:
    handle = await box.commands.run("head -c 20000000 /dev/zero; echo end", background=True)
    while next(info for info in await box.commands.list() if info.pid == handle.pid).is_running:
        await asyncio.sleep(0.01)
    result = await handle.wait()
    assert result.stdout.endswith("end\n")
    assert result.lost_parts > 0 and len(result.stdout_bytes) < 20_000_000


@in_event_loop
async def test_callbacks_of_a_background_command_need_no_wait(box: Box) -> None:
    heard = asyncio.Event()
    handle = await box.commands.run(
        "echo hi; sleep 60", background=True, on_stdout=lambda text: heard.set()
    )
    await heard.wait()
    await handle.kill()
    await handle.wait()


# --- time limits --------------------------------------------------------------------------------


@in_event_loop
async def test_a_commands_own_time_limit(box: Box) -> None:
    with pytest.raises(CommandTimeout, match=r"its 0\.3 s") as caught:
        await box.commands.run("echo before; sleep 60", timeout=0.3)
    assert caught.value.result.stdout == "before\n"


@in_event_loop
async def test_waiting_less_long_leaves_the_command_alone(box: Box) -> None:
    handle = await box.commands.run("read x; exit 5", background=True, stdin=True, timeout=60)
    with pytest.raises(SandboxTimeout, match="of waiting") as caught:
        await handle.wait(0.1)
    assert not isinstance(caught.value, CommandTimeout)
    await handle.send_stdin("\n")
    assert (await handle.wait(60)).exit_code == 5


@in_event_loop
async def test_a_guest_that_ignores_the_time_limit_is_not_waited_for(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voidbox.sdk.command_handle._TIMEOUT_GRACE_S", 0.1)
    handle = await box.commands.start("sleep 60")
    handle._timeout_s = 0.1
    handle._deadline = time.monotonic() + 0.1
    with pytest.raises(CommandTimeout):
        await handle.wait()


@in_event_loop
async def test_whoever_is_cancelled_ends_the_command(box: Box) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await box.commands.run("exec sleep 61")
    while any("sleep 61" in " ".join(i.argv) and i.is_running for i in await box.commands.list()):
        await asyncio.sleep(0.01)


# --- the guest's end ----------------------------------------------------------------------------


@in_event_loop
async def test_a_command_ends_at_once_with_its_guest(box: Box) -> None:
    task = asyncio.create_task(box.commands.run("sleep 60"))
    while not box.endpoint.connections or not await box.commands.list():
        await asyncio.sleep(0.01)
    box.endpoint.cut("the console's last lines: oops")
    with pytest.raises(AgentError, match="oops"):
        await task
    with pytest.raises(AgentError, match="oops"):
        await box.commands.run("true")


# --- bad input ----------------------------------------------------------------------------------


@in_event_loop
async def test_bad_arguments_get_one_clear_line(box: Box) -> None:
    for cmd in ([], 5, ["a", 5], b"x"):
        with pytest.raises(ConfigError, match="no command"):
            await box.commands.run(cmd)  # type: ignore[call-overload]
    for timeout in (0, -1, float("nan"), "5", True):
        with pytest.raises(ConfigError, match="positive number of seconds"):
            await box.commands.run("true", timeout=timeout)
    with pytest.raises(ConfigError, match="stdin=True"):
        await box.commands.run("true", stdin=True)
    with pytest.raises(RequestFailed, match="no such folder"):
        await box.commands.run("true", cwd="/no/such/folder")
    with pytest.raises(RequestFailed, match="no user"):
        await box.commands.run("true", user="nobody-of-this-name")


@in_event_loop
async def test_binary_output_and_a_line_of_ten_megabytes(box: Box) -> None:
    result = await box.commands.run(r"printf '\000\377'; head -c 10000000 /dev/zero | tr '\0' x")
    assert result.stdout_bytes == b"\0\xff" + b"x" * 10_000_000
    assert result.stdout.startswith("\0�xxx")


def test_more_output_than_is_kept() -> None:
    collector = Collector(limit_bytes=10)
    for data in (b"12345", b"6789", b"abcde"):
        collector.add(1, data)
    assert collector._streams["stdout"].join() == b"6789abcde"
    assert collector._streams["stdout"].lost_bytes == 5


def test_many_small_pieces_cost_little() -> None:
    collector = Collector(limit_bytes=1 << 20)
    for number in range(20_000):
        assert collector.add(1, b"").text == ""
        collector.add(1, b"%05d" % number)
    kept = collector._streams["stdout"]
    assert len(kept._parts) == 2
    assert kept.join() == b"".join(b"%05d" % number for number in range(20_000))


# --- terminals ----------------------------------------------------------------------------------


@in_event_loop
async def test_a_terminal(box: Box) -> None:
    async with await box.pty.create(30, 100, cmd="stty size; read x; stty size; cat") as pty:
        seen = b""

        async def until(text: bytes) -> None:
            nonlocal seen
            while text not in seen:
                data = await pty.read()
                assert data is not None, seen
                seen += data

        await until(b"30 100\r\n")
        await pty.resize(50, 120)
        await pty.send_input("\n")
        await until(b"50 120\r\n")
        await pty.send_input("echoed\n")
        await until(b"echoed\r\nechoed")
        await pty.send_input("\x03")
        assert (await pty.wait()).signal == signal.SIGINT
    for size in ((0, 80), (24, 70_000), (24, "x")):
        with pytest.raises(ConfigError, match="terminal"):
            await box.pty.create(*size)  # type: ignore[arg-type]
