"""What a coding agent does with `voidbox mcp`: it starts the server, and calls its tools.

    pip install 'voidbox-kvm[mcp]'
    python examples/mcp_agent.py

To give the same tools to a program that speaks the protocol, have it start `voidbox mcp`:

    claude mcp add voidbox -- voidbox mcp
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mcp import Client, StdioServerParameters

# The server's own process: what it makes ends with it. It has the whole environment of ours.
SERVER = StdioServerParameters(
    command=sys.executable, args=["-m", "voidbox.mcp_server", "--max", "1"], env=dict(os.environ)
)
PROGRAM = "print(sum(n for n in range(1, 10) if 9 % n == 0))\n"


async def main(server: Any = SERVER) -> None:
    """Write a program, run it, look at it, and make a mistake."""
    async with Client(server) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        print(f"tools: {', '.join(names)}")
        # No sandbox is named: the first call makes one.
        await call(client, "sandbox_write_file", path="divisors.py", content=PROGRAM)
        await call(client, "sandbox_exec", command="python3 divisors.py")
        await call(client, "sandbox_list_files")
        await call(client, "sandbox_read_file", path="nothing.txt")
        await call(client, "sandbox_list")


async def call(client: Client, tool: str, **arguments: str) -> None:
    """Call a tool, and show what a model would see."""
    result = await client.call_tool(tool, dict(arguments))
    text = "\n".join(getattr(content, "text", "") for content in result.content)
    print(f"{tool}: {'error: ' if result.is_error else ''}{text.strip()}")


if __name__ == "__main__":
    asyncio.run(main())
