"""voidbox behind Ray's own sandbox API: `ray.experimental.sandbox`, of Ray 2.58 and later.

    from voidbox.adapters.ray_sandbox import VoidboxRuntime

    runtime = VoidboxRuntime()                  # in place of SandboxRuntime()
    id = runtime.create("python:3.12", memory="512Mi", network="none")
    print(runtime.exec(id, "python3 -V").stdout)

Ray's HTTP and gRPC façades take it as their SandboxHost's `runtime_factory`. What is gVisor's alone
(capabilities, OCI specs, the host's network) is refused.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from ray.experimental.sandbox.backend.base import BaseSandboxBackend, ExecResult, SandboxStatus
from ray.experimental.sandbox.config import SandboxConfig, parse_memory_bytes
from ray.experimental.sandbox.exceptions import (
    SandboxCreationError,
    SandboxExecError,
    SandboxNotFoundError,
    SandboxTimeoutError,
)
from ray.experimental.sandbox.runtime import SandboxRuntime

from voidbox.agent.call import RequestFailed
from voidbox.errors import CommandTimeout, SandboxTimeout, VoidboxError
from voidbox.sdk.creating import CreateOptions
from voidbox.sdk.sync import Sandbox

_NETWORKS = ("none", "public")
_SHELL = "/bin/bash"


class VoidboxImages:
    """What pulls images, for SandboxRuntime: into the user's store. Thread: any."""

    def pull_image(self, image: str, timeout_seconds: float = 120.0) -> str:
        """Pull an image that is not here; return its file system's path.

        Raises:
            SandboxCreationError: it cannot be had.
        """
        from voidbox import images

        try:
            try:
                return images.find(image).path
            except VoidboxError:
                return images.pull(image).path
        except VoidboxError as error:
            raise SandboxCreationError(f"{image}: {error}") from error


class VoidboxBackend(BaseSandboxBackend):
    """Sandboxes of this machine, which end with this process. Thread: any.

    Args:
        options: of Sandbox.create(), for each of them, under what a config says.
    """

    def __init__(self, image_manager: Any = None, **options: Any) -> None:
        super().__init__(image_manager or VoidboxImages())
        self._options = options
        self._lock = threading.Lock()  # covers _sandboxes
        self._sandboxes: dict[str, tuple[Sandbox, SandboxConfig]] = {}

    def create_sandbox(self, config: SandboxConfig) -> str:
        """Start one; return its ID.

        Raises:
            SandboxCreationError: it does not start, or the config is for gVisor alone.
            SandboxTimeoutError: it takes too long.
        """
        try:
            options: Any = {**_options_of(config), **self._options}
            sandbox = Sandbox.create(**options, request_timeout=config.timeout_seconds)
        except SandboxTimeout as error:
            raise SandboxTimeoutError(str(error)) from error
        except VoidboxError as error:
            raise SandboxCreationError(str(error)) from error
        with self._lock:
            self._sandboxes[sandbox.sandbox_id] = sandbox, config
        return sandbox.sandbox_id

    def delete_sandbox(self, sandbox_id: str) -> None:
        """End one; one that is not there is fine."""
        with self._lock:
            found = self._sandboxes.pop(sandbox_id, None)
        if found is not None:
            found[0].kill()

    def exec_command(
        self,
        sandbox_id: str,
        command: str | list[str],
        timeout: float | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        shell: str | None = None,
        user: str | None = None,
    ) -> ExecResult:
        """Run a command; see BaseSandboxBackend.

        Raises:
            SandboxTimeoutError: it ran for longer than `timeout`, and was ended.
            SandboxExecError: it cannot be run, or its sandbox is lost: never a result.
        """
        sandbox, config = self._find(sandbox_id)
        words = command
        if isinstance(command, str):
            words = [shell or getattr(config, "shell", None) or _SHELL, "-c", command]
        began = time.monotonic()
        try:
            done = sandbox.commands.run(words, cwd=cwd, envs=env, user=user, timeout=timeout)
        except CommandTimeout as error:
            raise SandboxTimeoutError(str(error)) from error
        except VoidboxError as error:
            raise SandboxExecError(str(error)) from error
        return ExecResult(done.exit_code, done.stdout, done.stderr, time.monotonic() - began)

    def write_file(
        self, sandbox_id: str, path: str, content: str | bytes, append: bool = False
    ) -> None:
        """Write a file, or to its end.

        Raises:
            SandboxExecError: it cannot be written.
        """
        sandbox, _ = self._find(sandbox_id)
        data = content.encode() if isinstance(content, str) else content
        try:
            if append:
                data = self._read_if_there(sandbox, path) + data
            sandbox.files.write(path, data)
        except VoidboxError as error:
            raise SandboxExecError(str(error)) from error

    def _read_if_there(self, sandbox: Sandbox, path: str) -> bytes:
        try:
            return sandbox.files.read(path, "bytes")
        except RequestFailed as error:
            if error.code != "ENOENT":
                raise
            return b""

    def read_file(self, sandbox_id: str, path: str) -> bytes:
        """Return what is in a file.

        Raises:
            SandboxExecError: it cannot be read.
        """
        sandbox, _ = self._find(sandbox_id)
        try:
            return sandbox.files.read(path, "bytes")
        except VoidboxError as error:
            raise SandboxExecError(str(error)) from error

    def get_status(self, sandbox_id: str) -> SandboxStatus:
        """Return how one is; see BaseSandboxBackend."""
        sandbox, _ = self._find(sandbox_id)
        state = sandbox.get_info().state
        if state == "creating":
            return SandboxStatus.PENDING
        if state == "crashed":
            return SandboxStatus.ERROR
        return SandboxStatus.RUNNING if sandbox.is_running() else SandboxStatus.TERMINATED

    def _find(self, sandbox_id: str) -> tuple[Sandbox, SandboxConfig]:
        with self._lock:
            found = self._sandboxes.get(sandbox_id)
        if found is None:
            raise SandboxNotFoundError(f"there is no sandbox {sandbox_id}, or not any more")
        return found


class VoidboxRuntime(SandboxRuntime):
    """SandboxRuntime with virtual machines in gVisor's place.

    Args:
        options: of Sandbox.create(), for each sandbox.
    """

    def __init__(self, **options: Any) -> None:
        # Its own names no other backend: what its methods use is set here instead.
        self._image_manager = VoidboxImages()
        self._backend = VoidboxBackend(self._image_manager, **options)
        self._ttl_timers: dict[str, threading.Timer] = {}


def _options_of(config: SandboxConfig) -> CreateOptions:
    if config.network not in _NETWORKS:
        raise SandboxCreationError(
            f"network={config.network!r}: a virtual machine has none or its own: choose "
            f"{' or '.join(_NETWORKS)}"
        )
    for name in ("capabilities", "_oci_spec_transform_fn"):
        if getattr(config, name, None) is not None:
            raise SandboxCreationError(f"{name} is gVisor's: a virtual machine has no use for it")
    options = CreateOptions(
        image=config.image,
        envs=dict(config.env),
        workdir=config.workdir,
        block_network=config.network == "none",
    )
    if memory := parse_memory_bytes(config.memory):
        options["memory"] = max(1, int(memory) >> 20)
    if config.cpu:
        options["cpus"] = max(1, round(config.cpu))
        options["cpu_limit"] = float(config.cpu)
    return options
