"""AgentClient: everything that the guest's agent can do, as blocking methods."""

from __future__ import annotations

import contextlib
import hashlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from voidbox.agent import protocol
from voidbox.agent.call import Call, NotStarted, RequestFailed
from voidbox.agent.core import Data, Pong, printable
from voidbox.agent.link import Link
from voidbox.errors import AgentError, SandboxTimeout
from voidbox.named_tuple import NamedTuple

REQUEST_TIMEOUT_S = 30.0
_CHUNK_BYTES = protocol.CHUNK_BYTES


class Exit(NamedTuple):
    """How a command ended.

    Attributes:
        exit_code: its status; 127 or 126 if it could not be executed; None after a signal.
        signal: the signal's number, or None.
        timed_out: its own time limit ended it.
        error: why it could not be executed, or "".
    """

    exit_code: int | None
    signal: int | None
    timed_out: bool
    error: str

    @property
    def status(self) -> int:
        """The status as a shell has it: 128 + n after signal n."""
        if self.signal is not None:
            return 128 + self.signal
        return self.exit_code if self.exit_code is not None else 0


class Output(NamedTuple):
    """Some output: stream is protocol.STDOUT or STDERR."""

    stream: int
    data: bytes


class RemoteProcess:
    """A command in the guest. Thread: any; input and output may be on two.

    Attributes:
        lost_parts: how many pieces of a background command's output came too late to be seen.
    """

    def __init__(self, client: AgentClient, call: Call, pid: int | None = None) -> None:
        self.lost_parts = 0
        self._client = client
        self._call = call
        self._pid = pid
        self._exit: Exit | None = None

    @property
    def pid(self) -> int:
        """Its process id in the guest.

        Raises:
            NotStarted: it could not be executed.
            AgentError: the guest or its agent is gone.
        """
        if self._pid is None:
            first = self._call.first_event()
            if first is None:
                end = parse_exit(self._call.result())
                raise NotStarted(end.error or "the command was not started", end.status)
            self._pid = _int(first, "pid")
        return self._pid

    def output(self) -> Iterator[Output]:
        """Yield output as it comes, until the command ends. Who does not read holds it up."""
        while self._exit is None:
            event = self._call.next()
            if event is None:
                self._exit = parse_exit(self._call.result())
            elif isinstance(event, Data):
                yield Output(event.stream, event.data)
            else:
                lost = event.values.get("lost")
                self.lost_parts += lost if isinstance(lost, int) else 0

    def write(self, data: bytes | memoryview) -> None:
        """Write to its standard input, waiting while it is slow to read."""
        self._call.write(data)

    def end_input(self) -> None:
        """Close its standard input; on a terminal, type the end-of-file character."""
        self._call.end_input()

    def wait(self) -> Exit:
        """Wait for the end, dropping output that nobody read.

        Raises:
            AgentError: the guest or its agent is gone.
        """
        for _ in self.output():
            pass
        assert self._exit is not None
        return self._exit

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it and its process group. One that has ended is no error."""
        with contextlib.suppress(RequestFailed):
            self._client.kill(self.pid, number)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""
        values = {"pid": self.pid, "rows": rows, "columns": columns}
        with contextlib.suppress(RequestFailed):  # it has ended
            self._client.request(protocol.RESIZE, values, "resize")

    def post_signal(self, number: int) -> bool:
        """Send a signal without waiting; False if nobody knows yet, or at all, whom to send it."""
        return self._post(protocol.KILL, {"signal": number}, "kill")

    def post_resize(self, rows: int, columns: int) -> bool:
        """Tell its terminal the new size as post_signal() sends a signal."""
        return self._post(protocol.RESIZE, {"rows": rows, "columns": columns}, "resize")

    def _post(self, type: int, values: dict[str, Any], what: str) -> bool:
        if self._pid is None and not self._call.has_begun:
            return False
        try:
            pid = self.pid
        except AgentError:  # the guest gave none
            return False
        self._client.post(type, {"pid": pid, **values}, what)
        return True

    def detach(self) -> None:
        """Follow it no longer: a background command goes on, another one is ended."""
        self._call.cancel()


def parse_exit(values: dict[str, Any]) -> Exit:
    """Return what a RESULT says of a command's end.

    Raises:
        AgentError: it says nothing of sense.
    """
    code, number, error = values.get("exit_code"), values.get("signal"), values.get("error", "")
    is_sane = (
        (code is None or (isinstance(code, int) and 0 <= code <= 255))
        and (number is None or (isinstance(number, int) and 0 < number < signal.NSIG))
        and (code is None) != (number is None)
        and isinstance(error, str)
    )
    if not is_sane:
        raise AgentError(f"the guest's agent gave no sane exit status: {values!r}"[:200])
    return Exit(code, number, values.get("timed_out") is True, printable(error))


class AgentClient:
    """The agent of one guest, over one connection for all requests. Thread: any.

    Every method raises RequestFailed when the guest cannot do it, AgentError when the connection or
    the guest is gone, SandboxTimeout when the agent does not answer.

    Args:
        link: after its handshake.
        request_timeout_s: for each request, and each sign of life in long ones; not for commands
            and what is watched.
    """

    def __init__(self, link: Link, request_timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._link = link
        self._timeout_s = request_timeout_s

    @property
    def link(self) -> Link:
        """The connection."""
        return self._link

    @property
    def is_serial(self) -> bool:
        """Whether vsock does not work and everything goes over the slow serial line."""
        return self._link.is_serial

    def close(self) -> None:
        """End the connection; commands that are not in the background end with it. Idempotent."""
        self._link.close()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, type: int, values: dict[str, Any], what: str) -> dict[str, Any]:
        """Make a request that is answered at once; return the answer's map."""
        return self._link.call(type, values, what).result(self._timeout_s)

    def post(self, type: int, values: dict[str, Any], what: str) -> None:
        """Make a request whose answer is of no interest. Never waits, and no error is raised."""
        self._link.call(type, values, what)

    # Commands.

    def exec(
        self,
        argv: Sequence[str] | None = None,
        *,
        shell: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        timeout_s: float | None = None,
        window_size: tuple[int, int] | None = None,
        background: bool = False,
    ) -> RemoteProcess:
        """Start a command.

        Args:
            argv: the program and its arguments; or
            shell: a line for /bin/sh.
            env: variables added to the guest's own few.
            cwd: /workspace by default.
            user: a name, a uid or uid:gid; "sandbox" by default.
            stdin: it will be written to; else it reads nothing.
            timeout_s: it is ended after so long.
            window_size: (rows, columns): run it on a terminal.
            background: it outlives this connection, keeps its last output, and never waits for
                anybody to read it.
        """
        if (argv is None) == (shell is None):
            raise ValueError("give argv or shell")
        values: dict[str, Any] = {"argv": list(argv)} if argv is not None else {"shell": shell}
        optional = {"cwd": cwd, "user": user, "timeout": timeout_s}
        values |= {name: value for name, value in optional.items() if value is not None}
        if env:
            values["env"] = dict(env)
        if window_size is not None:
            values["rows"], values["columns"] = window_size
        for name, is_set in (("stdin", stdin), ("background", background)):
            if is_set:
                values[name] = True
        return RemoteProcess(self, self._link.call(protocol.EXEC, values, "exec"))

    def attach(self, pid: int) -> RemoteProcess:
        """Follow a background command: its last output, what comes, and its end."""
        return RemoteProcess(self, self._link.call(protocol.ATTACH, {"pid": pid}, "attach"), pid)

    def processes(self) -> list[dict[str, Any]]:
        """List the commands: pid, argv, cwd, user, started_at, end (None while it runs)."""
        return _list(self.request(protocol.PROCESSES, {}, "processes"), "processes")

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a command and its process group."""
        self.request(protocol.KILL, {"pid": pid, "signal": number}, "kill")

    # Files.

    def read_file(self, path: str, output: BinaryIO, user: str | None = None) -> dict[str, Any]:
        """Copy a file of the guest to `output`; return its size, mode and mtime_ns.

        Raises:
            AgentError: what arrived differs from what was sent: do not use it.
        """
        checksum = hashlib.blake2b(digest_size=protocol.CHECKSUM_BYTES)
        request = _with_user({"path": path}, user)
        with self._link.call(protocol.FILE_READ, request, f"read {path}") as call:
            while (event := call.next(self._timeout_s)) is not None:
                if isinstance(event, Data):
                    checksum.update(event.data)
                    output.write(event.data)
            values = call.result()
        if values.get("checksum") != checksum.digest():
            raise AgentError(f"{path}: what arrived has another checksum")
        return values

    def write_file(
        self,
        path: str,
        source: BinaryIO,
        *,
        user: str | None = None,
        mode: int | None = None,
        mtime_ns: int | None = None,
    ) -> int:
        """Copy `source` to a file of the guest, whole or not at all; return its size in bytes."""
        values = _with_user({"path": path}, user)
        optional = {"mode": mode, "mtime_ns": mtime_ns}
        values |= {name: value for name, value in optional.items() if value is not None}
        checksum = hashlib.blake2b(digest_size=protocol.CHECKSUM_BYTES)
        with self._link.call(protocol.FILE_WRITE, values, f"write {path}") as call:
            while (data := source.read(_CHUNK_BYTES)) and not call.is_over:
                checksum.update(data)
                call.write(data, self._timeout_s)
            call.end_input({"checksum": checksum.digest()})
            return _int(call.result(self._timeout_s), "size")

    def list_files(
        self, path: str, *, depth: int = 1, user: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield what is in a folder, as stat() describes it, the names relative to it."""
        values = _with_user({"path": path, "depth": depth}, user)
        with self._link.call(protocol.FILE_LIST, values, f"list {path}") as call:
            while (event := call.next(self._timeout_s)) is not None:
                if not isinstance(event, Data):
                    yield from _list(event.values, "entries")

    def stat(self, path: str, *, follow: bool = True, user: str | None = None) -> dict[str, Any]:
        """Describe a file: name, type, size, mode, uid, gid, mtime_ns, and a link's target."""
        values = _with_user({"path": path, "follow": follow}, user)
        return self.request(protocol.FILE_STAT, values, f"stat {path}")

    def make_dir(self, path: str, *, parents: bool = True, user: str | None = None) -> bool:
        """Make a folder; False if it was there."""
        values = _with_user({"path": path, "parents": parents}, user)
        return self.request(protocol.FILE_MKDIR, values, f"mkdir {path}").get("created") is True

    def remove(self, path: str, *, recursive: bool = False, user: str | None = None) -> None:
        """Remove a file, an empty folder, or with `recursive` a whole one."""
        values = _with_user({"path": path, "recursive": recursive}, user)
        with self._link.call(protocol.FILE_REMOVE, values, f"remove {path}") as call:
            while call.next(self._timeout_s) is not None:
                pass  # an event now and then: it goes on

    def rename(self, path: str, to: str, *, user: str | None = None) -> None:
        """Rename a file or folder, replacing a file of the new name."""
        values = _with_user({"path": path, "to": to}, user)
        self.request(protocol.FILE_RENAME, values, f"rename {path}")

    def watch(self, path: str, *, recursive: bool = False, user: str | None = None) -> Watch:
        """Watch a folder; what happens after this returns is told."""
        values = _with_user({"path": path, "recursive": recursive}, user)
        call = self._link.call(protocol.FILE_WATCH, values, f"watch {path}")
        try:
            call.next(self._timeout_s)
        except SandboxTimeout:
            call.cancel()
            raise
        return Watch(call)

    # The guest.

    def ping(self, secret: bytes, timeout_s: float | None = None) -> Pong:
        """Return what the agent says of itself; wait for it as for any request, or so long."""
        return self._link.handshake(secret, timeout_s or self._timeout_s)

    def metrics(self) -> dict[str, Any]:
        """Return the guest's own figures: CPUs, load, memory, disk, processes, clock."""
        return self.request(protocol.METRICS, {}, "metrics")

    def set_clock(self, clock_ns: int) -> None:
        """Set the guest's clock to so many nanoseconds since 1970."""
        self.request(protocol.SET_CLOCK, {"clock_ns": clock_ns}, "set the clock")

    def shut_down(self, *, reboot: bool = False, timeout_s: float | None = None) -> None:
        """Have the guest end all its processes and power off; returns when it has begun."""
        values = {"action": "reboot" if reboot else "poweroff"}
        call = self._link.call(protocol.SHUTDOWN, values, "shut down")
        call.result(self._timeout_s if timeout_s is None else timeout_s)


class Watch:
    """What happens in a folder: an iterator of maps with kind, name and is_folder."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (event := self._call.next()) is not None:
            if not isinstance(event, Data):
                yield event.values

    def next(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the next, or None when the folder is gone.

        Raises:
            SandboxTimeout: nothing happened for so long.
        """
        event = self._call.next(timeout_s)
        return event.values if event is not None and not isinstance(event, Data) else None

    def close(self) -> None:
        """Watch no longer."""
        self._call.cancel()


def _with_user(values: dict[str, Any], user: str | None) -> dict[str, Any]:
    return values if user is None else {**values, "user": user}


def _list(values: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = values.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise AgentError(f"the guest's agent gave no list of {name}")
    return found


def _int(values: dict[str, Any], name: str) -> int:
    found = values.get(name)
    if not isinstance(found, int):
        raise AgentError(f"the guest's agent gave no {name}")
    return found
