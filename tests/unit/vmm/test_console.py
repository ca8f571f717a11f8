"""The console's host side over real pipes: slow readers, gone readers, bounded input."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from voidbox.devices import serial as uart
from voidbox.devices.serial import Serial
from voidbox.event_loop import EventLoop
from voidbox.vmm.console import TAIL_BYTES, CallbackOutput, Console, FdOutput, wait_flushed

DEADLINE_S = 60


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    errors: list[BaseException] = []
    loop = EventLoop(errors.append)
    loop.start()
    yield loop
    loop.close()
    assert errors == []


@pytest.fixture
def serial() -> Serial:
    return Serial(lambda level: None)


def print_from_guest(serial: Serial, data: bytes) -> int:
    """Send as a guest that polls LSR; returns how much it got rid of."""
    for count, byte in enumerate(data):
        if not serial.read(uart.UART_LSR, 1) & uart.UART_LSR_THRE:
            return count
        serial.write(uart.UART_TX, 1, byte)
    return len(data)


def test_output_reaches_every_listener(loop: EventLoop, serial: Serial) -> None:
    console = Console(loop, serial)
    first, second = bytearray(), bytearray()
    console.attach(CallbackOutput(first.extend))
    console.attach(CallbackOutput(second.extend))
    print_from_guest(serial, b"hello\r\n")
    assert wait_flushed(loop, console, DEADLINE_S)
    assert first == second == b"hello\r\n"
    assert console.tail() == "hello"


def test_a_slow_reader_holds_the_guest_back_and_loses_nothing(
    loop: EventLoop, serial: Serial
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    console = Console(loop, serial)
    console.attach(FdOutput(loop, writer, lambda error: None))
    data = bytes(range(256)) * 2048
    sent = print_from_guest(serial, data)
    assert not wait_flushed(loop, console, 0.05)
    received = bytearray()
    while len(received) < len(data):
        received += os.read(reader, 1 << 16)
        sent += print_from_guest(serial, data[sent:])
    assert received == data
    assert wait_flushed(loop, console, DEADLINE_S)
    os.close(reader)
    os.close(writer)


def test_a_reader_that_leaves_is_told_once(loop: EventLoop, serial: Serial) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    broken: list[int] = []
    came = threading.Event()
    console = Console(loop, serial)
    console.attach(FdOutput(loop, writer, lambda error: (broken.append(1), came.set())))  # type: ignore[func-returns-value]
    os.close(reader)
    print_from_guest(serial, b"to nobody")
    assert came.wait(DEADLINE_S)
    print_from_guest(serial, b"again")
    assert wait_flushed(loop, console, DEADLINE_S)
    assert broken == [1]
    os.close(writer)


def test_the_tail_is_bounded_and_printable(loop: EventLoop, serial: Serial) -> None:
    console = Console(loop, serial)
    print_from_guest(serial, b"old\n" + b"x" * TAIL_BYTES)
    assert wait_flushed(loop, console, DEADLINE_S)
    assert "old" not in console.text()
    print_from_guest(serial, b"\n\x1b[31mred\x1b[0m\x00\xff\nlast\n")
    assert wait_flushed(loop, console, DEADLINE_S)
    assert console.tail().splitlines()[-2:] == ["[31mred[0m\ufffd", "last"]
    assert len(console.tail().splitlines()) <= 20


def test_input_waits_for_the_guest(loop: EventLoop, serial: Serial) -> None:
    console = Console(loop, serial)
    empty = threading.Event()
    console.on_input_empty = empty.set
    data = bytes(range(256)) * 64
    console.send(data)
    assert not empty.wait(0.05), "the guest does not listen yet"
    serial.write(uart.UART_IER, 1, uart.UART_IER_RDI)
    assert not empty.wait(0.05), "it does not read"
    received = bytearray()
    while len(received) < len(data):
        if serial.read(uart.UART_LSR, 1) & uart.UART_LSR_DR:
            received.append(serial.read(uart.UART_RX, 1))
    assert received == data
    assert empty.wait(DEADLINE_S)
