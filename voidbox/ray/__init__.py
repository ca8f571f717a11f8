"""Sandboxes of many machines, by Ray.

    import ray, voidbox.ray

    ray.init()
    with voidbox.ray.Pool(image="python:3.12", warm=4) as pool:
        print(pool.run_near(lambda sandbox: sandbox.commands.run("uname -n").stdout))

aio, sync            AsyncPool, Pool: the nodes of a cluster as one pool
nodes, members       the nodes that there are; one of them, as a pool has it
placement, retrying  which is chosen; what begins again
copying, spreading   images and snapshots from node to node
demand, announcing   what a cluster that grows is told; what a machine announces
remote, ticket       a sandbox as its holder has it
carrier, calls       the way to it: by sockets, by calls of its node's actor
answers              what a node answers, and refuses with
node, held           a node: a pool, its holders, their leases, and what they may ask for
gateway, joining, tls   a node's port
actor, surroundings  a node as Ray's actor
rollouts, runner, holding, functions   rollouts on their sandboxes' nodes

Names are looked up when they are first used (PEP 562), and Ray is imported then.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it
if TYPE_CHECKING:
    from voidbox.errors import SandboxLost
    from voidbox.ray.aio import AsyncPool
    from voidbox.ray.remote import RemoteSandbox
    from voidbox.ray.sync import Pool

# Name to the module that it is in.
_MODULES = {
    "AsyncPool": "voidbox.ray.aio",
    "Pool": "voidbox.ray.sync",
    "RemoteSandbox": "voidbox.ray.remote",
    "SandboxLost": "voidbox.errors",
}

__all__ = ["AsyncPool", "Pool", "RemoteSandbox", "SandboxLost"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        from voidbox.errors import ConfigError

        raise ConfigError("voidbox.ray needs Ray: pip install 'voidbox-kvm[ray]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
