"""A guard in a keeper: which of a guest's connections it gets, by the names of hosts."""

from __future__ import annotations

import errno
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.secrets.conftest import VALUE
from tests.unit.secrets.servers import exchange, https_server, make_ca, trusting
from voidbox.errors import AgentError, ConfigError
from voidbox.event_loop import EventLoop
from voidbox.nat.config import NatConfig
from voidbox.sandbox.guarding import FILE, authority_files, guard, guarded_of
from voidbox.sandbox.keeper import channel
from voidbox.sandbox.keeper.kept_secrets import KeptSecrets
from voidbox.sandbox.keeper.network import QUERY, NetworkKeeper
from voidbox.sandbox.keeper.trust import Trusted, install
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.secrets.authority import Authority, issue, make_authority
from voidbox.secrets.guard import Guard
from voidbox.secrets.spec import Secret, resolve

GATEWAY, LOOPBACK, FAR = 0x0A000202, 0x7F000001, 0xC0000221  # 10.0.2.2, 127.0.0.1, 192.0.2.33
HOST = "host.voidbox.internal"


class Kept:
    """A keeper's network with a guard, as its worker asks it."""

    def __init__(self, ca: Authority, port: int, http: tuple[str, ...]) -> None:
        kept, values = resolve([Secret("API_KEY", [f"{HOST}:{port}"], VALUE)])
        self.placeholder = kept[0].placeholder
        self.authority = make_authority([HOST])
        self.guard = Guard(kept, values, http, self.authority, None, "box", print, trusting(ca))
        self.errors: list[BaseException] = []
        self.loop = EventLoop(on_error=self.errors.append)
        self._queries = channel.pair()
        config = NatConfig(allow_host_ports=(port,), resolvers=(("127.0.0.1", 9),))
        self.network = NetworkKeeper(config, self.loop, self._queries[1], print, self.guard)

    def connect(self, kind: int, address: int, port: int) -> tuple[dict[str, Any], Any]:
        return self.network.answer(
            "connect", {"kind": kind, "protocol": 0, "address": address, "port": port}
        )

    def https_records(self, name: str) -> bytes | None:
        """Ask for a name's HTTPS records; return what is answered at once, if anything."""
        labels = b"".join(bytes([len(part)]) + part for part in name.encode().split(b"."))
        query = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + labels + b"\0\0\x41\0\x01"
        self._queries[0].send(QUERY.pack(1, 0) + query)
        self.network._take_queries()
        self._queries[0].setblocking(False)
        try:
            return self._queries[0].recv(4096)[QUERY.size :]
        except BlockingIOError:
            return None

    def close(self) -> None:
        self.network.close()
        self.loop.close()
        for sock in self._queries:
            sock.close()
        assert not self.errors


@pytest.fixture(scope="module")
def world_ca() -> Authority:
    return make_ca(HOST)


@pytest.fixture
def kept(world_ca: Authority) -> Iterator[Any]:
    found = []

    def make(port: int, http: tuple[str, ...] = ()) -> Kept:
        found.append(Kept(world_ca, port, http))
        return found[-1]

    yield make
    for one in found:
        one.close()


def test_a_guarded_connection_is_a_unix_socket_that_the_guard_serves(
    kept: Any, world_ca: Authority
) -> None:
    with https_server(issue(world_ca, HOST)) as server:
        one = kept(server.port)
        answer, sock = one.connect(socket.SOCK_STREAM, LOOPBACK, server.port)
        assert answer == {"errno": 0, "is_guarded": True} and sock.family == socket.AF_UNIX
        trust = ssl.create_default_context(cadata=one.authority.certificate)
        sock.setblocking(True)
        with trust.wrap_socket(sock, server_hostname=HOST) as guest:
            told = exchange(
                guest,
                b"GET /echo HTTP/1.1\r\nHost: %s:%d\r\nX-Api-Key: %s\r\nConnection: close\r\n\r\n"
                % (HOST.encode(), server.port, one.placeholder.encode()),
            )
        assert b" 200 " in told and VALUE.encode() not in told
        assert server.seen.headers("x-api-key") == [VALUE]


def test_others_get_the_socket_itself(kept: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        one = kept(port)
        one.guard._addresses.clear()  # no name of a guarded host leads there
        answer, sock = one.connect(socket.SOCK_STREAM, LOOPBACK, port)
        assert answer == {"errno": 0} and sock.family == socket.AF_INET
        sock.close()


def test_http3_is_no_way_around(kept: Any) -> None:
    one = kept(4433)
    answer, sock = one.connect(socket.SOCK_DGRAM, LOOPBACK, 4433)
    assert answer == {"errno": errno.EACCES} and sock is None


def test_with_rules_every_connection_to_the_port_is_looked_at(kept: Any) -> None:
    one = kept(4433, ("GET api.test/*",))
    assert one.guard.takes(FAR, 443) and one.guard.takes(FAR, 4433)
    assert not one.guard.takes(FAR, 22) and not one.guard.takes(FAR, 80)
    one.guard.note("API.test.", [FAR])
    assert one.guard.takes(FAR, 80) and one.guard.refuses_datagrams(FAR, 443)


def test_keys_that_hide_a_name_do_not_reach_the_guest(kept: Any) -> None:
    """ECH's keys are in HTTPS records, with addresses that no name is known of."""
    one = kept(4433, ("GET api.test/*",))
    answer = one.https_records("api.test")
    assert answer is not None and answer[3] & 15 == 0 and answer[6:8] == b"\0\0"
    assert one.https_records("elsewhere.test") is None  # its name server is asked


def make_record(**values: Any) -> SandboxRecord:
    fields = {"name": "box", "kernel": "/k", "image": "/i", "memory_bytes": 1 << 28, "cpus": 1}
    net: dict[str, object] = {"allow": [], "deny": [], "allow_host_ports": [], "publish": []}
    return SandboxRecord(**{**fields, "envs": {}, "metadata": {}, "net": net, **values})


def test_a_record_says_all_but_the_value() -> None:
    secret = Secret("API_KEY", ["api.test"], VALUE)
    record, values = guard(make_record(envs={"PIP_CERT": "/own"}), [secret], ["GET api.test/*"])
    assert values == {"API_KEY": VALUE}
    assert VALUE not in json.dumps(record.to_json())
    assert record.envs["API_KEY"].startswith("sk-ant-api03-")
    assert record.envs["PIP_CERT"] == "/own" and record.envs["SSL_CERT_FILE"]
    again = SandboxRecord.from_json(record._replace(id="0" * 12).to_json())
    assert guarded_of(again) == guarded_of(record)
    # Restored: values may be given, and nothing else.
    assert guard(record, [secret], None) == (record, values)
    with pytest.raises(ConfigError, match="only values can be given"):
        guard(record, [Secret("API_KEY", ["evil.test"], VALUE)], None)
    with pytest.raises(ConfigError, match="this sandbox has none"):
        guard(make_record(net=None), [secret], None)


def test_the_authority_stays_and_goes_along_with_snapshots(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"))
    record, _ = guard(make_record(), [Secret("API_KEY", ["api.test"], VALUE)], None)
    first = store.create(record)
    one = KeptSecrets(store, first, None)
    files = authority_files(store.path(first.id))
    assert list(files) == [FILE] and VALUE.encode() not in files[FILE]
    (tmp_path / FILE).write_bytes(files[FILE])  # a snapshot's folder
    second = store.create(record._replace(name="other"))
    KeptSecrets(store, second, str(tmp_path))
    assert authority_files(store.path(second.id)) == files
    handlers = one.handlers()
    listed: Any = handlers["secret_list"]({})
    assert [info["has_value"] for info in listed["secrets"]] == [False]
    handlers["secret_set"]({"name": "API_KEY", "value": VALUE})
    assert handlers["secret_copy"]({}) == {"values": {"API_KEY": VALUE}}
    with pytest.raises(ConfigError, match="no secret 'NOPE'"):
        handlers["secret_set"]({"name": "NOPE", "value": VALUE})
    for folder in store.folder, tmp_path:
        for path in Path(folder).rglob("*"):
            assert not path.is_file() or VALUE.encode() not in path.read_bytes()


class Guest:
    """An agent's client over a folder that stands for a guest's root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def read_file(self, path: str, output: Any, user: str | None = None) -> None:
        from voidbox.agent.call import RequestFailed

        if not self._at(path).is_file():
            raise RequestFailed("ENOENT", path)
        output.write(self._at(path).read_bytes())

    def write_file(self, path: str, source: Any, user: str | None = None, mode: int = 0) -> None:
        from voidbox.agent.call import RequestFailed

        try:
            self._at(path).write_bytes(source.read())
        except OSError as error:
            raise RequestFailed("EROFS", path) from error

    def make_dir(self, path: str, user: str | None = None) -> None:
        self._at(path).mkdir(parents=True, exist_ok=True)

    def stat(self, path: str, user: str | None = None) -> dict[str, str]:
        from voidbox.agent.call import RequestFailed

        if not self._at(path).is_dir():
            raise RequestFailed("ENOENT", path)
        return {"type": "folder"}


TRUSTED = Trusted(b"-- OURS --\n", "0a1b2c3d", b"-- THE HOST'S --\n")
LAYOUTS = {
    "Debian": ("etc/ssl/certs/ca-certificates.crt", "usr/local/share/ca-certificates"),
    "Alpine": ("etc/ssl/certs/ca-certificates.crt", "usr/local/share/ca-certificates"),
    "Fedora": (
        "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "etc/pki/ca-trust/source/anchors",
    ),
    "SUSE": ("var/lib/ca-certificates/ca-bundle.pem", "etc/pki/trust/anchors"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_distribution_s_trust_store(tmp_path: Path, name: str) -> None:
    bundle, anchors = LAYOUTS[name]
    (tmp_path / bundle).parent.mkdir(parents=True)
    (tmp_path / bundle).write_bytes(b"-- THE GUEST'S --\n")
    (tmp_path / anchors).mkdir(parents=True)
    client: Any = Guest(tmp_path)
    for _ in range(2):  # a restored guest is told again
        install(client, TRUSTED)
    for path in (bundle, "etc/ssl/voidbox/ca-bundle.pem"):
        content = (tmp_path / path).read_bytes()
        assert content.startswith(b"-- THE GUEST'S --\n")
        assert content.count(b"-- OURS --") == 1
    (anchor,) = (tmp_path / anchors).iterdir()
    assert anchor.read_bytes() == TRUSTED.certificate
    assert (tmp_path / "etc/ssl/voidbox/ca.pem").read_bytes() == TRUSTED.certificate
    if bundle.startswith("etc/ssl/certs"):
        assert (tmp_path / "etc/ssl/certs/0a1b2c3d.0").read_bytes() == TRUSTED.certificate


def test_a_guest_without_certificates_gets_the_host_s(tmp_path: Path) -> None:
    client: Any = Guest(tmp_path)
    install(client, TRUSTED)
    content = (tmp_path / "etc/ssl/voidbox/ca-bundle.pem").read_bytes()
    assert content.startswith(b"-- THE HOST'S --\n") and b"-- OURS --" in content


def test_a_guest_that_takes_no_certificate_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "etc/ssl/voidbox/ca.pem").mkdir(parents=True)
    client: Any = Guest(tmp_path)
    with pytest.raises(AgentError, match="cannot be made to trust"):
        install(client, TRUSTED)


def test_a_guest_s_bundle_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voidbox.sandbox.keeper.trust.BUNDLE_BYTES_MAX", 100)

    class Endless(Guest):
        def read_file(self, path: str, output: Any, user: str | None = None) -> None:
            while True:
                output.write(b"x" * 60)

    client: Any = Endless(tmp_path)
    with pytest.raises(AgentError, match="no end"):
        install(client, TRUSTED)
