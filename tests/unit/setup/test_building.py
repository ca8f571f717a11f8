"""Images of Debian packages: what the guest that installs them gets, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.images.made import StoreFolder
from tests.unit.setup.conftest import Open
from tests.unit.setup.fake_archive import FakeArchive, make_deb, tar
from voidbox.errors import VoidboxError
from voidbox.images.tree import Regular, Special, Symlink, Tree
from voidbox.setup.archive import ArchiveOptions
from voidbox.setup.building import build
from voidbox.setup.debian_root import OnLine, _origins, build_debian
from voidbox.setup.errors import SetupError
from voidbox.setup.sources import Source

INSTALLED = tar({"etc": None, "etc/passwd": b"root:x:0:0::/root:/bin/sh\n", "bin": "usr/bin"})


class Guest:
    """A runner that notes what it was given, and answers with an archive."""

    def __init__(self, content: bytes = INSTALLED, says: str = "") -> None:
        self.content = content
        self.says = says or f"Total bytes written: {len(content)} (9MiB, 9MiB/s)"
        self.files: dict[str, bytes | str] = {}

    def __call__(self, tree: Tree, work: str, output: str, on_line: OnLine) -> None:
        for path, node in tree.walk():
            if isinstance(node, Regular):
                self.files[path] = tree.read(node, 1 << 20)
            elif isinstance(node, Symlink):
                self.files[path] = node.target
        with open(output, "r+b") as disk:
            disk.write(self.content)
        on_line("I: working")
        on_line(self.says)


@pytest.fixture
def packages(mirror: FakeArchive) -> None:
    """Have an archive with what every Debian has, and a little more."""
    files = {"bin": None, "bin/sh": b"#!", "etc": None}
    mirror.add_package("dash", deb=make_deb(files), Essential="yes", Pre_Depends="libc6")
    mirror.add_package("libc6", "1:2.36")
    mirror.add_package("tzdata", Priority="required")
    mirror.add_package("apt", Depends="libc6")
    mirror.add_package("git", "1:2.39-1", Depends="libc6, perl")
    mirror.add_package("perl", Filename_="x")
    mirror.publish()


def test_what_the_guest_gets(packages: None, open_it: Open, tmp_path: Path) -> None:
    guest = Guest()
    lines: list[str] = []
    with Tree(str(tmp_path)) as tree, open_it() as archive:
        build_debian(tree, archive, ["git"], guest, work=str(tmp_path), on_line=lines.append)
        passwd = tree.find("etc/passwd")
        assert isinstance(passwd, Regular)
        assert tree.read(passwd, 100).startswith(b"root:")
        null = tree.find("dev/null")
        assert isinstance(null, Special) and null.device == (1, 3)
        assert isinstance(tree.find("etc/apt/sources.list"), Regular)
    assert lines[0] == "I: working"
    # The essential ones are unpacked, over a merged /usr; of the others there are the files alone.
    assert guest.files["target/bin"] == "usr/bin"
    assert guest.files["target/usr/bin/sh"] == b"#!"
    assert "target/usr/share/libc6" in guest.files and "target/usr/share/git" not in guest.files
    assert guest.files["target/var/lib/dpkg/status"] == b""
    first = guest.files["repo/first"]
    assert isinstance(first, bytes)
    assert set(first.decode().split()) == {
        "dash_1.0_amd64.deb", "libc6_1-2.36_amd64.deb", "tzdata_1.0_amd64.deb", "apt_1.0_amd64.deb"
    }  # fmt: skip
    assert guest.files["repo/wanted"] == b"git=1:2.39-1\n"
    listed = guest.files["repo/Packages"]
    assert isinstance(listed, bytes)
    stanzas = listed.decode().split("\n\n")
    assert len(stanzas) == 6
    for stanza in stanzas:
        (path,) = [line[12:] for line in stanza.splitlines() if line.startswith("Filename: ./")]
        assert f"repo/{path}" in guest.files
    assert guest.files["outer.sh"].startswith(b"#!/.voidbox/usr/bin/busybox sh\n")  # type: ignore[arg-type]


def test_what_the_user_names_may_stand_for_what_every_debian_has(
    mirror: FakeArchive, open_it: Open, tmp_path: Path
) -> None:
    mirror.add_package("base", Essential="yes", Depends="awk")
    mirror.add_package("apt")
    mirror.add_package("mawk", Provides="awk")
    mirror.add_package("gawk", Provides="awk")
    mirror.publish()
    guest = Guest()
    with Tree(str(tmp_path)) as tree, open_it() as archive:
        build_debian(tree, archive, ["mawk"], guest, work=str(tmp_path))
    assert guest.files["repo/first"] == b"base_1.0_amd64.deb\napt_1.0_amd64.deb\n"
    assert guest.files["repo/wanted"] == b"mawk=1.0\n"
    assert "repo/gawk_1.0_amd64.deb" not in guest.files


def test_into_the_store(
    packages: None, mirror: FakeArchive, stored: StoreFolder, tmp_path: Path
) -> None:
    options = ArchiveOptions(mirror=mirror.uri, keyring=str(tmp_path / "keyring.gpg"))
    image = build("dev", ["git"], archive=options, env={"A": "b"}, store=stored.store, run=Guest())
    assert image.names == ("dev",) or "dev" in str(image.names)
    assert image.config.env["A"] == "b"
    assert image.record.source == "built from Debian bookworm: git"
    assert stored.leftovers() == []


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        (Guest(says="it has burnt down"), "ended without a result"),
        (Guest(says="Total bytes written: 999999999999999"), "ended without a result"),
        (Guest(content=b"x" * 10240), "no tar archive"),
        (Guest(content=tar({"a/../../x": b""})), "a path with .. in it|leads out"),
    ],
)
def test_a_guest_that_lies(
    packages: None,
    mirror: FakeArchive,
    stored: StoreFolder,
    tmp_path: Path,
    guest: Guest,
    words: str,
) -> None:
    options = ArchiveOptions(mirror=mirror.uri, keyring=str(tmp_path / "keyring.gpg"))
    with pytest.raises(VoidboxError, match=words):
        build("dev", archive=options, store=stored.store, run=guest)
    assert stored.names() == {}
    assert stored.leftovers() == []


def test_names_that_are_none(packages: None, open_it: Open, tmp_path: Path) -> None:
    for name in ("", "-x", "a b"):
        with (
            Tree(str(tmp_path)) as tree, open_it() as archive,
            pytest.raises(SetupError, match="no name of a Debian package"),
        ):  # fmt: skip
            build_debian(tree, archive, [name], Guest(), work=str(tmp_path))


def test_where_an_image_says_that_its_packages_come_from() -> None:
    found = [Source("http://me:secret@mirror.example/debian", "bookworm")]
    archive = SimpleNamespace(sources=found, suite="bookworm")
    assert _origins(archive) == found  # type: ignore[arg-type]
    for uri in ("file:/media/stick", "http://127.0.0.1:8080/debian"):
        here = SimpleNamespace(sources=[Source(uri, "nowhere")], suite="nowhere")
        assert all(uri != one.uri for one in _origins(here))  # type: ignore[arg-type]
