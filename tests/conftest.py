"""Which tests can run here. A skip always says why, and how to run the test."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

from voidbox.errors import HostError
from voidbox.kvm.kvm import Kvm
from voidbox.vmm import probe

# A runtime that is installed would be what tests boot, and not what they have made.
os.environ.setdefault("VOIDBOX_RUNTIME", "")

# The same examples each time, so that a change is what makes a test fail. VOIDBOX_RANDOM=1 looks
# for new ones. How long one takes says nothing: this machine may be busy.
settings.register_profile(
    "voidbox",
    derandomize="VOIDBOX_RANDOM" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("voidbox")


def pytest_configure() -> None:
    """Hear Ctrl-C, and have what we start hear it: a shell's background jobs ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def _kvm_problem() -> str:
    """Why no guest can run here; empty if one can."""
    try:
        with closing(Kvm()):
            return ""
    except HostError as error:
        return str(error)


@cache
def _boot_problem() -> str:
    """Why no Linux can boot here; empty if it can."""
    if "VOIDBOX_LAB" in os.environ:  # made for it: there, a problem is a failure
        return ""
    if _kvm_problem():
        return _kvm_problem()
    with closing(Kvm()) as kvm:
        if probe.measure(kvm).is_emulated:
            return "this KVM emulates; run it in the lab: make test-lab"
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run."""
    if item.get_closest_marker("kvm") and _kvm_problem():
        pytest.skip(_kvm_problem())
    if item.get_closest_marker("boot") and _boot_problem():
        pytest.skip(_boot_problem())
