"""What needs no Ray: where it is not, and what is chosen and counted without it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from ipaddress import IPv4Address
from typing import NamedTuple

import pytest

from tests.unit.sandbox.states import ROOT
from voidbox.errors import CommandFailed, PoolFull, SandboxLost
from voidbox.ray import announcing
from voidbox.ray.placement import choose
from voidbox.sdk.command_result import CommandResult

PROGRAM = """
import sys
class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
sys.meta_path.insert(0, NoRay())
import voidbox, voidbox.ray
voidbox.Pool, voidbox.AsyncSandbox, voidbox.SandboxLost, voidbox.ray.SandboxLost
for name in ("Pool", "AsyncPool"):
    try:
        getattr(voidbox.ray, name)
    except voidbox.ConfigError as error:
        print(error)
"""


def test_without_ray_one_line_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    line = "voidbox.ray needs Ray: pip install 'voidbox-kvm[ray]'"
    assert done.stdout.splitlines() == [line, line]


def test_nothing_of_ray_is_imported_by_voidbox() -> None:
    program = (
        "import sys, voidbox, voidbox.ray, voidbox.cli.ray_node, voidbox.cli.pool;"
        "voidbox.Pool, voidbox.AsyncSandbox;"
        "print([name for name in sys.modules if name.partition('.')[0] == 'ray'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_errors_can_be_sent() -> None:
    lost = pickle.loads(pickle.dumps(SandboxLost("why", "node")))
    assert (str(lost), lost.reason) == ("why", "node")
    assert pickle.loads(pickle.dumps(PoolFull("full", 2.5))).retry_after == 2.5
    failed = pickle.loads(pickle.dumps(CommandFailed("it failed", CommandResult(3))))
    assert failed.result.exit_code == 3


class Node(NamedTuple):
    fullness: float
    has: bool = True


def test_a_node_is_chosen() -> None:
    def of(nodes: list[Node]) -> Node | None:
        return choose(nodes, lambda node: node.has, lambda among, count: list(among)[:count])

    assert of([]) is None
    assert of([Node(0.5), Node(0.2), Node(0.0)]) == Node(0.2), "two are looked at, not all"
    assert of([Node(0.1, False), Node(0.9)]) == Node(0.9), "what it has counts more"
    assert of([Node(0.1, False), Node(1.0)]) == Node(0.1, False), "but not when it is full"
    assert of([Node(1.5), Node(1.2)]) == Node(1.2), "all full: the one with the shortest queue"


def test_choosing_spreads() -> None:
    used = [0] * 20
    for _ in range(2000):
        used[_chosen(used)] += 1
    assert max(used) - min(used) < 20


class Indexed(NamedTuple):
    index_of: int
    fullness: float


def _chosen(used: list[int]) -> int:
    found = choose([Indexed(n, count / 200) for n, count in enumerate(used)], lambda node: True)
    assert found is not None
    return found.index_of


def test_wishes_are_added_up_and_forgotten() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: make test-ray does that")
    from voidbox.ray.demand import FORGET_S, Wishes

    now = [0.0]
    wishes = Wishes(lambda: now[0])
    wishes.put("a", "kvm", 2)
    wishes.put("b", "kvm", 1)
    wishes.put("c", "gpu", 1)
    assert wishes.bundles() == [{"kvm": 1.0}] * 3 + [{"gpu": 1.0}]
    wishes.put("c", "gpu", 0)
    now[0] = FORGET_S - 1
    wishes.put("b", "kvm", 2)
    now[0] = FORGET_S + 1  # nobody has heard of a since
    assert wishes.bundles() == [{"kvm": 1.0}] * 2
    assert not wishes.is_idle()
    now[0] += 10_000
    assert wishes.bundles() == []
    assert wishes.is_idle()


def test_guests_do_not_reach_the_cluster() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: make test-ray does that")
    from voidbox.net.policy import Policy
    from voidbox.ray.nodes import without_cluster
    from voidbox.sdk.draft import make_net

    addresses = ["10.0.0.2", "10.0.0.1", "fd00::1"]
    closed = without_cluster({"deny": ["10.9.0.0/16"]}, addresses)
    assert closed["deny"] == ["10.9.0.0/16", "10.0.0.1", "10.0.0.2"]
    for options in ({"block_network": True}, {"snapshot": "prepared"}):
        assert without_cluster(options, addresses) == options  # type: ignore[arg-type]
    rest = dict.fromkeys(
        (
            "allow",
            "allow_host_ports",
            "publish",
            "rate_bytes_s",
            "pcap",
            "outbound_domain_allowlist",
        )
    )
    net = make_net(deny=closed["deny"], block_network=False, **rest)  # type: ignore[arg-type]
    assert net is not None
    policy = Policy(deny=net["deny"])  # type: ignore[arg-type]
    for address, is_open in (("10.0.0.1", False), ("10.0.0.2", False), ("10.0.0.3", True)):
        verdict = policy.check("tcp", int(IPv4Address(address)), 6379, 0)
        assert verdict[0] is is_open, address


def test_what_a_node_announces() -> None:
    small = announcing.announce(512 << 20, 64 << 30)
    assert 90 < small.slots < 110
    assert announcing.announce(512 << 20, 1 << 30).problems[0].startswith("not one guest")
    line = announcing.command(100, "10.0.0.1:6379")
    assert "--address=10.0.0.1:6379" in line
    assert '--resources={"kvm": 100}' in line.replace("'", "")
    assert "--head" in announcing.command(100, None)


@pytest.mark.parametrize("words", [["--address", "nowhere"], ["--slots", "none"]])
def test_wrong_words(words: list[str]) -> None:
    from voidbox.cli import ray_node
    from voidbox.errors import ConfigError

    with pytest.raises(ConfigError):
        ray_node.main(words)
