"""A thousand rollouts of a small repair task on a Ray cluster, all from one snapshot.

    python examples/rollouts_on_ray.py [--rollouts 1000] [--output rollouts.svg]

One sandbox is prepared: a program with a fault, and its tests. Every rollout goes on from a
snapshot of it, on some node, and tries a patch after the other until the tests pass: what a model
would propose comes from a list here. See docs/ray.md for the cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = """\
def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle]
"""
TESTS = """\
from program import median

assert median([9, 1, 2]) == 2
assert median([4, 1, 3, 2]) == 2.5
assert median([7]) == 7
print("passed")
"""
FAULT = "    return ordered[middle]\n"
# What a policy may propose; the last one is right.
PATCHES = (
    "    return ordered[middle - 1]\n",
    "    return sum(ordered) / len(ordered)\n",
    "    return (ordered[middle - 1] + ordered[middle]) / 2\n",
    "    return (ordered[(len(ordered) - 1) // 2] + ordered[middle]) / 2\n",
)
TRIES = 4
WIDTH, HEIGHT, BAR = 640, 320, 40


class Result(NamedTuple):
    """How a rollout went: the patches it tried, and whether the last one was right."""

    number: int
    tries: int
    is_solved: bool
    seconds: float


async def prepare(sandbox: Any) -> None:
    """Have the task in a sandbox, and see that its tests fail."""
    await sandbox.files.write("task/program.py", PROGRAM)
    await sandbox.files.write("task/tests.py", TESTS)
    before = await sandbox.commands.run("cd task && python3 tests.py")
    assert before.exit_code == 1, "the fault is to be found"


async def rollout(sandbox: Any, number: int) -> Result:
    """Repair the program. Runs on the sandbox's node; what it returns is sent back."""
    began, policy = time.monotonic(), random.Random(number)
    folder = f"attempt-{number}"
    await sandbox.commands.run(f"cp -r task {folder}", check=True)
    for tries in range(1, TRIES + 1):
        program = PROGRAM.replace(FAULT, policy.choice(PATCHES))
        await sandbox.files.write(f"{folder}/program.py", program)
        tested = await sandbox.commands.run("python3 tests.py", cwd=f"{folder}", timeout=60)
        if tested.stdout == "passed\n":
            return Result(number, tries, True, time.monotonic() - began)
    return Result(number, TRIES, False, time.monotonic() - began)


async def run_all(pool: Any, count: int) -> list[Result]:
    """Do all rollouts; one whose machine is lost is done again."""
    from voidbox import SandboxLost

    done: list[Result] = []

    async def one(number: int) -> None:
        while True:
            try:
                done.append(await pool.run_near(rollout, number))
            except SandboxLost as error:
                print(f"\nrollout {number} begins again: {error}", file=sys.stderr)
                continue
            break
        show(done, count)

    await asyncio.gather(*(one(number) for number in range(count)))
    return sorted(done)


def show(done: list[Result], count: int) -> None:
    """Draw a bar, where somebody looks."""
    if sys.stderr.isatty():
        full = len(done) * BAR // count
        solved = sum(one.is_solved for one in done)
        bar = "#" * full + "." * (BAR - full)
        print(f"\r[{bar}] {len(done)}/{count}, {solved} solved", end="", file=sys.stderr)


def plot(results: list[Result]) -> str:
    """Return an SVG: how many rollouts were solved by which try."""
    counts = [sum(one.is_solved and one.tries == n for one in results) for n in range(1, TRIES + 1)]
    counts.append(sum(not one.is_solved for one in results))
    names = [*(f"try {n}" for n in range(1, TRIES + 1)), "not solved"]
    step, most = WIDTH // len(counts), max(counts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT + 30}">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for n, (name, count) in enumerate(zip(names, counts, strict=True)):
        height, middle = count * (HEIGHT - 20) // most, n * step + step // 2
        color = "#1f77b4" if n < TRIES else "#b41f1f"
        parts.append(
            f'<rect x="{n * step + 8}" y="{HEIGHT - height}" width="{step - 16}" '
            f'height="{height}" fill="{color}"/>'
        )
        for text, y in ((str(count), HEIGHT - height - 5), (name, HEIGHT + 20)):
            parts.append(f'<text x="{middle}" y="{y}" text-anchor="middle">{text}</text>')
    return "\n".join([*parts, "</svg>\n"])


async def main(
    rollouts: int = 1000,
    output: str = "rollouts.svg",
    pool_type: Any = None,
    **options: Any,
) -> list[Result]:
    """Prepare, snapshot, run, and plot.

    Args:
        pool_type: voidbox.ray.AsyncPool, or what stands in for it.
        options: of each sandbox.
    """
    import voidbox.ray

    pool_type = pool_type or voidbox.ray.AsyncPool
    async with pool_type(**options) as pool, pool.sandbox() as sandbox:
        await prepare(sandbox)
        snapshot = await sandbox.snapshot()
    fixed = ("kernel", "image", "memory", "block_network", "jail")  # the snapshot's own
    own = {name: value for name, value in options.items() if name not in fixed}
    began = time.monotonic()
    async with pool_type(snapshot=snapshot.snapshot_id, warm=2, **own) as pool:
        results = await run_all(pool, rollouts)
    took_s = time.monotonic() - began
    solved = sum(one.is_solved for one in results)
    Path(output).write_text(plot(results))
    print(f"{len(results)} rollouts, {solved} solved, in {took_s:.1f} s: {output}")
    return results


if __name__ == "__main__":
    import ray

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--output", default="rollouts.svg")
    arguments = parser.parse_args()
    ray.init()
    asyncio.run(main(arguments.rollouts, arguments.output))
