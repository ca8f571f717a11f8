"""A Deployment of SWE-ReX: its runtime in a virtual machine, of which nothing but bash is needed.

    from voidbox.adapters.swerex import VoidboxDeployment

    deployment = VoidboxDeployment(image="python:3.12")
    await deployment.start()
    await deployment.runtime.create_session(CreateBashSessionRequest())
    await deployment.runtime.run_in_session(BashAction(command="pip list"))

No server of SWE-ReX's runs in the guest: sessions are bash on terminals of the agent's.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from typing import Any

from swerex.deployment.abstract import AbstractDeployment
from swerex.deployment.hooks.abstract import CombinedDeploymentHook, DeploymentHook
from swerex.exceptions import (
    BashIncorrectSyntaxError,
    CommandTimeoutError,
    DeploymentNotStartedError,
    NoExitCodeError,
    NonZeroExitCodeError,
    SessionDoesNotExistError,
    SessionExistsError,
    SessionNotInitializedError,
)
from swerex.runtime.abstract import (
    AbstractRuntime,
    Action,
    BashAction,
    BashInterruptAction,
    BashObservation,
    CloseBashSessionResponse,
    CloseResponse,
    CloseSessionRequest,
    CloseSessionResponse,
    Command,
    CommandResponse,
    CreateBashSessionResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    IsAliveResponse,
    Observation,
    ReadFileRequest,
    ReadFileResponse,
    UploadRequest,
    UploadResponse,
    WriteFileRequest,
    WriteFileResponse,
)
from swerex.utils.log import get_logger

from voidbox.agent.call import RequestFailed
from voidbox.errors import AgentError, CommandTimeout
from voidbox.pool.giving import Giving
from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.pty import AsyncPtyHandle

_INTERRUPT, _QUIT = "\x03", "\x1c"
_OUTPUT_BYTES_MAX = 64 << 20  # of one command in a session
_ANSWER_S = 30.0  # for bash itself


class _Session:
    """One bash on a terminal. Its prompt is a word that nobody else prints."""

    def __init__(self, terminal: AsyncPtyHandle) -> None:
        self._terminal = terminal
        self._prompt = f"VOIDBOX{secrets.token_hex(16)}"
        self._text = ""

    async def begin(self, files: list[str], timeout: float) -> str:
        """Set it up, and source files; return what they print."""
        # In two halves: the terminal's echo of this line is not the prompt.
        half = len(self._prompt) // 2
        first, second = self._prompt[:half], self._prompt[half:]
        lines = [f"source {file}" for file in files]
        lines += ["stty -echo", "bind 'set enable-bracketed-paste off' 2>/dev/null"]
        lines += ["PROMPT_COMMAND=", f"PS1='{first}''{second}'", "PS2=", "PS0="]
        await self._terminal.send_input("; ".join(lines) + "\n")
        return (await self.until([], max(timeout, _ANSWER_S)))[0]

    async def run(self, action: BashAction) -> BashObservation:
        """Run a command, and find out its exit code."""
        await self._terminal.send_input(action.command + "\n")
        if action.is_interactive_command or action.is_interactive_quit:
            output, found = await self.until(action.expect, action.timeout)
            return BashObservation(
                output=output, exit_code=0 if action.is_interactive_quit else None,
                expect_string=found,
            )  # fmt: skip
        output, found = await self.until(action.expect, action.timeout)
        if action.check == "ignore":
            return BashObservation(output=output, exit_code=None, expect_string=found)
        code = await self._exit_code()
        if code is None and action.check == "raise":
            raise NoExitCodeError(f"no exit code after {action.command!r}")
        if code and action.check == "raise":
            raise NonZeroExitCodeError(
                f"Command {action.command!r} failed with exit code {code}. "
                f"{action.error_msg}. Here is the output:\n{output!r}"
            )
        return BashObservation(output=output, exit_code=code, expect_string=found)

    async def _exit_code(self) -> int | None:
        await self._terminal.send_input('echo "<$?>"\n')
        text, _ = await self.until([], _ANSWER_S)
        found = re.search(r"<([0-9]{1,3})>", text)
        return int(found[1]) if found else None

    async def interrupt(self, action: BashInterruptAction) -> BashObservation:
        """End what runs, by Ctrl-C, and where that does not help by Ctrl-\\."""
        output = ""
        for key in (_INTERRUPT,) * max(1, action.n_retry) + (_QUIT,):
            await self._terminal.send_input(key)
            try:
                text, found = await self.until(action.expect, max(action.timeout, 1.0))
            except CommandTimeoutError:
                continue
            return BashObservation(output=output + text, exit_code=0, expect_string=found)
        raise CommandTimeoutError("what runs in the session does not end by Ctrl-C")

    async def until(self, expect: list[str], timeout: float | None) -> tuple[str, str]:
        """Return what was printed before a prompt, or another text that is expected; and which.

        Raises:
            CommandTimeoutError: nothing of it came in time.
            SessionNotInitializedError: bash has ended.
        """
        words = [self._prompt, *expect]
        try:
            async with asyncio.timeout(timeout):
                while True:
                    at, word = min(
                        ((self._text.find(word), word) for word in words if word in self._text),
                        default=(-1, ""),
                    )
                    if at >= 0:
                        before, self._text = self._text[:at], self._text[at + len(word) :]
                        is_prompt = word == self._prompt
                        return _plain(before), "" if is_prompt else word
                    await self._read()
        except TimeoutError:
            shown = _plain(self._text[-1000:])
            raise CommandTimeoutError(
                f"the command did not end within {timeout} s; it printed {shown!r}"
            ) from None

    async def _read(self) -> None:
        data = await self._terminal.read()
        if data is None:
            raise SessionNotInitializedError("the session's bash has ended")
        self._text = (self._text + data.decode("utf-8", "replace"))[-_OUTPUT_BYTES_MAX:]

    async def close(self) -> None:
        await self._terminal.kill()


def _plain(text: str) -> str:
    """Return text as a file would have it: without a terminal's line ends and colors."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.replace("\r\n", "\n"))
    return text.removesuffix("\n")


class VoidboxRuntime(AbstractRuntime):
    """What SWE-ReX does in a sandbox; see AbstractRuntime."""

    def __init__(self, sandbox: AsyncSandbox, logger: logging.Logger | None = None) -> None:
        self.logger = logger or get_logger("rex-runtime")
        self.sandbox = sandbox
        self._sessions: dict[str, _Session] = {}

    async def is_alive(self, *, timeout: float | None = None) -> IsAliveResponse:
        """See AbstractRuntime."""
        if await self.sandbox.is_running():
            return IsAliveResponse(is_alive=True)
        return IsAliveResponse(is_alive=False, message="the sandbox has ended")

    async def create_session(self, request: CreateSessionRequest) -> CreateSessionResponse:
        """See AbstractRuntime."""
        if request.session in self._sessions:
            raise SessionExistsError(f"session {request.session} exists")
        terminal = await self.sandbox.pty.create(
            rows=100, cols=400, cmd=["bash", "--norc", "--noprofile"], envs={"TERM": "dumb"}
        )
        session = _Session(terminal)
        self._sessions[request.session] = session
        output = await session.begin(request.startup_source, request.startup_timeout)
        return CreateBashSessionResponse(output=output)

    async def run_in_session(self, action: Action) -> Observation:
        """See AbstractRuntime."""
        session = self._sessions.get(action.session)
        if session is None:
            raise SessionDoesNotExistError(f"session {action.session!r} does not exist")
        if isinstance(action, BashInterruptAction):
            return await session.interrupt(action)
        if not (action.is_interactive_command or action.is_interactive_quit):
            await self._check_syntax(action.command)
        return await session.run(action)

    async def _check_syntax(self, command: str) -> None:
        """Refuse what bash would wait for the rest of.

        Raises:
            BashIncorrectSyntaxError: that.
        """
        done = await self.sandbox.commands.run(["bash", "-n"], input=f"{command}\n")
        if done.exit_code:
            raise BashIncorrectSyntaxError(
                f"bash cannot read {command!r}: {done.stderr.strip()}",
                extra_info={"bash_stdout": done.stdout, "bash_stderr": done.stderr},
            )

    async def close_session(self, request: CloseSessionRequest) -> CloseSessionResponse:
        """See AbstractRuntime."""
        session = self._sessions.pop(request.session, None)
        if session is None:
            raise SessionDoesNotExistError(f"session {request.session!r} does not exist")
        await session.close()
        return CloseBashSessionResponse()

    async def execute(self, command: Command) -> CommandResponse:
        """See AbstractRuntime."""
        words: str | list[str] = command.command
        if isinstance(words, str) and not command.shell:
            words = [words]
        elif not isinstance(words, str) and command.shell:
            words = words[0]
        if command.merge_output_streams:
            line = words if isinstance(words, str) else None
            merged = ["sh", "-c", line] if line is not None else list(words)
            words = ["sh", "-c", 'exec 2>&1; exec "$@"', "sh", *merged]
        try:
            done = await self.sandbox.commands.run(
                words, cwd=command.cwd, envs=command.env, timeout=command.timeout
            )
        except CommandTimeout as error:
            raise CommandTimeoutError(str(error)) from error
        if command.check and done.exit_code:
            raise NonZeroExitCodeError(
                f"Command {command.command!r} failed with exit code {done.exit_code}. "
                f"{command.error_msg}. Stdout:\n{done.stdout}\nStderr:\n{done.stderr}"
            )
        stderr = done.stderr or done.error
        return CommandResponse(stdout=done.stdout, stderr=stderr, exit_code=done.exit_code)

    async def read_file(self, request: ReadFileRequest) -> ReadFileResponse:
        """See AbstractRuntime."""
        try:
            data = await self.sandbox.files.read(request.path, "bytes")
        except RequestFailed as error:
            if error.code == "ENOENT":
                raise FileNotFoundError(request.path) from error
            raise
        text = data.decode(request.encoding or "utf-8", request.errors or "strict")
        return ReadFileResponse(content=text)

    async def write_file(self, request: WriteFileRequest) -> WriteFileResponse:
        """See AbstractRuntime."""
        await self.sandbox.files.write(request.path, request.content)
        return WriteFileResponse()

    async def upload(self, request: UploadRequest) -> UploadResponse:
        """See AbstractRuntime."""
        await self.sandbox.files.upload(request.source_path, request.target_path)
        return UploadResponse()

    async def close(self) -> CloseResponse:
        """See AbstractRuntime."""
        for session in self._sessions.values():
            try:
                await session.close()
            except AgentError:
                break  # the sandbox has ended, and they with it
        self._sessions.clear()
        return CloseResponse()


class VoidboxDeployment(AbstractDeployment):
    """A virtual machine as SWE-ReX deploys to it.

    Args:
        pool: takes the sandbox from it, of this machine or, by voidbox.ray, of many.
        options: of AsyncSandbox.create(); of acquire() where there is a pool.
    """

    def __init__(
        self,
        *,
        pool: Giving[Any] | None = None,
        logger: logging.Logger | None = None,
        **options: Any,
    ) -> None:
        self.logger = logger or get_logger("rex-deploy")
        self._pool, self._options = pool, options
        self._runtime: VoidboxRuntime | None = None
        self._hooks = CombinedDeploymentHook()

    def add_hook(self, hook: DeploymentHook) -> None:
        """See AbstractDeployment."""
        self._hooks.add_hook(hook)

    async def is_alive(self, *, timeout: float | None = None) -> IsAliveResponse:
        """See AbstractDeployment."""
        return await self.runtime.is_alive(timeout=timeout)

    async def start(self) -> None:
        """See AbstractDeployment."""
        self._hooks.on_custom_step("Starting a virtual machine")
        sandbox: AsyncSandbox
        if self._pool is None:
            sandbox = await AsyncSandbox.create(**self._options)
        else:
            sandbox = await self._pool.acquire(options=self._options or None)  # type: ignore[arg-type]
        self._runtime = VoidboxRuntime(sandbox, self.logger)

    async def stop(self) -> None:
        """See AbstractDeployment. Idempotent."""
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            await runtime.close()
            await runtime.sandbox.kill()

    @property
    def runtime(self) -> VoidboxRuntime:
        """See AbstractDeployment."""
        if self._runtime is None:
            raise DeploymentNotStartedError
        return self._runtime

    def __del__(self) -> None:
        """Nothing is stopped here: a sandbox ends with its program, or its pool, in any case."""
