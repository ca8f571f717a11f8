"""`voidbox doctor`: each finding that matters comes with what mends it."""

from __future__ import annotations

import contextlib
import json
import os
import types
from pathlib import Path

import pytest

from tests.unit.cli.test_cli import voidbox
from voidbox.cli import doctor, doctor_files, exit_status
from voidbox.cli.doctor_check import Check
from voidbox.kvm.kvm import Kvm
from voidbox.vmm import probe

pytestmark = pytest.mark.slow


def test_doctor_says_what_to_do_about_a_missing_device(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.examine(str(tmp_path / "kvm"))}
    assert checks["kvm"].status == doctor.FAIL
    assert "modprobe kvm_intel" in checks["kvm"].todo
    assert checks["memory"].status in (doctor.PASS, doctor.WARN)


def test_doctor_says_what_to_do_about_a_forbidden_device(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0)
    user = os.geteuid()
    if user == 0:  # root may open everything
        os.seteuid(65534)
    try:
        checks = {check.name: check for check in doctor.examine(str(device))}
    finally:
        os.seteuid(user)
    assert "usermod -aG kvm" in checks["kvm"].todo


@pytest.mark.kvm
def test_doctor_tells_speed_and_capabilities() -> None:
    result = voidbox("doctor", "--json")
    findings = json.loads(result.stdout)
    checks = {check["name"]: check for check in findings["checks"]}
    assert checks["capabilities"]["status"] == doctor.PASS
    assert "ns a loop" in checks["speed"]["found"]
    assert findings["ok"] == (result.returncode == 0)
    assert findings["ok"] or checks["speed"]["todo"]


def examined(monkeypatch: pytest.MonkeyPatch, home: Path) -> dict[str, Check]:
    """What doctor says of files, for a user with this home."""
    for name in ("VOIDBOX_CACHE", "VOIDBOX_STATE", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return {check.name: check for check in doctor_files.examine_files()}


def test_doctor_says_how_an_empty_home_gets_a_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checks = examined(monkeypatch, tmp_path)
    assert checks["kernel"].status == doctor.FAIL
    assert checks["kernel"].todo
    assert checks["state folder"].status == doctor.PASS
    assert checks["user"].status == doctor.PASS


def test_doctor_tells_of_kernel_and_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = tmp_path / ".cache" / "voidbox"
    kernel = cache / "kernels" / "current-minimal"
    kernel.mkdir(parents=True)
    (kernel / "bzImage").write_bytes(bytes(2048))
    checks = examined(monkeypatch, tmp_path)
    assert checks["kernel"].status == doctor.PASS
    assert checks["image"].status == doctor.FAIL
    assert checks["image"].todo
    image = cache / "images" / "current-builtin"
    image.mkdir(parents=True)
    (image / "initramfs.cpio").write_bytes(bytes(3 << 20))
    checks = examined(monkeypatch, tmp_path)
    assert checks["image"].status == doctor.PASS
    assert "initramfs.cpio, 3 MB" in checks["image"].found


def test_doctor_tells_of_a_folder_that_others_may_write_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / ".local" / "state" / "voidbox"
    state.mkdir(parents=True)
    state.chmod(0o777)
    checks = examined(monkeypatch, tmp_path)
    assert checks["state folder"].status == doctor.FAIL
    assert "chmod 700" in checks["state folder"].todo


@pytest.mark.parametrize(
    "free_bytes, status",
    [(1 << 40, doctor.PASS), (1 << 30, doctor.WARN), (1 << 20, doctor.FAIL)],
)
def test_doctor_tells_of_a_disk_that_gets_full(
    monkeypatch: pytest.MonkeyPatch, free_bytes: int, status: str
) -> None:
    system = types.SimpleNamespace(f_bavail=free_bytes // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: system)
    check = doctor_files.check_free_disk("/state")
    assert check.status == status
    assert ("voidbox prune" in check.todo) == (status != doctor.PASS)


@pytest.mark.kvm
def test_run_ends_at_once_where_linux_cannot_boot(tmp_path: Path) -> None:
    with contextlib.closing(Kvm()) as kvm:
        if not probe.measure(kvm).is_emulated:
            pytest.skip("this KVM boots Linux: the refusal is for those that cannot")
    kernel, image = tmp_path / "vmlinuz", tmp_path / "image.cpio"
    kernel.write_bytes(bytes(1 << 20))
    image.write_bytes(bytes(512))
    for options in (["--console"], ["--initramfs", str(image), "--", "true"]):
        result = voidbox("run", "--kernel", str(kernel), *options)
        assert result.returncode == exit_status.USAGE
        assert len(result.stderr.splitlines()) == 1
        assert "cannot boot" in result.stderr
