"""The numbers against the C headers; the generated module against its source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from voidbox.jail import abi_build, numbers

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


@pytest.mark.skipif(not HEADER.exists(), reason="needs apt-get install linux-libc-dev")
def test_numbers_are_those_of_the_header() -> None:
    found = dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text()))
    assert len(found) > 300
    # A newer header has more of them; one that we have has the number that it says.
    known = {name: int(number) for name, number in found.items() if name in numbers.NR}
    assert len(known) > 300 and known == {name: numbers.NR[name] for name in known}


def test_names() -> None:
    assert numbers.name_of(0) == "read"
    assert numbers.name_of(437) == "openat2"
    assert numbers.name_of(9999) == "system call 9999"


def test_the_generated_module_is_fresh(tmp_path: Path) -> None:
    abi_build.generate(tmp_path / "_abi.py")
    committed = Path(abi_build.__file__).with_name("_abi.py")
    assert (tmp_path / "_abi.py").read_text() == committed.read_text()
