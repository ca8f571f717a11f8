"""What doctor says of the jail."""

from __future__ import annotations

from voidbox.cli.doctor_jail import findings, limits
from voidbox.jail.trial import LANDLOCK, MOUNT, NAMESPACES, SECCOMP, Trial


def _with(**problems: str) -> list[tuple[bool, bool, str]]:
    layers = {"seccomp": SECCOMP, "landlock": LANDLOCK, "namespaces": NAMESPACES, "mount": MOUNT}
    trials = [Trial(layer, problems.get(name, "")) for name, layer in layers.items()]
    return [(one.is_well, one.is_fatal, one.found) for one in findings(trials)]


def test_all_is_well_in_one_line() -> None:
    assert _with() == [(True, False, "seccomp, Landlock, namespaces, mount: tried")]


def test_without_seccomp_nothing_starts() -> None:
    assert (False, True) in [found[:2] for found in _with(seccomp="no")]


def test_without_namespaces_names_can_be_seen() -> None:
    found = _with(namespaces="AppArmor restricts them", mount="AppArmor restricts them")
    assert "AppArmor restricts them" in found[1][2]
    assert "names and sizes" in found[1][2]


def test_without_both_files_can_be_opened() -> None:
    found = _with(landlock="no", namespaces="no", mount="no")
    assert "an escape could open your files" in found[1][2]


def test_one_of_both_is_enough_for_files() -> None:
    assert all(is_well for is_well, _, _ in _with(landlock="no"))


def test_what_limits_hold_by_is_said_in_one_line() -> None:
    assert limits(("cpu", "memory", "pids")).found == "control group v2 (cpu, memory, pids): tried"
    words = limits(("pids",)).found
    assert words.startswith("control group v2 (pids): tried; --cpu-limit holds the vCPUs alone;")
    words = limits(()).found
    assert "--host-memory is of what is mapped; --pids needs user namespaces" in words
    assert "\n" not in words
    assert limits().found  # whatever this host has
