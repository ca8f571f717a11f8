"""Which modules of a kernel a guest needs: those that the kernel's configuration makes modules,
with all that they depend on. None of a kernel that has them built in.

What comes out are files of the guest's image:

    usr/lib/modules/RELEASE    the modules, modules.dep and modules.alias, where busybox's modprobe
                               finds what a user names, or the kernel asks for at a mount
    usr/lib/voidbox/modules    what the agent loads at once: one path a line, each after those that
                               it needs

or of the initramfs that mounts the root, which gets what that takes, all of it loaded at once.
"""

from __future__ import annotations

import lzma
import struct
from functools import cache
from pathlib import Path

from voidbox.setup.errors import SetupError

LIST = "usr/lib/voidbox/modules"

# Kconfig symbol to module.
AT_ONCE = {
    "VIRTIO_MMIO": "virtio_mmio",
    "VIRTIO_VSOCKETS": "vmw_vsock_virtio_transport",
    "HW_RANDOM_VIRTIO": "virtio_rng",
    "VIRTIO_NET": "virtio_net",
    "VIRTIO_BLK": "virtio_blk",
    "VIRTIO_BALLOON": "virtio_balloon",
}
FOR_BOOT = {
    "VIRTIO_MMIO": "virtio_mmio",
    "VIRTIO_BLK": "virtio_blk",
    "EROFS_FS": "erofs",
    "EXT4_FS": "ext4",
    "OVERLAY_FS": "overlay",
}
ON_DEMAND = {
    "VIRTIO_CONSOLE": "virtio_console",
    "PACKET": "af_packet",
    "EXT4_FS": "ext4",
    "EROFS_FS": "erofs",
    "SQUASHFS": "squashfs",
    "OVERLAY_FS": "overlay",
    "FUSE_FS": "fuse",
    "VIRTIO_FS": "virtiofs",
}

# Elf64_Ehdr: e_shoff at 40; e_shentsize, e_shnum and e_shstrndx at 58.
_SECTIONS = struct.Struct("<40xQ10xHHH")
# Elf64_Shdr: sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, …
_SECTION = struct.Struct("<IIQQQQ24x")


class Missing(SetupError):
    """A module that the configuration promises is not there, or is none."""


def modinfo(content: bytes) -> list[tuple[str, str]]:
    """Return the (key, value) pairs of a module's .modinfo section.

    Raises:
        ValueError: not an ELF file with such a section.
    """
    if content[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    try:
        table, size, count, names_idx = _SECTIONS.unpack_from(content)
        headers = [_SECTION.unpack_from(content, table + size * idx) for idx in range(count)]
        names = headers[names_idx][4]
        for name, _, _, _, offset, length in headers:
            if content[names + name :].startswith(b".modinfo\0"):
                words = content[offset : offset + length].split(b"\0")
                pairs = [word.decode().partition("=") for word in words if word]
                return [(key, value) for key, _, value in pairs]
    except (struct.error, IndexError) as error:
        raise ValueError("cut short") from error
    raise ValueError("no .modinfo section")


def _name(word: str) -> str:
    return word.replace("-", "_")


class Modules:
    """The modules of one kernel, as its package has them.

    Args:
        folder: its lib/modules/RELEASE.
    """

    def __init__(self, folder: Path) -> None:
        self.release = folder.name
        self._folder = folder
        self._paths = {_name(path.name.split(".")[0]): path for path in folder.rglob("*.ko*")}
        self._builtin = self._read_builtin(folder)

    @staticmethod
    def _read_builtin(folder: Path) -> set[str]:
        """Names and aliases of what the kernel has built in."""
        names = set()
        for line in _lines(folder / "modules.builtin", "\n"):
            names.add(_name(Path(line).name.split(".")[0]))
        for line in _lines(folder / "modules.builtin.modinfo", "\0"):
            key, _, value = line.partition("=")
            if key.endswith(".alias"):
                names.add(_name(value))
        return names

    def names(self) -> list[str]:
        """Return all modules, in the order in which the kernel was linked: of two that know a
        device the first is meant.
        """
        lines = _lines(self._folder / "modules.order", "\n")
        order = {_name(Path(line).name.split(".")[0]): place for place, line in enumerate(lines)}
        return sorted(self._paths, key=lambda name: (order.get(name, len(order)), name))

    def path(self, name: str) -> str:
        """Return where a module lies, below lib/modules/RELEASE."""
        return str(self._paths[name].relative_to(self._folder))

    def builtin_names(self) -> list[str]:
        """Return the modules that the kernel has built in."""
        lines = _lines(self._folder / "modules.builtin", "\n")
        return [_name(Path(line).name.split(".")[0]) for line in lines]

    def builtin_aliases(self) -> list[tuple[str, str]]:
        """Return by what else they can be asked for: (alias, name)."""
        found = []
        for line in _lines(self._folder / "modules.builtin.modinfo", "\0"):
            key, _, value = line.partition("=")
            name, _, key = key.partition(".")
            if key == "alias":
                found.append((value, _name(name)))
        return found

    def file_name(self, name: str) -> str:
        """Return the name of a module's file, uncompressed."""
        return self._paths[name].name.split(".")[0] + ".ko"

    def content(self, name: str) -> bytes:
        """Return a module's file, uncompressed."""
        if name not in self._paths:
            raise Missing(f"the kernel's package has no module {name}")
        data = self._paths[name].read_bytes()
        return lzma.decompress(data) if self._paths[name].suffix == ".xz" else data

    @cache  # noqa: B019  # one object, which lives as long as the program
    def info(self, name: str) -> list[tuple[str, str]]:
        """Return the pairs of a module's .modinfo section."""
        try:
            return modinfo(self.content(name))
        except (ValueError, lzma.LZMAError) as error:
            raise Missing(f"{self._paths[name]}: not a kernel module: {error}") from error

    def aliases(self, name: str) -> list[str]:
        """Return by what else a module can be asked for."""
        return [value for key, value in self.info(name) if key == "alias"]

    def dependencies(self, name: str) -> list[str]:
        """Return the modules whose symbols a module uses."""
        lists = [value for key, value in self.info(name) if key == "depends"]
        return [_name(word) for value in lists for word in value.split(",") if word]

    def soft_dependencies(self, name: str) -> list[str]:
        """Return what it says of those it does better with: "pre: a b post: c"."""
        return [value for key, value in self.info(name) if key == "softdep"]

    def needs(self, name: str) -> list[str]:
        """Return what must be loaded before a module.

        Soft dependencies count: without crc32c, libcrc32c does not load and ext4 does not mount,
        and busybox's modprobe knows nothing of them.
        """
        needed = self.dependencies(name)
        for value in self.soft_dependencies(name):
            if value.startswith("pre:"):
                before = value.removeprefix("pre:").split("post:")[0]
                for word in before.split():
                    needed += self._providers(_name(word))
        return needed

    def _providers(self, word: str) -> list[str]:
        """Return the modules that a soft dependency asks for: by name, or by alias."""
        if word in self._builtin:
            return []
        if word in self._paths:
            return [word]
        found = []
        for name in sorted(self._paths):
            aliases = self.aliases(name)
            # Those for some CPUs alone do not load on others, nor then does what needs them.
            for_any_cpu = not any(alias.startswith("cpu:") for alias in aliases)
            if for_any_cpu and word in map(_name, aliases):
                found.append(name)
        return found

    def in_order(self, wanted: list[str]) -> list[str]:
        """Return the wanted modules and what they need, each after those that it needs.

        Raises:
            Missing: one of them is not available.
        """
        ordered: list[str] = []
        seen = set()

        def visit(name: str) -> None:
            if name in seen:
                return
            seen.add(name)
            for needed in self.needs(name):
                visit(needed)
            ordered.append(name)

        for name in wanted:
            visit(name)
        return ordered


def _lines(path: Path, separator: str) -> list[str]:
    return [line for line in path.read_text().split(separator) if line] if path.exists() else []


def guest_files(config: str, folder: str, *, is_boot: bool = False) -> dict[str, bytes]:
    """Return the files of a guest's image that are its kernel's modules, by path.

    Args:
        config: the path of the kernel's .config.
        folder: its lib/modules/RELEASE.
        is_boot: for the initramfs that mounts the root.
    Raises:
        Missing: a module that the configuration promises is not there.
        OSError: reading failed.
    """
    as_modules = {
        line.removeprefix("CONFIG_").removesuffix("=m")
        for line in Path(config).read_text().splitlines()
        if line.endswith("=m")
    }
    wanted, others = (FOR_BOOT, {}) if is_boot else (AT_ONCE, ON_DEMAND)
    at_once = [name for symbol, name in wanted.items() if symbol in as_modules]
    on_demand = [name for symbol, name in others.items() if symbol in as_modules]
    modules = Modules(Path(folder))
    target = f"usr/lib/modules/{modules.release}"
    files: dict[str, bytes] = {}
    dependencies, aliases = [], []
    for name in modules.in_order([*at_once, *on_demand]):
        file_name = modules.file_name(name)
        files[f"{target}/{file_name}"] = modules.content(name)
        # modprobe loads from the last to the first.
        first = reversed(modules.in_order([name])[:-1])
        needed = "".join(f" {modules.file_name(other)}" for other in first)
        dependencies.append(f"{file_name}:{needed}\n")
        aliases += [f"alias {alias} {name}\n" for alias in modules.aliases(name)]
    if dependencies:
        files[f"{target}/modules.dep"] = "".join(dependencies).encode()
        files[f"{target}/modules.alias"] = "".join(aliases).encode()
    loaded = [f"/{target}/{modules.file_name(name)}\n" for name in modules.in_order(at_once)]
    files[LIST] = "".join(loaded).encode()
    return files
