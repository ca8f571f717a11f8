"""Secrets and rules as users write them; placeholders; streams that are searched. No I/O."""

from __future__ import annotations

import base64
import io
import random
import string
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox.errors import ConfigError
from voidbox.secrets.guard import check_open, places_of
from voidbox.secrets.http_rules import HttpRules, Refused, has_dots, parse_http_rule
from voidbox.secrets.masking import Finder, Masker
from voidbox.secrets.placeholder import make_placeholder
from voidbox.secrets.put_in import found_in, into_body, into_headers, into_query
from voidbox.secrets.spec import Kept, Place, Secret, check_value, parse_secret, resolve
from voidbox.secrets.vault import Held, Vault

LONG = "abcDEF0123456789abcDEF0123456789"


@pytest.mark.parametrize(
    ("text", "name", "value", "hosts", "in_body"),
    [
        ("K=v@a.test", "K", "v", ["a.test"], False),
        ("K=v@w@a.test", "K", "v@w", ["a.test"], False),
        ("K=a=b@a.test,b.test:8443", "K", "a=b", ["a.test", "b.test:8443"], False),
        ("K@a.test+body", "K", None, ["a.test"], True),
    ],
)
def test_what_users_write(
    text: str, name: str, value: str | None, hosts: list[str], in_body: bool
) -> None:
    assert parse_secret(text) == Secret(name, hosts, value, in_body)


def test_values_of_files_and_of_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    assert parse_secret(f"K=@{tmp_path}/key@a.test").value == "from-a-file"
    stdin = SimpleNamespace(buffer=io.BytesIO(b"from-stdin\r\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert parse_secret("K=-@a.test").value == "from-stdin"
    with pytest.raises(ConfigError, match="cannot read /nowhere"):
        parse_secret("K=@/nowhere@a.test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("K=verysecretvalue", "write NAME=VALUE@HOST"),
        ("K=verysecretvalue@", "write NAME=VALUE@HOST"),
        ("@a.test", "write NAME=VALUE@HOST"),
        ("K=verysecretvalue@*", "name each host"),
        ("K=verysecretvalue@*.a.test", "name each host"),
        ("K=verysecretvalue@192.0.2.1", "is an address"),
        ("K=verysecretvalue@192.0.2.0/24", "is an address"),
        ("K=verysecretvalue@[::1]", "IPv4"),
        ("K=verysecretvalue@https://a.test", "URL"),
        ("K=verysecretvalue@a.test:8000-8001", "one port"),
        ("K=verysecretvalue@a.test:0", "no port"),
        ("K=verysecretvalue@a.test,", "name a host"),
        ("K=@a.test", "is empty"),
        ("1K=verysecretvalue@a.test", "such a variable"),
        ("K=very\nsecretvalue@a.test", "line breaks"),
        ("K=verysecretvalue @a.test", "blanks around it"),
        ("K=" + "verysecretvalue" * 70000 + "@a.test", "16 KiB"),
        ("NOT_SET@a.test", "no variable NOT_SET"),
    ],
)
def test_bad_secrets_get_one_line_without_the_value(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([parse_secret(text)], {})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value) and "secretvalue" not in str(caught.value)


def test_a_name_given_twice_and_other_mistakes() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        resolve([Secret("K", ["a.test"], "v"), Secret("K", ["b.test"], "v")])
    with pytest.raises(ConfigError, match="list of Secret"):
        resolve(["K=v@a.test"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="list of 1 to 32 hosts"):
        resolve([Secret("K", "a.test", "v")])
    with pytest.raises(ConfigError, match="no text"):
        check_value("K", b"v")


def test_hosts_that_the_network_closes_are_known_before() -> None:
    (kept,), _ = resolve([Secret("K", ["a.test"], LONG)])
    check_open(kept.places, {"allow": ["*.test"]})
    with pytest.raises(ConfigError, match="closed by the network's rules"):
        check_open(kept.places, {"allow": ["b.test"]})
    with pytest.raises(ConfigError, match="closed by the network's rules"):
        check_open(kept.places, {"deny": ["a.test"]})
    with pytest.raises(ConfigError, match="has none"):
        check_open(kept.places, None)


def test_the_host_itself_is_open_by_its_ports_alone() -> None:
    (kept,), _ = resolve([Secret("K", ["host.voidbox.internal:8080"], LONG)])
    check_open(kept.places, {"allow": ["*"], "allow_host_ports": [8080]})
    for net in ({"allow": ["*"]}, {"allow": ["*"], "allow_host_ports": [443]}):
        with pytest.raises(ConfigError, match="this host, and closed by the network's rules"):
            check_open(kept.places, net)


def test_the_record_has_the_placeholder_alone() -> None:
    (kept,), values = resolve([Secret("K", ["A.test", "a.test."])], {"K": LONG})
    assert values == {"K": LONG} and LONG not in str(kept.to_json())
    assert kept.places == (Place("a.test", 443),)
    assert Kept.from_json(kept.to_json()) == kept
    with pytest.raises(ConfigError, match="makes no sense"):
        Kept.from_json({"name": "K"})


@given(st.text(string.ascii_letters + string.digits + "-_./+=:", min_size=1, max_size=2000))
def test_placeholders_have_the_value_s_shape_and_nothing_else_of_it(value: str) -> None:
    found = make_placeholder(value)
    assert found.isascii() and found.isprintable() and found != value
    assert all(letter.isalnum() or letter in "-_." for letter in found)
    if not found.startswith("voidbox-"):
        assert len(found) == min(len(value), 512)


def test_known_beginnings_stay() -> None:
    for prefix in ("sk-ant-api03-", "ghp_", "github_pat_", "xoxb-", "AKIA"):
        assert make_placeholder(prefix + LONG).startswith(prefix)
    assert not make_placeholder("hunter-" + LONG).startswith("hunter-")


# Rules.


@pytest.mark.parametrize(
    ("rule", "method", "path", "is_allowed"),
    [
        ("GET a.test/repos/acme/*", b"GET", b"/repos/acme/x/y", True),
        ("GET a.test/repos/acme/*", b"GET", b"/repos/acme", False),
        ("GET a.test/repos/acme/*", b"GET", b"/repos/acmex/", False),
        ("GET a.test/repos/acme/*", b"POST", b"/repos/acme/x", False),
        ("GET a.test/repos/acme/*", b"get", b"/repos/acme/x", False),
        ("GET a.test/repos/acme/*", b"GET", b"/repos/acme/../other", False),
        ("GET a.test/repos/acme/*", b"GET", b"/repos/acme/%2e%2e/other", False),
        ("GET a.test/repos/acme/*", b"GET", b"/repos/acme/..%2fother", False),
        ("GET a.test/repos/acme/*", b"GET", b"/repos/acme/%252e%252e/other", False),
        ("GET a.test/repos/acme/*", b"GET", b"/repos/acme/..\\other", False),
        ("GET a.test/repos/acme/*", b"GET", b"/repos/acme/..;/other", False),
        ("GET a.test/repos/acme/*", b"GET", b"//repos/acme/x", False),
        ("GET a.test/repos/acme/*", b"GET", b"/repos/acme/...", True),
        ("a.test", b"DELETE", b"/anything", True),
        ("GET,HEAD a.test/a*c", b"HEAD", b"/abbc", True),
        ("GET,HEAD a.test/a*c", b"HEAD", b"/ab%63", False),
        ("GET a.test/@scope%2fname", b"GET", b"/@scope%2fname", False),
        ("GET a.test/@scope*name", b"GET", b"/@scope%2fname", True),
        ("GET a.test/x", b"GET", b"/" + b"x" * 9000, False),
    ],
)
def test_methods_and_paths(rule: str, method: bytes, path: bytes, is_allowed: bool) -> None:
    found = HttpRules([rule]).admit("a.test", method, path, 0.0)
    assert (found == 0) if is_allowed else (isinstance(found, Refused) and found.status == 403)


def test_hosts_without_rules_pass() -> None:
    assert HttpRules(["GET a.test/x"]).admit("b.test", b"PUT", b"/", 0.0) is None


def test_requests_a_minute() -> None:
    rules = HttpRules(["GET a.test/* 2/min"])
    assert [rules.admit("a.test", b"GET", b"/", now) for now in (100.0, 101.0)] == [0, 0]
    refused = rules.admit("a.test", b"GET", b"/", 110.0)
    assert isinstance(refused, Refused) and refused.status == 429 and refused.retry_s == 51
    assert rules.admit("a.test", b"GET", b"/", 161.0) == 0


def test_bytes_a_minute() -> None:
    rules = HttpRules(["a.test 1K/min"])
    number = rules.admit("a.test", b"GET", b"/", 0.0)
    assert isinstance(number, int)
    assert rules.count(number, 1000, 1.0) == 0.0
    assert rules.count(number, 100, 11.0) == pytest.approx(49.0, abs=12)
    assert rules.count(number, 100, 90.0) == 0.0
    assert rules.count(None, 1 << 40, 90.0) == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write"),
        ("get a.test/", "no method"),
        ("GET https://a.test/", "a host and a path"),
        ("GET a.test/?q", "a host and a path"),
        ("GET a.test/../x", "no . or .."),
        ("GET *.a.test/", "name each host"),
        ("GET 192.0.2.1/", "address"),
        ("a.test 0/min", "60/min"),
        ("a.test 5/min 6/min", "one limit"),
        ("a.test 5X/min", "10M/min"),
        ("GET a.test/ b c", "write"),
    ],
)
def test_bad_rules_get_one_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_http_rule(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_is_no_list_of_rules() -> None:
    with pytest.raises(ConfigError, match="a list of rules"):
        HttpRules("GET a.test/")
    assert places_of([], ["GET a.test:8443/x"]) == [Place("a.test", 8443)]


def test_dots_however_encoded() -> None:
    assert has_dots(b"/a/%25%32%65%25%32%65/b") and not has_dots(b"/a/b.c/..d")


# Streams.


@given(st.data())
def test_masking_does_not_depend_on_the_pieces(data: st.DataObject) -> None:
    values = [b"secretsecret", b"secrets-of-others", b"aaaaaaaaab"]
    parts = st.sampled_from([*values, b"secret", b"a" * 9, b"a", b"se", b"other"])
    text = b"".join(data.draw(st.lists(parts, max_size=20)))
    masks = [(value, b"*" * len(value)) for value in values]
    whole = Masker(masks)
    expected = whole.feed(text) + whole.end()
    assert not any(value in expected for value in values) and len(expected) == len(text)
    pieces, masker, out = random.Random(data.draw(st.integers())), Masker(masks), b""
    while text:
        size = pieces.randint(1, 9)
        out += masker.feed(text[:size])
        text = text[size:]
    out += masker.end()
    assert len(out) == len(expected) and not any(value in out for value in values)


def test_what_cannot_begin_a_secret_is_not_held_back() -> None:
    masker = Masker([(b"secretsecret", b"*" * 12)])
    assert masker.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert masker.feed(b"data: sec") == b"data: "
    assert masker.feed(b"ond\n") == b"second\n"
    assert Masker([(b"short", b"*****")]).feed(b"short") == b"short"


def test_a_finder_finds_each_once_across_pieces() -> None:
    finder = Finder([b"needle", b"pin"])
    assert [finder.feed(part) for part in (b"a nee", b"dle and a pin", b" and a needle")] == [
        [],
        [b"needle", b"pin"],
        [],
    ]


# What is put in where.


def held(value: str) -> list[Held]:
    return [Held("K", b"PLACEHOLDER", value.encode(), frozenset(), True)]


def test_each_part_has_its_own_way_of_writing() -> None:
    one = held('a"b&c d')
    assert into_query(b"/PLACEHOLDER?k=PLACEHOLDER", one) == b"/PLACEHOLDER?k=a%22b%26c%20d"
    assert into_body(b'{"k":"PLACEHOLDER"}', b"application/json; x", one) == b'{"k":"a\\"b&c d"}'
    assert into_body(b"k=PLACEHOLDER", b"application/x-www-form-urlencoded", one) == (
        b"k=a%22b%26c%20d"
    )
    assert into_body(b"PLACEHOLDER", b"", one) == b'a"b&c d'


def test_a_value_that_was_replaced_is_not_shown_either() -> None:
    kept, values = resolve(
        [Secret("K", ["a.test"]), Secret("L", ["b.test"])], {"K": LONG, "L": "l"}
    )
    vault = Vault(kept, values)
    longer = f"{LONG}-and-more"
    vault.set("K", longer)
    vault.set("K", longer)
    covers = {value: len(cover) for value, cover in vault.masks(Place("a.test", 443))}
    assert covers == {LONG.encode(): len(LONG), longer.encode(): len(longer)}
    assert vault.masks(Place("c.test", 443)) == []
    assert [one.name for one in vault.at(Place("b.test", 443))] == ["L"]
    assert vault.hide(f"{longer} {LONG}") == "[a secret] [a secret]"
    with pytest.raises(ConfigError, match="no secret 'M'; it has: K, L$"):
        vault.set("M", "x")


def test_a_placeholder_is_found_wherever_a_request_has_it() -> None:
    one = held("x")
    basic = b"Basic " + base64.b64encode(b"me:PLACEHOLDER")
    for target, headers in (
        (b"/?k=PLACEHOLDER", []), (b"/", [(b"a", b"PLACEHOLDER")]), (b"/", [(b"a", basic)]),
    ):  # fmt: skip
        assert found_in(target, headers, one) == {"K"}
    assert found_in(b"/", [(b"a", b"Basic x"), (b"b", b"y")], one) == set()


def test_what_frames_a_message_gets_no_secret() -> None:
    names = [b"Host", b"content-length", b"Transfer-Encoding", b"connection", b"upgrade"]
    headers = [(name, b"PLACEHOLDER") for name in names]
    assert into_headers(headers, held("x")) == headers
    assert into_headers([(b"a", b"Basic PLACEHOLDER")], held("x")) == [(b"a", b"Basic x")]
