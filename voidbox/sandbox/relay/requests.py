"""The relay's requests, checked, and the replies to them."""

from __future__ import annotations

from voidbox.agent.packing import PackingError, pack, unpack
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.relay import protocol
from voidbox.sandbox.relay.mailbox import Message
from voidbox.sandbox.relay.protocol import ProtocolError

OPS = frozenset(("send", "broadcast", "receive", "taken", "peers"))


class RequestError(Exception):
    """A request that is refused; one line for who sent it."""


class Request(NamedTuple):
    """One request; see relay_protocol for which has what."""

    op: str
    to: str
    text: str
    wait_s: float
    count_max: int


def parse(payload: bytes) -> Request:
    """Read a request.

    Raises:
        ProtocolError: no map: the connection is of no further use.
        RequestError: a map that asks for nothing that we do.
    """
    try:
        values = unpack(payload)
    except PackingError as error:
        raise ProtocolError(f"a payload that cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ProtocolError("a payload that is not a map")
    op, to, text = values.get("op"), values.get("to", ""), values.get("text", "")
    wait_s, count = values.get("wait", 0), values.get("count", protocol.COUNT_MAX)
    if not isinstance(op, str) or op not in OPS:
        raise RequestError("this relay has no such request")
    if not isinstance(to, str) or not isinstance(text, str):
        raise RequestError("'to' and 'text' must be strings")
    length = len(text.encode("utf-8", "surrogateescape"))
    if length > protocol.TEXT_BYTES_MAX:
        limit = protocol.TEXT_BYTES_MAX
        raise RequestError(f"a message of {length} bytes: {limit} at most")
    if isinstance(wait_s, bool) or not isinstance(wait_s, (int, float)):
        raise RequestError("'wait' must be a number of seconds")
    if not 0 <= wait_s <= protocol.WAIT_S_MAX:
        raise RequestError(f"'wait' must be from 0 to {protocol.WAIT_S_MAX} seconds")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RequestError("'count' must be a whole number of at least 1")
    return Request(op, to, text, float(wait_s), min(count, protocol.COUNT_MAX))


def encode_reply(values: dict[str, object]) -> bytes:
    """Return a reply's frame."""
    return protocol.encode(pack(values))


def encode_error(message: str) -> bytes:
    """Return the frame of a refusal."""
    return encode_reply({"error": message[:200]})


def encode_messages(messages: list[Message], waiting: int) -> bytes:
    """Return the reply to `receive`."""
    items = [{"from": m.from_name, "text": m.text, "at": m.at} for m in messages]
    return encode_reply({"messages": items, "waiting": waiting})
