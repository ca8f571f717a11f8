"""A Ray cluster whose autoscaler acts, on this machine: nodes are processes, by Ray's own provider.

Ray's AutoscalingCluster first ends all that is Ray's on the machine; this one ends its own alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from tests.unit.ray.cluster import ENVIRONMENT, STORE_BYTES

_NODES_MAX = 2
_WAIT_S = 180.0
_COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
)


def _config(address: str, resources: dict[str, int], idle_s: float) -> dict[str, Any]:
    head = "ray.head.default"
    return {
        "cluster_name": "grown",
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,  # of nodes that have one address
            "disable_node_updaters": True,  # of nodes that no SSH reaches
            "disable_launch_config_check": True,
        },
        "max_workers": _NODES_MAX,
        "upscaling_speed": 10,
        "idle_timeout_minutes": idle_s / 60,
        "head_node_type": head,
        "available_node_types": {
            head: {"resources": {}, "node_config": {}, "max_workers": 0},
            "grown": {
                "resources": {**resources, "CPU": 0, "object_store_memory": STORE_BYTES},
                "node_config": {},
                "max_workers": _NODES_MAX,
            },
        },
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in _COMMANDS},
    }


@contextlib.contextmanager
def growing(resources: dict[str, int], idle_s: float = 3.0) -> Iterator[str]:
    """A head alone; nodes with these resources come when they are wanted. Returns its address.

    Args:
        idle_s: so long the autoscaler leaves a node that nobody uses.
    """
    with tempfile.TemporaryDirectory(prefix="vbr") as folder:
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        # Ray looks for a head of this machine where it takes itself to be, whatever it is told.
        address = f"{ray.util.get_node_ip_address()}:{port}"
        Path(folder, "cluster.json").write_text(json.dumps(_config(address, resources, idle_s)))
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_FAKE_CLUSTER": "1",
            ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: str(int(ray_constants.ENABLE_RAY_CLUSTER)),
        }
        words = [
            "start", "--head", "--block", f"--port={port}",
            f"--autoscaling-config={folder}/cluster.json", f"--temp-dir={folder}/ray",
            f"--object-store-memory={STORE_BYTES}", "--num-cpus=0", "--include-dashboard=false",
            "--min-worker-port=0", "--max-worker-port=0",
            "--disable-usage-stats",
        ]  # fmt: skip
        with open(f"{folder}/log", "wb") as log:
            head = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *words],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            _wait_for(head, port, Path(folder, "log"))
            yield address
        finally:
            _end(head)


def _wait_for(head: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _WAIT_S
    while "Ray runtime started" not in log.read_text():
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _end(head: subprocess.Popen[bytes]) -> None:
    """End what it has started, too: the autoscaler's nodes are not its own to end."""
    started = _family(head.pid)[1:]
    head.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(30)
    for pid in (head.pid, *started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    head.wait()


def _family(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return [pid]
    return [pid, *(each for child in text.split() for each in _family(int(child)))]
