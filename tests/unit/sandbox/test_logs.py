"""The log files of a sandbox's process, on full disks too."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voidbox.errors import HostError
from voidbox.sandbox.process.logs import ConsoleLog, read_tail


def test_a_full_disk_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "console.log"
    path.symlink_to("/dev/full")
    console = ConsoleLog(str(path), 1000)
    for _ in range(5):
        assert console.write(b"0123456789")
    (said,) = caplog.records
    assert "No space left on device" in said.getMessage()
    # There is room again.
    fd = os.open(tmp_path / "real", os.O_WRONLY | os.O_CREAT)
    os.dup2(fd, console._file.fd)
    os.close(fd)
    caplog.set_level(logging.INFO)
    assert console.write(b"more")
    assert "50 bytes are missing" in caplog.records[-1].getMessage()
    assert (tmp_path / "real").read_bytes() == b"more"
    console.close()
    console.close()


def test_a_talkative_guest_fills_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    console = ConsoleLog(str(path), 100)
    for number in range(100):
        console.write(b"%09d\n" % number)
    console.close()
    kept = (tmp_path / "console.log.1").read_bytes() + path.read_bytes()
    assert len(kept) <= 200
    assert kept.endswith(b"000000098\n000000099\n")
    console = ConsoleLog(str(path), 100)  # what is there counts
    console.write(b"x" * 99)
    console.close()
    assert path.read_bytes() == b"x" * 99


def test_what_voidbox_logs_fills_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "owner.log"
    program = """
import logging, os, sys
from voidbox.sandbox.process.logs import OwnerLog
log = logging.getLogger("x")
log.addHandler(OwnerLog(sys.argv[1], 1000))
for number in range(100):
    log.warning("refused %03d", number)
os.write(2, b"a traceback, say")
assert os.read(0, 1) == b""
"""
    command = [sys.executable, "-c", program, str(path)]
    result = subprocess.run(command, input=b"x", capture_output=True, check=True)
    assert result.stdout == result.stderr == b""
    before, after = (tmp_path / "owner.log.1").read_bytes(), path.read_bytes()
    assert max(len(before), len(after)) <= 1000
    assert b"refused 098" in before + after
    assert after.endswith(b"refused 099\na traceback, say")


def test_the_tail_is_fit_for_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert read_tail(str(path)) == ""
    path.write_bytes(b"early\n" * 10000 + b"\x1b[31mred\xff\x00\r\n\n" + b"last\tline")
    lines = read_tail(str(path)).split("\n")
    assert lines[-2:] == ["[31mred\ufffd", "last\tline"]
    assert len(lines) == 20


def test_a_folder_that_is_gone_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no/console.log: ENOENT"):
        ConsoleLog(str(tmp_path / "no" / "console.log"))
