"""DNS messages (RFC 1035 §4, RFC 6891): reading queries and answers, building short replies.

    +--------------------------+
    | header                   |  identifier, flags, and four counts
    | question                 |  one name, type and class
    | answer                   |  records: name, type, class, TTL, data
    | authority, additional    |  records; among them OPT, the EDNS of a query
    +--------------------------+

A name is a list of labels, each with its length, up to an empty one. A pointer in place of a label
says that the name goes on at an earlier offset.

Messages are not built anew but passed on with another identifier: what this file does not know
stays as it is. Over TCP each goes with its length in front.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from voidbox.errors import VoidboxError
from voidbox.named_tuple import NamedTuple

# struct { u16 id, flags, qdcount, ancount, nscount, arcount; }
HEADER = struct.Struct("!HHHHHH")
HEADER_BYTES = 12
# What follows the name of a question: struct { u16 qtype, qclass; }
_QUESTION_TAIL = struct.Struct("!HH")
# What follows the name of a record: struct { u16 type, class; u32 ttl; u16 rdlength; }
_RECORD_TAIL = struct.Struct("!HHIH")
# A record of type A whose name is that of the question.
_A_RECORD = struct.Struct("!HHHIHI")
_ID = struct.Struct("!H")
_LENGTH = struct.Struct("!H")

assert HEADER.size == HEADER_BYTES
assert _RECORD_TAIL.size == 10
assert _A_RECORD.size == 16

# Flags. The lowest four bits are the RCODE, four others the OPCODE.
QR, TC, RD, RA = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE_SHIFT, _OPCODE_MASK, _RCODE_MASK = 11, 0x7800, 0x000F

OPCODE_QUERY = 0
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)

TYPE_A, TYPE_CNAME, TYPE_AAAA, TYPE_OPT = 1, 5, 28, 41
TYPE_SVCB, TYPE_HTTPS = 64, 65  # RFC 9460
TYPE_IXFR, TYPE_AXFR, TYPE_ANY = 251, 252, 255
CLASS_IN = 1

UDP_BYTES_MIN = 512  # what everybody takes over UDP
MESSAGE_BYTES_MAX = 65535
# A query is a name and some options. Whoever sends more wants to keep us busy.
QUERY_BYTES_MAX = 4096

_NAME_BYTES_MAX = 255
_POINTERS_MAX = 127  # as many as a name has labels
# Records that are looked at. Each may cost a walk through a whole name.
_QUERY_RECORDS_MAX = 8
_ANSWERS_MAX = 256
_TTL_MAX_S = (1 << 31) - 1
# Bytes of a label that need no escape.
_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
_POINTER_TO_QUESTION = 0xC000 | HEADER_BYTES


class ParseError(VoidboxError):
    """Not a DNS message, or not the kind of one that was awaited."""


class Question(NamedTuple):
    """What is asked. `name` is in lower case, without a dot at the end."""

    name: str
    qtype: int
    qclass: int


class Query(NamedTuple):
    """A query of the guest.

    Attributes:
        question_wire: the question as the guest wrote it, with its capitals.
        udp_bytes: the longest reply that it takes over UDP.
    """

    id: int
    flags: int
    question: Question
    question_wire: bytes
    udp_bytes: int

    @property
    def opcode(self) -> int:
        """What kind of query it is."""
        return opcode_of(self.flags)


class Record(NamedTuple):
    """One answer of type A or CNAME. `name` is in lower case, as is an alias's target."""

    name: str
    ttl_s: int
    value: int | str


class Answer(NamedTuple):
    """An upstream server's reply. `records` has no other types than Record knows."""

    id: int
    flags: int
    question: Question
    records: tuple[Record, ...]

    @property
    def rcode(self) -> int:
        """What became of the query."""
        return self.flags & _RCODE_MASK

    def addresses(self) -> tuple[list[int], int]:
        """Follow the aliases from the name that was asked.

        Returns:
            The addresses and the lowest TTL on the way to them, in seconds.
        """
        aliases = {record.name: record for record in self.records if isinstance(record.value, str)}
        name, ttl_s = self.question.name, _TTL_MAX_S
        while alias := aliases.pop(name, None):  # none twice, so that no loop can be
            name, ttl_s = str(alias.value), min(ttl_s, alias.ttl_s)
        found = [record for record in self.records if record.name == name]
        addresses = [record.value for record in found if isinstance(record.value, int)]
        return addresses, min([ttl_s, *(record.ttl_s for record in found)])


# Reading.


def read_name(message: bytes, at: int) -> tuple[str, int]:
    """Return the name at an offset, in lower case, and the offset of what follows it.

    RFC 1035 §4.1.4. Bytes other than letters, digits, "-" and "_" are escaped as \\DDD; a dot
    inside a label too, or "x.example" + "com" would pass for a name below example.com.

    Raises:
        ParseError: it leaves the message, is too long, or its pointers do not lead backwards.
    """
    labels: list[str] = []
    octets = pointers = 0
    start, end = at, 0
    while True:
        length = _byte(message, at)
        if length >= 0xC0:
            target = (length & 0x3F) << 8 | _byte(message, at + 1)
            pointers += 1
            if not HEADER_BYTES <= target < start or pointers > _POINTERS_MAX:
                raise ParseError(f"a name's pointer from {at} to {target}")
            end = end or at + 2
            start = at = target
        elif length > 63:
            raise ParseError(f"a label of unknown kind {length:#x}")
        else:
            label = message[at + 1 : at + 1 + length]
            octets += 1 + length
            at += 1 + length
            if octets > _NAME_BYTES_MAX:
                raise ParseError(f"a name of more than {_NAME_BYTES_MAX} bytes")
            if not length:
                return ".".join(labels), end or at
            labels.append(_escape(label))


def _byte(message: bytes, at: int) -> int:
    if at >= len(message):
        raise ParseError("a name longer than its message")
    return message[at]


def _escape(label: bytes) -> str:
    if label.translate(None, _PLAIN):
        return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03}" for byte in label).lower()
    return label.decode("ascii").lower()


def parse_query(message: bytes) -> Query:
    """Read a query, of any opcode.

    Raises:
        ParseError: no query, or not exactly one question.
    """
    if len(message) > QUERY_BYTES_MAX:
        raise ParseError(f"a query of {len(message)} bytes")
    id_, flags, qdcount, ancount, nscount, arcount = _header(message)
    if flags & QR:
        raise ParseError("a reply in place of a query")
    question, at = _read_question(message, qdcount)
    others = ancount + nscount + arcount
    if others > _QUERY_RECORDS_MAX:
        raise ParseError(f"a query with {others} records")
    udp_bytes = UDP_BYTES_MIN
    for _, rtype, rclass, _, _, _ in _read_records(message, at, others):
        if rtype == TYPE_OPT:
            udp_bytes = max(UDP_BYTES_MIN, rclass)  # RFC 6891 §6.1.2
    return Query(id_, flags, question, message[HEADER_BYTES:at], udp_bytes)


def parse_answer(message: bytes) -> Answer:
    """Read a reply: its header, its question, and the answers of use to us.

    Raises:
        ParseError: no reply, not exactly one question, or records that are cut off.
    """
    id_, flags, qdcount, ancount, _, _ = _header(message)
    if not flags & QR:
        raise ParseError("a query in place of a reply")
    question, start = _read_question(message, qdcount)
    records: list[Record] = []
    answers = _read_records(message, start, min(ancount, _ANSWERS_MAX))
    for name, rtype, rclass, ttl_s, at, length in answers:
        if rclass != CLASS_IN:
            continue
        if ttl_s > _TTL_MAX_S:
            ttl_s = 0  # RFC 2181 §8
        if rtype == TYPE_CNAME:
            target, end = read_name(message, at)
            if end != at + length:
                raise ParseError("an alias that is longer or shorter than its record")
            records.append(Record(name, ttl_s, target))
        elif rtype == TYPE_A:
            if length != 4:
                raise ParseError(f"an address of {length} bytes")
            records.append(Record(name, ttl_s, int.from_bytes(message[at : at + 4])))
    return Answer(id_, flags, question, tuple(records))


def parse_id(message: bytes) -> tuple[int, int]:
    """Return the identifier and the flags of whatever has a header.

    Raises:
        ParseError: it is too short for one.
    """
    return _header(message)[:2]


def _header(message: bytes) -> tuple[int, int, int, int, int, int]:
    if len(message) < HEADER_BYTES:
        raise ParseError(f"a message of {len(message)} bytes, less than a header")
    return HEADER.unpack_from(message)


def _read_question(message: bytes, qdcount: int) -> tuple[Question, int]:
    if qdcount != 1:
        raise ParseError(f"a message with {qdcount} questions")
    name, at = read_name(message, HEADER_BYTES)
    if at + _QUESTION_TAIL.size > len(message):
        raise ParseError("a question longer than its message")
    qtype, qclass = _QUESTION_TAIL.unpack_from(message, at)
    return Question(name, qtype, qclass), at + _QUESTION_TAIL.size


def _read_records(
    message: bytes, at: int, count: int
) -> Iterator[tuple[str, int, int, int, int, int]]:
    """Yield of each record name, type, class, TTL, and where its data is and how long."""
    for _ in range(count):
        name, at = read_name(message, at)
        if at + _RECORD_TAIL.size > len(message):
            raise ParseError("a record longer than its message")
        rtype, rclass, ttl_s, length = _RECORD_TAIL.unpack_from(message, at)
        at += _RECORD_TAIL.size
        if at + length > len(message):
            raise ParseError("a record longer than its message")
        yield name, rtype, rclass, ttl_s, at, length
        at += length


# Building.


def build_reply(query: Query, rcode: int, addresses: Sequence[int] = (), ttl_s: int = 0) -> bytes:
    """Return a reply with the query's question and RD, and a record for each address."""
    answers = b"".join(
        _A_RECORD.pack(_POINTER_TO_QUESTION, TYPE_A, CLASS_IN, ttl_s, 4, address)
        for address in addresses
    )
    flags = _reply_flags(query.flags, rcode)
    return HEADER.pack(query.id, flags, 1, len(addresses), 0, 0) + query.question_wire + answers


def build_bare_error(id_: int, query_flags: int, rcode: int) -> bytes:
    """Return an error without a question, for a query whose question cannot be read."""
    return HEADER.pack(id_, _reply_flags(query_flags, rcode), 0, 0, 0, 0)


def _reply_flags(query_flags: int, rcode: int) -> int:
    return QR | query_flags & (_OPCODE_MASK | RD) | RA | rcode


def opcode_of(flags: int) -> int:
    """Return the OPCODE of a message's flags."""
    return (flags & _OPCODE_MASK) >> _OPCODE_SHIFT


def with_id(message: bytes, id_: int) -> bytes:
    """Return a message with another identifier."""
    return _ID.pack(id_) + message[_ID.size :]


def pass_on(reply: bytes, query: Query) -> bytes:
    """Return an upstream reply as the guest expects it: its identifier, its capitals.

    The reply's question is the query's, and so as long: no pointer can be in either.
    """
    start = HEADER_BYTES + len(query.question_wire)
    return _ID.pack(query.id) + reply[2:HEADER_BYTES] + query.question_wire + reply[start:]


def truncate(reply: bytes, query: Query) -> bytes:
    """Return a reply without its records, with TC: the guest is to ask again over TCP."""
    _, flags = parse_id(reply)
    return HEADER.pack(query.id, flags | TC, 1, 0, 0, 0) + query.question_wire


# TCP (RFC 1035 §4.2.2).


def frame(message: bytes) -> bytes:
    """Return a message with its length in front."""
    return _LENGTH.pack(len(message)) + message


class Splitter:
    """Cuts a TCP stream into messages.

    Args:
        message_bytes_max: longer ones end the stream; QUERY_BYTES_MAX is for the guest's.
    """

    __slots__ = ("_buffer", "_message_bytes_max")

    def __init__(self, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._message_bytes_max = message_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Take bytes; yield the messages that are whole now. Exhaust it before the next call.

        Raises:
            ParseError: a message that is too long, or shorter than a header.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if not HEADER_BYTES <= length <= self._message_bytes_max:
                raise ParseError(f"a message of {length} bytes")
            start = at + _LENGTH.size
            if len(buffer) - start < length:
                break
            at = start + length
            yield bytes(buffer[start:at])
        del buffer[:at]
