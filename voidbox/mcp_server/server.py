"""The MCP server: sandboxes as tools. Needs the package mcp."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from posixpath import normpath
from typing import Annotated, Any, ParamSpec

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from voidbox.errors import CommandTimeout, VoidboxError
from voidbox.mcp_server.shelf import Shelf
from voidbox.mcp_server.text import describe, page
from voidbox.sdk.command_result import CommandResult
from voidbox.version import __version__

COMMAND_S, COMMAND_S_MAX = 60.0, 1800.0
READ_BYTES_MAX = 64 << 10  # in one answer
WRITE_CHARACTERS_MAX = 4 << 20
ENTRIES_MAX = 500
_ERROR_CHARACTERS_MAX = 4000  # the end of a guest's console may be long

INSTRUCTIONS = """\
Sandboxes are Linux virtual machines on the user's computer, isolated from it. Use them to run code,
tests and commands that you would not run on the user's own system. Commands run as an ordinary
user in /workspace; files stay until the sandbox is killed. With one sandbox you need not name it:
the first tool call makes it. Nothing of the user's files is in it unless you write it there.
"""

_P = ParamSpec("_P")
_Name = Annotated[str, Field(description="its name; may be left out while there is only one")]


def make_server(shelf: Shelf) -> MCPServer[None]:
    """Return a server whose tools use the shelf's sandboxes, and which ends them when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(server: MCPServer[None]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await shelf.close()

    tools = _Tools(shelf)
    methods = (
        tools.sandbox_create,
        tools.sandbox_exec,
        tools.sandbox_write_file,
        tools.sandbox_read_file,
        tools.sandbox_list_files,
        tools.sandbox_list,
        tools.sandbox_kill,
    )
    return MCPServer(
        "voidbox",
        instructions=INSTRUCTIONS,
        version=__version__,
        lifespan=lifespan,
        log_level="WARNING",
        tools=[_StrictTool.of(method) for method in methods],
    )


class _StrictTool(Tool):
    """A tool that refuses arguments that it does not know.

    Left out, they would make a model believe that it has what it asked for: a limit, say.
    """

    @classmethod
    def of(cls, method: Callable[..., Awaitable[str]]) -> Tool:
        tool = cls.from_function(method, structured_output=False)
        tool.parameters["additionalProperties"] = False
        return tool

    async def run(
        self, arguments: dict[str, Any], context: Any, convert_result: bool = False
    ) -> Any:
        known = self.parameters["properties"]
        unknown = [name[:100] for name in arguments if name not in known]
        if unknown:
            takes = ", ".join(known) or "none"
            raise ToolError(f"{self.name} has no argument {', '.join(unknown)}; it takes: {takes}")
        return await super().run(arguments, context, convert_result)


def _told(tool: Callable[_P, Awaitable[str]]) -> Callable[_P, Awaitable[str]]:
    """Return the tool with errors that a model can act upon as a tool's errors."""

    @functools.wraps(tool)
    async def call(*arguments: _P.args, **options: _P.kwargs) -> str:
        try:
            return await tool(*arguments, **options)
        except (VoidboxError, ValueError) as error:
            raise ToolError(str(error)[:_ERROR_CHARACTERS_MAX]) from error

    return call


class _Tools:
    """What the model sees: names, descriptions and arguments are the methods' own."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    @_told
    async def sandbox_create(self) -> str:
        """Make a fresh sandbox, beside those that there are; returns its name."""
        return (await self._shelf.create()).name

    @_told
    async def sandbox_exec(
        self,
        command: Annotated[str, Field(description="a line for /bin/sh")],
        sandbox: _Name = "",
        cwd: Annotated[str, Field(description="where it runs; /workspace")] = "",
        stdin: Annotated[str, Field(description="what it reads")] = "",
        timeout_seconds: Annotated[
            float, Field(gt=0, le=COMMAND_S_MAX, description="it is ended then")
        ] = COMMAND_S,
    ) -> str:
        """Run a command in a sandbox; returns its exit code and output. Long output is cut."""
        box = await self._shelf.find(sandbox)
        notes: tuple[str, ...] = ()
        try:
            result = await box.commands.run(
                command, cwd=cwd or None, stdin=stdin, timeout=timeout_seconds
            )
        except CommandTimeout as error:
            if not isinstance(error.result, CommandResult):
                raise
            result = error.result
            notes = (f"it was ended after {timeout_seconds:g} seconds",)
        if result.error:
            notes = (*notes, result.error)
        if result.lost_bytes:
            notes = (*notes, f"{result.lost_bytes} bytes of output were lost: it was too much")
        return describe(result.stdout_bytes, result.stderr_bytes, result.exit_code, notes)

    @_told
    async def sandbox_write_file(
        self,
        path: Annotated[str, Field(description="relative paths begin in /workspace")],
        content: Annotated[str, Field(max_length=WRITE_CHARACTERS_MAX)],
        sandbox: _Name = "",
        is_executable: bool = False,
    ) -> str:
        """Write a text file in a sandbox; folders above it are made."""
        box = await self._shelf.find(sandbox)
        size = await box.files.write(path, content, mode=0o755 if is_executable else None)
        return f"{path}: {size} bytes written"

    @_told
    async def sandbox_read_file(
        self,
        path: Annotated[str, Field(description="relative paths begin in /workspace")],
        sandbox: _Name = "",
        offset: Annotated[int, Field(ge=0, description="in bytes")] = 0,
    ) -> str:
        """Read a text file of a sandbox, 64 KiB at a time."""
        box = await self._shelf.find(sandbox)
        info = await box.files.stat(path)
        data = await box.files.read_part(path, offset, READ_BYTES_MAX + 1)
        try:
            return page(data, offset, READ_BYTES_MAX, info.size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @_told
    async def sandbox_list_files(
        self,
        path: str = ".",
        sandbox: _Name = "",
        depth: Annotated[int, Field(ge=1, le=8, description="how many folders deep")] = 1,
    ) -> str:
        """List the files in a folder of a sandbox."""
        box = await self._shelf.find(sandbox)
        found = await box.files.list(path, depth=depth)
        lines = [
            normpath(info.path) + ("/" if info.is_folder else f"  {info.size} bytes")
            for info in sorted(found, key=lambda info: info.path)
        ]
        if len(lines) > ENTRIES_MAX:
            lines = [*lines[:ENTRIES_MAX], f"[… {len(lines) - ENTRIES_MAX} more are left out]"]
        return "\n".join(lines) or "(empty)"

    @_told
    async def sandbox_list(self) -> str:
        """List this server's sandboxes."""
        lines = [
            f"{info.name}: {info.state}, {info.memory_bytes >> 20} MiB"
            + (f", {info.reason}" if info.reason else "")
            for info in await self._shelf.list()
        ]
        return "\n".join(lines) or "(none)"

    @_told
    async def sandbox_kill(
        self, sandbox: Annotated[str, Field(description="its name", min_length=1)]
    ) -> str:
        """End a sandbox; all that is in it is lost."""
        was_alive = await self._shelf.kill(sandbox)
        return f"{sandbox} has been ended" if was_alive else f"{sandbox} had ended already"
