"""What PID 1 reads and writes in a root that would have it wait or fail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from guest_agent import boot, network, plain_files, users
from guest_agent.connection import RequestError

ROOT = Path(__file__).parents[3]


def in_time(code: str, *arguments: Path) -> str:
    """Run it in a process of its own, which can be ended if it waits."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=10,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    for name in ("link", "link.voidbox"):
        (tmp_path / name).symlink_to(target)
        (tmp_path / f"dangling{name.removeprefix('link')}").symlink_to("/nowhere/at/all")
    for name in ("link", "dangling", "new/folder/file"):
        plain_files.replace(str(tmp_path / name), "new")
        assert (tmp_path / name).read_text() == "new"
        assert not (tmp_path / name).is_symlink()
    assert target.read_text() == "old"
    assert not list(tmp_path.rglob("*.voidbox"))


def test_fifos_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("read", "written", "written.voidbox", "written.new"):
        os.mkfifo(tmp_path / name)
    code = (
        "import sys; from guest_agent import network, users\n"
        "users.PASSWD = users.GROUP = sys.argv[1]; print(users.find('7:8').uid)\n"
        "network.RESOLV_CONF = sys.argv[2]; network._write_resolv_conf('192.0.2.1')\n"
    )
    assert in_time(code, tmp_path / "read", tmp_path / "written") == "7\n"
    assert (tmp_path / "written").read_text() == "nameserver 192.0.2.1\n"


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero"), tmp_path / "nothing"):
        with pytest.raises(OSError):
            plain_files.read(str(path), 100)
        monkeypatch.setattr(users, "PASSWD", str(path))
        with pytest.raises(RequestError, match="no user 'app'"):
            users.find("app")
    assert len(os.listdir("/proc/self/fd")) == len(before)
    (tmp_path / "long").write_bytes(b"x" * 200)
    assert plain_files.read(str(tmp_path / "long"), 100) == b"x" * 100


@pytest.mark.parametrize("name", [b"\xff\xfe\n", b"a\0b", b"x" * 1000])
def test_a_bad_name_of_the_host_does_not_end_the_machine(
    name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sethostname(name: bytes) -> None:
        if len(name) > 64 or b"\0" in name:
            raise ValueError(name)

    monkeypatch.setattr(socket, "sethostname", sethostname)
    monkeypatch.setattr(boot, "HOSTNAME", str(tmp_path / "hostname"))
    (tmp_path / "hostname").write_bytes(name)
    boot._attempt("the host's name", boot._set_hostname)


def test_the_names_resolver_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resolv.conf").symlink_to("/nowhere/at/all")
    monkeypatch.setattr(network, "RESOLV_CONF", str(tmp_path / "resolv.conf"))
    network._write_resolv_conf("192.0.2.1")
    assert (tmp_path / "resolv.conf").read_text() == "nameserver 192.0.2.1\n"
    network._write_resolv_conf("192.0.2.1", "eng.example.com example.com")
    expected = "nameserver 192.0.2.1\nsearch eng.example.com example.com\n"
    assert (tmp_path / "resolv.conf").read_text() == expected
