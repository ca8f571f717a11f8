"""Requests through a guard, over sockets of the loopback: secrets put in, streams, limits."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import threading
from typing import Any

import httpx
import pytest

from tests.unit.secrets.conftest import HOST, OTHER_VALUE, VALUE, World
from tests.unit.secrets.servers import exchange
from voidbox.errors import ConfigError

pytestmark = pytest.mark.slow


def client(world: World, http2: bool = False) -> httpx.Client:
    return httpx.Client(**how(world, http2))


def how(world: World, http2: bool) -> dict[str, Any]:
    return {
        "verify": world.context, "http2": http2, "http1": not http2, "base_url": world.url,
        "timeout": 60, "trust_env": False,
    }  # fmt: skip


def test_headers_get_the_value(world: World) -> None:
    world.begin()
    basic = base64.b64encode(f"user:{world.placeholder}".encode()).decode()
    headers = {
        "authorization": f"Bearer {world.placeholder}",
        "x-api-key": world.placeholder,
        "x-basic": f"Basic {basic}",
    }
    with client(world) as http:
        answer = http.get("/echo", headers=headers)
    assert answer.status_code == 200
    asked = dict(world.server.seen.last()["headers"])
    assert asked["authorization"] == f"Bearer {VALUE}"
    assert asked["x-api-key"] == VALUE
    assert base64.b64decode(asked["x-basic"][6:]) == f"user:{VALUE}".encode()
    (line,) = world.wait_audit(1)
    assert (line["method"], line["path"], line["status"]) == ("GET", "/echo", 200)
    assert line["secrets"] == ["API_KEY"] and "leaks" not in line
    world.check_no_secret()


def test_what_the_host_tells_back_is_the_placeholder(world: World) -> None:
    world.begin()
    with client(world) as http:
        answer = http.get("/echo", headers={"x-api-key": world.placeholder})
    assert VALUE not in answer.text and world.placeholder in answer.text
    assert dict(world.server.seen.last()["headers"])["accept-encoding"] == "identity"


def test_the_query_gets_the_value_and_the_path_does_not(world: World) -> None:
    world.begin(value="with+signs/and=letters0123456789abcdef")
    with client(world) as http:
        http.get(f"/{world.placeholder}?key={world.placeholder}&b=1")
    target = world.server.seen.last()["target"]
    assert target == (f"/{world.placeholder}?key=with%2Bsigns%2Fand%3Dletters0123456789abcdef&b=1")
    assert "?" not in world.wait_audit(1)[0]["path"]


def test_a_body_gets_the_value_only_if_asked_for(world: World) -> None:
    world.begin()
    with client(world) as http:
        http.post("/echo", json={"key": world.placeholder})
    assert json.loads(world.server.seen.last()["body"]) == {"key": world.placeholder}


@pytest.mark.parametrize("kind", ["json", "form", "chunked"])
def test_a_body_gets_the_value(world: World, kind: str) -> None:
    value = 'quo"te&more=' + "0123456789abcdefghij"
    world.begin(in_body=True, value=value)
    options: dict[str, Any] = {
        "json": {"json": {"key": world.placeholder}},
        "form": {"data": {"key": world.placeholder}},
        "chunked": {"content": iter([b"a", world.placeholder.encode(), b"b"])},
    }[kind]
    with client(world) as http:
        http.post("/echo", **options)
    body = world.server.seen.last()["body"]
    if kind == "json":
        assert json.loads(body) == {"key": value}
    elif kind == "form":
        assert dict(httpx.QueryParams(body.decode())) == {"key": value}
    else:
        assert body == b"a" + value.encode() + b"b"


def test_a_body_too_large_to_be_searched_is_refused(world: World) -> None:
    world.begin(in_body=True)
    with client(world) as http:
        answer = http.post("/echo", content=bytes(5 << 20))
    assert answer.status_code == 413 and "4 MiB" in answer.text


def test_one_connection_carries_many_requests(world: World) -> None:
    world.begin()
    with client(world) as http:
        for number in range(20):
            assert http.post(f"/echo?{number}", content=b"x" * number).status_code == 200
        assert world.guard.connections() == 1
    assert len(world.wait_audit(20)) == 20


def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    world.begin()
    request = b"GET /echo?%d HTTP/1.1\r\nHost: " + world.authority_bytes + b"\r\n%s\r\n"
    parts = [request % (1, b""), request % (2, b""), request % (3, b"Connection: close\r\n")]
    with world.entrance.connect(world.context, HOST) as sock:
        answer = exchange(sock, b"".join(parts))
    assert [answer.count(b"echo?%d" % n) for n in (1, 2, 3)] == [1, 1, 1]
    assert answer.index(b"echo?1") < answer.index(b"echo?2") < answer.index(b"echo?3")


@pytest.mark.parametrize("path", ["/chunks", "/close"])
def test_answers_without_a_length(world: World, path: str) -> None:
    world.begin()
    with client(world) as http:
        assert http.get(path).text in ("one two three", "until the end")


def test_an_answer_that_is_cut_is_seen_to_be(world: World) -> None:
    world.begin()
    with client(world) as http, pytest.raises(httpx.RemoteProtocolError):
        http.get("/cut")
    assert world.wait_audit(1)[0]["error"]


def test_head_and_100_continue(world: World) -> None:
    world.begin()
    with client(world) as http:
        assert http.head("/echo").status_code == 200
        answer = http.post("/echo", content=b"body", headers={"expect": "100-continue"})
        assert answer.json()["body"] == "body"


def test_server_sent_events_are_not_held_up(world: World) -> None:
    world.begin()
    with client(world) as http, http.stream("GET", "/sse") as answer:
        seen = []
        for line in answer.iter_lines():
            if line:
                seen.append(line)
                world.server.go_on.set()  # the next one comes when this one has been seen
    assert seen == ["data: 0", "data: 1", "data: 2"]


def test_websockets_pass_both_ways(world: World) -> None:
    world.begin()
    head = (
        b"GET /ws HTTP/1.1\r\nHost: " + world.authority_bytes + b"\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Authorization: Bearer " + world.placeholder.encode() + b"\r\n\r\n"
    )
    with world.entrance.connect(world.context, HOST) as sock:
        sock.sendall(head)
        file = sock.makefile("rb")
        assert file.readline().startswith(b"HTTP/1.1 101")
        while file.readline().strip():
            pass
        for message in (b"\x81\x05hello", b"\x82\x7e" + bytes(2000)):
            sock.sendall(message)
            assert file.read(len(message)) == message
    assert world.server.seen.headers("authorization") == [f"Bearer {VALUE}"]


def test_large_bodies_both_ways(world: World) -> None:
    world.begin()
    data = hashlib.sha256(b"seed").digest() * (1 << 18)  # 8 MiB
    with client(world) as http:
        assert http.post("/sink", content=data).text == hashlib.sha256(data).hexdigest()
        size = 0
        with http.stream("GET", "/big?20000000") as answer:
            for part in answer.iter_bytes():
                size += len(part)
        assert size == 20_000_000
    assert world.wait_audit(2)[1]["bytes_received"] == 20_000_000


def test_a_slow_reader_holds_up_the_host_and_nobody_keeps_it_all(world: World) -> None:
    world.begin()
    with world.entrance.connect(world.context, HOST) as sock:
        sock.sendall(b"GET /big?300000000 HTTP/1.1\r\nHost: " + world.authority_bytes + b"\r\n\r\n")
        sock.recv(100)
        with client(world) as http:  # others go on meanwhile
            assert http.get("/echo").status_code == 200
    world.wait(lambda: world.guard.connections() == 0)


@pytest.mark.slow
def test_200_connections_at_once(world: World) -> None:
    world.begin()
    barrier, failed = threading.Barrier(200, timeout=120), []

    def run(number: int) -> None:
        try:
            with world.entrance.connect(world.context, HOST) as sock:
                barrier.wait()  # all of them are open now
                head = b"GET /echo?n=%d HTTP/1.1\r\nHost: %s\r\n" % (number, world.authority_bytes)
                key = b"X-Api-Key: %s\r\n" % world.placeholder.encode()
                answer = exchange(sock, head + key + b"Connection: close\r\n\r\n")
            assert b"n=%d" % number in answer, answer
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert world.server.seen.headers("x-api-key") == [VALUE] * 200
    world.wait(lambda: world.guard.connections() == 0)


def test_connections_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voidbox.secrets.guard.CONNECTIONS_MAX", 2)
    world.begin()
    socks = [world.entrance.connect(None, None) for _ in range(3)]
    assert socks[2].recv(1) == b""
    assert any("connections" in line for line in world.lines)
    for sock in socks:
        sock.close()
    world.wait(lambda: world.guard.connections() == 0)


# HTTP/2.


def test_http2_end_to_end(world2: World) -> None:
    world2.begin()
    with client(world2, http2=True) as http:
        answer = http.post(
            f"/echo?k={world2.placeholder}",
            headers={"authorization": f"Bearer {world2.placeholder}"},
            content=b"body",
        )
        assert answer.http_version == "HTTP/2" and answer.status_code == 200
        assert http.get("/trailers").status_code == 200
    first = world2.server.seen.requests[0]
    assert dict(first["headers"])["authorization"] == f"Bearer {VALUE}"
    assert first["target"] == f"/echo?k={VALUE}" and first["body"] == b"body"
    assert VALUE not in answer.text
    assert len(world2.wait_audit(2)) == 2
    world2.check_no_secret()


def test_http2_bodies(world2: World) -> None:
    world2.begin(in_body=True)
    data = bytes(3 << 20)
    with client(world2, http2=True) as http:
        assert http.post("/echo", content=data).status_code == 200
        assert world2.server.seen.last()["body"] == data
        http.post("/echo", json={"key": world2.placeholder})
        assert json.loads(world2.server.seen.last()["body"]) == {"key": VALUE}
        assert len(http.get("/big?30000000").content) == 30_000_000
        assert http.post("/echo", content=bytes(5 << 20)).status_code == 413
        assert http.get("/echo").status_code == 200


def test_http2_many_streams_at_once(world2: World) -> None:
    """By one thread: of several of the client's, two may take the same stream."""
    world2.begin()

    async def run() -> None:
        async with httpx.AsyncClient(**how(world2, http2=True)) as http:
            answers = await asyncio.gather(*(http.get("/big?300000") for _ in range(50)))
            assert [len(answer.content) for answer in answers] == [300_000] * 50
            assert world2.guard.connections() == 1

    asyncio.run(run())


def test_http2_goaway_lets_what_has_begun_end(world2: World) -> None:
    world2.begin()
    with client(world2, http2=True) as http:
        assert http.get("/goaway").status_code == 200
        world2.wait(lambda: world2.guard.connections() == 0)
        assert http.get("/echo").status_code == 200  # by another connection


def test_a_host_without_http2_is_spoken_to_without(world: World) -> None:
    world.begin()
    with httpx.Client(verify=world.context, http2=True, timeout=60, trust_env=False) as http:
        assert http.get(f"{world.url}/echo").http_version == "HTTP/1.1"


# Rotation.


def test_a_new_value_holds_from_the_next_request_on(world: World) -> None:
    world.begin()
    headers = {"x-api-key": world.placeholder}
    with client(world) as http:
        http.get("/echo", headers=headers)
        world.guard.vault.set("API_KEY", "another-value-0123456789")
        answer = http.get("/echo", headers=headers)
    assert world.server.seen.headers("x-api-key") == [VALUE, "another-value-0123456789"]
    assert "another-value" not in answer.text
    with pytest.raises(ConfigError, match="no secret 'NOPE'"):
        world.guard.vault.set("NOPE", "x" * 20)


# What is not guarded.


def test_other_names_pass_untouched(world: World, ca: Any) -> None:
    """A host at the same address: its own certificate arrives, and the placeholder as it is."""
    from tests.unit.secrets.servers import https_server
    from voidbox.secrets.authority import issue

    world.begin()
    with https_server(issue(ca, "untouched.test")) as other:
        world.entrance.far_port = other.port
        with world.entrance.connect(world.context, "untouched.test") as sock:
            issuer = dict(pair[0] for pair in sock.getpeercert()["issuer"])
            answer = exchange(
                sock,
                b"GET /echo HTTP/1.1\r\nHost: untouched.test\r\nX-Api-Key: %s\r\n"
                b"Connection: close\r\n\r\n" % world.placeholder.encode(),
            )
        assert world.ca.certificate and issuer["commonName"] != ""
        assert answer.startswith(b"HTTP/1.1 200")
        assert other.seen.headers("x-api-key") == [world.placeholder]
    assert world.audit() == []


def test_what_is_no_tls_passes_untouched(world: World) -> None:
    world.begin()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        world.entrance.far_port = listener.getsockname()[1]
        with world.entrance.connect(None, None) as sock:
            sock.sendall(b"SSH-2.0-something\r\n")
            far, _ = listener.accept()
            with far:
                assert far.recv(100) == b"SSH-2.0-something\r\n"
                far.sendall(b"answer")
                assert sock.recv(100) == b"answer"
                sock.shutdown(socket.SHUT_WR)
                assert far.recv(100) == b""
                far.sendall(b"after the half-close")
                assert sock.recv(100) == b"after the half-close"


def test_other_secrets_are_not_put_in(world: World) -> None:
    world.begin()
    with client(world) as http:
        http.get("/echo", headers={"x-token": world.other_placeholder})
        http.post("/echo", content=b"a" * 70000 + world.other_placeholder.encode())
    assert world.server.seen.headers("x-token") == [world.other_placeholder]
    lines = world.wait_audit(2)
    assert [line["leaks"] for line in lines] == [["GH_TOKEN"], ["GH_TOKEN"]]
    assert any("GH_TOKEN" in line and "on the way" in line for line in world.lines)
    assert OTHER_VALUE not in str(world.server.seen.requests)
