"""The command line as a user meets it: one line for each mistake, and nothing left behind."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.guest import tiny
from tests.unit.boot import images
from voidbox import cli
from voidbox.cli import exit_status
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
    assert "usage:" in result.stderr or len(result.stderr.splitlines()) == 1
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
    "time limit of 0": (["--kernel", "{elf}", "--timeout", "0"], "a time above 0"),
    "memory as Python writes it": (["--kernel", "{elf}", "--memory", "1_0M"], "512M or 4G"),
    "memory with an exponent": (["--kernel", "{elf}", "--memory", "1e3"], "512M or 4G"),
    "CID in words": (["--kernel", "{elf}", "--cid", "abc"], "positive"),
    "empty time limit": (["--kernel", "{elf}", "--timeout", ""], "a time above 0"),
    "empty command": (["--kernel", "{elf}", "--"], "leave one out|no COMMAND"),
    "missing disk": (["--kernel", "{elf}", "--disk", "{tmp}/no"], "truncate -s 8G"),
    "folder as disk": (["--kernel", "{elf}", "--disk", "{tmp}"], "a folder is no disk"),
    "FIFO as disk": (["--kernel", "{elf}", "--disk", "{tmp}/fifo,ro"], "a FIFO is no disk"),
    "empty disk": (["--kernel", "{elf}", "--disk", "{empty}"], "too few for a disk"),
    "truncated disk": (["--kernel", "{elf}", "--disk", "{elf_cut}"], "no multiple of 512"),
    "disk that is used twice": (
        ["--kernel", "{elf}", "--disk", "{huge}", "--disk", "{huge}"],
        "in use by another machine",
    ),
    "overlay that is none": (
        ["--kernel", "{elf}", "--disk", "{huge},overlay={text}"],
        "no overlay of voidbox",
    ),
    "long serial": (["--kernel", "{elf}", "--disk", "{huge},serial=" + "x" * 21], "20 char"),
    "disk with odd words": (["--kernel", "{elf}", "--disk", "{huge},rw"], "'rw' is not known"),
    "time limit in words": (["--kernel", "{elf}", "--timeout", "soon"], "a time above 0"),
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
    assert result.returncode == exit_status.USAGE, result.stderr
    assert re.search(message, result.stderr)
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.kvm
def test_a_bug_is_one_line_and_status_125(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("voidbox.cli.ps.main", lambda arguments: {}["x"])
    monkeypatch.delenv("VOIDBOX_DEBUG", raising=False)
    assert cli.main(["ps"]) == exit_status.INTERNAL
    assert capsys.readouterr().err == (
        "voidbox failed: KeyError('x'): this is a bug; VOIDBOX_DEBUG=1 shows where\n"
    )
    monkeypatch.setenv("VOIDBOX_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["ps"])


def test_what_a_message_quotes_does_nothing_to_the_terminal() -> None:
    result = voidbox("run", "--kernel", "/no/\x1b[31mwhere\x07\udcff")
    assert result.returncode == exit_status.USAGE
    assert "/no/\\x1b[31mwhere\\x07\\udcff" in result.stderr
    assert "\x1b" not in result.stderr


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
    assert process.wait(60) == exit_status.BROKEN_PIPE
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
            mine, is_shared = open_unblocking(fd)
            assert not is_shared
            assert os.get_blocking(mine) is not is_unblocking
            assert os.get_blocking(fd)
            os.close(mine)
        os.write(file.fileno(), b"first ")
        mine, _ = open_unblocking(file.fileno())
        os.write(mine, b"second")
        os.close(mine)
        assert (tmp_path / "file").read_bytes() == b"first second"
    mine, is_shared = open_unblocking(left.fileno())
    assert is_shared, "the caller must put a socket's mode back"
    assert not os.get_blocking(mine)
    os.close(mine)
    for fd in (reader, writer, leader, follower):
        os.close(fd)
    left.close()
    right.close()


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's line in which $V is voidbox."""
    return subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env={**os.environ, "V": f"{sys.executable} -m voidbox", "LC_ALL": "C", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("verb", ["--version", "--help", "doctor"])
def test_output_that_cannot_be_written_is_one_line(verb: str) -> None:
    result = shell(f"$V {verb} > /dev/full")
    assert result.returncode == exit_status.USAGE
    assert result.stderr == "voidbox: cannot write the output: No space left on device\n"


@pytest.mark.slow
def test_output_that_cannot_be_written_is_told_of_what_has_failed_too(tmp_path: Path) -> None:
    """Without a kernel doctor has a status of its own; what it says waits in a buffer."""
    result = shell("$V doctor > /dev/full", VOIDBOX_CACHE=str(tmp_path), PYTHONUNBUFFERED="")
    assert result.returncode == exit_status.USAGE
    assert result.stderr == "voidbox: cannot write the output: No space left on device\n"
    result = shell("$V doctor | true", VOIDBOX_CACHE=str(tmp_path), PYTHONUNBUFFERED="")
    assert result.stderr == ""


@pytest.mark.parametrize("verb", ["--help", "doctor"])
def test_a_reader_that_is_gone_is_no_traceback(verb: str) -> None:
    result = shell(f"$V {verb} | true; echo ${{PIPESTATUS[0]}}")
    assert result.stderr == ""
    assert int(result.stdout) in (exit_status.BROKEN_PIPE, exit_status.OK, exit_status.USAGE)


def test_a_standard_error_that_is_closed_or_full_changes_nothing() -> None:
    for where in ("2>&-", "2>/dev/full"):
        result = shell(f"$V run --console --kernel /missing {where}")
        assert (result.returncode, result.stdout) == (exit_status.USAGE, "")


@pytest.mark.kvm
def test_output_that_cannot_be_written_ends_the_guest(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "elf", tiny.say("hello\n") + tiny.SPIN)
    result = shell(f"$V run --console --kernel {kernel} --memory 32M > /dev/full")
    assert result.returncode == exit_status.USAGE
    assert "No space left on device" in result.stderr


@pytest.mark.slow
@pytest.mark.kvm
def test_what_a_halting_guest_said_last_is_shown(tmp_path: Path) -> None:
    halt = b"\xfa\xf4"  # cli; hlt
    kernel = tiny.write_elf(tmp_path / "elf", tiny.say("last words\n") + halt)
    result = shell(f"$V run --console --kernel {kernel} --memory 32M --timeout 2")
    assert (result.returncode, result.stdout) == (exit_status.TIMEOUT, "last words\n")


@pytest.mark.slow
@pytest.mark.kvm
def test_nohup_keeps_its_meaning(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "elf", tiny.SPIN)
    line = f"trap '' HUP; $V run --console --kernel {kernel} --memory 32M --timeout 3 & "
    result = shell(line + "sleep 1.5; kill -HUP $!; wait $!")
    assert result.returncode == exit_status.TIMEOUT


@pytest.mark.slow
@pytest.mark.kvm
def test_a_signal_in_every_moment_of_a_start_ends_it(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "elf", tiny.SPIN)
    for tenths in range(1, 8):
        line = f"$V run --console --kernel {kernel} --memory 32M & sleep 0.{tenths}; "
        result = shell(line + "kill -TERM $!; kill -TERM $!; wait $!")
        assert result.returncode == 128 + 15, result.stderr


@pytest.mark.kvm
def test_ctrl_a_x_quits_though_the_guest_never_listens(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "elf", tiny.SPIN)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "voidbox", "run", "--console", "--kernel", kernel]
    process = subprocess.Popen(
        [*command, "--memory", "32M"], cwd=ROOT, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    deadline = time.monotonic() + 60
    while termios.tcgetattr(leader)[3] & termios.ICANON:  # raw once it is ready
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.write(leader, b"typed ahead")
    time.sleep(0.2)
    os.write(leader, b"\x01x")
    assert process.wait(60) == exit_status.OK
    os.close(leader)


@pytest.mark.kvm
def test_a_file_shorter_than_it_claims_is_one_line(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "elf", tiny.power_off())
    short = "/sys/kernel/mm/transparent_hugepage/enabled"  # claims 4,096 bytes
    result = voidbox("run", "--kernel", kernel, "--memory", "32M", "--initramfs", short)
    assert result.returncode == exit_status.USAGE
    assert "ended" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.kvm
def test_few_descriptors_are_an_error_of_one_line(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "elf", tiny.power_off())
    for limit in range(5, 16):
        result = shell(f"ulimit -n {limit}; $V run --console --kernel {kernel} --memory 32M")
        assert "Traceback" not in result.stderr, (limit, result.stderr)
