"""The UART, driven as Linux's 8250 driver drives it, and as no driver should."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox.devices import serial as uart
from voidbox.devices.serial import OUTPUT_BYTES_MAX, Serial

TX_BURST = 16


class Line:
    """An interrupt line that remembers its level and its rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def __call__(self, level: bool) -> None:
        assert level != self.level, "a change that is none costs an ioctl"
        self.level = level
        self.edges += level


class Driver:
    """Linux's serial8250: interrupt-driven, with a transmit queue and a receive buffer."""

    def __init__(self, port: Serial, line: Line) -> None:
        self.port, self.line = port, line
        self.queue = bytearray()
        self.received = bytearray()
        port.write(uart.UART_FCR, 1, uart.UART_FCR_ENABLE_FIFO)
        port.write(uart.UART_IER, 1, uart.UART_IER_RDI)

    def send(self, data: bytes) -> None:
        self.queue += data
        self.port.write(uart.UART_IER, 1, uart.UART_IER_RDI | uart.UART_IER_THRI)

    def handle_interrupts(self) -> None:
        """The handler: as long as IIR names a cause."""
        while self.line.level:
            cause = self.port.read(uart.UART_IIR, 1)
            if cause & uart.UART_IIR_NO_INT:
                break
            status = self.port.read(uart.UART_LSR, 1)
            while status & uart.UART_LSR_DR:
                self.received.append(self.port.read(uart.UART_RX, 1))
                status = self.port.read(uart.UART_LSR, 1)
            if status & uart.UART_LSR_THRE:
                burst, self.queue = self.queue[:TX_BURST], self.queue[TX_BURST:]
                for byte in burst:
                    self.port.write(uart.UART_TX, 1, byte)
                if not self.queue:
                    self.port.write(uart.UART_IER, 1, uart.UART_IER_RDI)


def make() -> tuple[Serial, Line, Driver]:
    line = Line()
    port = Serial(line)
    return port, line, Driver(port, line)


def test_polled_output() -> None:
    calls: list[int] = []
    port = Serial(Line(), on_output=lambda: calls.append(1))
    for byte in b"hello":
        assert port.read(uart.UART_LSR, 1) & uart.UART_LSR_THRE
        port.write(uart.UART_TX, 1, byte)
    assert port.take_output() == b"hello"
    assert port.take_output() == b""
    assert calls == [1], "one call for a burst"


@given(st.binary(max_size=2000))
@settings(max_examples=50)
def test_interrupt_driven_output(data: bytes) -> None:
    port, line, driver = make()
    driver.send(data)
    driver.handle_interrupts()
    assert port.take_output() == data
    assert not line.level


def test_output_waits_for_a_slow_host_and_loses_nothing() -> None:
    port, _, driver = make()
    data = bytes(range(256)) * 1024
    driver.send(data)
    driver.handle_interrupts()
    taken = bytearray()
    while len(taken) < len(data):
        piece = port.take_output()
        assert 0 < len(piece) < OUTPUT_BYTES_MAX + TX_BURST
        taken += piece
        driver.handle_interrupts()
    assert taken == data


def test_a_flood_that_does_not_wait_is_bounded() -> None:
    port = Serial(Line())
    for _ in range(3 * OUTPUT_BYTES_MAX):
        port.write(uart.UART_TX, 1, 0x41)
    assert not port.read(uart.UART_LSR, 1) & uart.UART_LSR_THRE
    assert len(port.take_output()) < 2 * OUTPUT_BYTES_MAX
    assert port.read(uart.UART_LSR, 1) & uart.UART_LSR_THRE


def test_input_raises_the_line_and_waits_for_the_guest() -> None:
    room: list[int] = []
    port, line, driver = make()
    port.on_input_room = lambda: room.append(1)
    pending = bytes(range(256)) * 40
    accepted = port.receive(pending)
    assert accepted == uart.INPUT_BYTES_MAX
    assert line.level
    while pending := pending[accepted:]:
        driver.handle_interrupts()
        assert room.pop() == 1
        accepted = port.receive(pending)
    driver.handle_interrupts()
    assert driver.received == bytes(range(256)) * 40
    assert not room
    assert not line.level


def test_input_is_held_back_until_the_guest_listens() -> None:
    listening: list[int] = []
    port = Serial(Line(), on_listening=lambda: listening.append(1))
    assert port.receive(b"early") == 0
    # What Linux's startup() does: empty the receiver, by FCR and by reading.
    port.write(uart.UART_FCR, 1, uart.UART_FCR_ENABLE_FIFO | uart.UART_FCR_CLEAR_RCVR)
    assert port.read(uart.UART_RX, 1) == 0
    assert not listening
    port.write(uart.UART_IER, 1, uart.UART_IER_RDI)
    assert listening == [1]
    assert port.receive(b"now") == 3
    # Linux's console writes with interrupts off, and on again: no call unless bytes wait.
    port.write(uart.UART_IER, 1, 0)
    port.write(uart.UART_IER, 1, uart.UART_IER_RDI)
    assert listening == [1]
    port.write(uart.UART_IER, 1, 0)
    assert port.receive(b"closed") == 0
    port.write(uart.UART_IER, 1, uart.UART_IER_RDI)
    assert listening == [1, 1]


def test_a_guest_that_polls_listens_too() -> None:
    listening: list[int] = []
    port = Serial(Line(), on_listening=lambda: listening.append(1))
    assert port.receive(b"x") == 0
    for byte in b"a message, each byte after one look at LSR" * 10:
        port.read(uart.UART_LSR, 1)
        port.write(uart.UART_TX, 1, byte)
    assert not listening
    for _ in range(100):
        port.read(uart.UART_LSR, 1)
    assert listening == [1]
    assert port.receive(b"x") == 1
    assert port.read(uart.UART_LSR, 1) & uart.UART_LSR_DR


def test_clearing_the_receiver_makes_room_too() -> None:
    room: list[int] = []
    port = Serial(Line(), on_input_room=lambda: room.append(1))
    port.write(uart.UART_IER, 1, uart.UART_IER_RDI)
    port.receive(bytes(uart.INPUT_BYTES_MAX + 1))
    port.write(uart.UART_FCR, 1, uart.UART_FCR_CLEAR_RCVR)
    assert room == [1]
    assert port.receive(b"x") == 1


def test_received_data_has_priority_over_the_transmitter() -> None:
    port, line, _ = make()
    port.write(uart.UART_IER, 1, uart.UART_IER_RDI | uart.UART_IER_THRI)
    port.receive(b"x")
    assert port.read(uart.UART_IIR, 1) & 0x0F == uart.UART_IIR_RDI
    port.read(uart.UART_RX, 1)
    assert line.level
    assert port.read(uart.UART_IIR, 1) & 0x0F == uart.UART_IIR_THRI
    assert port.read(uart.UART_IIR, 1) & 0x0F == uart.UART_IIR_NO_INT
    assert not line.level


def test_what_linuxs_autoconfig_looks_at() -> None:
    port = Serial(Line())
    port.write(uart.UART_IER, 1, 0)
    assert port.read(uart.UART_IER, 1) == 0
    port.write(uart.UART_IER, 1, 0x0F)
    assert port.read(uart.UART_IER, 1) == 0x0F
    # Loopback: OUT2 and RTS come back as DCD and CTS.
    port.write(uart.UART_MCR, 1, uart.UART_MCR_LOOP | 0x0A)
    assert port.read(uart.UART_MSR, 1) & 0xF0 == 0x90
    port.write(uart.UART_TX, 1, 0x5A)
    assert port.read(uart.UART_RX, 1) == 0x5A
    assert port.take_output() == b""
    port.write(uart.UART_MCR, 1, 0)
    # A 16550A says so in IIR once its FIFO is on, and has a scratch register.
    port.write(uart.UART_FCR, 1, uart.UART_FCR_ENABLE_FIFO)
    assert port.read(uart.UART_IIR, 1) & 0xC0 == 0xC0
    port.write(uart.UART_SCR, 1, 0xA5)
    assert port.read(uart.UART_SCR, 1) == 0xA5
    # The divisor latch hides two registers.
    port.write(uart.UART_LCR, 1, uart.UART_LCR_DLAB | 3)
    port.write(uart.UART_DLL, 1, 0x34)
    port.write(uart.UART_DLM, 1, 0x12)
    assert port.read(uart.UART_DLL, 1) | port.read(uart.UART_DLM, 1) << 8 == 0x1234
    port.write(uart.UART_LCR, 1, 3)
    assert port.read(uart.UART_IER, 1) == 0x0F


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["read", "write", "receive", "take"]),
            st.integers(0, 7),
            st.sampled_from([1, 2, 4]),
            st.integers(0, 2**32 - 1),
        ),
        max_size=200,
    )
)
def test_no_access_raises_and_the_line_says_what_iir_says(
    accesses: list[tuple[str, int, int, int]],
) -> None:
    line = Line()
    port = Serial(line)
    for kind, offset, width, value in accesses:
        if kind == "read":
            assert 0 <= port.read(offset, width) <= 0xFF
        elif kind == "write":
            port.write(offset, width, value)
        elif kind == "receive":
            port.receive(value.to_bytes(4, "little"))
        else:
            port.take_output()
        level = line.level
        assert (port.read(uart.UART_IIR, 1) & 0x01 == 0) == level


# --- snapshots ----------------------------------------------------------------------------------


def test_a_driver_that_waits_for_the_transmitter_goes_on() -> None:
    """The interrupt was taken, or was it? One that finds nothing to send does no harm."""
    line, output = Line(), bytearray()
    port = Serial(line)
    driver = Driver(port, line)
    driver.send(b"x" * 100)
    port.receive(b"typed")
    state = port.state()
    assert state.input == b"typed"

    class Level:
        """A line of a new interrupt controller: low, and told of whatever the level is."""

        level = False
        edges = 0

        def __call__(self, level: bool) -> None:
            self.edges += level and not self.level
            self.level = level

    new_line = Level()
    restored = Serial(new_line, on_output=lambda: output.extend(restored.take_output()))
    restored.restore(state)
    assert restored.state() == state
    restored.raise_line()
    assert new_line.level, "a driver that waits would do so for ever"
    assert bytes(output) == state.output
    driver.port, driver.line = restored, new_line  # type: ignore[assignment]
    assert [restored.read(uart.UART_RX, 1) for _ in range(5)] == list(b"typed")


def test_a_state_with_values_that_cannot_be_is_cut_to_what_can() -> None:
    port = Serial(Line())
    wild = port.state()._replace(
        ier=0xFFFF, lcr=1 << 40, divisor=-1, input=b"x" * 100_000, output=b"y" * 1_000_000
    )
    port.restore(wild)
    state = port.state()
    assert (state.ier, state.lcr, state.divisor) == (0x0F, 0, 0xFFFF)
    assert len(state.input) == uart.INPUT_BYTES_MAX
    assert len(state.output) < OUTPUT_BYTES_MAX + 8192
