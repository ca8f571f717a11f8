"""What the verbs about existing sandboxes share: finding them, and doing the same to several.

No asyncio, no threads and no logging here: `voidbox ps` has to be quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.output import print_json, shown
from voidbox.errors import ConfigError, VoidboxError
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

if TYPE_CHECKING:
    from voidbox.sandbox.control import ControlClient

CONTROL_S = 10.0  # for an answer of a sandbox's process


class Named(Protocol):
    """A sandbox, of this machine or not."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


class Finder(Protocol):
    """Where sandboxes are: a Store, or a server."""

    def read(self, key: str) -> Named: ...


Step = Callable[[Any, Any], object]  # what for_each was given, and what that has found


def open_store() -> Store:
    """Return the user's sandboxes, after cleaning up behind processes that were killed.

    Raises:
        VoidboxError: the state folder cannot be used.
    """
    store = Store()
    for record in store.clean():
        complain(f"voidbox: {record.name} has crashed: {record.reason}")
    return store


def add_names(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    """Add NAME arguments."""
    parser.add_argument(
        "names", nargs=nargs, metavar="NAME", help="a sandbox's name, ID, or an ID's beginning"
    )


def find_running(store: Store, key: str) -> SandboxRecord:
    """Return the record of a sandbox that can be asked for something.

    Raises:
        ConfigError: there is none, or it does not run.
    """
    record = store.read(key)
    check_alive(store, record)
    return record


def check_alive(store: Store, record: SandboxRecord) -> None:
    """Refuse a sandbox that has ended.

    Raises:
        ConfigError: says how it ended.
    """
    if record.state.is_final:
        raise ConfigError(
            f"{record.name} does not run: it is {record.state.value} ({shown(record.reason)})"
        )
    _check_awake(record)


def _check_awake(record: SandboxRecord) -> None:
    if record.state is State.SUSPENDED:
        raise ConfigError(f"{record.name} is suspended: voidbox resume {record.name} wakes it")


def check_answers(record: SandboxRecord) -> None:
    """Refuse a sandbox whose guest cannot answer now.

    Raises:
        ConfigError: says what to do.
    """
    _check_awake(record)
    if record.state is State.PAUSED:
        raise ConfigError(f"{record.name} is paused: voidbox resume {record.name} lets it go on")


def control(store: Store, record: SandboxRecord, timeout_s: float = CONTROL_S) -> ControlClient:
    """Return a client of a sandbox's process."""
    from voidbox.sandbox.control import ControlClient

    return ControlClient(store.path(record.id, "control.sock"), timeout_s)


def describe(store: Store, record: SandboxRecord) -> dict[str, Any]:
    """Return a sandbox as --json shows it, wherever it shows one. Documented in docs/cli.md."""
    values = record.to_json()
    del values["version"]
    first = {key: values.pop(key) for key in ("id", "name", "state")}
    return {**first, **values, "folder": store.path(record.id)}


def for_each(store: Finder, keys: Sequence[str], as_json: bool, *steps: Step) -> int:
    """Do something to several sandboxes: each step with all of them before the next.

    One that fails is complained about and does not keep the others from it. The names of those
    that went well are printed.

    Returns:
        The exit status.
    """
    outcomes: list[dict[str, object]] = []
    records: dict[str, Named] = {}

    def fail(name: str, id: str | None, error: VoidboxError) -> None:
        complain(f"voidbox: {error}")
        outcomes.append({"name": name, "id": id, "ok": False, "error": str(error)})

    for key in keys:
        try:
            record = store.read(key)
        except ConfigError as error:
            fail(key, None, error)
        else:
            records[record.id] = record
    for step in steps:
        for record in list(records.values()):
            try:
                step(store, record)
            except VoidboxError as error:
                del records[record.id]
                fail(record.name, record.id, error)
    for record in records.values():
        outcomes.append({"name": record.name, "id": record.id, "ok": True, "error": None})
        if not as_json:
            print(record.name)
    if as_json:
        print_json(outcomes)
    return exit_status.OK if len(records) and all(o["ok"] for o in outcomes) else exit_status.USAGE
