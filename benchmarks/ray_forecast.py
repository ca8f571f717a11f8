"""What 100,000 sandboxes over Ray would be like: the placement, simulated with measured costs.

    python benchmarks/ray_forecast.py [--sandboxes 100000] [--per-node 200] [--output FILE]

A discrete simulation: programs ask for sandboxes, choose a node by what they knew of it when it
last answered (voidbox.ray.placement, the real function), and queue there; a node starts as many at
once as it has CPUs, and a sandbox is used for a while. Nothing in it is random but by its seed. It
knows nothing of networks, of Ray's GCS under failures, or of a busy head: see docs/ray.md.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import statistics
import sys
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

sys.path[0] = str(Path(__file__).parents[1])

from voidbox.ray.placement import choose


class Costs(NamedTuple):
    """Measured, in seconds; see benchmarks/ray_pool.py, and docs/pool.md for starts.

    Attributes:
        call: of a program's CPU, for one call of an actor.
        start: of a node's CPU, for a start: restored, by the zygote.
        answer: from a node's answer to what its program knows.
    """

    call: float = 0.0007
    start: float = 0.12
    answer: float = 0.002


class Shape(NamedTuple):
    """A cluster, and what is done with it."""

    sandboxes: int
    per_node: int
    cpus: int
    programs: int
    use_s: float
    rollouts: int


class Node:
    """A node in the simulation."""

    def __init__(self, number: int, shape: Shape) -> None:
        self.number, self.size = number, shape.per_node
        self.used = self.starting = 0
        self.queue: deque[tuple[float, int]] = deque()
        self.peak_queue = 0


class View:
    """A node as a program knows it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.known = self.asked = 0

    @property
    def fullness(self) -> float:
        """See voidbox.ray.placement."""
        return (self.known + self.asked) / self.node.size


def choose_randomly(views: list[View]) -> View:
    return random.choice(views)


def choose_really(views: list[View]) -> View:
    found = choose(views, lambda view: True)
    assert found is not None
    return found


CHOICES = {"one at random": choose_randomly, "voidbox.ray": choose_really}


class Simulation:
    """See above. Time is a number, and goes on from event to event."""

    def __init__(self, shape: Shape, costs: Costs, choice: Any) -> None:
        self.shape, self.costs, self.choice = shape, costs, choice
        count = -(-shape.sandboxes // shape.per_node)
        self.nodes = [Node(number, shape) for number in range(count)]
        self.views = [[View(node) for node in self.nodes] for _ in range(shape.programs)]
        self.events: list[tuple[float, int, Any]] = []
        self.order = itertools.count()
        self.now = 0.0
        self.waits: list[float] = []
        self.first_full = 0.0
        self.running = self.peak = 0
        self.left = shape.rollouts
        self.area = self.exhausted = 0.0  # sandboxes times seconds, until no task is left

    def at(self, delay: float, action: Any) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.order), action))

    def run(self) -> dict[str, Any]:
        """Do all rollouts; return what came of it."""
        each = self.shape.sandboxes // self.shape.programs
        for program in range(self.shape.programs):
            for n in range(each):  # one call after another: a program has one CPU
                self.at(n * self.costs.call, lambda program=program: self.ask(program))
        while self.events:
            before = self.now
            self.now, _, action = heapq.heappop(self.events)
            if self.left:
                self.area += self.running * (self.now - before)
                self.exhausted = self.now
            action()
        ordered = sorted(self.waits)
        return {
            "peak": self.peak,
            "at_95_percent_s": round(self.first_full, 1),
            "rollouts_per_s": round(self.shape.rollouts / self.exhausted, 1),
            "mean_occupancy": round(self.area / self.exhausted / self.shape.sandboxes, 3),
            "wait_p50_s": round(statistics.median(ordered), 2),
            "wait_p99_s": round(ordered[len(ordered) * 99 // 100], 2),
            "longest_queue": max(node.peak_queue for node in self.nodes),
        }

    def ask(self, program: int) -> None:
        if not self.left:
            return
        self.left -= 1
        view = self.choice(self.views[program])
        view.asked += 1
        view.node.queue.append((self.now, program))
        view.node.peak_queue = max(view.node.peak_queue, len(view.node.queue))
        self.pump(view.node)

    def pump(self, node: Node) -> None:
        while node.queue and node.used < node.size and node.starting < self.shape.cpus:
            node.used += 1
            node.starting += 1
            asked_at, program = node.queue.popleft()
            self.at(self.costs.start, lambda a=asked_at, p=program: self.started(node, a, p))

    def started(self, node: Node, asked_at: float, program: int) -> None:
        node.starting -= 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        if not self.first_full and self.running >= 0.95 * self.shape.sandboxes:
            self.first_full = self.now
        self.waits.append(self.now - asked_at)
        self.at(self.costs.answer, lambda: self.learn(node, program))
        self.at(random.expovariate(1 / self.shape.use_s), lambda: self.ended(node, program))
        self.pump(node)

    def learn(self, node: Node, program: int) -> None:
        view = self.views[program][node.number]
        view.asked -= 1
        view.known = node.used + len(node.queue)

    def ended(self, node: Node, program: int) -> None:
        node.used -= 1
        self.running -= 1
        self.at(self.costs.answer, lambda: self.learn_end(node, program))
        self.pump(node)

    def learn_end(self, node: Node, program: int) -> None:
        self.views[program][node.number].known = node.used + len(node.queue)
        self.at(self.costs.call, lambda: self.ask(program))


def main() -> None:
    """Simulate, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sandboxes", type=int, default=100_000)
    parser.add_argument("--per-node", type=int, default=200)
    parser.add_argument("--cpus", type=int, default=64, help="of a node: starts at once")
    parser.add_argument("--programs", type=int, default=8, help="that ask, each on a CPU")
    parser.add_argument("--use", type=float, default=120.0, help="of a sandbox, in seconds")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    shape = Shape(
        given.sandboxes, given.per_node, given.cpus, given.programs, given.use, 4 * given.sandboxes
    )
    found: dict[str, Any] = {"shape": shape._asdict(), "costs": Costs()._asdict()}
    for name, choice in CHOICES.items():
        random.seed(1)
        found[name] = Simulation(shape, Costs(), choice).run()
    print(json.dumps(found, indent=1))
    if given.output:
        given.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
