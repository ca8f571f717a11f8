"""Replaces secrets in a stream from their host: some servers tell what they were told."""

from __future__ import annotations

from collections.abc import Sequence

MASKED_BYTES_MIN = 8


class Masker:
    """Sans I/O. What comes out is as long as what went in.

    Args:
        masks: pairs of what is replaced and by what, of the same length.
    """

    def __init__(self, masks: Sequence[tuple[bytes, bytes]]) -> None:
        # A shorter one would be met everywhere.
        masks = [mask for mask in masks if len(mask[0]) >= MASKED_BYTES_MIN]
        self._masks = sorted(masks, key=lambda mask: -len(mask[0]))
        self._held_back = b""

    def feed(self, data: bytes) -> bytes:
        """Return what may go on: all but an end that could be a beginning of a secret."""
        if not self._masks:
            return data
        if self._held_back:
            data = self._held_back + data
        data = self._replace(data)
        keep = self._open_end(data)
        self._held_back = data[len(data) - keep :]
        return data[: len(data) - keep] if keep else data

    def end(self) -> bytes:
        """Return what was held back."""
        data, self._held_back = self._held_back, b""
        return data

    def whole(self, data: bytes) -> bytes:
        """Return what is complete in itself, such as a header's value."""
        return self._replace(data)

    def _replace(self, data: bytes) -> bytes:
        for value, cover in self._masks:
            if value in data:
                data = data.replace(value, cover)
        return data

    def _open_end(self, data: bytes) -> int:
        """Return how many bytes at the end begin a secret: nearly always none."""
        begin = len(data)
        for value, _ in self._masks:
            start = data.find(value[:1], max(0, len(data) - len(value) + 1), begin)
            while start >= 0 and not value.startswith(data[start:]):
                start = data.find(value[:1], start + 1, begin)
            if start >= 0:
                begin = start
        return len(data) - begin


class Finder:
    """Looks for texts in a stream. Sans I/O."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = list(texts)
        self._overlap = max(map(len, texts), default=1) - 1
        self._tail = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return what has turned up for the first time."""
        if not self._texts:
            return []
        joined = self._tail + data if self._tail else data
        found = [text for text in self._texts if text in joined]
        for text in found:
            self._texts.remove(text)
        self._tail = joined[-self._overlap :] if self._overlap else b""
        return found
