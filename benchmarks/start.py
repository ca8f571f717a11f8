"""From create() to the first command's end: booted, of a template, forked by a zygote, and warm.

    python benchmarks/start.py [--rounds N] [--other CHECKOUT] [--image PATH]
                               [--json FILE] [--plot FILE]

Each round is a program of its own, so that nothing is imported; rounds of several checkouts take
turns. It needs a KVM that boots Linux, a kernel and an image (`voidbox setup`). What an older
checkout does not have is left out.

    cold      create(cold=True)
    template  create(), where an earlier one has left a template
    zygote    Pool.acquire() of a pool without warm ones
    warm      Pool.acquire() of a pool with one
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODES = ("cold", "template", "zygote", "warm")
_LIMIT_S = 300


def main() -> None:
    """Run the rounds, and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", action="append", default=[], metavar="CHECKOUT")
    parser.add_argument("--image", help="voidbox's own by default")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="needs matplotlib")
    parser.add_argument("--child", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.image)))
        return
    checkouts = [str(ROOT), *map(os.path.abspath, options.other)]
    found: dict[str, dict[str, list[float]]] = {checkout: {} for checkout in checkouts}
    modes = options.modes.split(",")
    for checkout in checkouts:
        run_one(checkout, "template", options.image)  # leaves the template, and warms the caches
    for _ in range(options.rounds):
        for mode in modes:
            for checkout in checkouts:
                took_s = run_one(checkout, mode, options.image)
                print(f"{mode} of {checkout}: {took_s}", file=sys.stderr)
                if took_s is not None:
                    found[checkout].setdefault(mode, []).append(took_s)
    report(found, options)


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def run_one(checkout: str, mode: str, image: str | None) -> float | None:
    """Run one round in a program of its own; None if the checkout does not have it."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", mode]
    if image is not None:
        command += ["--image", image]
    environment = {**os.environ, "PYTHONPATH": checkout}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode:
        print(f"{mode} of {checkout}: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    took_s: float | None = json.loads(done.stdout.splitlines()[-1])
    return took_s


def measure(mode: str, image: str | None) -> float | None:
    """Return how long it took, in seconds."""
    import voidbox
    from voidbox import Sandbox

    given: dict[str, Any] = {} if image is None else {"image": Path(image)}
    if mode in ("cold", "template"):
        began = time.monotonic()
        with Sandbox.create(cold=mode == "cold", **given) as sandbox:
            sandbox.commands.run("true")
            return time.monotonic() - began
    if not hasattr(voidbox, "Pool"):
        return None
    with voidbox.Pool(2, warm=int(mode == "warm"), **given) as pool:
        if mode == "zygote":
            with pool.sandbox():  # the zygote has imported all when it has forked one
                pass
        while pool.stats().warm < int(mode == "warm"):
            time.sleep(0.05)
        began = time.monotonic()
        with pool.sandbox() as sandbox:
            sandbox.commands.run("true")
            return time.monotonic() - began


def report(found: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> None:
    """Print the medians beside a cold start of this checkout's."""
    medians = {
        checkout: {mode: statistics.median(rounds) for mode, rounds in modes.items()}
        for checkout, modes in found.items()
    }
    cold_s = medians[str(ROOT)].get("cold")
    for checkout, modes in medians.items():
        print(checkout)
        for mode, took_s in modes.items():
            beside = f"{took_s / cold_s:6.3f} of a cold one" if cold_s else ""
            print(f"  {mode:9} {took_s:7.3f} s  {beside}")
    if options.json:
        Path(options.json).write_text(json.dumps({"seconds": found, "medians": medians}, indent=1))
    if options.plot:
        plot(medians, options.plot)


def plot(medians: dict[str, dict[str, float]], path: str) -> None:
    """Draw the medians as bars."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: pip install matplotlib", file=sys.stderr)
        return
    figure, axes = pyplot.subplots()
    width = 0.8 / len(medians)
    for index, (checkout, modes) in enumerate(medians.items()):
        places = [MODES.index(mode) + index * width for mode in modes]
        axes.bar(places, list(modes.values()), width, label=os.path.basename(checkout))
    axes.set_xticks(range(len(MODES)), MODES)
    axes.set_ylabel("create() to the first command's end, s")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
