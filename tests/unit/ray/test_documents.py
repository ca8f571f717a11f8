"""The cluster files of docs/ray.md, as far as can be seen without such clusters."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: make test-ray does that")

from tests.unit.sandbox.states import ROOT


@pytest.fixture(scope="module")
def files() -> dict[str, dict[str, Any]]:
    """Each by its kind; that of `ray up` has none."""
    import yaml  # which Ray needs

    text = (ROOT / "docs/ray.md").read_text()
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    return {one.get("kind", "ray up"): one for one in found}


def test_the_cluster_file_is_what_ray_takes(files: dict[str, dict[str, Any]]) -> None:
    from ray.autoscaler._private.local.config import bootstrap_local
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole = prepare_config(files["ray up"])
    validate_config(whole)
    (node_type,) = bootstrap_local(whole)["available_node_types"].values()
    assert node_type["max_workers"] == 2
    assert "voidbox ray-node --address $RAY_HEAD_IP:" in whole["worker_start_ray_commands"][-1]


def test_kuberay_s_workers_announce_what_they_have(files: dict[str, dict[str, Any]]) -> None:
    (group,) = files["RayCluster"]["spec"]["workerGroupSpecs"]
    # What ray.io_rayclusters.yaml requires of a group, and what that is when KubeRay writes it out.
    assert {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= set(group)
    resources = json.loads(json.loads(group["rayStartParams"]["resources"].strip("'")))
    assert resources["kvm"] > 0
    (container,) = group["template"]["spec"]["containers"]
    (device,) = [name for name in container["resources"]["limits"] if "kvm" in name]

    daemon = files["DaemonSet"]["spec"]
    labels = daemon["template"]["metadata"]["labels"]
    assert labels == daemon["selector"]["matchLabels"]
    options = dict(
        word.removeprefix("--").split("=", 1)
        for word in daemon["template"]["spec"]["containers"][0]["args"]
    )
    offered = json.loads(options["device"])
    assert f"{options['domain']}/{offered['name']}" == device
    assert offered["groups"] == [{"paths": [{"path": "/dev/kvm"}]}]
