"""Write frames to a file that tcpdump, tshark and Wireshark read (the classic pcap format)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import BinaryIO

# struct pcap_file_header { u32 magic; u16 version_major, version_minor; i32 thiszone;
#     u32 sigfigs, snaplen, linktype; }; the magic says that times are in nanoseconds.
_FILE = struct.Struct("<IHHiIII")
# struct pcap_pkthdr { u32 seconds, nanoseconds, caplen, len; };
_RECORD = struct.Struct("<IIII")
_MAGIC_NANOSECONDS = 0xA1B23C4D
_SNAPLEN = 1 << 18
_LINKTYPE_ETHERNET = 1
assert _FILE.size == 24
assert _RECORD.size == 16


class PcapWriter:
    """A capture file.

    Frames are as they cross the device: with offloads a segment is up to 64 KiB, and its TCP
    checksum is the pseudo header's alone.

    Args:
        file: open for writing in binary; buffered.
        clock_ns: nanoseconds since 1970.
        on_error: called once, when the file can be written no more; frames are then lost.
    """

    def __init__(
        self, file: BinaryIO, clock_ns: Callable[[], int], on_error: Callable[[OSError], None]
    ) -> None:
        self._file: BinaryIO | None = file
        self._clock_ns = clock_ns
        self._on_error = on_error
        self._write(_FILE.pack(_MAGIC_NANOSECONDS, 2, 4, 0, 0, _SNAPLEN, _LINKTYPE_ETHERNET))

    def add(self, buffers: Sequence[memoryview | bytes], length: int) -> None:
        """Write a frame: the first `length` bytes of the buffers."""
        seconds, nanoseconds = divmod(self._clock_ns(), 1_000_000_000)
        data = b"".join(buffers)[:length]
        self._write(_RECORD.pack(seconds & 0xFFFFFFFF, nanoseconds, length, length) + data)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self._file = None
            self._on_error(error)

    def flush(self) -> None:
        """Write out what is buffered."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._file = None
                self._on_error(error)
