"""An archive of packages: what is downloaded is what was signed, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import lzma
import os
import time
from pathlib import Path

import pytest

from tests.unit.images.fake_registry import Handler, Request
from tests.unit.setup.conftest import Open
from tests.unit.setup.fake_archive import FakeArchive, sha256
from tests.unit.setup.signer import Signer
from voidbox.errors import HostError
from voidbox.images import download as download_module
from voidbox.setup import lists
from voidbox.setup.errors import SetupError
from voidbox.setup.release import Digest

IN_RELEASE = "/debian/dists/bookworm/InRelease"
DAY_S = 24 * 3600


@pytest.fixture
def content(mirror: FakeArchive) -> bytes:
    """Have an archive with two packages; return the file of one."""
    mirror.add_package("libthing", "2:1.5-1")
    content = mirror.add_package("thing", Depends="libthing (>= 2:1.0), libc6:any | nothing")
    mirror.add_package("libc6", "2.36")
    mirror.publish()
    return content


def fetch(open_it: Open, **options: object) -> dict[str, bytes]:
    """Download a package and what it needs; return the files by name."""
    archive = open_it(**options)
    paths = archive.download(archive.resolve(["thing"]))
    return {Path(path).name: Path(path).read_bytes() for path in paths}


def leftovers(cache: Path) -> list[str]:
    """Everything in the cache that is not whole, and under its own name."""
    return [
        str(path) for path in cache.rglob("*") if path.is_file() and path.parent.name == "partial"
    ]


def test_a_package_and_what_it_needs(open_it: Open, content: bytes, tmp_path: Path) -> None:
    files = fetch(open_it)
    assert files["thing_1.0_amd64.deb"] == content
    assert set(files) == {
        "thing_1.0_amd64.deb", "libthing_2%3a1.5-1_amd64.deb", "libc6_2.36_amd64.deb"
    }  # fmt: skip
    assert leftovers(tmp_path) == []


def test_what_is_there_is_not_asked_for_again(
    open_it: Open, mirror: FakeArchive, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fetch(open_it)
    asked = len(mirror.requests)
    assert fetch(open_it) == files
    # A mirror that was named is asked whether there is anything new; nothing else.
    assert {request.path for request in mirror.requests[asked:]} == {
        f"/debian/dists/{suite}/InRelease" for suite in ("bookworm", "bookworm-updates")
    } | {"/debian-security/dists/bookworm-security/InRelease"}
    monkeypatch.setenv("VOIDBOX_MIRROR", mirror.uri)
    asked = len(mirror.requests)
    assert fetch(open_it, mirror=None) == files
    paths = [request.path for request in mirror.requests[asked:]]
    assert IN_RELEASE not in paths  # of today
    fetch(open_it, mirror=None, is_refreshed=True)
    assert mirror.requests[-3].path == IN_RELEASE


def test_updates_and_security_are_taken_where_they_are(
    open_it: Open, mirror: FakeArchive, content: bytes
) -> None:
    other = FakeArchive()
    try:
        newer = other.add_package("thing", "1.0+deb12u1", Depends="libthing")
    finally:
        other.close()
    (path,) = other.files
    mirror.files[f"debian-security/{path.removeprefix('debian/')}"] = newer
    mirror.publish("bookworm-security", root="debian-security", stanzas=other.stanzas)
    assert fetch(open_it)["thing_1.0+deb12u1_amd64.deb"] == newer


def test_without_network_what_the_cache_has_will_do(
    open_it: Open, mirror: FakeArchive, content: bytes, told: list[str]
) -> None:
    files = fetch(open_it)
    mirror.on(".*", lambda handler, request: handler.hang_up() or True)
    assert fetch(open_it) == files
    assert any("Using the list of" in line for line in told)


def test_a_lost_connection_is_gone_on_from(
    open_it: Open, mirror: FakeArchive, content: bytes
) -> None:
    def cut(handler: Handler, request: Request) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:100])
        handler.hang_up()
        return True

    mirror.on("/thing_", cut, 1)
    assert fetch(open_it)["thing_1.0_amd64.deb"] == content
    (again,) = [one for one in mirror.requests if "/thing_" in one.path and "range" in one.headers]
    assert again.headers["range"] == "bytes=100-"


def test_what_a_killed_one_left_is_gone_on_from(
    open_it: Open, mirror: FakeArchive, content: bytes, tmp_path: Path
) -> None:
    partial = tmp_path / "cache/debs/partial" / sha256(content)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content[:77])
    assert fetch(open_it)["thing_1.0_amd64.deb"] == content
    assert [r.headers.get("range") for r in mirror.requests if "/thing_" in r.path] == ["bytes=77-"]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("damage", ["shorter", "longer", "other"])
def test_a_half_filled_cache_is_mended(
    open_it: Open, mirror: FakeArchive, content: bytes, tmp_path: Path, damage: str
) -> None:
    wrong = {"shorter": content[:50], "longer": content + b"x", "other": bytes(len(content))}
    fetch(open_it)
    debs = tmp_path / "cache/debs"
    (debs / "thing_1.0_amd64.deb").write_bytes(wrong[damage])
    (debs / "partial" / sha256(content)).write_bytes(wrong[damage])
    for path in (tmp_path / "cache/lists").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:60])
    assert fetch(open_it)["thing_1.0_amd64.deb"] == content
    assert leftovers(tmp_path) == []


def test_a_package_with_another_digest(
    open_it: Open, mirror: FakeArchive, content: bytes, tmp_path: Path
) -> None:
    for path in mirror.files:
        if "/thing_" in path:
            mirror.files[path] = content[:-1] + b"!"
    with pytest.raises(SetupError, match="does not tell the truth: thing_1.0_amd64.deb is"):
        fetch(open_it)
    assert not (tmp_path / "cache/debs/thing_1.0_amd64.deb").exists()
    assert leftovers(tmp_path) == []


def test_a_list_with_another_digest(open_it: Open, mirror: FakeArchive, content: bytes) -> None:
    for path in mirror.files:
        if path.endswith(".xz") or "by-hash" in path:
            mirror.files[path] = mirror.files[path][:-1] + b"!"
    with pytest.raises(SetupError, match="does not tell the truth: "):
        fetch(open_it)


def test_a_list_that_unpacks_to_something_else(tmp_path: Path) -> None:
    path = tmp_path / "Packages.xz"
    for content in (b"List", bytes(1 << 20)):  # of the second no more is unpacked than is said
        path.write_bytes(lzma.compress(content, preset=0))
        with pytest.raises(SetupError, match="does not unpack to what the archive's list says"):
            lists._unpack(str(path), ".xz", Digest(4, sha256(b"list")))
    path.write_bytes(lzma.compress(b"list"))
    assert lists._unpack(str(path), ".xz", Digest(4, sha256(b"list"))) == b"list"


@pytest.mark.parametrize(
    ("ring", "why"),
    [
        (None, "cannot read it: No such file"),
        (b"", "it has no RSA key of 2048 bits"),
        (b"nonsense", "keyring"),
    ],
)
def test_a_keyring_that_is_none(
    open_it: Open, content: bytes, tmp_path: Path, ring: bytes | None, why: str
) -> None:
    path = tmp_path / "ring.gpg"
    if ring is not None:
        path.write_bytes(ring)
    with pytest.raises(SetupError, match=f"^--keyring {path}: .*{why}"):
        fetch(open_it, keyring=str(path))


def test_a_list_that_lies_only_under_its_name(
    open_it: Open, mirror: FakeArchive, content: bytes
) -> None:
    mirror.files = {path: data for path, data in mirror.files.items() if "by-hash" not in path}
    assert fetch(open_it)["thing_1.0_amd64.deb"] == content


def test_a_suite_that_somebody_else_signed(
    open_it: Open, mirror: FakeArchive, content: bytes, tmp_path: Path
) -> None:
    mirror.publish(signer=Signer(1))
    with pytest.raises(SetupError, match="is not signed by Debian: .* is not trusted.*--mirror"):
        fetch(open_it)
    assert not (tmp_path / "cache/lists/bookworm").exists()


def test_the_tests_key_is_no_key_of_debians(open_it: Open, content: bytes) -> None:
    with pytest.raises(SetupError, match="is not signed by Debian"):
        fetch(open_it, keyring=None)


def test_a_suite_of_another_name(open_it: Open, mirror: FakeArchive, content: bytes) -> None:
    mirror.publish(codename="sid")
    with pytest.raises(SetupError, match="signed, but it is 'sid' and not 'bookworm'"):
        fetch(open_it)


def test_a_mirror_without_the_suite(open_it: Open, mirror: FakeArchive, content: bytes) -> None:
    with pytest.raises(SetupError, match="has no suite trixie: is the address right"):
        fetch(open_it, suite="trixie")


def test_a_web_page_in_place_of_a_list(open_it: Open, mirror: FakeArchive, content: bytes) -> None:
    mirror.files[IN_RELEASE[1:]] = b"<!DOCTYPE html><html>Welcome to our hotel</html>"
    with pytest.raises(SetupError, match="is a web page .*log-in in a browser first"):
        fetch(open_it)


def test_nobody_there(open_it: Open, mirror: FakeArchive) -> None:
    with pytest.raises(SetupError, match="cannot connect to 127.0.0.1 port 1.*is there a network"):
        fetch(open_it, mirror="http://127.0.0.1:1/debian")


def test_a_server_that_fails(
    open_it: Open, mirror: FakeArchive, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.on("InRelease", lambda handler, request: handler.reply(503) or True, 2)
    assert fetch(open_it)["thing_1.0_amd64.deb"] == content
    mirror.on("InRelease", lambda handler, request: handler.reply(403) or True)
    with pytest.raises(SetupError, match=r"InRelease is refused \(status 403\)"):
        fetch(open_it)


def test_lists_that_have_expired(
    open_it: Open, mirror: FakeArchive, content: bytes, tmp_path: Path
) -> None:
    mirror.publish(date_s=time.time() - 9 * DAY_S, until_s=time.time() - 2 * DAY_S)
    with pytest.raises(SetupError, match="list of bookworm at .* expired on .*clock right"):
        fetch(open_it)


def test_lists_that_expired_while_there_was_no_network(
    open_it: Open, mirror: FakeArchive, content: bytes, monkeypatch: pytest.MonkeyPatch,
    told: list[str],
) -> None:  # fmt: skip
    mirror.publish(until_s=time.time() + DAY_S)
    files = fetch(open_it)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 9 * DAY_S)
    with pytest.raises(SetupError, match="expired on"):
        fetch(open_it)
    mirror.on(".*", lambda handler, request: handler.hang_up() or True)
    assert fetch(open_it) == files
    assert any("expired on" in line for line in told)


def test_a_clock_that_is_behind(open_it: Open, mirror: FakeArchive, content: bytes) -> None:
    mirror.publish(date_s=time.time() + DAY_S)
    with pytest.raises(SetupError, match="and here it is .*set this machine's clock"):
        fetch(open_it)


def test_an_older_list_than_before_is_not_taken(
    open_it: Open, mirror: FakeArchive, content: bytes, told: list[str]
) -> None:
    fetch(open_it)
    mirror.stanzas = [one for one in mirror.stanzas if "libc6" not in one.split("\n")[0]]
    mirror.publish(date_s=time.time() - 3 * DAY_S)
    assert "libc6_2.36_amd64.deb" in fetch(open_it)
    assert any("older than what was there before" in line for line in told)


def test_a_package_that_is_gone(open_it: Open, mirror: FakeArchive, content: bytes) -> None:
    mirror.files = {path: data for path, data in mirror.files.items() if "/thing_" not in path}
    with pytest.raises(SetupError, match="thing_1.0_amd64.deb is not there: .*--refresh"):
        fetch(open_it)


def test_a_full_disk(
    open_it: Open, mirror: FakeArchive, content: bytes, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(download_module.os, "write", full)
        with pytest.raises(HostError, match="cannot write .*: No space left on device"):
            fetch(open_it)
    assert not list((tmp_path / "cache/debs").glob("*.deb"))
    assert fetch(open_it)["thing_1.0_amd64.deb"] == content


def test_a_home_that_cannot_be_written(open_it: Open, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot make .*/file/cache/debs/partial: Not a directory"):
        open_it(cache=str(tmp_path / "file" / "cache"))


def test_saved_on_one_machine_and_used_on_another(
    open_it: Open, mirror: FakeArchive, content: bytes, tmp_path: Path, told: list[str]
) -> None:
    mirror.publish("bookworm-updates", stanzas=[], until_s=time.time() + DAY_S)
    saved = tmp_path / "stick"
    fetch(open_it)  # what the cache knows by then is put there, too
    files = fetch(open_it, save=str(saved))
    asked = len(mirror.requests)
    elsewhere = {"mirror": None, "cache": str(tmp_path / "other")}
    assert fetch(open_it, offline=str(saved), **elsewhere) == files
    assert len(mirror.requests) == asked
    (damaged,) = saved.rglob("thing_*.deb")
    damaged.write_bytes(content[:-1] + b"!")
    elsewhere["cache"] = str(tmp_path / "third")
    with pytest.raises(SetupError, match="thing_1.0_amd64.deb is not what the archive's list says"):
        fetch(open_it, offline=str(saved), **elsewhere)
    damaged.unlink()
    with pytest.raises(SetupError, match="thing_1.0_amd64.deb is not there"):
        fetch(open_it, offline=str(saved), **elsewhere)
    with pytest.raises(SetupError, match="no dists/trixie/InRelease"):
        fetch(open_it, offline=str(saved), suite="trixie", **elsewhere)


def test_no_word_of_where_the_archive_is(open_it: Open, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no source of Debian's bookworm: .*--mirror URL"):
        open_it(mirror=None, apt=str(tmp_path / "nothing"))


def test_passwords_are_sent_but_not_shown(
    open_it: Open, mirror: FakeArchive, content: bytes
) -> None:
    uri = mirror.uri.replace("http://", "http://me:s%3Acret@")
    fetch(open_it, mirror=uri)
    assert mirror.requests[0].authorization == "Basic bWU6czpjcmV0"
    with pytest.raises(SetupError) as failure:
        fetch(open_it, mirror=uri, suite="trixie")
    assert "cret" not in str(failure.value)
