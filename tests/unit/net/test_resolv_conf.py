"""resolv.conf(5): what is read of it, and that it is read again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox.nat import resolv_conf_file
from voidbox.nat.resolv_conf_file import NameServers, read_resolv_conf
from voidbox.net.resolv_conf import SEARCH_BYTES_MAX, SEARCH_MAX, parse_resolv_conf

S = 1_000_000_000


def test_resolv_conf() -> None:
    text = """
# comment
; nameserver 9.9.9.9
search example.com
nameserver 192.0.2.1
nameserver\t2001:db8::1   # trailing
 nameserver fe80::1%eth0
nameserver 192.0.2.1
nameserver 192.0.2.4
"""
    conf = parse_resolv_conf(text)
    assert conf.servers == ("192.0.2.1", "2001:db8::1", "fe80::1%eth0")
    assert conf.search == ("example.com",)


@pytest.mark.parametrize(
    "text",
    [
        "", "nameserver", "nameserver ", "nameserver dns.example", "nameserver 1.2.3",
        "nameserver 1.2.3.4.5", "nameserver ::g", "nameserver 1.2.3.4:53", "#nameserver 1.2.3.4",
        "nameservers 1.2.3.4", "options edns0", "\0",
    ],
)  # fmt: skip
def test_resolv_conf_without_servers(text: str) -> None:
    assert parse_resolv_conf(text).servers == ()
    assert parse_resolv_conf(text + "\r\nnameserver 192.0.2.7\r\n").servers == ("192.0.2.7",)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_resolv_conf(text: str) -> None:
    parse_resolv_conf("nameserver " + text)
    for name in parse_resolv_conf("search " + text).search:
        assert name.isascii() and not set(name) & set(" ,;\n\0")


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("search a.example b.example.", ("a.example", "b.example")),
        ("domain a.example b.example", ("a.example",)),
        ("search a.example\ndomain b.example", ("b.example",)),
        ("domain b.example\nsearch a.example c.example", ("a.example", "c.example")),
        ("search a.example\nsearch", ("a.example",)),
        ("search . -a a- a..b a_b " + "x" * 64 + " a,b a\u00e4 ok", ("a_b", "ok")),
        ("search a a b a", ("a", "b")),
        ("search " + " ".join(f"d{n}" for n in range(20)),
         tuple(f"d{n}" for n in range(SEARCH_MAX))),
        ("search " + " ".join(f"{'y' * 60}.{'x' * 60}.{n}" for n in range(3)),
         tuple(f"{'y' * 60}.{'x' * 60}.{n}" for n in range(2))),
        ("search " + ".".join(["x" * 60] * 5) + " short", ("short",)),
    ],
)  # fmt: skip
def test_search_domains(text: str, search: tuple[str, ...]) -> None:
    assert parse_resolv_conf(text).search == search
    assert len(" ".join(search)) <= SEARCH_BYTES_MAX


def test_the_file_is_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    monkeypatch.setattr(resolv_conf_file, "RESOLV_CONF", str(path))
    servers = NameServers(None)
    assert servers.places == [] and servers.refresh(0) is None
    path.write_text("nameserver 192.0.2.1\n")
    assert servers.refresh(S // 2) is None  # once a second
    assert servers.refresh(S) == 1
    assert servers.places == [("192.0.2.1", 53)]
    assert servers.refresh(2 * S) is None
    path.unlink()
    assert servers.refresh(3 * S) is None  # somebody is about to write it anew
    assert servers.places == [("192.0.2.1", 53)]
    assert read_resolv_conf().servers == ()
    path.symlink_to(tmp_path / "elsewhere")
    assert servers.refresh(4 * S) is None
    (tmp_path / "elsewhere").write_text("nameserver 192.0.2.2\nnameserver ::1\n")
    assert servers.refresh(5 * S) == 2
    assert servers.places == [("192.0.2.2", 53), ("::1", 53)]
    # The same size, in place.
    (tmp_path / "elsewhere").write_text("nameserver 192.0.2.3\nnameserver ::1\n")
    os.utime(tmp_path / "elsewhere", ns=(0, 1))
    assert servers.refresh(6 * S) == 2
    assert servers.places[0] == ("192.0.2.3", 53)
    os.utime(tmp_path / "elsewhere", ns=(0, 2))
    assert servers.refresh(7 * S) is None  # touched, no more


def test_resolvers_that_are_given_stay() -> None:
    servers = NameServers((("192.0.2.1", 5353),))
    assert servers.places == [("192.0.2.1", 5353)] and servers.refresh(S) is None
