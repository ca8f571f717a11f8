"""Builds: each in a sandbox of its own, which becomes the template."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import OrderedDict
from typing import Any, NamedTuple

from voidbox.errors import VoidboxError
from voidbox.images.progress import ImageProgress
from voidbox.images.pulling import pull
from voidbox.serve.builds.plan import Plan
from voidbox.serve.builds.steps import StepFailed, Steps
from voidbox.serve.builds.uploads import Uploads
from voidbox.serve.errors import ApiError
from voidbox.serve.keys import Key
from voidbox.serve.marks import Mark
from voidbox.serve.registry import Registry
from voidbox.serve.served import Served

LIFE_S = 4 * 3600.0  # of a build
_BUILDS_MAX = 200
_AT_ONCE = 4
_LINES_MAX = 20_000  # of one build's log; the rest of it is not kept
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
        status: "waiting", "building", "ready" or "error".
        reason: why it failed, and at which step.
    """

    def __init__(self, key: Key, name: str) -> None:
        self.id = str(uuid.uuid4())
        self.key = key
        self.name = name
        self.status = "waiting"
        self.lines: list[Line] = []
        self.reason: tuple[str, str] | None = None
        self.step = _BASE

    def log(self, text: str, level: str = "info") -> None:
        """Write a line."""
        if len(self.lines) < _LINES_MAX:
            self.lines.append(Line(time.time(), level, text, self.step))
        elif len(self.lines) == _LINES_MAX:
            self.lines.append(Line(time.time(), "warn", "what follows is not kept", self.step))


class Builder:
    """All builds. Thread: the event loop's."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.uploads = Uploads(registry.store.folder, registry.database.secret())
        self._builds: OrderedDict[str, Build] = OrderedDict()
        self._gate = asyncio.Semaphore(_AT_ONCE)

    def new(self, key: Key, name: str) -> Build:
        """Return a build that waits for its start.

        Raises:
            ApiError: too many are under way.
        """
        build = Build(key, name)
        if len(self._builds) >= _BUILDS_MAX:
            over = next((one for one in self._builds.values() if one.status != "building"), None)
            if over is None:
                raise ApiError(503, "too many builds are under way", {"Should-Retry": "false"})
            del self._builds[over.id]
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
        served = await self._sandbox(build, plan)
        try:
            key = build.key
            steps = Steps(served, build.log, lambda hash: self.uploads.path(key, hash))
            for number, step in enumerate(plan.steps, 1):
                build.step = str(number)
                build.log(f"{step.kind} {' '.join(step.args)}"[:1000])
                await steps.do(step)
            build.step = _FINALIZE
            await steps.finish(plan)
            await self._save(build, served, plan.envs())
        finally:
            with contextlib.suppress(ApiError, VoidboxError):  # it has ended by itself
                await self._registry.kill(served, f"build of {build.key.name}")

    async def _sandbox(self, build: Build, plan: Plan) -> Served:
        """Return the sandbox that it is made in."""
        template = plan.template or await self._image(build, plan.image)
        build.log(f"FROM {plan.image or plan.template}")
        mark = Mark(
            build.key.id,
            template,
            user=plan.last("USER"),
            workdir=plan.workdir(),
            is_build=True,
        )
        options: dict[str, Any] = {"timeout": LIFE_S, "metadata": mark.to_metadata()}
        return await self._registry.create(build.key, template, mark, options)

    async def _image(self, build: Build, name: str) -> str:
        """Return the name of an image that is here now."""
        if await asyncio.to_thread(self._registry.templates.image, name) is not None:
            return name
        build.log(f"pulling {name}")
        said: set[str] = set()

        def tell(progress: ImageProgress) -> None:
            if progress.stage not in said:
                said.add(progress.stage)
                build.log(progress.stage)

        store = self._registry.templates.images
        await asyncio.to_thread(pull, name, store=store, progress=tell)
        return name

    async def _save(self, build: Build, served: Served, envs: dict[str, str]) -> None:
        """Have the template be what the sandbox is now; what it was before goes."""
        await served.control("hand_over", envs=envs)
        info = await self._registry.snapshot(served, None, build.key.name)
        await self._registry.templates.set_built(build.name, info.snapshot_id, build.key)
        self._registry.database.audit(build.key.name, "build", "", build.name)
