"""Secrets of a sandbox, from whoever starts it to its process: on the control socket, no file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from voidbox.errors import ConfigError
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

if TYPE_CHECKING:  # few sandboxes have any
    from voidbox.secrets.guarded import Guarded
    from voidbox.secrets.spec import Secret

FILE = "ca.json"  # in the sandbox's folder: its certificate authority
SECRETS_ANSWER_S = 60.0


def guarded_of(record: SandboxRecord) -> Guarded | None:
    """Return what a record says of secrets and rules for HTTP.

    Raises:
        ConfigError: it makes no sense.
    """
    if record.guarded is None:
        return None
    from voidbox.secrets.guarded import Guarded

    return Guarded.from_json(record.guarded)


def guard(
    record: SandboxRecord, secrets: Sequence[Secret] | None, http: Sequence[str] | None
) -> tuple[SandboxRecord, dict[str, str]]:
    """Return a record of a sandbox that is to be created, with secrets and rules; and the values.

    A sandbox that is restored has the secrets of its snapshot: what is given is their values.

    Raises:
        ConfigError: one cannot be; see voidbox.secrets.
    """
    if not secrets and not http:
        return record, {}
    from voidbox.secrets.guarded import prepare

    guarded, values = prepare(secrets or (), http or (), record.net)
    known = guarded_of(record)
    if guarded is None:
        return record, {}
    if known is not None:
        before = {kept.name: kept.places for kept in known.secrets}
        others = [one.name for one in guarded.secrets if before.get(one.name) != one.places]
        if others or guarded.http:
            what = f"secret {others[0]}" if others else "rules for HTTP"
            raise ConfigError(
                f"{what}: a sandbox that is restored has the hosts and rules of its snapshot; "
                "only values can be given"
            )
        return record, values
    envs = {**guarded.envs(), **record.envs}
    return record._replace(guarded=guarded.to_json(), envs=envs), values


def send_values(store: Store, record: SandboxRecord, given: Mapping[str, str]) -> None:
    """Give a sandbox's process the values: those that are given, else this process's variables.

    One that has none yet gets it by `voidbox secret set`.

    Raises:
        VoidboxError: it does not take them.
    """
    guarded = guarded_of(record)
    if guarded is None:
        return
    here = {kept.name: os.environ.get(kept.name, "") for kept in guarded.secrets}
    values = {name: given.get(name) or value for name, value in here.items()}
    for name, value in values.items():  # each is short, all of them may not be
        if value:
            secrets_of(store, record).request("secret_set", name=name, value=value)


def copied_values(store: Store, record: SandboxRecord) -> dict[str, str]:
    """Return the values that a sandbox's process has, for a copy of it.

    Raises:
        VoidboxError: it does not answer.
    """
    if record.guarded is None:
        return {}
    values = secrets_of(store, record).request("secret_copy").get("values")
    return {str(k): str(v) for k, v in values.items()} if isinstance(values, dict) else {}


def secrets_of(
    store: Store, record: SandboxRecord, timeout_s: float | None = None
) -> ControlClient:
    """Return what asks a sandbox's process, its keeper, about its secrets.

    Raises:
        ConfigError: it has none.
    """
    check_has_secrets(record)
    return ControlClient(store.path(record.id, "control.sock"), timeout_s or SECRETS_ANSWER_S)


def check_has_secrets(record: SandboxRecord) -> None:
    """Refuse to ask a sandbox's process about secrets if it has none.

    Raises:
        ConfigError: that.
    """
    if record.guarded is None:
        raise ConfigError(f"{record.name} was made without secrets: see voidbox run --secret")


def authority_files(folder: str) -> dict[str, bytes]:
    """Return what a snapshot keeps of a sandbox's folder, for programs that have read it."""
    try:
        with open(f"{folder}/{FILE}", "rb") as file:
            return {FILE: file.read()}
    except FileNotFoundError:
        return {}
