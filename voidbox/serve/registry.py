"""All sandboxes of the server: made, found again after a restart, ended when their time is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from voidbox.errors import ConfigError, VoidboxError
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.launching import wait_gone
from voidbox.sdk.snapshots import SnapshotInfo, wake
from voidbox.serve import by_itself
from voidbox.serve.builds.cache import Cache
from voidbox.serve.config import ServeConfig
from voidbox.serve.database import Database
from voidbox.serve.errors import ApiError, SandboxGone, not_found
from voidbox.serve.interpreter.starting import Interpreter
from voidbox.serve.keys import Key, Keys
from voidbox.serve.marks import Mark
from voidbox.serve.served import Served
from voidbox.serve.telemetry import Telemetry, how_started
from voidbox.serve.templates import BASE, Template, Templates, left_by_build
from voidbox.serve.waiting import Waiting
from voidbox.serve.when_free import when_free
from voidbox.storage.locking import Hold

_INTERPRETERS = "code-interpreter-v1"  # the template
_ALIVE = "serve.alive"  # held by the server of a state folder

_logger = logging.getLogger("voidbox.serve")


class Registry:
    """The sandboxes. Thread: the event loop's.

    Raises:
        ConfigError: another server has the state folder, or it cannot be used.
    """

    def __init__(self, config: ServeConfig, telemetry: Telemetry | None = None) -> None:
        self.config = config
        self.telemetry = telemetry or Telemetry()
        self.store = Store(config.state_folder)
        self._alive = Hold(f"{self.store.folder}/{_ALIVE}")
        if self._alive.is_shared():  # it would end what we begin, and we what it has begun
            self._alive.close()
            raise ConfigError(
                f"another voidbox serve has {self.store.folder}: stop that one, or give this one a "
                "folder of its own with VOIDBOX_STATE"
            )
        self.database = Database(self.store.folder)
        self.keys = Keys(self.database)
        self.templates = Templates(config, self.store.folder, self.database)
        self.started_at = time.time()
        self.counts = dict.fromkeys(
            ("created", "taken", "killed", "paused", "resumed", "failed"), 0
        )
        self.waiting: Waiting | None = None
        if config.waiting:
            options = {**config.options, "image": self.templates.image(BASE)}
            self.waiting = Waiting(config.waiting, options, self.store.folder)
        self.cache = Cache(self.store.folder, self.database, config.build_cache_bytes)
        self._secret = self.database.secret()
        self._served: dict[str, Served] = {}
        self._interpreters: WeakKeyDictionary[Served, Interpreter] = WeakKeyDictionary()
        self._starting = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    # The server's own life.

    async def start(self) -> None:
        """Find what an earlier server left, and see to what happens by itself."""
        await asyncio.to_thread(self.store.clean)
        await self.cache.trim()
        await self.templates.sweep(self.cache.snapshots())
        for record in await asyncio.to_thread(self.store.list):
            mark = Mark.of(record.metadata)
            if mark is None:
                continue
            if record.state.is_final:
                await self._remove(record.id)
                continue
            served = self._adopt(record, mark)
            if mark.is_build:  # nobody waits for what it would become
                self.spawn(self._end_build(served))
        _logger.info("sandboxes found: %d", len(self._served))
        if self.waiting is not None:
            await self.waiting.start()
        self.spawn(by_itself.sample_all(self))
        self.spawn(by_itself.see_to_ends(self))

    async def _end_build(self, served: Served) -> None:
        with contextlib.suppress(ApiError, VoidboxError):  # it has ended by itself
            await self.kill(served, "a server that was killed")

    async def stop(self) -> None:
        """Leave the sandboxes to the next server."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.waiting is not None:
            await self.waiting.stop()
        for served in list(self._served.values()):
            await served.disconnect()
        self.store.close()
        self.database.close()
        self._alive.close()
        await asyncio.to_thread(self.telemetry.close)  # here: uvicorn ends us by the signal itself

    def spawn(self, coroutine: Any) -> None:
        """Have a coroutine run until it or the server ends."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _logger.error("a task failed", exc_info=task.exception())

    # Looking.

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._served.values()))

    def __len__(self) -> int:
        return len(self._served)

    def find(self, sandbox_id: str, key: Key | None = None) -> Served:
        """Return a sandbox that runs or is paused.

        Args:
            sandbox_id: also with a client's ID behind a dash, as old SDKs have it.
            key: who asks; None for the data plane, which has tokens of its own.
        Raises:
            ApiError: 404; the same for one that is another key's.
        """
        served = self._served.get(sandbox_id.partition("-")[0])
        if served is None or (key is not None and not key.sees(served.mark.key_id)):
            raise not_found(sandbox_id)
        if served.state.is_final:
            raise not_found(sandbox_id)
        return served

    async def awake(self, sandbox_id: str) -> Served:
        """Return a sandbox for a request to it, which wakes it if that was asked for.

        Raises:
            SandboxGone: it is not there, or is paused.
        """
        try:
            served = self.find(sandbox_id)
        except ApiError:
            raise SandboxGone from None
        if not served.is_running and served.mark.auto_resume:
            await self.resume(served, None)  # or wait until somebody else has
        if not served.is_running:
            raise SandboxGone
        return served

    # Making.

    async def create(
        self,
        key: Key,
        template: str,
        mark: Mark,
        options: dict[str, Any],
        found: Template | None = None,
    ) -> Served:
        """Make a sandbox.

        Args:
            found: what the template is; None: to be found by its name.
        Raises:
            ApiError: there are too many, or no such template.
            VoidboxError: it could not be started.
        """
        if found is None:
            found = await self.templates.find(template, key)
        base = self.config.options
        if found.snapshot is not None:
            base = {}
            if not mark.is_build:  # which knows it
                user, workdir = left_by_build(found.snapshot)
                mark = mark._replace(user=user, workdir=workdir)
            options = {**options, "metadata": {**options["metadata"], **mark.to_metadata()}}
        with self._room(1):
            try:
                with self.telemetry.span("create", template=template, key=key.name):
                    record = await self._make({**base, **found.options, **options}, mark)
            except BaseException:
                self.counts["failed"] += 1
                raise
            served = self._adopt(record, Mark.of(record.metadata) or mark)
        if template.partition(":")[0] == _INTERPRETERS:
            self.spawn(self._warm_interpreter(served))
        self.counts["created"] += 1
        self.database.audit(key.name, "create", served.id, template)
        return served

    @contextlib.contextmanager
    def _room(self, count: int) -> Iterator[None]:
        """Keep room for so many more that run.

        Raises:
            ApiError: there is not as much.
        """
        running = sum(1 for one in self if one.state is not State.SUSPENDED)
        if running + self._starting + count > self.config.sandboxes_max:
            raise ApiError(
                503,
                f"{self.config.sandboxes_max} sandboxes run: kill one, or raise --max-sandboxes",
                {"Should-Retry": "false"},
            )
        self._starting += count
        try:
            yield
        finally:
            self._starting -= count

    def interpreter(self, served: Served) -> Interpreter:
        """Return what runs code in a sandbox."""
        return self._interpreters.setdefault(served, Interpreter())

    async def _warm_interpreter(self, served: Served) -> None:
        """Start it before anybody needs it; who does is told what is wrong."""
        with contextlib.suppress(ApiError, SandboxGone, VoidboxError):
            await self.interpreter(served).ready(served)

    async def _make(self, options: dict[str, Any], mark: Mark) -> SandboxRecord:
        """Take one that waits, or start one."""
        if self.waiting is not None and (id := await self.waiting.take(options, mark)):
            self.counts["taken"] += 1
            return self.store.peek(id)
        box = await AsyncSandbox.create(**options, detached=True, state_folder=self.store.folder)
        await box.close()
        record = self.store.peek(box.sandbox_id)
        how = await asyncio.to_thread(how_started, self.store.path(record.id, "owner.log"))
        self.telemetry.past(how, record.created_at, sandbox=record.id)
        return record

    def _adopt(self, record: SandboxRecord, mark: Mark) -> Served:
        served = self._served[record.id] = Served(self.store, record, mark, self._secret)
        if record.state is not State.SUSPENDED:
            self._watch(served)
        return served

    def _watch(self, served: Served) -> None:
        self.spawn(self._await_end(served))
        self._tasks.add(task := served.warm_up())
        task.add_done_callback(self._forget_task)

    async def _await_end(self, served: Served) -> None:
        """Once its process is gone: it is suspended, or over."""
        await wait_gone(self.store, served.id, None)
        async with served.life:  # who ended or suspended it goes first
            if served.id not in self._served:
                return
            if not served.state.is_final:  # it is suspended, or has been woken since
                if served.state is State.SUSPENDED:
                    await served.disconnect()
                return
            reason = ""
            await asyncio.to_thread(self.store.clean)
            with contextlib.suppress(VoidboxError):
                reason = self.store.read(served.id).reason
            self.database.audit("", "ended", served.id, reason)
            await self._forget(served)

    async def _forget(self, served: Served) -> None:
        self._served.pop(served.id, None)
        self.database.set_end(served.id, None)
        await served.disconnect()
        await self._remove(served.id)

    async def _remove(self, sandbox_id: str) -> None:
        with contextlib.suppress(VoidboxError):  # somebody else has
            await asyncio.to_thread(self.store.remove, sandbox_id)

    # Changing.

    async def kill(self, served: Served, by: str) -> None:
        """End a sandbox, also one that is paused, and leave nothing of it."""
        async with served.life:
            if served.id not in self._served:
                raise not_found(served.id)
            self._served.pop(served.id, None)
            with contextlib.suppress(VoidboxError):
                box = await served.box()
                await box.kill()
            await self._forget(served)
        self.counts["killed"] += 1
        self.database.audit(by, "kill", served.id)

    async def pause(self, served: Served, by: str) -> None:
        """Bring a sandbox to the disk, with its memory.

        Raises:
            ApiError: 409, it is paused already.
        """
        async with served.life:
            if served.state is State.SUSPENDED:
                raise ApiError(409, f"Sandbox {served.id} is already paused")
            box = await served.box()
            with self.telemetry.span("pause", sandbox=served.id):
                await when_free(box.suspend)
            await box.close()
            self.database.set_end(served.id, None)
            await served.disconnect()
        self.counts["paused"] += 1
        self.database.audit(by, "pause", served.id)

    async def resume(self, served: Served, timeout_s: float | None, by: str = "") -> bool:
        """Let a paused sandbox go on; False if it was not paused.

        Args:
            timeout_s: it ends so long from now; None: after as long as it was given before.
        """
        async with served.life:
            state = served.state
            if state is State.PAUSED:  # halted by our own SDK
                await served.control("resume")
            elif state is State.SUSPENDED:
                with self._room(1), self.telemetry.span("resume", sandbox=served.id):
                    await wake(self.store, served.id)
                await served.reconnect()
                self._watch(served)
            else:
                return False
        await self.set_timeout(served, timeout_s or self._timeout_s(served))
        self.counts["resumed"] += 1
        self.database.audit(by, "resume", served.id)
        return True

    async def snapshot(self, served: Served, name: str | None, by: str) -> SnapshotInfo:
        """Save a sandbox as it is now, for its client."""
        info = await self.save(served, name)
        self.database.audit(by, "snapshot", served.id, info.name)
        return info

    async def save(self, served: Served, name: str | None) -> SnapshotInfo:
        """Save a sandbox as it is now."""
        async with served.life:
            box = await served.box()
            info = await when_free(lambda: box.snapshot(name))
            await box.close()
        return info

    async def fork(self, served: Served, count: int, by: str) -> list[Served | VoidboxError]:
        """Make so many sandboxes that go on from where one is.

        Raises:
            ApiError: that would be too many.
        """
        with self._room(count):
            async with served.life:
                box = await served.box()
                forks = await when_free(lambda: box.fork(count))
                await box.close()
            self.database.audit(by, "fork", served.id, str(count))
            return [await self._forked(fork, served) for fork in forks]

    async def _forked(self, fork: AsyncSandbox | Exception, of: Served) -> Served | VoidboxError:
        if isinstance(fork, Exception):
            return fork if isinstance(fork, VoidboxError) else VoidboxError(str(fork))
        found = self._adopt(self.store.peek(fork.sandbox_id), of.mark)
        await fork.close()
        return found

    def _timeout_s(self, served: Served) -> float:
        return min(served.record.timeout_s or 300.0, self.config.life_s_max)

    async def set_timeout(self, served: Served, seconds: float) -> None:
        """Have a sandbox end, or be paused, so long from now."""
        if served.mark.auto_pause:
            self.database.set_end(served.id, time.time() + seconds)
            return
        box = await served.box()
        await box.set_timeout(seconds)
        await box.close()

    def end_at(self, served: Served, record: SandboxRecord) -> float:
        """Return when a sandbox is to end or be paused, in seconds since 1970."""
        if served.mark.auto_pause:
            return self.database.ends().get(served.id, time.time())
        if record.timeout_s is None or record.started_at is None:
            return time.time() + self.config.life_s_max
        return record.started_at + record.timeout_s + record.stood_still_s()
