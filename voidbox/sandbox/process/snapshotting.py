"""A sandbox makes its snapshots itself: because it is asked to, for create(), or as its end.

The guest's agent is told before and after (QUIESCE, RELEASE): commands in the foreground are to
live on in the copy, and no process but the agent's runs when it is restored, until it is another's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient
from voidbox.errors import ConfigError, VoidboxError
from voidbox.sandbox.guarding import authority_files
from voidbox.sandbox.snapshots import record as records
from voidbox.sandbox.snapshots import rests_on
from voidbox.sandbox.snapshots.record import (
    BUSY,
    FORK,
    SNAPSHOT,
    SUSPENDED,
    TEMPLATE,
    SnapshotRecord,
)
from voidbox.sandbox.snapshots.templates import Templates
from voidbox.sandbox.state import state_folder
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.worker.machine import WorkerMachine
from voidbox.storage import durable
from voidbox.version import __version__

WRITE_S = 300.0  # the longest that a snapshot may take
_AGENT_S = 10.0
_FIRST_COMMAND_S = 5.0
_LAST_S = 5.0  # for a template whose sandbox ends meanwhile
_FREEZE_S = 60.0  # after which the guest goes on by itself, whatever became of us

log = logging.getLogger(__name__)


class Sandbox(Protocol):
    """What this needs of the sandbox's process; see owner. Thread: any."""

    @property
    def machine(self) -> WorkerMachine: ...
    def current_record(self) -> SandboxRecord: ...
    def with_agent(self, call: Callable[[AgentClient], None], timeout_s: float) -> None: ...
    def begin_suspend(self) -> None: ...
    def abort_suspend(self) -> None: ...


class Snapshotting:
    """Makes snapshots of one sandbox, one at a time. Thread: any.

    Args:
        store: whose process this is.
    """

    def __init__(self, store: Store, sandbox: Sandbox) -> None:
        self._store = store
        self._sandbox = sandbox
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None  # that makes a template
        self._is_settled = threading.Event()  # it is made, or nobody waits for it any more

    def create(self, name: str, is_fork: bool) -> SnapshotRecord:
        """Make a snapshot; the sandbox goes on.

        Args:
            is_fork: it is taken away again once sandboxes have been made of it.
        Raises:
            ConfigError: it cannot be made of this sandbox, or one is being made.
            HostError: it cannot be written; the sandbox goes on.
        """
        from voidbox.sandbox.snapshots.shelf import Shelf  # few sandboxes are ever saved
        from voidbox.snapshot import digests

        with self._one():
            record = self._check()
            rests_on.refuse(record)
            shelf = Shelf(self._store.folder)
            with shelf.place(name) as (id, folder):
                made = self._describe(record, id, name, FORK if is_fork else SNAPSHOT)
                self._take(folder, made)
            if not is_fork:
                try:
                    digests.seal(folder)
                except VoidboxError:
                    with suppress(VoidboxError):
                        shelf.remove(id)
                    raise
            return made

    def suspend(self) -> None:
        """Bring the sandbox to the disk, and end it: Store.wake() and a process bring it back.

        Raises:
            ConfigError, HostError: see create(); it goes on.
        """
        with self._one():
            record = self._check()
            if record.removes_itself:
                raise ConfigError(
                    f"{record.name} removes itself when it ends: one that is to be suspended is "
                    "made without --rm"
                )
            rests_on.refuse(record._replace(disks=()))  # which nobody else writes meanwhile
            folder = self._store.path(record.id, state_folder.SUSPENDED)
            durable.remove_tree(folder)  # of an earlier time, and woken since
            self._sandbox.begin_suspend()
            try:
                made = self._describe(self._sandbox.current_record(), record.id, "", SUSPENDED)
                self._take(folder, made, is_suspend=True)
            except BaseException:
                with suppress(VoidboxError):
                    durable.remove_tree(folder)  # which it must not be woken from: it goes on
                self._sandbox.abort_suspend()
                raise

    def leave_template(self, key: str) -> None:
        """Make a template of the guest as it is now; returns once its memory is held.

        What goes wrong is told in the log: a sandbox without a template is a sandbox.
        """
        held = threading.Event()

        def make() -> None:
            try:
                with self._one():
                    templates = Templates(self._store.folder)
                    templates.check_worth(key)
                    self._sandbox.with_agent(_run_first_command, _AGENT_S)
                    templates.prepare()
                    made = self._describe(self._sandbox.current_record(), key, "", TEMPLATE)
                    self._take(templates.place(key), made, on_frozen=held.set)
                log.info("left the template %s", key)
            except VoidboxError as error:
                log.info("no template: %s", error)
            except Exception:
                log.exception("no template")
            finally:
                held.set()
                self._is_settled.set()

        self._thread = threading.Thread(target=make, name="voidbox-template")
        self._thread.start()
        held.wait()

    def finish_template(self) -> None:
        """Have a template that is being written come to its end, if that is soon.

        The guest may have ended: its memory, as it was, is a process's of its own. Otherwise
        sandboxes that live for a moment would never leave one, and all of them boot.
        """
        if self._thread is not None:
            self._is_settled.wait(_LAST_S)

    def give_template_up(self) -> None:
        """Wait for no template any more. Thread: any."""
        self._is_settled.set()

    def close(self) -> None:
        """Wait for what is being made, which ends with the machine. Idempotent.

        Only then is it known whether a sandbox that was to be suspended is.
        """
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            pass

    @contextmanager
    def _one(self) -> Iterator[None]:
        self._wait_for_template()
        if not self._lock.acquire(blocking=False):
            raise ConfigError(f"{BUSY}: wait until it is done")
        try:
            yield
        finally:
            self._lock.release()

    def _wait_for_template(self) -> None:
        """Whoever wants a snapshot need not know that a template is being made."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(WRITE_S)

    def _check(self) -> SandboxRecord:
        record = self._sandbox.current_record()
        if record.state not in (State.RUNNING, State.PAUSED):
            raise ConfigError(f"{record.name} is {record.state.value}: only what runs can be saved")
        return record

    def _describe(self, record: SandboxRecord, id: str, name: str, kind: str) -> SnapshotRecord:
        files = rests_on.files_of(self._sandbox.machine.config)
        return SnapshotRecord(
            id, name, kind, time.time(), record.snapshot, files, __version__, record
        )

    def _take(
        self,
        folder: str,
        made: SnapshotRecord,
        is_suspend: bool = False,
        on_frozen: Callable[[], None] | None = None,
    ) -> None:
        """Have the machine write itself, between QUIESCE and RELEASE.

        It writes where its process may; from there the snapshot is brought to its place.
        """
        freezes = made.kind != TEMPLATE  # in which there is nobody yet

        def release() -> None:
            try:
                self._sandbox.with_agent(_release, _AGENT_S)
            except VoidboxError as error:  # it goes on by itself, a little later
                log.warning("the guest was not released: %s", error)
            if on_frozen is not None:
                on_frozen()

        extra = {
            records.FILE: made.encode(),
            records.SECRET: self._store.secret(self._sandbox.current_record().id),
        }
        if made.kind != TEMPLATE:
            extra |= authority_files(self._store.path(self._sandbox.current_record().id))
        written, own = folder, {}
        if not is_suspend:
            id = self._sandbox.current_record().id
            written = f"{self._store.path(id, state_folder.MACHINE)}/{made.id}"
            own, extra = extra, own  # what it says is nobody's but ours
        try:
            self._sandbox.with_agent(lambda client: _quiesce(client, freezes), _AGENT_S)
            report = self._sandbox.machine.snapshot(
                written,
                stop=is_suspend,
                disks="stay" if is_suspend else "copy",
                timeout_s=WRITE_S,
                extra=extra,
                on_frozen=release,
            )
        except BaseException:
            release()
            raise
        if not is_suspend:
            _bring(written, folder, own)
        log.info("a %s: %s", made.kind, report)
        if made.kind in (SNAPSHOT, SUSPENDED):
            _pin_image(made, folder)


def _bring(written: str, folder: str, own: Mapping[str, bytes]) -> None:
    """Bring a snapshot to its place, whole.

    The process that wrote it may have been taken over. It says what its machine is; what a sandbox
    may do that is made of it, its jail and its disks say, is not for it to say.

    Args:
        own: files of ours.
    """
    from voidbox.snapshot import files
    from voidbox.snapshot.folder import Draft, take_over

    try:
        draft = Draft(folder)
        try:
            take_over(written, draft.path)
            for name, content in own.items():
                files.write(draft.file(name), content)
            draft.commit()
        except BaseException:
            draft.abort()
            raise
    except OSError as error:
        raise durable.failure("make", f"snapshot {folder}", error) from error
    finally:
        with suppress(VoidboxError):
            durable.remove_tree(written)


def _pin_image(made: SnapshotRecord, folder: str) -> None:
    """Have the image stay that a snapshot rests on, if it is one of the store."""
    root = made.sandbox.root
    if root is not None and root.get("digest"):
        from voidbox.images.pins import pin

        try:
            pin(str(root["image"]), folder)
        except VoidboxError as error:  # then its removal is told at the restore
            log.warning("the image is not kept for the snapshot: %s", error)


def _run_first_command(client: AgentClient) -> None:
    """Have the template's guest know what any command needs: the shell's pages, the C library's.

    Those of a new guest would be read from its disk otherwise. An image need not have a shell.
    """
    values = {"argv": ["/bin/sh", "-c", ":"], "cwd": "/", "timeout": _FIRST_COMMAND_S}
    with suppress(RequestFailed):
        client.link.call(protocol.EXEC, values, "exec").result(_AGENT_S)


def _quiesce(client: AgentClient, freezes: bool) -> None:
    if protocol.CAN_ADOPT not in client.link.capabilities:
        raise ConfigError(
            "the guest's agent is older than snapshots: build its image again, and make the "
            "sandbox anew"
        )
    values = {"freeze": freezes, "timeout": _FREEZE_S}
    answer = client.link.call(protocol.QUIESCE, values, "quiesce").result(_AGENT_S)
    if freezes and answer.get("is_frozen") is not True:
        log.warning("the guest's processes could not be frozen: a copy's run before it is told")


def _release(client: AgentClient) -> None:
    client.link.call(protocol.RELEASE, {}, "release").result(_AGENT_S)
