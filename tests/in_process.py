"""A guest whose machine is in the test's own process, to look into and to meddle with."""

from __future__ import annotations

import os

from voidbox.agent import protocol
from voidbox.sandbox.guest import Guest, check, furnished
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.machine import Machine


class InProcessGuest(Guest):
    """See Guest."""

    machine: Machine  # type: ignore[assignment]

    def __init__(
        self,
        config: MachineConfig,
        has_vsock: bool = True,
        secret: bytes | None = None,
        snapshot: str | None = None,
    ) -> None:
        self.secret = secret or os.urandom(protocol.SECRET_BYTES)
        if snapshot is not None:
            self.machine = Machine.from_snapshot(snapshot, furnished(config, has_vsock, None))
            return
        check(config)
        self.machine = Machine(furnished(config, has_vsock, self.secret))
