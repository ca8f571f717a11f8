"""Read an EROFS image, written from the kernel's header alone; shares no code with the writer."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 4096
PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
}
TYPES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    6: stat.S_IFSOCK,
    7: stat.S_IFLNK,
}


class File(NamedTuple):
    """An inode as the image tells it."""

    nid: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    device: tuple[int, int]
    xattrs: dict[str, bytes]
    content: bytes


def crc32c(data: bytes) -> int:
    """Bit by bit, most significant first, over reversed bits: not the writer's way."""

    def reflect(value: int, width: int) -> int:
        return int(f"{value:0{width}b}"[::-1], 2)

    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= reflect(byte, 8) << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x1EDC6F41 if crc & 1 << 31 else 0)) & 0xFFFFFFFF
    return reflect(crc, 32)


def unpack_lz4(data: bytes, length: int) -> bytes:
    """Return what a block of LZ4 unpacks to (lz4_Block_format.md)."""
    output = bytearray()
    at = 0

    def number(low: int) -> int:
        nonlocal at
        while low >= 15 and data[at] == 255:
            low, at = low + 255, at + 1
        if low >= 15:
            low, at = low + data[at], at + 1
        return low

    while at < len(data):
        token = data[at]
        at += 1
        literals = number(token >> 4)
        output += data[at : at + literals]
        at += literals
        if at == len(data):
            break
        distance = int.from_bytes(data[at : at + 2], "little")
        at += 2
        for _ in range(number(token & 15) + 4):
            output.append(output[-distance])
    assert len(output) == length
    return bytes(output)


class Image:
    """An image in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        magic, self.checksum, self.compat = struct.unpack_from("<III", data, 1024)
        block_bits, slots, self.root_nid, self.inodes = struct.unpack_from("<BBHQ", data, 1036)
        self.blocks, self.meta_block, self.xattr_block = struct.unpack_from("<III", data, 1060)
        self.uuid = data[1072:1088]
        (self.incompat,) = struct.unpack_from("<I", data, 1104)
        assert (magic, block_bits, slots) == (0xE0F5E1E2, 12, 0)
        assert self.incompat in (0, 3)
        if self.incompat:
            algorithms, *configuration = struct.unpack_from("<H42xHHH", data, 1108)
            assert (algorithms, *configuration) == (1, 14, 65535, 33)
        assert len(data) == self.blocks * BLOCK
        zeroed = data[1024:1028] + bytes(4) + data[1032:4096]
        assert crc32c(zeroed) == self.checksum

    def file(self, nid: int) -> File:
        """Return the inode with this number."""
        start = self.meta_block * BLOCK + nid * 32
        fields = struct.unpack_from("<HHHHQIIIIqII", self.data, start)
        form, icount, mode, _, size, where, _, uid, gid, seconds, nanoseconds, nlink = fields
        layout = form >> 1
        assert form & 1 and layout in (0, 1, 2) and start % BLOCK + 64 <= BLOCK
        xattr_bytes = 12 + 4 * (icount - 1) if icount else 0
        after = start + 64
        xattrs = dict(self._xattrs(self.data[after : after + xattr_bytes]))
        content, device = b"", (0, 0)
        if stat.S_IFMT(mode) in (stat.S_IFCHR, stat.S_IFBLK):
            device = (where >> 8 & 0xFFF, where & 0xFF | where >> 12 & 0xFFF00)
        elif stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            content = self._content(layout, size, where, after + xattr_bytes)
        mtime_ns = seconds * 10**9 + nanoseconds
        return File(nid, mode, uid, gid, mtime_ns, nlink, device, xattrs, content)

    def _content(self, layout: int, size: int, block: int, inline: int) -> bytes:
        if layout == 1:
            return self._compressed(size, block, inline)
        if layout == 0:
            assert block * BLOCK + size <= len(self.data)
            return self.data[block * BLOCK : block * BLOCK + size]
        tail = size % BLOCK
        assert tail and inline // BLOCK == (inline + tail - 1) // BLOCK, "crosses a block"
        whole = self.data[block * BLOCK : block * BLOCK + size - tail]
        return whole + self.data[inline : inline + tail]

    def _compressed(self, size: int, blocks: int, inline: int) -> bytes:
        """As zmap.c reads it, by the indexes of full size."""
        header = -(-inline // 8) * 8
        advise, algorithm, cluster_bits = struct.unpack_from("<4xHBB", self.data, header)
        assert (advise, algorithm, cluster_bits) == (2, 0, 0)
        clusters = -(-size // BLOCK)
        where = [
            struct.unpack_from("<HHI", self.data, header + 16 + 8 * i) for i in range(clusters)
        ]
        content, used = b"", []
        lcn = 0
        while lcn < clusters:
            kind, offset, block = where[lcn]
            assert kind in (0, 1) and offset == 0
            if kind == 0:
                used.append(block)
                content += self.data[block * BLOCK : (block + 1) * BLOCK]
                lcn += 1
                continue
            first = lcn
            lcn += 1
            assert where[lcn][0] == 2 and where[lcn][2] & 0x800, "no count of blocks"
            count = where[lcn][2] & 0x7FF
            while lcn < clusters and where[lcn][0] == 2:
                back, on = where[lcn][2] & 0xFFFF, where[lcn][2] >> 16
                assert lcn == first + 1 or back == lcn - first
                assert lcn + on == clusters or where[lcn + on][0] != 2
                lcn += 1
            used += range(block, block + count)
            data = self.data[block * BLOCK : (block + count) * BLOCK].lstrip(b"\0")
            assert count * BLOCK - len(data) < BLOCK and count < lcn - first
            content += unpack_lz4(data, min(lcn * BLOCK, size) - first * BLOCK)
        assert len(used) == len(set(used)) == blocks
        return content[:size]

    @staticmethod
    def _xattrs(area: bytes) -> Iterator[tuple[str, bytes]]:
        if not area:
            return
        assert area[:12] == bytes(12)
        position = 12
        while position < len(area):
            length, index, size = struct.unpack_from("<BBH", area, position)
            name = area[position + 4 : position + 4 + length].decode()
            value = area[position + 4 + length : position + 4 + length + size]
            yield PREFIXES[index] + name, value
            position += (4 + length + size + 3) // 4 * 4
        assert position == len(area)

    def names(self, folder: File) -> Iterator[tuple[bytes, int, int]]:
        """Yield (name, nid, type) of a folder; checks that they are sorted, over blocks too."""
        last = b""
        for start in range(0, len(folder.content), BLOCK):
            block = folder.content[start : start + BLOCK]
            count = struct.unpack_from("<QH", block)[1] // 12
            offsets = [struct.unpack_from("<QHB", block, 12 * i) for i in range(count)]
            ends = [offset for _, offset, _ in offsets[1:]] + [len(block)]
            for (nid, offset, kind), end in zip(offsets, ends, strict=True):
                name = block[offset:end].rstrip(b"\0")
                assert last < name, "not sorted"
                last = name
                yield name, nid, TYPES[kind]

    def walk(self) -> Iterator[tuple[bytes, File]]:
        """Yield (path, file) of everything; checks what folders say of each other."""
        pending = [(b"", self.root_nid, self.root_nid)]
        while pending:
            path, nid, parent = pending.pop()
            file = self.file(nid)
            yield path, file
            if not stat.S_ISDIR(file.mode):
                continue
            found = {name: (nid, kind) for name, nid, kind in self.names(file)}
            assert found.pop(b".") == (nid, stat.S_IFDIR)
            assert found.pop(b"..") == (parent, stat.S_IFDIR)
            for name, (child, kind) in found.items():
                assert stat.S_IFMT(self.file(child).mode) == kind
                pending.append((path + b"/" + name if path else name, child, nid))

    def files(self) -> dict[str, File]:
        """Return everything by path."""
        return {path.decode("utf-8", "surrogateescape"): file for path, file in self.walk()}
