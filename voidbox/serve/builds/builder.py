"""Builds: each in a sandbox of its own, which becomes the template."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import posixpath
import time
import uuid
from collections import OrderedDict
from functools import partial
from typing import Any, cast

from voidbox.errors import VoidboxError
from voidbox.images.credentials import Credentials
from voidbox.images.progress import ImageProgress
from voidbox.images.pulling import pull
from voidbox.images.reference import parse_reference
from voidbox.named_tuple import NamedTuple
from voidbox.pool.options import complete
from voidbox.sandbox.snapshots.rests_on import identify
from voidbox.sdk.creating import CreateOptions, make_record
from voidbox.serve.builds import private_images
from voidbox.serve.builds.cache import KINDS, chain, reusable
from voidbox.serve.builds.plan import Plan
from voidbox.serve.builds.steps import StepFailed, Steps
from voidbox.serve.builds.uploads import Uploads
from voidbox.serve.errors import ApiError
from voidbox.serve.keys import Key
from voidbox.serve.marks import Mark
from voidbox.serve.registry import Registry
from voidbox.serve.served import Served
from voidbox.serve.templates import Template, left_by_build
from voidbox.version import __version__

LIFE_S = 4 * 3600.0  # of a build
_BUILDS_MAX = 200
_AT_ONCE = 4
_LINES_MAX, _LOG_CHARACTERS_MAX = 20_000, 1 << 20  # of a build's log; the rest is not kept
_WORDS_CHARACTERS_MAX = 1000  # of a step, in the log
_STATUSES = ("error", "ready", "waiting", "building")  # those that nobody needs are first
_BASE, _FINALIZE = "base", "finalize"  # as the SDK calls the steps around the user's own

_logger = logging.getLogger("voidbox.serve")


class Line(NamedTuple):
    """A line of a build's log; `at` in seconds since 1970."""

    at: float
    level: str
    text: str
    step: str


class Build:
    """One build.

    Attributes:
        tags: that it gets once it is ready.
        status: "waiting", "building", "ready" or "error".
        reason: why it failed, and at which step.
    """

    def __init__(self, key: Key, name: str, tags: list[str]) -> None:
        self.id = str(uuid.uuid4())
        self.key = key
        self.name = name
        self.tags = tags
        self.status = "waiting"
        self.lines: list[Line] = []
        self._characters = 0
        self._is_full = False
        self.reason: tuple[str, str] | None = None
        self.step = _BASE

    def log(self, text: str, level: str = "info") -> None:
        """Write a line."""
        if not self._is_full and (
            len(self.lines) >= _LINES_MAX or self._characters > _LOG_CHARACTERS_MAX
        ):
            self._is_full = True
            self.lines.append(Line(time.time(), "warn", "what follows is not kept", self.step))
        if self._is_full and level != "error":  # why it has failed is
            return
        self._characters += len(text)
        self.lines.append(Line(time.time(), level, text, self.step))


class Builder:
    """All builds. Thread: the event loop's."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.uploads = Uploads(registry.store.folder, registry.database.secret())
        self._builds: OrderedDict[str, Build] = OrderedDict()
        self._gate = asyncio.Semaphore(_AT_ONCE)

    def new(self, key: Key, name: str, tags: list[str]) -> Build:
        """Return a build that waits for its start.

        Raises:
            ApiError: too many are under way.
        """
        build = Build(key, name, tags)
        if len(self._builds) >= _BUILDS_MAX:
            least = min(self._builds.values(), key=lambda one: _STATUSES.index(one.status))
            if least.status == "building":
                raise ApiError(503, "too many builds are under way", {"Should-Retry": "false"})
            del self._builds[least.id]
        self._builds[build.id] = build
        return build

    def find(self, build_id: str, key: Key) -> Build:
        """Return a build of a key.

        Raises:
            ApiError: there is none; or the server was restarted since.
        """
        build = self._builds.get(build_id)
        if build is None or not key.sees(build.key.id):
            raise ApiError(404, "there is no such build: a restart of the server ends builds")
        return build

    def start(self, build: Build, plan: Plan) -> None:
        """Have a build begin.

        Raises:
            ApiError: it has begun already.
        """
        if build.status != "waiting":
            raise ApiError(409, f"the build is {build.status}")
        build.status = "building"
        self._registry.spawn(self._run(build, plan))

    async def _run(self, build: Build, plan: Plan) -> None:
        try:
            async with self._gate:
                await self._build(build, plan)
            build.log(f"the template {build.name} is ready")
            build.status = "ready"
        except (StepFailed, ApiError, VoidboxError) as error:
            self._fail(build, str(error))
        except asyncio.CancelledError:
            self._fail(build, "the server ends")
            raise
        except Exception as error:
            _logger.error("build %s failed", build.id, exc_info=error)
            self._fail(build, "a fault of the server's own: see its log")

    def _fail(self, build: Build, why: str) -> None:
        build.log(why, "error")
        build.reason = why, build.step
        build.status = "error"

    async def _build(self, build: Build, plan: Plan) -> None:
        base = await self._base(build, plan)
        layers = chain(await self._identity(build.key, base), plan.steps)
        served, done = await self._begin(build, plan, base, layers)
        try:
            key, (user, workdir) = build.key, _left(base)
            archive = partial(self.uploads.path, key)
            steps = Steps(served, build.log, archive, user, workdir)
            for number, step in enumerate(plan.steps, 1):
                build.step = str(number)
                words = f"{step.kind} {' '.join(step.args)}"[:_WORDS_CHARACTERS_MAX]
                build.log(words if number > done else f"CACHED {words}")
                await (steps.do(step) if number > done else steps.know(step))
                if number > done and step.kind in KINDS:
                    await self._keep(build, served, layers[number - 1])
            build.step = _FINALIZE
            await steps.finish(plan)
            await self._save(build, served, plan.envs())
        finally:
            with contextlib.suppress(ApiError, VoidboxError):  # it has ended by itself
                await self._registry.kill(served, f"build of {build.key.name}")

    async def _base(self, build: Build, plan: Plan) -> Template:
        """Return what it begins with."""
        if plan.credentials is not None:
            name = await self._pull(build, plan.image, plan.credentials)
        else:
            name = plan.template or await self._image(build, plan.image)
        build.log(f"FROM {plan.image or plan.template}")
        return await self._registry.templates.find(name, build.key)

    async def _image(self, build: Build, name: str) -> str:
        """Return the name of an image that is here now."""
        templates = self._registry.templates
        if await asyncio.to_thread(templates.image, name, build.key) is not None:
            return name
        return await self._pull(build, name, None)

    async def _pull(self, build: Build, name: str, credentials: Credentials | None) -> str:
        """Bring an image; return its name here."""
        reference = kept = parse_reference(name)
        if credentials is not None:
            kept = private_images.reference_of(build.key, reference)
        build.log(f"pulling {reference.familiar}")
        said: set[str] = set()

        def tell(progress: ImageProgress) -> None:
            if progress.stage not in said:
                said.add(progress.stage)
                build.log(progress.stage)

        store = self._registry.templates.images
        await asyncio.to_thread(
            pull, name, store=store, progress=tell, credentials=credentials, keep_as=kept
        )
        return kept.name

    async def _identity(self, key: Key, base: Template) -> str:
        """Say all that there is before the first step, and whose it is."""
        if base.snapshot is not None:
            return json.dumps([key.id, base.snapshot.record.id])
        options = cast(CreateOptions, {**self._registry.config.options, **base.options})
        record = await make_record(self._registry.store, complete(options), is_owned=False)
        files = [record.kernel, record.image, *map(str, (record.root or {}).values())]
        found = {path: identify(path) for path in files if os.path.isfile(path)}
        host = [__version__, os.uname().release]
        return json.dumps([key.id, host, record._replace(metadata={}).to_json(), found])

    async def _begin(
        self, build: Build, plan: Plan, base: Template, layers: list[str]
    ) -> tuple[Served, int]:
        """Return the sandbox that it is made in, and how many steps are done in it."""
        cache = self._registry.cache
        for number in range(0 if plan.is_forced else reusable(plan.steps), 0, -1):
            if plan.steps[number - 1].kind not in KINDS:
                continue
            layer = await cache.find(layers[number - 1])
            if layer is None:
                continue
            try:
                found = base._replace(options={"snapshot": layer.record.id}, snapshot=layer)
                return await self._sandbox(build, plan, base, found), number
            except VoidboxError as error:  # of another kernel, say
                await cache.drop(layers[number - 1], layer.record.id)
                build.log(f"what step {number} had left cannot be used: {error}", "warn")
        return await self._sandbox(build, plan, base, base), 0

    async def _sandbox(self, build: Build, plan: Plan, base: Template, found: Template) -> Served:
        """Start it, of what is found of an earlier build or else its base."""
        user, workdir = _left(base)
        mark = Mark(
            build.key.id,
            base.id,
            user=plan.last("USER") or user,
            workdir=posixpath.join(workdir, plan.workdir()),
            is_build=True,
        )
        options: dict[str, Any] = {"timeout": LIFE_S, "metadata": mark.to_metadata()}
        return await self._registry.create(build.key, base.id, mark, options, found)

    async def _keep(self, build: Build, served: Served, layer: str) -> None:
        """Keep what a step has left, for later builds. If that fails this one goes on."""
        cache = self._registry.cache
        if not cache.is_on:
            return
        try:
            info = await self._registry.save(served, None)
            await cache.keep(layer, info.snapshot_id)
        except (ApiError, VoidboxError) as error:
            why = str(error).partition("\n")[0]
            build.log(f"the next build will do this step again: {why}", "warn")

    async def _save(self, build: Build, served: Served, envs: dict[str, str]) -> None:
        """Have the template be what the sandbox is now; what it was before goes."""
        await served.control("hand_over", envs=envs)
        info = await self._registry.save(served, None)
        await self._registry.templates.assign(
            build.name, build.tags, info.snapshot_id, build.id, build.key
        )
        self._registry.database.audit(build.key.name, "build", "", build.name)


def _left(base: Template) -> tuple[str, str]:
    return ("", "") if base.snapshot is None else left_by_build(base.snapshot)
