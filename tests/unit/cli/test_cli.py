"""The command line as a user meets it: one line for each mistake, and nothing left behind."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest import tiny
from tests.unit.boot import images
from voidbox.cli import doctor, exit_status
from voidbox.cli.terminal import EscapeFilter, open_unblocking

ROOT = Path(__file__).parents[3]


def voidbox(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voidbox", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def test_version_and_help() -> None:
    assert voidbox("--version").stdout.startswith("voidbox 0.")
    for arguments in (["--help"], ["run", "--help"], ["doctor", "--help"]):
        result = voidbox(*arguments)
        assert result.returncode == exit_status.OK
        assert "usage: voidbox" in result.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["run", "--nonsense"], ["run", "--kernel"], ["doctor", "x"]]
)
def test_misuse_is_status_2(arguments: list[str]) -> None:
    result = voidbox(*arguments)
    assert result.returncode == exit_status.USAGE
    assert "usage:" in result.stderr
    assert "Traceback" not in result.stderr


def test_version_starts_quickly() -> None:
    # Not a timing: the modules that would make it slow are not imported.
    code = "import sys, voidbox.cli; voidbox.cli.main(['--version']); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    modules = set(result.stdout.split())
    assert not modules & {"argparse", "cffi", "ctypes", "typing", "threading", "voidbox.vmm"}


BAD_INPUT = {
    "missing kernel": (["--kernel", "{tmp}/missing"], "No such file"),
    "folder as kernel": (["--kernel", "{tmp}"], "directory"),
    "FIFO as kernel": (["--kernel", "{tmp}/fifo"], "device"),
    "device as kernel": (["--kernel", "/dev/zero"], "device"),
    "FIFO as initramfs": (["--kernel", "{elf}", "--initramfs", "{tmp}/fifo"], "device"),
    "text as kernel": (["--kernel", "{text}"], "no Linux kernel"),
    "truncated bzImage": (["--kernel", "{bzimage_cut}"], "truncated"),
    "truncated ELF": (["--kernel", "{elf_cut}"], "truncated"),
    "missing initramfs": (["--kernel", "{elf}", "--initramfs", "{tmp}/no"], "No such file"),
    "empty initramfs": (["--kernel", "{elf}", "--initramfs", "{empty}"], "empty"),
    "huge initramfs": (["--kernel", "{elf}", "--initramfs", "{huge}"], "does not fit"),
    "long command line": (["--kernel", "{elf}", "--cmdline", "x" * 5000], "shorten"),
    "no CPU": (["--kernel", "{elf}", "--cpus", "0"], "positive"),
    "too many CPUs": (["--kernel", "{elf}", "--cpus", "9"], "1 to 8"),
    "CPUs in words": (["--kernel", "{elf}", "--cpus", "two"], "positive"),
    "no memory": (["--kernel", "{elf}", "--memory", "0"], "at least"),
    "little memory": (["--kernel", "{elf}", "--memory", "1M"], "at least"),
    "absurd memory": (["--kernel", "{elf}", "--memory", "100T"], "choose less"),
    "memory in words": (["--kernel", "{elf}", "--memory", "much"], "512M or 4G"),
    "time limit of 0": (["--kernel", "{elf}", "--timeout", "0"], "positive"),
    "time limit in words": (["--kernel", "{elf}", "--timeout", "soon"], "positive"),
}


@pytest.mark.kvm
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(case: str, tmp_path: Path) -> None:
    files = {
        "text": b"#!/bin/sh\n",
        "elf": images.elf(),
        "elf_cut": images.elf()[:-100],
        "bzimage_cut": images.bzimage()[:-100],
        "empty": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "huge", "wb") as huge:
        huge.truncate(1 << 30)
    names = {name: str(tmp_path / name) for name in [*files, "huge"]}
    options, message = BAD_INPUT[case]
    result = voidbox(
        "run", "--console", *[option.format(tmp=tmp_path, **names) for option in options]
    )
    assert result.returncode == exit_status.USAGE
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.kvm
def test_a_closed_standard_output_is_one_line(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "elf", tiny.power_off())
    command = [
        sys.executable,
        "-m",
        "voidbox",
        "run",
        "--console",
        "--kernel",
        kernel,
        "--memory",
        "32M",
    ]
    result = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == exit_status.USAGE
    assert result.stderr.splitlines() == [
        "voidbox: standard output is closed: send it to /dev/null instead"
    ]


@pytest.mark.kvm
def test_a_tiny_guest_through_the_whole_command(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "elf", tiny.say("hello\n") + tiny.power_off())
    stats = tmp_path / "stats.json"
    result = voidbox(
        "run", "--console", "--kernel", kernel, "--memory", "32M", "--stats", str(stats)
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "hello\n", "")
    assert json.loads(stats.read_text())["exits"]["KVM_EXIT_IO"] >= 1


@pytest.mark.kvm
def test_a_crash_is_told_with_its_status(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "elf", tiny.say("oh\n") + b"\x0f\x0b")
    result = voidbox("run", "--console", "--kernel", kernel, "--memory", "32M")
    assert result.returncode == exit_status.CRASH
    assert "triple fault" in result.stderr
    assert "rip=" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.kvm
def test_the_time_limit_ends_a_guest_that_spins(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "elf", tiny.SPIN)
    result = voidbox("run", "--console", "--kernel", kernel, "--memory", "32M", "--timeout", "0.3")
    assert result.returncode == exit_status.TIMEOUT


@pytest.mark.kvm
def test_a_closed_pipe_ends_it(tmp_path: Path) -> None:
    forever = tiny.out8(tiny.COM1, 0x41) + b"\xeb" + bytes([256 - 9])
    kernel = tiny.write_elf(tmp_path / "elf", forever)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "voidbox",
            "run",
            "--console",
            "--kernel",
            kernel,
            "--memory",
            "32M",
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1) == b"A"
    process.stdout.close()
    assert process.wait(30) == exit_status.BROKEN_PIPE
    assert process.stderr.read() == b""
    process.stderr.close()


def test_escape_filter_whole_and_bytewise() -> None:
    cases = [
        (b"plain", b"plain", False),
        (b"a\x01xb", b"a", True),
        (b"a\x01Xb", b"a", True),
        (b"\x01\x01", b"\x01", False),
        (b"\x01q", b"\x01q", False),
        (b"end\x01", b"end", False),
    ]
    for typed, expected, quits in cases:
        assert EscapeFilter().feed(typed) == (expected, quits)
        bytewise, out, quit_seen = EscapeFilter(), b"", False
        for value in typed:
            piece, quit_now = bytewise.feed(bytes([value]))
            if not quit_seen:
                out += piece
            quit_seen = quit_seen or quit_now
        assert (out, quit_seen) == (expected, quits)


def test_output_never_blocks_and_the_original_is_left_alone(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    leader, follower = pty.openpty()
    left, right = socket.socketpair()
    with open(tmp_path / "file", "w+b") as file:
        for fd, is_unblocking in ((writer, True), (follower, True), (file.fileno(), False)):
            mine = open_unblocking(fd)
            assert os.get_blocking(mine) is not is_unblocking
            assert os.get_blocking(fd)
            os.close(mine)
        os.write(file.fileno(), b"first ")
        mine = open_unblocking(file.fileno())
        os.write(mine, b"second")
        os.close(mine)
        assert (tmp_path / "file").read_bytes() == b"first second"
    mine = open_unblocking(left.fileno())
    assert not os.get_blocking(mine)
    os.close(mine)
    for fd in (reader, writer, leader, follower):
        os.close(fd)
    left.close()
    right.close()


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
