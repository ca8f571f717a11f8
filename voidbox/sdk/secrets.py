"""Secrets of a sandbox that runs: `sandbox.secrets`."""

from __future__ import annotations

import asyncio
import builtins
import os

from voidbox.errors import AgentError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.guarding import SECRETS_ANSWER_S, check_has_secrets
from voidbox.sandbox.session import check_seconds
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sdk.place import Place


class SecretInfo(NamedTuple):
    """A secret, without its value.

    Attributes:
        name: the variable that the guest's commands have.
        placeholder: what is in it.
        hosts: where the value goes in the placeholder's place.
        in_body: whether in bodies, too.
        has_value: whether the sandbox's process has one.
    """

    name: str
    placeholder: str
    hosts: tuple[str, ...]
    in_body: bool
    has_value: bool


class AsyncSecrets:
    """The secrets that create() was given. What the guest has of them stays as it is."""

    def __init__(self, place: Place, record: SandboxRecord) -> None:
        self._place, self._record = place, record

    async def set(
        self, name: str, value: str | None = None, *, request_timeout: float | None = None
    ) -> None:
        """Give a secret another value, which holds from the next request of the guest on.

        Args:
            value: None for the variable of that name, here.
        Raises:
            ConfigError: there is no such secret, or no such value.
        """
        from voidbox.secrets.spec import check_value  # few sandboxes have any

        found = check_value(name, os.environ.get(name, "") if value is None else value)
        await self._ask("secret_set", request_timeout, name=name, value=found)

    async def list(self, *, request_timeout: float | None = None) -> builtins.list[SecretInfo]:
        """List them."""
        answer = await self._ask("secret_list", request_timeout)
        return parse_list(answer.get("secrets"))

    async def _ask(
        self, op: str, request_timeout: float | None, **values: object
    ) -> dict[str, object]:
        limit_s = (
            None if request_timeout is None else check_seconds("request_timeout", request_timeout)
        )
        check_has_secrets(self._record)
        limit_s = SECRETS_ANSWER_S if limit_s is None else limit_s
        return await asyncio.to_thread(self._place.ask, op, limit_s, **values)


def parse_list(values: object) -> list[SecretInfo]:
    """Return what the sandbox's process answers.

    Raises:
        AgentError: it is no list of secrets.
    """
    try:
        return [
            SecretInfo(
                str(value["name"]),
                str(value["placeholder"]),
                tuple(map(str, value["hosts"])),
                bool(value["in_body"]),
                bool(value["has_value"]),
            )
            for value in values  # type: ignore[attr-defined]
        ]
    except (TypeError, KeyError) as error:
        raise AgentError("the sandbox's process gave no list of secrets") from error
