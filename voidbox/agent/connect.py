"""Find the agent of a guest that may still be booting: over vsock, else over the serial line."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from functools import partial

from voidbox.agent import protocol
from voidbox.agent.client import AgentClient
from voidbox.agent.endpoint import Endpoint
from voidbox.agent.link import Link
from voidbox.agent.serial_link import SerialLink
from voidbox.errors import AgentError, SandboxTimeout

BOOT_TIMEOUT_S = 60.0
ATTEMPTS_BEFORE_SERIAL = 3
_ATTEMPT_S = 5.0
_HANDSHAKE_S = 10.0
# Between two attempts: a fiftieth of the time gone by, so that neither a fast guest waits for us
# nor a slow one is kept busy with refusing.
_PAUSE_S_MIN, _PAUSE_SHARE = 0.01, 0.02


def connect(
    endpoint: Endpoint,
    secret: bytes,
    timeout_s: float = BOOT_TIMEOUT_S,
    log: Callable[[str], None] = lambda line: None,
    is_daemon: bool = False,
) -> AgentClient:
    """Return a client once the guest's agent answers.

    Vsock is tried again and again while the guest boots. When that fails, but the agent answers on
    the serial line, the client uses the serial line, and says so in the log.

    Args:
        secret: what the guest was given at its start.
        log: takes a line at a time.
        is_daemon: see Link.
    Raises:
        AgentError: the guest has ended, or its agent wants another secret.
        SandboxTimeout: no agent within `timeout_s` seconds.
    """
    search = _Search(endpoint, secret, timeout_s, log, is_daemon)
    try:
        return search.run()
    finally:
        search.close_serial()


class _Search:
    def __init__(
        self,
        endpoint: Endpoint,
        secret: bytes,
        timeout_s: float,
        log: Callable[[str], None],
        is_daemon: bool,
    ) -> None:
        self._endpoint = endpoint
        self._secret = secret
        self._timeout_s = timeout_s
        self._log = log
        self._is_daemon = is_daemon
        self._started = time.monotonic()
        self._serial: Link | None = None
        self._problem = "it refused every connection"
        # A link outlives this, and must keep nothing else alive: whoever logs, above all.
        self._explain = partial(explain, endpoint)

    @property
    def _gone_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def _left_s(self) -> float:
        return max(0.001, self._timeout_s - self._gone_s)

    def run(self) -> AgentClient:
        attempt = failures_beside_serial = 0
        while self._gone_s < self._timeout_s:
            attempt += 1
            client = self._try_vsock(attempt)
            if client is not None:
                return client
            if attempt == ATTEMPTS_BEFORE_SERIAL:
                self._open_serial()
            if self._serial is not None and self._serial.is_open:
                failures_beside_serial += 1
                if failures_beside_serial >= ATTEMPTS_BEFORE_SERIAL:
                    return self._use_serial(self._serial)
            pause_s = max(_PAUSE_S_MIN, self._gone_s * _PAUSE_SHARE)
            if self._endpoint.has_ended(min(pause_s, self._left_s)):
                raise self._explain("the guest ended before its agent answered")
        story = self._endpoint.explain_end()
        raise SandboxTimeout(
            f"the guest's agent did not answer within {self._timeout_s:g} s: {self._problem}"
            + (f"\n{story}" if story else "")
        )

    def _try_vsock(self, attempt: int) -> AgentClient | None:
        endpoint = self._endpoint
        try:
            sock = endpoint.connect(protocol.AGENT_PORT, min(_ATTEMPT_S, self._left_s))
        except OSError as error:
            self._problem = f"attempt {attempt} on vsock: {error.strerror or error}"
            return None
        self._log(
            f"[vsock] attempt {attempt} connect OK (cid={endpoint.cid}, port={protocol.AGENT_PORT})"
        )
        try:
            return self._shake_hands(Link(sock, None, self._explain, self._is_daemon))
        except SandboxTimeout as error:
            self._problem = str(error)
            return None

    def _shake_hands(self, link: Link) -> AgentClient:
        try:
            pong = link.handshake(self._secret, min(_HANDSHAKE_S, self._left_s))
        except BaseException:
            link.close()
            raise
        self._log(f"handshake OK (Pong received): agent {pong.version}"[:120])
        return AgentClient(link)

    def _open_serial(self) -> None:
        sock: socket.socket | None = self._endpoint.connect_serial()
        if sock is not None:
            session = int.from_bytes(os.urandom(4), "little") | 1  # 0 is no session
            self._serial = Link(sock, SerialLink(session), self._explain, self._is_daemon)

    def _use_serial(self, serial: Link) -> AgentClient:
        self._log(f"[vsock] does not work ({self._problem}): going on via serial")
        client = self._shake_hands(serial)
        self._serial = None  # it is the client's now
        return client

    def close_serial(self) -> None:
        """Leave the serial line alone, unless it is in use."""
        if self._serial is not None:
            self._serial.close()


def explain(endpoint: Endpoint, reason: str) -> AgentError:
    """Return the error for a lost guest: why it ended, with its console's last lines."""
    try:
        story = endpoint.explain_end()
    except AgentError as error:
        return error
    return AgentError(f"{reason}\n{story}" if story else reason)
