"""What a guest may reach: rules read right, what is always closed, and names that pin addresses."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox.errors import ConfigError
from voidbox.net import policy as module
from voidbox.net.addresses import NetworkConfig, format_address, parse_address
from voidbox.net.policy import (
    ADDRESSES_PER_ANSWER_MAX,
    PIN_TTL_MAX_S,
    PIN_TTL_MIN_S,
    PINS_MAX,
    Policy,
)
from voidbox.net.rules import fold_name, parse_rule

S = 1_000_000_000
PUBLIC = "93.184.216.34"
U32 = st.integers(0, 0xFFFF_FFFF)
PORTS = st.integers(0, 65535)


def ip(text: str) -> int:
    return int(ipaddress.IPv4Address(text))


def may(policy: Policy, address: str, port: int = 443, now_ns: int = 0) -> bool:
    return policy.check("TCP", ip(address), port, now_ns).allowed


# Rules.


@pytest.mark.parametrize(
    ("rule", "right"),
    [
        ("", "write a name"),
        ("*.", "write a name"),
        ("*.*.com", "write a name"),
        ("ex*mple.com", "write a name"),
        ("a..b", "write a name"),
        (".example.com", "write a name"),
        ("-a.com", "write a name"),
        ("a-.com", "write a name"),
        ("a b.com", "write a name"),
        ("a\nb.com", "write a name"),
        ("x" * 64 + ".com", "write a name"),
        (".".join(["x" * 49] * 5) + ".long", "write a name"),  # 254
        ("bücher.example", "punycode"),
        ("\u212aernel.org", "punycode"),
        ("https://example.com", "URL"),
        ("::1", "IPv4"),
        ("[2001:db8::1]:80", "IPv4"),
        ("1.2.3", "four numbers"),
        ("1.2.3.256", "four numbers"),
        ("1.2.3.4.5", "four numbers"),
        ("01.2.3.4", "four numbers"),
        ("127.0x1", "four numbers"),
        ("1.2.3.\u0664", "punycode"),
        ("example.com/24", "four numbers"),
        ("*.1.2.3.4", "four numbers"),
        ("1.2.3.0/33", "/0 to /32"),
        ("1.2.3.0/", "/0 to /32"),
        ("1.2.3.0/-1", "/0 to /32"),
        ("1.2.3.4/24", "write '1.2.3.0/24'"),
        ("example.com:", "1 to 65535"),
        ("example.com:0", "1 to 65535"),
        ("example.com:65536", "1 to 65535"),
        ("example.com:80-", "1 to 65535"),
        ("example.com:90-80", "1 to 65535"),
        ("example.com:-80", "1 to 65535"),
        ("example.com:http", "1 to 65535"),
        ("example.com:8\u0660", "1 to 65535"),
        ("*:", "1 to 65535"),
    ],
)
def test_a_bad_rule_is_quoted_in_one_line_that_says_what_is_right(rule: str, right: str) -> None:
    for rules in ({"allow": [rule]}, {"deny": [rule]}):
        with pytest.raises(ConfigError) as caught:
            Policy(**rules)
        message = str(caught.value)
        assert message.startswith(f"rule {rule!r}: ")
        assert right in message
        assert "\n" not in message


def test_what_is_no_list_of_rules_or_ports() -> None:
    with pytest.raises(ConfigError, match="a list of rules"):
        Policy(allow="example.com")
    with pytest.raises(ConfigError, match="a rule is a string"):
        Policy(deny=[80])  # type: ignore[list-item]
    for port in (0, 65536, -1, "80"):
        with pytest.raises(ConfigError, match="no port"):
            Policy(allow_host_ports=[port])  # type: ignore[list-item]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | st.text("*.:/-0123456789abx", max_size=20))
def test_any_text_is_a_rule_or_a_config_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except ConfigError as error:
        assert repr(text) in str(error)
    else:
        assert rule.text == text
        assert rule.is_any + bool(rule.name) + rule.is_of_addresses == 1


@settings(deadline=None)
@given(st.text("0123456789.x ", max_size=16) | st.ip_addresses(v=4).map(str))
def test_addresses_are_those_of_the_standard_library(text: str) -> None:
    try:
        expected: int | None = ip(text)
    except ValueError:
        expected = None
    assert parse_address(text) == expected
    if expected is not None:
        assert format_address(expected) == text


@settings(deadline=None)
@given(U32, st.integers(0, 32), U32, st.integers(0, 0xFF))
def test_networks_are_those_of_the_standard_library(
    base: int, bits: int, address: int, near: int
) -> None:
    network = ipaddress.IPv4Network((base, bits), strict=False)
    rule = parse_rule(str(network))
    for each in (address, base ^ near):
        assert rule.matches(each, (), 80) == (ipaddress.IPv4Address(each) in network)


@pytest.mark.parametrize(
    ("rule", "name", "matches"),
    [
        ("example.com", "example.com", True),
        ("Example.COM.", "eXample.com.", True),
        ("example.com", "www.example.com", False),
        ("example.com", "badexample.com", False),
        ("example.com", "example.com.evil", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "a.b.c.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*.example.com", "x\\046example.com", False),
        ("*", "anything.at.all", True),
        ("*", "", True),
        ("example.com:443", "example.com", True),
        ("xn--bcher-kva.example", "XN--BCHER-KVA.example", True),
        ("_dmarc.example.com", "_dmarc.example.com", True),
        ("kernel.org", "\u212aernel.org", False),
        ("intranet", "intranet", True),
        ("3com", "3com", True),
        ("1.2.3.0/24", "example.com", False),
        ("0.0.0.0/0", "", False),
    ],
)
def test_names_that_a_rule_speaks_of(rule: str, name: str, matches: bool) -> None:
    assert parse_rule(rule).matches_name(fold_name(name)) == matches


@pytest.mark.parametrize(
    ("rule", "ports", "others"),
    [
        ("*", (0, 1, 65535), ()),
        ("*:443", (443,), (0, 442, 444)),
        ("*:8000-8002", (8000, 8001, 8002), (0, 7999, 8003)),
        ("192.0.2.1:1-65535", (1, 65535), (0,)),
    ],
)
def test_ports_that_a_rule_speaks_of(
    rule: str, ports: tuple[int, ...], others: tuple[int, ...]
) -> None:
    assert all(parse_rule(rule).matches_port(port) for port in ports)
    assert not any(parse_rule(rule).matches_port(port) for port in others)


# Addresses.


def test_without_rules_all_is_open_private_networks_too() -> None:
    for address in (PUBLIC, "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "223.255.0.1"):
        assert may(Policy(), address)


CLOSED = (
    *("0.0.0.0", "0.255.255.255", "127.0.0.1", "127.255.255.255"),
    *("169.254.0.0", "169.254.169.254", "169.254.170.2", "169.254.255.255"),
    *("100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("224.0.0.0", "239.255.255.255", "240.0.0.0", "255.255.255.254", "255.255.255.255"),
)


@pytest.mark.parametrize("address", CLOSED)
def test_closed_whatever_the_rules_say(address: str) -> None:
    rules = ["*", "0.0.0.0/0", address, f"{address}:80", "example.com", "*.example.com"]
    for policy in (Policy(), Policy(allow=rules)):
        # DNS rebinding: a name that is allowed and lies there.
        policy.pin("example.com", [ip(address)], 600, 0)
        policy.pin("www.example.com", [ip(address)], 600, 0)
        verdict = policy.check("TCP", ip(address), 80, 0)
        assert not verdict.allowed
        assert verdict.rule.startswith("closed: ")
        assert policy.statistics().refused == {verdict.rule: 1}


@settings(max_examples=300, deadline=None)
@given(U32 | st.sampled_from([ip(text) for text in CLOSED]), PORTS)
def test_open_is_no_more_than_what_leads_outside(address: int, port: int) -> None:
    verdict = Policy(allow=["*"]).check("TCP", address, port, 0)
    where = ipaddress.IPv4Address(address)
    if verdict.allowed and where not in ipaddress.IPv4Network("10.0.2.0/24"):
        assert not (where.is_loopback or where.is_link_local or where.is_multicast)
        assert not (where.is_unspecified or where.is_reserved or address >> 24 == 0)


def test_the_hosts_loopback_only_by_the_gateway_and_a_port_that_was_opened() -> None:
    policy = Policy(allow=["*", "10.0.2.2"], allow_host_ports=[8080])
    assert may(policy, "10.0.2.2", 8080)
    assert not may(policy, "10.0.2.2", 8081)
    assert not may(policy, "10.0.2.2", 0)
    assert not may(policy, "127.0.0.1", 8080)
    assert not may(Policy(), "10.0.2.2", 80)
    # No rule closes what was opened by name: "nothing but this port" can be said.
    assert may(Policy(deny=["*"], allow_host_ports=[8080]), "10.0.2.2", 8080)
    assert not may(Policy(deny=["*"], allow_host_ports=[8080]), PUBLIC, 8080)
    assert may(Policy(allow=["192.0.2.1"], allow_host_ports=[8080]), "10.0.2.2", 8080)


def test_the_guests_own_network_leads_nowhere_else() -> None:
    policy = Policy(allow=["*", "10.0.2.0/24"], allow_host_ports=[53, 80])
    assert may(policy, "10.0.2.3", 53)
    assert not may(policy, "10.0.2.3", 80)
    assert not may(policy, "10.0.2.15", 80)
    assert not may(policy, "10.0.2.255", 80)
    assert not may(policy, "10.0.2.0", 80)
    assert may(policy, "10.0.3.1", 80)
    network = NetworkConfig(ip("192.168.7.3"), ip("192.168.7.1"), ip("192.168.7.2"), 29)
    elsewhere = Policy(allow_host_ports=[80], network=network)
    assert may(elsewhere, "192.168.7.1", 80)
    assert may(elsewhere, "10.0.2.2", 81)  # the host's network, not the guest's
    assert not may(elsewhere, "192.168.7.7", 80)
    assert may(elsewhere, "192.168.7.8", 80)


def test_an_address_behind_the_guests_own_network_is_reached_if_a_rule_names_it() -> None:
    def neighbours(policy: Policy) -> list[int]:
        return [n for n in range(256) if policy.is_neighbour(ip("10.0.2.0") + n)]

    for allow in ([], ["*"], ["0.0.0.0/0"], ["10.0.0.0/8"], ["example.com"], ["10.0.3.7"]):
        policy = Policy(allow=allow)
        assert neighbours(policy) == [2, 3], allow
        assert not may(policy, "10.0.2.77", 80)
    policy = Policy(allow=["10.0.2.76/31:80"], deny=["10.0.2.77"])
    assert neighbours(policy) == [2, 3, 76]
    assert may(policy, "10.0.2.76", 80)
    assert not may(policy, "10.0.2.76", 81)
    assert not may(policy, "10.0.2.77", 80)
    assert not may(policy, "10.0.2.75", 80)
    # Never the guest itself, nor all of them.
    assert neighbours(Policy(allow=["10.0.2.0/24"])) == sorted({*range(1, 255)} - {15})
    assert not Policy(allow=["10.0.2.0/24"]).is_neighbour(ip("192.0.2.1"))


def test_deny_comes_before_allow() -> None:
    policy = Policy(allow=["192.0.2.0/24"], deny=["192.0.2.128/25", "*:25"])
    assert policy.check("TCP", ip("192.0.2.1"), 80, 0) == (True, "allow 192.0.2.0/24")
    assert policy.check("TCP", ip("192.0.2.129"), 80, 0) == (False, "deny 192.0.2.128/25")
    assert policy.check("TCP", ip("192.0.2.1"), 25, 0) == (False, "deny *:25")
    assert policy.check("TCP", ip("192.0.3.1"), 80, 0) == (False, "no allow rule matches")
    assert policy.statistics().refused == {
        "deny 192.0.2.128/25": 1,
        "deny *:25": 1,
        "no allow rule matches": 1,
    }


def test_deny_alone_leaves_the_rest_open() -> None:
    policy = Policy(deny=["10.0.0.0/8"])
    assert policy.check("TCP", ip(PUBLIC), 80, 0) == (True, "open: no allow rules")
    assert not may(policy, "10.9.9.9")


def test_ports_of_an_allow_rule() -> None:
    policy = Policy(allow=["192.0.2.1:443", "192.0.2.1:8000-8001"])
    ports = (0, 80, 443, 7999, 8000, 8001, 8002)  # 0, ping: needs a rule without ports
    assert [port for port in ports if may(policy, "192.0.2.1", port)] == [443, 8000, 8001]


# Names.


def test_a_name_allows_its_addresses_while_they_are_pinned() -> None:
    policy = Policy(allow=["example.com:443"])
    assert not may(policy, PUBLIC)
    policy.pin("Example.Com.", [ip(PUBLIC)], 300, 10 * S)
    assert may(policy, PUBLIC, 443, 10 * S)
    assert policy.check("TCP", ip(PUBLIC), 443, 10 * S).rule == "allow example.com:443"
    assert not may(policy, PUBLIC, 80, 10 * S)
    assert not may(policy, "93.184.216.35", 443, 10 * S)
    assert may(policy, PUBLIC, 443, 310 * S - 1)
    assert not may(policy, PUBLIC, 443, 310 * S)
    assert policy.statistics().pins == 0


def test_another_name_pins_nothing() -> None:
    policy = Policy(allow=["example.com", "*.example.org", "*:9999"])
    policy.pin("example.net", [ip(PUBLIC)], 300, 0)
    policy.pin("example.org", [ip(PUBLIC)], 300, 0)
    assert not may(policy, PUBLIC)
    assert policy.statistics().pins == 0
    policy.pin("www.example.org", [ip(PUBLIC)], 300, 0)
    assert may(policy, PUBLIC)


def test_a_denied_name_with_ports_and_a_shared_address() -> None:
    policy = Policy(deny=["mail.example.com:25"])
    assert policy.check_name("mail.example.com").allowed
    policy.pin("www.example.com", [ip(PUBLIC)], 300, 0)
    assert may(policy, PUBLIC, 25)
    policy.pin("mail.example.com", [ip(PUBLIC)], 300, 0)
    assert policy.check("TCP", ip(PUBLIC), 25, 0) == (False, "deny mail.example.com:25")
    assert may(policy, PUBLIC, 80)


def test_pins_last_neither_too_short_nor_too_long() -> None:
    for ttl_s, lasts_s in ((0, PIN_TTL_MIN_S), (-5, PIN_TTL_MIN_S), (1 << 31, PIN_TTL_MAX_S)):
        policy = Policy(allow=["example.com"])
        policy.pin("example.com", [ip(PUBLIC)], ttl_s, 0)
        assert may(policy, PUBLIC, 443, lasts_s * S - 1)
        assert not may(policy, PUBLIC, 443, lasts_s * S)


def test_a_shorter_answer_does_not_end_a_longer_one() -> None:
    policy = Policy(allow=["example.com"])
    policy.pin("example.com", [ip(PUBLIC)], 3600, 0)
    policy.pin("example.com", [ip(PUBLIC)], 60, 0)
    assert may(policy, PUBLIC, 443, 3599 * S)
    policy.pin("example.com", [ip(PUBLIC)], 3600, 3000 * S)
    assert may(policy, PUBLIC, 443, 6599 * S)


def test_the_oldest_pins_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PINS_MAX", 3)
    policy = Policy(allow=["*.example.com"])
    for number in (1, 2, 3):
        policy.pin(f"{number}.example.com", [number << 24], 300, 0)
    policy.pin("again.example.com", [1 << 24], 300, 0)  # not the oldest any more
    policy.pin("4.example.com", [4 << 24], 300, 0)
    assert [number for number in range(1, 5) if may(policy, f"{number}.0.0.0", 80)] == [1, 3, 4]
    assert (policy.statistics().pins, policy.statistics().pins_evicted) == (3, 1)


def test_a_flood_of_names_stays_bounded() -> None:
    policy = Policy(allow=["*.example.com"])
    for number in range(200):
        addresses = list(range(1 << 30, (1 << 30) + 5000))
        policy.pin(f"{number}.example.com", [each + number * 5000 for each in addresses], 300, 0)
    assert policy.statistics().pins == PINS_MAX
    assert len(policy._pinned) == PINS_MAX
    assert policy.statistics().pins_evicted == 200 * ADDRESSES_PER_ANSWER_MAX - PINS_MAX
    for number in range(PINS_MAX):
        policy.pin(f"{number}.example.com", [ip(PUBLIC)], 300, 0)
    assert len(policy._pinned[ip(PUBLIC)]) == 1


@pytest.mark.parametrize(
    ("allow", "deny", "name", "verdict"),
    [
        ([], [], "example.com", (True, "open: no allow rules")),
        ([], ["example.com"], "Example.com.", (False, "deny example.com")),
        ([], ["example.com:25"], "example.com", (True, "open: no allow rules")),
        ([], ["*.example.com"], "a.b.example.com", (False, "deny *.example.com")),
        ([], ["*"], "example.com", (False, "deny *")),
        ([], ["*:25"], "example.com", (True, "open: no allow rules")),
        ([], ["0.0.0.0/0"], "example.com", (True, "open: no allow rules")),
        (["example.com:443"], [], "example.com", (True, "allow example.com:443")),
        (["example.com"], ["example.com"], "example.com", (False, "deny example.com")),
        (["example.com"], [], "example.net", (False, "no allow rule matches")),
        (["*:443"], [], "example.net", (True, "allow *:443")),
        (
            ["example.com", "10.0.0.0/8:80"],
            [],
            "example.net",
            (True, "a rule of addresses may allow its address"),
        ),
    ],
)
def test_names_that_may_be_resolved(
    allow: list[str], deny: list[str], name: str, verdict: tuple[bool, str]
) -> None:
    policy = Policy(allow, deny)
    assert policy.check_name(name) == verdict
    assert policy.statistics().refused == ({} if verdict[0] else {verdict[1]: 1})


NAMES = st.sampled_from(["example.com", "www.example.com", "a.b.example.com", "example.org", ""])
RULES = st.sampled_from(
    [
        *("example.com", "*.example.com", "example.org:80", "*:443", "*"),
        *("1.0.0.0/8", "2.0.0.0/7:80-90", "3.0.0.1"),
    ]
)
FEW_ADDRESSES = st.sampled_from([1 << 24, 2 << 24, (3 << 24) + 1, ip("127.0.0.1")])
PIN = st.tuples(NAMES, FEW_ADDRESSES, st.integers(60, 200))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(RULES, max_size=3),
    st.lists(RULES, max_size=2),
    st.lists(PIN, max_size=5),
    FEW_ADDRESSES,
    st.sampled_from([0, 80, 443]),
    st.integers(0, 220),
)
def test_the_verdict_is_that_of_the_rules_one_by_one(
    allow: list[str],
    deny: list[str],
    pins: list[tuple[str, int, int]],
    address: int,
    port: int,
    now_s: int,
) -> None:
    policy = Policy(allow, deny)
    for name, pinned, ttl_s in pins:
        policy.pin(name, [pinned], ttl_s, 0)
    names = [name for name, pinned, ttl_s in pins if pinned == address and now_s < ttl_s]

    def speaks(text: str) -> bool:
        rule = parse_rule(text)
        if not rule.port_low <= port <= rule.port_high:
            return False
        if rule.is_of_addresses:
            return address & rule.mask == rule.network
        return rule.is_any or any(map(rule.matches_name, names))

    expected = address != ip("127.0.0.1") and not any(map(speaks, deny))
    expected = expected and (not allow or any(map(speaks, allow)))
    verdict = policy.check("TCP", address, port, now_s * S)
    assert verdict.allowed == expected
    assert sum(policy.statistics().refused.values()) == (not expected)


def test_every_refusal_is_told_with_its_reason() -> None:
    policy = Policy(allow=["example.com:443"], deny=["*.evil.example"])
    told: list[str] = []
    policy.on_refused = told.append
    assert policy.target("UDP", ip(PUBLIC), 53, 0) is None
    assert policy.target("UDP", ip(PUBLIC), 53, 0) is None
    assert not policy.check_name("a.evil.example").allowed
    assert policy.check_name("example.com").allowed
    policy.pin("example.com", [ip(PUBLIC)], 300, 0)
    assert policy.target("TCP", ip(PUBLIC), 443, 0) == ip(PUBLIC)
    assert told == [
        f"UDP to {PUBLIC}:53: no allow rule matches",
        f"UDP to {PUBLIC}:53: no allow rule matches",
        "DNS of a.evil.example: deny *.evil.example",
    ]
    assert sum(policy.statistics().refused.values()) == len(told)


def test_the_gateway_leads_to_the_hosts_loopback() -> None:
    policy = Policy(allow_host_ports=[80])
    assert policy.target("TCP", policy.gateway, 80, 0) == ip("127.0.0.1")
    assert policy.target("TCP", policy.gateway, 81, 0) is None
