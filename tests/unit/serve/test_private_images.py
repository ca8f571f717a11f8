"""Images that a client's own user and password bring: from a registry, for that client alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.images.oci import make_image
from tests.unit.images.real_registry import LOGIN, PROGRAM, registry_with_password
from tests.unit.serve.conftest import StandIn, server
from tests.unit.serve.test_builds import new, start, wait
from voidbox.images.reference import parse_reference
from voidbox.images.store import ImageStore
from voidbox.serve.builds.private_images import is_private, may_use, reference_of
from voidbox.serve.keys import Key

__all__ = ["server"]

IMAGE = make_image({"etc/": b"", "etc/secret": b"of the team"})
PASSWORD = "secret"


def key_of(id: str, *scopes: str) -> Key:
    return Key(id, id, scopes or ("run",), 0.0, None)


def test_whose_an_image_is() -> None:
    mine, other, boss = key_of("aa11"), key_of("bb22"), key_of("cc33", "admin")
    name = reference_of(mine, parse_reference("registry.example/team/app:2")).name
    assert is_private(name) and not is_private("docker.io/library/python:3")
    assert parse_reference(name).name == name
    assert may_use(mine, [name]) and may_use(boss, [name]) and not may_use(other, [name])
    theirs = reference_of(other, parse_reference("registry.example/team/app:2")).name
    assert theirs != name and may_use(other, [name, theirs])
    assert may_use(other, [name, "docker.io/library/app:2"])  # it is everybody's, too
    assert may_use(other, [])
    tagged = reference_of(mine, parse_reference("registry.example/team/app:3")).name
    assert tagged != name


@pytest.mark.slow
def test_an_image_for_who_has_the_password(server: StandIn, tmp_path: Path) -> None:
    if not PROGRAM.exists():
        pytest.skip("make registry fetches a registry")
    with registry_with_password(tmp_path / "registry") as registry:
        registry.push(IMAGE)
        name = f"{registry.address}/team/app"

        def build(**login: str) -> tuple[str, list[str]]:
            made = new(server, "private")
            wish = {"fromImageRegistry": {"type": "registry", **login}} if login else {}
            answer = start(server, made, fromTemplate=None, fromImage=name, **wish)
            assert answer.status == 202, answer
            found = wait(server, made)
            return found["reason"]["message"], [one["message"] for one in found["logEntries"]]

        why, _ = build()
        assert "wants a user and a password" in why
        why, _ = build(username="me", password="wrong")
        assert "refuses" in why and "wrong" not in why
        store = ImageStore(str(server.folder / "state"))
        assert store.list()[0] == []
        # The stand-in's machine boots no image's disk; that it was brought is what counts.
        _, lines = build(username="me", password=PASSWORD)
        assert f"pulling {name}:latest" in lines and f"FROM {name}" in lines, lines
        (image,) = store.list()[0]
        assert image.id == IMAGE.id and all(map(is_private, image.names))
        # Nobody else is told of it, and nobody else's template it is, by no name of it.
        other = server.add_key("other-team", "run")
        for key in (server.key, other):
            listed = [one["templateID"] for one in server.api("GET", "/templates", key=key).json]
            assert not any("voidbox" in one for one in listed)
        for word in (image.names[0], image.id, image.id[7:20], name):
            wish = {"templateID": word}
            assert server.api("POST", "/v2/sandboxes", wish, other).status == 404, word
            path = f"/templates/aliases/{word}"
            assert server.api("GET", path, key=other).status == 404, word
        assert server.api("GET", f"/templates/aliases/{image.names[0]}").status == 200
        # Who has no password (any more) does not get it because it is here.
        why, _ = build(username="me", password="wrong")
        assert "refuses" in why
        why, _ = build()
        assert "wants a user and a password" in why
    header = LOGIN["Authorization"].partition(" ")[2].encode()
    files = [file for file in (server.folder / "state").rglob("*") if file.is_file()]
    assert files and not any(header in file.read_bytes() for file in files)
    assert PASSWORD not in server.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("registry", "status"),
    [
        ({"type": "aws", "awsAccessKeyId": "a", "awsSecretAccessKey": "b"}, 501),
        ({"type": "other"}, 501),
        ({"type": "registry"}, 400),
        ({"type": "registry", "username": "", "password": "x"}, 400),
        ({"type": "registry", "username": "a:b", "password": "x"}, 400),
        ({"type": "registry", "username": "a", "password": "x\ny"}, 400),
        ({"type": "registry", "username": "a", "password": "x" * 20_000}, 400),
        ({"type": "registry", "username": "a", "password": "x", "token": "y"}, 501),
        ({"type": "gcp", "serviceAccountJson": "no json"}, 400),
        ({"type": "gcp", "serviceAccountJson": "{}"}, 400),
        ("registry", 400),
    ],
)
def test_what_is_no_login(server: StandIn, registry: object, status: int) -> None:
    made = new(server, "wrong")
    wish = {"fromTemplate": None, "fromImage": "127.0.0.1:1/app", "fromImageRegistry": registry}
    answer = start(server, made, **wish)
    assert answer.status == status and answer.json["message"], answer
    assert start(server, made, fromImageRegistry={"type": "registry"}).status == 400
