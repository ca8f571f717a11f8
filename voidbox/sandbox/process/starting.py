"""How a sandbox's guest comes to be: restored from a snapshot or a template, or booted.

Whatever it is, the machine's process has shut itself in before the guest's first instruction.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Protocol

from voidbox.agent.client import AgentClient
from voidbox.errors import VoidboxError
from voidbox.sandbox.endpoint import first_answer_s
from voidbox.sandbox.process import logs, published, recipe, resource_limits, restoring
from voidbox.sandbox.process.restoring import Source
from voidbox.sandbox.process.sandbox import Sandbox
from voidbox.sandbox.root import UPPER_FILE, make_upper
from voidbox.sandbox.snapshots import templates
from voidbox.vmm.config import MachineConfig

if TYPE_CHECKING:
    from voidbox.sandbox.guest import Guest

log = logging.getLogger("voidbox.sandbox.process.owner")


class MakeGuest(Protocol):
    """Makes a guest of a configuration, a secret, and the snapshot that it is restored from."""

    def __call__(
        self, config: MachineConfig, secret: bytes, snapshot: str | None = None, /
    ) -> Guest: ...


class Starting:
    """One start. Thread: main.

    Args:
        resources: closed before the last word is written.

    Attributes:
        source: what the guest is restored from, or None.
        has_begun: whether a guest has run.
        start_time: when it did, by the clock.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        make_guest: MakeGuest,
        source: Source | None,
        resources: contextlib.ExitStack,
    ) -> None:
        self._sandbox = sandbox
        self._make_guest = make_guest
        self._store = sandbox.store
        self._id = sandbox.record.id
        self._resources = resources
        self._console_log = logs.ConsoleLog(self._store.path(self._id, "console.log"))
        resources.callback(self._console_log.close)
        self.source = source
        self._held: Guest | None = None
        self._doubted: str | None = None  # a template that could not be restored
        self.has_begun = False
        self.start_time = time.time()

    def hold(self, config: MachineConfig) -> bool:
        """Make the machine, if it is restored, and let it stand: it costs its memory's mapping.

        Returns:
            False where it boots: run() makes all of it.
        Raises:
            VoidboxError: it cannot be restored, nor boot instead.
        """
        if self.source is None:
            return False
        self._sandbox.is_copy = True
        try:
            self._held = self._make(restoring.closed(config), self.source)
        except VoidboxError as error:
            self._check_boots_instead(self.source, error)
            return False
        return True

    def run(self, config: MachineConfig) -> AgentClient:
        """Return a client of the guest's agent, once it answers.

        Raises:
            VoidboxError: there is none.
        """
        client = self._restore(self.source, config) if self.source is not None else None
        if client is None:
            client = self._boot(config)
            if self._doubted is not None:  # a full disk, say, and it had not booted either
                templates.Templates(self._store.folder).set_aside(self._doubted)
        log.info("the guest's agent answers via %s", "serial" if client.is_serial else "vsock")
        return client

    def _boot(self, config: MachineConfig) -> AgentClient:
        record = self._sandbox.record
        root = recipe.root_of(record)
        if root is not None and root.disk_bytes:
            make_upper(self._store.path(self._id, UPPER_FILE), root.disk_bytes)
        self._let_go(self._make(config))
        for forward in recipe.ports_to_choose(record):
            self._sandbox.ports.add(forward)
        return self._sandbox.connect(first_answer_s(record))

    def _make(self, config: MachineConfig, source: Source | None = None) -> Guest:
        sandbox = self._sandbox
        if source is None:
            guest = self._make_guest(config, self._store.secret(self._id))
        else:
            guest = self._make_guest(config, source.secret, source.folder)
        self._resources.callback(guest.close)
        guest.machine.console.attach(self._console_log)
        sandbox.guest = guest
        sandbox.decision.check()  # before, kill() found no guest
        log.info("the machine is made")
        return guest

    def _let_go(self, guest: Guest) -> None:
        """Have its CPUs run."""
        sandbox = self._sandbox
        sandbox.decision.check()
        guest.machine.start()
        record = sandbox.record
        if record.limits:
            limits = resource_limits.check(record.limits)
            resource_limits.apply(guest.machine, limits, limits)
        self.has_begun = True
        self.start_time = time.time() - record.ran_s
        sandbox.started_at = time.monotonic() - record.ran_s
        if record.timeout_s is not None:
            sandbox.limits.set_time(max(0.0, record.timeout_s - record.ran_s))

    def _restore(self, source: Source, config: MachineConfig) -> AgentClient | None:
        """Restore the machine, and make its guest one of its own, before anybody reaches it.

        Returns:
            None if that failed, and it may as well boot.
        """
        sandbox, secret = self._sandbox, self._store.secret(self._id)
        forwards = recipe.forwards_of(sandbox.record, source.is_suspended)
        published.check_free(forwards)  # once its guest has run, it is not what was suspended
        sandbox.is_copy = True
        try:
            guest = self._held or self._make(restoring.closed(config), source)
            self._let_go(guest)
            usual_s = first_answer_s(sandbox.record)
            limit_s = restoring.ADOPT_S if source.is_template else usual_s
            client = guest.connect(limit_s, log.info)
            restoring.adopt(client, source, secret, sandbox.record.name)
        except VoidboxError as error:
            self._check_boots_instead(source, error)
            return None
        sandbox.is_copy = False
        guest.secret = secret
        log.info("restored from %s", source.folder)
        if config.vsock is not None and config.vsock.path is not None:
            guest.machine.publish_vsock(config.vsock.path)
        for forward in forwards:
            sandbox.ports.add(forward)
        return client

    def _check_boots_instead(self, source: Source, error: VoidboxError) -> None:
        """Have it boot where a template could not be restored; else raise the error."""
        if not source.is_template or self._sandbox.decision.is_made:
            raise error
        log.warning("the template could not be restored, so the sandbox boots: %s", error)
        self._give_up_template(source)

    def _give_up_template(self, source: Source) -> None:
        guest, self._sandbox.guest = self._sandbox.guest, None
        if guest is not None:
            guest.close()
        self._sandbox.is_copy = self.has_begun = False
        self.source = None
        self._doubted = source.folder
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._store.path(self._id, UPPER_FILE))
