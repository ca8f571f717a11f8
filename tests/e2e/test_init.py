"""Images with an init of their own, in real guests: it is PID 1, the agent is beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.disk_images import init_image
from voidbox import AgentError, CommandTimeout, Sandbox

pytestmark = pytest.mark.boot

KERNELS = ["minimal", "cloud"]
BOOT_S = 300


def create(kernels: dict[str, str], kernel: str, image: str, init: str, **values: Any) -> Sandbox:
    return Sandbox.create(
        kernel=kernels[kernel],
        image=init_image(image),
        init=init,
        memory="512M",
        timeout=900,
        request_timeout=BOOT_S,
        cold=True,
        **values,
    )


def out(sandbox: Sandbox, line: str, **options: Any) -> str:
    result = sandbox.commands.run(line, **options)
    assert (result.exit_code, result.stderr) == (0, ""), (line, result)
    return str(result.stdout)


def await_systemd(sandbox: Sandbox) -> None:
    """Wait until all services have been started, and check that none has failed."""
    line = "until systemctl is-system-running --wait | grep -qx -e running -e degraded"
    out(sandbox, f"{line}; do sleep 0.5; done 2>/dev/null", timeout=BOOT_S)
    assert out(sandbox, "systemctl --failed --plain --no-legend") == ""


@pytest.fixture(scope="module", params=KERNELS)
def systemd(
    kernels: dict[str, str], guest_images: dict[str, str], request: pytest.FixtureRequest
) -> Iterator[Sandbox]:
    assert guest_images
    with create(kernels, request.param, "systemd", "/sbin/init") as sandbox:
        await_systemd(sandbox)
        yield sandbox


def test_systemd_runs_services_and_keeps_a_journal(systemd: Sandbox) -> None:
    assert out(systemd, "ps -o comm= -p 1; id -u") == "systemd\n0\n"
    unit = "[Service]\nExecStart=/bin/sh -c 'echo it runs; exec sleep 1000'\n"
    systemd.files.write("/etc/systemd/system/job.service", unit)
    out(systemd, "systemctl daemon-reload; systemctl start job")
    assert out(systemd, "systemctl is-active job") == "active\n"
    line = "until journalctl -u job -o cat | grep -x 'it runs'; do sleep 0.2; done"
    assert out(systemd, line, timeout=60) == "it runs\n"
    assert out(systemd, "hostname") == "voidbox\n"
    out(systemd, "systemctl stop job")
    assert systemd.commands.run("systemctl is-active job").stdout == "inactive\n"


def test_beside_systemd_the_agent_does_what_it_ever_does(systemd: Sandbox) -> None:
    """Commands are in the agent's cgroup, files, users and time limits work; a terminal, too."""
    assert out(systemd, "grep ^0:: /proc/self/cgroup") == "0::/voidbox/agent\n"
    assert out(systemd, "id -u; pwd", user="nobody", cwd="/").splitlines() == ["65534", "/"]
    with pytest.raises(CommandTimeout):
        systemd.commands.run("setsid sleep 1000 & sleep 1000", timeout=1)
    assert systemd.commands.run("pgrep -x sleep").exit_code == 1
    with systemd.pty.create() as terminal:
        terminal.send_input("tty; exit\n")
        assert terminal.wait(timeout=60).exit_code == 0
    assert "0::/init.scope" in out(systemd, "cat /proc/1/cgroup")


def test_stop_is_a_shutdown_by_systemd(kernels: dict[str, str], guest_images: object) -> None:
    with create(kernels, "minimal", "systemd", "/lib/systemd/systemd", keep=True) as sandbox:
        await_systemd(sandbox)
        unit = "[Service]\nExecStart=sleep 1000\nExecStop=sh -c 'echo its end >/dev/console'\n"
        sandbox.files.write("/etc/systemd/system/job.service", unit)
        out(sandbox, "systemctl daemon-reload; systemctl start job")
        sandbox.stop(timeout=120)
        console = "\n".join(sandbox.logs())
        assert "its end" in console and "reboot: Power down" in console


@pytest.mark.parametrize("kernel", KERNELS)
def test_openrc_reaches_its_run_level(
    kernels: dict[str, str], guest_images: object, kernel: str
) -> None:
    with create(kernels, kernel, "openrc", "/sbin/init") as sandbox:
        assert out(sandbox, "ps -o comm= -p 1") == "init\n"
        line = "until rc-status -r | grep -x default; do sleep 0.5; done"
        assert out(sandbox, line, timeout=BOOT_S) == "default\n"
        assert "started" in out(sandbox, "rc-status sysinit")
        sandbox.stop(timeout=120)


def test_s6_supervises(kernels: dict[str, str], guest_images: object) -> None:
    with create(kernels, "minimal", "s6", "/init") as sandbox:
        assert out(sandbox, "ps -o comm= -p 1") == "s6-svscan\n"
        ready = (
            "until s6-svstat -u /run/service/job 2>/dev/null | grep -qx true; do sleep 0.2; done"
        )
        out(sandbox, ready, timeout=BOOT_S)
        first = out(sandbox, "s6-svstat -p /run/service/job")
        out(sandbox, f"kill -9 {first}")
        line = f"until s6-svstat -p /run/service/job | grep -vx -e -1 -e {first.strip()}"
        assert out(sandbox, f"{line}; do sleep 0.2; done", timeout=BOOT_S) != first
        sandbox.stop(timeout=120)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("/sbin/nothing", "cannot start the image's init /sbin/nothing: No such file"),
        ("/etc/passwd", "cannot start the image's init /etc/passwd: Permission denied"),
    ],
)
def test_an_init_that_cannot_start_is_one_line(
    kernels: dict[str, str], guest_images: object, init: str, message: str
) -> None:
    with pytest.raises(AgentError, match=message):
        create(kernels, "minimal", "systemd", init)


def test_an_init_that_exits_is_a_panic(kernels: dict[str, str], guest_images: object) -> None:
    """Whoever is asked something afterwards is told so, with the console's end."""
    with (
        pytest.raises(AgentError, match="Attempted to kill init"),
        create(kernels, "minimal", "systemd", "/bin/true") as sandbox,
    ):
        for _ in range(600):
            sandbox.commands.run("true")
            time.sleep(0.1)


def test_all_modules_of_the_kernel_come_on_demand(
    kernels: dict[str, str], guest_images: object
) -> None:
    """By kmod, and by the kernel itself: at an open, at a mount, for nftables."""
    image = init_image("systemd")
    with Sandbox.create(kernel=kernels["cloud"], image=image, request_timeout=BOOT_S) as sandbox:
        assert out(sandbox, "cat /proc/sys/kernel/modprobe") == "/sbin/modprobe\n"
        assert out(sandbox, "modinfo -n wireguard").endswith("/wireguard.ko\n")
        out(sandbox, "modprobe dummy; ip link add d0 type dummy 2>/dev/null || true")
        before = out(sandbox, "cut -d' ' -f1 /proc/modules").split()
        assert "dummy" in before and "tun" not in before and "xfs" not in before
        assert out(sandbox, "stat -c %t:%T /dev/net/tun /dev/loop-control") == "a:c8\na:ed\n"
        sandbox.commands.run(": </dev/net/tun; mount -t xfs none /mnt")
        after = out(sandbox, "cut -d' ' -f1 /proc/modules").split()
        assert {"tun", "xfs", "libcrc32c"} <= set(after)
