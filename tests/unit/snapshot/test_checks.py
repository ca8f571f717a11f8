"""Whether a snapshot may go on on another host."""

from __future__ import annotations

import pytest

from voidbox.boot.cpuid import CpuidEntry
from voidbox.errors import ConfigError
from voidbox.kvm.state import is_same_frequency, saved_msrs
from voidbox.snapshot.checks import Host, check_cpuid, check_host

HOST = Host("GenuineIntel", "6", "143", "8", "0x2b", "6.1.0")


def test_the_same_kind_of_processor() -> None:
    assert check_host(HOST, HOST) == []
    warnings = check_host(HOST, HOST._replace(microcode="0x2c", release="6.8.0"))
    assert len(warnings) == 2
    for change in ({"vendor": "AuthenticAMD"}, {"family": "7"}, {"model": "1"}, {"stepping": "7"}):
        with pytest.raises(ConfigError, match="another processor"):
            check_host(HOST, HOST._replace(**change))  # type: ignore[arg-type]
    check_host(Host("", "", "", "", "", "6.1.0"), HOST)


def test_this_host_can_be_told() -> None:
    assert Host.here().vendor
    assert Host.here().release


LEAVES = (
    CpuidEntry(1, 0, 0, 0x806F8, 0x100800, 0b1011, 0b110),
    CpuidEntry(7, 0, 1, 2, 0b11, 0b100, 0b1),
    CpuidEntry(0xD, 0, 1, 7, 576, 832, 0),
    CpuidEntry(0xD, 2, 1, 256, 576, 0, 0),
    CpuidEntry(0xD, 1, 1, 0b1111, 832, 0, 0),
    CpuidEntry(0xD, 5, 1, 0, 0, 0, 0),
)


def changed(index: int, **values: int) -> tuple[CpuidEntry, ...]:
    leaves = list(LEAVES)
    leaves[index] = leaves[index]._replace(**values)
    return tuple(leaves)


def test_more_features_are_no_harm_and_fewer_are_refused() -> None:
    check_cpuid(LEAVES, LEAVES)
    check_cpuid(LEAVES, changed(0, ecx=0b1111, edx=0xFFFF, ebx=5, eax=1))
    check_cpuid(changed(0, ecx=0b1011 | 1 << 27), LEAVES)  # OSXSAVE is the guest's own
    for leaves in (changed(0, ecx=0b0011), changed(1, ebx=0b01), LEAVES[1:]):
        with pytest.raises(ConfigError, match="CPUID"):
            check_cpuid(LEAVES, leaves)


def test_another_layout_of_xsave_is_refused() -> None:
    for leaves in (changed(3, ebx=640), changed(3, eax=512), LEAVES[:3] + LEAVES[4:]):
        with pytest.raises(ConfigError, match="layout"):
            check_cpuid(LEAVES, leaves)
    check_cpuid(LEAVES, changed(2, ebx=832))  # what is switched on
    check_cpuid(LEAVES, changed(4, ebx=576))  # the same, compacted
    check_cpuid(LEAVES, LEAVES[:5])  # the last is of nothing


def test_frequencies() -> None:
    assert is_same_frequency(2_400_000, 2_400_500)
    assert not is_same_frequency(2_400_000, 2_401_000)


def test_which_msrs_are_kept() -> None:
    listed = [0x10, 0x174, 0x6E0, 0x4B564D00, 0x4B564D07, 0xDA0, 0x40000001, 0xC1, 0x480, 0x3B]

    class FakeKvm:
        @staticmethod
        def get_msr_index_list() -> list[int]:
            return listed

    kept = saved_msrs(FakeKvm())  # type: ignore[arg-type]
    assert {0x174, 0x4B564D00, 0x4B564D07, 0xDA0, 0x3B} <= set(kept)
    assert {0x2FF, 0x200, 0x20F, 0x250, 0x26F} <= set(kept)  # the MTRRs, which KVM does not list
    assert not {0x10, 0x6E0, 0x40000001, 0xC1, 0x480} & set(kept)
    assert len(kept) == len(set(kept))
