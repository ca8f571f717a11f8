"""scripts/build_claude_rootfs.sh, with stand-ins for npm and mmdebstrap."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.unit.examples.conftest import ROOT

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "scripts/build_claude_rootfs.sh"
NPM = """\
#!/bin/sh
# npm view PACKAGE[@VERSION] FIELD | npm pack --silent --pack-destination FOLDER PACKAGE@VERSION
echo "$*" >>"$NPM_LOG"
case "$1 $2 $3" in
"view "*"@0.0.0 version") exit 1 ;;
"view "*"@latest version") echo 9.9.9 ;;
"view "*" version") echo "${2##*@}" ;;
"view "*"@9.9.9 optionalDependencies") echo "{ '@anthropic-ai/claude-code-linux-x64': '9.9.9' }" ;;
"view "*) ;;
pack*) cp "$NPM_PACKAGES/${5##*/}.tgz" "$4/" ;;
esac
"""
# Keeps its arguments, and what the hook would have put on top of Debian.
MMDEBSTRAP = """\
#!/bin/sh
printf '%s\\n' "$@" >"$NPM_LOG.mmdebstrap"
for word; do
    case $word in
    --customize-hook=tar-in\\ *) word=${word#*tar-in }; top=${word% /} ;;
    */root.tar) target=$word ;;
    esac
done
cp "$top" "$target"
"""


class Machine:
    """A machine with those two programs and an empty cache."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.log = folder / "cache", folder / "log"
        self._programs, self._packages = folder / "bin", folder / "packages"
        for path in (self._programs, self._packages):
            path.mkdir()
        for name, text in (("npm", NPM), ("mmdebstrap", MMDEBSTRAP)):
            (self._programs / name).write_text(text)
            (self._programs / name).chmod(0o755)
        self.package("claude-code@2.1.112", {"cli.js": "js", "vendor/ripgrep/x64-win32/rg.exe": ""})
        self.package("claude-code-linux-x64@9.9.9", {"claude": "\x7fELF", "LICENSE.md": "©"})
        self.package("claude-code@1.0.0", {"README.md": "a stub"})

    def package(self, name: str, files: dict[str, str]) -> Path:
        path = self._packages / f"{name}.tgz"
        with tarfile.open(path, "w:gz") as archive:
            for file, text in files.items():
                entry = tarfile.TarInfo(f"package/{file}")
                entry.size, entry.mode = len(text.encode()), 0o755
                archive.addfile(entry, io.BytesIO(text.encode()))
        return path

    def build(self, *arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
        if without:
            (self._programs / without).unlink()
        path = f"{self._programs}:/usr/bin:/bin"
        if without:  # the machine's own must not be found
            path = f"{self._programs}:{self._tools(without)}"
        return subprocess.run(
            [SCRIPT, "--tar-only", *arguments],
            env={
                "PATH": path, "HOME": str(self.cache), "VOIDBOX_CACHE": str(self.cache),
                "NPM_LOG": str(self.log), "NPM_PACKAGES": str(self._packages),
            },
            capture_output=True, text=True,
        )  # fmt: skip

    def _tools(self, without: str) -> Path:
        folder = self._programs / "others"
        folder.mkdir()
        for path in Path("/usr/bin").iterdir():
            if path.name not in (without, "npm", "mmdebstrap"):
                os.symlink(path, folder / path.name)
        return folder

    def ok(self, *arguments: str) -> dict[str, Any]:
        result = self.build(*arguments)
        assert result.returncode == 0, result.stderr
        assert "all rights reserved" in result.stderr
        with tarfile.open(result.stdout.strip()) as archive:
            return {entry.name.removeprefix("./"): entry for entry in archive}

    @property
    def words(self) -> list[str]:
        """What mmdebstrap was called with."""
        return Path(f"{self.log}.mmdebstrap").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def include(machine: Machine) -> set[str]:
    (word,) = (word for word in machine.words if word.startswith("--include="))
    return set(word.removeprefix("--include=").split(","))


def test_the_newest_is_a_program(machine: Machine) -> None:
    found = machine.ok()
    assert found["usr/local/bin/claude"].linkname == "/opt/claude-code/claude"
    assert found["opt/claude-code/claude"].mode & 0o111
    assert "opt/claude-code/LICENSE.md" in found
    assert {entry.uid for entry in found.values()} == {0}
    assert include(machine) == {"bash", "ca-certificates", "git", "python3", "ripgrep"}
    assert "bookworm" in machine.words


def test_the_last_in_javascript_needs_node(machine: Machine) -> None:
    options = ("--version", "2.1.112", "--package", "make", "--suite", "trixie")
    found = machine.ok(*options, "--mirror", "http://debian.example/debian")
    assert found["usr/local/bin/claude"].isreg()
    assert "opt/claude-code/cli.js" in found
    assert not [name for name in found if "win32" in name]
    assert include(machine) >= {"nodejs", "make"}
    assert machine.words[-3] == "trixie"
    assert machine.words[-1] == "http://debian.example/debian"


def test_it_is_built_once(machine: Machine) -> None:
    assert machine.build().stdout == machine.build().stdout
    text = machine.log.read_text()
    assert text.count("pack ") == 1
    Path(f"{machine.log}.mmdebstrap").unlink()
    machine.ok()
    assert not Path(f"{machine.log}.mmdebstrap").exists()
    machine.ok("--package", "make")  # another image
    assert "make" in include(machine)


def test_a_package_from_elsewhere_needs_no_npm(machine: Machine) -> None:
    tarball = machine.package("from elsewhere: (1)", {"cli.js": "js"})
    result = machine.build("--tarball", str(tarball), without="npm")
    assert result.returncode == 0, result.stderr
    assert not machine.log.exists()


@pytest.mark.parametrize(
    ("arguments", "without", "why"),
    [
        ((), "npm", "npm is missing"),
        ((), "mmdebstrap", "mmdebstrap is missing"),
        (("--version", "0.0.0"), "", "npm has no such version"),
        (("--version", "1.0.0"), "", "holds neither cli.js nor a program"),
        (("--tarball", "/nowhere.tgz"), "", "there is no such file"),
        (("--version", "$(reboot)"), "", "this has no sense"),
        (("--suite", "a b"), "", "this has no sense"),
        (("--tarball", ""), "", "this has no sense"),
        (("--tarball", "--name"), "", "this has no sense"),
        (("--name", "Claude"), "", "--name Claude: "),
        (("--name", "claude:a:b"), "", "--name claude:a:b: "),
        (("--package",), "", "usage: "),
        (("--what", "x"), "", "usage: "),
    ],
)
def test_what_cannot_be_is_told(
    arguments: tuple[str, ...], without: str, why: str, machine: Machine
) -> None:
    result = machine.build(*arguments, without=without)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("build_claude_rootfs.sh: ")
    assert why in result.stderr
    assert not list(machine.cache.rglob("tmp.*"))


def test_a_mmdebstrap_that_fails_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "bin/mmdebstrap").write_text("#!/bin/sh\necho 'E: no such suite' >&2\nexit 1\n")
    result = machine.build()
    assert result.returncode == 1
    assert "mmdebstrap failed: E: no such suite" in result.stderr
    assert not list(machine.cache.rglob("*.tar"))
