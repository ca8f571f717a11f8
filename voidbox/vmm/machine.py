"""The machine: a virtual computer.

    Hardware     KVM's VM: interrupt controllers, memory, vCPUs
    Board        the devices at fixed ports, and the ACPI tables
    Peripherals  the virtio devices, each with its backend
    Vcpus        a thread each, which runs the guest until it touches a device
    EventLoop    the other thread, on which devices meet the host

How they are made is in `assembly`, what is asked of a running machine in `controls`; here is its
life: start and end, pause, snapshots.

caller ── start, wait, stop ──► Machine ──► vCPU threads ──► buses ──► devices
                                   └──────► event loop ◄── console, timers, eventfds
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from voidbox.errors import HostError
from voidbox.kvm import KVM_DEVICE
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.console import wait_flushed
from voidbox.vmm.controls import Controls
from voidbox.vmm.outcome import EndReason, Outcome

if TYPE_CHECKING:  # imported where they are used: a machine without them starts sooner
    from voidbox.vmm.restore import Restore
    from voidbox.vmm.snapshot import SnapshotReport

_FLUSH_S = 1.0
_PAUSE_S = 15.0  # for a device to finish what is under way, and for its loop to get there


class Machine(Controls):
    """One virtual machine. Thread: the caller's, any one at a time, where nothing else is said.

    Attributes:
        console: its first serial port.

    `with Machine(config) as machine: machine.start(); outcome = machine.wait()`

    Raises:
        ConfigError: the configuration or one of its files cannot be used.
        HostError: KVM is missing, forbidden or lacks something.
    """

    def __init__(
        self, config: MachineConfig, kvm_path: str = KVM_DEVICE, restore: Restore | None = None
    ) -> None:
        self._pause_lock = threading.RLock()  # whoever has the machine stand still, or go on
        self._snapshot_lock = threading.Lock()  # one snapshot at a time
        super().__init__(config, kvm_path, restore)

    # Its life.

    def start(self) -> None:
        """Start the event loops and the vCPUs. Once.

        Raises:
            ConfigError: this host cannot go on with the snapshot that the machine is of.
            HostError: the host gives no thread.
        """
        if self._restore is not None:
            self._restore.start(self._hardware.vm, self._hardware.vcpus)
            self.write_generation_id()
            self.announce_generation()
            self._board.raise_lines()
        try:
            for loop in (self.loop, *self._peripherals.loops):
                loop.start()
            self._started_ns = time.monotonic_ns()
            self._vcpus.start()
        except RuntimeError as error:
            raise HostError(f"the host gives no thread ({error}): end other processes") from error
        self.loop.call_soon(self._board.drain_regularly)

    def wait(self, timeout_s: float | None = None) -> Outcome | None:
        """Wait for the machine's end; None if `timeout_s` seconds pass before.

        Every vCPU thread has ended when an outcome is returned, and its console tail is complete.
        Thread: any but the loop, several at once.
        """
        if timeout_s is not None:
            timeout_s = min(timeout_s, threading.TIMEOUT_MAX)
        if not self._ended.wait(timeout_s):
            return None
        self._vcpus.join()
        # The tail needs the last output; an output that blocks must not hold back the outcome.
        wait_flushed(self.loop, self.console, _FLUSH_S)
        assert self._outcome is not None
        outcome = self._outcome._replace(console_tail=self.console.tail())
        return outcome.explained_by(self.console.text())

    def stop(self) -> None:
        """End the machine at once, as if its power were cut. Thread: any. Never blocks."""
        self._end(Outcome(EndReason.STOPPED))

    def pause(self) -> None:
        """Halt the vCPUs and the devices. Thread: any but a loop. Idempotent.

        When it returns, none runs, and nothing changes guest memory until resume(). What devices
        have for the guest waits for it. Its clocks go on, as when a laptop is busy elsewhere. A
        machine that has ended ignores it.

        Raises:
            HostError: a disk or a shared folder does not finish what it is at; all goes on.
        """
        with self._pause_lock:
            was_paused = self.is_paused
            self._vcpus.pause()
            if self._started_ns is None:
                return
            try:
                self._board.drain()
                self._peripherals.slots.pause(_PAUSE_S)
            except BaseException:
                if not was_paused:
                    self.resume()
                raise

    def resume(self) -> None:
        """Let all go on after pause(). Thread: any but a loop. Idempotent."""
        with self._pause_lock:
            self._peripherals.slots.resume()
            self._vcpus.resume()

    @property
    def is_paused(self) -> bool:
        """Whether pause() came last. Thread: any."""
        return self._vcpus.is_paused

    def _resume_but_disks(self) -> None:
        self._peripherals.resume_but_disks()
        self._vcpus.resume()

    # Snapshots.

    @classmethod
    def from_snapshot(
        cls,
        folder: str,
        config: MachineConfig,
        *,
        memory: Literal["lazy", "eager"] = "lazy",
        kvm_path: str = KVM_DEVICE,
    ) -> Machine:
        """Make a machine that goes on where a snapshot's was; time does from start() on.

        The guest finds that its connections are over, and all else as it was. Everything that the
        host has of it is this machine's own: sockets, ports, overlays.

        Args:
            folder: the snapshot's.
            config: the machine's, with as much memory, as many CPUs and the same devices as the
                snapshot's. Kernel, initramfs and command line are not looked at. An overlay of a
                disk that the snapshot has a copy of must not be there: it is made of the copy.
            memory: see Restore.
        Raises:
            ConfigError: the snapshot cannot be restored here, or not with this `config`.
            HostError: KVM is missing, forbidden or lacks something.
        """
        from voidbox.vmm.restore import Restore

        config.validate()
        restore = Restore(folder, config, memory)
        try:
            return cls(config, kvm_path, restore)
        except BaseException:
            restore.abort()
            raise

    def snapshot(
        self,
        folder: str,
        *,
        stop: bool = False,
        disks: Literal["copy", "stay"] = "copy",
        extra: Mapping[str, bytes] | None = None,
        timeout_s: float = 300.0,
        on_frozen: Callable[[], object] = lambda: None,
    ) -> SnapshotReport:
        """Save the machine, its memory and its disks as they are now. Thread: any but a loop.

        It stands still for some milliseconds, while its state is read and a helper forked off,
        which then writes the memory as it was; or, with `stop`, for as long as all takes, and ends
        when it is done. Whatever fails, it goes on as before.

        Args:
            folder: is made, whole or not at all; until then `folder`.part is there.
            disks: "stay", with `stop`: they are not copied, but must be as they are now when the
                snapshot is restored, with the same files.
            extra: more files for the folder.
            on_frozen: called once all that is saved is held, and the machine goes on; it must not
                raise. Not with `stop`.
        Raises:
            ConfigError: the folder is there; or the machine has what cannot be kept: a shared
                folder, a disk without an overlay, a guest with virtual machines of its own.
            HostError: another snapshot is being made, the machine has ended, a device is busy, the
                files cannot be written, time ran out.
        """
        from voidbox.vmm import snapshot

        parts = snapshot.Parts(
            self.config, self._hardware, self._board, self._peripherals, self.loop, self._line_lock
        )
        control = snapshot.Control(
            lock=self._pause_lock,
            is_paused=lambda: self.is_paused,
            pause=self._pause_living,
            resume=self.resume,
            resume_but_disks=self._resume_but_disks,
            end=self.stop,
        )
        if not self._snapshot_lock.acquire(blocking=False):
            raise HostError("a snapshot of this machine is being made: wait for it")
        try:
            return snapshot.take(
                parts,
                control,
                folder,
                stop=stop,
                disks_stay=disks == "stay",
                extra=extra or {},
                timeout_s=timeout_s,
                on_frozen=on_frozen,
            )
        finally:
            self._snapshot_lock.release()

    def _pause_living(self) -> None:
        """Pause; a machine that has not begun, or has ended, is none to be saved."""
        if self._started_ns is None:
            raise HostError("the machine was not started: there is nothing to save")
        self.pause()
        with self._end_lock:
            if self._outcome is not None:
                raise HostError(f"the machine has ended: {self._outcome.headline()}")

    def record_working_set(self, path: str, bytes_max: int) -> int:
        """Write down what the guest has touched since its restore, for later restores to fetch.

        Args:
            path: "working-set" in the snapshot's folder; one that is there stays. Thread: any.
            bytes_max: of more nothing is written down.
        Returns:
            How many bytes it has touched.
        Raises:
            HostError: it cannot be written; or the machine was not restored lazily.
        """
        from voidbox.vmm.restore import record_working_set

        return record_working_set(path, self.memory, bytes_max)

    # Its end.

    def close(self) -> None:
        """Stop, wait for every thread, and free everything. Idempotent."""
        self.stop()
        self._throttle.close()
        self._vcpus.join()
        with self._end_lock:  # another thread's stop() may still be kicking
            pass
        self._resources.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
