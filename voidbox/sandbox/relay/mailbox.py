"""A sandbox's mailbox: messages that wait for its programs, bounded in number and bytes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Lock

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.relay.protocol import DELIVERED, FULL, NOT_RUNNING, TEXT_BYTES_MAX

MESSAGES_MAX = 256
BYTES_MAX = 512 << 10
FROM_BYTES_MAX = 128
# What a message costs beside its text and its sender's name: more than a reply's map adds to them.
OVERHEAD_BYTES = 64
# One sender gets half of the mailbox at most, so that a flood leaves room for the others.
_SENDER_SHARE = 2


class Message(NamedTuple):
    """One message.

    Attributes:
        at: when it was delivered, in seconds since 1970.
        cost_bytes: what it counts in a mailbox.
    """

    from_name: str
    text: str
    at: float
    cost_bytes: int


class Mailbox:
    """Messages in the order of their delivery. Thread: any.

    What was taken counts until it is confirmed or given back.

    Args:
        messages_max, bytes_max: a message that would exceed them is refused.
        clock: seconds since 1970.

    Attributes:
        on_put: called after a message came, on the thread of who put it.
    """

    def __init__(
        self,
        messages_max: int = MESSAGES_MAX,
        bytes_max: int = BYTES_MAX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.on_put: Callable[[], None] = lambda: None
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._clock = clock
        self._lock = Lock()  # covers what follows; never held while calling out
        self._messages: deque[Message] = deque()
        self._held: dict[str, tuple[int, int]] = {}  # by sender: messages and bytes
        self._is_closed = False

    def put(self, from_name: str, text: str) -> str:
        """Add a message; returns DELIVERED, FULL or NOT_RUNNING.

        Raises:
            ConfigError: the text or the name is too long, or cannot be written as UTF-8.
        """
        cost = _length(text, "a message", TEXT_BYTES_MAX)
        cost += _length(from_name, "a sender's name", FROM_BYTES_MAX) + OVERHEAD_BYTES
        with self._lock:
            if self._is_closed:
                return NOT_RUNNING
            if not self._has_room(from_name, cost):
                return FULL
            self._messages.append(Message(from_name, text, self._clock(), cost))
            self._hold(from_name, 1, cost)
        self.on_put()
        return DELIVERED

    def take(self, count: int, bytes_max: int) -> list[Message]:
        """Return the oldest messages, at most `count` that cost no more than `bytes_max`."""
        taken: list[Message] = []
        with self._lock:
            while self._messages and len(taken) < count:
                bytes_max -= self._messages[0].cost_bytes
                if bytes_max < 0:
                    break
                taken.append(self._messages.popleft())
        return taken

    def confirm(self, taken: list[Message]) -> None:
        """Forget what was taken: it reached its reader."""
        with self._lock:
            for message in taken:
                self._hold(message.from_name, -1, -message.cost_bytes)

    def give_back(self, taken: list[Message]) -> None:
        """Put what was taken where it was: before all others."""
        with self._lock:
            self._messages.extendleft(reversed(taken))

    def close(self) -> None:
        """Take no more messages. Idempotent."""
        with self._lock:
            self._is_closed = True

    def __len__(self) -> int:
        """How many messages wait."""
        return len(self._messages)

    def _has_room(self, from_name: str, cost: int) -> bool:
        messages, size = map(sum, zip(*self._held.values(), strict=True)) if self._held else (0, 0)
        own_messages, own_size = self._held.get(from_name, (0, 0))
        return (
            messages < self._messages_max
            and size + cost <= self._bytes_max
            and own_messages < self._messages_max // _SENDER_SHARE
            and own_size + cost <= self._bytes_max // _SENDER_SHARE
        )

    def _hold(self, from_name: str, messages: int, size: int) -> None:
        before = self._held.get(from_name, (0, 0))
        after = before[0] + messages, before[1] + size
        if after[0]:
            self._held[from_name] = after
        else:
            del self._held[from_name]


def _length(text: str, what: str, limit: int) -> int:
    try:
        length = len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} with half a character, which no UTF-8 can hold") from error
    if length > limit:
        raise ConfigError(f"{what} of {length} bytes: {limit} at most")
    return length
