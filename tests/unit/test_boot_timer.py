"""The boot-timer program, by its disassembly: it must not be run on a host."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "boot-timer"
    subprocess.run([sys.executable, ROOT / "scripts" / "boot_timer.py", path], check=True)
    return path


@pytest.mark.skipif(
    shutil.which("objdump") is None, reason="needs objdump: apt-get install binutils"
)
def test_it_writes_123_to_the_port(program: Path) -> None:
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "--start-address=120", program]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    instructions = [line.split("\t")[2].split() for line in text.splitlines() if "\t" in line]
    assert [words[0] for words in instructions] == [
        *("mov", "mov", "mov", "mov", "syscall", "test", "jne"),
        *("mov", "mov", "out", "xor", "mov", "syscall", "mov", "mov", "syscall"),
    ]
    assert ["mov", "$0x3f0,%dx"] in instructions
    assert ["mov", "$0x7b,%al"] in instructions
    assert ["jne", "0xa2"] in instructions


def test_it_is_an_executable_that_linux_takes(program: Path) -> None:
    assert program.stat().st_mode & 0o111
    assert program.read_bytes()[:5] == b"\x7fELF\x02"
