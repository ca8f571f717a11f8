"""Which of the levels of x86-64 this host's CPU has: images may be made for one of them.

x86-64 psABI, "Low Level System Information", micro-architecture levels; registries write them as
variants of linux/amd64. The flags are called as Linux has them in /proc/cpuinfo
(arch/x86/include/asm/cpufeatures.h).
"""

from __future__ import annotations

LEVELS = {"": 1, "v1": 1, "v2": 2, "v3": 3, "v4": 4}
_FLAGS = {
    2: "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3",
    3: "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    4: "avx512f avx512bw avx512cd avx512dq avx512vl",
}
_CPUINFO = "/proc/cpuinfo"


def host_level(path: str = _CPUINFO) -> int:
    """Return the highest level all of whose features this host has; 1 if nothing tells.

    A guest's CPU is this host's, less what KVM cannot offer, which none of the levels asks for.
    """
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return level_of(next((line for line in file if line.startswith("flags")), ""))
    except OSError:
        return 1


def level_of(flags: str) -> int:
    """Return the level of a CPU with these flags."""
    there = set(flags.split())
    level = 1
    while level + 1 in _FLAGS and there.issuperset(_FLAGS[level + 1].split()):
        level += 1
    return level
