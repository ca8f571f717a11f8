from __future__ import annotations

from pathlib import Path

import pytest

from guest_agent import network
from voidbox.agent import protocol
from voidbox.errors import ConfigError
from voidbox.nat import resolv_conf_file
from voidbox.nat.config import NatConfig
from voidbox.sandbox.guest import check_memory, network_files
from voidbox.sandbox.mounts import check_mounted, mount_files
from voidbox.sandbox.root import Root
from voidbox.vmm.config import DiskConfig, MachineConfig, ShareConfig


def config(path: Path, start: bytes, image_mib: int, memory_mib: int) -> MachineConfig:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(image_mib << 20)
    return MachineConfig("kernel", str(path), memory_bytes=memory_mib << 20)


def test_an_image_that_finds_no_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="128 MiB of memory: the image, 44 MiB.*at least 157M"):
        check_memory(config(tmp_path / "image", b"070701", 44, 128))
    check_memory(config(tmp_path / "image", b"070701", 44, 157))


def test_what_cannot_be_known_is_not_judged(tmp_path: Path) -> None:
    check_memory(config(tmp_path / "image", b"\x1f\x8b", 44, 64))  # gzip
    check_memory(config(tmp_path / "image", b"070701", 44, 512)._replace(initramfs="/nowhere"))
    check_memory(MachineConfig("kernel", None, memory_bytes=16 << 20))


def test_what_the_guest_mounts(tmp_path: Path) -> None:
    plain = MachineConfig("kernel", disks=(DiskConfig("/d"),), shares=(ShareConfig("/s", "s"),))
    assert mount_files(plain) == ()
    check_mounted(plain, ())
    config = plain._replace(
        shares=(
            ShareConfig("/h", "inner", target="/a/b c"),
            ShareConfig(str(tmp_path), "workspace", True, "/workspace"),
        ),
        disks=(*plain.disks, DiskConfig("/v/disk.img", serial="volume", target="/a")),
    )
    (entry,) = mount_files(config)
    assert f"/{entry.path}" == protocol.MOUNTS_PATH
    assert entry.data.decode().splitlines() == [
        "virtiofs ro workspace /workspace",
        "ext4 rw volume /a",
        "virtiofs rw inner /a/b c",
    ]
    check_mounted(config, ("exec", "mounts"))


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("mounts:workspace:ENODEV", "no virtio-fs: use the minimal kernel.*the mode copy"),
        ("mounts:workspace:EIO\x1b", r"EIO\\x1b"),
        ("mounts:inner:ENOTDIR", "cannot share /h, as /a/b c: its kernel says ENOTDIR$"),
        ("mounts:volume:ENODEV", "volume /v/disk.img at /a: its kernel, kernel, has no ext4"),
        ("mounts:volume:ENODATA", "it is blank: use it once without :ro"),
        ("mounts:volume:EROFS", "when its machine was killed: use it once without :ro"),
        ("exec", "build the image again"),
        ("mounts:", "nothing of sense"),
        ("mounts:nobody:EIO", "nothing of sense"),
    ],
)
def test_what_the_guest_could_not_mount(tmp_path: Path, said: str, wanted: str) -> None:
    config = MachineConfig(
        "kernel",
        shares=(
            ShareConfig(str(tmp_path), "workspace", True, "/workspace"),
            ShareConfig("/h", "inner", target="/a/b c"),
        ),
        disks=(DiskConfig("/v/disk.img", serial="volume", target="/a"),),
    )
    with pytest.raises(ConfigError, match=wanted):
        check_mounted(config, (said,))


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    for path, tag in ((str(tmp_path), ""), (str(tmp_path), "a b"), ("/", "t"), ("/none", "t")):
        with pytest.raises(ConfigError, match="share"):
            ShareConfig(path, tag).validate()


def test_a_root_on_disks_takes_little(tmp_path: Path) -> None:
    large = config(tmp_path / "image", b"070701", 44, 40)
    on_disks = Root(large.initramfs or "", "/runtime", "/image").applied_to(large, None)
    check_memory(on_disks)
    with pytest.raises(ConfigError, match="32 MiB of memory: .* choose at least 40M"):
        check_memory(on_disks._replace(memory_bytes=32 << 20))


def test_the_guest_gets_its_network_and_the_hosts_search_domains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "resolv.conf"
    monkeypatch.setattr(resolv_conf_file, "RESOLV_CONF", str(conf))
    config = MachineConfig("kernel", net=NatConfig())
    settings = {"address": "10.0.2.15/24", "gateway": "10.0.2.2", "dns": "10.0.2.3"}
    monkeypatch.setattr(network.protocol, "NETWORK_PATH", str(tmp_path / "network"))
    for text, search in (
        ("nameserver 192.0.2.1", {}),
        ("search eng.example.com example.com", {"search": "eng.example.com,example.com"}),
    ):
        conf.write_text(text)
        (entry,) = network_files(config)
        (tmp_path / "network").write_bytes(entry.data)
        assert network._read_settings() == settings | search
    own = config._replace(net=NatConfig(resolvers=(("192.0.2.1", 53),)))
    (entry,) = network_files(own)
    assert b"search" not in entry.data
    assert network_files(MachineConfig("kernel")) == ()
