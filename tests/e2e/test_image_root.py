"""Roots on disks, in real guests: images of all kinds, and what may go wrong with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.disk_images import busybox_tree, debian_image, project
from tests.unit.images.made import StoreFolder
from voidbox import AgentError, ConfigError, HostError, Sandbox
from voidbox.images.config import ImageConfig
from voidbox.images.pack import write_tree
from voidbox.images.tree import Directory, Symlink, Tree
from voidbox.sandbox.launch import wait_ended
from voidbox.sandbox.root import UPPER_FILE
from voidbox.sandbox.state.store import Store

pytestmark = pytest.mark.boot

KERNELS = ["minimal", "cloud"]
SBIN = "/usr/sbin:/sbin:" + os.environ.get("PATH", "")


class Place(NamedTuple):
    """A state folder of the test's own, and the kernels."""

    folder: Path
    kernels: dict[str, str]
    store: StoreFolder

    def create(self, image: str | Path | None, kernel: str = "minimal", **values: Any) -> Sandbox:
        values = {"memory": "128M", "timeout": 1200, "request_timeout": 300, **values}
        return Sandbox.create(kernel=self.kernels[kernel], image=image, **values)

    def cli(self, *arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "voidbox", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, input=input
        )

    def pack(self, tree: Tree, name: str = "image.erofs") -> Path:
        path = self.folder / name
        write_tree(tree, str(path))
        return path


@pytest.fixture
def place(kernels: dict[str, str], guest_images: dict[str, str]) -> Iterator[Place]:
    assert all(guest_images.values())
    with tempfile.TemporaryDirectory(prefix="vb-") as folder:
        os.environ["VOIDBOX_STATE"] = folder
        yield Place(Path(folder), kernels, StoreFolder(Path(folder)))
        with Store() as store:
            assert [record.name for record in store.list() if store.is_alive(record.id)] == []
        del os.environ["VOIDBOX_STATE"]


@pytest.fixture
def small(place: Place) -> Iterator[Tree]:
    with busybox_tree(str(place.folder)) as tree:
        yield tree


def out(sandbox: Sandbox, line: str, **options: Any) -> str:
    result = sandbox.commands.run(line, **options)
    assert (result.exit_code, result.stderr) == (0, ""), (line, result)
    return str(result.stdout)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_debian_runs_the_tests_of_a_real_project(place: Place, kernel: str) -> None:
    """In 192 MB, from an image of more than 500 MB."""
    image = debian_image()
    assert image.stat().st_size > 500_000_000
    with place.create(image, kernel, memory="192M") as sandbox:
        assert out(sandbox, "cat /etc/debian_version").startswith("12.")
        sandbox.files.write("project.tar.gz", project().read_bytes())
        out(sandbox, "tar xzf project.tar.gz --no-same-owner")
        line = "cd h11-* && git init -q && git add -A && git status -s"
        assert "A  h11/tests/test_connection.py" in out(sandbox, line)
        line = "cd h11-* && python3 -m pytest -q -p no:cacheprovider h11 2>&1 | tail -1"
        assert " passed" in out(sandbox, line, timeout=300)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_small_distribution_with_a_configuration(place: Place, small: Tree, kernel: str) -> None:
    """Everything of the image's: users, variables, folder; and nothing of the agent's."""
    small.put("/etc/resolv.conf", Symlink(target="/nowhere/resolv.conf"))
    content = place.pack(small).read_bytes()
    config = ImageConfig(
        env={"PATH": "/bin", "FLAVOUR": "plain"}, workdir="/srv/app", user="app",
        volumes=("/data", "/var/lib/with a blank"),
    )  # fmt: skip
    made = place.store.add("small:1", content, config=config)
    with place.create("small:1", kernel, envs={"MINE": "1"}) as sandbox:
        assert out(sandbox, "pwd; id -u; id -g; hostname") == "/srv/app\n100\n101\nvoidbox\n"
        # Numbers as well: gid 50 is from the image's /etc/group.
        assert out(sandbox, "id -G") == "101 50\n"
        variables = dict(line.split("=", 1) for line in out(sandbox, "env").splitlines())
        assert variables.pop("PWD") == "/srv/app"
        assert variables == {
            "PATH": "/bin", "FLAVOUR": "plain", "MINE": "1", "HOME": "/home/app", "USER": "app",
            "LOGNAME": "app", "SHELL": "/bin/sh", "LANG": "C.UTF-8", "SHLVL": "1",
        }  # fmt: skip
        folders = out(sandbox, "stat -c '%F %U %n' /data '/var/lib/with a blank'")
        assert folders == "directory root /data\ndirectory root /var/lib/with a blank\n"
        # The secret is gone, and so is its place.
        assert out(sandbox, "ls /.voidbox/etc/voidbox /etc", user="0") == (
            "/.voidbox/etc/voidbox:\n\n/etc:\ngroup\nhostname\nhosts\npasswd\nresolv.conf\n"
        )
        assert out(sandbox, "cat /etc/resolv.conf").startswith("nameserver ")
        assert "localhost" in out(sandbox, "cat /etc/hosts")
        assert out(sandbox, "echo x > /workspace/f && cat /workspace/f") == "x\n"
        sandbox.files.write("/tmp/deep/er", "text")
        assert sandbox.files.read("/tmp/deep/er") == "text"
        assert "exchange messages" in out(sandbox, "/usr/local/bin/voidbox-relay --help").lower()
        with sandbox.pty.create(
            cmd=["sh", "-c", "[ -t 0 ] && echo terminal >/dev/stdout"]
        ) as terminal:
            assert b"terminal" in b"".join(terminal)
        info = sandbox.get_info()
        assert (info.image, info.image_digest, info.user) == ("small:1", made.id, "app")
        ps = place.cli("ps").stdout
        assert "IMAGE" in ps and "small:1" in ps
        shown = json.loads(place.cli("inspect", "--json", sandbox.name).stdout)[0]
        assert (shown["image"], shown["root"]["digest"]) == ("small:1", made.id)
        with pytest.raises(ConfigError, match="a sandbox runs small:1"):
            place.store.store.remove("small:1")
    place.store.store.remove("small:1")


def test_run_follows_entrypoint_and_command(place: Place, small: Tree) -> None:
    """As docker's `run`; the disk of a VM that is the command's own leaves nothing."""
    content = place.pack(small).read_bytes()
    config = ImageConfig(
        env={"PATH": "/bin"}, entrypoint=("echo", "entry"), cmd=("default",), user="100:50"
    )
    place.store.add("say", content, config=config)
    run = ["run", "--kernel", place.kernels["minimal"], "--memory", "128M", "--image", "say"]
    before = sorted(os.listdir("/var/tmp"))
    assert place.cli(*run).stdout == "entry default\n"
    assert place.cli(*run, "--", "more", "words").stdout == "entry more words\n"
    result = place.cli(*run, "--entrypoint", "", "--", "sh", "-c", "id -u; id -g; df /; exit 7")
    assert result.returncode == 7
    assert result.stdout.startswith("100\n50\n") and "overlay" in result.stdout
    assert sorted(os.listdir("/var/tmp")) == before
    assert place.cli(*run, "--initramfs", "x").returncode == 2
    missing = place.cli("run", "--image", "no-such")
    assert missing.returncode == 2 and "no image no-such" in missing.stderr


def test_one_static_program_is_an_image(place: Place) -> None:
    """Without a shell, without /etc/passwd, without any folder."""
    with Tree(str(place.folder)) as tree:
        tree.put("/busybox", tree.add_bytes(Path("/bin/busybox").read_bytes(), mode=0o755))
        image = place.pack(tree)
    with place.create(image) as sandbox:
        assert sandbox.exec("/busybox", "id", "-u").stdout == "0\n"
        assert sandbox.exec("/busybox", "pwd").stdout == "/workspace\n"
        assert sandbox.exec("/busybox", "id", "-u", user="1234:99").stdout == "1234\n"
        with pytest.raises(AgentError, match="no user 'nobody'"):
            sandbox.exec("/busybox", "true", user="nobody")
        assert sandbox.commands.run("true", check=False).exit_code == 127
        found = sandbox.exec("/busybox", "ls", "-a", "/").stdout.split()
        assert {"dev", "etc", "proc", "sys", "tmp", "workspace", ".voidbox"} <= set(found)
        sandbox.files.write("/tmp/f", "x")
        assert sandbox.exec("/busybox", "stat", "-c", "%a", "/tmp").stdout == "1777\n"
        assert sandbox.exec("/busybox", "mount").stdout.count(" on /proc ") == 1


def test_links_lead_nowhere_else(place: Place, small: Tree) -> None:
    """Links in the places that the guest's start uses: none leads out of the root."""
    usr = Directory()
    usr.children["bin"] = small.root.children.pop("bin")
    small.root.children["usr"] = usr
    small.put("/bin", Symlink(target="usr/bin"))
    for name, target in {
        "tmp": "/var/volatile/tmp", "dev": "/etc", "proc": "../../proc", "sys": "/",
        ".voidbox": "/etc", "run": "/var/run", "workspace": "/home/app",
    }.items():  # fmt: skip
        small.root.children.pop(name, None)
        small.put(f"/{name}", Symlink(target=target))
    for name in ("hostname", "hosts", "resolv.conf"):
        small.put(f"/etc/{name}", Symlink(target="/etc/passwd"))
    with place.create(place.pack(small)) as sandbox:
        assert out(sandbox, "hostname; echo x > /tmp/f; ls /var/volatile/tmp") == "voidbox\nf\n"
        assert out(sandbox, "cat /etc/passwd").startswith("root:x:0:0:")
        assert "localhost" in out(sandbox, "cat /etc/hosts")
        assert out(sandbox, "stat -c %F /dev /proc /sys /.voidbox") == "directory\n" * 4
        assert out(sandbox, "stat -c %a /dev/null /dev/pts/ptmx") == "666\n666\n"


def test_sandboxes_share_an_image(place: Place, small: Tree) -> None:
    image = place.pack(small)
    before = image.read_bytes()
    with place.create(image) as one, place.create(image) as two:
        out(one, "echo one > /bin/mine; rm /etc/group; echo x >> /etc/passwd")
        assert out(one, "cat /etc/passwd").endswith("\nx\n")
        assert not out(two, "cat /etc/passwd").endswith("\nx\n")
        assert out(two, "ls /etc/group") == "/etc/group\n"
        assert not two.files.exists("/bin/mine")
    assert image.read_bytes() == before


def test_a_full_disk_is_the_guests_alone(place: Place, small: Tree) -> None:
    with place.create(place.pack(small), disk_size="32M") as sandbox:
        result = sandbox.commands.run("dd if=/dev/zero of=/big bs=1M", check=False)
        assert result.exit_code != 0 and "No space left on device" in result.stderr
        out(sandbox, "rm /big && echo x > /small && cat /small")
        folder = Path(Store().path(sandbox.sandbox_id))
        assert (folder / UPPER_FILE).stat().st_size == 32 << 20
    assert not folder.exists()


def test_a_power_cut_loses_nothing_that_was_flushed(place: Place, small: Tree) -> None:
    sandbox = place.create(place.pack(small), detached=True, keep=True)
    try:
        out(sandbox, "dd if=/dev/urandom of=/workspace/kept bs=64k count=40 conv=fsync 2>/dev/null")
        kept = sandbox.files.read("/workspace/kept", format="bytes")
        sandbox.commands.run("while :; do echo x > /workspace/$((n += 1)); done", background=True)
        sandbox.commands.run("dd if=/dev/zero of=/workspace/more bs=1M count=64", background=True)
        out(sandbox, "sleep 1")
        with Store() as store:
            os.kill(store.read(sandbox.sandbox_id).pid, signal.SIGKILL)
            assert wait_ended(store, sandbox.sandbox_id, 30)
            disk = f"{store.path(sandbox.sandbox_id)}/{UPPER_FILE}"
        replay = check_disk("-p", "-f", disk)  # the journal, as a mount does it
        assert replay.returncode in (0, 1), replay
        clean = check_disk("-n", "-f", disk)
        assert clean.returncode == 0, clean
        found = place.folder / "found"
        tool(f"debugfs -R 'dump /root/workspace/kept {found}' {disk}")
        assert found.read_bytes() == kept
    finally:
        sandbox.close()
        with Store() as store:
            store.clean()
            store.remove(sandbox.sandbox_id)
    assert not os.path.exists(disk)


def check_disk(*arguments: str) -> subprocess.CompletedProcess[str]:
    return tool(f"e2fsck {' '.join(arguments)}")


def tool(line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": SBIN}
    return subprocess.run(
        line, shell=True, capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_cannot_be_mounted_is_told(place: Place, small: Tree, kernel: str) -> None:
    """In one line, at once; nothing hangs."""
    image = place.pack(small)
    with image.open("r+b") as file:
        file.seek(1024 + 12)  # blkszbits
        file.write(b"\xff")
    with pytest.raises(AgentError) as caught:
        place.create(image, kernel)
    story = str(caught.value)
    assert "the guest powered off" in story
    assert "voidbox: cannot start from the disks: cannot mount the image: Invalid argument" in story


def test_a_damaged_disk_is_told_and_not_made_anew(place: Place, small: Tree) -> None:
    disk = place.folder / "upper"
    disk.write_bytes(b"\1" * (32 << 20))
    run = ["run", "--kernel", place.kernels["minimal"], "--image", str(place.pack(small))]
    run += ["--disk-size", "0", "--disk", f"{disk},serial=voidbox-upper", "--", "true"]
    result = place.cli(*run)
    assert result.returncode == 122
    assert "cannot mount the disk: Invalid argument" in result.stderr
    assert disk.read_bytes() == b"\1" * (32 << 20)


def test_an_image_that_is_cut_short_is_refused(place: Place, small: Tree) -> None:
    image = place.pack(small)
    os.truncate(image, 4096 * 3 + 17)
    with pytest.raises((ConfigError, HostError), match="no multiple of 512"):
        place.create(image)


def test_a_large_file_in_little_memory(place: Place) -> None:
    """Pages of the image go as they come."""
    with place.create(debian_image(), memory="128M") as sandbox:
        size = out(sandbox, "cat /srv/ballast | wc -c")
        assert int(size) == sandbox.files.stat("/srv/ballast").size > 128 << 20
        assert sandbox.get_metrics().memory_used_bytes < 64 << 20


def test_our_own_image_is_on_a_disk_too(place: Place) -> None:
    with place.create(None, memory="128M", disk_size="1G") as sandbox:
        assert out(sandbox, "id -un; pwd") == "sandbox\n/workspace\n"
        out(sandbox, "dd if=/dev/zero of=/workspace/big bs=1M count=256 2>/dev/null")
        assert out(sandbox, "python3 -c 'import ssl, sqlite3; print(6 * 7)'") == "42\n"
        # The agent needs nothing of this root.
        out(sandbox, "rm -rf /usr/lib/python3.11 /usr/lib/voidbox", user="root")
        sandbox.files.write("/workspace/after", "x")
        assert sandbox.files.read("/workspace/after") == "x"
