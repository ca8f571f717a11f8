"""Requests about commands: EXEC, ATTACH, PROCESSES, KILL, RESIZE."""

from __future__ import annotations

import errno
import os
import signal

from guest_agent import arguments, protocol, spawn, users
from guest_agent.connection import Connection, Request, RequestError
from guest_agent.process import Backlog, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from guest_agent.cgroups import Group, Groups

WORKSPACE = "/workspace"
ENDED_KEPT = 64  # background commands whose end and last output can still be asked for
_TERMINAL = "xterm-256color"


class ProcessTable:
    """The commands that this agent started: all that run, and background ones that ended.

    Args:
        groups: makes cgroups for those with a time limit; None: there is nothing to make them of.

    Attributes:
        environment: of all commands, beside what each is given.
        keeps_foreground: a command in the foreground whose client leaves goes to the background:
            a snapshot is being made, in which it is to live on.
    """

    def __init__(self, groups: Groups | None = None) -> None:
        self._groups = groups
        self.environment: dict[str, str] = {}
        self.keeps_foreground = False
        self._processes: dict[int, Process] = {}

    def make_group(self) -> Group | None:
        """Return a cgroup for a command that is about to start, where there are any."""
        return self._groups.make() if self._groups is not None else None

    def add(self, process: Process) -> None:
        """Keep a started command."""
        self._processes[process.pid] = process
        ended = [p for p in self._processes.values() if p.end is not None]
        for old in ended[: max(0, len(ended) - ENDED_KEPT)]:
            self.remove(old)

    def remove(self, process: Process) -> None:
        """Forget a command. Idempotent."""
        if self._processes.get(process.pid) is process:
            del self._processes[process.pid]

    def find(self, pid: int) -> Process:
        """Return the command with this process id.

        Raises:
            RequestError: the agent did not start it, or has forgotten it.
        """
        process = self._processes.get(pid)
        if process is None:
            raise RequestError("ESRCH", f"no command with process id {pid}")
        return process

    def __iter__(self) -> Any:
        return iter(list(self._processes.values()))


class _Command(Request):
    """What EXEC and ATTACH share: a process, whose input is this request's data."""

    process: Process

    def __init__(self, table: ProcessTable, connection: Connection, number: int) -> None:
        super().__init__(connection, number)
        self.table = table

    def on_data(self, data: bytes) -> None:
        self.process.write(data, lambda: self.used(data))

    def on_end(self, values: dict[str, Any]) -> None:
        self.process.end_input()


class _Follower:
    """Sends a background command's output to one request, at the request's own pace."""

    def __init__(self, request: _Command, backlog: Backlog) -> None:
        self._request = request
        self._backlog = backlog
        self._next = 0  # part, and how much of it was sent
        self._offset = 0
        backlog.viewers.append(self)

    def on_backlog(self) -> None:
        request = self._request
        while not request.is_done and request.room:
            part = self._backlog.read(self._next)
            if part is None:
                if self._backlog.end is not None:
                    request.result(self._backlog.end)
                return
            number, stream, data = part
            if number > self._next:
                if not request.event({"lost": number - self._next}):
                    return
                self._next, self._offset = number, 0
                continue  # the event took some of the room
            piece = data[self._offset : self._offset + request.room]
            self._offset += len(piece)
            if self._offset == len(data):
                self._next, self._offset = number + 1, 0
            request.send(piece, stream)

    def close(self) -> None:
        self._backlog.viewers.remove(self)


class Exec(_Command):
    """Run a command.

    Values: argv (list) or shell (string); env, cwd, user, stdin (bool), timeout (seconds),
    rows and columns for a terminal, background (bool), keep (bool).
    Answers: EVENT {pid}, DATA on STDOUT and STDERR (a terminal has STDOUT only), then RESULT
    {exit_code, signal, timed_out}, and {error} if it could not be executed (127, 126).

    A command ends with its process, not with what that leaves running. Unless it is in the
    background it is killed when the request is cancelled or the client leaves; with `keep` it goes
    to the background when the client leaves.
    """

    def start(self, values: dict[str, Any]) -> None:
        self._follower: _Follower | None = None
        is_background = arguments.flag(values, "background")
        self._is_kept = arguments.flag(values, "keep")
        seconds = arguments.seconds(values, "timeout")
        program = _program(values, self.table.environment)
        group = self.table.make_group() if seconds is not None else None
        try:
            child = spawn.start(program, group)
        except BaseException as error:
            if group is not None:
                group.put_away()
            if not isinstance(error, spawn.StartError):
                raise
            end = {"exit_code": error.exit_code, "signal": None, "timed_out": False}
            self.result({**end, "error": str(error)})
            return
        backlog = Backlog() if is_background else None
        self._direct = _Direct(self)
        self.process = Process(self.loop, program, child, backlog or self._direct, group)
        self.table.add(self.process)
        if seconds is not None:
            self.process.limit_time(seconds)
        if backlog is not None:
            self._follower = _Follower(self, backlog)
        # Last: sending may find that the client is gone, and then all of this is freed.
        self.event({"pid": child.pid})

    def on_room(self) -> None:
        if self._follower is not None:
            self._follower.on_backlog()
        else:
            self.process.resume()

    def on_cancel(self) -> None:
        if self._follower is not None:
            super().on_cancel()
        else:
            self._direct.is_given_up = True
            self.process.terminate(signal.SIGTERM)
            self.process.resume()

    def on_close(self) -> None:
        if self._follower is not None:
            self._follower.close()
        elif hasattr(self, "process"):
            is_kept = self._is_kept or self.table.keeps_foreground
            if is_kept and not self._direct.is_given_up and self.process.end is None:
                self.process.go_to_background()
                return
            self.table.remove(self.process)
            if self.process.end is None:
                self.process.abandon()


class _Direct:
    """Gives a command's output to its request; the command waits while that has no room.

    Attributes:
        is_given_up: output that finds no room is dropped: perhaps nobody reads it any more.
    """

    def __init__(self, request: Request) -> None:
        self.is_given_up = False
        self._request = request

    @property
    def room(self) -> int:
        return self._request.room or (protocol.CHUNK_BYTES if self.is_given_up else 0)

    def take(self, stream: int, data: bytes) -> None:
        if len(data) <= self._request.room:
            self._request.send(data, stream)

    def ended(self, values: dict[str, Any]) -> None:
        self._request.result(values)


class Attach(_Command):
    """Follow a background command: its last output, what comes, and its end.

    Values: pid. Answers: as EXEC's, and EVENT {lost} where output was dropped.
    """

    def start(self, values: dict[str, Any]) -> None:
        self._follower: _Follower | None = None
        self.process = self.table.find(arguments.integer(values, "pid"))
        if not isinstance(self.process.outlet, Backlog):
            raise RequestError("EBUSY", f"command {self.process.pid} is not in the background")
        self._follower = _Follower(self, self.process.outlet)
        self._follower.on_backlog()

    def on_room(self) -> None:
        if self._follower is not None:
            self._follower.on_backlog()

    def on_close(self) -> None:
        if self._follower is not None:
            self._follower.close()


class Processes(Request):
    """List the commands. Answers: RESULT {processes: [{pid, argv, cwd, user, started_at, end}]}."""

    def __init__(self, table: ProcessTable, connection: Connection, number: int) -> None:
        super().__init__(connection, number)
        self._table = table

    def start(self, values: dict[str, Any]) -> None:
        listed = [
            {
                "pid": process.pid,
                "argv": process.program.argv,
                "cwd": process.program.cwd,
                "user": process.program.user.name,
                "started_at": process.started_at,
                "end": process.end,
            }
            for process in self._table
        ]
        self.result({"processes": listed})


class Kill(Request):
    """Send a signal to a command and all of its process group. Values: pid, signal."""

    def __init__(self, table: ProcessTable, connection: Connection, number: int) -> None:
        super().__init__(connection, number)
        self._table = table

    def start(self, values: dict[str, Any]) -> None:
        process = self._table.find(arguments.integer(values, "pid"))
        number = arguments.integer(values, "signal", signal.SIGTERM)
        if not 0 <= number < signal.NSIG:
            raise RequestError(protocol.BAD_REQUEST, f"no signal {number}")
        process.kill(number)
        self.result({"is_running": process.is_running})


class Resize(Request):
    """Tell a command's terminal its new size. Values: pid, rows, columns."""

    def __init__(self, table: ProcessTable, connection: Connection, number: int) -> None:
        super().__init__(connection, number)
        self._table = table

    def start(self, values: dict[str, Any]) -> None:
        process = self._table.find(arguments.integer(values, "pid"))
        size = _window_size(values)
        if size is None:
            raise RequestError(protocol.BAD_REQUEST, "give rows and columns")
        process.resize(*size)
        self.result({})


def _window_size(values: dict[str, Any]) -> tuple[int, int] | None:
    if values.get("rows") is None and values.get("columns") is None:
        return None
    rows = arguments.integer(values, "rows", low=1)
    columns = arguments.integer(values, "columns", low=1)
    return min(rows, 0xFFFF), min(columns, 0xFFFF)


def _program(values: dict[str, Any], extra: dict[str, str]) -> spawn.Program:
    user = users.find(arguments.text(values, "user", users.default()))
    if values.get("shell") is not None:
        argv = ["/bin/sh", "-c", arguments.text(values, "shell")]
    else:
        argv = arguments.texts(values, "argv")
    window_size = _window_size(values)
    environment = {
        "PATH": spawn.PATH,
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": user.shell,
        "LANG": "C.UTF-8",
    }
    if window_size is not None:
        environment["TERM"] = _TERMINAL
    environment |= extra | arguments.text_map(values, "env")
    has_stdin = arguments.flag(values, "stdin")
    return spawn.Program(argv, environment, _cwd(values, user), user, window_size, has_stdin)


def _cwd(values: dict[str, Any], user: users.User) -> str:
    if values.get("cwd") is not None:
        cwd = arguments.path(values, "cwd")
        if not os.path.isdir(cwd):
            code = errno.errorcode[errno.ENOTDIR if os.path.exists(cwd) else errno.ENOENT]
            raise RequestError(code, f"cannot work in {cwd}: there is no such folder")
        return cwd
    candidates = (WORKSPACE, user.home) if user.uid else (user.home, WORKSPACE)
    return next((folder for folder in candidates if os.path.isdir(folder)), "/")
