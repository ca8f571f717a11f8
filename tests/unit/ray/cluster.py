"""A Ray cluster of two nodes in this machine's processes, few and small, on its own addresses."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.unit.agent.conftest import USER

STORE_BYTES = 100 << 20
_NATIVE_PATIENCE_S = 300.0
# Nothing leaves this machine, and nothing that the tests do not need is started.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_worker_niceness": "0",  # on a busy machine those that tests wait for would get nothing
    "RAY_DEDUP_LOGS": "0",
}


# Where processors are emulated, nothing of Ray's is as fast as it expects of itself.
_PATIENCE = {
    "RAY_gcs_server_request_timeout_seconds": "{s}",
    "RAY_gcs_server_port_wait_time_s": "{s}",
    "RAY_gcs_rpc_server_connect_timeout_s": "{s}",
    "RAY_worker_register_timeout_seconds": "{s}",
    "RAY_agent_register_timeout_ms": "{s}000",
    "RAY_health_check_timeout_ms": "{s}000",
    "RAY_health_check_initial_delay_ms": "{s}000",
}


def _agents_ports() -> dict[str, int]:
    """Ports for a node's agents: a raylet that has not heard of theirs in 15 s ends."""
    names = [f"{name}_port" for name in ("metrics_agent", "metrics_export", "runtime_env_agent")]
    names.append("dashboard_agent_listen_port")
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("", 0))) for _ in names]
        return {name: one.getsockname()[1] for name, one in zip(names, free, strict=True)}


def _told_of_agents(start_raylet: Callable[..., Any]) -> Callable[..., Any]:
    """Have a raylet find its dashboard agent's port, which nobody tells it, before that listens."""
    raylet: Any = importlib.import_module("ray._raylet")
    name = raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME

    def start(*arguments: Any, **named: Any) -> Any:
        given = inspect.signature(start_raylet).bind(*arguments, **named).arguments
        port = given["dashboard_agent_listen_port"]
        raylet.persist_port(given["session_dir"], given["node_id"], name, port)
        return start_raylet(*arguments, **named)

    return start


def _be_frugal(services: Any) -> dict[str, Any]:
    """Have Ray start only what its actors need; return what its head is told, too.

    Each of its processes in Python costs a second of a processor's, or 20 s of an emulated one's.
    """
    services.start_raylet = _told_of_agents(services.start_raylet)
    services.start_api_server = lambda *_, **__: (None, None)  # whatever include_dashboard says
    return {"wait": False, "no_monitor": True, "include_log_monitor": False, **_agents_ports()}


def _patient(get_node: Callable[..., Any], patience_s: float) -> Callable[..., Any]:
    def get(*arguments: Any) -> Any:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    return get


@contextlib.contextmanager
def started(
    nodes: int = 2,
    kvm: int = 8,
    head: dict[str, int] | None = None,
    patience_s: float | None = None,
) -> Iterator[Any]:
    """A cluster: a head, and nodes that announce kvm; connected.

    Args:
        head: what the head announces; by default it has no sandboxes.
        patience_s: how long each step of it may take, where Ray's own limits are too short.
    """
    os.environ.update(ENVIRONMENT)
    if patience_s is not None:
        os.environ.update(
            {name: text.format(s=int(patience_s)) for name, text in _PATIENCE.items()}
        )
    import ray
    from ray._private import services
    from ray.cluster_utils import Cluster

    # Ray gives a raylet 30 s to be known, whatever it is told: too short for a busy machine, too.
    services.get_node = _patient(services.get_node, patience_s or _NATIVE_PATIENCE_S)
    slow: dict[str, Any] = {}
    if patience_s is not None:
        slow = _be_frugal(services)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "resources": head or {},
            **slow,
        },
    )
    try:
        for _ in range(nodes):
            add_node(cluster, kvm)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Any, kvm: int = 8, resources: dict[str, int] | None = None) -> Any:
    """Start one more node, which announces kvm, or other resources."""
    return cluster.add_node(
        num_cpus=0, resources=resources or {"kvm": kvm}, object_store_memory=STORE_BYTES, wait=True
    )


def of_stand_ins(folder: Path) -> dict[str, Any]:
    """Return what pools are given of whose sandboxes only the machine is missing."""
    return {
        "kernel": str(folder / "kernel"),
        "image": str(folder / "image"),
        "user": USER,
        "workdir": str(folder / "work"),
        "memory": "64M",
        "block_network": True,
        "host_memory": None,
        "jail": "off",
        "state_folder": str(folder / "state"),
    }
