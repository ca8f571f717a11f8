"""The steps of a build, one after the other, in a sandbox."""

from __future__ import annotations

import asyncio
import posixpath
import shlex
import time
from collections.abc import Callable

from voidbox.errors import VoidboxError
from voidbox.sdk.command_result import CommandResult
from voidbox.sdk.commands import AsyncCommands
from voidbox.serve.builds.plan import Plan, Step
from voidbox.serve.envd.users import GuestUser
from voidbox.serve.errors import ConnectError
from voidbox.serve.served import Served

STEP_S = 3600.0
READY_S = 600.0
_READY_PAUSE_S = 0.5
_GZIP = b"\x1f\x8b"
_PIECE_BYTES = 1 << 20
_LINE_CHARACTERS_MAX = 4000
# The archive is unpacked beside, so that nothing of it is outside of the target, and then copied: a
# folder's contents into the target, a file to it, what a pattern matches into it.
_COPY = """
set -e
staged=$(mktemp -d)
trap 'rm -rf "$staged" "$1"' EXIT
tar -x $2 -f "$1" -C "$staged"
chown -R "$5:$(id -g "$5")" "$staged"
[ -z "$6" ] || chmod -R "$6" "$staged"/*
cd "$staged"
if [ -d "$3" ]; then
    mkdir -p "$4"; cp -a "$3/." "$4/"
elif [ -e "$3" ] && [ ! -d "$4" ] && [ "${4%/}" = "$4" ]; then
    mkdir -p "$(dirname "$4")"; cp -a "$3" "$4"
else
    mkdir -p "$4"; cp -a $3 "$4/"
fi
"""

Log = Callable[[str, str], None]


class StepFailed(Exception):
    """A step did not do what it was to."""


class Steps:
    """Does them.

    Args:
        log: takes a line, and its level.
        archive: returns the file of a hash; None if there is none.
        user, cwd: who does them, and where, before a step says so; "" for the image's own.
    """

    def __init__(
        self,
        served: Served,
        log: Log,
        archive: Callable[[str], str | None],
        user: str = "",
        cwd: str = "",
    ) -> None:
        self._served = served
        self._commands = AsyncCommands(served.session)
        self._log = log
        self._archive = archive
        self._envs: dict[str, str] = {}
        self._user = user
        self._cwd = cwd

    async def do(self, step: Step) -> None:
        """Do one.

        Raises:
            StepFailed: with what the user is to read.
        """
        try:
            await self._do(step)
        except (VoidboxError, ConnectError) as error:
            raise StepFailed(str(error).partition("\n")[0]) from error

    async def know(self, step: Step) -> None:
        """Have a step's words count for the next ones, without doing it: its result is there.

        Raises:
            StepFailed: with what the user is to read.
        """
        if step.kind == "ENV":
            self._envs.update(zip(step.args[::2], step.args[1::2], strict=True))
        elif step.kind == "USER":
            try:
                self._user = (await self._served.users.find(step.args[0])).name
            except ConnectError as error:
                raise StepFailed(str(error)) from error
        elif step.kind == "WORKDIR":
            self._cwd = self._place(step.args[0], await self._who(()))

    async def _do(self, step: Step) -> None:
        await self.know(step)
        if step.kind == "RUN":
            await self._run(step.args[0], await self._who(step.args[1:2]))
        elif step.kind == "COPY":
            await self._copy(step)
        elif step.kind == "WORKDIR":
            owner = shlex.quote(f"{(await self._who(())).uid}")
            path = shlex.quote(self._cwd)
            line = f"[ -d {path} ] || {{ mkdir -p {path} && chown {owner} {path}; }}"
            await self._as_root(["/bin/sh", "-c", line])

    async def _who(self, names: tuple[str, ...]) -> GuestUser:
        name = (names[0] if names else "") or self._user
        return await self._served.users.find(name)

    def _place(self, path: str, user: GuestUser) -> str:
        return user.path(posixpath.join(self._cwd, path))

    async def _run(self, command: str, user: GuestUser) -> None:
        result = await self._finish(command, user)
        if result.exit_code:
            raise StepFailed(f"{command[:200]!r} failed with exit code {result.exit_code}")

    async def _finish(self, command: str, user: GuestUser, is_logged: bool = True) -> CommandResult:
        lines = _Lines(self._log if is_logged else lambda line, level: None)
        result = await self._commands.run(
            [await self._shell(), "-l", "-c", command],
            cwd=self._cwd or user.home,
            user=str(user.uid),
            envs={"HOME": user.home, "USER": user.name, **self._envs},
            on_stdout=lines.out,
            on_stderr=lines.err,
            timeout=STEP_S,
        )
        lines.end()
        return result

    async def _shell(self) -> str:
        result = await self._commands.run(["/bin/sh", "-c", "[ -x /bin/bash ]"], user="0", cwd="/")
        return "/bin/sh" if result.exit_code else "/bin/bash"

    async def _as_root(self, argv: list[str]) -> None:
        result = await self._commands.run(argv, user="0", cwd="/", timeout=STEP_S)
        if result.exit_code:
            raise StepFailed((result.stderr or result.stdout).strip()[-500:] or "it failed")

    async def _copy(self, step: Step) -> None:
        path = self._archive(step.files_hash)
        if path is None:
            raise StepFailed(f"COPY {step.args[0]}: its files were not sent")
        source, target, owner, mode = (*step.args, "", "")[:4]
        user = await self._who((owner,) if owner else ())
        place = self._place(target, user) + ("/" if target.endswith("/") else "")
        with open(path, "rb") as file:
            is_packed = file.read(2) == _GZIP
        far = f"/tmp/.voidbox-copy-{step.files_hash[:40]}"
        await self._served.files.upload(path, far, user="0")
        how = "-z" if is_packed else "-p"
        words = [far, how, posixpath.normpath(source), place, user.name, mode]
        await self._as_root(["/bin/sh", "-c", _COPY, "copy", *words])

    async def finish(self, plan: Plan) -> None:
        """Start what is to run in every sandbox of the template, and wait until it is ready.

        Raises:
            StepFailed: it did not get ready in time.
        """
        try:
            await self._start_and_wait(plan)
        except (VoidboxError, ConnectError) as error:
            raise StepFailed(str(error).partition("\n")[0]) from error

    async def _start_and_wait(self, plan: Plan) -> None:
        user = await self._who(())
        if plan.start:
            await self._commands.run(
                [await self._shell(), "-l", "-c", plan.start],
                cwd=self._cwd or user.home,
                user=str(user.uid),
                envs={"HOME": user.home, "USER": user.name, **self._envs},
                background=True,
            )
        deadline = time.monotonic() + READY_S
        while plan.ready and (await self._finish(plan.ready, user, is_logged=False)).exit_code:
            if time.monotonic() > deadline:
                raise StepFailed(f"not ready within {READY_S:g} s: {plan.ready[:200]!r}")
            await asyncio.sleep(_READY_PAUSE_S)


class _Lines:
    """A command's output as lines of a log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._rest = {"info": "", "warn": ""}

    def out(self, text: str) -> None:
        self._take("info", text)

    def err(self, text: str) -> None:
        self._take("warn", text)

    def _take(self, level: str, text: str) -> None:
        *lines, self._rest[level] = (self._rest[level] + text).split("\n")
        if len(self._rest[level]) > _LINE_CHARACTERS_MAX:
            lines.append(self._rest[level])
            self._rest[level] = ""
        for line in lines:
            self._log(line[:_LINE_CHARACTERS_MAX], level)

    def end(self) -> None:
        for level, rest in self._rest.items():
            if rest:
                self._log(rest, level)
