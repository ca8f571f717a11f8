"""Which modules of a kernel a guest gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.setup.kernel_folder import RELEASE, Kernel, module
from voidbox.setup.errors import SetupError


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "kernel")


def listed(root: Path) -> list[str]:
    """What the agent would load."""
    paths = (root / "usr/lib/voidbox/modules").read_text().split()
    for path in paths:
        assert (root / path.lstrip("/")).is_file()
    return [Path(path).name for path in paths]


def packed(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*.ko*")}


def dependencies(root: Path) -> dict[str, list[str]]:
    lines = (root / f"usr/lib/modules/{RELEASE}/modules.dep").read_text().splitlines()
    return {name: needed.split() for name, needed in (line.split(":") for line in lines)}


def test_only_what_is_a_module_is_taken_and_what_it_needs_comes_first(
    kernel: Kernel, tmp_path: Path
) -> None:
    kernel.configure(VIRTIO_MMIO="m", HW_RANDOM_VIRTIO="m", VIRTIO_NET="y", OVERLAY_FS="m")
    kernel.add("drivers/virtio/virtio.ko", "license=GPL", "depends=virtio_ring")
    kernel.add("drivers/virtio/virtio_ring.ko", "depends=")
    kernel.add("drivers/virtio/virtio_mmio.ko", "depends=virtio_ring,virtio")
    kernel.add("drivers/char/virtio-rng.ko", "depends=virtio")
    kernel.add("drivers/net/virtio_net.ko", "depends=")
    kernel.add("fs/overlay.ko", "alias=fs-overlay", "depends=")
    kernel.install(tmp_path)

    assert listed(tmp_path) == ["virtio_ring.ko", "virtio.ko", "virtio_mmio.ko", "virtio-rng.ko"]
    assert packed(tmp_path / "usr") == {*listed(tmp_path), "overlay.ko"}
    # modprobe loads from the last to the first.
    assert dependencies(tmp_path)["virtio_mmio.ko"] == ["virtio.ko", "virtio_ring.ko"]
    aliases = tmp_path / f"usr/lib/modules/{RELEASE}/modules.alias"
    assert aliases.read_text() == "alias fs-overlay overlay\n"


def test_what_mounts_the_root_is_apart_and_all_loaded_at_once(
    kernel: Kernel, tmp_path: Path
) -> None:
    kernel.configure(VIRTIO_MMIO="m", VIRTIO_BLK="m", EROFS_FS="m", VIRTIO_NET="m", EXT4_FS="y")
    kernel.add("drivers/virtio/virtio_mmio.ko", "depends=")
    kernel.add("drivers/block/virtio_blk.ko", "depends=")
    kernel.add("fs/erofs.ko", "depends=libcrc32c")
    kernel.add("lib/libcrc32c.ko", "depends=")
    kernel.add("drivers/net/virtio_net.ko", "depends=")
    kernel.install(tmp_path, is_boot=True)
    assert listed(tmp_path) == ["virtio_mmio.ko", "virtio_blk.ko", "libcrc32c.ko", "erofs.ko"]
    assert packed(tmp_path / "usr") == set(listed(tmp_path))


def test_a_kernel_with_everything_built_in_gets_none(kernel: Kernel, tmp_path: Path) -> None:
    kernel.configure(VIRTIO_MMIO="y", OVERLAY_FS="y")
    kernel.add("drivers/virtio/virtio_mmio.ko", "depends=")
    kernel.install(tmp_path)
    assert listed(tmp_path) == []
    assert not packed(tmp_path / "usr")


@pytest.mark.parametrize("asked", ["crypto-crc32c", "crc32c_generic"])
def test_a_soft_dependency_is_one(kernel: Kernel, tmp_path: Path, asked: str) -> None:
    """By alias or by name; not the one that loads on some CPUs alone, nor what comes after."""
    kernel.configure(EXT4_FS="m")
    kernel.add("fs/ext4.ko", f"softdep=pre: {asked} post: later", "depends=")
    kernel.add("arch/x86/crc32c-intel.ko", "alias=cpu:type:x86", "alias=crypto-crc32c", "depends=")
    kernel.add("crypto/crc32c_generic.ko", "alias=crypto-crc32c", "depends=")
    kernel.add("crypto/later.ko", "depends=")
    kernel.install(tmp_path)
    assert packed(tmp_path / "usr") == {"ext4.ko", "crc32c_generic.ko"}
    assert dependencies(tmp_path)["ext4.ko"] == ["crc32c_generic.ko"]


def test_a_soft_dependency_that_is_built_in_is_met(kernel: Kernel, tmp_path: Path) -> None:
    kernel.configure(EXT4_FS="m")
    kernel.add("fs/ext4.ko", "softdep=pre: crypto-crc32c", "depends=")
    kernel.add("crypto/other.ko", "alias=crypto-crc32c", "depends=")
    (kernel.modules / "modules.builtin.modinfo").write_text("crc32c_generic.alias=crypto-crc32c\0")
    kernel.install(tmp_path)
    assert packed(tmp_path / "usr") == {"ext4.ko"}


def test_compressed_modules_are_unpacked(kernel: Kernel, tmp_path: Path) -> None:
    kernel.configure(FUSE_FS="m")
    kernel.add("fs/fuse.ko.xz", "depends=")
    kernel.install(tmp_path)
    (copy,) = (tmp_path / "usr").rglob("*.ko*")
    assert copy.name == "fuse.ko"
    assert copy.read_bytes() == module("depends=")


def test_what_is_missing_or_broken_is_named(kernel: Kernel, tmp_path: Path) -> None:
    kernel.configure(VIRTIO_MMIO="m")
    with pytest.raises(SetupError, match="^the kernel's package has no module virtio_mmio$"):
        kernel.install(tmp_path)
    whole = module("depends=")
    (kernel.modules / "kernel").mkdir()
    for content in (b"", b"text", whole[:50], whole[:-80], whole.replace(b".modinfo", b".nothing")):
        (kernel.modules / "kernel" / "virtio_mmio.ko").write_bytes(content)
        with pytest.raises(SetupError, match=r"virtio_mmio\.ko: not a kernel module: [^\n]+$"):
            kernel.install(tmp_path)
