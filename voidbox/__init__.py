"""voidbox: a KVM virtual machine monitor in Python alone, and the sandbox built on it.

    from voidbox import Sandbox

    with Sandbox.create() as sandbox:
        print(sandbox.commands.run("uname -a").stdout)

Names are looked up when they are first used (PEP 562): importing voidbox alone costs nothing.
"""

from __future__ import annotations

from voidbox.version import __version__

TYPE_CHECKING = False  # as type checkers know it; importing typing would cost more than all of this
if TYPE_CHECKING:
    from voidbox import images
    from voidbox.agent.call import RequestFailed
    from voidbox.errors import (
        AgentError,
        CommandFailed,
        CommandTimeout,
        ConfigError,
        GuestError,
        HostError,
        PoolFull,
        SandboxLost,
        SandboxTimeout,
        VoidboxError,
    )
    from voidbox.pool.aio import AsyncPool
    from voidbox.pool.stats import PoolStats
    from voidbox.pool.sync import Pool
    from voidbox.sandbox.ports import PublishedPort
    from voidbox.sandbox.transfer.listing import FileInfo
    from voidbox.sandbox.transfer.transfer import TransferResult
    from voidbox.sdk import volumes
    from voidbox.sdk.aio import AsyncSandbox
    from voidbox.sdk.command_result import CommandResult, Output
    from voidbox.sdk.commands import CommandInfo
    from voidbox.sdk.info import SandboxInfo, SandboxMetrics
    from voidbox.sdk.secrets import SecretInfo
    from voidbox.sdk.snapshots import SnapshotInfo
    from voidbox.sdk.sync import Sandbox
    from voidbox.sdk.watch import FileEvent
    from voidbox.sdk.zygotes import zygote
    from voidbox.secrets.spec import Secret

# Rooms that users see as modules of voidbox itself.
_ROOMS = {"images": "voidbox.images", "volumes": "voidbox.sdk.volumes"}
# Name to the module that it is in.
_MODULES = {
    "AsyncPool": "voidbox.pool.aio",
    "zygote": "voidbox.sdk.zygotes",
    "AsyncSandbox": "voidbox.sdk.aio",
    "Pool": "voidbox.pool.sync",
    "PoolFull": "voidbox.errors",
    "PoolStats": "voidbox.pool.stats",
    "Sandbox": "voidbox.sdk.sync",
    "CommandInfo": "voidbox.sdk.commands",
    "CommandResult": "voidbox.sdk.command_result",
    "Output": "voidbox.sdk.command_result",
    "FileEvent": "voidbox.sdk.watch",
    "FileInfo": "voidbox.sandbox.transfer.listing",
    "TransferResult": "voidbox.sandbox.transfer.transfer",
    "SandboxInfo": "voidbox.sdk.info",
    "SandboxMetrics": "voidbox.sdk.info",
    "SnapshotInfo": "voidbox.sdk.snapshots",
    "PublishedPort": "voidbox.sandbox.ports",
    "RequestFailed": "voidbox.agent.call",
    "Secret": "voidbox.secrets.spec",
    "SecretInfo": "voidbox.sdk.secrets",
    "AgentError": "voidbox.errors",
    "CommandFailed": "voidbox.errors",
    "CommandTimeout": "voidbox.errors",
    "ConfigError": "voidbox.errors",
    "GuestError": "voidbox.errors",
    "HostError": "voidbox.errors",
    "SandboxLost": "voidbox.errors",
    "SandboxTimeout": "voidbox.errors",
    "VoidboxError": "voidbox.errors",
}

__all__ = [
    "AgentError",
    "AsyncPool",
    "AsyncSandbox",
    "CommandFailed",
    "CommandInfo",
    "CommandResult",
    "CommandTimeout",
    "ConfigError",
    "FileEvent",
    "FileInfo",
    "GuestError",
    "HostError",
    "Output",
    "Pool",
    "PoolFull",
    "PoolStats",
    "PublishedPort",
    "RequestFailed",
    "Sandbox",
    "SandboxInfo",
    "SandboxLost",
    "SandboxMetrics",
    "SandboxTimeout",
    "Secret",
    "SecretInfo",
    "SnapshotInfo",
    "TransferResult",
    "VoidboxError",
    "__version__",
    "images",
    "volumes",
    "zygote",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES and name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in _ROOMS:
        return import_module(_ROOMS[name])
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_ROOMS})
