"""HTTP as registries need it: bounded, timed, and careful with whom it tells what.

- Plain http only to this machine, or with `is_insecure`.
- A redirect to another host drops the authorization. One from elsewhere to this machine is
  refused: nobody's registry makes us talk to services that listen here. A host has too many names
  for its own to tell: where a connection leads does, before anything is sent.
- A server that says nothing for `timeout_s`, or next to nothing, is given up; and so is one that
  says much which is no content, or a small document for too long.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from voidbox.images.errors import ImageError
from voidbox.named_tuple import NamedTuple
from voidbox.version import __version__

CHUNK_BYTES = 256 << 10
CONNECT_S = 15.0
_REDIRECTS_MAX = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_PACE_BYTES_MIN = 1024  # in the time in which something has to come
_READ_TIMEOUTS = 4  # in which all of a small document has to come
_DEFAULT_PORTS = {"http": 80, "https": 443}


class RegistryError(ImageError):
    """A registry refused, cannot be reached, or does not tell the truth."""


class Lost(RegistryError):
    """A connection failed, or a server is busy: another attempt may go better.

    Attributes:
        after_s: when, if the server says so.
    """

    after_s: float = 0.0


class Unreachable(RegistryError):
    """Nobody answers there, or not in this protocol."""


class Url(NamedTuple):
    """An address, taken apart and checked."""

    scheme: str
    host: str
    port: int
    text: str

    @property
    def is_local(self) -> bool:
        """Whether it is this machine's loopback."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is that of this machine's loopback."""
    name = host.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.strip("[]"))
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified
    return False


def parse_url(text: str) -> Url:
    """Return an address that can be asked.

    Raises:
        RegistryError: it cannot.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        host, port = None, 0
    is_plain = text.isascii() and text.isprintable()
    # What % stands for in a host, urllib3 undoes: it would be another one than was checked.
    if not host or "%" in parts.netloc or parts.username is not None or not is_plain:
        raise RegistryError(f"it names an address that cannot be used: {shown(text)}")
    return Url(parts.scheme, host, port, text)


class Answer:
    """What a server answered. Use as a context manager. Thread: one.

    Attributes:
        status: such as 200.
        headers: by name, in any case.
        host: who answered, after redirects.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, host: str, timeout_s: float) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.host = host
        self._response = response
        self._timeout_s = timeout_s
        # Chunks have lines of their own between them, and after them: any number, in one read.
        self._sock = getattr(response, "voidbox_sock", None)
        self._is_chunked = getattr(response, "chunked", False)

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes, as it was sent: no encoding is undone.

        Raises:
            Lost: it ends too early, or there is too little for too long.
        """
        began, count = time.monotonic(), 0
        while True:
            try:
                with _cut_after(self._sock if self._is_chunked else None, self._timeout_s):
                    data = self._response.read1(CHUNK_BYTES, decode_content=False)
            except ReadTimeoutError as error:
                raise Lost(f"{self.host} sent nothing for {self._timeout_s:g} s") from error
            except (HTTPError, OSError) as error:
                raise Lost(f"the connection to {self.host} was lost ({_why(error)})") from error
            if not data:
                return
            yield data
            count += len(data)
            now = time.monotonic()
            if now - began >= self._timeout_s:
                if count < _PACE_BYTES_MIN:
                    raise Lost(f"{self.host} sent {count} bytes in {now - began:.0f} s")
                began, count = now, 0

    def read(self, limit_bytes: int, what: str) -> bytes:
        """Return the whole body.

        Raises:
            RegistryError: it is longer than that; see chunks() too.
        """
        found = bytearray()
        latest = time.monotonic() + _READ_TIMEOUTS * self._timeout_s
        for data in self.chunks():
            found += data
            if time.monotonic() > latest:
                raise Lost(f"{self.host} does not come to an end with a {what}")
            if len(found) > limit_bytes:
                raise RegistryError(
                    f"{self.host} sends a {what} of more than {limit_bytes:,} bytes"
                )
        return bytes(found)

    def close(self) -> None:
        """Let go of the connection; it is used again if all of the body was read. Idempotent."""
        if self._response.length_remaining == 0:
            with contextlib.suppress(HTTPError, OSError):
                self._response.drain_conn()  # reads nothing, but sees that this is the end
            self._response.release_conn()
        else:
            self._response.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Transport:
    """Asks servers, and follows their redirects. Thread: any.

    Who is asked first is whom the user named. Where that is not this machine, nor is anybody
    asked later.

    Args:
        is_insecure: http to anybody, and certificates that nobody vouches for.
        timeout_s: for any sign of life.
        is_plain_allowed: http to anybody, as what comes is checked by signatures of its own.
        proxies: by scheme or "SCHEME::HOST", where the environment names none; "DIRECT" for none.
    """

    def __init__(
        self,
        *,
        is_insecure: bool = False,
        timeout_s: float = 30.0,
        is_plain_allowed: bool = False,
        proxies: Mapping[str, str] | None = None,
    ) -> None:
        self.is_insecure = is_insecure
        self.timeout_s = timeout_s
        self._is_plain_allowed = is_insecure or is_plain_allowed
        self._proxies = proxies or {}
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._lock = threading.Lock()  # for the next two
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._is_cut = False
        self._is_home: bool | None = None  # whether the first connection led to this machine

    def get(
        self, text: str, headers: Mapping[str, str] | None = None, authorization: str = ""
    ) -> Answer:
        """Ask for a document.

        Args:
            authorization: the header's value; told to that host alone.

        Raises:
            Unreachable: nobody answers there.
            Lost: the connection broke.
            RegistryError: the address, or one it redirects to, is not for us to ask.
        """
        url = first = parse_url(text)
        for _ in range(_REDIRECTS_MAX + 1):
            self._check(url, first)
            sent = dict(headers or {})
            if authorization and url[:3] == first[:3]:
                sent["Authorization"] = authorization
            answer = self._request(url, sent)
            target = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or target is None:
                return answer
            answer.close()
            if len(target) > 16384:
                raise RegistryError(f"{url.host} redirects to an endless address")
            try:
                url = parse_url(urljoin(url.text, target))
            except ValueError:
                raise RegistryError(
                    f"{url.host} redirects to no address: {shown(target)}"
                ) from None
            if url[:3] != first[:3]:
                authorization = ""  # nor on the way back
        raise RegistryError(f"{first.host} redirects again and again")

    def cut(self) -> None:
        """End what other threads read, and wait for: Lost. Nobody can be asked any more."""
        with self._lock:
            self._is_cut = True
            sockets = list(self._sockets)
        for sock in sockets:
            _shut_down(sock)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        for manager in self._managers.values():
            for key in manager.pools.keys():  # noqa: SIM118  # it has no iterator
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()  # clear() alone leaves that to the garbage collector
            manager.clear()

    def _check(self, url: Url, first: Url) -> None:
        if url.is_local and not first.is_local:
            raise RegistryError(f"{first.host} redirects to this machine ({url.host}): refused")
        if url.scheme == "http" and not (self._is_plain_allowed or url.is_local):
            raise RegistryError(
                f"{url.host} would be asked without encryption: refused without --insecure"
            )

    def _check_peer(self, sock: socket.socket, host: str) -> None:
        """Refuse a connection that leads where nobody may send us."""
        is_here = _leads_here(sock)
        if self._is_home is None:
            self._is_home = is_here
        if is_here and not self._is_home:
            sock.close()
            raise RegistryError(f"the registry sends us to this machine ({host}): refused")

    def _enter(self, sock: socket.socket) -> None:
        """Note a socket that something is read from; it goes with the connection."""
        with self._lock:
            if self._is_cut:
                raise ProtocolError("it is not needed any more")
            self._sockets.add(sock)

    def _request(self, url: Url, headers: Mapping[str, str]) -> Answer:
        timeout = urllib3.Timeout(connect=min(CONNECT_S, self.timeout_s), read=self.timeout_s)
        try:
            response = self._manager(url).request(
                "GET", url.text, headers={"User-Agent": f"voidbox/{__version__}", **headers},
                preload_content=False, decode_content=False, redirect=False, retries=False,
                timeout=timeout,
            )  # fmt: skip
        except NameResolutionError as error:
            raise Unreachable(f"there is no host {url.host}, or no network") from error
        except NewConnectionError as error:
            raise Unreachable(f"cannot connect to {url.host} port {url.port}") from error
        except ConnectTimeoutError as error:
            raise Unreachable(f"{url.host} port {url.port} does not answer") from error
        except ProxyError as error:
            raise Unreachable(f"the proxy to {url.host} does not help ({_why(error)})") from error
        except SSLError as error:
            raise Unreachable(
                f"{url.host} port {url.port} is not trusted, or speaks no TLS ({_why(error)}): "
                "SSL_CERT_FILE may name the certificates to trust"
            ) from error
        except ReadTimeoutError as error:
            raise Lost(f"{url.host} did not answer for {self.timeout_s:g} s") from error
        except (ProtocolError, OSError) as error:
            raise Lost(f"the connection to {url.host} was lost ({_why(error)})") from error
        except HTTPError as error:
            raise RegistryError(f"cannot ask {url.host}: {_why(error)}") from error
        return Answer(response, url.host, self.timeout_s)

    def _manager(self, url: Url) -> urllib3.PoolManager:
        proxy = "" if url.is_local else _proxy(url, self._proxies)
        manager = self._managers.get(proxy)
        if manager is None:
            options = {"maxsize": 8, "cert_reqs": "CERT_NONE" if self.is_insecure else None}
            if self.is_insecure:
                urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            made = (
                urllib3.ProxyManager(proxy, **options)  # type: ignore[arg-type]
                if proxy
                else urllib3.PoolManager(**options)  # type: ignore[arg-type]
            )
            if proxy and self._is_home is None:
                self._is_home = False  # and whom the proxy asks is its own affair
            hooks = _Hooks(self._enter, None if proxy else self._check_peer)
            pools: dict[str, Any] = {
                "http": partial(_new_pool, urllib3.HTTPConnectionPool, _HttpConnection, hooks),
                "https": partial(_new_pool, urllib3.HTTPSConnectionPool, _HttpsConnection, hooks),
            }
            made.pool_classes_by_scheme = pools
            manager = self._managers.setdefault(proxy, made)
        return manager


class _Hooks(NamedTuple):
    """What a connection calls.

    Attributes:
        enter: with the socket that an answer is read from, before it is.
        check_peer: with the socket and the host, before anything is sent; None through a proxy.
    """

    enter: Callable[[socket.socket], None]
    check_peer: Callable[[socket.socket, str], None] | None


class _HttpConnection(urllib3.connection.HTTPConnection):
    """Gives up a server whose headers come, but never end: each piece alone is in time."""

    hooks: _Hooks

    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn(), self.host, self.hooks)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        return _timed(self, super().getresponse)


class _HttpsConnection(urllib3.connection.HTTPSConnection):
    """See _HttpConnection."""

    hooks: _Hooks

    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn(), self.host, self.hooks)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        return _timed(self, super().getresponse)


def _checked(sock: socket.socket, host: str, hooks: _Hooks) -> socket.socket:
    if hooks.check_peer is not None:
        hooks.check_peer(sock, host)
    return sock


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # TLS' own would have the reader go on without it, and take for content what is encrypted.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _leads_here(sock: socket.socket) -> bool:
    return is_loopback(sock.getpeername()[0])


def _new_pool(
    kind: type[urllib3.HTTPConnectionPool], connection: type, hooks: _Hooks, *words: Any,
    **options: Any,
) -> urllib3.HTTPConnectionPool:  # fmt: skip
    """Return a pool whose connections are of a kind of ours."""

    def connect(*words: Any, **options: Any) -> Any:
        made = connection(*words, **options)
        made.hooks = hooks
        return made

    pool = kind(*words, **options)
    pool.ConnectionCls = connect  # type: ignore[assignment]
    return pool


def _timed(
    connection: _HttpConnection | _HttpsConnection, ask: Callable[[], urllib3.HTTPResponse]
) -> urllib3.HTTPResponse:
    """Return an answer whose headers came in time; it knows its socket."""
    sock = connection.sock  # forgotten there where the answer is to be the last one
    if sock is not None:
        connection.hooks.enter(sock)
    with contextlib.ExitStack() as undo:
        with _cut_after(sock, connection.timeout):
            response = ask()
            undo.callback(response.close)
        undo.pop_all()
    response.voidbox_sock = sock  # type: ignore[attr-defined]
    return response


@contextlib.contextmanager
def _cut_after(sock: socket.socket | None, span_s: object) -> Iterator[None]:
    """Return a context in which a connection is cut after twice the time that a read may take."""
    if sock is None or not isinstance(span_s, int | float):
        yield
        return

    is_cut = False

    def cut() -> None:
        nonlocal is_cut
        is_cut = True
        _shut_down(sock)

    timer = threading.Timer(2 * span_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if is_cut:  # http.client takes it for the end of the headers
        raise ProtocolError(f"no answer in {2 * span_s:g} s")


def _proxy(url: Url, others: Mapping[str, str]) -> str:
    """Return the proxy that the environment names for an address, else the others; "" for none."""
    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(url.host):
        return ""
    proxy = proxies.get(url.scheme) or proxies.get("all") or ""
    if not proxy:
        proxy = others.get(f"{url.scheme}::{url.host}") or others.get(url.scheme) or ""
        proxy = "" if proxy == "DIRECT" else proxy
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _why(error: Exception) -> str:
    """Return the innermost reason, in one line."""
    inner: BaseException = error
    while isinstance(inner, HTTPError) and inner.args:
        cause = next((arg for arg in inner.args[::-1] if isinstance(arg, BaseException)), None)
        if cause is None:
            break
        inner = cause
    return shown(str(inner) or type(inner).__name__)


def shown(text: str) -> str:
    """Return a server's words in one line, fit for a terminal."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= 200 else f"{clean[:200]}…"
