"""Building from packages, with a program in mmdebstrap's place that says what it was asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.unit.images.archives import archive, file
from voidbox.images import debian
from voidbox.images.debian import Source, build_debian, find_sources
from voidbox.images.errors import ImageError
from voidbox.images.limits import Limits
from voidbox.images.tree import Regular, Tree

SOURCES = ["deb http://user:secret@mirror.example/debian bookworm main"]


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that stands before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    packed = archive(file("etc/apt/sources.list", SOURCES[0].encode()), file("x", bytes(5000)))
    (tmp_path / "packed").write_bytes(packed)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    return folder


STAND_IN = """echo "I: working" >&2
echo "$@" > "$STAND_IN/arguments"; cat > "$STAND_IN/sources"; cat "$STAND_IN/packed" """


def test_mmdebstrap_is_asked_for_an_archive(programs: Path, tmp_path: Path) -> None:
    program(programs, "mmdebstrap", STAND_IN)
    program(programs, "newuidmap", "")
    said: list[str] = []
    with Tree() as tree:
        applied = build_debian(tree, ["git", "g++"], sources=SOURCES, on_line=said.append)
        node = tree.find("etc/apt/sources.list")
        assert isinstance(node, Regular)
        assert tree.read(node, 1000) == b"deb http://mirror.example/debian bookworm main"
    assert applied.entry_count == 2
    assert said == ["I: working"]
    arguments = (tmp_path / "arguments").read_text().split()
    assert {"--variant=minbase", "--include=git,g++", "--architectures=amd64"} < set(arguments)
    assert arguments[-3:] == ["bookworm", "-", "-"]
    assert "secret" not in str(arguments)
    assert (tmp_path / "sources").read_text() == SOURCES[0] + "\n"


@pytest.mark.parametrize(("uid", "mode"), [(0, "root"), (1000, "unshare")])
def test_root_is_not_needed(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, mode: str
) -> None:
    program(programs, "mmdebstrap", STAND_IN)
    program(programs, "newuidmap", "")
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with Tree() as tree:
        build_debian(tree, sources=SOURCES)
    assert f"--mode={mode}" in (tmp_path / "arguments").read_text()


def test_what_it_says_is_the_error(programs: Path) -> None:
    program(programs, "newuidmap", "")
    program(
        programs,
        "mmdebstrap",
        'head -c 3000 "$STAND_IN/packed"; echo "E: Unable to locate package nosuch" >&2;'
        'echo "E: mmdebstrap failed to run" >&2; exit 25',
    )
    with Tree() as tree, pytest.raises(ImageError) as caught:
        build_debian(tree, ["nosuch"], sources=SOURCES)
    assert str(caught.value) == "mmdebstrap failed: Unable to locate package nosuch"
    program(programs, "mmdebstrap", "exit 3")
    with Tree() as tree, pytest.raises(ImageError, match="mmdebstrap failed: status 3"):
        build_debian(tree, sources=SOURCES)


def test_an_archive_that_is_too_large_ends_the_program(programs: Path) -> None:
    program(programs, "newuidmap", "")
    program(programs, "mmdebstrap", "exec cat /dev/zero")
    with Tree() as tree, pytest.raises(ImageError, match="unpacks to more than 100000 bytes"):
        build_debian(tree, sources=SOURCES, limits=Limits(total_bytes=100_000))


def test_debootstrap_serves_root(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        programs,
        "debootstrap",
        """echo "$@" > "$STAND_IN/arguments"; echo "I: Retrieving"
        while [ $# -gt 2 ]; do shift; done
        mkdir -p "$1/etc/apt"; echo data > "$1/file"
        chmod 4755 "$1/file"; ln "$1/file" "$1/same\"""",
    )
    found = debian.shutil.which
    monkeypatch.setattr(
        debian.shutil, "which", lambda name: None if name == "mmdebstrap" else found(name)
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    said: list[str] = []
    with Tree() as tree:
        build_debian(tree, ["git"], sources=SOURCES, on_line=said.append)
        node = tree.find("file")
        assert node is not None and node is tree.find("same") and node.mode == 0o4755
        assert tree.root.mode == 0o755
    assert said == ["I: Retrieving"]
    assert "--include=git bookworm /" in (tmp_path / "arguments").read_text()
    program(programs, "debootstrap", 'echo "E: Failed getting release file"; exit 1')
    with Tree() as tree, pytest.raises(ImageError, match="debootstrap failed: Failed getting"):
        build_debian(tree, sources=SOURCES)


def test_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, uid, line in (
        ((), 0, "there is no mmdebstrap; install it: sudo apt-get install mmdebstrap uidmap"),
        (("mmdebstrap",), 1000, "install it: sudo apt-get install uidmap"),
        (("debootstrap",), 1000, "debootstrap needs root, mmdebstrap does not; install it"),
    ):
        monkeypatch.setattr(
            debian.shutil, "which", lambda name, there=there: name if name in there else None
        )
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        with Tree() as tree, pytest.raises(ImageError, match=line):
            build_debian(tree, sources=SOURCES)


@pytest.mark.parametrize("name", ["--help", "a b", "A", "x", "../x", "git,vim", ""])
def test_names_that_no_package_has(name: str) -> None:
    with Tree() as tree, pytest.raises(ImageError, match="no name of a Debian package"):
        build_debian(tree, [name])
    with Tree() as tree, pytest.raises(ImageError, match="no name of a Debian release"):
        build_debian(tree, [], suite=f"-{name}")


def test_the_hosts_own_sources(programs: Path) -> None:
    targets = (
        "http://mirror.example/debian/|bookworm|main",
        "http://mirror.example/debian/|bookworm|main",
        "http://mirror.example/debian-security/|bookworm-security|main",
        "https://other.example/linux|bookworm|stable",
        "http://mirror.example/debian/|trixie|main",
        "W: what is this",
    )
    lines = "\n".join(targets)
    program(programs, "apt-get", f"cat <<'END'\n{lines}\nEND")
    assert find_sources("bookworm") == [
        Source("http://mirror.example/debian/", "bookworm", "main"),
        Source("http://mirror.example/debian-security/", "bookworm-security", "main"),
    ]
    with pytest.raises(ImageError, match="no source of Debian's sid: name a mirror"):
        find_sources("sid")


@pytest.mark.skipif(
    "VOIDBOX_TEST_DEBIAN" not in os.environ,
    reason="fetches packages for half a minute; run it with VOIDBOX_TEST_DEBIAN=1",
)
def test_a_real_one() -> None:
    with Tree() as tree:
        build_debian(tree, ["python3-minimal"])
        assert isinstance(tree.find("usr/bin/python3.11"), Regular)
        assert tree.find("dev/null") is not None
