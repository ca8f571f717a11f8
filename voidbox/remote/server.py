"""A server's own interface: JSON over HTTP, below /voidbox/v1."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout, VoidboxError
from voidbox.remote.address import Address
from voidbox.version import __version__

BASE = "/voidbox/v1"
_CONNECT_S = 10.0
_ANSWER_BYTES_MAX = 16 << 20
_CHUNK_BYTES = 64 << 10


class Missing(ConfigError):
    """The server has no such thing, or none that the key sees."""


class Server:
    """A server. Thread: any."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._tls = ssl.create_default_context() if address.is_tls else None
        options: dict[str, Any] = {"ssl_context": self._tls} if self._tls is not None else {}
        self._pool = urllib3.PoolManager(maxsize=16, retries=False, **options)

    def __repr__(self) -> str:
        return f"<Server {self.address.url}>"

    @property
    def headers(self) -> dict[str, str]:
        """What each request has."""
        return {"X-API-KEY": self.address.key, "User-Agent": f"voidbox/{__version__}"}

    def request(
        self,
        method: str,
        path: str,
        fields: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> Any:
        """Make a request below /voidbox/v1; return what it is answered.

        Args:
            path: its words are quoted already, see sandbox_path.
            fields: its body.
        Raises:
            Missing: there is none.
            ConfigError: the server refuses it.
            HostError: it cannot be reached, or failed.
            AgentError, SandboxTimeout: what it failed with.
        """
        answer = self._open(method, path, fields, timeout_s)
        try:
            body = answer.read(_ANSWER_BYTES_MAX, decode_content=True)
        except urllib3.exceptions.HTTPError as error:
            raise HostError(f"{self.address.url} broke its answer off: {error}") from error
        finally:
            answer.release_conn()
        try:
            values = json.loads(body) if body else {}
        except ValueError:
            values = None
        if answer.status >= 400:
            raise self._error(answer.status, values)
        if values is None:
            raise HostError(f"{self.address.url} is no voidbox serve: it answers no JSON")
        return values

    def lines(self, path: str, query: Mapping[str, str]) -> Iterator[bytes]:
        """Yield pieces of an answer that comes as it is made, a log's; see request()."""
        answer = self._open("GET", f"{path}?{urlencode(query)}", None, None)
        try:
            if answer.status >= 400:
                body = answer.read(_CHUNK_BYTES)
                raise self._error(answer.status, json.loads(body) if body[:1] == b"{" else None)
            yield from answer.stream(_CHUNK_BYTES)
        except urllib3.exceptions.HTTPError as error:
            raise HostError(f"{self.address.url} broke its answer off: {error}") from error
        finally:
            answer.close()

    def _open(
        self, method: str, path: str, fields: Mapping[str, Any] | None, timeout_s: float | None
    ) -> urllib3.BaseHTTPResponse:
        body, headers = None, self.headers
        if fields is not None:
            body, headers = json.dumps(fields).encode(), {**headers, "Content-Type": _JSON}
        try:
            return self._pool.request(
                method,
                f"{self.address.url}{BASE}{path}",
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=_CONNECT_S, read=timeout_s),
                preload_content=False,
            )
        except urllib3.exceptions.ReadTimeoutError as error:
            raise SandboxTimeout(
                f"{self.address.url} did not answer within {timeout_s:g} s"
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise HostError(f"cannot reach {self.address.url}: {_reason(error)}") from error

    def _error(self, status: int, values: Any) -> VoidboxError:
        fields = values if isinstance(values, dict) else {}
        message = fields.get("message")
        if not isinstance(message, str):
            return HostError(f"{self.address.url} answers {status}: is it a voidbox serve?")
        if fields.get("error_code") == "agent":
            return AgentError(message)
        if status == 504:
            return SandboxTimeout(message)
        if status == 404:
            return Missing(message)
        return ConfigError(message) if status < 500 or status == 501 else HostError(message)

    def dial(self, timeout_s: float) -> socket.socket:
        """Return a connection to the server, for a WebSocket.

        Raises:
            OSError: it cannot be reached, or is somebody else.
        """
        where = (self.address.host, self.address.port)
        sock = socket.create_connection(where, min(timeout_s, _CONNECT_S))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return sock
        try:
            return self._tls.wrap_socket(sock, server_hostname=self.address.host)
        except BaseException:
            sock.close()
            raise


_JSON = "application/json"


def sandbox_path(key: str, rest: str = "") -> str:
    """Return the path of a sandbox, by its ID or name."""
    return f"/sandboxes/{quote(key, safe='')}{rest}"


def _reason(error: BaseException) -> str:
    """Return the innermost reason: urllib3 wraps it in its own words."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return str(error)
