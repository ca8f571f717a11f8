"""The KVM ABI against the C headers: sizes, offsets, request numbers and constants."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from voidbox.kvm import abi_build, api
from voidbox.kvm._abi import ffi

HEADER = Path("/usr/include/linux/kvm.h")

needs_headers = pytest.mark.skipif(
    shutil.which("cc") is None or not HEADER.exists(),
    reason="needs a C compiler and <linux/kvm.h>: apt-get install gcc linux-libc-dev",
)


def _compile_and_run(tmp_path: Path, body: str) -> dict[str, int]:
    """Print "name value" lines from C; returns them as a dictionary."""
    source = tmp_path / "abi.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\n"
        f"int main(void) {{\n{body}\nreturn 0;\n}}\n"
    )
    program = tmp_path / "abi"
    subprocess.run(["cc", "-w", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def _struct_names() -> list[str]:
    return re.findall(r"^struct (kvm_\w+) \{", abi_build.CDEF, flags=re.MULTILINE)


def _python_layout() -> dict[str, int]:
    """Size of every structure and offset of every named field, as cffi has them."""
    layout: dict[str, int] = {}

    def walk(name: str, path: str, ctype: object) -> None:
        for field, info in ctype.fields or []:  # type: ignore[attr-defined]
            if not field or field in ("padding", "s"):
                continue
            full = f"{path}.{field}" if path else field
            layout[f"{name}:{full}"] = ffi.offsetof(f"struct {name}", *full.split("."))
            if info.type.kind in ("struct", "union"):
                walk(name, full, info.type)

    for name in _struct_names():
        ctype = ffi.typeof(f"struct {name}")
        layout[f"{name}:"] = ffi.sizeof(ctype)
        walk(name, "", ctype)
    return layout


@needs_headers
def test_sizes_and_offsets_are_the_headers(tmp_path: Path) -> None:
    expected = _python_layout()
    assert len(expected) > 150
    lines = []
    for key in expected:
        name, field = key.split(":")
        value = f"offsetof(struct {name}, {field})" if field else f"sizeof(struct {name})"
        lines.append(f'printf("{key} %zu\\n", {value});')
    assert _compile_and_run(tmp_path, "\n".join(lines)) == expected


@needs_headers
def test_numbers_are_the_headers(tmp_path: Path) -> None:
    expected = {
        name: value
        for name, value in vars(api).items()
        if name.startswith("KVM") and isinstance(value, int)
    }
    assert len(expected) > 100
    lines = [f'printf("{name} %llu\\n", (unsigned long long){name});' for name in expected]
    assert _compile_and_run(tmp_path, "\n".join(lines)) == expected


def test_generated_module_is_up_to_date(tmp_path: Path) -> None:
    fresh = tmp_path / "_abi.py"
    abi_build.generate(fresh)
    committed = Path(abi_build.__file__).with_name("_abi.py")
    assert fresh.read_text() == committed.read_text(), "run: python -m voidbox.kvm.abi_build"
