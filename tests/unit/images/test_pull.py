"""Pulling from a registry that does as it should, and is used by several at once."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.images.fake_registry import FakeRegistry, Handler, Request
from tests.unit.images.made import StoreFolder
from tests.unit.images.oci import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OciImage,
    make_image,
    make_index,
)
from voidbox.images.errors import ImageError
from voidbox.images.manifest import DOCKER_LIST, Index, parse_manifest
from voidbox.images.progress import ImageProgress
from voidbox.images.pulling import pull
from voidbox.images.transport import RegistryError

BASE = {"bin/": b"", "bin/sh": b"#!" * 500}


@pytest.fixture
def image(registry: FakeRegistry) -> OciImage:
    image = make_image(BASE, {"etc/": b"", "etc/motd": b"hello"})
    registry.add(image)
    return image


@pytest.mark.parametrize("media_type", ["", DOCKER_MANIFEST])
def test_an_image_comes_whole(registry: FakeRegistry, stored: StoreFolder, media_type: str) -> None:
    image = make_image(
        BASE, {"etc/": b"", "etc/motd": b"hello"},
        config={
            "Entrypoint": ["/bin/sh", "-c"], "WorkingDir": "/srv", "User": "app:app",
            "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGINT", "Labels": {"a": "b"},
            "Volumes": {"/data": {}, "/var/lib/b": {}},
        },
        **({"media_type": media_type} if media_type else {}),
    )  # fmt: skip
    registry.add(image, "1.0")
    steps: list[ImageProgress] = []
    made = pull(registry.name(tag="1.0"), store=stored.store, progress=steps.append)
    config = made.config
    assert config.env == {"PATH": "/bin", "A": "b=c"}
    assert config.command() == ("/bin/sh", "-c", "sh")
    assert config.command(["ls"]) == ("/bin/sh", "-c", "ls")
    assert (config.workdir, config.user, config.stop_signal) == ("/srv", "app:app", "SIGINT")
    assert (config.exposed_ports, config.labels) == (("80/tcp",), {"a": "b"})
    assert config.volumes == ("/data", "/var/lib/b")
    record = made.record
    assert (made.id, record.digest, record.platform) == (image.id, image.digest, "linux/amd64")
    assert record.created_at == pytest.approx(1714979289.123, abs=0.01)
    assert [layer.digest for layer in record.layers] == list(image.layers)
    content = Path(made.path).read_bytes()
    assert len(content) == record.size_bytes and b"hello" in content
    assert content[1024:1028] == 0xE0F5E1E2.to_bytes(4, "little")  # EROFS_SUPER_MAGIC_V1
    size = sum(len(image.blobs[digest]) for digest in image.layers)
    downloads = [step for step in steps if step.stage == "download"]
    assert downloads[-1][2:] == (size, size)
    assert {step.stage for step in steps} == {"download", "layer", "unpack", "write"}
    assert not stored.leftovers() and not list((stored.images / "partial").iterdir())
    (asked,) = {request.headers["accept"] for request in registry.requests[:1]}
    assert OCI_INDEX in asked and DOCKER_LIST in asked


def test_the_same_again_downloads_nothing(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    first = pull(registry.name(), store=stored.store)
    blobs = registry.count("/blobs/")
    assert pull(registry.name(), store=stored.store) == first
    assert registry.count("/blobs/") == blobs + 1  # the configuration
    registry.add(image, "other")
    assert pull(registry.name(tag="other"), store=stored.store).id == first.id
    assert len(stored.store.find(first.id).names) == 2


def test_layers_are_shared(registry: FakeRegistry, stored: StoreFolder, image: OciImage) -> None:
    pull(registry.name(), store=stored.store)
    other = make_image(BASE, {"b": b"b"})
    registry.add(other, "other")
    steps: list[ImageProgress] = []
    pull(registry.name(tag="other"), store=stored.store, progress=steps.append)
    assert [step.item for step in steps if step.stage == "cached"] == [other.layers[0]]
    assert registry.count(other.layers[0]) == 1


def test_a_name_with_a_digest(registry: FakeRegistry, stored: StoreFolder, image: OciImage) -> None:
    name = f"{registry.address}/app@{image.digest}"
    assert pull(name, store=stored.store).id == image.id
    assert stored.store.find(name).names == (name,)
    other = "sha256:" + "0" * 64
    registry.manifests[other] = registry.manifests["latest"]
    with pytest.raises(RegistryError, match="does not tell the truth: the manifest it calls"):
        pull(f"{registry.address}/app@{other}", store=stored.store)


def test_an_index(registry: FakeRegistry, stored: StoreFolder) -> None:
    arm = make_image({"a": b"arm"}, architecture="arm64")
    amd = make_image({"a": b"amd"})
    registry.add(arm, "none")
    for index_type in (OCI_INDEX, DOCKER_LIST):
        index = make_index((arm, "linux", "arm64"), (amd, "linux", "amd64"))
        index = index.replace(OCI_INDEX.encode(), index_type.encode())
        registry.add(amd, index=index, index_type=index_type)
        assert pull(registry.name(), store=stored.store).id == amd.id
    found = pull(registry.name(), store=stored.store, platform="linux/arm64")
    assert (found.id, found.record.platform) == (arm.id, "linux/arm64")
    with pytest.raises(ImageError, match="not made for linux/s390x, but for linux/amd64, lin"):
        pull(registry.name(), store=stored.store, platform="linux/s390x")
    with pytest.raises(ImageError, match=r"it is made for linux/arm64: see --platform"):
        pull(registry.name(tag="none"), store=stored.store)
    with pytest.raises(ImageError, match="is no platform: write it as"):
        pull(registry.name(), store=stored.store, platform="amd64")


def test_a_manifest_may_leave_it_to_its_carrier_what_it_is(
    registry: FakeRegistry, stored: StoreFolder
) -> None:
    amd = make_image({"a": b"amd"})
    index = json.loads(make_index((amd, "linux", "amd64")))
    del index["mediaType"]
    content = json.dumps(index).encode()
    registry.add(amd, index=content, index_type=f"{OCI_INDEX}; charset=utf-8")
    assert pull(registry.name(), store=stored.store).id == amd.id
    assert isinstance(parse_manifest(content), Index)  # an archive's, which says nothing either
    with pytest.raises(ImageError, match="of an unknown type: 'text/plain'"):
        parse_manifest(content, "text/plain")


def test_a_proxy(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{registry.address}")
    with pytest.raises(RegistryError, match="the proxy to registry.example does not help"):
        pull("registry.example/app", store=stored.store)  # it does not do CONNECT
    assert pull("registry.example/app", store=stored.store, insecure=True).id == image.id
    assert registry.requests[-1].headers["host"] == "registry.example"


def log_in(folder: Path, registry: str, user: str = "me", password: str = "secret") -> None:
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / "docker").mkdir(exist_ok=True)
    content = {"auths": {f"https://{registry}/v1/": {"auth": auth}, "other.example": {"auth": "x"}}}
    (folder / "docker/config.json").write_text(json.dumps(content))


def wants_token(registry: FakeRegistry) -> None:
    """Have the registry want a token, and give one."""

    def ask(handler: Handler, request: Request) -> bool:
        if request.authorization == "Bearer good":
            return False
        realm = f'Bearer realm="http://{registry.address}/token?x=1",service="s",scope="other"'
        handler.reply(401, WWW_Authenticate=f'Negotiate, {realm},error="invalid_token"')
        return True

    def give(handler: Handler, request: Request) -> bool:
        assert request.query == {"x": ["1"], "service": ["s"], "scope": ["repository:app:pull"]}
        handler.reply(200, b'{"token":"good"}')
        return True

    registry.on("^/v2/", ask)
    registry.on("^/token", give)


def test_a_token(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, tmp_path: Path
) -> None:
    wants_token(registry)
    assert pull(registry.name(), store=stored.store).id == image.id
    tokens = [request for request in registry.requests if request.path == "/token"]
    assert len(tokens) == 1 and not tokens[0].authorization
    log_in(tmp_path, registry.address)
    pull(registry.name(), store=stored.store)
    tokens = [request for request in registry.requests if request.path == "/token"]
    assert tokens[1].authorization == "Basic bWU6c2VjcmV0"


def test_a_token_that_expires_is_got_again(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    wants_token(registry)

    def expired(handler: Handler, request: Request) -> bool:
        challenge = f'Bearer realm="http://{registry.address}/token?x=1",service="s"'
        handler.reply(401, WWW_Authenticate=challenge)
        return True

    registry.on("/blobs/" + image.layers[1], expired, times=1)
    assert pull(registry.name(), store=stored.store).id == image.id
    assert registry.count("^/token") == 2


def wants_password(handler: Handler, request: Request) -> bool:
    if request.authorization == "Basic bWU6c2VjcmV0":
        return False
    handler.reply(401, WWW_Authenticate='Basic realm="here"')
    return True


def test_a_password(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage, tmp_path: Path
) -> None:
    registry.on("^/v2/", wants_password)
    with pytest.raises(RegistryError, match="wants a user and a password: docker login 127"):
        pull(registry.name(), store=stored.store)
    log_in(tmp_path, registry.address)
    assert pull(registry.name(), store=stored.store).id == image.id
    log_in(tmp_path, registry.address, password="wrong-password")
    with pytest.raises(RegistryError, match="refuses: there is no app, or it is not") as told:
        pull(registry.name(), store=stored.store)
    assert "wrong-password" not in repr(told.value)


def test_threads_that_pull_the_same_at_once_download_it_once(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    count = 50
    barrier = threading.Barrier(count)
    found: list[str] = []
    waited: list[ImageProgress] = []

    def run() -> None:
        barrier.wait()
        report = lambda step: waited.append(step) if step.stage == "wait" else None  # noqa: E731
        found.append(pull(registry.name(), store=stored.store, progress=report).id)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [image.id] * count and waited
    for digest in image.layers:
        assert registry.count(digest) == 1
    assert registry.count("/manifests/") < count
    assert not stored.leftovers() and not list((stored.images / "partial").iterdir())


@pytest.mark.slow
def test_processes_that_pull_what_shares_layers(
    registry: FakeRegistry, stored: StoreFolder, image: OciImage
) -> None:
    for number in range(3):
        registry.add(make_image(BASE, {"n": b"%d" % number}), f"t{number}")
    names = ["latest", "latest", "t0", "t1", "t2", "t2"]
    code = "import sys; from voidbox.images import pull; print(pull(sys.argv[1]).id)"
    environment = {**os.environ, "VOIDBOX_STATE": str(stored.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, registry.name(tag=tag)], env=environment,
            cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True,
        )
        for tag in names
    ]  # fmt: skip
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(names)
    assert outputs[0] == outputs[1] == f"{image.id}\n" and outputs[4] == outputs[5]
    assert registry.count(image.layers[0]) == 1
    assert len(stored.store.list()[0]) == 4 and not stored.leftovers()
