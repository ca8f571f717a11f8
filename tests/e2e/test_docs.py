"""What README.md and docs/*.md show, with real guests: see tests/unit/test_docs.py for the rest."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit import doc_pages
from tests.unit.doc_pages import PAGES, ROOT, Block
from voidbox import defaults
from voidbox.sandbox.state.store import Store
from voidbox.sdk.sync import Sandbox

pytestmark = pytest.mark.boot

REAL = doc_pages.python_blocks(with_real_vm=True)
# The ten lines of README.md and of the first page: what a new user copies.
FIRST = [
    block
    for page in ("README.md", "getting-started.md")
    for block in [b for b in doc_pages.python_blocks(with_real_vm=False) if b.page == page][:1]
]
# In the SDK's page, what depends most on a real guest.
SDK = [
    block
    for block in doc_pages.python_blocks(with_real_vm=False)
    if block.page == "sdk.md" and "Sandbox.create(" not in block.text
]
SHELL = [block for page in PAGES for block in doc_pages.blocks(page) if block.mark == "e2e"]


def ids(block: Block) -> str:
    return block.id


@pytest.fixture
def here(
    kernels: dict[str, str], guest_images: dict[str, str], tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """A folder with what the examples find there, and a state folder of its own."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project/notes.txt").write_text("notes\n")
    before = os.getcwd()
    os.chdir(tmp_path)
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/tmp") as folder:
        os.environ["VOIDBOX_STATE"] = folder
        # What the scripts gave last is what is used when nothing is named.
        assert os.path.samefile(kernel := defaults.find_kernel(), kernels["minimal"])
        assert os.path.samefile(defaults.find_image(kernel), guest_images["minimal"])
        yield {"__name__": "__main__"}
        with Store() as store:
            assert [record for record in store.list() if store.is_alive(record.id)] == []
        del os.environ["VOIDBOX_STATE"]
    os.chdir(before)


@pytest.mark.parametrize("block", [*FIRST, *REAL], ids=ids)
def test_python_runs(block: Block, here: dict[str, Any], guest_images: dict[str, str]) -> None:
    if "vmlinuz" in block.text:  # names files of the reader's own
        os.symlink(defaults.find_kernel(), "vmlinuz")
        os.symlink(guest_images["minimal"], "guest.cpio")
    sandbox = None
    if "sandbox" in block.text and "Sandbox.create(" not in block.text:
        sandbox = here["sandbox"] = Sandbox.create()
    try:
        if "sandbox.guest" not in block.text:
            asyncio.run(doc_pages.run(block, here))
        else:
            code = [sys.executable, "-c", block.text]
            path = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                code, env=path, capture_output=True, text=True, timeout=300, check=True
            )
            assert done.stdout == "hello\n0 6\n"
    finally:
        if sandbox is not None:
            sandbox.kill()


def test_the_sdks_page_runs_in_one_guest(here: dict[str, Any]) -> None:
    """Each block in a folder of its own, and the last one stops the guest."""
    assert len(SDK) >= 8
    ending = [block for block in SDK if ".stop()" in block.text]
    sandbox = Sandbox.create()
    try:
        for number, block in enumerate([*(b for b in SDK if b not in ending), *ending]):
            sandbox._core._session.workdir = f"/workspace/{number}"
            sandbox.files.make_dir(".")
            asyncio.run(doc_pages.run(block, {**here, "sandbox": sandbox}))
    finally:
        sandbox.kill()


@pytest.mark.parametrize("block", SHELL, ids=ids)
def test_commands_run(block: Block, here: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/voidbox"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m voidbox "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", "-eu", "-c", block.text],
        env={
            **os.environ,
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    lines = done.stdout.split("\n")
    assert lines[:2] == ["builder", "hello"] and lines[3].split()[2] == "running", lines
    assert "asking the guest's agent" in done.stdout and lines[-2] == "builder"
