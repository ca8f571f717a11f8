"""The workspace with real guests: shared live and copied, with git, a swap of links, and on
Debian's cloud kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, script
from voidbox import CommandResult, ConfigError, Sandbox

pytestmark = pytest.mark.boot

MIB = 1 << 20


@pytest.fixture(scope="module")
def git_image() -> str:
    return script("scripts/build_guest_image.sh", "--with", "git")


@pytest.fixture
def machine(kernels: dict[str, str], git_image: str) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="vb-") as folder:  # pytest's are too long for sockets
        os.environ["VOIDBOX_STATE"] = folder
        yield {"kernel": kernels["minimal"], "image": git_image, "memory": "640M"}
        del os.environ["VOIDBOX_STATE"]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    (folder / "sub").mkdir(parents=True)
    (folder / "hello").write_text("from the host\n")
    (folder / "sub/old").write_text("old\n")
    return folder


def create(machine: dict[str, str], host: Path, mode: str, cache: str = "auto") -> Sandbox:
    return Sandbox.create(
        **machine,  # type: ignore[arg-type]
        workspace=host,
        workspace_mode=mode,  # type: ignore[arg-type]
        workspace_cache=cache,  # type: ignore[arg-type]
        block_network=True,
        timeout=1200,
        request_timeout=300,
    )


def sh(sandbox: Sandbox, text: str) -> str:
    result: CommandResult = sandbox.commands.run(text, check=True, timeout=400)
    return result.stdout


def test_live_with_the_root_on_disks(machine: dict[str, str], host: Path) -> None:
    on_disks = {"kernel": machine["kernel"], "memory": "128M"}
    with create(on_disks, host, "rw") as sandbox:
        assert sh(
            sandbox, "cat hello; echo back >new; grep -o '^overlay / overlay' /proc/mounts"
        ) == ("from the host\noverlay / overlay\n")
        assert (host / "new").read_text() == "back\n"


def test_live(machine: dict[str, str], host: Path) -> None:
    with create(machine, host, "rw") as sandbox:
        assert "workspace /workspace virtiofs rw," in sh(sandbox, "cat /proc/mounts")
        assert sh(sandbox, "cat hello; stat -c '%u %g' hello") == "from the host\n1000 1000\n"
        # Changes of the host are seen, also in a file that is open.
        reader = sandbox.commands.run(
            "exec 3<hello; cat <&3; while [ ! -e go ]; do sleep 0.1; done; "
            "sleep 1.1; cat <&3; cat sub/new",  # what the kernel knows is true for a second
            background=True,
        )
        time.sleep(0.5)
        with open(host / "hello", "a") as file:
            file.write("and more\n")
        (host / "sub/new").write_text("new\n")
        (host / "go").write_text("")
        assert reader.wait().stdout == "from the host\nand more\nnew\n"
        # git works, and what it writes is the host's.
        # Without the dozens of samples that git would copy there, one by one, in the lab.
        sh(sandbox, "git init -q --template= r && cd r && "
                    "git config user.email a@b && git config user.name n")  # fmt: skip
        sh(sandbox, "cd r && for i in 1 2 3 4 5; do echo $i >f$i; done && git add . && "
                    "git commit -qm one && git mv f1 g1 && git commit -qam two")  # fmt: skip
        assert sh(sandbox, "cd r && git status --short && git log --oneline | wc -l") == "2\n"
        assert (host / "r/g1").read_text() == "1\n"
        assert (host / "r/g1").stat().st_uid == os.getuid()
        assert sh(sandbox, "cd r && git fsck 2>&1 && echo sound").endswith("sound\n")
        # What editors and databases do.
        sh(sandbox, "python3 -c 'import sqlite3\nc = sqlite3.connect(\"db\")\n"
                    "c.execute(\"pragma journal_mode=wal\")\nc.execute(\"create table t(a)\")\n"
                    "c.execute(\"insert into t values(1)\")\nc.commit()\n"
                    "assert c.execute(\"select a from t\").fetchall() == [(1,)]'")  # fmt: skip
        sh(
            sandbox,
            "set -C; true >lock; ! true >lock; ln hello hard; mv hard soft; chmod 640 soft; sync",
        )
        assert (host / "soft").stat().st_mode & 0o777 == 0o640
        sh(sandbox, "chmod 4755 soft; mkfifo fifo; ! mknod dev b 8 0")
        assert (host / "soft").stat().st_mode & 0o7777 == 0o755
        with pytest.raises(ConfigError, match="no workspace"):
            sandbox.sync_back()


def test_live_and_read_only(machine: dict[str, str], host: Path) -> None:
    with create(machine, host, "ro") as sandbox:
        assert sh(sandbox, "cat hello sub/old") == "from the host\nold\n"
        for text in ("echo x >hello", "echo x >new", "rm hello", "mkdir d", "chmod 600 hello",
                     "touch hello", "mv hello h2", "ln -s a b"):  # fmt: skip
            result = sandbox.commands.run(text)
            assert result.exit_code != 0, text
            assert "Read-only file system" in result.stderr, result.stderr
        # Root of the guest mounts it anew, writable: the host refuses, whatever the guest says.
        result = sandbox.commands.run(
            "mount -o remount,rw /workspace && echo x >/workspace/hello", user="root"
        )
        assert result.exit_code != 0
        assert "Read-only file system" in result.stderr
        (host / "hello").write_text("changed on the host\n")
        assert sh(sandbox, "sleep 1.1; cat hello") == "changed on the host\n"
    assert sorted(os.listdir(host)) == ["hello", "sub"]


def test_links_that_are_swapped(machine: dict[str, str], host: Path, tmp_path: Path) -> None:
    """The host swaps folders and links as fast as it can: the guest never sees what is outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("SECRET\n")
    (host / "d").mkdir()
    (host / "d/f").write_text("mine\n")
    (host / "l").symlink_to(outside)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for old, new in (("d", "kept"), ("l", "d"), ("d", "l"), ("kept", "d")):
                os.rename(host / old, host / new)

    # Nothing is remembered: each look goes to the host, at whatever is there then.
    with create(machine, host, "rw", cache="none") as sandbox:
        thread = threading.Thread(target=swap)
        thread.start()
        try:
            found = sh(
                sandbox,
                "i=0; seen=; while [ $i -lt 150 ] || [ -z $seen ]; do f=$(cat d/f 2>/dev/null); "
                "echo evil >d/new 2>/dev/null; [ -z $f ] || echo $f; "
                "case $f in mine) seen=1;; esac; i=$((i + 1)); done 2>/dev/null | sort | uniq -c",
            )
        finally:
            ended.set()
            thread.join()
    assert "SECRET" not in found
    assert "mine" in found
    assert os.listdir(outside) == ["f"]


def test_copied_with_changes_and_a_conflict(machine: dict[str, str], host: Path) -> None:
    subprocess.run(["sh", "-c", f"cd {host} && seq 100 >numbers && chmod 755 numbers"], check=True)
    with create(machine, host, "copy") as sandbox:
        assert sh(sandbox, "cat hello sub/old; stat -c '%U %a' numbers") == (
            "from the host\nold\nsandbox 755\n"
        )
        sh(sandbox, "git init -q --template= && "
                    "git config user.email a@b && git config user.name n && git add . && "
                    "git commit -qm one && rm sub/old && echo guest >>hello && "
                    "echo new >new && ln -s new link && ln -s /etc/passwd out")  # fmt: skip
        (host / "hello").write_text("changed meanwhile\n")
        result = sandbox.sync_back()
        assert result.deleted == ("sub/old",)
        assert {"new", "link", ".git"} <= set(result.added)
        assert len(result.conflicts) == 1
        assert result.skipped == ("out: a link to '/etc/passwd', outside the folder",)
        assert (host / "hello").read_text() == "changed meanwhile\n"
        assert (host / "hello.voidbox-conflict").read_text() == "from the host\nguest\n"
        assert not (host / "sub/old").exists()
        assert os.readlink(host / "link") == "new"
        sh(sandbox, "echo late >late")
    assert (host / "late").read_text() == "late\n"
    assert (host / ".git/HEAD").exists()


def test_the_command_line(machine: dict[str, str], host: Path) -> None:
    def run(mode: str, text: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "voidbox", "run", "--kernel", machine["kernel"],
             "--initramfs", machine["image"], "--memory", "640M", "--net", "off", "-v", *options,
             "--workspace", f"{host}{mode}", "--", "sh", "-c", text],
            cwd=ROOT, capture_output=True, text=True, timeout=400,
        )  # fmt: skip

    copied = run("", "cat hello; echo x >>hello; rm -r sub; exit 3")
    assert (copied.returncode, copied.stdout) == (3, "from the host\n"), copied.stderr
    assert "workspace: * hello" in copied.stderr
    assert "workspace: - sub/old" in copied.stderr
    assert (host / "hello").read_text() == "from the host\nx\n"
    shared = run(":rw", "cat hello; echo y >>hello")
    assert (shared.returncode, shared.stdout) == (0, "from the host\nx\n"), shared.stderr
    assert (host / "hello").read_text() == "from the host\nx\ny\n"
    cut = run("", "echo lost >>hello; poweroff -f; sleep 60", "--user", "root")
    assert cut.returncode == 122, cut.stderr
    assert f"nothing was copied back, and {host} is untouched" in cut.stderr
    assert (host / "hello").read_text() == "from the host\nx\ny\n"


@pytest.mark.parametrize("cache", ["auto", "always", "none"])
def test_live_on_the_cloud_kernel(
    kernels: dict[str, str],
    guest_images: dict[str, str],
    host: Path,
    machine: dict[str, str],
    cache: str,
) -> None:
    machine = {"kernel": kernels["cloud"], "image": guest_images["cloud"], "memory": "512M"}
    content = os.urandom(3 * MIB)
    (host / "big").write_bytes(content)
    for number in range(120):
        (host / "sub" / f"file-{number}").write_text(str(number))
    with create(machine, host, "rw", cache=cache) as sandbox:
        assert "workspace /workspace virtiofs rw," in sh(sandbox, "cat /proc/mounts")
        assert sh(sandbox, "cat hello; ls sub | wc -l") == "from the host\n121\n"
        assert sandbox.files.read("big", format="bytes") == content
        sh(sandbox, "cp big copy; cmp big copy; rm -r sub; ! ls sub; mkdir -p a/b; mv copy a/b/c")
        python = 'python3 -c \'import mmap, os; f = open("a/b/c", "r+b"); '
        sh(
            sandbox,
            f'{python} f.seek(5); f.write(b"x"); os.ftruncate(f.fileno(), 1000000); '
            "os.fsync(f.fileno())'",
        )
        if cache != "none":  # which needs Linux 6.6 for it
            sh(sandbox, f'{python} m = mmap.mmap(f.fileno(), 0); m[7:8] = b"y"; m.flush()\'')
    expected = bytearray(content[:1000000])
    expected[5:6] = b"x"
    if cache != "none":
        expected[7:8] = b"y"
    assert (host / "a/b/c").read_bytes() == expected
    assert not (host / "sub").exists()
