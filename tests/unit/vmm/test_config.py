"""Quantities that users write, and the ends that they read."""

from __future__ import annotations

import pytest

from voidbox.errors import ConfigError
from voidbox.vmm.config import MachineConfig, host_memory_bytes, parse_memory
from voidbox.vmm.outcome import EndReason, Outcome

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512M", 512 * MIB),
        ("512", 512 * MIB),
        ("4G", 4096 * MIB),
        ("1.5g", 1536 * MIB),
        (" 256MiB ", 256 * MIB),
        ("256mb", 256 * MIB),
        ("524288k", 512 * MIB),
    ],
)
def test_memory_is_read_as_people_write_it(text: str, expected: int) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "M", "x", "1X", "-1G", "nan", "inf", "1e99", "0x10", "1G1"])
def test_what_is_no_memory_is_said_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="no amount of memory") as error:
        parse_memory(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("cpus", 0, "choose 1 to 8"),
        ("cpus", -1, "choose 1 to 8"),
        ("cpus", 9, "choose 1 to 8"),
        ("memory_bytes", 0, "at least 16M"),
        ("memory_bytes", 15 * MIB, "at least 16M"),
        ("memory_bytes", host_memory_bytes() + MIB, "choose less"),
        ("memory_bytes", 1 << 60, "choose less"),
    ],
)
def test_limits(field: str, value: int, message: str) -> None:
    config = MachineConfig(kernel="k")
    config.validate()
    with pytest.raises(ConfigError, match=message):
        config._replace(**{field: value}).validate()  # type: ignore[arg-type]


def test_a_crash_is_described_with_all_that_is_known() -> None:
    text = Outcome(EndReason.CRASH, "why", "  rip=0", "last words").describe()
    assert text.splitlines() == [
        "the guest crashed: why",
        "registers:",
        "  rip=0",
        "the console's last lines:",
        "last words",
    ]
    assert Outcome(EndReason.POWER_OFF, console_tail="x").describe() == "the guest powered off"
