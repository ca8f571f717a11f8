"""The control socket of a sandbox's process: one JSON object a line, each way.

    → {"op": "stop", "timeout": 5}
    ← {"ok": true, …}    or    {"ok": false, "error": "one line", "kind": "config"}

The kind says which exception it was: config, agent, host or timeout. An answer may come late: that
of `wait` comes when the sandbox has ended. After one with "becomes" the connection is a stream to
what was asked for.

This is the client's side; control_server serves it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping

from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout, VoidboxError

REQUEST_BYTES_MAX = 64 << 10
ANSWER_BYTES_MAX = 4 << 20  # a record with a large environment
_RECV_BYTES = 64 << 10
BECOMES = "becomes"

_KINDS: dict[str, type[VoidboxError]] = {
    "config": ConfigError,
    "agent": AgentError,
    "host": HostError,
    "timeout": SandboxTimeout,
}


def describe_error(error: VoidboxError) -> dict[str, object]:
    """Return the answer that raises the same error at the other end; see make_error."""
    kind = next((kind for kind, type in _KINDS.items() if isinstance(error, type)), "host")
    return {"ok": False, "error": str(error), "kind": kind}


def make_error(answer: Mapping[str, object]) -> VoidboxError:
    """Return the error that describe_error made an answer of."""
    return _KINDS.get(str(answer.get("kind")), AgentError)(str(answer.get("error")))


def encode(values: dict[str, object]) -> bytes:
    """Return a request's or an answer's line."""
    return json.dumps(values).encode() + b"\n"


class ControlClient:
    """Asks a sandbox's process. Thread: any; each request is a connection of its own.

    Args:
        timeout_s: for each answer; None to wait for ever.
    """

    def __init__(self, path: str, timeout_s: float | None = 10) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def request(self, op: str, **values: object) -> dict[str, object]:
        """Ask for an op; return the answer.

        Raises:
            AgentError: the sandbox's process is gone.
            SandboxTimeout: it does not answer.
            VoidboxError: what it refused with.
        """
        with self._connect() as sock:
            return self._exchange(sock, op, values, _RECV_BYTES)

    def request_socket(self, op: str, **values: object) -> socket.socket:
        """Ask for an op after which the connection is a stream to something; see request()."""
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(self._connect())
            # One at a time: what follows the line is the stream's.
            answer = self._exchange(sock, op, values, 1)
            if answer.get(BECOMES) is not True:
                raise AgentError(f"{op}: the sandbox's process gave no stream")
            stack.pop_all()
        sock.settimeout(None)
        return sock

    def _exchange(
        self, sock: socket.socket, op: str, values: dict[str, object], recv_bytes: int
    ) -> dict[str, object]:
        line = encode({"op": op, **values})
        if len(line) > REQUEST_BYTES_MAX:
            raise ConfigError(f"{op}: more than {REQUEST_BYTES_MAX} bytes at once")
        try:
            sock.sendall(line)
        except TimeoutError:
            raise self._timeout(op) from None
        except OSError:
            pass  # it may have refused us, and said why
        return _check(op, self._read(sock, op, recv_bytes))

    def _connect(self) -> socket.socket:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise HostError.from_errno("socket", error.errno or 0) from error
        sock.settimeout(self._timeout_s)
        try:
            sock.connect(self._path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            sock.close()
            raise AgentError("the sandbox's process is gone") from error
        except OSError as error:
            sock.close()
            if isinstance(error, BlockingIOError | TimeoutError):  # its backlog is full
                raise self._timeout("connect") from error
            raise HostError.from_errno(f"connect to {self._path}", error.errno or 0) from error
        return sock

    def _read(self, sock: socket.socket, op: str, recv_bytes: int) -> bytes:
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        line = b""
        try:
            while b"\n" not in line[-recv_bytes:] and len(line) <= ANSWER_BYTES_MAX:
                if deadline is not None:
                    sock.settimeout(max(0.001, deadline - time.monotonic()))
                data = sock.recv(recv_bytes)
                if not data:
                    raise self._gone(op)
                line += data
        except TimeoutError:
            raise self._timeout(op) from None
        except OSError as error:
            raise self._gone(op) from error
        return line.partition(b"\n")[0]  # what follows is of a stream that nobody asked for

    def _gone(self, op: str) -> AgentError:
        return AgentError(f"{op}: the sandbox's process has gone away")

    def _timeout(self, op: str) -> SandboxTimeout:
        return SandboxTimeout(
            f"{op}: the sandbox's process did not answer within {self._timeout_s:g} s"
        )


def _check(op: str, line: bytes) -> dict[str, object]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise AgentError(f"{op}: the sandbox's process gave no sane answer")
    if answer.get("ok") is not True:
        raise make_error(answer)
    return answer
