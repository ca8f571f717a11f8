"""Containers inside a guest: Docker and Podman, from an archive and from a registry of the host's.

And what engines stand on, each alone: networks, rules, loop devices, file systems in user space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.disk_images import containers_image
from tests.unit.images.oci import OciImage, make_image, saved_by_docker
from tests.unit.images.real_registry import PROGRAM, Running, real_registry
from voidbox import Sandbox

pytestmark = pytest.mark.boot

BOOT_S = 300
STORAGE = """\
[storage]
driver = "overlay"
[storage.options.overlay]
mount_program = "/usr/bin/fuse-overlayfs"
"""
GATEWAY = "10.0.2.2"  # the host's loopback, for the ports that it opens


class Place(NamedTuple):
    """A guest with engines, and the host's registry; `pulled` is what the registry has."""

    sandbox: Sandbox
    registry: Running
    pulled: str

    def out(self, line: str, timeout: float = BOOT_S) -> str:
        result = self.sandbox.commands.run(line, timeout=timeout)
        assert result.exit_code == 0, (line, result)
        return str(result.stdout)


def busybox() -> OciImage:
    return make_image({"bin/": b"", "bin/busybox": Path("/bin/busybox").read_bytes()})


@pytest.fixture(
    scope="module", params=[(kernel, cpus) for kernel in ("minimal", "cloud") for cpus in (1, 2)]
)
def place(
    kernels: dict[str, str],
    guest_images: dict[str, str],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    assert guest_images
    if not PROGRAM.exists():
        pytest.skip("needs a registry: scripts/fetch_registry.sh")
    kernel, cpus = request.param
    with real_registry(tmp_path_factory.mktemp("registry")) as registry:
        registry.push(busybox(), "1", repository="box")
        port = int(registry.address.rpartition(":")[2])
        with Sandbox.create(
            kernel=kernels[kernel],
            image=containers_image(),
            cpus=cpus,
            memory="768M",
            disk_size="2G",
            allow_host_ports=[port],
            timeout=1500,
            request_timeout=BOOT_S,
        ) as sandbox:
            sandbox.files.write("/box.tar", saved_by_docker(busybox(), "box:saved"))
            sandbox.files.write("/usr/local/bin/busybox", Path("/bin/busybox").read_bytes())
            sandbox.commands.run("chmod 755 /usr/local/bin/busybox")
            yield Place(sandbox, registry, f"{GATEWAY}:{port}/box:1")


@pytest.fixture(scope="module")
def docker(place: Place) -> Place:
    address = place.pulled.partition("/")[0]
    config = {"insecure-registries": [address], "features": {"containerd-snapshotter": False}}
    place.sandbox.files.write("/etc/docker/daemon.json", json.dumps(config))
    place.sandbox.commands.run("dockerd >/var/log/dockerd 2>&1", background=True)
    line = "until docker info >/dev/null 2>&1; do kill -0 $(pidof dockerd) || exit 9; sleep 1; done"
    found = place.sandbox.commands.run(line, timeout=BOOT_S)
    assert found.exit_code == 0, place.sandbox.files.read("/var/log/dockerd")
    return place


def test_docker_stores_on_the_disk_itself_with_cgroups_of_version_2(docker: Place) -> None:
    line = "docker info -f '{{.Driver}} {{.CgroupVersion}} {{.CgroupDriver}}'"
    assert docker.out(line) == "overlay2 2 cgroupfs\n"


def test_docker_runs_what_was_loaded(docker: Place) -> None:
    assert "box:saved" in docker.out("docker load -q -i /box.tar")
    run = "docker run --rm -m 64m --pids-limit 50 box:saved busybox"
    assert docker.out(f"{run} cat /sys/fs/cgroup/memory.max") == f"{64 << 20}\n"
    assert docker.out(f"{run} id -u") == "0\n"
    found = docker.sandbox.commands.run(f"{run} sh -c 'exit 7'")
    assert found.exit_code == 7


def test_docker_pulls_from_the_host_and_its_bridge_leads_out(docker: Place) -> None:
    docker.out(f"docker pull -q {docker.pulled}")
    address = docker.pulled.partition("/")[0]
    line = f"docker run --rm {docker.pulled} busybox wget -q -O - http://{address}/v2/_catalog"
    assert json.loads(docker.out(line)) == {"repositories": ["box"]}


def test_docker_publishes_a_port(docker: Place) -> None:
    docker.out("docker load -q -i /box.tar")
    serve = "echo from inside >/index.html; busybox httpd -f -p 80 -h /"
    docker.out(f"docker run -d --name web -p 8080:80 box:saved busybox sh -c '{serve}'")
    line = "until wget -q -O - http://127.0.0.1:8080/index.html; do sleep 1; done"
    assert docker.out(line, timeout=60) == "from inside\n"
    docker.out("docker rm -f web")


def test_podman_runs_what_was_loaded_and_pulled(place: Place) -> None:
    store = place.out("podman info -f '{{.Store.GraphDriverName}} {{.Host.CgroupsVersion}}'")
    assert store == "overlay v2\n"
    place.out("podman load -q -i /box.tar")
    run = "podman run --rm --memory 64m localhost/box:saved busybox"
    assert place.out(f"{run} cat /sys/fs/cgroup/memory.max") == f"{64 << 20}\n"
    place.out(f"podman pull -q --tls-verify=false {place.pulled}")
    address = place.pulled.partition("/")[0]
    line = f"podman run --rm {place.pulled} busybox wget -q -O - http://{address}/v2/_catalog"
    assert json.loads(place.out(line)) == {"repositories": ["box"]}


def test_podman_without_root_by_fuse_overlayfs(place: Place) -> None:
    place.out(
        "id agent 2>/dev/null || useradd -m -s /bin/sh agent; "
        "install -d -o agent -m 700 /run/user/$(id -u agent)"
    )
    environment = 'export HOME=/home/agent XDG_RUNTIME_DIR=/run/user/$(id -u); cd "$HOME";'

    def out(line: str) -> str:
        result = place.sandbox.commands.run(environment + line, user="agent", timeout=BOOT_S)
        assert result.exit_code == 0, (line, result)
        return str(result.stdout)

    # A home is a folder of an overlay, to which the kernel's own overlay cannot write.
    place.sandbox.files.write("/home/agent/.config/containers/storage.conf", STORAGE)
    place.out("chown -R agent /home/agent")
    out("podman load -q -i /box.tar")
    assert "fuse-overlayfs" in out("podman info")
    # slirp4netns has this guest's addresses by default: its own gateway would be the host's.
    network = "--network slirp4netns:cidr=10.41.0.0/24"
    run = f"podman run --rm --cgroups=disabled {network} localhost/box:saved busybox"
    assert out(f"{run} id -u") == "0\n"
    address = place.pulled.partition("/")[0]
    assert "box" in out(f"{run} wget -q -O - http://{address}/v2/_catalog")  # by slirp4netns


def test_a_loop_device_is_mounted(place: Place) -> None:
    place.out("truncate -s 16M /disk.img; mkfs.ext4 -q -F /disk.img; mkdir -p /mnt/loop")
    place.out("mount -o loop /disk.img /mnt/loop; echo kept >/mnt/loop/file; umount /mnt/loop")
    assert place.out("mount -o loop,ro /disk.img /mnt/loop; cat /mnt/loop/file") == "kept\n"
    place.out("umount /mnt/loop")


def test_taps_bridges_and_veths(place: Place) -> None:
    place.out("ip tuntap add dev tap7 mode tap; ip link set tap7 up; ip link del tap7")
    place.out(
        "ip netns add far; ip link add br7 type bridge; ip addr add 192.168.77.1/24 dev br7; "
        "ip link set br7 up; ip link add near type veth peer name eth0 netns far; "
        "ip link set near master br7 up; ip -n far addr add 192.168.77.2/24 dev eth0; "
        "ip -n far link set eth0 up"
    )
    assert "near" in place.out("ip -o link show master br7")
    assert "1 packets received" in place.out("busybox ping -c 1 -W 60 192.168.77.2")
    place.out("ip netns del far; ip link del br7")


def test_rules_of_nft_and_of_iptables(place: Place) -> None:
    place.out(
        "nft add table inet t; nft add chain inet t out '{ type filter hook output priority 0; }'"
    )
    place.out(
        "nft add rule inet t out ip daddr 127.0.0.9 tcp dport 7 counter reject with tcp reset"
    )
    assert "reject with tcp reset" in place.out("nft list ruleset")
    found = place.sandbox.commands.run("wget -T 20 -t 1 -O - http://127.0.0.9:7/")
    assert "refused" in found.stderr
    assert "counter packets 1 " in place.out("nft list table inet t")
    place.out("nft delete table inet t")
    place.out("iptables -t nat -A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE")
    place.out("iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
    place.out("ip6tables -A INPUT -p tcp --dport 9 -m comment --comment c -j REJECT")
    assert "MASQUERADE" in place.out("iptables -t nat -S POSTROUTING")
    place.out("iptables -A OUTPUT -m owner --uid-owner 7 -m limit --limit 5/s -j REJECT")
    assert "-j REJECT" in place.out("ip6tables -S INPUT")
