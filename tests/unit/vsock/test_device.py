"""The virtio-vsock device: configuration, resets, and drivers that break the rules."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.unit.vsock.guest import GUEST_CID, RW, raw
from tests.unit.vsock.machine import Machine
from voidbox.virtio.device import VIRTIO_CONFIG_S_NEEDS_RESET
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.vsock import EVENT_QUEUE, RX_QUEUE, TX_PASS_CHAINS, TX_QUEUE


def test_configuration(machine: Machine) -> None:
    assert machine.device.device_id == 19
    assert machine.driver.config(0, 8) == struct.pack("<Q", GUEST_CID)
    assert machine.driver.config(8, 4) == bytes(4)


def test_transport_reset_ends_old_connections_and_holds_new_ones_back(machine: Machine) -> None:
    old = machine.open_to_guest()
    rx = machine.driver.queues[RX_QUEUE]
    event = machine.driver.queues[EVENT_QUEUE]
    machine.settle()
    machine.device.transport_reset()
    assert machine.receive(old, 1) == b""
    machine.settle()
    assert machine.events == [struct.pack("<I", 0)]
    used_idx = rx.used_idx
    machine.guest.sockets.clear()  # what Linux does at the event
    machine.guest.accepted.clear()
    new = machine.connect(b"CONNECT 22\n")
    machine.settle()
    assert rx.used_idx == used_idx  # the driver has not posted the event buffer again
    event.add(writable=[4])
    assert machine.driver.kick(EVENT_QUEUE)
    assert machine.receive(new, 3) == b"OK "
    for program in (old, new):
        program.close()
    machine.settle()


def test_transport_reset_waits_for_an_event_buffer(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "v.sock")
    machine.driver.probe()
    machine.refill()
    machine.turn()
    machine.device.transport_reset()
    machine.settle()
    event = machine.driver.queues[EVENT_QUEUE]
    assert event.used_idx == 0
    event.add(writable=[4])
    machine.driver.kick(EVENT_QUEUE)
    machine.settle()
    assert machine.events == [struct.pack("<I", 0)]
    machine.close()


def test_transport_reset_right_after_a_restore(tmp_path: Path) -> None:
    """A machine that continues over the rings of another, whose connections are gone."""
    old = Machine(tmp_path / "old.sock")
    old.boot()
    program = old.open_to_guest()
    state = old.transport.state()
    new = Machine(tmp_path / "new.sock")
    new.transport = MmioTransport.from_state(
        state,
        device=new.device,
        memory=old.memory,
        pulse_irq=new.line.pulse,
        loop_call_soon=new.loop.call_soon,
    )
    old.driver.registers = new.transport
    new.driver, new.guest, new._outbox = old.driver, old.guest, old._outbox
    new.line.on_pulse = old.driver.interrupt
    new.device.transport_reset()  # before the loop has activated it
    new.guest.sockets.clear()
    new.guest.accepted.clear()
    waiting = new.connect(b"CONNECT 22\n")
    new.settle()
    assert new.events == [struct.pack("<I", 0)]
    assert not new.guest.accepted
    new.driver.queues[EVENT_QUEUE].add(writable=[4])
    new.driver.kick(EVENT_QUEUE)
    assert new.receive(waiting, 3) == b"OK "
    for end in (program, waiting):
        end.close()
    new.close()
    old.close()


@pytest.mark.parametrize("cycles", [5])
def test_transport_reset_again_and_again(machine: Machine, cycles: int) -> None:
    for _ in range(cycles):
        program = machine.open_to_guest()
        machine.device.transport_reset()
        assert machine.receive(program, 1) == b""
        machine.guest.sockets.clear()
        machine.driver.queues[EVENT_QUEUE].add(writable=[4])
        machine.driver.kick(EVENT_QUEUE)
        machine.settle()
        program.close()
    assert len(machine.events) == cycles


def test_a_reset_by_the_driver_kills_connections_and_spares_the_listener(machine: Machine) -> None:
    program = machine.open_to_guest()
    machine.loop.call_soon(machine.driver.reset)  # as a driver that is unbound
    machine.turn()
    assert machine.receive(program, 1) == b""
    program.close()
    machine.guest.sockets.clear()
    waiting = machine.connect(b"CONNECT 22\n")  # while there is no driver
    machine.turn()
    machine.boot()
    assert machine.receive(waiting, 3) == b"OK "
    waiting.close()
    machine.settle()


def needs_reset(machine: Machine) -> bool:
    return bool(machine.driver.status & VIRTIO_CONFIG_S_NEEDS_RESET)


def test_a_flood_of_tx_leaves_the_loop_to_others(machine: Machine) -> None:
    tx = machine.driver.queues[TX_QUEUE]
    for port in range(200):
        tx.add(readable=[raw(RW, port, 1)])
    machine.driver.kick(TX_QUEUE)
    machine.loop.turn()
    assert tx.used_idx - tx.last_used_idx <= TX_PASS_CHAINS
    machine.settle()
    assert tx.used_idx == tx.avail_idx
    assert machine.backend.statistics().muxer.refused == 200


@pytest.mark.parametrize("data", [b"\0", bytes(43), bytes(44), raw(RW, 1, 2, length=9)])
def test_a_bad_packet_is_dropped(machine: Machine, data: bytes) -> None:
    machine.driver.queues[TX_QUEUE].add(readable=[data])
    machine.driver.kick(TX_QUEUE)
    machine.settle()
    assert not needs_reset(machine)
    assert machine.backend.statistics().muxer.invalid_packets == 1
    with machine.open_to_guest():
        pass
    machine.settle()


def test_a_writable_tx_buffer_needs_a_reset(machine: Machine) -> None:
    machine.driver.queues[TX_QUEUE].add(readable=[bytes(44)], writable=[10])
    machine.driver.kick(TX_QUEUE)
    machine.settle()
    assert needs_reset(machine)


def test_an_event_buffer_that_is_too_small_needs_a_reset(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "v.sock")
    machine.driver.probe()
    machine.turn()
    machine.driver.queues[EVENT_QUEUE].add(writable=[3])
    machine.device.transport_reset()
    machine.settle()
    assert needs_reset(machine)
    machine.close()


@pytest.mark.parametrize("layout", [(44,), (43,), (1,)])
def test_rx_buffers_without_room_need_a_reset_and_do_not_spin(
    tmp_path: Path, layout: tuple[int, ...]
) -> None:
    machine = Machine(tmp_path / "v.sock", rx_layout=layout)
    machine.boot()
    with machine.connect(b"CONNECT 22\n") as program:
        machine.until(lambda: needs_reset(machine))
        program.send(b"data")
    machine.settle()
    assert machine.loop.calls < 200
    machine.close()


def test_buffers_that_a_short_read_leaves_are_the_drivers_and_are_used_next(
    machine: Machine,
) -> None:
    program = machine.open_to_guest()
    sent = b""
    for size in (300_000, 1, 70_000, 5, 4096, 262_144, 3):
        data = random.Random(size).randbytes(size)
        sent += data
        machine.send(program, data)
        machine.settle()
        rx = machine.transport.state().virtqueues[RX_QUEUE]  # refuses what a device holds
        assert rx.next_avail_idx == rx.next_used_idx == rx.published_idx
    assert machine.guest.accepted[-1].data == sent
    program.close()
    machine.settle()
