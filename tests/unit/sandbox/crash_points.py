"""Programs of the tests: users of a state folder that are killed, or whose disk fails.

    python -m tests.unit.sandbox.crash_points points FOLDER
        each thing a store does, killed before each of the calls by which it changes the disk
    python -m tests.unit.sandbox.crash_points storm FOLDER SEED ROUNDS
        writers that do this and that, killed at random times, again and again
    python -m tests.unit.sandbox.crash_points take FOLDER
        takes two CIDs and four ports when standard input says so, and keeps them until it ends

They fork, so they are processes of their own, with one thread. Exit status 0: all was as it
should be.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable

from tests.unit.sandbox.states import check_whole, wanted
from voidbox.errors import VoidboxError
from voidbox.sandbox.state.store import Event, Store

CALLS = ("open", "mkdir", "rename", "unlink", "rmdir", "fsync", "ftruncate")


def count_calls(on_call: Callable[[], None]) -> None:
    """Have a function called before each call by which a process changes the disk."""
    for name in CALLS:
        real = getattr(os, name)

        def call(*args: object, real: Callable[..., object] = real, **kwargs: object) -> object:
            on_call()
            return real(*args, **kwargs)

        setattr(os, name, call)


def _alone(folder: str) -> None:
    """Have a sandbox there whose process was killed, and no file that says so."""
    with Store(folder) as store:
        store.create(wanted("alone"))


def _dead(folder: str) -> None:
    """Have a sandbox there whose process was killed, with all it can have."""
    store = Store(folder)
    made = store.create(wanted("dead", removes_itself=True))
    store.allocate_port(made.id)
    open(store.path(made.id) + "/control.sock", "w").close()
    store.close()


def _corrupt(folder: str) -> None:
    _dead(folder)
    (record,) = Store(folder).list()
    for path in (
        f"{folder}/allocations/allocations.json",
        Store(folder).path(record.id, "state.json"),
    ):
        with open(path, "w") as file:
            file.write("{")


# What is there before, and what is done to it.
ACTS: dict[str, tuple[Callable[[str], object], Callable[[Store], object]]] = {
    "first": (lambda folder: None, lambda store: store.create(wanted("new"))),
    "create": (_dead, lambda store: store.create(wanted("new"))),
    "adopt": (_dead, lambda store: store.adopt(store.list()[0].id)),
    "boot": (_dead, lambda store: store.update(store.list()[0].id, Event.BOOTED)),
    "end": (_dead, lambda store: store.update(store.list()[0].id, Event.ENDED)),
    "end alone": (_alone, lambda store: store.update(store.list()[0].id, Event.ENDED)),
    "rename": (_dead, lambda store: store.rename(store.list()[0].id, "other")),
    "remove": (_dead, lambda store: store.remove(store.list()[0].id)),
    "allocate": (_dead, lambda store: store.allocate_port(store.list()[0].id)),
    "release": (_dead, lambda store: store.release_port(store.list()[0].id, 9000)),
    "clean": (_dead, lambda store: store.clean()),
    "set aside": (_corrupt, lambda store: store.clean()),
}


def points(folder: str) -> None:
    """Kill a process before each call it makes, for each act."""
    for name, (prepare, act) in ACTS.items():
        point = 0
        while True:
            point += 1
            shutil.rmtree(folder, ignore_errors=True)
            prepare(folder)
            child = os.fork()
            if child == 0:
                _run_up_to(point, folder, act)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if name == "set aside":
                Store(folder).clean()
                kept = os.listdir(f"{folder}/set-aside")
                assert len(kept) == 2, (point, kept)  # the record and the allocations: once each
                shutil.rmtree(f"{folder}/set-aside")
            check_whole(folder)
            with Store(folder) as store:
                store.remove(store.create(wanted("next")).id)
            check_whole(folder)
            if status == 0:
                break
            assert status == -signal.SIGKILL, (name, point, status)
        print(f"{name}: {point - 1} points")


def _run_up_to(point: int, folder: str, act: Callable[[Store], object]) -> None:
    left = point

    def on_call() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        count_calls(on_call)
        act(Store(folder))
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


def storm(folder: str, seed: int, rounds: int) -> None:
    """Kill writers at random times, with others at work; check the folder after each."""
    dice = random.Random(seed)
    Store(folder)
    writers = [_fork_writer(folder, dice.random()) for _ in range(3)]
    for _ in range(rounds):
        time.sleep(dice.random() * 0.02)
        killed = writers.pop(dice.randrange(len(writers)))
        os.kill(killed, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == -signal.SIGKILL
        store = Store(folder)
        crashed = store.clean()
        assert {record.pid for record in crashed} <= {0, killed}, "a live one was cleaned"
        live = [record for record in store.list() if not record.state.is_final]
        assert len({record.cid for record in live}) == len(live)
        ports = [port for record in live for port in record.ports]
        assert len(set(ports)) == len(ports)
        assert not os.path.exists(f"{folder}/set-aside")
        writers.append(_fork_writer(folder, dice.random()))
    for writer in writers:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    found = check_whole(folder)
    print(f"{len(found)} records")


def _fork_writer(folder: str, seed: float) -> int:
    child = os.fork()
    if child == 0:
        try:
            _write_on(folder, random.Random(seed))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)  # it ends only by being killed
    return child


def _write_on(folder: str, dice: random.Random) -> None:
    store = Store(folder)
    while True:
        record = store.adopt(store.create(wanted(removes_itself=dice.random() < 0.3)).id)
        assert store.read(record.name).pid == os.getpid()
        store.update(record.id, Event.BOOTED)
        ports = [store.allocate_port(record.id) for _ in range(dice.randrange(3))]
        for port in ports[1:]:
            store.release_port(record.id, port)
        assert store.update(record.id, Event.PAUSE).ports == tuple(ports[:1])
        store.update(record.id, Event.ENDED, crash="x" * dice.randrange(9000))
        if dice.random() < 0.5:
            store.remove(record.id)
        store.release(record.id)
        store.clean()
        ended = [other for other in store.list() if other.state.is_final]
        for other in ended[8:]:  # they would get too many; somebody else may be faster
            try:
                store.remove(other.id)
            except VoidboxError as error:
                assert "no sandbox" in str(error) or "is alive" in str(error), error


def take(folder: str) -> None:
    """Take numbers, at the same time as many others."""
    sys.stdin.readline()
    store = Store(folder)
    made = [store.create(wanted()) for _ in range(2)]
    ports = [store.allocate_port(record.id) for record in made for _ in range(2)]
    print(json.dumps([[record.cid for record in made], ports]), flush=True)
    sys.stdin.readline()
    for record in made:
        store.update(record.id, Event.ENDED)
        store.remove(record.id)


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "points":
        points(where)
    elif what == "storm":
        storm(where, *map(int, rest))
    else:
        take(where)
