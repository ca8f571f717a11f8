"""Messages: what scapy builds is read, what is built scapy reads, and what is broken is refused."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT

from voidbox.net import dns_message as dns
from voidbox.net.dns_message import Answer, ParseError, Query, Question, Record, Splitter

LABEL = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_", min_size=1, max_size=63)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join).filter(lambda name: len(name) <= 253)
ADDRESS = st.ip_addresses(v=4).map(str)
TTL = st.integers(0, (1 << 31) - 1)
RECORD = st.one_of(
    st.builds(lambda n, t, a: DNSRR(rrname=n, type="A", ttl=t, rdata=a), NAME, TTL, ADDRESS),
    st.builds(lambda n, t, a: DNSRR(rrname=n, type="CNAME", ttl=t, rdata=a), NAME, TTL, NAME),
    st.builds(lambda n, a: DNSRR(rrname=n, type="TXT", rdata=a), NAME, st.text("ab", max_size=9)),
)


def wire(*labels: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def query(name: str = "example.com", qtype: int = 1, id: int = 7, **fields: object) -> bytes:
    return bytes(DNS(**{"id": id, "rd": 1, "qd": [DNSQR(qname=name, qtype=qtype)]} | fields))


def response(name: str, records: list[DNSRR], **fields: object) -> DNS:
    return DNS(
        **{"id": 7, "qr": 1, "rd": 1, "ra": 1, "qd": [DNSQR(qname=name)], "an": records} | fields
    )


def read(record: DNSRR) -> Record:
    value = record.rdata
    if isinstance(value, bytes):
        return Record(record.rrname.decode()[:-1].lower(), record.ttl, value.decode()[:-1].lower())
    number = int.from_bytes(bytes(map(int, value.split("."))))
    return Record(record.rrname.decode()[:-1].lower(), record.ttl, number)


# Reading.


@settings(deadline=None)
@given(NAME, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_queries_of_scapy(name: str, qtype: int, id_: int, udp_bytes: int) -> None:
    message = query(name, qtype, id_)
    question = Question(name.lower(), qtype, 1)
    assert dns.parse_query(message) == Query(id_, 0x0100, question, message[12:], 512)
    with_edns = query(name, qtype, id_, ar=[DNSRROPT(rclass=udp_bytes)])
    seen = dns.parse_query(with_edns)
    assert seen.udp_bytes == max(512, udp_bytes)
    assert seen.question_wire == message[12:]


@settings(max_examples=60, deadline=None)
@given(NAME, st.lists(RECORD, max_size=6))
def test_answers_of_scapy_with_and_without_pointers(name: str, records: list[DNSRR]) -> None:
    plain = response(name, records)
    for message in (bytes(plain), bytes(plain.compress())):
        answer = dns.parse_answer(message)
        assert (answer.id, answer.rcode, answer.flags) == (7, 0, 0x8180)
        assert answer.question == Question(name.lower(), 1, 1)
        expected = [read(each) for each in DNS(bytes(plain)).an if each.type in (1, 5)]
        assert list(answer.records) == expected


def test_every_cut_of_a_message_is_refused() -> None:
    # Each record at its end, so that no cut leaves a message that is whole.
    answer = response("www.example.com", [])
    answer.an = [
        DNSRR(rrname="www.example.com", type="CNAME", rdata="cdn.example.com"),
        DNSRR(rrname="cdn.example.com", type="A", rdata="192.0.2.1"),
    ]
    for message in (bytes(answer), bytes(answer.compress())):
        dns.parse_answer(message)
        for length in range(len(message)):
            with pytest.raises(ParseError):
                dns.parse_answer(message[:length])
    message = query(ar=[DNSRROPT(rclass=1232)])
    dns.parse_query(message)
    for length in range(len(message)):
        with pytest.raises(ParseError):
            dns.parse_query(message[:length])


def test_bytes_that_no_name_has_are_escaped() -> None:
    message = bytes(12) + wire(b"X.example", b"com\\", b"\0\xff a")
    assert dns.read_name(message, 12) == ("x\\046example.com\\092.\\000\\255\\032a", len(message))
    assert dns.read_name(bytes(13), 12) == ("", 13)


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=20), max_size=6))
def test_the_text_of_a_name_says_all_but_its_capitals(labels: list[bytes]) -> None:
    name, end = dns.read_name(bytes(12) + wire(*labels), 12)
    assert end == 12 + len(wire(*labels))
    back = []
    for label in name.split(".") if labels else []:
        pieces = label.split("\\")
        back.append(
            pieces[0].encode()
            + b"".join(bytes([int(each[:3])]) + each[3:].encode() for each in pieces[1:])
        )
    assert back == [label.lower() for label in labels]


def test_the_longest_name_and_one_more() -> None:
    labels = [b"a" * 63] * 3
    assert len(wire(*labels, b"b" * 61)) == 255
    assert len(dns.read_name(bytes(12) + wire(*labels, b"b" * 61), 12)[0]) == 253
    with pytest.raises(ParseError):
        dns.read_name(bytes(12) + wire(*labels, b"b" * 62), 12)
    # The same by pointers.
    tail = wire(*labels)
    fits, exceeds = (bytes([size]) + b"b" * size + b"\xc0\x0c" for size in (61, 62))
    message = bytes(12) + tail + fits + exceeds
    assert len(dns.read_name(message, 12 + len(tail))[0]) == 253
    with pytest.raises(ParseError):
        dns.read_name(message, 12 + len(tail) + 64)


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (12, b"\xc0\x0c"),  # to itself
        (12, b"\xc0\x0e\xc0\x0c"),  # to each other
        (14, b"\xc0\x0e\xc0\x0c"),
        (12, b"\x01a\xc0\x0c"),  # to its own start
        (12, b"\xc0\x0e\0"),  # forward
        (12, b"\xc0\x00"),  # into the header
        (13, b"\0\xc0\x0b"),
        (12, b"\xc0"),
        (12, b"\xff\xff"),
        (12, b"\x02\0a\xc0\x0d"),  # into its own label
        (12, b"\x40" + b"a" * 64 + b"\0"),
        (12, b"\x80" + b"a" * 128 + b"\0"),
        (12, b"\x05abc"),
        (12, b"\x03abc"),
        (12, b""),
        (400, b"\0"),
    ],
)
def test_names_that_lead_astray(at: int, data: bytes) -> None:
    with pytest.raises(ParseError):
        dns.read_name(bytes(12) + data, at)


def test_a_long_chain_of_pointers_ends_early() -> None:
    chain = (
        bytes(12)
        + b"\0\0"
        + b"".join((0xC000 | at).to_bytes(2) for at in range(12, 12 + 2 * 200, 2))
    )
    assert dns.read_name(chain, 14 + 2 * 126)[0] == ""
    with pytest.raises(ParseError):
        dns.read_name(chain, 14 + 2 * 127)


def test_the_most_expensive_messages_are_read_at_once() -> None:
    deep = b"".join(bytes([1]) + b"a" for _ in range(126)) + b"\0"
    question = deep + b"\0\1\0\1"
    record = b"\xc0\x0c" + b"\0\5\0\1" + bytes(4) + b"\0\2\xc0\x0c"
    message = dns.HEADER.pack(1, dns.QR, 1, 4500, 0, 0) + question + record * 4500
    start = time.process_time()
    assert len(dns.parse_answer(message).records) == 256
    assert time.process_time() - start < 0.5
    big = dns.HEADER.pack(1, 0, 1, 0, 0, 300) + question + record * 200
    with pytest.raises(ParseError, match="300 records"):
        dns.parse_query(big)
    with pytest.raises(ParseError, match="4097 bytes"):
        dns.parse_query(query().ljust(4097, b"\0"))


@pytest.mark.parametrize("count", [0, 2, 65535])
def test_exactly_one_question(count: int) -> None:
    message = query()
    damaged = message[:4] + count.to_bytes(2) + message[6:] + message[12:]
    with pytest.raises(ParseError, match="questions"):
        dns.parse_query(damaged)


def test_queries_and_replies_are_told_apart() -> None:
    with pytest.raises(ParseError):
        dns.parse_answer(query())
    with pytest.raises(ParseError):
        dns.parse_query(bytes(response("example.com", [])))


def test_records_whose_data_does_not_fit_their_type() -> None:
    start = dns.HEADER.pack(1, dns.QR, 1, 1, 0, 0) + wire(b"a") + b"\0\1\0\1" + b"\xc0\x0c"
    ttl = bytes(4)
    for data in (
        b"\0\1\0\1" + ttl + b"\0\5" + bytes(5),
        b"\0\1\0\1" + ttl + b"\0\3" + bytes(3),
        b"\0\5\0\1" + ttl + b"\0\3" + b"\xc0\x0c\0",
        b"\0\5\0\1" + ttl + b"\0\1" + b"\xc0\x0c",
        b"\0\5\0\1" + ttl + b"\0\0",
    ):
        with pytest.raises(ParseError):
            dns.parse_answer(start + data)
    other_class = start + b"\0\1\0\3" + ttl + b"\0\4" + bytes(4)
    assert dns.parse_answer(other_class).records == ()
    huge_ttl = start + b"\0\1\0\1" + b"\x80\0\0\0" + b"\0\4" + bytes(4)
    assert dns.parse_answer(huge_ttl).records == (Record("a", 0, 0),)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    for each in (data, b"\0\7\1\0\0\1\0\2\0\0\0\1" + data, b"\0\7\x81\x80\0\1\0\5\0\0\0\0" + data):
        for parse in (dns.parse_query, dns.parse_answer, dns.parse_id):
            try:
                parse(each)
            except ParseError:
                continue


@settings(max_examples=150, deadline=None)
@given(NAME, st.lists(RECORD, max_size=4), st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_damaged_answers_raise_nothing_else(
    name: str, records: list[DNSRR], at: int, damage: bytes
) -> None:
    message = bytearray(bytes(response(name, records).compress()))
    at %= len(message)
    message[at : at + len(damage)] = damage
    with suppress(ParseError):
        dns.parse_answer(bytes(message)).addresses()


# Aliases.


def answer(*records: tuple[str, int, int | str], name: str = "www.example.com") -> Answer:
    return Answer(1, dns.QR, Question(name, 1, 1), tuple(Record(*each) for each in records))


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([("www.example.com", 300, 1), ("www.example.com", 200, 2)], ([1, 2], 200)),
        ([("cdn", 50, 3), ("www.example.com", 70, "cdn")], ([3], 50)),
        ([("www.example.com", 70, "a"), ("a", 60, "b"), ("b", 80, 4)], ([4], 60)),
        ([("www.example.com", 70, "cdn"), ("other", 50, 3)], ([], 70)),
        ([("other", 50, 3)], ([], (1 << 31) - 1)),
        ([("www.example.com", 9, "a"), ("a", 8, "www.example.com")], ([], 8)),
        ([("www.example.com", 9, "www.example.com")], ([], 9)),
        ([], ([], (1 << 31) - 1)),
    ],
)
def test_addresses_at_the_end_of_the_aliases(
    records: list[tuple[str, int, int | str]], expected: tuple[list[int], int]
) -> None:
    assert answer(*records).addresses() == expected


# Building.


@settings(deadline=None)
@given(
    NAME, st.integers(0, 0xFFFF), st.integers(0, 5), st.lists(ADDRESS, max_size=3), st.booleans()
)
def test_replies_are_read_by_scapy(
    name: str, id_: int, rcode: int, addresses: list[str], rd: bool
) -> None:
    asked = dns.parse_query(query(name, 1, id_, rd=int(rd), cd=1, ad=1, tc=1))
    numbers = [int.from_bytes(bytes(map(int, each.split(".")))) for each in addresses]
    message = dns.build_reply(asked, rcode, numbers, 60)
    seen = DNS(message)
    assert (seen.id, seen.qr, seen.opcode, seen.aa, seen.tc) == (id_, 1, 0, 0, 0)
    assert (seen.rd, seen.ra, seen.ad, seen.cd, seen.rcode) == (rd, 1, 0, 0, rcode)
    assert (seen.qdcount, seen.ancount, seen.nscount, seen.arcount) == (1, len(addresses), 0, 0)
    assert seen.qd[0].qname.decode() == name + "."  # with its capitals
    assert [(each.rrname.decode(), each.rdata, each.ttl) for each in seen.an or []] == [
        (name + ".", address, 60) for address in addresses
    ]
    assert dns.parse_answer(message).addresses()[0] == numbers


def test_an_error_without_a_question() -> None:
    seen = DNS(dns.build_bare_error(5, 0x0100, dns.FORMERR))
    assert (seen.id, seen.qr, seen.rd, seen.ra, seen.rcode) == (5, 1, 1, 1, 1)
    assert (seen.qdcount, seen.ancount, seen.nscount, seen.arcount) == (0, 0, 0, 0)


def test_a_reply_passed_on_has_the_guests_identifier_and_capitals() -> None:
    asked = dns.parse_query(query("eXample.COM", id=0x1234))
    upstream = bytes(response("example.com", [DNSRR(rrname="example.com", rdata="192.0.2.1")]))
    passed = dns.pass_on(upstream, asked)
    assert DNS(passed).id == 0x1234
    assert passed[2:12] == upstream[2:12]
    assert b"eXample\3COM" in passed
    assert passed[29:] == upstream[29:]
    assert dns.with_id(passed, 7) == b"\0\7" + passed[2:]


def test_a_truncated_reply() -> None:
    asked = dns.parse_query(query("eXample.COM", id=0x1234))
    upstream = bytes(response("example.com", [DNSRR(rrname="example.com", rdata="192.0.2.1")]))
    seen = DNS(dns.truncate(upstream, asked))
    assert (seen.id, seen.qr, seen.tc, seen.rd, seen.ra) == (0x1234, 1, 1, 1, 1)
    assert (seen.qdcount, seen.ancount, seen.nscount, seen.arcount) == (1, 0, 0, 0)
    assert seen.qd[0].qname == b"eXample.COM."


# TCP.


@settings(deadline=None)
@given(st.lists(st.binary(min_size=12, max_size=40), max_size=6), st.integers(1, 60))
def test_a_stream_cut_anywhere(messages: list[bytes], step: int) -> None:
    stream = b"".join(map(dns.frame, messages))
    for size in (step, 1, len(stream) + 1):
        splitter = Splitter()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [each for piece in pieces for each in splitter.feed(memoryview(piece))] == messages


@pytest.mark.parametrize(("length", "limit"), [(0, 65535), (11, 65535), (513, 512)])
def test_a_length_that_cannot_be(length: int, limit: int) -> None:
    splitter = Splitter(limit)
    good = dns.frame(bytes(min(limit, 40)))
    messages = splitter.feed(good + length.to_bytes(2))
    assert next(messages) == bytes(40)
    with pytest.raises(ParseError):
        next(messages)


def test_the_longest_message() -> None:
    assert list(Splitter(512).feed(dns.frame(bytes(512)))) == [bytes(512)]
    assert list(Splitter().feed(dns.frame(bytes(65535)))) == [bytes(65535)]
