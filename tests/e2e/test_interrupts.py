"""What INTERRUPT_STATUS is for: without it Linux takes the interrupt for somebody else's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.in_process import InProcessGuest as Guest
from voidbox.virtio.mmio import MmioTransport
from voidbox.vmm.config import MachineConfig, VsockConfig

pytestmark = pytest.mark.boot

VIRTIO_ID_VSOCK = 19


@pytest.mark.parametrize("is_vhost", [True, False], ids=["vhost", "unix"])
def test_a_line_raised_without_the_register_is_lost_and_serial_takes_over(
    kernels: dict[str, str],
    guest_images: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    is_vhost: bool,
) -> None:
    """The guest's handler reads 0 and returns IRQ_NONE: vsock never answers, as with a bare irqfd.

    It also shows the fall back to the serial line where vsock is there but does not work.
    """
    interrupt: Callable[[MmioTransport, int], None] = MmioTransport._interrupt

    def only_pulse(transport: MmioTransport, bit: int) -> None:
        if transport._device.device_id == VIRTIO_ID_VSOCK:
            transport._pulse_irq()
        else:
            interrupt(transport, bit)

    monkeypatch.setattr(MmioTransport, "_interrupt", only_pulse)
    vsock = VsockConfig(cid=78, is_vhost=is_vhost)
    config = MachineConfig(kernels["minimal"], guest_images["minimal"], vsock=vsock)
    log: list[str] = []
    with Guest(config) as guest:
        guest.machine.start()
        with guest.connect(300, log.append) as client:
            assert client.is_serial
            assert "via serial" in log[0]
            process = client.exec(["echo", "still here"])
            assert next(process.output()).data == b"still here\n"
