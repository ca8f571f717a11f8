"""Files of a sandbox, by the real SDK on the real agent."""

from __future__ import annotations

import asyncio
import io
import os
import socket
from pathlib import Path

import pytest

from tests.unit.agent.test_connect import serial_agent
from tests.unit.sandbox.conftest import Box, in_event_loop
from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout
from voidbox.sandbox.transfer import pieces
from voidbox.sdk import files as files_module
from voidbox.sdk.watch import FileEvent

__all__ = ["serial_agent"]

PIECE = 1 << 20


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", PIECE)


def leftovers(folder: Path) -> list[str]:
    return [name for _, _, names in os.walk(folder) for name in names if ".voidbox" in name]


# --- contents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
@in_event_loop
async def test_what_is_written_is_what_is_read(
    box: Box, guest: Path, small_pieces: None, size: int
) -> None:
    content = os.urandom(size)
    assert await box.files.write("a/f", content) == size
    assert (guest / "a" / "f").read_bytes() == content
    assert await box.files.read("a/f", format="bytes") == content
    assert await box.files.write("g", io.BytesIO(content)) == size
    assert (guest / "g").read_bytes() == content
    assert not leftovers(guest)


@in_event_loop
async def test_text(box: Box, guest: Path) -> None:
    await box.files.write("f", "zwölf\n", mode=0o600)
    assert await box.files.read("f") == "zwölf\n"
    assert (guest / "f").stat().st_mode & 0o777 == 0o600
    (guest / "f").write_bytes(b"a\xffb")
    assert await box.files.read("f") == "a�b"


@in_event_loop
async def test_parts(box: Box, guest: Path) -> None:
    (guest / "f").write_bytes(b"0123456789")
    assert await box.files.read_part("f", 0, 4) == b"0123"
    assert await box.files.read_part("f", 8, 4) == b"89"
    assert await box.files.read_part("f", 8, 0) == await box.files.read_part("f", 99, 4) == b""
    assert await box.files.read_part("/proc/self/status", 0, 5) == b"Name:"
    with pytest.raises(RequestFailed, match="nothing"):
        await box.files.read_part("nothing", 0, 4)
    for offset, length in ((-1, 1), (0, -1), (1 << 63, 1), (0, 1 << 40)):
        with pytest.raises(ConfigError, match="no such part"):
            await box.files.read_part("f", offset, length)


@in_event_loop
async def test_files_that_have_no_size(box: Box) -> None:
    assert (await box.files.read("/proc/self/status")).startswith("Name:")


@in_event_loop
async def test_a_file_too_large_for_memory(
    box: Box, guest: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "READ_BYTES_MAX", 2 * PIECE)
    (guest / "f").write_bytes(bytes(2 * PIECE + 1))
    with pytest.raises(AgentError, match="use files.download"):
        await box.files.read("f")


@in_event_loop
async def test_what_cannot_be_done_says_why(box: Box, guest: Path) -> None:
    with pytest.raises(RequestFailed) as caught:
        await box.files.read("none")
    assert caught.value.code == "ENOENT"
    with pytest.raises(RequestFailed):
        await box.files.write(".", b"x")
    for bad in (5, None, ["x"]):
        with pytest.raises(ConfigError, match="cannot write"):
            await box.files.write("f", bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="format="):
        await box.files.read("f", format="json")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="no path"):
        await box.files.read("")


@in_event_loop
async def test_a_source_that_breaks_leaves_nothing(
    box: Box, guest: Path, small_pieces: None
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 2 * PIECE:
                raise OSError(5, "the disk is on fire")
            return super().read(size)

    (guest / "f").write_bytes(b"old")
    with pytest.raises(HostError, match="on fire"):
        await box.files.write("f", Broken(bytes(5 * PIECE)))
    await box.files.list()
    assert (guest / "f").read_bytes() == b"old" and not leftovers(guest)


# --- names --------------------------------------------------------------------------------------


@in_event_loop
async def test_names(box: Box, guest: Path) -> None:
    assert await box.files.make_dir("d/e")
    assert not await box.files.make_dir("d/e")
    await box.files.write("d/e/f", b"123")
    (guest / "d" / "link").symlink_to("e")
    listed = await box.files.list("d", depth=9)
    assert [(i.name, i.type) for i in listed] == [
        ("e", "folder"), ("e/f", "file"), ("link", "link"),
    ]  # fmt: skip
    assert listed[1].path == f"{guest}/d/e/f" and listed[1].size == 3
    assert listed[2].target == "e"
    info = await box.files.stat("d/link")
    assert info.is_folder and (await box.files.stat("d/link", follow=False)).type == "link"
    assert await box.files.exists("d/e/f") and not await box.files.exists("d/e/f/g")
    await box.files.rename("d/e/f", "g")
    assert (await box.files.stat("g")).path == f"{guest}/g"
    with pytest.raises(RequestFailed):
        await box.files.remove("d")
    await box.files.remove("d", recursive=True)
    assert not await box.files.exists("d")


# --- watching -----------------------------------------------------------------------------------


@in_event_loop
async def test_watching(box: Box, guest: Path) -> None:
    async with await box.files.watch_dir(".", recursive=True) as watch:
        (guest / "d").mkdir()
        assert await watch.next(20) == FileEvent("create", "d", True)
        with pytest.raises(SandboxTimeout):
            while True:
                await watch.next(0.2)
        (guest / "d" / "f").write_text("x")
        async for event in watch:
            if event == FileEvent("write", "d/f", False):
                break
    assert await watch.next(20) is None


@in_event_loop
async def test_watching_by_a_callback(box: Box, guest: Path) -> None:
    seen: asyncio.Queue[FileEvent] = asyncio.Queue()
    watch = await box.files.watch_dir(".", seen.put)
    (guest / "f").touch()
    assert await seen.get() == FileEvent("create", "f", False)
    await watch.close()
    with pytest.raises(RequestFailed):
        await box.files.watch_dir("none")


@in_event_loop
async def test_a_callback_that_fails_ends_its_watch(box: Box, guest: Path) -> None:
    async def fail(event: FileEvent) -> None:
        raise ValueError(event.name)

    watch = await box.files.watch_dir(".", fail)
    (guest / "f").touch()
    while not watch._call.is_over:
        await asyncio.sleep(0.001)
    for action in (watch.next, watch.close):
        with pytest.raises(ValueError, match="f"):
            await action()
    with pytest.raises(KeyError):  # the first error is the one to know
        async with watch:
            raise KeyError


@in_event_loop
async def test_a_callback_may_close_its_watch(box: Box, guest: Path) -> None:
    seen: list[FileEvent] = []

    async def once(event: FileEvent) -> None:
        seen.append(event)
        await watch.close()

    watch = await box.files.watch_dir(".", once)
    for number in range(5):
        (guest / f"f{number}").touch()
    while not seen:
        await asyncio.sleep(0.001)
    await watch.close()
    assert seen == [FileEvent("create", "f0", False)]


# --- single files -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, PIECE, 5 * PIECE + 3])
@in_event_loop
async def test_a_file_there_and_back(
    box: Box, guest: Path, tmp_path: Path, small_pieces: None, size: int
) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(size))
    source.chmod(0o750)
    os.utime(source, ns=(0, 1_600_000_000_123_456_789))
    told: list[tuple[int, int]] = []
    result = await box.files.upload(source, "up", progress=lambda *numbers: told.append(numbers))
    assert (result.files, result.bytes, result.carrier) == (1, size, "vsock")
    assert told[-1] == (size, size) and told == sorted(told)
    told.clear()
    result = await box.files.download("up", back, progress=lambda *numbers: told.append(numbers))
    assert (result.files, result.bytes) == (1, size) and told[-1] == (size, size)
    assert back.read_bytes() == source.read_bytes()
    for path in (guest / "up", back):
        assert path.stat().st_mtime_ns == 1_600_000_000_123_456_789
        assert path.stat().st_mode & 0o777 == 0o750
    assert not leftovers(tmp_path)


@in_event_loop
async def test_a_slash_at_the_end_names_the_folder(box: Box, guest: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    await box.files.upload(tmp_path / "f", "into/")
    assert (guest / "into" / "f").read_text() == "x"
    await box.files.download("into/f", f"{tmp_path}/out/")
    assert (tmp_path / "out" / "f").read_text() == "x"
    with pytest.raises(ConfigError, match="is a folder: write"):
        await box.files.download("into/f", tmp_path / "out")


@in_event_loop
async def test_what_is_no_file_is_not_copied(box: Box, guest: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("none", "fifo"):
        with pytest.raises(ConfigError, match="cannot read"):
            await box.files.upload(tmp_path / name, "x")
    with pytest.raises(RequestFailed):
        await box.files.download("none", tmp_path / "x")
    with pytest.raises(RequestFailed):
        await box.files.download("/dev/zero", tmp_path / "x")
    (guest / "f").write_text("x")
    with pytest.raises(ConfigError, match="cannot write into"):
        await box.files.download("f", tmp_path / "fifo" / "x")
    assert not leftovers(tmp_path)


@in_event_loop
async def test_a_users_own_link_is_followed(box: Box, guest: Path, tmp_path: Path) -> None:
    (guest / "f").write_text("new")
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    await box.files.download("f", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"


# --- lost connections ---------------------------------------------------------------------------


@pytest.mark.parametrize("cut_at", [1, PIECE + 1, 4 * PIECE - 1, 4 * PIECE])
@in_event_loop
async def test_transfers_go_on_after_a_lost_connection(
    box: Box, guest: Path, tmp_path: Path, small_pieces: None, cut_at: int
) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(4 * PIECE))
    most = 0

    def cut(done: int, total: int) -> None:
        nonlocal most
        if most < cut_at <= done:
            box.endpoint.cut()
        most = max(most, done)

    await box.files.upload(source, "up", progress=cut)
    assert (guest / "up").read_bytes() == source.read_bytes()
    connections = len(box.endpoint.connections)
    assert connections == 2
    most = 0
    await box.files.download("up", back, progress=cut)
    assert back.read_bytes() == source.read_bytes()
    assert not leftovers(tmp_path)


@in_event_loop
async def test_what_was_there_is_not_sent_again(
    box: Box, guest: Path, tmp_path: Path, small_pieces: None
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(8 * PIECE))
    least = 8 * PIECE
    is_cut = False

    def cut(done: int, total: int) -> None:
        nonlocal is_cut, least
        if is_cut:
            least = min(least, done)
        elif done > 6 * PIECE:
            is_cut = True
            box.endpoint.cut()

    await box.files.upload(source, "up", progress=cut)
    assert is_cut and least >= 6 * PIECE
    assert (guest / "up").read_bytes() == source.read_bytes()


@in_event_loop
async def test_a_guest_that_dies_ends_a_transfer_at_once(
    box: Box, guest: Path, tmp_path: Path, small_pieces: None
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(8 * PIECE))

    def die(done: int, total: int) -> None:
        if done > PIECE:
            box.endpoint.cut("its last lines")

    with pytest.raises(AgentError, match="its last lines"):
        await box.files.upload(source, "up", progress=die)
    box.endpoint.death = ""
    (guest / "f").write_bytes(bytes(8 * PIECE))
    with pytest.raises(AgentError, match="its last lines"):
        await box.files.download("f", tmp_path / "down", progress=die)
    assert not (tmp_path / "down").exists() and not leftovers(tmp_path / "down")


@in_event_loop
async def test_a_cancelled_transfer_leaves_nothing(
    box: Box, guest: Path, tmp_path: Path, small_pieces: None
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(8 * PIECE))
    for begin in (
        lambda tell: box.files.upload(source, "up", progress=tell),
        lambda tell: box.files.download(str(source), tmp_path / "down", progress=tell),
    ):
        reached = asyncio.Event()

        def tell(done: int, total: int, reached: asyncio.Event = reached) -> None:
            if done > 2 * PIECE:
                reached.set()

        task = asyncio.create_task(begin(tell))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await box.files.list()
        while leftovers(tmp_path):
            await box.files.list()
    assert not (guest / "up").exists() and not (tmp_path / "down").exists()


@in_event_loop
async def test_a_beginning_that_the_guest_forgot_is_sent_again(
    box: Box, guest: Path, tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, forgets = pieces._send_piece, True

    async def forget(agent, values, *rest):  # type: ignore[no-untyped-def]
        nonlocal forgets
        if values.get("offset") == 2 * PIECE and forgets:
            forgets = False
            raise RequestFailed(protocol.GONE, "forgotten")
        return await real(agent, values, *rest)

    monkeypatch.setattr(pieces, "_send_piece", forget)
    (tmp_path / "source").write_bytes(os.urandom(4 * PIECE))
    told: list[int] = []
    await box.files.upload(
        tmp_path / "source", "up", progress=lambda done, total: told.append(done)
    )
    assert (guest / "up").read_bytes() == (tmp_path / "source").read_bytes()
    assert told[-1] == 4 * PIECE == max(told)


# --- folders ------------------------------------------------------------------------------------


def make_tree(folder: Path) -> None:
    (folder / "empty").mkdir(parents=True)
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "binary").write_bytes(bytes(range(256)))
    (folder / "deep" / "nothing").write_bytes(b"")
    (folder / "big").write_bytes(os.urandom(300_000))
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "odd name\n\xfc").write_text("odd")
    (folder / os.fsdecode(b"no-utf8-\xff")).write_text("bytes")
    (folder / "deep" / "up").symlink_to("../big")
    (folder / "deep" / "down").symlink_to("er/binary")


def shape(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else (path.stat().st_mode & 0o777, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


@in_event_loop
async def test_a_folder_there_and_back(box: Box, guest: Path, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    os.mkfifo(tmp_path / "tree" / "fifo")
    told: list[tuple[int, int]] = []
    result = await box.files.upload(
        tmp_path / "tree", "tree", progress=lambda *numbers: told.append(numbers)
    )
    assert result.files == 6 and told[-1] == (result.bytes, result.bytes)
    assert result.skipped == ("fifo: neither file nor folder nor link",)
    (tmp_path / "tree" / "fifo").unlink()
    assert shape(guest / "tree") == shape(tmp_path / "tree")
    told.clear()
    result = await box.files.download(
        "tree", tmp_path / "back", progress=lambda *numbers: told.append(numbers)
    )
    assert result.files == 6 and told[-1] == (result.bytes, result.bytes)
    assert shape(tmp_path / "back") == shape(tmp_path / "tree")
    assert not leftovers(tmp_path)


@in_event_loop
async def test_an_existing_folder_keeps_what_else_is_in_it(
    box: Box, guest: Path, tmp_path: Path
) -> None:
    make_tree(tmp_path / "tree")
    for folder in (guest / "tree", tmp_path / "back"):
        folder.mkdir()
        (folder / "own").write_text("own")
        (folder / "big").write_text("old")
    await box.files.upload(tmp_path / "tree", "tree")
    await box.files.download("tree", tmp_path / "back")
    for folder in (guest / "tree", tmp_path / "back"):
        assert (folder / "own").read_text() == "own"
        assert (folder / "big").stat().st_size == 300_000


@in_event_loop
async def test_a_folder_survives_a_lost_connection(box: Box, guest: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(300):
        (tree / f"f{number}").write_bytes(os.urandom(number * 10))
    is_cut = False

    def cut(done: int, total: int) -> None:
        nonlocal is_cut
        if done > total // 3 and not is_cut:
            is_cut = True
            box.endpoint.cut()

    result = await box.files.upload(tree, "tree", progress=cut)
    assert result.files == 300 and shape(guest / "tree") == shape(tree)
    is_cut = False
    result = await box.files.download("tree", tmp_path / "back", progress=cut)
    assert result.files == 300 and shape(tmp_path / "back") == shape(tree)
    assert not leftovers(tmp_path)


@pytest.mark.slow
@in_event_loop
async def test_five_thousand_files(box: Box, guest: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(5000):
        folder = tree / f"d{number % 50}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number}").write_bytes(b"%d" % number)
    up = await box.files.upload(tree, "tree")
    down = await box.files.download("tree", tmp_path / "back")
    assert up.files == down.files == 5000
    assert shape(tmp_path / "back") == shape(tree)
    assert up.seconds < 30 and down.seconds < 30
    assert len(box.endpoint.connections) == 1


@in_event_loop
async def test_an_error_in_a_folder_is_told(box: Box, guest: Path, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    (guest / "tree" / "big").mkdir(parents=True)
    with pytest.raises(RequestFailed):
        await box.files.upload(tmp_path / "tree", "tree")
    (guest / "other").mkdir()
    (guest / "other" / "f").write_text("x")
    (tmp_path / "out" / "f").mkdir(parents=True)
    with pytest.raises(HostError, match="cannot write"):
        await box.files.download("other", tmp_path / "out")
    assert not leftovers(tmp_path / "out")


@in_event_loop
async def test_the_log_says_what_it_went_over(
    box: Box, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "f").write_text("x")
    with caplog.at_level("INFO", "voidbox"):
        await box.files.upload(tmp_path / "f", "f")
    assert "via vsock" in caplog.text


@in_event_loop
async def test_without_vsock_it_goes_over_the_serial_line(
    box: Box,
    serial_agent: socket.socket,
    guest: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(port: int, timeout_s: float) -> socket.socket:
        raise ConnectionRefusedError(111, "Connection refused")

    box.endpoint.connect = refuse  # type: ignore[method-assign]
    box.endpoint.connect_serial = lambda: serial_agent  # type: ignore[method-assign, return-value, assignment]
    (tmp_path / "f").write_bytes(os.urandom(200_000))  # some pieces
    with caplog.at_level("INFO", "voidbox"):
        result = await box.files.upload(tmp_path / "f", "f")
        assert result.carrier == "serial"
        await box.files.download("f", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "f").read_bytes()
    assert caplog.text.count("via serial") == 2
    assert any("going on via serial" in line for line in box.lines)


@in_event_loop
async def test_a_fifo_or_a_device_is_not_replaced(box: Box, guest: Path, tmp_path: Path) -> None:
    (guest / "d").mkdir()
    (guest / "d" / "fifo").write_text("text")
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d" / "fifo")
    for source, target in (("d/fifo", tmp_path / "d" / "fifo"), ("d", tmp_path / "d")):
        with pytest.raises(ConfigError, match="would be replaced"):
            await box.files.download(source, target)
    assert (tmp_path / "d" / "fifo").is_fifo() and leftovers(tmp_path / "d") == []


@pytest.mark.skipif(os.getuid() != 0, reason="mounts: sudo")
@in_event_loop
async def test_what_is_mounted_on_a_file_of_the_host_is_written_in_place(
    box: Box, guest: Path, tmp_path: Path
) -> None:
    (guest / "f").write_bytes(b"new")
    other, target = tmp_path / "other", tmp_path / "target"
    other.mkdir()
    target.touch()
    assert os.system(f"mount -t tmpfs tmpfs {other}") == 0
    (other / "source").write_bytes(b"old and longer")
    assert os.system(f"mount --bind {other / 'source'} {target}") == 0
    try:
        await box.files.download("f", target)
        assert (other / "source").read_bytes() == b"new" and not leftovers(tmp_path)
    finally:
        os.system(f"umount {target}; umount {other}")
