"""What a guest may try to get at a secret, or around a rule: each is refused, or in vain."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from typing import Any

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from tests.unit.secrets.conftest import HOST, OTHER_VALUE, VALUE, World
from tests.unit.secrets.servers import exchange, https_server
from voidbox.secrets.authority import issue, make_authority

pytestmark = pytest.mark.slow

# In these H is the host, A its authority, P the placeholder. What has to come, and how many
# requests the host may have seen.
RAW = {
    "another Host header": (b"GET / HTTP/1.1\r\nHost: other.test\r\nX: P\r\n\r\n", b" 421 ", 0),
    "another port in Host": (b"GET / HTTP/1.1\r\nHost: H:1\r\nX: P\r\n\r\n", b" 421 ", 0),
    "userinfo in Host": (b"GET / HTTP/1.1\r\nHost: A@evil.test\r\nX: P\r\n\r\n", b" 421 ", 0),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: A\r\nHost: evil.test\r\nX: P\r\n\r\n", b" 400 ", 0),
    "no Host": (b"GET / HTTP/1.0\r\nX: P\r\n\r\n", b" 421 ", 0),
    "absolute URI of another": (
        b"GET https://evil.test/ HTTP/1.1\r\nHost: A\r\nX: P\r\n\r\n",
        b" 400 ",
        0,
    ),
    "absolute URI with a user": (
        b"GET https://A@evil.test/ HTTP/1.1\r\nHost: A\r\nX: P\r\n\r\n",
        b" 400 ",
        0,
    ),
    "absolute URI without TLS": (b"GET http://A/ HTTP/1.1\r\nHost: A\r\n\r\n", b" 400 ", 0),
    "CONNECT": (b"CONNECT evil.test:443 HTTP/1.1\r\nHost: A\r\nX: P\r\n\r\n", b" 403 ", 0),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: A\r\nX: P\r\n\r\n", b" 403 ", 0),
    "both lengths": (
        b"POST / HTTP/1.1\r\nHost: A\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: A\r\n\r\n",
        b" 400 ",
        0,
    ),
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: A\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        b" 400 ",
        0,
    ),
    "a length with a sign": (
        b"POST / HTTP/1.1\r\nHost: A\r\nContent-Length: +4\r\n\r\nabcd",
        b" 400 ",
        0,
    ),
    "another coding": (
        b"POST / HTTP/1.1\r\nHost: A\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b" 501 ",
        0,
    ),
    "odd chunks": (
        b"POST / HTTP/1.1\r\nHost: A\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabXX0\r\n\r\n",
        b"",
        1,  # which never ends
    ),
    "a chunk's size in excess": (
        b"POST / HTTP/1.1\r\nHost: A\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
        b"",
        1,
    ),
    "a blank before the colon": (b"GET / HTTP/1.1\r\nHost : A\r\n\r\n", b" 400 ", 0),
    "a header over two lines": (
        b"GET / HTTP/1.1\r\nHost: A\r\nX: P\r\n Y: z\r\nConnection: close\r\n\r\n",
        b" 200 ",
        1,  # written anew as one line
    ),
    "a bare CR": (b"GET / HTTP/1.1\r\nHost: A\r\nX: a\rHost: evil.test\r\n\r\n", b" 400 ", 0),
    "a NUL": (b"GET / HTTP/1.1\r\nHost: A\r\nX: a\0b\r\n\r\n", b" 400 ", 0),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b" 421 ", 0),
    "h2c": (
        b"GET / HTTP/1.1\r\nHost: A\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b" 200 ",
        1,  # without the upgrade
    ),
    "a head without end": (b"GET / HTTP/1.1\r\nHost: A\r\n" + b"X: y\r\n" * 20000, b" 431 ", 0),
    "Host said to be of the connection": (
        b"GET / HTTP/1.1\r\nHost: A\r\nConnection: close, host, authorization\r\n\r\n",
        b" 200 ",
        1,
    ),
    "no HTTP": (b"\x00\x01\x02\x03" * 100 + b"\r\n\r\n", b" 400 ", 0),
}


def first_head(sock: Any) -> bytes:
    """Return the answer, as far as it is here when its head is."""
    answer = b""
    while b"\r\n\r\n" not in answer and (part := sock.recv(1 << 16)):
        answer += part
    return answer


@pytest.mark.parametrize("name", RAW)
def test_raw_requests(world: World, name: str) -> None:
    world.begin()
    text, status, seen = RAW[name]
    text = text.replace(b" A", b" " + world.authority_bytes)
    text = text.replace(b"/A", b"/" + world.authority_bytes)
    text = text.replace(b"Host: H", b"Host: " + HOST.encode())
    text = text.replace(b"X: P", b"X: " + world.placeholder.encode())
    with world.entrance.connect(world.context, HOST) as sock:
        sock.sendall(text)
        answer = first_head(sock)
    assert status in answer.partition(b"\r\n")[0], answer[:300]
    assert VALUE.encode() not in answer
    world.wait(lambda: world.guard.connections() == 0)
    assert len(world.server.seen.requests) <= seen
    for request in world.server.seen.requests:
        names = [key.lower() for key, _ in request["headers"]]
        assert names.count("host") == 1 and "upgrade" not in names
        assert not {"transfer-encoding", "content-length"} <= set(names)
    world.check_no_secret()


def test_a_smuggled_request_is_judged_like_any(world: World) -> None:
    """Chunks that end early, with another request behind: it is one, with rules of its own."""
    world.begin(http=(f"POST {HOST}/open",))
    request = (
        b"POST /open HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        b"GET /admin HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
    ) % (world.authority_bytes, world.authority_bytes)
    with world.entrance.connect(world.context, HOST) as sock:
        answer = exchange(sock, request)
    assert b" 200 " in answer and b" 403 " in answer
    assert [one["target"] for one in world.server.seen.requests] == ["/open"]


def test_the_body_is_framed_anew(world: World) -> None:
    """Extensions of chunks, which servers read in several ways, do not arrive."""
    world.begin()
    request = (
        b"POST /echo HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: close\r\n\r\n"
        b'003;a="b"\r\nabc\r\n0;x\r\nX-Trailer: y\r\n\r\n'
    ) % world.authority_bytes
    with world.entrance.connect(world.context, HOST) as sock:
        answer = exchange(sock, request)
    assert b'"body": "abc"' in answer or b" 200 " in answer


def test_a_redirect_takes_the_placeholder_along_and_nothing_else(world: World, ca: Any) -> None:
    world.begin()
    with https_server(issue(ca, "untouched.test")) as evil:
        with httpx.Client(verify=world.context, timeout=60, trust_env=False) as http:
            headers = {"x-api-key": world.placeholder}
            answer = http.get(
                f"{world.url}/redirect?https://untouched.test:{evil.port}/", headers=headers
            )
        assert answer.status_code == 302
        assert VALUE not in str(answer.headers)
        # A client that follows it: to another name, which is not ended here.
        world.entrance.far_port = evil.port
        with world.entrance.connect(world.context, "untouched.test") as sock:
            exchange(
                sock,
                b"GET / HTTP/1.1\r\nHost: untouched.test\r\nX-Api-Key: %s\r\n"
                b"Connection: close\r\n\r\n" % world.placeholder.encode(),
            )
        assert evil.seen.headers("x-api-key") == [world.placeholder]


def test_a_redirect_that_tells_the_query_does_not_tell_the_secret(world: World) -> None:
    world.begin()
    with httpx.Client(verify=world.context, timeout=60, trust_env=False) as http:
        answer = http.get(f"{world.url}/redirect?https://evil.test/{world.placeholder}")
    assert answer.headers["location"] == f"https://evil.test/{world.placeholder}"
    assert VALUE in world.server.seen.last()["target"]


@pytest.mark.parametrize("kind", ["another CA", "another name", "expired", "no TLS", "refused"])
def test_a_host_that_is_not_who_it_should_be_gets_nothing(
    world: World, ca: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding, a name server that lies: the address is another's."""
    world.begin()
    pem = {
        "another CA": lambda: issue(make_authority([HOST]), HOST),
        "another name": lambda: issue(ca, "untouched.test"),
        "expired": lambda: _expired(ca, monkeypatch),
    }.get(kind, lambda: None)()
    with https_server(pem) as evil:
        world.entrance.far_port = evil.port if kind != "refused" else _closed_port()
        with httpx.Client(verify=world.context, timeout=60, trust_env=False) as http:
            answer = http.get(f"{world.url}/", headers={"x-api-key": world.placeholder})
        assert answer.status_code == 502 and HOST in answer.text
        if kind == "expired":
            assert "expired" in answer.text
        assert evil.seen.requests == []
    assert world.wait_audit(1)[0]["refused"]


def _expired(ca: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("voidbox.secrets.authority._LEAF_DAYS", -0.5)
    return issue(ca, HOST)


def _closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_an_upgrade_to_http2_meets_the_same_502(world: World) -> None:
    world.begin()
    world.entrance.far_port = _closed_port()
    with httpx.Client(verify=world.context, http2=True, timeout=60, trust_env=False) as http:
        answer = http.get(f"{world.url}/")
    assert answer.status_code == 502 and answer.http_version == "HTTP/2"


def test_a_pinned_client_fails_clearly(world: World) -> None:
    world.begin()
    pinned = ssl.create_default_context(cadata=world.ca.certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        world.entrance.connect(pinned, HOST)
    (line,) = world.wait_audit(1)
    assert "did not accept the sandbox's certificate" in line["error"]
    assert any("trust store" in text for text in world.lines)


def test_without_tls_no_secret_is_put_in(world: World) -> None:
    world.begin(http=(f"GET {HOST}/ok*",))
    world.entrance.asked_port = 80
    with https_server(None) as plain:
        world.entrance.far_port = plain.port
        with httpx.Client(timeout=60, trust_env=False) as http:
            url = f"http://{HOST}:{world.entrance.port}"
            assert http.get(f"{url}/ok", headers={"x-api-key": world.placeholder}).is_success
            assert http.get(f"{url}/no").status_code == 403
        assert plain.seen.headers("x-api-key") == [world.placeholder]
    assert world.wait_audit(2)[0]["leaks"] == ["API_KEY"]


def test_a_name_of_another_host_by_sni_alone(world: World) -> None:
    """SNI of a guarded host, Host of another at the same address, and the other way round."""
    world.begin()
    with world.entrance.connect(world.context, HOST) as sock:
        request = b"GET / HTTP/1.1\r\nHost: untouched.test\r\n\r\n"
        sock.sendall(request)
        assert b" 421 " in first_head(sock)
    assert world.server.seen.requests == []


def test_no_sni_and_encrypted_sni_are_not_ended(world: World) -> None:
    """ECH says another name outside: such a connection passes, unread, with its placeholder."""
    world.begin()
    trust = ssl.create_default_context(cadata=world.ca.certificate)
    trust.check_hostname = False
    with world.entrance.connect(trust, None) as sock:  # the host's own certificate, by its own CA
        answer = exchange(
            sock,
            b"GET / HTTP/1.1\r\nHost: %s\r\nX-Api-Key: %s\r\nConnection: close\r\n\r\n"
            % (world.authority_bytes, world.placeholder.encode()),
        )
    assert b" 200 " in answer
    assert world.server.seen.headers("x-api-key") == [world.placeholder]


def test_a_hello_in_pieces_is_read(world: World) -> None:
    world.begin()
    sock = world.entrance.connect(None, None)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = world.context.wrap_bio(incoming, outgoing, server_hostname=HOST)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in outgoing.read():
        sock.sendall(bytes([byte]))
    while True:
        incoming.write(sock.recv(1 << 16))
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            pass
    assert dict(pair[0] for pair in tls.getpeercert()["subject"])["commonName"] == HOST
    sock.close()


def test_random_bytes_are_nobodys_end(world: World) -> None:
    world.begin()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        world.entrance.far_port = listener.getsockname()[1]
        for number in range(30):
            with world.entrance.connect(None, None) as sock:
                sock.sendall(b"\x16\x03\x01\x00\xc8" * (number % 2) + os.urandom(300))
    world.wait(lambda: world.guard.connections() == 0)
    assert not any("failed" in line for line in world.lines)


# HTTP/2.


def h2_client(world: World) -> tuple[Any, Any]:
    context = ssl.create_default_context(cadata=world.bundle.read_text())
    context.set_alpn_protocols(["h2"])
    sock = world.entrance.connect(context, HOST)
    config: Any = H2Configuration(
        client_side=True,
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        header_encoding="utf-8",
    )
    h2 = H2Connection(config)
    h2.initiate_connection()
    sock.sendall(h2.data_to_send())
    return sock, h2


def h2_answer(sock: Any, h2: Any) -> str:
    """Return the first status, or how it was refused."""
    while data := sock.recv(1 << 16):
        for event in h2.receive_data(data):
            kind = type(event).__name__
            if kind == "ResponseReceived":
                return dict(event.headers)[":status"]
            if kind in ("StreamReset", "ConnectionTerminated"):
                return kind
        sock.sendall(h2.data_to_send())
    return "closed"


A = "{authority}"
HEADS = {
    "another authority": ([(":authority", "evil.test")], ("421",)),
    "authority and host differ": (
        [(":authority", A), ("host", "evil.test")],
        ("421", "closed", "ConnectionTerminated"),
    ),
    "host alone, another": ([("host", "evil.test")], ("421",)),
    "two authorities": (
        [(":authority", A), (":authority", "evil.test")],
        ("closed", "ConnectionTerminated"),
    ),
    "userinfo": ([(":authority", f"{A}@evil.test")], ("421",)),
    "scheme http": ([(":authority", A), (":scheme", "http")], ("400",)),
    "an absolute path": ([(":authority", A), (":path", "https://evil.test/")], ("400",)),
    "a newline in a header": (
        [(":authority", A), ("x", "a\r\nhost: evil.test")],
        ("closed", "ConnectionTerminated"),
    ),
    "a newline in the path": (
        [(":authority", A), (":path", "/ HTTP/1.1\r\nx: y")],
        ("closed", "ConnectionTerminated"),
    ),
    "connection headers": (
        [(":authority", A), ("connection", "close")],
        ("closed", "ConnectionTerminated"),
    ),
    "transfer-encoding": (
        [(":authority", A), ("transfer-encoding", "chunked")],
        ("closed", "ConnectionTerminated"),
    ),
    "upper case": ([(":authority", A), ("X-Upper", "a")], ("closed", "ConnectionTerminated")),
    "TRACE": ([(":authority", A), (":method", "TRACE")], ("403",)),
    "CONNECT": (
        [(":authority", "evil.test:443"), (":method", "CONNECT")],
        ("421", "closed", "ConnectionTerminated"),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_http2_oddities(world2: World, name: str) -> None:
    world2.begin()
    extra, expected = HEADS[name]
    authority = world2.authority_bytes.decode()
    extra = [(key, value.replace(A, authority)) for key, value in extra]
    given = {key for key, _ in extra}
    base = [(":method", "GET"), (":scheme", "https"), (":path", "/")]
    pseudo = [pair for pair in base if pair[0] not in given]
    own = [pair for pair in extra if pair[0].startswith(":")]
    rest = [pair for pair in extra if not pair[0].startswith(":")]
    sock, h2 = h2_client(world2)
    with sock:
        headers = [*pseudo, *own, *rest, ("x-api-key", world2.placeholder)]
        h2.send_headers(1, headers, end_stream=True)
        sock.sendall(h2.data_to_send())
        assert h2_answer(sock, h2) in expected
    assert world2.server.seen.requests == []
    world2.check_no_secret()


def test_http2_a_flood_of_resets_ends_the_connection(
    world2: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voidbox.secrets.http2.RESETS_MAX", 20)
    world2.begin()
    sock, h2 = h2_client(world2)
    authority = world2.authority_bytes.decode()
    head = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", authority)]
    with sock:
        for number in range(40):
            h2.send_headers(1 + 2 * number, head)
            h2.reset_stream(1 + 2 * number)
        sock.sendall(h2.data_to_send())
        ends = []
        while data := sock.recv(1 << 16):
            ends += [e for e in h2.receive_data(data) if type(e).__name__ == "ConnectionTerminated"]
            if ends:
                break
    assert ends and ends[0].error_code == 0xB  # ENHANCE_YOUR_CALM


# What the guest finds where it may look.


def test_the_value_is_in_nothing_that_is_kept(world: World) -> None:
    """What the record, a traceback and a log can have of it."""
    from voidbox.secrets.spec import Secret

    world.begin()
    secret = Secret("API_KEY", [HOST], VALUE)
    held = world.guard.vault.all()
    assert VALUE not in repr(secret) + repr(held) + str(held)
    world.guard._say(f"something with {VALUE} and {OTHER_VALUE} in it")
    assert world.lines == ["something with [a secret] and [a secret] in it"]
    errors: list[str] = []
    thread = threading.Thread(target=lambda: errors.append(repr(world.guard.vault)))
    thread.start()
    thread.join()
    assert VALUE not in errors[0]
