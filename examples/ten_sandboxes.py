"""Ten sandboxes in parallel: a computation split among machines that share nothing.

python examples/ten_sandboxes.py [N]
"""

from __future__ import annotations

import asyncio
import sys
import time

from voidbox import AsyncSandbox

LIMIT = 20_000
COUNT = """\
import sys

start, end = map(int, sys.argv[1:])
print(sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(2, start), end)))
"""


async def count(start: int, end: int) -> tuple[str, int]:
    """Count the primes from `start` below `end` in a sandbox of its own; return its name, too."""
    # Its memory is what the image takes and a little more, so that ten fit into any host.
    async with await AsyncSandbox.create(
        memory="192M", block_network=True, timeout=300, request_timeout=200
    ) as sandbox:
        await sandbox.files.write("count.py", COUNT)
        result = await sandbox.exec(
            "python3", "count.py", str(start), str(end), timeout=200, check=True
        )
        return sandbox.name, int(result.stdout)


async def main(sandboxes: int = 10) -> None:
    """Split the work, and add up. One that fails ends the others: that is what a group is for."""
    began = time.monotonic()
    step = LIMIT // sandboxes
    ranges = [(n * step, (n + 1) * step) for n in range(sandboxes)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(count(*part)) for part in ranges]
    for (start, end), task in zip(ranges, tasks, strict=True):
        name, found = task.result()
        print(f"{name:20} {start:6} to {end:6}: {found} primes")
    total = sum(task.result()[1] for task in tasks)
    print(f"{total} primes below {step * sandboxes}, by {sandboxes} sandboxes in", end=" ")
    print(f"{time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:2])))
