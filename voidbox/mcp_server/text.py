"""What a guest wrote, cut to what a model should read. No I/O."""

from __future__ import annotations

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


def page(data: bytes, offset: int, bytes_max: int) -> str:
    """Return part of a file as text, with a line that says how to go on if there is more.

    Raises:
        ValueError: it is no text, or ends before `offset`.
    """
    if offset and offset >= len(data):
        raise ValueError(f"it has {len(data)} bytes: there is nothing at {offset}")
    if b"\0" in data:
        raise ValueError(f"it is no text ({len(data)} bytes): use sandbox_exec to look into it")
    part = data[offset : offset + bytes_max]
    text = part.decode("utf-8", "replace")
    end = offset + len(part)
    if end < len(data):
        text += f"\n[{len(data) - end} more bytes: read on with offset={end}]"
    return text
