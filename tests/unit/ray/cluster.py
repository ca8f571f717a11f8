"""A Ray cluster of two nodes in this machine's processes, few and small, on its own addresses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

STORE_BYTES = 100 << 20
# Nothing leaves this machine, and nothing that the tests do not need is started.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_DEDUP_LOGS": "0",
}


@contextlib.contextmanager
def started(nodes: int = 2, kvm: int = 8) -> Iterator[Any]:
    """A cluster: a head that has no sandboxes, and nodes that announce kvm; connected."""
    os.environ.update(_ENVIRONMENT)
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
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
