"""A node and its gateway, without Ray: real sandboxes' processes, real agents, no machines."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.unit.images.fake_registry import fake_registry
from tests.unit.images.oci import make_image
from voidbox.errors import AgentError, ConfigError, HostError, PoolFull, SandboxLost
from voidbox.images.config import ImageConfig
from voidbox.images.draft import ROOTFS
from voidbox.images.record import ImageRecord
from voidbox.images.reference import parse_reference
from voidbox.images.store import Image, ImageStore
from voidbox.ray.answers import NodeDrains, checked
from voidbox.ray.carrier import GatewayCarrier, NodeAddress
from voidbox.ray.copying import receive
from voidbox.ray.gateway import STRANGERS_MAX
from voidbox.ray.holding import Holding
from voidbox.ray.node import Node, NodeOptions
from voidbox.ray.remote import RemoteSandbox
from voidbox.ray.ticket import Ticket
from voidbox.sandbox.control import encode
from voidbox.sandbox.snapshots import record as records
from voidbox.sdk.creating import CreateOptions

pytestmark = pytest.mark.slow


DEADLINE_S = 300.0  # for a whole test, on a machine that is busy with others


def in_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test's coroutine."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **fixtures), DEADLINE_S))

    return run


class Opened:
    """A node, and the way to it."""

    def __init__(self, node: Node, address: NodeAddress) -> None:
        self.node, self.address = node, address
        self.carrier = GatewayCarrier(address)

    async def acquire(self, holder: str = "test", **options: Any) -> RemoteSandbox:
        found = await self.node.acquire(
            holder, DEADLINE_S, CreateOptions(**options) if options else None
        )
        return RemoteSandbox(self.carrier, Ticket.from_json(found["ticket"]), "here")


@contextlib.asynccontextmanager
async def opened(options: dict[str, Any], size: int = 2, **others: Any) -> AsyncIterator[Opened]:
    own = dict(options)
    memory, folder = own.pop("host_memory", None), own.pop("state_folder", None)
    node = Node(
        NodeOptions(
            size=size,
            host_memory=memory,
            state_folder=folder,
            options=CreateOptions(**own),
            **others,
        ),
        "127.0.0.1",
    )
    with socket.create_server(("127.0.0.1", 0)) as raylet:  # what stands for the machine
        found = await node.listen()
        await node.open()
        try:
            yield Opened(
                node,
                NodeAddress(
                    "here", found["host"], found["port"], found["token"], found["certificate"],
                    raylet.getsockname(),
                ),
            )  # fmt: skip
        finally:
            await node.close()


@pytest.mark.parametrize("is_secured", [False, True])
@in_event_loop
async def test_all_of_a_sandbox_from_afar(options: dict[str, Any], is_secured: bool) -> None:
    async with opened(options, is_secured=is_secured, labels={"run": "7"}) as there:
        async with await there.acquire() as sandbox:
            done = await sandbox.commands.run("echo out; echo err >&2; exit 3")
            assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 3)
            data = os.urandom(3 << 20)
            await sandbox.files.write("data", data)
            assert await sandbox.files.read("data", "bytes") == data
            assert (await sandbox.exec("wc", "-c", input=data)).stdout.strip() == str(len(data))
            lines: list[str] = []
            await sandbox.commands.run("seq 1000", on_stdout=lines.append)
            assert "".join(lines).split()[-1] == "1000"
            terminal = await sandbox.pty.create()
            await terminal.kill()
            assert [line async for line in sandbox.logs()] == ["the guest boots"]
            assert (await sandbox.get_info()).metadata == {"run": "7"}
            assert (await sandbox.get_metrics()).cpus > 0
            await sandbox.pause()
            with pytest.raises(ConfigError, match="paused"):
                await sandbox.commands.run("true")
            await sandbox.resume()
            await sandbox.set_timeout(1000)
            assert (await sandbox.get_info()).end_at is not None
            info = await sandbox.snapshot("later")
            assert info.sandbox_id == sandbox.sandbox_id
            for refused in (sandbox.fork(), sandbox.suspend()):
                with pytest.raises(ConfigError):
                    await refused
            assert await sandbox.is_running()
        assert not await sandbox.is_running()
        with pytest.raises(AgentError, match="ended by this program"):
            await sandbox.commands.run("true")
        assert there.node.load()["used"] == 0


@in_event_loop
async def test_a_token_is_for_one_sandbox(options: dict[str, Any]) -> None:
    async with (
        opened(options) as there,
        await there.acquire() as one,
        await there.acquire() as other,
    ):
        mixed = [(one.sandbox_id, other._remote._token), (one.sandbox_id, ""), ("", "x")]
        for id, token in mixed:
            for op in ("record", "kill", "hold", "nonsense"):
                with pytest.raises(AgentError, match="no such sandbox"):
                    await asyncio.to_thread(there.carrier.ask, id, token, op, 10, {})
        for op in ("suspend", "secret_copy", "deliver", "info"):
            with pytest.raises(ConfigError, match="cannot be asked"):
                await asyncio.to_thread(one._remote._ask, op, 10, {})
        with pytest.raises(ConfigError, match="no log"):
            await asyncio.to_thread(one._remote.open_log, "../state.json")
        assert (await one.commands.run("true")).exit_code == 0


@in_event_loop
async def test_nonsense_at_the_gateway_ends_there(options: dict[str, Any]) -> None:
    async with opened(options) as there:
        for line in (
            b"\xff\n",
            b"[]\n",
            b"{}\n",
            b'{"op": 3}\n',
            b'{"op": "hold", "token": "\\ud800\\u00e9"}\n',
            b"[" * 50_000 + b"\n",
        ):
            reader, writer = await asyncio.open_connection(there.address.host, there.address.port)
            writer.write(line)
            assert json.loads(await reader.readline())["ok"] is False
            writer.close()
        reader, writer = await asyncio.open_connection(there.address.host, there.address.port)
        writer.write(b"x" * (1 << 20))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


@in_event_loop
async def test_strangers_are_few(options: dict[str, Any]) -> None:
    async with opened(options) as there, await there.acquire() as sandbox:
        await sandbox.commands.run("true")
        at = (there.address.host, there.address.port)
        silent = [await asyncio.open_connection(*at) for _ in range(STRANGERS_MAX + 10)]
        for reader, _ in silent[STRANGERS_MAX:]:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert (await sandbox.commands.run("echo on")).stdout == "on\n"
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("is_near", [False, True])
@in_event_loop
async def test_a_guest_that_ends_is_lost(options: dict[str, Any], is_near: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        there = await stack.enter_async_context(opened(options))
        sandbox: Any
        if is_near:
            holding = Holding(there.address)
            await holding.open()
            stack.callback(lambda: holding._writer and holding._writer.close())
            sandbox = await holding.acquire()
        else:
            sandbox = await there.acquire()
        running = asyncio.create_task(sandbox.commands.run("sleep 1000"))
        assert (await sandbox.commands.run("true")).exit_code == 0
        folder = Path(os.environ["VOIDBOX_STATE"], "sandboxes", sandbox.sandbox_id)
        os.kill(int((folder / "agent.pid").read_text()), 9)
        with pytest.raises(SandboxLost, match="panic") as lost:
            await running
        assert lost.value.reason == "guest"
        with pytest.raises(SandboxLost):
            await sandbox.files.read("x")
        await sandbox.kill()
        assert there.node.load()["used"] == 0


@in_event_loop
async def test_a_pool_that_ends_is_lost(options: dict[str, Any]) -> None:
    async with opened(options) as there:
        sandbox = await there.acquire()
        running = asyncio.create_task(sandbox.commands.run("sleep 1000"))
        assert (await sandbox.commands.run("true")).exit_code == 0
        await there.node.close()
        with pytest.raises(SandboxLost) as lost:
            await running
        assert lost.value.reason == "pool"
        assert not await sandbox.is_running()
        assert not await sandbox.kill()


@in_event_loop
async def test_a_lease_that_nobody_renews_ends(options: dict[str, Any]) -> None:
    async with opened(options, lease_s=4.0) as there:
        kept, left = await there.acquire("kept"), await there.acquire("left")
        there.node._leases["kept"] = float("inf")
        while await left.is_running():
            await asyncio.sleep(0.1)
        assert (await kept.commands.run("true")).exit_code == 0
        assert await kept.kill()


@in_event_loop
async def test_sandboxes_end_with_the_connection_that_holds_them(options: dict[str, Any]) -> None:
    async with opened(options) as there:
        reader, writer = await asyncio.open_connection(there.address.host, there.address.port)
        writer.write(encode({"op": "hold", "token": there.address.token}))
        await reader.readline()
        for n in range(3):  # of two
            writer.write(encode({"n": n, "op": "acquire", "timeout": None}))
        found = json.loads(await reader.readline())
        await reader.readline()
        writer.write(encode({"n": 9, "op": "release", "id": found["ticket"]["record"]["id"]}))
        answers = [json.loads(await reader.readline()) for _ in range(2)]
        assert {answer["n"] for answer in answers} & {9}
        writer.close()
        while there.node.load()["used"]:
            await asyncio.sleep(0.05)


@in_event_loop
async def test_a_snapshot_comes_from_another_node(options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        async with (
            opened(options) as there,
            opened({**options, "state_folder": folder}) as here,
        ):
            async with await there.acquire() as sandbox:
                info = await sandbox.snapshot("prepared")
            memory = Path(os.environ["VOIDBOX_STATE"], "snapshots", info.snapshot_id, "memory")
            with memory.open("r+b") as file:  # with a hole in it
                file.truncate(64 << 20)
                file.seek(32 << 20)
                file.write(os.urandom(3 << 20))
            for _ in range(2):
                await here.node.fetch("snapshot", info.snapshot_id, there.address)
            found = await here.node.find("snapshot", "prepared")
            assert found is not None
            assert found.id == info.snapshot_id
            copied = Path(folder, "snapshots", found.id, "memory")
            assert copied.read_bytes() == memory.read_bytes()
            assert copied.stat().st_blocks * 512 < 8 << 20
            assert records.load(str(copied.parent)).files == records.load(str(memory.parent)).files
            wrong = there.address._replace(token="x")
            with pytest.raises(AgentError, match="no such sandbox"):
                await here.node.fetch("snapshot", "another", wrong)
            with pytest.raises(ConfigError, match="no snapshot"):
                await here.node.fetch("snapshot", "another", there.address)
            assert len(os.listdir(Path(folder, "snapshots"))) == 1


@in_event_loop
async def test_an_image_comes_from_another_node(options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        async with (
            opened(options) as there,
            opened({**options, "state_folder": folder}) as here,
        ):
            made = add_image(ImageStore(), "tools:1")
            assert await here.node.find("image", "tools:1") is None
            await here.node.fetch("image", "tools:1", there.address)
            found = ImageStore(folder).find("tools:1")
            assert found.record._replace(added_at=0.0) == made.record._replace(added_at=0.0)
            assert Path(found.path).read_bytes() == Path(made.path).read_bytes()
            with open(made.path, "rb") as file, pytest.raises(HostError, match="broke off"):
                cut, ours = socket.socketpair()
                parts = [{"name": ROOTFS, "size_bytes": 9, "extents": [[0, 9]], "digest": ""}]
                head = {"record": made.record.to_json(), "names": [], "parts": parts}
                cut.sendall(json.dumps(head).encode() + b"\n" + file.read(4))
                cut.close()
                receive(ours, "image", "tools:2", folder)
            assert await here.node.find("image", "tools:2") is None


class AsMember:
    """A node as a pool has it, without the actor between."""

    def __init__(self, opened: Opened) -> None:
        self._node, self.address = opened.node, opened.address
        self.has: set[str] = set()

    async def find(self, kind: str, key: str) -> object:
        return await self._node.find(kind, key)

    async def call(self, method: str, kind: str, key: str, peer: NodeAddress | None) -> None:
        assert method == "fetch"
        if peer is None:
            await self._node.pull(key)
        else:
            await self._node.fetch(kind, key, peer)


@in_event_loop
async def test_an_image_that_nobody_has_is_pulled_once(options: dict[str, Any]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: make test-ray does that")
    from voidbox.ray.spreading import spread

    async with contextlib.AsyncExitStack() as stack:
        registry = stack.enter_context(fake_registry())
        image = make_image({"bin/": b"", "bin/sh": b"#!" * 500}, {"etc/": b"", "etc/motd": b"hi"})
        registry.add(image, "1.0")
        name = registry.name(tag="1.0")
        folders = [stack.enter_context(tempfile.TemporaryDirectory(prefix="vbx")) for _ in "abc"]
        nodes: Any = [
            AsMember(await stack.enter_async_context(opened({**options, "state_folder": folder})))
            for folder in folders
        ]
        await asyncio.gather(*(spread(nodes, "image", name, nodes) for _ in range(2)))
        assert [ImageStore(folder).find(name).id for folder in folders] == [image.id] * 3
        assert [registry.count(f"/blobs/{digest}") for digest in image.layers] == [1, 1]
        before = len(registry.requests)
        await spread(nodes, "image", name, nodes)
        assert len(registry.requests) == before


def add_image(store: ImageStore, name: str) -> Image:
    id = f"sha256:{'7' * 64}"
    with store.draft() as draft:
        Path(draft.rootfs).write_bytes(os.urandom(1 << 20) + bytes(1 << 20))
        record = ImageRecord(id, ImageConfig(), 2 << 20, None, 1.0, "a test")
        return store.add(draft, parse_reference(name), record)


@in_event_loop
async def test_who_waits_on_a_connection_keeps_what_it_has(options: dict[str, Any]) -> None:
    async with opened(options, size=1, lease_s=0.4) as there:
        reader, writer = await asyncio.open_connection(there.address.host, there.address.port)
        writer.write(encode({"op": "hold", "token": there.address.token}))
        await reader.readline()
        writer.write(encode({"n": 0, "op": "acquire", "timeout": None}))
        await reader.readline()
        writer.write(encode({"n": 1, "op": "acquire", "timeout": None}))
        await asyncio.sleep(1.5)  # some leases long
        assert there.node.load()["used"] == 1
        assert there.node.load()["waiting"] == 1
        writer.close()


@in_event_loop
async def test_a_queue_is_bounded(options: dict[str, Any]) -> None:
    async with opened(options, size=1, queue_max=2) as there, await there.acquire():
        waiting = [asyncio.create_task(there.acquire()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(PoolFull, match="wait"):
            await there.acquire()
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(PoolFull):
            await there.node.acquire("test", 0)


@in_event_loop
async def test_reaping_by_label(options: dict[str, Any]) -> None:
    async with opened(options, labels={"run": "7"}) as there:
        one = await there.acquire()
        other = await there.acquire(metadata={"mine": "yes"})
        assert await there.node.reap({"run": "8"}) == 0
        assert await there.node.reap({"mine": "yes"}) == 1
        assert not await other.is_running()
        assert await one.is_running()
        assert await there.node.reap({"run": "7"}) == 1


@in_event_loop
async def test_a_reader_that_stops_holds_up_its_command_alone(options: dict[str, Any]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async with opened(options) as there, await there.acquire() as sandbox:
        await sandbox.commands.run("true")
        handle = await sandbox.commands.start("head -c 300000000 /dev/zero", timeout=None)
        before = resident()
        await asyncio.sleep(1.5)  # nobody reads: both ends of the gateway are this process
        assert (await sandbox.commands.run("echo on")).stdout == "on\n"
        assert resident() - before < 32 << 20
        await handle.kill()


@in_event_loop
async def test_who_withdraws_is_given_nothing(options: dict[str, Any]) -> None:
    async with opened(options, size=1) as there, await there.acquire():
        waiting = asyncio.create_task(there.node.acquire("test", None, None, 7))
        while not there.node.load()["waiting"]:
            await asyncio.sleep(0.01)
        there.node.withdraw("somebody", 7)
        there.node.withdraw("test", 8)
        await asyncio.sleep(0.1)
        assert not waiting.done(), "it was another's"
        there.node.withdraw("test", 7)
        with pytest.raises(PoolFull, match="withdrawn"):
            await waiting
        waiting = asyncio.create_task(there.node.acquire("test", None, None, 9))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        while there.node.load()["waiting"]:
            await asyncio.sleep(0.01)
        assert not there.node._asking


@in_event_loop
async def test_a_node_that_drains_gives_no_more(options: dict[str, Any]) -> None:
    async with opened(options, warm=1) as there:
        used = [await there.acquire() for _ in range(2)]
        reader, writer = await asyncio.open_connection(there.address.host, there.address.port)
        writer.write(encode({"op": "hold", "token": there.address.token}))
        await reader.readline()
        writer.write(encode({"n": 1, "op": "acquire", "timeout": None}))
        waiting = asyncio.create_task(there.acquire())
        while there.node.load()["waiting"] < 2:
            await asyncio.sleep(0.01)
        for _ in range(2):
            there.node.drain()
        with pytest.raises(NodeDrains):
            checked(json.loads(await reader.readline()))
        writer.close()
        with pytest.raises(NodeDrains):
            await waiting
        with pytest.raises(NodeDrains):
            await there.acquire()
        for sandbox in used:
            assert (await sandbox.commands.run("echo on")).stdout == "on\n"
            assert not there.node.drained.is_set()
            assert await sandbox.kill()
        await there.node.drained.wait()
        assert there.node.stats()["warm"] == 0
