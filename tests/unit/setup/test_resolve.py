"""Which packages it takes, and which version is the newer."""

from __future__ import annotations

import itertools
import shutil
import subprocess

import pytest

from voidbox.setup import versions
from voidbox.setup.errors import SetupError
from voidbox.setup.packages import PackageList
from voidbox.setup.resolve import Universe, resolve

IN_ORDER = (
    "0~~", "0~~a", "0~", "0", "0a", "0+", "0.1", "1.0~rc1-1", "1.0-1~deb12u1", "1.0-1",
    "1.0-1+deb12u1", "1.0-1+deb12u2", "1.0-1.1", "1.0a", "1.0+dfsg-1", "1.0.1-1", "1.00001.1",
    "1.2-9", "1.10-1", "20230311", "1:0.1", "2:0",
)  # fmt: skip


def test_versions_in_order() -> None:
    for one, other in itertools.combinations(IN_ORDER, 2):
        if (one, other) == ("1.0.1-1", "1.00001.1"):
            continue  # 1 and 00001 are equal numbers; "1-1" is a revision, ".1" is more
        assert versions.compare(one, other) < 0, (one, other)
        assert versions.compare(other, one) > 0, (one, other)
    assert versions.compare("1.02", "1.2") == 0
    assert versions.compare("0:1", "1") == 0
    assert versions.compare("1" * 5000, "1" * 4999) > 0


@pytest.mark.skipif(not shutil.which("dpkg"), reason="needs dpkg")
@pytest.mark.slow
def test_dpkg_sees_it_alike() -> None:
    for one, other in itertools.combinations(IN_ORDER, 2):
        word = ["lt", "eq", "gt"][1 + (order := versions.compare(one, other)) // max(abs(order), 1)]
        command = ["dpkg", "--compare-versions", one, word, other]
        assert subprocess.run(command, check=False).returncode == 0, command


def universe(**packages: str) -> Universe:
    """Packages by name (_ for -), with what their stanzas say more; "V: 2" for a version."""
    stanzas = []
    for name, text in packages.items():
        fields = dict(line.split(": ", 1) for line in filter(None, text.split("; ")))
        name = name.rstrip("0123456789") if fields.pop("again", "") else name
        fields = {
            "Package": name.replace("_", "-"), "Version": fields.pop("V", "1.0"),
            "Architecture": "amd64", "Filename": f"pool/{name}.deb", "Size": "1",
            "SHA256": "0" * 64, **fields,
        }  # fmt: skip
        stanzas.append("".join(f"{key}: {value}\n" for key, value in fields.items()))
    return Universe([PackageList("\n".join(stanzas).encode(), "http://archive.example")])


def names(found: Universe, *wanted: str) -> list[str]:
    return [package.name for package in resolve(found, wanted)]


def test_what_is_needed_comes_first() -> None:
    found = universe(
        app="Depends: libb (>= 1.0), liba; Recommends: much; Pre-Depends: base",
        liba="Depends: libb", libb="", much="", base="",
    )  # fmt: skip
    assert names(found, "app") == ["base", "libb", "liba", "app"]


def test_alternatives() -> None:
    found = universe(app="Depends: gone | first | second", first="", second="", own="Depends: app")
    assert names(found, "app") == ["first", "app"]
    # What is asked for is taken in place of the first.
    assert names(found, "own", "second") == ["second", "app", "own"]


def test_names_that_others_stand_for() -> None:
    found = universe(
        app="Depends: awk, mta",
        original_awk="Provides: awk; Priority: optional",
        mawk="Provides: awk; Priority: required",
        exim="Provides: mta", dma="Provides: mta (= 2)",
        picky="Depends: mta (>= 1)", pickier="Depends: mta (>= 3)",
    )  # fmt: skip
    assert names(found, "app") == ["mawk", "dma", "app"]
    assert names(found, "picky") == ["dma", "picky"]
    assert names(found, "app", "exim") == ["mawk", "exim", "app"]
    with pytest.raises(SetupError, match=r"pickier needs mta \(>= 3\), which the archive does not"):
        names(found, "pickier")
    with pytest.raises(SetupError, match="no package awk; mawk stands for it: is the name right"):
        names(found, "awk")


def test_the_newest_version_of_all_lists() -> None:
    found = universe(app="V: 1.9", app2="again: 1; V: 1.10", lib="Depends: app (<< 1.10)")
    assert [package.version for package in resolve(found, ["app"])] == ["1.10"]
    assert [package.version for package in resolve(found, ["lib"])] == ["1.9", "1.0"]


def test_circles_end() -> None:
    found = universe(one="Depends: two", two="Depends: three", three="Depends: one")
    assert sorted(names(found, "one")) == ["one", "three", "two"]


def test_long_chains_do_not_fill_the_stack() -> None:
    chain = {f"p{idx}": f"Depends: p{idx + 1}" for idx in range(3000)}
    assert len(names(universe(**chain, p3000=""), "p0")) == 3001


def test_what_refuses_each_other_is_told() -> None:
    found = universe(
        one="Conflicts: two", two="", old="Breaks: one (<< 0.9)",
        mta1="Provides: mta; Conflicts: mta", mta2="Provides: mta; Conflicts: mta",
    )  # fmt: skip
    assert names(found, "one", "old") == ["one", "old"]
    with pytest.raises(SetupError, match="one and two cannot be in one image: one refuses two"):
        names(found, "one", "two")
    assert names(found, "mta1") == ["mta1"]  # not itself
    with pytest.raises(SetupError, match="mta1 and mta2 cannot be in one image"):
        names(found, "mta1", "mta2")


@pytest.mark.parametrize("name", ["", "-x", "x y", "../x", "X", "x/../y", "a"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(SetupError, match="no name of a Debian package"):
        resolve(universe(), [name])


@pytest.mark.parametrize(
    "field",
    ["Filename: /etc/passwd", "Filename: a/../../b.deb", "Size: -1", "SHA256: x", "Version: ;"],
)
def test_stanzas_that_say_nothing_of_use(field: str) -> None:
    with pytest.raises(SetupError, match="nothing that can be used of app"):
        resolve(universe(app=field), ["app"])


def test_other_machines_packages_are_not_seen() -> None:
    with pytest.raises(SetupError, match="no package app"):
        resolve(universe(app="Architecture: arm64"), ["app"])


def test_the_base_of_a_system() -> None:
    found = universe(bash="Essential: yes", tzdata="Priority: required", git="Priority: optional")
    assert found.base() == ["bash", "tzdata"]
