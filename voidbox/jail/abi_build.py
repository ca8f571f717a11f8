"""The one C declaration of the jail; `python -m voidbox.jail.abi_build` writes `_abi.py`.

As in voidbox.kvm: the generated module loads without parsing C, and without a compiler.
"""

from __future__ import annotations

from pathlib import Path

CDEF = """
/* syscall(2) as a fixed signature: the same call on x86-64 as the variadic one. */
long syscall(long number, long a, long b, long c, long d, long e, long f);
"""


def generate(target: Path) -> None:
    """Write the generated module to `target`."""
    from cffi import FFI

    builder = FFI()
    builder.cdef(CDEF)
    builder.set_source("voidbox.jail._abi", None)
    builder.emit_python_code(str(target))


if __name__ == "__main__":
    generate(Path(__file__).with_name("_abi.py"))
