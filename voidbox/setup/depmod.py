"""What depmod(8) makes of a kernel's modules: the tables by which modprobe finds them.

    modules.dep, .alias, .softdep, .devname     text, which busybox reads, and who looks
    modules.*.bin                               the same as indexes, which alone kmod reads

An index is a tree of a key's letters (kmod's libkmod/libkmod-index.c); its numbers are big-endian:

    u32 magic, u32 version, u32 root; then nodes, each after its children:
        PREFIX  the letters that all below share, NUL
        CHILDS  u8 first, u8 last, u32 offset[last - first + 1]: by the next letter, 0 for none
        VALUES  u32 count, then of each u32 priority, text, NUL

Which of these three a node has stands in the upper bits of the offset that leads to it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

from voidbox.named_tuple import NamedTuple
from voidbox.setup.modules import Modules

_HEADER = struct.Struct(">III")
_MAGIC, _VERSION = 0xB007F457, 0x0002_0001
_PREFIX, _VALUES, _CHILDS = 0x8000_0000, 0x4000_0000, 0x2000_0000  # INDEX_NODE_*
_U32 = struct.Struct(">I")
_DEVNAME = "devname:"
_DEVICE = re.compile(r"(char|block)-major-(\d+)-(\d+)")


class _Entry(NamedTuple):
    key: bytes
    priority: int
    value: bytes


def tables(modules: Modules) -> dict[str, bytes]:
    """Return the files that lie beside a kernel's modules, by name.

    Raises:
        Missing: a file is no module.
    """
    names = modules.names()
    place = {name: number for number, name in enumerate(names)}
    dependencies = {name: _dependencies(modules, name) for name in names}
    aliases = [(alias, name) for name in names for alias in modules.aliases(name)]
    softdeps = [(name, words) for name in names for words in modules.soft_dependencies(name)]
    lines = [f"{words[0]}: {' '.join(words[1:])}".rstrip() for words in dependencies.values()]
    texts = {
        "modules.dep": lines,
        "modules.alias": [f"alias {alias} {name}" for alias, name in aliases],
        "modules.softdep": [f"softdep {name} {words}" for name, words in softdeps],
        "modules.devname": _device_nodes(modules, names),
    }
    indexes = {
        "modules.dep.bin": [
            _entry(name, place[name], line) for name, line in zip(names, lines, strict=True)
        ],
        "modules.alias.bin": [_entry(alias, place[name], name) for alias, name in aliases],
        "modules.symbols.bin": [],  # nobody asks for a symbol: depends= names modules
        "modules.builtin.bin": [_entry(name, 0, "") for name in modules.builtin_names()],
        "modules.builtin.alias.bin": [
            _entry(alias, 0, name) for alias, name in modules.builtin_aliases()
        ],
    }
    return {
        **{name: "".join(f"{line}\n" for line in found).encode() for name, found in texts.items()},
        **{name: index(entries) for name, entries in indexes.items()},
    }


def _dependencies(modules: Modules, name: str) -> list[str]:
    """Return a module's path, and those that it needs: who loads them begins at the end."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        for needed in modules.dependencies(name):
            if needed not in ordered:
                visit(needed)
        if name not in ordered:
            ordered.append(name)

    visit(name)
    return [modules.path(found) for found in reversed(ordered)]


def _device_nodes(modules: Modules, names: Iterable[str]) -> list[str]:
    """Return modules.devname: of modules that are loaded when their device is opened."""
    found = ["# Device nodes to trigger on-demand module loading."]
    for name in names:
        aliases = modules.aliases(name)
        nodes = [alias.removeprefix(_DEVNAME) for alias in aliases if alias.startswith(_DEVNAME)]
        number = next(filter(None, map(_DEVICE.fullmatch, aliases)), None)
        if number is not None:
            found += [f"{name} {node} {number[1][0]}{number[2]}:{number[3]}" for node in nodes]
    return found


def _entry(key: str, priority: int, value: str) -> _Entry:
    """Return one; kmod looks for keys with underscores for dashes, but between brackets."""
    parts = re.split(r"(\[[^]]*\])", key)
    plain = "".join(part if part.startswith("[") else part.replace("-", "_") for part in parts)
    return _Entry(plain.encode(), priority, value.encode())


def index(entries: Iterable[_Entry]) -> bytes:
    """Return an index; of a key's values the one of the lowest priority counts."""
    out = bytearray(_HEADER.size)
    root = _write(out, sorted(set(entries)), 0)
    _HEADER.pack_into(out, 0, _MAGIC, _VERSION, root)
    return bytes(out)


def _write(out: bytearray, entries: list[_Entry], depth: int) -> int:
    """Write what is below entries, sorted, that agree in `depth` letters; return its offset."""
    # What the first and the last share, all do. The root has no PREFIX, as depmod writes it.
    end = _agreed(entries[0].key, entries[-1].key) if depth else 0
    shared = entries[0].key[depth:end] if depth else b""
    values = [entry for entry in entries if len(entry.key) == end]
    below: dict[int, list[_Entry]] = {}
    for entry in entries[len(values) :]:
        below.setdefault(entry.key[end], []).append(entry)
    children = {letter: _write(out, found, end + 1) for letter, found in below.items()}
    offset = len(out)
    if shared:
        offset |= _PREFIX
        out += shared + b"\0"
    if children:
        offset |= _CHILDS
        first, last = min(children), max(children)
        out += bytes((first, last))
        for letter in range(first, last + 1):
            out += _U32.pack(children.get(letter, 0))
    if values:
        offset |= _VALUES
        out += _U32.pack(len(values))
        for entry in values:
            out += _U32.pack(entry.priority) + entry.value + b"\0"
    return offset


def _agreed(one: bytes, other: bytes) -> int:
    """Return how many letters of their beginnings are the same."""
    pairs = zip(one, other, strict=False)
    shorter = min(len(one), len(other))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), shorter)
