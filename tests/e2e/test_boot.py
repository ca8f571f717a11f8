"""Real kernels, booted by `python -m voidbox run` at a terminal as a person would."""

from __future__ import annotations

import calendar
import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.terminal import Session
from voidbox.boot import acpi, layout
from voidbox.cli import exit_status
from voidbox.vmm.config import DEFAULT_CMDLINE, MachineConfig
from voidbox.vmm.console import CallbackOutput
from voidbox.vmm.machine import Machine
from voidbox.vmm.outcome import EndReason

pytestmark = pytest.mark.boot

PROMPT = r"voidbox:[^\n]*# "
VMM_OVERHEAD_BYTES_MAX = 40 << 20
QUIET_BOOT_EXITS_MAX = 10_000


def run_command(kernel: str, initramfs: str, *options: str) -> list[str]:
    command = [sys.executable, "-m", "voidbox", "run", "--kernel", kernel]
    return [*command, "--initramfs", initramfs, *options]


def boot(kernel: str, initramfs: str, *options: str) -> Session:
    return Session(run_command(kernel, initramfs, *options), str(ROOT))


def run_batch(kernel: str, initramfs: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        run_command(kernel, initramfs, *options),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(("cpus", "memory"), [(1, "256M"), (2, "4G")])
@pytest.mark.parametrize("name", ["cloud", "generic", "minimal", "minimal-elf"])
def test_a_shell_answers_and_powers_off(
    kernels: dict[str, str], initramfs: str, name: str, cpus: int, memory: str
) -> None:
    with boot(kernels[name], initramfs, "--cpus", str(cpus), "--memory", memory) as session:
        session.expect(PROMPT, timeout_s=300)
        session.type("echo $((6 * 7)) CPUs:$(nproc) MiB:$(free -m | awk '/Mem:/{print $2}')=\r")
        answer = session.expect(r"42 CPUs:(\d+) MiB:(\d+)=")
        assert int(answer[1]) == cpus
        expected_mib = 4096 if memory == "4G" else 256
        assert 0.6 * expected_mib < int(answer[2]) <= expected_mib
        session.type("poweroff -f\r")
        assert session.wait() == exit_status.OK
        assert session.is_mode_restored()


@pytest.mark.parametrize("name", ["cloud", "minimal"])
def test_a_bzimage_can_unpack_itself(kernels: dict[str, str], initramfs: str, name: str) -> None:
    options = ("--self-extract", "--cmdline", "voidbox.run=poweroff")
    result = run_batch(kernels[name], initramfs, *options)
    assert (result.returncode, result.stderr) == (exit_status.OK, "")
    assert "reboot: Power down" in result.stdout


def test_the_clock_is_right(kernels: dict[str, str], initramfs: str) -> None:
    with boot(kernels["cloud"], initramfs) as session:
        session.expect(PROMPT)
        session.type("echo NOW=$(date +%s) RTC=$(cat /sys/class/rtc/rtc0/since_epoch)=\r")
        answer = session.expect(r"NOW=(\d+) RTC=(\d+)=")
        host = calendar.timegm(time.gmtime())
        assert abs(int(answer[1]) - host) < 30
        assert abs(int(answer[2]) - host) < 30
        session.type("\x01x")
        assert session.wait() == exit_status.OK


def test_ctrl_c_reaches_the_guest_and_ctrl_a_x_quits(
    kernels: dict[str, str], initramfs: str
) -> None:
    with boot(kernels["minimal"], initramfs) as session:
        session.expect(PROMPT)
        # One job: between two, a Ctrl-C would reach the shell, which ignores it.
        session.type("sh -c \"echo g''o; sleep 1000\"\r")
        session.expect(r"\bgo\r")
        session.type("\x03")
        session.expect(PROMPT)
        session.type("echo still $((1 + 1))\r")
        session.expect(r"still 2")
        session.type("\x01x")
        assert session.wait() == exit_status.OK
        assert session.is_mode_restored()


def test_a_large_paste_arrives_whole(kernels: dict[str, str], initramfs: str) -> None:
    with boot(kernels["minimal"], initramfs) as session:
        session.expect(PROMPT)
        # More than the UART's input buffer, all at once: the rest must wait in the host.
        session.type("stty -echo; echo g''o; head -c 6000 | md5sum\r")
        session.expect(r"\bgo\r")
        lines = [f"{number:099}" for number in range(60)]
        session.type("".join(line + "\r" for line in lines))
        expected = "".join(line + "\n" for line in lines).encode()
        session.expect(hashlib.md5(expected).hexdigest())
        session.type("poweroff -f\r")
        assert session.wait() == exit_status.OK


@pytest.mark.parametrize("name", ["cloud", "minimal"])
def test_a_script_can_be_piped_in_before_the_guest_listens(
    kernels: dict[str, str], initramfs: str, name: str
) -> None:
    result = subprocess.run(
        run_command(kernels[name], initramfs),
        cwd=ROOT,
        input="echo fir''st\necho seco''nd\npoweroff -f\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == exit_status.OK, result.stderr
    assert "\nfirst" in result.stdout
    assert "\nsecond" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_it_and_restore_the_terminal(
    kernels: dict[str, str], initramfs: str, number: signal.Signals
) -> None:
    with boot(kernels["minimal"], initramfs) as session:
        session.expect(PROMPT)
        session.process.send_signal(number)
        assert session.wait() == 128 + number
        assert session.is_mode_restored()


def test_a_reboot_ends_well(kernels: dict[str, str], initramfs: str) -> None:
    result = run_batch(kernels["cloud"], initramfs, "--cmdline", "voidbox.run=reboot")
    assert (result.returncode, result.stderr) == (exit_status.OK, "")


@pytest.mark.parametrize("name", ["cloud", "minimal"])
def test_a_panic_is_told(kernels: dict[str, str], initramfs: str, name: str) -> None:
    result = run_batch(kernels[name], initramfs, "--cmdline", "voidbox.run=panic")
    assert result.returncode == exit_status.PANIC, result.stdout + result.stderr
    assert "the guest's kernel panicked" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_guest_without_init_panics(kernels: dict[str, str]) -> None:
    command = [sys.executable, "-m", "voidbox", "run", "--console", "--kernel", kernels["minimal"]]
    result = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False
    )
    assert result.returncode == exit_status.PANIC
    assert b"Unable to mount root fs" in result.stderr


def test_the_time_limit_ends_it(kernels: dict[str, str], initramfs: str) -> None:
    result = run_batch(kernels["minimal"], initramfs, "--timeout", "3")
    assert result.returncode == exit_status.TIMEOUT
    assert "3 s" in result.stderr


def test_a_quiet_boot_makes_few_exits(
    kernels: dict[str, str], initramfs: str, tmp_path: Path
) -> None:
    stats = tmp_path / "stats.json"
    options = ("--cmdline", "voidbox.run=poweroff", "--stats", str(stats))
    assert run_batch(kernels["cloud"], initramfs, *options).returncode == 0
    document = json.loads(stats.read_text())
    assert sum(document["exits"].values()) < QUIET_BOOT_EXITS_MAX
    assert document["boot_ns"] > 0


def test_verbose_boots_lose_no_console_output(kernels: dict[str, str], initramfs: str) -> None:
    options = ("--cmdline", "loglevel=7 voidbox.run=poweroff")
    result = run_batch(kernels["minimal"], initramfs, *options)
    assert result.returncode == 0
    assert "Linux version" in result.stdout
    assert "reboot: Power down" in result.stdout
    stamps = [float(stamp) for stamp in re.findall(r"^\[ *(\d+\.\d+)\]", result.stdout, re.M)]
    assert len(stamps) > 30
    assert stamps == sorted(stamps)


def test_the_vmm_itself_is_small(kernels: dict[str, str], initramfs: str) -> None:
    with boot(kernels["minimal"], initramfs, "--memory", "1G") as session:
        session.expect(PROMPT)
        pid = session.process.pid
        (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        smaps = Path(f"/proc/{worker}/smaps").read_text()
        overhead_bytes = 0
        for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps):
            size_kib = int(re.search(r"^Size: +(\d+)", mapping, re.M)[1])  # type: ignore[index]
            rss_kib = int(re.search(r"^Rss: +(\d+)", mapping, re.M)[1])  # type: ignore[index]
            if size_kib < 1 << 20:  # all but the guest's memory
                overhead_bytes += rss_kib << 10
        assert overhead_bytes <= VMM_OVERHEAD_BYTES_MAX
        session.type("poweroff -f\r")
        assert session.wait() == exit_status.OK


def test_linux_finds_virtio_devices_in_the_acpi_tables(
    kernels: dict[str, str], initramfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No device answers there yet; what is tested is that Linux's ACPI code reads our AML.
    windows = [
        acpi.MmioDevice(layout.MMIO_DEVICES_GPA + 0x1000 * index, 0x1000, 5 + index)
        for index in range(19)
    ]
    build = acpi.build

    def build_with_devices(*arguments: object) -> bytes:
        return build(*arguments[:3], windows)  # type: ignore[arg-type]

    monkeypatch.setattr(acpi, "build", build_with_devices)
    config = MachineConfig(kernels["cloud"], initramfs, DEFAULT_CMDLINE)
    with Machine(config) as machine:
        output = bytearray()
        has_prompt = threading.Event()

        def on_output(data: bytes) -> None:
            output.extend(data)
            if re.search(PROMPT.encode(), output):
                has_prompt.set()

        machine.console.attach(CallbackOutput(on_output))
        machine.start()
        assert has_prompt.wait(300)
        machine.console.send(b"ls -d /sys/bus/acpi/devices/LNRO0005:*/physical_node | wc -l\n")
        machine.console.send(b"poweroff -f\n")
        outcome = machine.wait(300)
        assert outcome is not None
        assert outcome.reason is EndReason.POWER_OFF
    assert re.search(rb"^19\r?$", output, re.M), output.decode()
