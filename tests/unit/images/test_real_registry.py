"""Pulling from a real registry: Debian's docker-registry, on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.images.fake_registry import Handler, Request, fake_registry
from tests.unit.images.made import StoreFolder
from tests.unit.images.oci import DOCKER_MANIFEST, OCI_INDEX, make_image, make_index
from tests.unit.images.real_registry import (
    LOGIN,
    PROGRAM,
    Running,
    make_certificate,
    make_token,
    real_registry,
    registry_with_password,
)
from tests.unit.images.test_pull import log_in
from voidbox.images.errors import ImageError
from voidbox.images.progress import ImageProgress
from voidbox.images.pulling import pull
from voidbox.images.transport import RegistryError

pytestmark = [
    pytest.mark.usefixtures("no_waiting"),
    pytest.mark.skipif(
        not PROGRAM.exists(),
        reason="there is no docker-registry: scripts/fetch_registry.sh fetches it",
    ),
]
NOISE = os.urandom(300_000)
IMAGE = make_image({"bin/": b"", "bin/noise": NOISE}, {"etc/": b"", "etc/motd": b"hello"})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with real_registry(tmp_path_factory.mktemp("registry")) as registry:
        registry.push(IMAGE, "latest", "1.0")
        yield registry


def test_an_image_comes_whole(registry: Running, stored: StoreFolder) -> None:
    steps: list[ImageProgress] = []
    name = f"{registry.address}/team/app"
    image = pull(name, store=stored.store, progress=steps.append)
    assert (image.id, image.record.digest) == (IMAGE.id, IMAGE.digest)
    assert NOISE[: 64 << 10] in Path(image.path).read_bytes()
    assert pull(f"{name}:1.0", store=stored.store).id == image.id
    assert pull(f"{name}@{IMAGE.digest}", store=stored.store).id == image.id
    assert stored.store.find(name).names == tuple(
        sorted((f"{name}:latest", f"{name}:1.0", f"{name}@{IMAGE.digest}"))
    )
    log = registry.log.read_text()
    for digest in IMAGE.layers:
        assert log.count(f'"GET /v2/team/app/blobs/{digest}') <= 1


def test_a_docker_manifest_and_an_index(registry: Running, stored: StoreFolder) -> None:
    docker = make_image({"a": b"docker"}, media_type=DOCKER_MANIFEST)
    arm = make_image({"a": b"arm"}, architecture="arm64")
    registry.push(docker, "docker")
    registry.push(arm, "arm")
    index = make_index((arm, "linux", "arm64"), (docker, "linux", "amd64"))
    registry.push_manifest(index, OCI_INDEX, "many")
    name = f"{registry.address}/team/app"
    assert pull(f"{name}:docker", store=stored.store).id == docker.id
    assert pull(f"{name}:many", store=stored.store).id == docker.id
    assert pull(f"{name}:many", store=stored.store, platform="linux/arm64").id == arm.id
    with pytest.raises(ImageError, match="not made for linux/s390x, but for linux/amd64"):
        pull(f"{name}:many", store=stored.store, platform="linux/s390x")
    with pytest.raises(RegistryError, match="has no such manifest of team/app"):
        pull(f"{name}:none", store=stored.store)


def test_a_download_is_gone_on_with(registry: Running, stored: StoreFolder) -> None:
    layer = IMAGE.layers[0]
    partial = stored.images / "partial" / layer[7:]
    partial.write_bytes(IMAGE.blobs[layer][:200_000])
    steps: list[ImageProgress] = []
    pull(f"{registry.address}/team/app", store=stored.store, progress=steps.append)
    first = next(step for step in steps if step.stage == "download")
    assert first.done >= 200_000 or 0 < first.done < 1000  # or the small layer was faster
    assert f'"GET /v2/team/app/blobs/{layer} HTTP/1.1" 206' in registry.log.read_text()


def test_a_registry_with_passwords(stored: StoreFolder, tmp_path: Path) -> None:
    with registry_with_password(tmp_path / "registry") as registry:
        registry.push(IMAGE)
        name = f"{registry.address}/team/app"
        with pytest.raises(RegistryError, match="wants a user and a password: docker login"):
            pull(name, store=stored.store)
        log_in(tmp_path, registry.address, password="wrong")
        with pytest.raises(RegistryError, match="refuses: there is no team/app, or it is not for"):
            pull(name, store=stored.store)
        log_in(tmp_path, registry.address)
        assert pull(name, store=stored.store).id == IMAGE.id


def test_a_registry_with_tokens(stored: StoreFolder, tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path / "keys")

    def give(handler: Handler, request: Request) -> bool:
        assert request.query["service"] == ["the-service"]
        assert request.query["scope"] == ["repository:team/app:pull"]
        token = make_token(key, certificate, "the-service", "team/app", "pull")
        handler.reply(200, f'{{"token":"{token}","expires_in":60}}'.encode())
        return True

    with fake_registry() as tokens:
        tokens.on("/token", give)
        auth = {
            "token": {
                "realm": f"http://{tokens.address}/token", "service": "the-service",
                "issuer": "tests", "rootcertbundle": str(certificate),
            }
        }  # fmt: skip
        push = make_token(key, certificate, "the-service", "team/app", "pull", "push")
        headers = {"Authorization": f"Bearer {push}"}
        with real_registry(tmp_path / "registry", auth=auth, headers=headers) as registry:
            registry.push(IMAGE)
            log_in(tmp_path, registry.address)
            assert pull(f"{registry.address}/team/app", store=stored.store).id == IMAGE.id
            assert {request.authorization for request in tokens.requests} == set(LOGIN.values())
            with pytest.raises(RegistryError, match="gives no token: status 500|no token"):
                tokens.faults.clear()
                pull(f"{registry.address}/team/other", store=stored.store)


def test_a_registry_with_a_certificate(
    stored: StoreFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = make_certificate(tmp_path / "keys")
    with real_registry(tmp_path / "registry") as registry:
        registry.push(IMAGE)
    tls = {"certificate": str(certificate), "key": str(key)}
    with real_registry(tmp_path / "registry", tls=tls) as registry:
        name = f"{registry.address}/team/app"
        with pytest.raises(RegistryError) as error:
            pull(name, store=stored.store)
        assert "\n" not in str(error.value) and "SSL_CERT_FILE" in str(error.value)
        assert pull(name, store=stored.store, insecure=True).id == IMAGE.id
        stored.store.remove(name)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert pull(name, store=stored.store).id == IMAGE.id
