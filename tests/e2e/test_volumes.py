"""Volumes and more folders with real guests: what is written stays, however its guest ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, script
from voidbox import ConfigError, Sandbox, volumes

pytestmark = pytest.mark.boot

CACHE = "/home/sandbox/.cache"


@pytest.fixture
def machine(kernels: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    script("scripts/build_guest_image.sh")
    with tempfile.TemporaryDirectory(prefix="vb-") as folder:  # pytest's are too long for sockets
        monkeypatch.setenv("VOIDBOX_STATE", folder)
        yield {
            "kernel": kernels["minimal"], "memory": "128M", "block_network": True, "timeout": 1200,
            "request_timeout": 300,
        }  # fmt: skip


def run(kernel: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "voidbox", "run", "--kernel", kernel, *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def out(sandbox: Sandbox, line: str) -> str:
    return sandbox.commands.run(line, check=True, timeout=300).stdout


def test_volumes_stay_and_folders_are_live(machine: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/data").write_text("of the host\n")
    (tmp_path / "out").mkdir()
    volumes.create("cache", size="256M")
    given = [f"{tmp_path}/in:/data:ro", f"{tmp_path}/out:/results", f"cache:{CACHE}"]
    with Sandbox.create(**machine, volumes=given) as sandbox:
        assert out(sandbox, "cat /data/data") == "of the host\n"
        assert sandbox.commands.run("echo x >/data/x").exit_code != 0
        out(sandbox, "echo made >/results/made")
        assert (tmp_path / "out/made").read_text() == "made\n"
        (tmp_path / "in/more").write_text("more\n")
        assert out(sandbox, "cat /data/more") == "more\n"
        # The new volume is the user's, empty, of its size, and mounted with no more rights.
        assert out(sandbox, f"ls -A {CACHE}; stat -c %U {CACHE}") == "sandbox\n"
        assert f"{CACHE} ext4 rw,nosuid,nodev," in out(sandbox, "cat /proc/mounts")
        out(sandbox, f"echo first >{CACHE}/f")
        assert volumes.find("cache").is_in_use
        with pytest.raises(ConfigError, match="another sandbox has the volume cache"):
            Sandbox.create(**machine, volumes=[f"cache:{CACHE}"])
    # The block's end, and that of a VM which is the command's own, are no power cuts.
    line = f"cat {CACHE}/f; echo second >{CACHE}/f"
    result = run(machine["kernel"], "--volume", f"cache:{CACHE}", "--", "sh", "-c", line)
    assert (result.returncode, result.stdout) == (0, "first\n"), result
    # So it can be read without being written, by two at once.
    reading = {**machine, "volumes": [f"cache:{CACHE}:ro"]}
    with Sandbox.create(**reading) as one, Sandbox.create(**reading) as two:
        for sandbox in (one, two):
            assert out(sandbox, f"cat {CACHE}/f") == "second\n"
            assert sandbox.commands.run(f"echo x >{CACHE}/f").exit_code != 0
    assert 0 < volumes.find("cache").used_bytes < 64 << 20


def test_what_cannot_be_mounted_is_told(machine: dict[str, Any]) -> None:
    volumes.create("blank", size="64M")
    with pytest.raises(ConfigError, match="it is blank: use it once without :ro"):
        Sandbox.create(**machine, volumes=["blank:/v:ro"])
    sandbox = Sandbox.create(**machine, volumes=["blank:/v"])
    out(sandbox, "echo kept >/v/f; sync")
    sandbox.kill()  # a power cut
    with pytest.raises(ConfigError, match="when its machine was killed: use it once without :ro"):
        Sandbox.create(**machine, volumes=["blank:/v:ro"])
    with Sandbox.create(**machine, volumes=["blank:/v"]) as sandbox:
        assert out(sandbox, "cat /v/f") == "kept\n"
