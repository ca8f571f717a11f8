"""A vCPU's thread: KVM_RUN, and one switch on the exit reason.

Stopping: each thread has STOP_SIGNAL blocked; KVM_SET_SIGNAL_MASK unblocks it only inside KVM_RUN.
`kick` sets immediate_exit and sends the signal, so whether the thread is in KVM_RUN, about to enter
it, or in Python, the next or current KVM_RUN returns. No handler is installed, so a program that
embeds voidbox keeps its signals, and machines can be started from any thread.

Pausing: the same, but the thread waits after the KVM_RUN that was interrupted. KVM completes an
access that the thread has just served (the value of an IN, say) in the next KVM_RUN even if that
returns at once: only there does the thread wait, so none is lost or made twice.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from voidbox.devices.bus import Bus
from voidbox.errors import HostError
from voidbox.kvm import api
from voidbox.kvm._abi import ffi
from voidbox.kvm.vcpu import Vcpu
from voidbox.vmm.coalesced import CoalescedRing
from voidbox.vmm.outcome import EndReason, Outcome

STOP_SIGNAL = signal.SIGRTMIN
_THREAD_CLOCK = 6  # CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED, of <linux/posix-timers.h>

_KVM_EXIT_IO_IN = api.KVM_EXIT_IO_IN


class VcpuThread:
    """Runs one vCPU until the machine ends. Thread: any; `_main` and what it calls its own.

    Args:
        on_end: takes the outcome when this vCPU ends the machine; must not block.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        ports: Bus,
        mmio: Bus,
        coalesced: CoalescedRing | None,
        on_end: Callable[[Outcome], None],
    ) -> None:
        self.vcpu = vcpu
        self._ports = ports
        self._mmio = mmio
        self._coalesced = coalesced
        self._on_end = on_end
        self._stopping = False
        self._gate = threading.Condition()  # covers _stopping, the two below, and immediate_exit
        self._is_pause_wanted = False
        self._is_waiting = False  # halted, or ended
        self.exits: dict[int, int] = {}
        self.port_exits: dict[int, int] = {}
        self._mmio_word = ffi.cast("uint32_t *", vcpu.kvm_run.mmio.data)
        self._thread = threading.Thread(target=self._main, name=f"voidbox-vcpu{vcpu.vcpu_id}")

    def start(self) -> None:
        """Start the thread, STOP_SIGNAL blocked in it from its first instruction."""
        # Threads inherit the mask; blocked any later, an early kick would end the process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [STOP_SIGNAL])
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def kick(self) -> None:
        """End the thread's current or next KVM_RUN for good. Thread: any. Never blocks."""
        with self._gate:
            self._stopping = True
            self._interrupt()
            self._gate.notify_all()

    def _interrupt(self) -> None:
        self.vcpu.request_exit(True)
        ident = self._thread.ident
        if ident is not None and self._thread.is_alive():
            with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
                signal.pthread_kill(ident, STOP_SIGNAL)

    def request_pause(self) -> None:
        """Have the thread halt soon. Thread: any, one at a time with resume(). Never blocks."""
        with self._gate:
            if not (self._stopping or self._is_pause_wanted):
                self._is_pause_wanted = True
                self._interrupt()

    def wait_paused(self) -> None:
        """Wait until the thread has halted, or ended."""
        with self._gate:
            self._gate.wait_for(
                lambda: self._is_waiting or self._stopping or not self._thread.is_alive()
            )

    def resume(self) -> None:
        """Let the thread go on. Thread: any, one at a time with request_pause()."""
        with self._gate:
            if self._is_pause_wanted:
                self._is_pause_wanted = False
                if not self._stopping:
                    self.vcpu.request_exit(False)
                self._gate.notify_all()

    def cpu_ns(self) -> int:
        """Return the thread's CPU time, the guest's included; 0 once it has ended. Thread: any."""
        number = self._thread.native_id
        try:
            # A thread's clock by its number, made as clock_getcpuclockid(3) makes a process's.
            return time.clock_gettime_ns(~number << 3 | _THREAD_CLOCK) if number else 0
        except OSError:
            return 0

    def join(self) -> None:
        """Wait for the thread's end, if it was started."""
        if self._thread.ident is not None:
            self._thread.join()

    def _main(self) -> None:
        try:
            everything = set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP}
            self.vcpu.set_signal_mask(everything - {STOP_SIGNAL})
            outcome = self._run()
        except Exception as error:  # whatever it is, the machine ends and says so
            traceback.clear_frames(error.__traceback__)  # they hold kvm_run, which close() unmaps
            outcome = Outcome(EndReason.ERROR, str(error) or repr(error), error=error)
        with self._gate:
            self._is_waiting = True  # for ever: whoever pauses the machine need not wait for us
            self._gate.notify_all()
        if outcome is not None:
            self._on_end(outcome)

    def _run(self) -> Outcome | None:
        """Run until something ends the machine; None if `kick` did."""
        vcpu, kvm_run, exits = self.vcpu, self.vcpu.kvm_run, self.exits
        coalesced = self._coalesced
        while not self._stopping:
            reason = vcpu.run()
            exits[reason] = exits.get(reason, 0) + 1
            # Writes that were queued come before the access that caused this exit.
            if coalesced is not None and coalesced.has_entries():
                coalesced.drain()
            if reason == api.KVM_EXIT_IO:
                self._handle_io(kvm_run.io)
            elif reason == api.KVM_EXIT_MMIO:
                self._handle_mmio(kvm_run.mmio)
            elif reason == api.KVM_EXIT_INTR:
                self._halt()
            elif reason == api.KVM_EXIT_IRQ_WINDOW_OPEN:
                continue
            else:
                return self._end_of(reason)
        return None

    def _halt(self) -> None:
        """Wait for resume() or kick(), if a pause is wanted."""
        with self._gate:
            was_paused = self._is_pause_wanted
            if was_paused:
                self._is_waiting = True
                self._gate.notify_all()
                self._gate.wait_for(lambda: self._stopping or not self._is_pause_wanted)
                self._is_waiting = False
            # What interrupted KVM_RUN stays pending and would again. Whoever sends one sets
            # immediate_exit before: none is missed.
            while signal.sigtimedwait({STOP_SIGNAL}, 0) is not None:
                pass
        if was_paused:
            with contextlib.suppress(HostError):  # the guest does not use kvmclock, or not yet
                self.vcpu.kvmclock_ctrl()

    def _handle_io(self, io: Any) -> None:
        """Serve IN, OUT and their string forms: `count` items of `size` bytes each."""
        port, width, start, count = io.port, io.size, io.data_offset, io.count
        self.port_exits[port] = self.port_exits.get(port, 0) + 1
        view = self.vcpu.run_view
        is_in = io.direction == _KVM_EXIT_IO_IN
        for offset in range(start, start + width * count, width):
            item = view[offset : offset + width]
            if is_in:
                item[:] = self._ports.read(port, width).to_bytes(width, "little")
            else:
                self._ports.write(port, width, int.from_bytes(item, "little"))

    def _handle_mmio(self, mmio: Any) -> None:
        width, word = mmio.len, self._mmio_word
        if width == 4:  # what every virtio register is
            if mmio.is_write:
                self._mmio.write(mmio.phys_addr, 4, word[0])
            else:
                word[0] = self._mmio.read(mmio.phys_addr, 4)
        elif mmio.is_write:
            value = int.from_bytes(bytes(mmio.data[0:width]), "little")
            self._mmio.write(mmio.phys_addr, width, value)
        else:
            value = self._mmio.read(mmio.phys_addr, width)
            mmio.data[0:width] = value.to_bytes(width, "little")

    def _end_of(self, reason: int) -> Outcome:
        """Turn an exit that the machine cannot go on from into an outcome."""
        kvm_run = self.vcpu.kvm_run
        name = api.EXIT_NAMES.get(reason, f"exit reason {reason}")
        where = f"vCPU {self.vcpu.vcpu_id}: {name}"
        if reason == api.KVM_EXIT_SHUTDOWN:
            detail = f"{where}: a triple fault"
        elif reason == api.KVM_EXIT_HLT:
            detail = f"{where}: halted without an interrupt controller"
        elif reason == api.KVM_EXIT_SYSTEM_EVENT:
            return self._system_event(kvm_run.system_event.type, where)
        elif reason == api.KVM_EXIT_FAIL_ENTRY:
            entry_reason = kvm_run.fail_entry.hardware_entry_failure_reason
            detail = f"{where}: the processor refused the guest's state ({entry_reason:#x})"
        elif reason == api.KVM_EXIT_INTERNAL_ERROR:
            detail = f"{where}: {_internal_error(kvm_run)}"
        else:
            detail = f"{where}: voidbox does not handle it"
        return Outcome(EndReason.CRASH, detail, describe_registers(self.vcpu))

    def _system_event(self, kind: int, where: str) -> Outcome:
        if kind == api.KVM_SYSTEM_EVENT_SHUTDOWN:
            return Outcome(EndReason.POWER_OFF)
        if kind == api.KVM_SYSTEM_EVENT_RESET:
            return Outcome(EndReason.RESET)
        return Outcome(EndReason.CRASH, f"{where}: type {kind}", describe_registers(self.vcpu))


def _internal_error(kvm_run: Any) -> str:
    internal = kvm_run.internal
    if internal.suberror == api.KVM_INTERNAL_ERROR_EMULATION:
        failure = kvm_run.emulation_failure
        size = min(failure.insn_size, 15) if failure.ndata >= 3 and failure.flags & 1 else 0
        instruction = bytes(failure.insn_bytes[0:size]).hex(" ") or "unknown"
        return f"KVM could not emulate an instruction ({instruction})"
    data = " ".join(f"{internal.data[index]:#x}" for index in range(min(internal.ndata, 16)))
    return f"suberror {internal.suberror} {data}".rstrip()


def describe_registers(vcpu: Vcpu) -> str:
    """Return a vCPU's registers as a few lines of text. Thread: the vCPU's."""
    try:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    except HostError as error:
        return f"  not available: {error}"
    names = ["rip", "rflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"]
    names += [f"r{number}" for number in range(8, 16)]
    items = [f"{name}={getattr(regs, name):016x}" for name in names]
    items += [f"{name}={getattr(sregs, name):016x}" for name in ("cr0", "cr2", "cr3", "cr4")]
    items.append(f"efer={sregs.efer:x} cs={sregs.cs.selector:x}")
    return "\n".join("  " + " ".join(items[at : at + 4]) for at in range(0, len(items), 4))
