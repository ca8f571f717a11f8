"""Whether Linux can boot here: known at once, measured once a day, never held against a host."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.guest import tiny
from voidbox import defaults
from voidbox.errors import HostError
from voidbox.kvm import kvm
from voidbox.sandbox import kvm_speed
from voidbox.sandbox.guest import Guest
from voidbox.vmm import probe, requirements
from voidbox.vmm.config import MachineConfig

FAST, SLOW = probe.SpeedProbe(0.5), probe.SpeedProbe(900.0)


class _FakeKvm:
    def close(self) -> None:
        pass


class Host:
    """A KVM whose speed a test chooses.

    Attributes:
        measured: how often it was.
    """

    def __init__(self) -> None:
        self.speed = FAST
        self.measured = 0

    def measure(self, kvm: object) -> probe.SpeedProbe:
        self.measured += 1
        return self.speed


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setenv("VOIDBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kvm_speed, "KVM_DEVICE", str(device))
    monkeypatch.setattr(kvm, "Kvm", _FakeKvm)
    monkeypatch.setattr(requirements, "check", lambda kvm, cpus: None)
    monkeypatch.setattr(probe, "measure", host.measure)
    return host


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    """What is as large as a kernel."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(bytes(1 << 20))
    return str(path)


def cache() -> Path:
    return Path(defaults.cache_folder(), kvm_speed.CACHE_NAME)


def test_a_fast_kvm_is_measured_once(host: Host, kernel: str) -> None:
    for _ in range(3):
        kvm_speed.check_can_boot(kernel)
    assert host.measured == 1
    assert os.listdir(cache().parent) == [kvm_speed.CACHE_NAME]


def test_a_slow_kvm_is_refused_in_one_line_and_measured_each_time(host: Host, kernel: str) -> None:
    host.speed = SLOW
    for _ in range(2):
        with pytest.raises(HostError, match=r"900 ns.*cannot boot.*nested virtualisation") as error:
            kvm_speed.check_can_boot(kernel)
        assert "\n" not in str(error.value)
    assert host.measured == 2
    host.speed = FAST
    kvm_speed.check_can_boot(kernel)


@pytest.mark.parametrize(
    "change",
    [{"at": time.time() - 25 * 3600}, {"at": time.time() + 3600}, {"key": "another"}, {"at": "x"}],
    ids=["a day old", "of the future", "another kvm", "no time"],
)  # fmt: skip
def test_what_does_not_hold_any_more_is_measured(
    host: Host, kernel: str, change: dict[str, object]
) -> None:
    kvm_speed.check_can_boot(kernel)
    cache().write_text(json.dumps({**json.loads(cache().read_text()), **change}))
    kvm_speed.check_can_boot(kernel)
    assert host.measured == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 5000, b'{"at": 1e999}'])
def test_a_damaged_cache_is_measured_anew(host: Host, kernel: str, content: bytes) -> None:
    kvm_speed.check_can_boot(kernel)
    cache().write_bytes(content)
    kvm_speed.check_can_boot(kernel)
    kvm_speed.check_can_boot(kernel)
    assert host.measured == 2


def test_where_nothing_can_be_kept_it_works_all_the_same(host: Host, kernel: str) -> None:
    cache().parent.parent.joinpath("cache").write_text("no folder")
    kvm_speed.check_can_boot(kernel)
    kvm_speed.check_can_boot(kernel)
    assert host.measured == 2


def test_what_is_no_linux_boots_anywhere(host: Host, tmp_path: Path) -> None:
    host.speed = SLOW
    kvm_speed.check_can_boot(tiny.write_elf(tmp_path / "tiny.elf", tiny.SPIN))
    kvm_speed.check_can_boot(str(tmp_path / "missing"))
    assert host.measured == 0


def test_no_machine_is_made_for_linux_on_a_slow_kvm(host: Host, kernel: str) -> None:
    host.speed = SLOW
    with pytest.raises(HostError, match="cannot boot"):
        Guest(MachineConfig(kernel, None))
