"""Kernels and images from the project's own scripts (cached; `make kernels` fetches)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.refusals import Refusals

ROOT = Path(__file__).parents[2]


def script(*command: str) -> str:
    """Run one of the project's scripts; returns what it prints."""
    return subprocess.run(
        command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


@pytest.fixture(scope="session")
def initramfs() -> str:
    """The first guest: busybox and a shell."""
    return script("scripts/build_first_guest.sh")


@pytest.fixture(scope="session")
def kernels() -> dict[str, str]:
    """Paths of all kernels that must boot."""
    minimal = script("kernel/build_minimal.sh")
    return {
        "cloud": script("kernel/fetch_debian.sh", "cloud"),
        "generic": script("kernel/fetch_debian.sh", "generic"),
        "minimal": f"{minimal}/bzImage",
        "minimal-elf": f"{minimal}/vmlinux",
    }


@pytest.fixture(scope="session")
def guest_images(kernels: dict[str, str]) -> dict[str, str]:
    """The images with the agent, by the kernel that they are for."""
    return {
        "minimal": script("scripts/build_guest_image.sh"),
        "cloud": script("scripts/build_guest_image.sh", "--kernel", kernels["cloud"]),
    }


@pytest.fixture(autouse=True, scope="session")
def no_templates() -> Iterator[None]:
    """Every sandbox boots, but in the tests of that: what the lab writes takes its memory."""
    os.environ["VOIDBOX_TEMPLATES"] = "off"
    yield
    del os.environ["VOIDBOX_TEMPLATES"]


@pytest.fixture(scope="session")
def refusals() -> Iterator[Refusals]:
    """What jails refuse while the tests run."""
    with Refusals() as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_refused(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that boots a guest if a system call was made that the jail does not expect."""
    if request.node.get_closest_marker("boot") is None:
        yield
        return
    refusals: Refusals = request.getfixturevalue("refusals")
    yield
    assert refusals.take() == []
