"""A guest that lies: nothing is ever written outside a download's folder."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sandbox.conftest import Box, in_event_loop
from voidbox.agent import protocol
from voidbox.agent.packing import pack, unpack
from voidbox.errors import AgentError, HostError, SandboxTimeout
from voidbox.sandbox.transfer.host_tree import HostFolder, is_safe_link, split_name
from voidbox.sandbox.transfer.pieces import checksum_of

PONG = {"version": "1", "capabilities": [], "authenticated": True}


class Liar:
    """An agent that lists what it is told to, and sends `content` for every file."""

    def __init__(self, path: Path) -> None:
        self.entries: list[dict[str, Any]] = []
        self.content: Callable[[str], bytes] = lambda path: b"evil"
        self.result: dict[str, Any] = {}
        self.refused: str | None = None  # the name of a file that cannot be read
        self.hangs_up_on = 0  # a type of request, once
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def entry(self, name: str, type: str = "file", **values: Any) -> None:
        entry = {"name": name, "type": type, "size": 4, "mode": 0o644, "uid": 0, "gid": 0}
        self.entries.append({**entry, "mtime_ns": 0, **values})

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with sock:
                    self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        decoder = protocol.Decoder(protocol.FROM_HOST)
        with suppress(OSError):
            while data := sock.recv(65536):
                for frame in decoder.feed(data):
                    if frame.type == self.hangs_up_on:
                        self.hangs_up_on = 0
                        return
                    for reply in self._answer(frame):
                        sock.sendall(reply)

    def _answer(self, frame: protocol.Frame) -> Iterator[bytes]:
        def say(type: int, values: dict[str, Any]) -> bytes:
            return protocol.encode(type, frame.request, pack(values))

        if frame.type == protocol.PING:
            yield say(protocol.PONG, PONG)
        elif frame.type == protocol.FILE_STAT:
            folder = {"name": "d", "type": "folder", "size": 0, "mode": 0o755, "mtime_ns": 0}
            yield say(protocol.RESULT, {**folder, "uid": 0, "gid": 0})
        elif frame.type == protocol.FILE_LIST:
            yield say(protocol.EVENT, {"entries": self.entries})
            yield say(protocol.RESULT, {})
        elif frame.type == protocol.FILE_READ:
            path = unpack(frame.payload)["path"]
            if self.refused is not None and path.endswith(self.refused):
                failure = {"code": "EACCES", "message": f"{path}: Permission\ndenied"}
                yield say(protocol.ERROR, failure)
                return
            content = self.content(path)
            if content:
                yield protocol.encode(protocol.DATA, frame.request, content)
            status = {"size": len(content), "mode": 0o644, "mtime_ns": 0, "file": 1}
            yield say(protocol.RESULT, {**status, "checksum": checksum_of(content), **self.result})

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[tuple[Liar, Box]]:
    liar = Liar(tmp_path / "liar")
    box = Box(tmp_path / "liar", tmp_path)
    yield liar, box
    box.close()
    liar.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where downloads go; what is beside it must stay as it is."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "precious").write_text("precious")
    return tmp_path / "target"


def outside(target: Path) -> dict[str, object]:
    return {
        str(path): path.read_bytes() if path.is_file() else path.is_dir()
        for path in target.parent.rglob("*")
        if target not in path.parents and path != target
    }


BAD_NAMES = ["../x", "a/../../x", "/etc/x", "..", ".", "", "a//b", "a/", "a/./b", "a\0b", 5, None]


@pytest.mark.parametrize("name", BAD_NAMES)
@in_event_loop
async def test_names_that_lead_outside(liar: tuple[Liar, Box], target: Path, name: Any) -> None:
    agent, box = liar
    before = outside(target)
    for kind in ("file", "folder", "link"):
        agent.entries.clear()
        agent.entry("good")
        agent.entry(name, kind, target="x")
        with pytest.raises(AgentError, match="refused"):
            await box.files.download("d", target)
    assert outside(target) == before
    assert not target.exists() or not os.listdir(target)


@in_event_loop
async def test_a_file_below_a_link_that_the_guest_made(
    liar: tuple[Liar, Box], target: Path
) -> None:
    agent, box = liar
    before = outside(target)
    agent.entry("out", "link", target="../beside")
    agent.entry("out/precious")
    await box.files.download("d", target)  # the link is left out: "out" is a folder
    assert (target / "out" / "precious").read_bytes() == b"evil"
    # A second download, when something that leads outside is there already.
    (target / "in").symlink_to("../beside")
    agent.entries.clear()
    agent.entry("in/precious")
    with pytest.raises(HostError, match="links are not followed"):
        await box.files.download("d", target)
    agent.entries.clear()
    agent.entry("in", "folder")
    with pytest.raises(HostError, match="links are not followed"):
        await box.files.download("d", target)
    agent.entries.clear()
    agent.entry("in/deeper", "link", target="x")
    with pytest.raises(HostError, match="links are not followed"):
        await box.files.download("d", target)
    assert outside(target) == before


@in_event_loop
async def test_a_file_in_the_place_of_a_link_replaces_it(
    liar: tuple[Liar, Box], target: Path
) -> None:
    agent, box = liar
    target.mkdir()
    (target / "small").symlink_to("../beside/precious")
    (target / "big").symlink_to("../beside/precious")
    before = outside(target)
    agent.entry("small")
    agent.entry("big", size=100_000)
    agent.content = lambda path: bytes(100_000) if path.endswith("big") else b"evil"
    await box.files.download("d", target)
    assert outside(target) == before
    assert (target / "small").read_bytes() == b"evil" and not (target / "big").is_symlink()


LINKS = {
    ("l",): {"x": True, "a/b": True, "../x": False, "/etc": False, "": False, "..": False},
    ("a", "l"): {"../x": True, "..": True, "../../x": False, "b/../x": False, "./x": True},
    ("a", "b", "l"): {"../../x": True, "../x/..": False, "../../../x": False, "x\0": False},
}


@pytest.mark.parametrize("parts", LINKS)
def test_which_links_are_safe(parts: tuple[str, ...]) -> None:
    for target, is_safe in LINKS[parts].items():
        assert is_safe_link(parts, target) is is_safe, target


@in_event_loop
async def test_links_that_lead_outside_are_left_out(liar: tuple[Liar, Box], target: Path) -> None:
    agent, box = liar
    agent.entry("a", "folder")
    for number, link in enumerate(("/etc/passwd", "../../x", "b/../../..", "\x1b[2J/../..")):
        agent.entry(f"a/bad{number}", "link", target=link)
    agent.entry("a/good", "link", target="../b")
    result = await box.files.download("d", target)
    assert os.listdir(target / "a") == ["good"]
    assert len(result.skipped) == 4 and all(line.isprintable() for line in result.skipped)


@in_event_loop
async def test_links_through_links_stay_inside(liar: tuple[Liar, Box], target: Path) -> None:
    """What is_safe_link allows, whatever is combined, leads to nothing outside."""
    agent, box = liar
    agent.entry("a", "folder")
    agent.entry("a/b", "folder")
    agent.entry("a/b/up", "link", target="../..")
    agent.entry("a/over", "link", target="b/up/a")
    agent.entry("far", "link", target="a/over/b/up/a/b/up")
    await box.files.download("d", target)
    for path in target.rglob("*"):
        assert Path(os.path.realpath(path)).is_relative_to(target.resolve()), path


@in_event_loop
async def test_permissions_that_are_not_the_guests_to_give(
    liar: tuple[Liar, Box], target: Path
) -> None:
    agent, box = liar
    agent.entry("small", mode=0o6777)
    agent.entry("big", mode=0o6777, size=100_000)
    agent.entry("folder", "folder", mode=0o7000)
    agent.content = lambda path: bytes(100_000) if path.endswith("big") else b"evil"
    agent.result = {"mode": 0o6777}
    umask = os.umask(0o027)
    try:
        await box.files.download("d", target)
    finally:
        os.umask(umask)
    for name in ("small", "big"):
        assert (target / name).stat().st_mode & 0o7777 == 0o750
    assert (target / "folder").stat().st_mode & 0o7777 == 0o700


@in_event_loop
async def test_more_and_less_than_was_promised(liar: tuple[Liar, Box], target: Path) -> None:
    agent, box = liar
    agent.entry("f")
    agent.content = lambda path: bytes(65537)
    with pytest.raises(AgentError, match="more than was asked"):
        await box.files.download("d", target)
    assert not os.listdir(target)
    # What counts is how long it is when it is read, not what the list said.
    agent.entry("big", size=100_000)
    agent.content = lambda path: b"less"
    result = await box.files.download("d", target)
    assert result.files == 2 and (target / "big").read_bytes() == b"less"


@in_event_loop
async def test_a_file_without_end(
    liar: tuple[Liar, Box], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voidbox.sandbox.transfer.pieces.PIECE_BYTES", 1000)
    monkeypatch.setattr("voidbox.sandbox.transfer.pieces._ENDLESS_BYTES_MAX", 5000)
    agent, box = liar
    agent.entry("f", size=100_000)
    agent.content = lambda path: bytes(1000)
    agent.result = {"size": 0, "end_size": 0, "end_mtime_ns": 0}
    with pytest.raises(AgentError, match="more than 5000 bytes"):
        await box.files.download("d", target)
    assert not os.listdir(target)


@in_event_loop
async def test_names_that_fill_the_memory(
    liar: tuple[Liar, Box], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, box = liar
    agent.entry("x" * 4096)
    await box.files.list("d")
    for values in ({"name": "x" * 5000}, {"name": "l", "type": "link", "target": "x" * 5000}):
        agent.entries.clear()
        agent.entry(**values)  # type: ignore[arg-type]
        for attempt in (lambda: box.files.download("d", target), lambda: box.files.list("d")):
            with pytest.raises(AgentError, match="5000 characters: refused"):
                await attempt()
    monkeypatch.setattr("voidbox.sandbox.transfer.listing.LISTED_BYTES_MAX", 100_000)
    for name in ("x" * 1000, "a/" * 500 + "b"):
        agent.entries.clear()
        for number in range(150):
            agent.entry(f"{number}{name}")
        for attempt in (lambda: box.files.download("d", target), lambda: box.files.list("d")):
            with pytest.raises(AgentError, match="than fit into memory"):
                await attempt()
    assert not target.exists()


@in_event_loop
async def test_messages_are_one_line_whatever_a_file_is_called(
    liar: tuple[Liar, Box], target: Path
) -> None:
    agent, box = liar
    evil = "x\n\x1b[2Jvoidbox: all is well"
    agent.entry(f"{evil}1", error=evil)
    agent.entry(f"{evil}2", "fifo")
    agent.entry(f"{evil}3", "link", target="/")
    agent.entry(f"{evil}4")
    agent.refused = f"{evil}4"
    result = await box.files.download("d", target)
    assert len(result.skipped) == 4 and result.errors == 2
    assert all(line.isprintable() for line in result.skipped)
    agent.refused = None
    (target / f"{evil}4").mkdir(parents=True)
    for content in (b"evil", bytes(65537)):
        agent.content = lambda path, content=content: content  # type: ignore[misc]
        with pytest.raises((AgentError, HostError)) as caught:
            await box.files.download("d", target)
        assert str(caught.value).isprintable()
    agent.content = lambda path: time.sleep(0.5) or b"evil"
    with pytest.raises(SandboxTimeout) as late:
        await box.files.download("d", target, request_timeout=0.1)
    assert str(late.value).isprintable()


@pytest.mark.parametrize("type", [protocol.FILE_STAT, protocol.FILE_LIST])
@in_event_loop
async def test_what_is_there_is_asked_again_over_a_new_connection(
    liar: tuple[Liar, Box], target: Path, type: int
) -> None:
    agent, box = liar
    agent.entry("f")
    agent.hangs_up_on = type
    await box.files.download("d", target)
    assert (target / "f").read_bytes() == b"evil"
    agent.hangs_up_on = type
    assert [info.name for info in await box.files.list("d")] == ["f"]
    assert (await box.files.stat("d")).is_folder
    assert agent.hangs_up_on == 0


@in_event_loop
async def test_a_wrong_checksum(liar: tuple[Liar, Box], target: Path) -> None:
    agent, box = liar
    agent.entry("small")
    agent.result = {"checksum": bytes(32)}
    with pytest.raises(AgentError, match="checksum"):
        await box.files.download("d", target)
    agent.entries[0]["size"] = 100_000
    agent.content = lambda path: bytes(100_000)
    with pytest.raises(AgentError, match="checksum"):
        await box.files.download("d", target)
    with pytest.raises(AgentError, match="checksum"):
        await box.files.read("f")
    assert not os.listdir(target)


@pytest.mark.parametrize(
    "values",
    [{"size": "4"}, {"size": None}, {"mode": b"x"}, {"mtime_ns": "now"}, {"size": 1.5}],
)
@in_event_loop
async def test_descriptions_without_sense(
    liar: tuple[Liar, Box], target: Path, values: dict[str, Any]
) -> None:
    agent, box = liar
    agent.entry("f", **values)
    for attempt in (lambda: box.files.download("d", target), lambda: box.files.list("d")):
        with pytest.raises(AgentError, match="sense"):
            await attempt()


@pytest.mark.parametrize("mtime_ns", [-1, 1 << 63, (1 << 64) - 1, -(1 << 63)])
@in_event_loop
async def test_times_that_no_clock_shows(
    liar: tuple[Liar, Box], target: Path, mtime_ns: int
) -> None:
    agent, box = liar
    agent.entry("f", mtime_ns=mtime_ns, mode=(1 << 63) | 0o644)
    await box.files.download("d", target)
    assert (target / "f").read_bytes() == b"evil"


@in_event_loop
async def test_one_name_for_many_things(liar: tuple[Liar, Box], target: Path) -> None:
    agent, box = liar
    agent.entry("f")
    agent.entry("f/g")
    with pytest.raises(HostError):
        await box.files.download("d", target)
    agent.entries.clear()
    agent.entry("x", "folder")
    agent.entry("x", "link", target="y")
    with pytest.raises(HostError):
        await box.files.download("d", target)


@in_event_loop
async def test_too_many_entries(
    liar: tuple[Liar, Box], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, box = liar
    monkeypatch.setattr("voidbox.sandbox.transfer.listing.ENTRIES_MAX", 10)
    for number in range(11):
        agent.entry(f"f{number}")
    for attempt in (lambda: box.files.download("d", target), lambda: box.files.list("d")):
        with pytest.raises(AgentError, match="more than 10 files"):
            await attempt()


def test_names_of_a_folder() -> None:
    assert split_name("a/b..c/...") == ("a", "b..c", "...")


def test_a_link_is_checked_where_it_is_made(tmp_path: Path) -> None:
    with HostFolder(str(tmp_path)) as folder, pytest.raises(ValueError, match="safe"):
        folder.link(("l",), "/etc/passwd")


_WORDS = st.sampled_from(["a", "b", "..", "."])
_LINKS = st.lists(
    st.tuples(
        st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(tuple),
        st.lists(_WORDS, min_size=1, max_size=6).map("/".join),
    ),
    max_size=12,
)


@pytest.mark.slow
@given(_LINKS)
def test_no_combination_of_safe_links_leads_outside(links: list[tuple[Any, str]]) -> None:
    with tempfile.TemporaryDirectory() as name, HostFolder(f"{name}/in") as folder:
        Path(name, "a").mkdir()
        Path(name, "b").mkdir()
        for parts, target in links:
            if is_safe_link(parts, target):
                with suppress(HostError):  # something of that name is there already
                    folder.link(parts, target)
        root = os.path.realpath(f"{name}/in")
        for path in Path(name, "in").rglob("*"):
            assert Path(os.path.realpath(path)).is_relative_to(root), (links, path)
