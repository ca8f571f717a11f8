"""Sandbox: the blocking form of AsyncSandbox."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.conftest import ROOT
from tests.unit.sandbox.conftest import Box, in_event_loop
from tests.unit.sdk.test_sandbox import kept, options, state_folder
from voidbox.agent.call import RequestFailed
from voidbox.errors import (
    AgentError,
    CommandFailed,
    CommandTimeout,
    ConfigError,
    SandboxTimeout,
    VoidboxError,
)
from voidbox.sdk import (
    aio,
    command_handle,
    commands,
    files,
    loop_thread,
    ports,
    pty,
    sync,
    sync_commands,
    sync_files,
)
from voidbox.sdk.sync import Sandbox

__all__ = ["options", "state_folder"]


@pytest.fixture
def sandbox(options: dict[str, Any]) -> Iterator[Sandbox]:
    with Sandbox.create(**options) as sandbox:
        yield sandbox


def test_from_create_to_kill(options: dict[str, Any], tmp_path: Path) -> None:
    with Sandbox.create(**options, name="mine") as sandbox:
        assert sandbox.commands.run("echo hi").stdout == "hi\n"
        assert sandbox.exec("echo", "a  b", workdir="/").stdout == "a  b\n"
        sandbox.files.write("f", "x")
        assert sandbox.files.read("f") == "x" and sandbox.files.read("f", "bytes") == b"x"
        assert [info.name for info in sandbox.files.list()] == ["f"]
        assert sandbox.get_info().name == "mine" == Sandbox.list()[0].name
        assert list(sandbox.logs()) == ["the guest boots"]
        other = Sandbox.connect("mine")
        assert other.is_running() and other.ports.list() == []
        other.close()
    assert not kept() and repr(sandbox).startswith("<Sandbox mine ")


def test_callbacks_are_called_on_the_callers_thread(sandbox: Sandbox) -> None:
    heard: list[tuple[str, bool]] = []

    def hear(text: str) -> None:
        # The blocking API is there for callbacks too.
        assert sandbox.commands.run("echo inner").stdout == "inner\n"
        heard.append((text, threading.current_thread() is threading.main_thread()))

    result = sandbox.commands.run("echo out; echo err >&2", on_stdout=hear, on_stderr=hear)
    assert sorted(heard) == [("err\n", True), ("out\n", True)]
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    heard.clear()
    handle = sandbox.commands.run("echo bg", background=True, on_stdout=hear)
    assert handle.wait().stdout == "bg\n" and heard == [("bg\n", True)]


def test_what_a_callback_raises_ends_the_command(sandbox: Sandbox) -> None:
    def refuse(text: str) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        sandbox.commands.run("echo; exec sleep 60", on_stdout=refuse)
    while sandbox.commands.list():
        time.sleep(0.01)


def test_errors_come_without_the_frames_in_here(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frames(line: str) -> int:
        with pytest.raises(VoidboxError) as caught:
            if line == "read":
                sandbox.files.read("/no/such")
            else:
                sandbox.commands.run(line, cwd="/no/such" if line == "true" else None, check=True)
        shown = "".join(traceback.format_exception(caught.value))
        assert shown.count("Traceback") == 1
        return len(traceback.extract_tb(caught.tb))

    for line in ("read", "true", "exit 3"):
        assert frames(line) <= 5
    monkeypatch.setenv("VOIDBOX_DEBUG", "1")
    assert frames("read") > 8


def test_input_with_callbacks(sandbox: Sandbox) -> None:
    heard: list[str] = []
    assert sandbox.commands.run("cat", input="a", on_stdout=heard.append).stdout == "a"
    assert heard == ["a"] and sandbox.exec("cat", input=b"b").stdout == "b"


def test_iterating(sandbox: Sandbox) -> None:
    with sandbox.commands.start("echo one; sleep 0.05; echo two") as handle:
        assert [output.text for output in handle] == ["one\n", "two\n"]
        assert handle.wait().exit_code == 0 and handle.result is not None
    with sandbox.commands.start("exec sleep 62"):
        pass
    while sandbox.commands.list():
        time.sleep(0.01)


@pytest.mark.parametrize("has_callback", [False, True])
def test_time_limits(sandbox: Sandbox, has_callback: bool) -> None:
    on_stdout = (lambda text: None) if has_callback else None
    with pytest.raises(CommandTimeout):
        sandbox.commands.run("echo; sleep 60", timeout=0.2, on_stdout=on_stdout)
    handle = sandbox.commands.run("echo; read x", background=True, stdin=True, on_stdout=on_stdout)
    with pytest.raises(SandboxTimeout, match=r"0\.2 s of waiting|still runs") as caught:
        handle.wait(0.2)
    assert not isinstance(caught.value, CommandTimeout)
    handle.send_stdin("\n")
    handle.close_stdin()
    assert handle.wait(60).exit_code == 0
    with pytest.raises(CommandFailed):
        sandbox.commands.run("exit 3", check=True, on_stdout=on_stdout)


def test_background_commands(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run(["sleep", "60"], background=True)
    again = sandbox.commands.connect(handle.pid)
    assert [info.pid for info in sandbox.commands.list()] == [handle.pid]
    assert sandbox.commands.kill(handle.pid)
    assert handle.wait().signal == again.wait().signal == signal.SIGKILL


def test_a_terminal(sandbox: Sandbox) -> None:
    with sandbox.pty.create(20, 90, cmd="stty size; read x") as terminal:
        assert b"".join([terminal.read() or b""]).startswith(b"20 90")
        terminal.resize(30, 100)
        terminal.send_input("\n")
        assert terminal.wait().exit_code == 0


def test_watching(sandbox: Sandbox, tmp_path: Path) -> None:
    with sandbox.files.watch_dir() as watch:
        (tmp_path / "work" / "f").touch()
        event = watch.next(20)
        assert event is not None and event.name == "f"
    assert [event for event in watch if event.kind == "create"] == []


def test_progress_is_told_on_the_callers_thread(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(20 << 20))
    for copy in (
        lambda tell: sandbox.files.upload(tmp_path / "big", "big", progress=tell),
        lambda tell: sandbox.files.download("big", tmp_path / "back", progress=tell),
    ):
        told: list[tuple[int, int]] = []

        def tell(done: int, total: int, told: list[tuple[int, int]] = told) -> None:
            assert threading.current_thread() is threading.main_thread()
            told.append((done, total))

        assert copy(tell).bytes == 20 << 20
        assert told[-1] == (20 << 20, 20 << 20) and told == sorted(told)

    def refuse(done: int, total: int) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        sandbox.files.upload(tmp_path / "big", "other", progress=refuse)
    assert not sandbox.files.exists("other")
    with pytest.raises(RequestFailed):
        sandbox.files.download("none", tmp_path / "x", progress=refuse)


@contextmanager
def interrupt_when(condition: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C reaches the block once the condition holds."""
    main = threading.main_thread().ident
    assert main is not None

    def wait_and_interrupt(main: int) -> None:
        while not condition():
            time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=wait_and_interrupt, args=(main,))
    thread.start()
    yield
    thread.join()


def test_an_interrupt_ends_the_command(sandbox: Sandbox) -> None:
    with interrupt_when(sandbox.commands.list), pytest.raises(KeyboardInterrupt):
        sandbox.commands.run("exec sleep 1000")
    while sandbox.commands.list():
        time.sleep(0.01)
    assert sandbox.commands.run("echo on").stdout == "on\n"


def test_an_interrupted_start_leaves_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    options["image"] = tmp_path / "imageslow"
    with interrupt_when(kept), pytest.raises(KeyboardInterrupt):
        Sandbox.create(**options)
    assert not kept()


@in_event_loop
async def test_beside_another_event_loop(box: Box) -> None:
    """A blocking call in somebody's coroutine blocks it, but works."""
    assert sync_commands.Commands(box.commands).run("echo hi").stdout == "hi\n"


def test_on_its_own_event_loop_it_is_refused(sandbox: Sandbox) -> None:
    async def misuse() -> None:
        sandbox.commands.run("true")

    with pytest.raises(ConfigError, match="use AsyncSandbox"):
        loop_thread.run(misuse())


def test_the_thread_can_be_ended_and_comes_back(sandbox: Sandbox) -> None:
    sandbox.commands.run("true")
    loop_thread.stop()
    loop_thread.stop()
    assert "voidbox-asyncio" not in [thread.name for thread in threading.enumerate()]
    assert sandbox.commands.run("echo on").stdout == "on\n"


_UNFINISHED = """
from voidbox.sdk.sync import Sandbox

class Core:
    async def logs(self, **options):
        try:
            yield "one"
            yield "two"
        finally:
            print("closed", flush=True)

    async def is_running(self):
        return True

sandbox = Sandbox.__new__(Sandbox)
sandbox._core = Core()

def lines():
    try:
        yield from sandbox.logs()
    finally:
        sandbox.is_running()

lines = lines()
print(next(lines), flush=True)
"""


def test_a_program_ends_though_what_it_iterates_over_has_not() -> None:
    program = subprocess.run(
        [sys.executable, "-c", _UNFINISHED], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert (program.returncode, program.stdout) == (0, "one\nclosed\n")
    assert "too late to use the blocking API" in program.stderr


def test_logs_that_are_left_are_closed() -> None:
    closed = threading.Event()

    class Core:
        async def logs(self, **options: object) -> AsyncIterator[str]:
            try:
                yield "one"
                yield "two"
            finally:
                closed.set()

    sandbox = Sandbox.__new__(Sandbox)
    sandbox._core = Core()  # type: ignore[assignment]
    for line in sandbox.logs():
        assert line == "one"
        break
    assert closed.wait(10)


def test_a_forked_child_makes_its_own_connection(sandbox: Sandbox) -> None:
    sandbox.commands.run("true")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if sandbox.commands.run("echo child").stdout == "child\n" else 2
        finally:
            os._exit(status)
    assert sandbox.commands.run("echo parent").stdout == "parent\n"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sandbox.commands.run("echo on").stdout == "on\n"


def test_many_threads_use_one_sandbox(sandbox: Sandbox) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(sandbox.exec("echo", str(n)).stdout))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"{n}\n" for n in range(20))


def test_a_dead_one_says_so(options: dict[str, Any]) -> None:
    sandbox = Sandbox.create(**options)
    sandbox.stop()
    with pytest.raises(AgentError, match="it was stopped"):
        sandbox.commands.run("true")
    assert not sandbox.kill()
    with pytest.raises(AgentError, match="has been ended by this program"):
        sandbox.commands.run("true")


PAIRS = [
    (aio.AsyncSandbox, Sandbox),
    (commands.AsyncCommands, sync_commands.Commands),
    (command_handle.AsyncCommandHandle, sync_commands.CommandHandle),
    (files.AsyncFiles, sync_files.Files),
    (files.AsyncWatch, sync_files.Watch),
    (pty.AsyncPty, sync_commands.Pty),
    (pty.AsyncPtyHandle, sync_commands.PtyHandle),
    (ports.AsyncPorts, sync.Ports),
]
# Of the asynchronous form alone: what a callback on an event loop is good for.
ONLY_ASYNC = {"on_event"}


@pytest.mark.parametrize(("core", "facade"), PAIRS)
def test_both_forms_offer_the_same(core: type, facade: type) -> None:
    for name, method in inspect.getmembers(core, inspect.isroutine):
        if name.startswith("_") or name in ONLY_ASYNC:
            continue
        assert hasattr(facade, name), f"{facade.__name__} has no {name}"
        wanted = set(inspect.signature(method).parameters) - ONLY_ASYNC
        found = set(inspect.signature(getattr(facade, name)).parameters)
        assert wanted - {"options"} <= found | {"options"} or "options" in found, name
        assert getattr(facade, name).__doc__, f"{facade.__name__}.{name} has no docstring"


def test_the_blocking_form_has_the_parameters_of_the_coroutine() -> None:
    for core, facade in (
        (aio.AsyncSandbox.create, Sandbox.create),
        (commands.AsyncCommands.run, sync_commands.Commands.run),
        (commands.AsyncCommands.start, sync_commands.Commands.start),
        (files.AsyncFiles.upload, sync_files.Files.upload),
        (pty.AsyncPty.create, sync_commands.Pty.create),
    ):
        assert inspect.signature(core).parameters == inspect.signature(facade).parameters


TYPED = """
from voidbox import CommandResult, Sandbox
from voidbox.sdk.sync_commands import CommandHandle, PtyHandle
from voidbox.sdk.sync_files import Watch

class Mine(Sandbox): ...

mine: Mine = Mine.create(cpus=2, memory="1G")
result: CommandResult = mine.commands.run("true", cwd="/", check=True)
handle: CommandHandle = mine.exec("true", background=True)
started: CommandHandle = mine.commands.start(["true"], on_stdout=print)
shell: PtyHandle = mine.pty.create(cmd="sh")
watch: Watch = mine.files.watch_dir("/", recursive=True)
data: bytes = mine.files.read("a", "bytes")
"""
WRONG = (
    "Sandbox.create(nonsense=1)",
    'mine.commands.run("true", nonsense=1)',
    'mine.commands.run("true", cwd=1)',
    'mine.commands.start("true", cwd=1)',
    'mine.files.upload("a")',
)


@pytest.mark.slow
def test_type_checkers_know_the_blocking_form(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(TYPED + "\n".join(WRONG) + "\n")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "c", "user.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": ROOT, "MYPYPATH": ROOT},
        capture_output=True,
        text=True,
    )
    lines = {line.split(":")[1] for line in run.stdout.splitlines() if ": error:" in line}
    first = len(TYPED.splitlines()) + 1
    assert lines == {str(first + index) for index in range(len(WRONG))}, run.stdout


# --- the package's root -------------------------------------------------------------------------


def modules_after(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_importing_the_package_is_cheap() -> None:
    assert modules_after("import voidbox") <= {"voidbox", "voidbox.version", "__future__"}
    assert "asyncio" not in modules_after("from voidbox import VoidboxError, HostError")
    assert "asyncio" not in modules_after(
        "import voidbox.agent.client, voidbox.sandbox.state.store"
    )


def test_all_public_names_are_there() -> None:
    import voidbox

    assert set(voidbox.__all__) == {*voidbox._MODULES, "__version__", "images", "volumes"}
    assert set(voidbox.__all__) <= set(dir(voidbox))
    for name in voidbox.__all__:
        assert getattr(voidbox, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = voidbox.Nonsense
