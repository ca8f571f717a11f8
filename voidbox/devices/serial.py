"""A 16550A UART: the guest's console.

National Semiconductor PC16550D; Linux's drivers/tty/serial/8250. The transmitter is as fast as the
host takes bytes. Both directions are bounded: while the host does not drain the output, the
transmitter reports itself busy (LSR.THRE clear), exactly as a slow line would, and the guest waits;
while the guest does not read its input, `receive` accepts no more.

Input is held back until the guest listens: until it has enabled the receive interrupt, or polls LSR
and does nothing else. A driver that starts empties the receiver, so what was typed or piped before
would be lost.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from voidbox.named_tuple import NamedTuple

COM1_PORT, COM1_GSI = 0x3F8, 4
COM2_PORT, COM2_GSI = 0x2F8, 3
SERIAL_PORTS = 8

# Register offsets; 0 and 1 are the divisor latch while LCR.DLAB is set.
UART_RX = UART_TX = UART_DLL = 0
UART_IER = UART_DLM = 1
UART_IIR = UART_FCR = 2
UART_LCR = 3
UART_MCR = 4
UART_LSR = 5
UART_MSR = 6
UART_SCR = 7

UART_IER_RDI = 0x01  # received data available
UART_IER_THRI = 0x02  # transmitter holding register empty
UART_IIR_NO_INT = 0x01
UART_IIR_THRI = 0x02
UART_IIR_RDI = 0x04
UART_IIR_FIFO_ENABLED = 0xC0
UART_FCR_ENABLE_FIFO = 0x01
UART_FCR_CLEAR_RCVR = 0x02
UART_FCR_CLEAR_XMIT = 0x04
UART_LCR_DLAB = 0x80
UART_MCR_LOOP = 0x10
UART_LSR_DR = 0x01
UART_LSR_THRE = 0x20
UART_LSR_TEMT = 0x40
UART_MSR_CTS_DSR_DCD = 0xB0

OUTPUT_BYTES_MAX = 64 << 10  # from here on the transmitter is busy
_OUTPUT_BYTES_LOST = OUTPUT_BYTES_MAX + (4 << 10)  # what a guest sends that does not wait
INPUT_BYTES_MAX = 4 << 10
# A driver polls LSR once before it sends; so many times in a row is waiting for input.
_LSR_POLLS_OF_A_READER = 64


class SerialState(NamedTuple):
    """A UART at rest: registers, and the bytes on their way in both directions."""

    ier: int
    lcr: int
    mcr: int
    scr: int
    divisor: int
    fifo_enabled: bool
    input: bytes
    output: bytes


class Serial:
    """One UART. Thread: registers on any vCPU, the host's side on the loop; `_lock` covers both.

    Args:
        set_irq: sets the level of the interrupt line; called with `_lock` held, it must not block.
        on_output: called without the lock when output becomes available to `take_output`.
        on_input_room: called without the lock when the guest has made room for input again.
        on_listening: called without the lock when the guest listens after `receive` has refused
            bytes because it did not. Wait a moment before believing it: a driver's probe sets every
            interrupt enable bit for an instant.
    """

    def __init__(
        self,
        set_irq: Callable[[bool], None],
        on_output: Callable[[], None] = lambda: None,
        on_input_room: Callable[[], None] = lambda: None,
        on_listening: Callable[[], None] = lambda: None,
    ) -> None:
        self._set_irq = set_irq
        self.on_output = on_output
        self.on_input_room = on_input_room
        self.on_listening = on_listening
        self._lsr_polls = 0
        self._has_refused = False
        self._lock = Lock()
        self._output = bytearray()
        self._input = bytearray()
        self._input_was_full = False
        self._irq_level = False
        self._thr_empty_pending = False  # the THRE interrupt: latched, cleared by reading IIR
        self._ier = 0
        self._fifo_enabled = False
        self._lcr = 0
        self._mcr = 0
        self._scr = 0
        self._divisor = 1

    # --- snapshots -------------------------------------------------------------------------------

    def state(self) -> SerialState:
        """Return the registers and what is on its way. Thread: any."""
        with self._lock:
            return SerialState(
                self._ier, self._lcr, self._mcr, self._scr, self._divisor, self._fifo_enabled,
                bytes(self._input), bytes(self._output),
            )  # fmt: skip

    def restore(self, state: SerialState) -> None:
        """Continue from a state. Before the machine's start; then raise_line() is due."""
        with self._lock:
            self._ier = state.ier & 0x0F
            self._lcr = state.lcr & 0xFF
            self._mcr = state.mcr & 0x1F
            self._scr = state.scr & 0xFF
            self._divisor = state.divisor & 0xFFFF
            self._fifo_enabled = state.fifo_enabled
            self._input[:] = state.input[:INPUT_BYTES_MAX]
            self._output[:] = state.output[:_OUTPUT_BYTES_LOST]
            # Whether this interrupt was taken is not known: a driver that waits for it would do so
            # for ever, and one that does not finds nothing to send.
            self._thr_empty_pending = len(self._output) < OUTPUT_BYTES_MAX

    def raise_line(self) -> None:
        """Have the line of a new interrupt controller say what the registers do."""
        with self._lock:
            self._irq_level = self._interrupt_cause() != UART_IIR_NO_INT
            self._set_irq(self._irq_level)
            has_output = bool(self._output)
        if has_output:
            self.on_output()

    # --- the host's side -------------------------------------------------------------------------

    def take_output(self) -> bytes:
        """Take all that the guest has sent; a guest that was waiting for room goes on."""
        with self._lock:
            data = bytes(self._output)
            was_full = len(data) >= OUTPUT_BYTES_MAX
            self._output.clear()
            if was_full:
                self._thr_empty_pending = True
                self._update_irq()
        return data

    def receive(self, data: bytes) -> int:
        """Give the guest input; returns how many bytes it took: none if it does not listen."""
        with self._lock:
            if not self._is_listening():
                self._has_refused = True
                return 0
            accepted = min(len(data), INPUT_BYTES_MAX - len(self._input))
            self._input += data[:accepted]
            self._input_was_full = accepted < len(data)
            self._update_irq()
        return accepted

    def _is_listening(self) -> bool:
        return bool(self._ier & UART_IER_RDI) or self._lsr_polls >= _LSR_POLLS_OF_A_READER

    # --- the guest's side ------------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """Read a register; wider accesses give the one register."""
        if offset == UART_LSR:  # by far the most read; a stale value is what hardware gives too
            status = UART_LSR_DR if self._input else 0
            if len(self._output) < OUTPUT_BYTES_MAX:
                status |= UART_LSR_THRE | UART_LSR_TEMT
            self._lsr_polls += 1
            if self._has_refused and self._lsr_polls >= _LSR_POLLS_OF_A_READER:
                self._has_refused = False
                self.on_listening()
            return status
        with self._lock:
            value = self._read_locked(offset)
            made_room = self._made_room()
        if made_room:
            self.on_input_room()
        return value

    def _made_room(self) -> bool:
        """True once after the guest emptied an input that had refused bytes."""
        if self._input_was_full and not self._input:
            self._input_was_full = False
            return True
        return False

    def _read_locked(self, offset: int) -> int:
        if self._lcr & UART_LCR_DLAB and offset <= UART_DLM:
            return self._divisor >> (8 * offset) & 0xFF
        if offset == UART_RX:
            value = self._input.pop(0) if self._input else 0
            self._update_irq()
            return value
        if offset == UART_IER:
            return self._ier
        if offset == UART_IIR:
            return self._read_iir()
        if offset == UART_LCR:
            return self._lcr
        if offset == UART_MCR:
            return self._mcr
        if offset == UART_MSR:
            return self._modem_status()
        return self._scr

    def _read_iir(self) -> int:
        cause = self._interrupt_cause()
        if cause == UART_IIR_THRI:
            self._thr_empty_pending = False
            self._update_irq()
        return cause | (UART_IIR_FIFO_ENABLED if self._fifo_enabled else 0)

    def _modem_status(self) -> int:
        if self._mcr & UART_MCR_LOOP:
            # Loopback: DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
            dtr, rts, out1, out2 = (self._mcr >> bit & 1 for bit in range(4))
            return rts << 4 | dtr << 5 | out1 << 6 | out2 << 7
        return UART_MSR_CTS_DSR_DCD

    def write(self, offset: int, width: int, value: int) -> None:
        """Write a register; of wider accesses the low byte counts."""
        value &= 0xFF
        has_output = made_room = False
        with self._lock:
            self._lsr_polls = 0
            if offset == UART_TX and not self._lcr & UART_LCR_DLAB:
                has_output = self._transmit(value)
            else:
                self._write_locked(offset, value)
                made_room = self._made_room()
            begins_to_listen = self._has_refused and self._is_listening()
            if begins_to_listen:
                self._has_refused = False
        if begins_to_listen:
            self.on_listening()
        if has_output:
            self.on_output()
        if made_room:
            self.on_input_room()

    def _transmit(self, value: int) -> bool:
        """Send a byte; True if the output was empty before."""
        if self._mcr & UART_MCR_LOOP:
            if len(self._input) < INPUT_BYTES_MAX:
                self._input.append(value)
            self._update_irq()
            return False
        output = self._output
        if len(output) < _OUTPUT_BYTES_LOST:
            output.append(value)
        # Not while the transmitter is busy: take_output() latches it then.
        self._thr_empty_pending = len(output) < OUTPUT_BYTES_MAX
        if self._ier & UART_IER_THRI:
            self._update_irq()
        return len(output) == 1

    def _write_locked(self, offset: int, value: int) -> None:
        if self._lcr & UART_LCR_DLAB and offset <= UART_DLM:
            shift = 8 * offset
            self._divisor = self._divisor & ~(0xFF << shift) | value << shift
        elif offset == UART_IER:
            enabled = value & ~self._ier
            self._ier = value & 0x0F
            if enabled & UART_IER_THRI and len(self._output) < OUTPUT_BYTES_MAX:
                self._thr_empty_pending = True
            self._update_irq()
        elif offset == UART_FCR:
            self._fifo_enabled = bool(value & UART_FCR_ENABLE_FIFO)
            if value & UART_FCR_CLEAR_RCVR:
                self._input.clear()
                self._update_irq()
        elif offset == UART_LCR:
            self._lcr = value
        elif offset == UART_MCR:
            self._mcr = value & 0x1F
        elif offset == UART_SCR:
            self._scr = value

    def _interrupt_cause(self) -> int:
        if self._input and self._ier & UART_IER_RDI:
            return UART_IIR_RDI
        if self._thr_empty_pending and self._ier & UART_IER_THRI:
            return UART_IIR_THRI
        return UART_IIR_NO_INT

    def _update_irq(self) -> None:
        level = self._interrupt_cause() != UART_IIR_NO_INT
        if level != self._irq_level:
            self._irq_level = level
            self._set_irq(level)
