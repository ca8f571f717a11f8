"""Keys, settings, rules and viewers: what needs no server."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from tests.unit.sandbox.conftest import in_event_loop
from voidbox.agent.call import RequestFailed
from voidbox.errors import ConfigError
from voidbox.serve import bodies
from voidbox.serve.config import ServeConfig, parse_listen
from voidbox.serve.control.wishes import rules
from voidbox.serve.database import Database
from voidbox.serve.envd import files, viewers
from voidbox.serve.envd.viewers import TooSlow, Viewer
from voidbox.serve.errors import ApiError, SandboxGone
from voidbox.serve.keys import Keys
from voidbox.serve.marks import Mark, users_own

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("code", sorted({"EOPNOTSUPP", "ENOTSUP", errno.errorcode[95]}))
def test_a_file_system_without_metadata_is_told(code: str) -> None:
    told = files._as_api_error(RequestFailed(code, "/tmp/x: Operation not supported"))
    assert told.status == 400 and "keeps no metadata" in str(told)


@in_event_loop
async def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SILENCE_S", 0.2)
    came = [{"type": "http.request", "body": b"{", "more_body": True}] * 3

    async def receive() -> dict[str, Any]:
        if came:
            await asyncio.sleep(0.01)
            return came.pop()
        return await asyncio.Future()

    with pytest.raises(ApiError) as caught:
        await bodies.read_bytes(Request({"type": "http"}, receive))
    assert caught.value.status == 408 and not came


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(Database(str(tmp_path)))


def test_keys(keys: Keys, tmp_path: Path) -> None:
    key, secret = keys.add("laptop", ["run", "read"])
    assert secret.startswith("e2b_") and len(secret) == 44
    found = keys.find(secret)
    assert found is not None and (found.id, found.name) == (key.id, "laptop")
    assert keys.find(secret[:-1]) is None and keys.find("") is None
    assert keys.list()[0].last_used_at is not None
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in files and secret[4:].encode() not in files
    assert (tmp_path / "serve.sqlite").stat().st_mode & 0o777 == 0o600
    for name, scopes in (
        ("laptop", ["run"]),
        ("a b", ["run"]),
        ("", ["run"]),
        ("x", ["all"]),
        ("x", []),
    ):
        with pytest.raises(ConfigError):
            keys.add(name, scopes)
    keys.remove("laptop")
    assert keys.find(secret) is None and keys.list() == []
    with pytest.raises(ConfigError, match="no key called"):
        keys.remove("laptop")


def test_scopes(keys: Keys) -> None:
    run, read, admin = (keys.add(scope, [scope])[0] for scope in ("run", "read", "admin"))
    assert run.may("run") and run.may("read") and not run.may("admin")
    assert read.may("read") and not read.may("run")
    assert admin.may("run") and admin.sees(run.id) and not run.sees(admin.id)


def test_the_database_outlives_its_server_and_knows_newer_ones(tmp_path: Path) -> None:
    first = Database(str(tmp_path))
    secret = first.secret()
    first.set_end("a" * 12, 5.0)
    first.audit("me", "create", "a" * 12)
    second = Database(str(tmp_path))  # the first one was never closed
    assert second.secret() == secret and second.ends() == {"a" * 12: 5.0}
    assert second.audit_lines(5)[0][1:4] == ("me", "create", "a" * 12)
    second.set_end("a" * 12, None)
    assert first.ends() == {}
    second.run("PRAGMA user_version=9")
    with pytest.raises(ConfigError, match="newer voidbox"):
        Database(str(tmp_path))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "serve.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(ConfigError, match="cannot use") as caught:
        Database(str(tmp_path / "odd"))
    assert isinstance(caught.value.__cause__, sqlite3.Error)


def test_marks() -> None:
    mark = Mark("k", "base", names=("a",), network={"allowOut": ["x"]})
    metadata = {"a": "1", "left by a snapshot": "2", **mark.to_metadata()}
    found = Mark.of(metadata)
    assert found is not None and found.key_id == "k" and found.is_public
    assert users_own(metadata, found) == {"a": "1"}
    for odd in ("", "[]", "{}", '{"key_id": 1, "odd": 2}'):
        assert Mark.of({"voidbox.serve": odd}) is None
    assert Mark.of({}) is None


def test_where_to_listen() -> None:
    assert parse_listen("0.0.0.0:80") == ("0.0.0.0", 80)
    assert parse_listen("[::1]:80") == ("::1", 80)
    assert parse_listen(":80") == parse_listen("80") == ("127.0.0.1", 80)
    for wrong in ("", "x", "1.2.3.4:", "1.2.3.4:x", "1.2.3.4:70000"):
        with pytest.raises(ConfigError):
            parse_listen(wrong)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.com"])
def test_other_addresses_want_tls(host: str) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        ServeConfig(host=host).check()
    ServeConfig(host=host, is_insecure=True).check()
    ServeConfig(host=host, tls_cert="c", tls_key="k").check()
    with pytest.raises(ConfigError, match="both"):
        ServeConfig(tls_cert="c").check()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_wants_none(host: str) -> None:
    ServeConfig(host=host).check()


@pytest.mark.parametrize(
    ("network", "internet", "wanted"),
    [
        ({}, True, {}),
        ({}, False, {"deny": ["*"]}),
        ({"denyOut": ["0.0.0.0/0"]}, True, {"deny": ["*"]}),
        ({"denyOut": ["10.0.0.0/8"]}, True, {"deny": ["10.0.0.0/8"]}),
        ({"allowOut": ["example.com"]}, False, {"allow": ["example.com"]}),
        ({"allowOut": ["1.1.1.1"], "denyOut": ["0.0.0.0/0"]}, True, {"allow": ["1.1.1.1"]}),
        ({"allowOut": ["1.1.1.1"]}, True, {}),  # all is open
        ({"allowOut": None, "denyOut": []}, True, {}),
        ({"allowOut": ["a.example"]}, True, None),
        ({"denyOut": ["a.example"]}, True, None),
        ({"allowOut": ["1.1.1.1"], "denyOut": ["1.0.0.0/8"]}, True, None),
        ({"allowOut": "x"}, True, None),
        ({"httpsPorts": [443]}, True, None),
        ({"dnsServers": ["1.1.1.1"]}, True, None),
    ],
)
def test_rules(network: dict[str, Any], internet: bool, wanted: dict[str, Any] | None) -> None:
    if wanted is not None:
        assert rules(network, internet) == wanted
        return
    with pytest.raises(ApiError) as caught:
        rules(network, internet)
    assert caught.value.status in (400, 501)


@in_event_loop
async def test_a_viewer_gets_all_and_holds_up_who_writes() -> None:
    viewer = Viewer()
    big = (1, b"x" * (1 << 20))
    await viewer.put(big)
    second = asyncio.create_task(viewer.put((2, b"y")))
    await asyncio.sleep(0)
    assert not second.done()
    assert await viewer.next(60) == big
    await second
    assert await viewer.next(60) == (2, b"y")
    viewer.end()
    assert await viewer.next(60) is None
    await viewer.put((1, b"late"))  # nobody minds


@in_event_loop
async def test_a_viewer_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers, "_PATIENCE_S", 0.01)
    viewer = Viewer()
    await viewer.put((1, b"x" * (1 << 20)))
    await viewer.put((1, b"more"))
    assert await viewer.next(60) is not None
    with pytest.raises(TooSlow):
        await viewer.next(60)


@in_event_loop
async def test_a_viewer_of_a_sandbox_that_goes() -> None:
    viewer = Viewer()
    await viewer.put((1, b"last"))
    viewer.lose()
    assert await viewer.next(60) == (1, b"last")
    with pytest.raises(SandboxGone):
        await viewer.next(60)
    with pytest.raises(TimeoutError):
        await Viewer().next(0.01)
