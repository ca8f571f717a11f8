"""The MCP server's tools, called by the protocol's own client, over a real agent without a VM."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from tests.unit.agent.conftest import agent_path
from tests.unit.sandbox.conftest import Box
from voidbox.errors import ConfigError, HostError
from voidbox.mcp_server.server import make_server
from voidbox.mcp_server.shelf import Shelf

pytestmark = pytest.mark.slow

__all__ = ["agent_path"]
ROOT = Path(__file__).parents[3]


class FakeSandbox(Box):
    """A sandbox, but for the machine."""

    def __init__(self, path: Path, folder: Path, name: str) -> None:
        super().__init__(path, folder)
        self.name = name
        self.is_alive = True
        self.is_forgotten = False
        self.kills = 0

    async def is_running(self) -> bool:
        if self.is_forgotten:
            raise ConfigError(f"no sandbox {self.name}")
        return self.is_alive

    async def get_info(self) -> Any:
        if self.is_forgotten:
            raise ConfigError(f"no sandbox {self.name}")
        state, reason = ("running", "") if self.is_alive else ("crashed", "the guest panicked")
        return SimpleNamespace(name=self.name, state=state, memory_bytes=1 << 29, reason=reason)

    async def kill(self) -> bool:
        self.kills += 1
        was_alive, self.is_alive = self.is_alive, False
        self.close()
        return was_alive


class Server:
    """A server with fake sandboxes, and a client of it."""

    def __init__(self, agent: Path, folder: Path) -> None:
        self.made: list[FakeSandbox] = []
        self.problem: Exception | None = None
        self._agent, self._folder = agent, folder

    async def make(self) -> Any:
        if self.problem is not None:
            raise self.problem
        name = f"box-{len(self.made) + 1}"
        (self._folder / name).mkdir()
        self.made.append(FakeSandbox(self._agent, self._folder / name, name))
        return self.made[-1]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Call]:
        async with Client(make_server(Shelf(self.make, 2))) as client:
            yield Call(client)


class Call:
    def __init__(self, client: Client) -> None:
        self.client = client

    async def ok(self, tool: str, **arguments: object) -> str:
        text, is_error = await self(tool, **arguments)
        assert not is_error, text
        return text

    async def error(self, tool: str, **arguments: object) -> str:
        text, is_error = await self(tool, **arguments)
        assert is_error, text
        return text

    async def __call__(self, tool: str, **arguments: object) -> tuple[str, bool]:
        result = await self.client.call_tool(tool, dict(arguments))
        (content,) = result.content
        return content.text, bool(result.is_error)  # type: ignore[union-attr]


@pytest.fixture
def server(agent_path: Path, tmp_path: Path) -> Server:
    return Server(agent_path, tmp_path)


def run(server: Server, test: Callable[[Call], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), server.client() as call:
            await test(call)

    asyncio.run(main())


def test_the_tools_say_what_they_are(server: Server) -> None:
    async def test(call: Call) -> None:
        tools = {tool.name: tool for tool in (await call.client.list_tools()).tools}
        assert tools.keys() == {
            f"sandbox_{name}"
            for name in ("create", "exec", "write_file", "read_file", "list_files", "list", "kill")
        }
        assert all(tool.description for tool in tools.values())
        assert tools["sandbox_exec"].input_schema["required"] == ["command"]
        assert "self" not in tools["sandbox_exec"].input_schema["properties"]
        assert "isolated" in (call.client.instructions or "")

    run(server, test)


def test_a_sandbox_is_made_when_it_is_needed_and_ends_with_the_server(server: Server) -> None:
    async def test(call: Call) -> None:
        assert await call.ok("sandbox_list") == "(none)"
        text = await call.ok("sandbox_exec", command="echo out; echo err >&2; exit 3")
        assert text == "exit code: 3\nstdout:\nout\n\nstderr:\nerr\n"
        text = await call.ok("sandbox_exec", command="tr a-z A-Z; pwd", stdin="loud", cwd="/")
        assert text.endswith("LOUD/\n")
        assert "LOUD" in text
        assert len(server.made) == 1
        assert await call.ok("sandbox_list") == "box-1: running, 512 MiB"

    run(server, test)
    assert [box.kills for box in server.made] == [1]


def test_files(server: Server) -> None:
    async def test(call: Call) -> None:
        assert await call.ok("sandbox_write_file", path="a/b.txt", content="Grüße") == (
            "a/b.txt: 7 bytes written"
        )
        await call.ok("sandbox_write_file", path="run", content="#!/bin/sh\n", is_executable=True)
        assert (server._folder / "box-1/run").stat().st_mode & 0o777 == 0o755
        assert await call.ok("sandbox_read_file", path="a/b.txt") == "Grüße"
        listing = await call.ok("sandbox_list_files", depth=2)
        assert listing.replace(f"{server._folder}/box-1/", "").splitlines() == [
            "a/", "a/b.txt  7 bytes", "run  10 bytes",
        ]  # fmt: skip
        assert "nothing" in await call.error("sandbox_read_file", path="nothing")

    run(server, test)


def test_long_things_are_cut_and_it_is_said(server: Server) -> None:
    async def test(call: Call) -> None:
        text = await call.ok("sandbox_exec", command="seq 100000; seq 9 >&2")
        assert "bytes are left out here" in text
        assert text.startswith("exit code: 0\nstdout:\n1\n2\n") and "\n100000\n" in text
        assert len(text) < 26000
        await call.ok("sandbox_write_file", path="long", content="x" * 70000)
        text = await call.ok("sandbox_read_file", path="long")
        assert text.endswith("[4464 more bytes: read on with offset=65536]")
        assert await call.ok("sandbox_read_file", path="long", offset=65536) == "x" * 4464
        assert "nothing at 70000" in await call.error(
            "sandbox_read_file", path="long", offset=70000
        )
        with open(server._folder / "box-1/huge", "wb") as file:
            file.truncate(1 << 30)
        assert "use sandbox_exec" in await call.error("sandbox_read_file", path="huge")
        await call.error("sandbox_read_file", path="long", offset=1 << 70)
        assert "Name:" in await call.ok("sandbox_read_file", path="/proc/self/status")
        (server._folder / "box-1/huge").write_bytes(b"a line\n" * 3_000_000)  # needs one part only
        text = await call.ok("sandbox_read_file", path="huge", offset=20_000_001)
        assert text.startswith("a line\n")
        assert text.endswith(f"[{1_000_000 - 1 - 65536} more bytes: read on with offset=20065537]")
        (server._folder / "box-1/binary").write_bytes(b"\x7fELF\0")
        assert "no text" in await call.error("sandbox_read_file", path="binary")
        for n in range(600):
            (server._folder / f"box-1/{n:03}").touch()
        assert "[… 103 more are left out]" in await call.ok("sandbox_list_files")

    run(server, test)


def test_a_command_that_takes_too_long_is_ended(server: Server) -> None:
    async def test(call: Call) -> None:
        command = "echo begun; exec sleep 1000"
        text = await call.ok("sandbox_exec", command=command, timeout_seconds=0.2)
        assert "it was ended after 0.2 seconds" in text and "begun" in text
        await call.error("sandbox_exec", command="true", timeout_seconds=1e9)

    run(server, test)


def test_there_are_so_many_and_no_more(server: Server) -> None:
    async def test(call: Call) -> None:
        names = [await call.ok("sandbox_create") for _ in range(2)]
        assert names == ["box-1", "box-2"]
        assert "2 sandboxes already (box-1, box-2)" in await call.error("sandbox_create")
        assert "say which" in await call.error("sandbox_exec", command="true")
        assert "no sandbox 'box-9'" in await call.error(
            "sandbox_exec", command="true", sandbox="box-9"
        )
        assert await call.ok("sandbox_kill", sandbox="box-1") == "box-1 has been ended"
        assert "no sandbox" in await call.error("sandbox_kill", sandbox="box-1")
        assert await call.ok("sandbox_create") == "box-3"

    run(server, test)


def test_one_that_has_crashed_makes_room(server: Server) -> None:
    async def test(call: Call) -> None:
        await call.ok("sandbox_create")
        await call.ok("sandbox_create")
        server.made[0].is_alive = False
        text = await call.ok("sandbox_list")
        assert text.splitlines()[0] == "box-1: crashed, 512 MiB, the guest panicked"
        assert "box-1" not in await call.ok("sandbox_list")
        assert await call.ok("sandbox_create") == "box-3"

    run(server, test)


def test_one_whose_record_is_gone_makes_room(server: Server) -> None:
    async def test(call: Call) -> None:
        await call.ok("sandbox_create")
        await call.ok("sandbox_create")
        server.made[0].is_forgotten = True
        assert await call.ok("sandbox_list") == "box-2: running, 512 MiB"
        assert await call.ok("sandbox_create") == "box-3"

    run(server, test)


def test_what_fails_is_the_tools_error(server: Server) -> None:
    async def test(call: Call) -> None:
        server.problem = HostError("no KVM here: use another host")
        assert "no KVM here: use another host" in await call.error("sandbox_create")
        server.problem = ZeroDivisionError("a bug")
        assert "a bug" not in await call.error("sandbox_create")  # its story is in the log
        server.problem = None
        await call.ok("sandbox_create")
        server.made[0].endpoint.cut("the guest panicked")
        text = await call.error("sandbox_exec", command="true")
        assert "the guest panicked" in text

    run(server, test)


def test_arguments_that_no_tool_has_are_refused(server: Server) -> None:
    async def test(call: Call) -> None:
        for name, arguments, takes in (
            ("sandbox_exec", {"command": "true", "timeout": 5}, "command, sandbox, cwd, stdin, "),
            ("sandbox_create", {"memory": "1G"}, "none"),
            ("sandbox_list", {"x" * 5000: 1}, "none"),
            ("sandbox_write_file", {"path": "f", "content": "", "mode": 1, "user": 0}, "path, con"),
        ):
            text, is_error = await call(name, **arguments)
            assert is_error and f"{name} has no argument " in text and f"it takes: {takes}" in text
            assert len(text) < 300
        assert not server.made
        for tool in (await call.client.list_tools()).tools:
            assert tool.input_schema["additionalProperties"] is False

    run(server, test)


def test_two_at_once_make_one_sandbox(server: Server) -> None:
    async def test(call: Call) -> None:
        await asyncio.gather(*(call.ok("sandbox_exec", command="true") for _ in range(3)))
        assert len(server.made) == 1

    run(server, test)


def test_the_program_speaks_over_its_standard_streams() -> None:
    """Over real pipes; without a kernel, so that making one fails and is said."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "VOIDBOX_CACHE": folder, "VOIDBOX_STATE": folder}
            parameters = StdioServerParameters(
                command=sys.executable,
                args=["-P", "-m", "voidbox.mcp_server", "--max", "1"],
                env={**environment, "PYTHONPATH": str(ROOT)},
            )
            async with asyncio.timeout(30), Client(parameters) as client:
                assert len((await client.list_tools()).tools) == 7
                assert "no kernel in" in await Call(client).error("sandbox_create")

    asyncio.run(main())


def test_bad_options_and_a_missing_package_are_told(tmp_path: Path) -> None:
    def fails(*arguments: str, code: str = "") -> str:
        program = f"{code}\nimport sys, voidbox.cli as c; sys.exit(c.main({['mcp', *arguments]!r}))"
        result = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 2
        return result.stderr

    assert "--net off leaves nothing" in fails("--net", "off", "--allow", "example.com")
    assert "--max 0" in fails("--max", "0")
    missing = "import sys; sys.modules['mcp'] = None"
    assert "pip install 'voidbox-kvm[mcp]'" in fails(code=missing)


def test_a_shelf_needs_a_name_that_it_knows(server: Server) -> None:
    async def main() -> None:
        shelf = Shelf(server.make)
        with pytest.raises(ConfigError):
            await shelf.kill("nobody")
        with suppress(ConfigError):
            await shelf.find("nobody")
        await shelf.close()

    asyncio.run(main())
