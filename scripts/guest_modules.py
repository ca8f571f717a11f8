"""Put the kernel modules that a guest needs into an image's tree: those that the kernel's
configuration makes modules, with all that they depend on. Nothing for a kernel that has them
built in.

    python scripts/guest_modules.py CONFIG MODULES ROOT

CONFIG is the kernel's .config, MODULES its lib/modules/RELEASE. ROOT gets lib/modules/RELEASE with
modules.dep, for modprobe, and usr/lib/voidbox/modules: what the agent loads at once, one path a
line, each after those that it needs.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

# Kconfig symbol to module.
AT_ONCE = {
    "VIRTIO_MMIO": "virtio_mmio",
    "VIRTIO_VSOCKETS": "vmw_vsock_virtio_transport",
    "HW_RANDOM_VIRTIO": "virtio_rng",
    "VIRTIO_NET": "virtio_net",
}
ON_DEMAND = {
    "VIRTIO_BLK": "virtio_blk",
    "VIRTIO_CONSOLE": "virtio_console",
    "PACKET": "af_packet",
    "EXT4_FS": "ext4",
    "EROFS_FS": "erofs",
    "SQUASHFS": "squashfs",
    "OVERLAY_FS": "overlay",
    "FUSE_FS": "fuse",
    "9P_FS": "9p",
    "NET_9P_VIRTIO": "9pnet_virtio",
}


class Missing(Exception):
    """A module that the configuration promises is not there."""


def _name(path: Path) -> str:
    return _stem(path).replace("-", "_")


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def depends(content: bytes) -> list[str]:
    """Return what a module's .modinfo section says it depends on."""
    marker = b"\0depends="
    at = content.find(marker)
    if at < 0:
        return []
    names = content[at + len(marker) :].split(b"\0", 1)[0].decode()
    return [name.replace("-", "_") for name in names.split(",") if name]


def in_order(wanted: list[str], available: dict[str, Path]) -> list[str]:
    """Return the wanted modules and their dependencies, each after those that it needs.

    Raises:
        Missing: one of them is not available.
    """
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name in ordered:
            return
        if name not in available:
            raise Missing(f"the kernel's package has no module {name}")
        for needed in depends(_content(available[name])):
            visit(needed)
        ordered.append(name)

    for name in wanted:
        visit(name)
    return ordered


def install(config: Path, modules: Path, root: Path) -> None:
    """Copy the modules, and write the two lists."""
    as_modules = {
        line.removeprefix("CONFIG_").removesuffix("=m")
        for line in config.read_text().splitlines()
        if line.endswith("=m")
    }
    at_once = [name for symbol, name in AT_ONCE.items() if symbol in as_modules]
    on_demand = [name for symbol, name in ON_DEMAND.items() if symbol in as_modules]
    lists = root / "usr/lib/voidbox"
    lists.mkdir(parents=True, exist_ok=True)
    available: dict[str, Path] = {}
    if at_once or on_demand:
        available = {_name(path): path for path in modules.rglob("*.ko*")}
    folder = f"usr/lib/modules/{modules.name}"
    dependencies = []
    for name in in_order([*at_once, *on_demand], available):
        content = _content(available[name])
        path = root / folder / f"{_stem(available[name])}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        needed = reversed(in_order(depends(content), available))
        files = "".join(f" {_stem(available[other])}.ko" for other in needed)
        dependencies.append(f"{path.name}:{files}\n")
    if dependencies:
        (root / folder / "modules.dep").write_text("".join(dependencies))
    first = in_order(at_once, available)
    (lists / "modules").write_text(
        "".join(f"/{folder}/{_stem(available[name])}.ko\n" for name in first)
    )


def main(arguments: list[str]) -> int:
    """Install; returns the exit status."""
    config, modules, root = map(Path, arguments)
    try:
        install(config, modules, root)
    except (Missing, OSError) as error:
        print(f"guest_modules.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
