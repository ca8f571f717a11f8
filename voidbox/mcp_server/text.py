"""What a guest wrote, cut to what a model should read. No I/O."""

from __future__ import annotations

import codecs

OUTPUT_BYTES_MAX = 24 << 10  # of each stream: some 6,000 tokens


def shorten(data: bytes, bytes_max: int = OUTPUT_BYTES_MAX) -> str:
    """Return output as text: its beginning and its end if it is long, and what is missing between.

    What is no UTF-8 shows as U+FFFD, also where a character is cut.
    """
    if len(data) <= bytes_max:
        return data.decode("utf-8", "replace")
    half = bytes_max // 2
    left_out = len(data) - 2 * half
    start, end = (part.decode("utf-8", "replace") for part in (data[:half], data[-half:]))
    return f"{start}\n[… {left_out} bytes are left out here …]\n{end}"


def describe(stdout: bytes, stderr: bytes, exit_code: int, notes: tuple[str, ...] = ()) -> str:
    """Return a command's end and output, for a model."""
    parts = [f"exit code: {exit_code}", *notes]
    for name, data in (("stdout", stdout), ("stderr", stderr)):
        if data:
            parts.append(f"{name}:\n{shorten(data)}")
    if not stdout and not stderr:
        parts.append("(no output)")
    return "\n".join(parts)


def page(data: bytes, offset: int, bytes_max: int, file_bytes: int) -> str:
    """Return part of a file as text, with a line that says how to go on if there is more.

    It ends between two characters, so that the parts together are the file.

    Args:
        data: what the file has from `offset` on; if there is more than `bytes_max`, some of it.
        file_bytes: how long the file says it is: those of /proc have nothing, they say.
    Raises:
        ValueError: it is no text, or ends before `offset`.
    """
    if offset and not data:
        raise ValueError(f"it has {file_bytes} bytes: there is nothing at {offset}")
    if b"\0" in data:
        raise ValueError(f"it is no text ({file_bytes} bytes): use sandbox_exec to look into it")
    is_last = len(data) <= bytes_max
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data[:bytes_max], final=is_last)
    if is_last:
        return text
    end = offset + bytes_max - len(decoder.getstate()[0])
    left = f"{file_bytes - end} more bytes" if file_bytes > end else "there is more"
    return f"{text}\n[{left}: read on with offset={end}]"
