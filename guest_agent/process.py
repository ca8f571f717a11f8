"""A running command: its streams, its time limit and its end."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import time
from collections import deque

from guest_agent import protocol
from guest_agent.loop import READ, WRITE, Loop, Timer
from guest_agent.records import NamedTuple, Protocol
from guest_agent.spawn import Child, Program, set_window_size
from guest_agent.time_limit import TimeLimit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from guest_agent.cgroups import Group

KILL_GRACE_S = 2.0  # between the polite signal and SIGKILL
# A terminal's last output reaches us a moment after the end of who wrote it.
_TTY_GRACE_S = 0.2
_TTY_BYTES_MAX = 64 << 10  # more than a terminal's buffers hold
_BACKLOG_BYTES_MAX, _BACKLOG_PARTS_MAX = 256 << 10, 4096


class Outlet(Protocol):
    """Where a command's output goes."""

    @property
    def room(self) -> int:
        """How many bytes may be given now."""

    def take(self, stream: int, data: bytes) -> None:
        """Take output that fits into `room`."""

    def ended(self, values: dict[str, Any]) -> None:
        """The command has ended, and this was all of its output."""


class Input(NamedTuple):
    """Bytes for a command's standard input, and what to call when they are there."""

    data: bytes
    on_written: Callable[[], None]


class Process:
    """One command.

    Args:
        group: what it and its descendants are in.

    Attributes:
        outlet: takes the output.
        end: what became of it, as in an EXEC's RESULT; None while it runs.
    """

    def __init__(
        self,
        loop: Loop,
        program: Program,
        child: Child,
        outlet: Outlet,
        group: Group | None = None,
    ) -> None:
        self.program = program
        self.pid = child.pid
        self.outlet = outlet
        self.end: dict[str, Any] | None = None
        self.started_at = time.time()
        self._loop = loop
        self._is_tty = program.window_size is not None
        self._stdin = child.stdin
        self._input: deque[Input] = deque()
        self._is_input_ended = False
        self._outputs = {child.stdout: protocol.STDOUT}  # open descriptor to stream
        if child.stderr >= 0:
            self._outputs[child.stderr] = protocol.STDERR
        self._paused: set[int] = set()
        # Once the command has ended: how much is read on. Others may write without end.
        self._left: dict[int, int] = {}
        self._status: int | None = None
        self._is_timed_out = False
        self._group = group
        self._timer: Timer | TimeLimit | None = None
        self._grace: Timer | None = None
        for fd in self._outputs:
            self._watch(fd)
        loop.on_exit(self.pid, self._on_exit)

    @property
    def is_running(self) -> bool:
        """Whether the program itself has not ended."""
        return self._status is None

    # Input.

    def write(self, data: bytes, on_written: Callable[[], None]) -> None:
        """Queue input; what nobody will read any more is taken for written."""
        if self._stdin < 0 or self._is_input_ended:
            on_written()
            return
        self._input.append(Input(data, on_written))
        self._write_input()

    def end_input(self) -> None:
        """Close standard input once all of it is written; on a terminal type its end-of-file."""
        if self._is_input_ended or self._stdin < 0:
            return
        if self._is_tty:
            self.write(b"\x04", lambda: None)
            return
        self._is_input_ended = True
        self._write_input()

    def _write_input(self) -> None:
        while self._input:
            data, on_written = self._input[0]
            try:
                written = os.write(self._stdin, data)
            except BlockingIOError:
                self._watch(self._stdin)
                return
            except OSError:  # EPIPE: it has closed its end; EIO: a terminal without users
                self._close_input()
                return
            if written < len(data):
                self._input[0] = Input(data[written:], on_written)
                continue
            self._input.popleft()
            on_written()
        if self._is_input_ended:
            self._close_input()
        elif self._stdin >= 0:
            self._watch(self._stdin)

    def _close_input(self) -> None:
        if self._stdin >= 0 and not self._is_tty:
            self._loop.unwatch(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
        self._is_input_ended = True
        waiting, self._input = self._input, deque()
        for _, on_written in waiting:
            on_written()

    # Output.

    def _watch(self, fd: int) -> None:
        """Watch a descriptor for what is of interest on it: a terminal's may be two things."""
        events = 0
        if fd in self._outputs and fd not in self._paused:
            events |= READ
        if fd == self._stdin and self._input:
            events |= WRITE
        if events:
            self._loop.watch(fd, events, lambda ready: self._on_ready(fd, ready))
        else:
            self._loop.unwatch(fd)

    def _on_ready(self, fd: int, ready: int) -> None:
        if fd == self._stdin and self._input and ready & ~READ:
            self._write_input()
        if fd in self._outputs and fd not in self._paused and ready & ~WRITE:
            self._read(fd)

    def _read(self, fd: int) -> bool:
        """Move some output on; False if there is none now or no room for it."""
        room = self.outlet.room
        left = self._left.get(fd, room)
        if not left and self._status is not None:
            self._close_output(fd)
            return False
        if not room:
            self._paused.add(fd)
            self._watch(fd)
            return False
        try:
            data = os.read(fd, min(room, left))
        except BlockingIOError:
            if self._status is not None and not self._is_tty:
                self._close_output(fd)  # others hold the pipe, but the command is over
            return False
        except OSError:  # EIO: nobody has the terminal open
            if self._status is None:
                # To close our end now would hang up on a command that is not done yet: many
                # programs close their output before they end. And it may open /dev/tty again.
                self._paused.add(fd)
                self._watch(fd)
                self._grace = self._loop.call_later(_TTY_GRACE_S, self.resume)
                return False
            data = b""
        if not data:
            self._close_output(fd)
            return False
        if fd in self._left:
            self._left[fd] -= len(data)
        self.outlet.take(self._outputs[fd], data)
        return True

    def resume(self) -> None:
        """Go on: the outlet has room again."""
        paused, self._paused = self._paused, set()
        for fd in paused & self._outputs.keys():
            self._watch(fd)
        self._finish()

    def _close_output(self, fd: int) -> None:
        self._loop.unwatch(fd)
        del self._outputs[fd]
        if fd == self._stdin:
            self._stdin = -1
            self._close_input()
        os.close(fd)
        if not self._outputs:
            self._finish()

    # The end.

    def limit_time(self, seconds: float) -> None:
        """End the command, with all that came of it, after so long."""
        self._timer = TimeLimit(self._loop, seconds, self._expire)

    def _expire(self) -> None:
        self._is_timed_out = True
        if self._group is not None:  # also those that have left its process group
            self._group.signal_strays(self.pid, signal.SIGTERM)
            self._group.signal_strays(self.pid, signal.SIGCONT)
        self.terminate(signal.SIGTERM)

    def kill(self, number: int) -> None:
        """Send a signal to the command and all that it started in its process group."""
        if self._status is None:
            os.killpg(self.pid, number)

    def terminate(self, number: int) -> None:
        """Send a signal, and SIGKILL if it is still there after a moment."""
        if self._status is None:
            self.kill(number)
            self.kill(signal.SIGCONT)
            self._cancel_timer()
            self._timer = self._loop.call_later(KILL_GRACE_S, lambda: self.kill(signal.SIGKILL))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal, if it has one, its new size."""
        if self._is_tty and self._outputs:
            set_window_size(next(iter(self._outputs)), rows, columns)

    def _on_exit(self, status: int) -> None:
        self._status = status
        self._left = {fd: _TTY_BYTES_MAX if self._is_tty else _unread(fd) for fd in self._outputs}
        self._cancel_timer()
        if self._group is not None:
            if self._is_timed_out:
                self._group.kill()
            self._group.put_away()
        if self._is_tty:
            self._grace = self._loop.call_later(_TTY_GRACE_S, self._close_terminal)
        self._close_input()
        self.resume()

    def _close_terminal(self) -> None:
        """Some process outlives the command on its terminal: do not wait for that one."""
        for fd in list(self._outputs):
            while fd not in self._paused and self._read(fd):
                pass
            if fd in self._paused:  # the client is slow: what is there is still its
                self._grace = self._loop.call_later(_TTY_GRACE_S, self._close_terminal)
            elif fd in self._outputs:
                self._close_output(fd)

    def _finish(self) -> None:
        """Once the command has ended, take the rest of its output, then say so. Idempotent."""
        if self._status is None or self.end is not None:
            return
        for fd in list(self._outputs):
            while fd in self._outputs and fd not in self._paused and self._read(fd):
                pass
        if self._outputs or self.end is not None:
            return
        if self._grace is not None:
            self._grace.cancel()
        code = os.waitstatus_to_exitcode(self._status)
        self.end = {
            "exit_code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "timed_out": self._is_timed_out,
        }
        self.outlet.ended(self.end)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def go_to_background(self) -> None:
        """Its client is gone: keep the last of its output for whoever attaches to it."""
        self.outlet = Backlog()
        self.resume()

    def abandon(self) -> None:
        """Nobody is interested any more: hang up, and end it."""
        self.outlet = _Nowhere()
        self.terminate(signal.SIGHUP)
        for fd in list(self._outputs):
            self._close_output(fd)
        self._close_input()


def _unread(pipe: int) -> int:
    """Return how many bytes are in a pipe."""
    size = struct.Struct("i")
    count: int = size.unpack(fcntl.ioctl(pipe, termios.FIONREAD, bytes(size.size)))[0]
    return count


class _Nowhere:
    """Takes the output that nobody wants."""

    room = protocol.CHUNK_BYTES

    def take(self, stream: int, data: bytes) -> None:
        pass

    def ended(self, values: dict[str, Any]) -> None:
        pass


class Viewer(Protocol):
    """Who follows a background command."""

    def on_backlog(self) -> None:
        """There is more to see."""


class Backlog:
    """The last output of a background command, which never waits for anybody to read it."""

    def __init__(self) -> None:
        self.viewers: list[Viewer] = []
        self.end: dict[str, Any] | None = None
        self.room = protocol.CHUNK_BYTES
        self._parts: deque[tuple[int, bytes]] = deque()  # (stream, data)
        self._first = 0  # number of _parts[0] since the start
        self._bytes = 0

    def take(self, stream: int, data: bytes) -> None:
        """See Outlet."""
        self._parts.append((stream, data))
        self._bytes += len(data)
        while self._bytes > _BACKLOG_BYTES_MAX or len(self._parts) > _BACKLOG_PARTS_MAX:
            self._bytes -= len(self._parts.popleft()[1])
            self._first += 1
        self._tell()

    def ended(self, values: dict[str, Any]) -> None:
        """See Outlet."""
        self.end = values
        self._tell()

    def _tell(self) -> None:
        for viewer in list(self.viewers):
            viewer.on_backlog()

    def read(self, position: int) -> tuple[int, int, bytes] | None:
        """Return part `position` or the oldest after it: (its number, stream, data), or None."""
        at = max(position, self._first)
        if at - self._first >= len(self._parts):
            return None
        stream, data = self._parts[at - self._first]
        return at, stream, data
