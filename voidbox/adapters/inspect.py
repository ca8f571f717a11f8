"""A SandboxEnvironment of Inspect, by the name "voidbox": each sample has a virtual machine.

    import voidbox.adapters.inspect  # registers it

    Task(..., sandbox=("voidbox", VoidboxConfig(image="python:3.12", size=8, warm=2)))

With `nodes` given, the machines are those of a Ray cluster; see voidbox.ray. A sandbox that is lost
raises SandboxLost or AgentError: it is never a command that failed.
"""

from __future__ import annotations

from typing import Any, Literal, NoReturn, overload

from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    sandboxenv,
)
from pydantic import BaseModel, ConfigDict

from voidbox.agent.call import RequestFailed
from voidbox.errors import CommandTimeout, ConfigError
from voidbox.pool.aio import AsyncPool
from voidbox.pool.giving import Giving
from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.command_result import CommandResult

_SIZE = 8
_RETRIES_S = (60, 30)  # as Inspect has it, of a command that timed out
_NOT_EXECUTABLE = 126
_ERRORS: dict[str, type[OSError]] = {
    "ENOENT": FileNotFoundError,
    "ENOTDIR": FileNotFoundError,
    "ENAMETOOLONG": FileNotFoundError,
    "EACCES": PermissionError,
    "EPERM": PermissionError,
    "EROFS": PermissionError,
    "EISDIR": IsADirectoryError,
    "EEXIST": IsADirectoryError,  # a folder is where the file was to be
}


class VoidboxConfig(BaseModel):
    """What sandboxes a task has.

    Attributes:
        size, warm: see AsyncPool; over nodes both are for each of them.
        nodes: the resource of a Ray cluster's nodes; None for this machine.
        options: more of AsyncSandbox.create()'s.
    """

    model_config = ConfigDict(frozen=True)

    image: str | None = None
    snapshot: str | None = None
    memory: str | None = None
    cpus: int | None = None
    size: int = _SIZE
    warm: int = 0
    nodes: str | None = None
    options: dict[str, Any] = {}

    def __hash__(self) -> int:  # Inspect keeps tasks' configs by it
        return hash(self.model_dump_json())

    def make_pool(self) -> Giving[Any]:
        """Return a pool of such sandboxes, not opened.

        Raises:
            ConfigError: an option makes no sense.
        """
        fields = {name: getattr(self, name) for name in ("image", "snapshot", "memory", "cpus")}
        options = {name: value for name, value in fields.items() if value is not None}
        options |= self.options
        if self.nodes is None:
            return AsyncPool(self.size, warm=self.warm, **options)
        from voidbox.ray.aio import AsyncPool as NodesPool

        return NodesPool(nodes=self.nodes, per_node=self.size, warm=self.warm, **options)


_pools: dict[str, tuple[Giving[Any], int]] = {}  # of tasks that run, and how many have each


def _config(config: BaseModel | str | None) -> VoidboxConfig:
    """Return a task's config: text is the name of an image."""
    if isinstance(config, VoidboxConfig):
        return config
    if config is None or isinstance(config, str):
        return VoidboxConfig(image=config)
    raise ConfigError(f'sandbox=("voidbox", {config!r}): give a VoidboxConfig, or an image')


@sandboxenv(name="voidbox")
class VoidboxSandboxEnvironment(SandboxEnvironment):
    """A virtual machine as Inspect uses it."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        super().__init__()
        self.sandbox = sandbox

    # A task has a pool, and each of its samples a sandbox.

    @classmethod
    def config_deserialize(cls, config: dict[str, Any]) -> BaseModel:
        """See SandboxEnvironment."""
        return VoidboxConfig(**config)

    @classmethod
    async def task_init(cls, task_name: str, config: BaseModel | str | None) -> None:
        """See SandboxEnvironment."""
        wanted = _config(config)
        key = wanted.model_dump_json()
        if key in _pools:
            pool, users = _pools[key]
            _pools[key] = pool, users + 1
            return
        pool = wanted.make_pool()
        await pool.__aenter__()
        _pools[key] = pool, 1

    @classmethod
    async def sample_init(
        cls, task_name: str, config: BaseModel | str | None, metadata: dict[str, str]
    ) -> dict[str, SandboxEnvironment]:
        """See SandboxEnvironment."""
        pool, _ = _pools[_config(config).model_dump_json()]
        return {"default": cls(await pool.acquire())}

    @classmethod
    async def sample_cleanup(
        cls,
        task_name: str,
        config: BaseModel | str | None,
        environments: dict[str, SandboxEnvironment],
        interrupted: bool,
    ) -> None:
        """See SandboxEnvironment."""
        for environment in environments.values():
            await environment.as_type(cls).sandbox.kill()

    @classmethod
    async def task_cleanup(
        cls, task_name: str, config: BaseModel | str | None, cleanup: bool
    ) -> None:
        """See SandboxEnvironment. Sandboxes end with the program in any case."""
        key = _config(config).model_dump_json()
        pool, users = _pools.pop(key)
        if users > 1:
            _pools[key] = pool, users - 1
        else:
            await pool.close()

    # A sandbox.

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """See SandboxEnvironment."""
        limits: list[int | None] = [timeout]
        if timeout is not None and timeout_retry:
            limits += [min(timeout, retry_s) for retry_s in _RETRIES_S]
        for limit in limits:
            try:
                done = await self.sandbox.commands.run(
                    cmd, cwd=cwd, envs=env, user=user, timeout=limit, input=input
                )
            except RequestFailed as error:
                if error.code in ("EACCES", "EPERM"):
                    raise PermissionError(f"{cmd[0]}: {error}") from error
                return ExecResult(False, _NOT_EXECUTABLE, "", str(error))
            except CommandTimeout:
                continue
            return _result(done, cmd[0])
        raise TimeoutError(f"{cmd[0]} ran for more than {timeout} s")

    async def write_file(self, file: str, contents: str | bytes) -> None:
        """See SandboxEnvironment."""
        try:
            await self.sandbox.files.write(file, contents)
        except RequestFailed as error:
            _raise_as(error, file)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        """See SandboxEnvironment."""
        most = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        try:
            data = await self.sandbox.files.read_part(file, 0, most + 1)
        except RequestFailed as error:
            _raise_as(error, file)
        if len(data) > most:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
        return data.decode() if text else data


def _result(done: CommandResult, program: str) -> ExecResult[str]:
    if done.exit_code == _NOT_EXECUTABLE and done.error:
        raise PermissionError(f"{program}: {done.error}")
    most = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE
    for stream in (done.stdout_bytes, done.stderr_bytes):
        if done.lost_bytes or len(stream) > most:
            raise OutputLimitExceededError(
                SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR,
                stream[:most].decode("utf-8", "replace"),
            )
    return ExecResult(done.exit_code == 0, done.exit_code, done.stdout, done.stderr or done.error)


def _raise_as(error: RequestFailed, file: str) -> NoReturn:
    """Raise Python's own error of what the guest answered."""
    type = _ERRORS.get(error.code)
    if type is None:
        raise error
    raise type(f"{file}: {error}") from error
