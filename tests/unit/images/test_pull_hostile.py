"""Registries that fail, lie, hang and send us elsewhere: one line each, and nothing kept."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.images.fake_registry import FakeRegistry, Handler, Request, fake_registry
from tests.unit.images.made import StoreFolder, digest_of
from tests.unit.images.oci import OciImage, make_image, make_index
from tests.unit.images.test_pull import log_in, wants_password
from voidbox.errors import ConfigError, HostError, VoidboxError
from voidbox.images import download as download_module
from voidbox.images import pulling
from voidbox.images import registry as registry_module
from voidbox.images import transport as transport_module
from voidbox.images.authorization import parse_challenges
from voidbox.images.credentials import Credentials, find_credentials
from voidbox.images.errors import ImageError
from voidbox.images.manifest import DOCKER_SCHEMA_1, OCI_INDEX, parse_config
from voidbox.images.pulling import pull
from voidbox.images.transport import RegistryError, Transport, Url, is_loopback, parse_url

BASE = {"bin/": b"", "bin/sh": os.urandom(1000)}


@pytest.fixture
def image(registry: FakeRegistry) -> OciImage:
    image = make_image(BASE)
    registry.add(image)
    return image


def check_nothing_kept(stored: StoreFolder) -> None:
    assert stored.store.list() == ([], []) and not stored.leftovers()
    assert not list((stored.images / "refs").iterdir())
    assert not list((stored.images / "blobs/sha256").iterdir())


def refuse(registry: FakeRegistry, stored: StoreFolder, why: str, **more: Any) -> VoidboxError:
    """Pull, which has to fail with one line."""
    with pytest.raises(VoidboxError, match=why) as error:
        pull(registry.name(), store=stored.store, **more)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    check_nothing_kept(stored)
    return error.value


# --- lies -----------------------------------------------------------------------------------------


def replies(content: bytes, status: int = 200, **headers: str) -> Any:
    def fault(handler: Handler, request: Request) -> bool:
        handler.reply(status, content, **headers)
        return True

    return fault


def test_a_layer_that_is_another(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    (layer,) = image.layers
    size = len(image.blobs[layer])
    registry.on(layer, replies(os.urandom(size)))
    why = f"{registry.address}/app:latest: .*does not tell the truth: the layer {layer} is sha256:"
    refuse(registry, stored, why)
    assert not list((stored.images / "partial").iterdir())
    registry.faults.clear()
    registry.on(layer, replies(image.blobs[layer] + b"x"))
    refuse(registry, stored, f"the layer {layer} has more than the {size:,} bytes it says")
    registry.faults.clear()
    assert pull(registry.name(), store=stored.store).id == image.id


def test_a_manifest_or_a_configuration_that_is_another(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    other = make_image({"x": b"x"})
    registry.on("/manifests/", replies(other.manifest, Docker_Content_Digest=image.digest), 1)
    refuse(registry, stored, f"the manifest it calls {image.digest} is {other.digest}")
    registry.on(image.id, replies(image.config[:-1] + b" "), times=1)
    refuse(registry, stored, f"the configuration it calls {image.id} is sha256:")
    registry.on(image.id, replies(image.config + b" "), times=1)
    refuse(registry, stored, "a configuration of .* bytes instead of")


def test_layers_that_hold_something_else(registry: FakeRegistry, stored: StoreFolder) -> None:
    wrong = digest_of(b"something else")
    registry.add(make_image(BASE, diff_ids=[wrong]))
    with pytest.raises(ImageError, match=f"holds sha256:.* instead of {wrong}"):
        pull(registry.name(), store=stored.store)
    assert stored.store.list() == ([], []) and not stored.leftovers()
    registry.add(make_image(BASE, diff_ids=[wrong] * 2))
    with pytest.raises(ImageError, match="its configuration tells of 2 layers, its manifest of 1"):
        pull(registry.name(), store=stored.store)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schemaVersion": 1}, "docker's old format"),
        ({"mediaType": DOCKER_SCHEMA_1 + "+prettyjws"}, "docker's old format"),
        ({"mediaType": "text/html"}, "a manifest of an unknown type: 'text/html'"),
        ({"config": None}, "its manifest is wrong: config"),
        ({"config": {"digest": "sha256:../../../x", "size": 1}}, "is no sha256 digest"),
        ({"config": {"digest": digest_of(b"") + "\n", "size": 1}}, "is no sha256 digest"),
        ({"config": {"digest": digest_of(b""), "size": -1}}, "its manifest is wrong: the size of"),
        ({"config": {"digest": digest_of(b""), "size": True}}, "its manifest is wrong: the size o"),
        ({"config": {"digest": digest_of(b""), "size": 9**12}}, "sends a configuration|has a conf"),
        ({"config": {"mediaType": "a/x", "digest": digest_of(b""), "size": 0}}, "no image"),
        ({"layers": {}}, "its manifest is wrong: layers"),
        ({"layers": [1]}, "its manifest is wrong: layers"),
        ({"layers": [{"digest": digest_of(b""), "size": 1}] * 600}, "its manifest has 600 layers"),
        (
            {"layers": [{"mediaType": "x", "digest": digest_of(b""), "size": 1}]},
            "a layer of an unknown type: 'x'",
        ),
        ({"mediaType": OCI_INDEX, "manifests": []}, "but for no platform at all"),
    ],
)  # fmt: skip
def test_manifests_that_cannot_be_used(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, change: Any, why: str
) -> None:
    content = json.dumps({**json.loads(image.manifest), **change}).encode()
    registry.manifests["latest"] = (content, "application/json")
    refuse(registry, stored, why)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", b"1" * 5000]
)
def test_no_manifest(registry: FakeRegistry, stored: StoreFolder, content: bytes) -> None:
    registry.manifests["latest"] = (content, "application/json")
    refuse(registry, stored, "its manifest is no (JSON|object)")


def test_what_a_registry_says_does_nothing_to_the_terminal(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    index = make_index((image, "linux\n", "\x1b[2J"), (image, "linux", "\x1b[2J"))
    registry.manifests["latest"] = (index, OCI_INDEX)
    refuse(registry, stored, "not made for linux/amd64, but for linux/unknown: see")
    registry.on("/manifests/", replies(image.manifest, Docker_Content_Digest="sha256:\x1b[2J"))
    refuse(registry, stored, r"the manifest it calls sha256: \[2J is sha256:")


def test_a_manifest_without_end(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    def endless(handler: Handler, request: Request) -> bool:
        handler.reply(200, b" " * (1 << 20), Content_Length=str(1 << 30))
        while not registry.release.wait(0):
            handler.wfile.write(b" " * (1 << 20))
        return True

    registry.on("/manifests/", endless)
    refuse(registry, stored, "sends a manifest of more than 4,194,304 bytes")


def test_an_index_that_is_wrong_about_a_size(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    index = json.loads(make_index((image, "linux", "amd64")))
    index["manifests"][0]["size"] += 1
    registry.add(image, index=json.dumps(index).encode(), index_type=OCI_INDEX)
    refuse(registry, stored, "a manifest of .* bytes instead of")


def test_no_time_at_all() -> None:
    for text, seconds in (("0001-01-01T00:00:00Z", None), ("1970-01-01T00:00:00Z", 0)):
        assert parse_config(json.dumps({"created": text}).encode()).created_at == seconds


def test_indexes_in_indexes(registry: FakeRegistry, stored: StoreFolder, image: OciImage) -> None:
    content = make_index((image, "linux", "amd64"))
    for _ in range(10):
        registry.manifests[digest_of(content)] = (content, OCI_INDEX)
        inner = OciImage(content, b"", {}, (), OCI_INDEX)
        content = make_index((inner, "linux", "amd64"))
    registry.manifests["latest"] = (content, OCI_INDEX)
    refuse(registry, stored, "indexes in indexes without end")


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_a_busy_registry_is_asked_again(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, status: int
) -> None:
    registry.on("/v2/", replies(b"", status, Retry_After="7"), times=4)
    assert pull(registry.name(), store=stored.store).id == image.id
    registry.on("/manifests/", replies(b"", status))
    with pytest.raises(RegistryError, match=f"127.0.0.1 is busy or broken: status {status}"):
        pull(registry.name(), store=stored.store)
    assert registry.count("/manifests/") == 5 + 5


def test_retry_after_is_waited_for(
    registry: FakeRegistry, image: OciImage, stored: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []

    class Recorder(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    monkeypatch.setattr(registry_module, "BACKOFF_S", 1.0)
    monkeypatch.setattr(pulling, "threading", SimpleNamespace(Event=Recorder))
    registry.on("/manifests/", replies(b"", 503, Retry_After="7"), times=1)
    registry.on("/manifests/", replies(b"", 429, Retry_After="999999"), times=1)
    registry.on("/manifests/", replies(b"", 500, Retry_After="Fri, 31 Dec 1999"), times=1)
    pull(registry.name(), store=stored.store)
    assert waits == [7, 30, 4]


@pytest.mark.parametrize(
    ("status", "why"),
    [(404, "has no such manifest of app"), (403, "it is not for you"), (418, "with status 418")],
)
def test_a_registry_that_refuses(
    registry: FakeRegistry, stored: StoreFolder, status: int, why: str
) -> None:
    registry.on("/v2/", replies(b"<html>\n" * 1000, status))
    refuse(registry, stored, why)
    assert registry.count("/v2/") == 1


def cut_at(image: OciImage, count: int) -> Any:
    """Return a fault: the connection ends after so many bytes of what was asked for."""

    def fault(handler: Handler, request: Request) -> bool:
        content = image.blobs[request.path.rpartition("/")[2]]
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        start = int(match[1]) if match else 0
        headers = {"Content_Length": str(len(content) - start)}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.reply(206 if start else 200, content[start : start + count], **headers)
        handler.hang_up()
        return True

    return fault


def test_a_lost_connection_is_gone_on_from(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    (layer,) = image.layers
    registry.on(layer, cut_at(image, 300), times=3)
    assert pull(registry.name(), store=stored.store).id == image.id
    ranges = [
        request.headers.get("range") for request in registry.requests if layer in request.path
    ]
    assert ranges == [None, "bytes=300-", "bytes=600-", "bytes=900-"]


def test_the_next_pull_goes_on_where_the_last_one_stopped(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    (layer,) = image.layers
    registry.on(layer, cut_at(image, 100), times=5)
    refuse(registry, stored, r"the connection to 127.0.0.1 was lost")
    (partial,) = (stored.images / "partial").iterdir()
    assert partial.read_bytes() == image.blobs[layer][:500]
    registry.requests.clear()
    assert pull(registry.name(), store=stored.store).id == image.id
    assert registry.requests[-1].headers["range"] == "bytes=500-"
    assert not list((stored.images / "partial").iterdir())


@pytest.mark.parametrize("kept", [b"rotten" * 20, b"x" * 100_000])
def test_what_was_kept_may_be_rotten(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, kept: bytes
) -> None:
    (stored.images / "partial" / image.layers[0][7:]).write_bytes(kept)
    assert pull(registry.name(), store=stored.store).id == image.id


def test_a_registry_without_ranges(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    (layer,) = image.layers
    registry.on(layer, cut_at(image, 300), times=1)
    registry.on(layer, replies(image.blobs[layer]), times=1)
    assert pull(registry.name(), store=stored.store).id == image.id
    assert registry.count(layer) == 2


def test_a_registry_that_answers_another_range(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    (layer,) = image.layers
    registry.on(layer, cut_at(image, 300), times=1)
    for said in ("bytes 0-9/10", "bytes 99999999999999999999-1/2", "x", "bytes 300-x/*"):
        registry.on(layer, replies(b"x" * 10, 206, Content_Range=said), times=1)
    with pytest.raises(RegistryError, match="sends another range than it was asked for"):
        pull(registry.name(), store=stored.store)
    assert pull(registry.name(), store=stored.store).id == image.id


def test_a_body_that_is_too_short(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    (layer,) = image.layers
    registry.on(layer, replies(image.blobs[layer][:100]))
    refuse(registry, stored, f"127.0.0.1:.* sent 100 of .* bytes of the layer {layer}")


@pytest.mark.parametrize("pattern", ["/manifests/", "/blobs/"])
def test_a_registry_that_hangs(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, pattern: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(registry_module, "ATTEMPTS", 2)

    def hang(handler: Handler, request: Request) -> bool:
        registry.release.wait(20)
        handler.hang_up()
        return True

    registry.on(pattern, hang)
    refuse(registry, stored, "127.0.0.1 did not answer for 0.05 s", timeout_s=0.05)


def test_a_registry_that_drips(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "ATTEMPTS", 2)
    (layer,) = image.layers

    def drip(handler: Handler, request: Request) -> bool:
        handler.reply(200, Content_Length="1000")
        for _ in range(1000):
            if registry.release.wait(0.01):
                break
            handler.wfile.write(b"x")
            handler.wfile.flush()
        return True

    registry.on(layer, drip)
    refuse(registry, stored, r"127.0.0.1 sent \d+ bytes in", timeout_s=0.1)


def test_headers_that_never_end(
    registry: FakeRegistry, stored: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "ATTEMPTS", 1)

    def drip(handler: Handler, request: Request) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not registry.release.wait(0.01):
            handler.wfile.write(b"x")
            handler.wfile.flush()
        return True

    registry.on("/manifests/", drip)
    refuse(registry, stored, "the connection to 127.0.0.1 was lost", timeout_s=0.1)


@pytest.mark.parametrize("start", ["1\r\n{\r\n0\r\n", "1\r\n{\r\n"])
def test_chunks_that_never_end(
    registry: FakeRegistry, stored: StoreFolder, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    monkeypatch.setattr(registry_module, "ATTEMPTS", 1)
    line = b"a: b\r\n" if start.endswith("0\r\n") else b"0"  # trailers, or a length

    def drip(handler: Handler, request: Request) -> bool:
        handler.reply(200, start.encode(), Transfer_Encoding="chunked")
        for _ in range(100):
            if registry.release.wait(0.01):
                break
            handler.wfile.write(line)
            handler.wfile.flush()
        return True

    registry.on("/manifests/", drip)
    refuse(registry, stored, "the connection to 127.0.0.1 was lost", timeout_s=0.25)


def test_a_document_that_takes_too_long(
    registry: FakeRegistry, stored: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "ATTEMPTS", 1)

    def drip(handler: Handler, request: Request) -> bool:
        handler.reply(200, Content_Length="4000000")
        while not registry.release.wait(0.005):
            handler.wfile.write(b" " * 1024)
            handler.wfile.flush()
        return True

    registry.on("/manifests/", drip)
    refuse(registry, stored, "does not come to an end with a manifest", timeout_s=0.25)


@pytest.mark.parametrize("start", [b"", b"x"], ids=["headers", "content"])
def test_what_fails_does_not_wait_for_what_hangs(
    registry: FakeRegistry, stored: StoreFolder, start: bytes
) -> None:
    image = make_image(BASE, {"a": b"other"})
    registry.add(image)
    hanging, wrong = image.layers
    hangs = threading.Event()

    def hang(handler: Handler, request: Request) -> bool:
        if start:
            handler.reply(200, start, Content_Length="1000")
        hangs.set()
        registry.release.wait(60)
        handler.hang_up()
        return True

    def lie(handler: Handler, request: Request) -> bool:
        hangs.wait(60)
        handler.reply(200, bytes(len(image.blobs[wrong])))
        return True

    registry.on(hanging, hang)
    registry.on(wrong, lie)
    began = time.monotonic()
    refuse(registry, stored, f"does not tell the truth: the layer {wrong}")
    assert time.monotonic() - began < 50


def test_nobody_there(stored: StoreFolder) -> None:
    with fake_registry() as registry:
        address = registry.address
    with pytest.raises(RegistryError, match="cannot connect to 127.0.0.1 port") as error:
        pull(f"{address}/app", store=stored.store)
    assert "\n" not in str(error.value)


def test_what_is_no_web_server(registry: FakeRegistry, stored: StoreFolder) -> None:
    def babble(handler: Handler, request: Request) -> bool:
        handler.wfile.write(b"SSH-2.0-OpenSSH\r\n" * 10)
        handler.hang_up()
        return True

    registry.on("/", babble)
    refuse(registry, stored, "the connection to 127.0.0.1 was lost")


# --- redirects and secrets ------------------------------------------------------------------------


def redirects(target: str, status: int = 307) -> Any:
    return replies(b"", status, Location=target)


def test_a_redirect_to_another_host_gets_no_secret(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, tmp_path: Path
) -> None:
    registry.on("^/v2/", wants_password)
    log_in(tmp_path, registry.address)
    with fake_registry() as other:
        other.add(image)
        registry.on(
            "/blobs/", redirects(f"http://{other.address}/v2/app/blobs/{image.layers[0]}"), 0
        )
        for digest in image.blobs:
            registry.on(digest, redirects(f"http://{other.address}/v2/app/blobs/{digest}", 302))
        assert pull(registry.name(), store=stored.store).id == image.id
        assert len(other.requests) == len(image.blobs)
        for request in other.requests:
            assert not request.authorization and "cookie" not in request.headers
    assert any(request.authorization for request in registry.requests)


def test_a_redirect_within_a_host_keeps_it(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, tmp_path: Path
) -> None:
    registry.on("^/(v2|there)/", wants_password)
    log_in(tmp_path, registry.address)
    (layer,) = image.layers
    registry.on(f"^/v2/.*{layer}", redirects(f"/there/blobs/{layer}"))
    assert pull(registry.name(), store=stored.store).id == image.id


def test_redirects_without_end_or_to_nowhere(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    registry.on("/manifests/", redirects("/v2/app/manifests/latest"), times=6)
    refuse(registry, stored, "127.0.0.1 redirects again and again")
    for target in ("file:///etc/passwd", "http://u:p@h.example/", "http://h:99999/", "gopher://x/"):
        registry.on("/manifests/", redirects(target), times=1)
        error = refuse(registry, stored, "names an address that cannot be used")
        assert target in str(error)
    registry.on("/manifests/", redirects("https://[::1/"), times=1)
    refuse(registry, stored, "redirects to no address: https")
    registry.on("/manifests/", redirects("http://registry.example/x"), times=1)
    refuse(registry, stored, "registry.example would be asked without encryption")


def test_whom_nobody_sends_us_to() -> None:
    transport = Transport()
    far = parse_url("https://registry.example/v2/")
    for address in (
        "https://127.0.0.1/x",
        "https://localhost:8/x",
        "https://[::1]/",
        "https://127.9/",
    ):
        url = parse_url(address)
        if address != "https://127.9/":  # which ipaddress does not know: it needs TLS then
            with pytest.raises(RegistryError, match="redirects to this machine"):
                transport._check(url, far)
        transport._check(url, url)
    for address in (
        "http://registry.example/",
        "http://169.254.169.254/latest",
        "http://10.0.0.1/",
    ):
        with pytest.raises(RegistryError, match="without encryption: refused without --insecure"):
            transport._check(parse_url(address), far)
    Transport(is_insecure=True)._check(parse_url("http://registry.example/"), far)
    assert parse_url("https://h.example:1/x") == Url(
        "https", "h.example", 1, "https://h.example:1/x"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "127.1", "2130706433", "name.example", "127.0.0.1"])
@pytest.mark.parametrize("way", ["redirect", "token"])
def test_nobody_sends_us_to_this_machine_under_any_name(
    registry: FakeRegistry, stored: StoreFolder, host: str, way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    port = int(registry.address.rpartition(":")[2])
    monkeypatch.setattr(  # as if the registry were elsewhere
        transport_module, "_leads_here", lambda sock: sock.getpeername()[1] != port
    )
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo",
        lambda name, *more: resolve("127.0.0.1" if name == "name.example" else name, *more),
    )  # fmt: skip
    with fake_registry() as other:
        there = f"http://{host}:{other.address.rpartition(':')[2]}/x"
        challenge = replies(b"", 401, WWW_Authenticate=f'Bearer realm="{there}"')
        registry.on("/manifests/", redirects(there) if way == "redirect" else challenge)
        refuse(registry, stored, "sends us to this machine", insecure=True)
        assert not other.requests


def test_names_of_this_machine() -> None:
    for name in ("localhost.", "a.localhost", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "::1"):
        assert is_loopback(name), name
    assert not is_loopback("localhost.example") and not is_loopback("[::ffff:10.0.0.1]")
    for text in ("http://%31%32%37.0.0.1/", "http://localhos%74/"):
        with pytest.raises(RegistryError, match="cannot be used"):
            parse_url(text)


def test_a_token_from_nowhere(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, tmp_path: Path
) -> None:
    realm = f"http://{registry.address}/token"

    def ask(realm: str) -> Any:
        return replies(b"", 401, WWW_Authenticate=f'Bearer realm="{realm}"')

    for wrong in ("", "file:///etc/passwd", "http://auth.example/token"):
        registry.on("/manifests/", ask(wrong), times=1)
        refuse(registry, stored, "cannot be used|without encryption")
    for content in (b"", b"{}", b"[]", b'{"token":1}', b'{"token":"a\\r\\nX: y"}', b'{"token":""}'):
        registry.on("/manifests/", ask(realm), times=1)
        registry.on("/token", replies(content), times=1)
        refuse(registry, stored, "127.0.0.1 gives no token that can be used")
    registry.on("/manifests/", ask(realm))
    registry.on("/token", replies(b" " * (1 << 20)), times=1)
    refuse(registry, stored, "sends a token of more than")
    registry.on("/token", replies(b"", 401))
    refuse(registry, stored, "wants a login: docker login")
    log_in(tmp_path, registry.address)
    refuse(registry, stored, "refuses your user and password: docker login")


def test_an_unknown_authentication(registry: FakeRegistry, stored: StoreFolder) -> None:
    registry.on("/v2/", replies(b"", 401, WWW_Authenticate="Negotiate x=y"), times=1)
    refuse(registry, stored, "an authentication that is not known here")
    registry.on("/v2/", replies(b"", 401))
    refuse(registry, stored, "refuses, and does not say what it wants")


def test_challenges() -> None:
    (found,) = parse_challenges('Bearer realm="a\\"b",service=c , scope="d,e"')
    assert found == ("bearer", {"realm": 'a"b', "service": "c", "scope": "d,e"})
    both = parse_challenges('Basic realm="x", Bearer realm="y"')
    assert [challenge.parameters["realm"] for challenge in both] == ["x", "y"]
    assert [c.scheme for c in parse_challenges("Negotiate, Basic")] == ["negotiate", "basic"]
    for text in ("", "=", '"', ",,,", "Bearer realm=" + '"\\' * 5000, "Bearer " + "a=b," * 5000):
        parse_challenges(text)


@pytest.mark.usefixtures("no_waiting")
def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_credentials("docker.io") is None
    log_in(tmp_path, "index.docker.io", "me", "se:cret")
    assert find_credentials("docker.io") == Credentials("me", "se:cret")
    assert find_credentials("index.example") is None
    assert "cret" not in repr(find_credentials("docker.io"))
    config = tmp_path / "docker/config.json"
    for content, why in (("{", "is no JSON"), ('{"auths":{"h":{"auth":"%%"}}}', "is wrong for h:"),
                         ('{"auths":{"h":{"auth":"c2VjcmV0"}}}', "is wrong for h:")):  # fmt: skip
        config.write_text(content)
        with pytest.raises(ConfigError, match=why) as error:
            find_credentials("h")
        assert "%%" not in str(error.value) and "secret" not in str(error.value)
    for content in ("[]", "{}", '{"auths":[]}', '{"auths":{"h":{}}}', '{"auths":{"h":3}}'):
        config.write_text(content)
        assert find_credentials("h") is None
    config.write_text('{"auths":{"h":{"username":"u","password":"p"}}}')
    assert find_credentials("h") == Credentials("u", "p")
    (tmp_path / "auth.json").write_text('{"auths":{"H/v1/":{"auth":"bWU6c2VjcmV0"}}}')
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    assert find_credentials("h") == Credentials("me", "secret")
    (tmp_path / "containers").mkdir()
    (tmp_path / "auth.json").rename(tmp_path / "containers/auth.json")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert find_credentials("h") == Credentials("me", "secret")


@pytest.mark.usefixtures("no_waiting")
def test_credentials_of_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("h.example/team-a", "H.example", "h.example/team-b/app", "h.example/team-b")
    auths = {key: {"username": key, "password": "p"} for key in keys}
    (tmp_path / "auth.json").write_text(json.dumps({"auths": auths}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    for repository, key in (
        ("team-a/x", keys[0]), ("team-b/app", keys[2]), ("team-b/app/more", keys[2]),
        ("team-b/application", keys[3]), ("team-c/x", keys[1]), ("", keys[1]),
    ):  # fmt: skip
        assert find_credentials("h.example", repository) == Credentials(key, "p")
    assert find_credentials("other.example", "team-a/x") is None


# --- a full disk ----------------------------------------------------------------------------------


def test_a_disk_that_is_full_in_the_middle(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    left = [1]

    def full(fd: int, data: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, bytes(data)[:200])

    with monkeypatch.context() as patch:
        patch.setattr(download_module.os, "write", full)
        error = refuse(registry, stored, "cannot write .*/partial/.*: No space left on device")
    assert isinstance(error, HostError) and error.errno == errno.ENOSPC
    (partial,) = (stored.images / "partial").iterdir()
    assert len(partial.read_bytes()) == 200
    assert pull(registry.name(), store=stored.store).id == image.id
    assert registry.requests[-1].headers["range"] == "bytes=200-"


def test_a_disk_that_is_too_small_is_noticed_before(
    registry: FakeRegistry, stored: StoreFolder
) -> None:
    image = make_image(BASE)
    manifest = json.loads(image.manifest)
    manifest["layers"][0]["size"] = 1 << 39
    registry.add(image._replace(manifest=json.dumps(manifest).encode()))
    refuse(registry, stored, "524,288 MiB are to be downloaded, and .* voidbox image prune")
    assert registry.count(image.layers[0]) == 0


def test_a_cached_layer_that_rots_is_fetched_again(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    pull(registry.name(), store=stored.store)
    stored.store.remove(registry.name())
    blob = stored.images / "blobs/sha256" / image.layers[0][7:]
    blob.write_bytes(b"x" * blob.stat().st_size)
    assert pull(registry.name(), store=stored.store).id == image.id
    assert blob.read_bytes() == image.blobs[image.layers[0]]
