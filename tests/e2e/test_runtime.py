"""What a user gets who has pip and nothing else: the two wheels, and a first command that works.

The home is empty, no clone is near, and no program but the environment's own is on the PATH:
neither apt nor dpkg, no compiler, no shell even.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.boot

WHEELS = ROOT / "build" / "wheels"
# What the image promises, each a program that needs its libraries, certificates or data.
TRIED = """
set -e
id -un; pwd; echo $HOME $LANG
git init -q x; cd x; echo hi > a; git add a
git -c user.name=a -c user.email=a@b commit -qm first; git log --format=%s
printf 'all:\\n\\t@echo made\\n' > Makefile; make
curl --version | grep -o https | head -1
wget -q -O - http://voidbox.invalid/ || echo wget $?
python3 -m venv --without-pip v; v/bin/python -c 'import ssl, sqlite3, ctypes; print("venv")'
pip --version | cut -d' ' -f1
ps -o comm= -p 1 | wc -l
python3 -c 'import ssl; print(len(ssl.create_default_context().get_ca_certs()) > 50)'
df -P / | tail -1 | cut -d' ' -f1
"""
TOLD = [
    "sandbox", "/workspace", "/home/sandbox C.UTF-8", "first", "made", "https", "wget 4", "venv",
    "pip", "1", "True", "overlay",
]  # fmt: skip


class User:
    """A fresh user.

    Attributes:
        home: empty but for the environment that voidbox is installed in, `venv`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.venv = home / "venv"
        command = [sys.executable, "-m", "venv", "--without-pip", str(self.venv)]
        subprocess.run(command, check=True)
        # As `pip install voidbox-kvm[runtime]`, but from what stands for a package index here.
        subprocess.run(
            [
                sys.executable, "-m", "pip", "--python", self.venv / "bin/python", "install", "-q",
                "--disable-pip-version-check", "--no-compile", "--no-index", "--find-links", WHEELS,
                "voidbox-kvm[runtime]",
            ],
            check=True,
        )  # fmt: skip

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.venv / "bin/voidbox", *arguments],
            cwd="/", env={"HOME": str(self.home), "PATH": str(self.venv / "bin")},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    if not list(WHEELS.glob("voidbox_runtime-*.whl")):
        pytest.skip(f"no wheels in {WHEELS}: run make runtime first, which needs a network")
    yield User(tmp_path_factory.mktemp("home"))


def test_the_very_first_command(user: User) -> None:
    done = user("run", "--", "python3", "-c", "print(6*7)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")
    # Nothing was fetched or set up for it.
    left = [path for path in user.home.rglob("*") if user.venv not in (path, *path.parents)]
    assert sum(path.stat().st_size for path in left) < 100_000, left


def test_what_the_default_image_promises(user: User) -> None:
    done = user("run", "--net", "off", "--", "bash", "-c", TRIED)
    assert (done.returncode, done.stdout.splitlines()) == (0, TOLD), done


def test_the_tiny_image_is_there_too(user: User) -> None:
    done = user(
        "run", "--image", "tiny", "--", "sh", "-c", "busybox | head -1 | cut -d' ' -f1; id -un"
    )
    assert (done.returncode, done.stdout) == (0, "BusyBox\nsandbox\n"), done


def test_two_sandboxes_use_the_same_files(user: User) -> None:
    for name in ("one", "two"):
        done = user("run", "--detach", "--name", name)
        assert (done.returncode, done.stdout) == (0, f"{name}\n"), done
    try:
        assert user(
            "exec", "one", "--", "bash", "-c", "rm -rf /usr/lib/python3; echo $?"
        ).stdout == (
            "1\n"  # it is root's
        )
        for name in ("one", "two"):
            assert user("exec", name, "--", "python3", "-c", "print(6*7)").stdout == "42\n"
        shown = user("ps")
        assert shown.stdout.count(" default ") == 2, shown
    finally:
        user("rm", "--force", "one", "two")


def test_a_runtime_of_another_voidbox_is_told_in_one_line(user: User) -> None:
    (api,) = user.venv.glob("lib/python*/site-packages/voidbox_runtime/api")
    before = api.read_text()
    api.write_text("99\n")
    try:
        done = user("run", "--", "true")
    finally:
        api.write_text(before)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "has api 99" in done.stderr and "pip install --upgrade" in done.stderr


def test_doctor_knows_them(user: User) -> None:
    done = user("doctor")
    assert f"{user.venv}" in next(line for line in done.stdout.splitlines() if " kernel:" in line)
    assert "default.erofs" in done.stdout
    assert os.access(user.home, os.W_OK)
