"""Pools over a small Ray cluster on this machine, with everything but the virtual machines."""

from __future__ import annotations

import functools
from typing import Any

from tests.unit.sdk.test_sandbox import FAKE_OWNER
from voidbox.ray.actor import NodePool
from voidbox.ray.aio import AsyncPool
from voidbox.ray.node import NodeOptions
from voidbox.sandbox.launch import environment, launch
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import launching


class StandInNodePool(NodePool):
    """A node whose sandboxes are fake_owner's."""

    def __init__(self, options: NodeOptions) -> None:
        launching.launch = functools.partial(launch, owner=FAKE_OWNER)  # type: ignore[assignment]
        launching.make_zygote = lambda: Zygote(FAKE_OWNER, environment())  # type: ignore[assignment]
        super().__init__(options)


class StandInPool(AsyncPool):
    node_pool: Any = StandInNodePool
