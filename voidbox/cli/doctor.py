"""`voidbox doctor`: can this host run VMs? Each check says what it found and what to do."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from contextlib import closing

from voidbox.cli import exit_status
from voidbox.cli.doctor_check import FAIL, PASS, WARN, Check
from voidbox.cli.doctor_files import examine_files
from voidbox.cli.parser import make_parser
from voidbox.errors import HostError
from voidbox.kvm import KVM_DEVICE, api
from voidbox.kvm.kvm import Kvm
from voidbox.vmm import probe, requirements

VHOST_VSOCK_DEVICE = "/dev/vhost-vsock"
NX_HUGE_PAGES = "/sys/module/kvm/parameters/nx_huge_pages"
_FREE_MEMORY_BYTES_MIN = 512 << 20

_MARKS = {PASS: "ok  ", WARN: "note", FAIL: "FAIL"}


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser(
        "doctor",
        "Check that this host can run VMs. Exit status: 0 if it can, 2 if not.",
        "examples:\n  voidbox doctor\n  voidbox doctor --json\n",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    checks = list(examine())
    is_well = all(check.status != FAIL for check in checks)
    if options.json:
        import json

        findings = [check._asdict() for check in checks]
        print(json.dumps({"ok": is_well, "checks": findings}, indent=1))
    else:
        for check in checks:
            print(f"{_MARKS[check.status]}  {check.name}: {check.found}")
            if check.todo:
                print(f"      → {check.todo}")
    return exit_status.OK if is_well else exit_status.USAGE


def examine(kvm_path: str = KVM_DEVICE) -> Iterator[Check]:
    """Yield the findings, each as soon as it is known."""
    yield _check_machine()
    try:
        kvm = Kvm(kvm_path)
    except HostError as error:
        found, _, todo = str(error).partition(": ")
        yield Check("kvm", FAIL, found, todo)
    else:
        with closing(kvm):
            yield Check("kvm", PASS, f"{kvm_path} is usable")
            yield from _check_kvm(kvm)
    yield _check_vhost_vsock()
    yield _check_free_memory()
    yield from examine_files()
    yield from _check_jail()


def _check_machine() -> Check:
    machine = platform.machine()
    if machine == "x86_64":
        return Check("machine", PASS, f"{machine}, Linux {platform.release()}")
    return Check("machine", FAIL, machine, "use an x86-64 host")


def _check_kvm(kvm: Kvm) -> Iterator[Check]:
    version = kvm.get_api_version()
    if version == api.KVM_API_VERSION:
        yield Check("api version", PASS, str(version))
    else:
        yield Check("api version", FAIL, str(version), "use Linux 4.12 or newer")
    missing = requirements.missing_capabilities(kvm)
    if missing:
        yield Check("capabilities", FAIL, f"missing: {', '.join(missing)}", "use a newer Linux")
        return
    yield Check("capabilities", PASS, f"all {len(requirements.REQUIRED_CAPABILITIES)} are there")
    if not kvm.check_extension(api.KVM_CAP_COALESCED_PIO):
        yield Check("coalesced port I/O", WARN, "not there: consoles are slower", "")
    yield _check_speed(kvm)
    yield _check_nx_huge_pages()


def _check_speed(kvm: Kvm) -> Check:
    try:
        result = probe.measure(kvm)
    except HostError as error:
        return Check("speed", FAIL, str(error), "report it with the host's CPU and kernel version")
    found = f"{result.ns_per_loop:.1f} ns a loop"
    if result.is_emulated:
        return Check(
            "speed",
            FAIL,
            f"{found}: this KVM emulates every instruction; Linux cannot boot on it",
            "use a host with hardware virtualisation (on a cloud VM, switch on nested "
            "virtualisation); for tests there is scripts/kvm-lab",
        )
    return Check("speed", PASS, f"{found}: the guest runs on the processor itself")


def _check_nx_huge_pages() -> Check:
    """The iTLB-multihit mitigation makes KVM_CREATE_VM wait tens of milliseconds on Linux 6.x."""
    try:
        with open(NX_HUGE_PAGES, encoding="ascii") as file:
            value = file.read().strip()
    except OSError:
        return Check("nx_huge_pages", PASS, "not used by this host's KVM")
    if value in ("Y", "1", "force"):
        return Check(
            "nx_huge_pages",
            WARN,
            "on: creating a VM can take tens of milliseconds more",
            "on trusted guests or unaffected CPUs: boot the host with kvm.nx_huge_pages=never",
        )
    return Check("nx_huge_pages", PASS, "off")


def _check_vhost_vsock() -> Check:
    if not os.path.exists(VHOST_VSOCK_DEVICE):
        return Check(
            "vhost-vsock",
            WARN,
            f"{VHOST_VSOCK_DEVICE} is missing: not needed, only faster",
            "sudo modprobe vhost_vsock",
        )
    if not os.access(VHOST_VSOCK_DEVICE, os.R_OK | os.W_OK):
        return Check(
            "vhost-vsock",
            WARN,
            f"{VHOST_VSOCK_DEVICE} is not yours to open: not needed, only faster",
            f"sudo setfacl -m u:$USER:rw {VHOST_VSOCK_DEVICE}",
        )
    return Check("vhost-vsock", PASS, f"{VHOST_VSOCK_DEVICE} is usable")


def _check_jail() -> Iterator[Check]:
    from voidbox.cli import doctor_jail

    for finding in [*doctor_jail.findings(), doctor_jail.limits()]:
        status = PASS if finding.is_well else FAIL if finding.is_fatal else WARN
        yield Check(finding.name, status, finding.found, finding.todo)


def _check_free_memory() -> Check:
    available_bytes = 0
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                available_bytes = int(line.split()[1]) << 10
    found = f"{available_bytes >> 20} MiB available"
    if available_bytes < _FREE_MEMORY_BYTES_MIN:
        return Check("memory", WARN, found, "give VMs less with --memory, or end other programs")
    return Check("memory", PASS, found)
