"""What a command wrote, and how it ended."""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass
from typing import Literal

from voidbox.agent import protocol
from voidbox.agent.client import Exit
from voidbox.agent.core import printable
from voidbox.errors import CommandFailed, CommandTimeout
from voidbox.named_tuple import NamedTuple

# Of each stream, kept for the result: a guest that writes without end must not fill our memory.
OUTPUT_BYTES_KEPT = 256 << 20
# Kept together, as whole parts are dropped together, and so many at least.
_PART_BYTES, _PARTS_MIN = 64 << 10, 8

StreamName = Literal["stdout", "stderr"]
_NAMES: dict[int, StreamName] = {protocol.STDERR: "stderr"}  # all else is standard output


class Output(NamedTuple):
    """A piece of a command's output.

    Attributes:
        stream: "stdout" or "stderr".
        data: the bytes.
        text: the same as text; a character that is cut in two comes with its second half, or at
            the end as U+FFFD, without data.
    """

    stream: StreamName
    data: bytes
    text: str


@dataclass(frozen=True)
class CommandResult:
    """How a command ended.

    Attributes:
        exit_code: its exit status, as a shell has it: 127 or 126 if it could not be executed,
            128 + n after signal n.
        stdout_bytes, stderr_bytes: what it wrote; the last 256 MiB of each.
        signal: the number of the signal that ended it, or None.
        timed_out: its own time limit ended it.
        error: why it could not be executed, or "".
        lost_bytes: of its output, because it was more than is kept.
        lost_parts: pieces of a background command's output that nobody followed in time.
    """

    exit_code: int
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    signal: int | None = None
    timed_out: bool = False
    error: str = ""
    lost_bytes: int = 0
    lost_parts: int = 0

    @property
    def stdout(self) -> str:
        """Standard output as text; what is no UTF-8 shows as U+FFFD."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; what is no UTF-8 shows as U+FFFD."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def check(self, what: str) -> None:
        """See that it ended well.

        Raises:
            CommandFailed: its exit code is not 0.
        """
        if self.exit_code:
            last_line = self.error or printable(self.stderr.strip().rpartition("\n")[2][:200])
            how = f"signal {self.signal}" if self.signal else f"exit code {self.exit_code}"
            raise CommandFailed(f"{what}: {how}" + (f": {last_line}" if last_line else ""), self)

    def check_time(self, what: str, timeout_s: float | None) -> None:
        """See that its own time limit did not end it.

        Raises:
            CommandTimeout: it did.
        """
        if self.timed_out:
            limit = f"its {timeout_s:g} s" if timeout_s is not None else "its time limit"
            raise CommandTimeout(f"{what}: it ran for longer than {limit}, and was ended", self)


class _Kept:
    """The last bytes of a stream, and its text as it comes."""

    def __init__(self, limit_bytes: int) -> None:
        self.lost_bytes = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: deque[bytearray] = deque()
        self._bytes = 0
        self._limit_bytes = limit_bytes

    def add(self, data: bytes) -> str:
        # Each part costs memory of its own: many small ones, or empty ones, must not be many.
        part_bytes = min(_PART_BYTES, self._limit_bytes // _PARTS_MIN)
        if self._parts and len(self._parts[-1]) + len(data) <= part_bytes:
            self._parts[-1] += data
        elif data:
            self._parts.append(bytearray(data))
        self._bytes += len(data)
        while self._bytes > self._limit_bytes:
            lost = len(self._parts.popleft())
            self._bytes -= lost
            self.lost_bytes += lost
        return self.decoder.decode(data)

    def join(self) -> bytes:
        return b"".join(self._parts)


class Collector:
    """Gathers a command's output for its result.

    Attributes:
        lost_parts: see CommandResult.
    """

    def __init__(self, limit_bytes: int = OUTPUT_BYTES_KEPT) -> None:
        self.lost_parts = 0
        self._streams: dict[StreamName, _Kept] = {
            "stdout": _Kept(limit_bytes),
            "stderr": _Kept(limit_bytes),
        }

    def add(self, stream: int, data: bytes) -> Output:
        """Take a piece; return it with its text."""
        name = _NAMES.get(stream, "stdout")
        return Output(name, data, self._streams[name].add(data))

    def flush(self) -> list[Output]:
        """Return what is left of characters whose other half never came."""
        rest = [(name, kept.decoder.decode(b"", True)) for name, kept in self._streams.items()]
        return [Output(name, b"", text) for name, text in rest if text]

    def result(self, end: Exit) -> CommandResult:
        """Return how it ended."""
        stdout, stderr = self._streams["stdout"], self._streams["stderr"]
        return CommandResult(
            exit_code=end.status,
            stdout_bytes=stdout.join(),
            stderr_bytes=stderr.join(),
            signal=end.signal,
            timed_out=end.timed_out,
            error=end.error,
            lost_bytes=stdout.lost_bytes + stderr.lost_bytes,
            lost_parts=self.lost_parts,
        )
