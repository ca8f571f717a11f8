"""A kernel's folder, with modules of the tests' own."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

from voidbox.setup.modules import guest_files

RELEASE = "6.1.0-test"


def module(*modinfo: str) -> bytes:
    """Make an ELF file that has nothing but a .modinfo section."""
    info = b"".join(word.encode() + b"\0" for word in modinfo)
    names = b"\0.modinfo\0.shstrtab\0"
    info_at, names_at = 64, 64 + len(info)
    table_at = names_at + len(names)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table_at, 0, 64, 0, 0, 64, 3, 2)
    sections = [(0, 0, 0, 0), (1, 1, info_at, len(info)), (10, 3, names_at, len(names))]
    table = [
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 1, 0)
        for name, kind, at, size in sections
    ]
    return header + info + names + b"".join(table)


class Kernel:
    """A kernel's folder as kernel/fetch_debian.sh leaves it, with modules of a test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules = folder / "lib" / "modules" / RELEASE
        self.modules.mkdir(parents=True)
        (folder / "vmlinuz").write_bytes(b"kernel")

    def configure(self, **symbols: str) -> None:
        lines = [f"CONFIG_{symbol}={value}\n" for symbol, value in symbols.items()]
        (self.folder / "config").write_text("".join(lines))

    def add(self, path: str, *modinfo: str) -> None:
        file = self.modules / "kernel" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        content = module(*modinfo)
        file.write_bytes(lzma.compress(content) if path.endswith(".xz") else content)

    def install(self, root: Path, *, is_boot: bool = False) -> None:
        """Write the files into a folder."""
        files = guest_files(str(self.folder / "config"), str(self.modules), is_boot=is_boot)
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
