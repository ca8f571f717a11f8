"""What a snapshot keeps of a TCP flow; here, for whoever looks at one needs no stack."""

from __future__ import annotations

from voidbox.named_tuple import NamedTuple


class FlowState(NamedTuple):
    """A flow in a snapshot: enough to end it.

    Attributes:
        guest_port: the guest's.
        address, port: whom the guest believes to talk to.
        seq: the next sequence number that the guest expects.
        ack: the next that is expected of it.
    """

    guest_port: int
    address: int
    port: int
    seq: int
    ack: int
