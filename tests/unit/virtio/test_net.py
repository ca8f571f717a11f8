"""virtio-net: the device between a driver of the tests' own and a network of lists."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import voidbox.virtio.net_header as net_header_module
from tests.unit.virtio.driver import ALL_FEATURES
from tests.unit.virtio.net_guest import (
    MAC,
    Got,
    NetGuest,
    Wire,
    header,
    offload_subsets,
    pattern,
)
from voidbox.errors import ConfigError
from voidbox.virtio.device import (
    TRANSPORT_FEATURES,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.net import (
    NET_FEATURES,
    PASS_BYTES,
    PASS_FRAMES,
    RX_QUEUE,
    TX_QUEUE,
    FrameHeader,
    Offloads,
    RxFrames,
    VirtioNet,
)
from voidbox.virtio.net_header import (
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
    Drop,
    TxDrops,
)

NO_OFFLOADS = TRANSPORT_FEATURES
SMALL = 12 + 1514
BIG = 12 + 65549
CSUM = {"csum_start": 34, "csum_offset": 16}
GSO = {**CSUM, "gso_size": 1448, "header_bytes": 54}
EVENT_IDX = [True, False]
PLAIN_HEADER = FrameHeader()


@pytest.fixture
def guest() -> Iterator[NetGuest]:
    with NetGuest() as guest:
        yield guest.boot()


def without_event_idx(features: int, event_idx: bool) -> int:
    return features if event_idx else features & ~VIRTIO_RING_F_EVENT_IDX


# Identity and configuration


def test_constants_match_the_kernels_header() -> None:
    path = Path("/usr/include/linux/virtio_net.h")
    if not path.exists():
        pytest.skip("needs the kernel's user headers: apt install linux-libc-dev")
    checked = 0
    for line in path.read_text().splitlines():
        words = line.split(None, 3)
        ours = getattr(net_header_module, words[1], None) if len(words) > 2 else None
        if words[:1] == ["#define"] and ours is not None:
            value = int(words[2].split("/")[0], 0)
            assert ours == (1 << value if "_NET_F_" in words[1] else value), words[1]
            checked += 1
    assert checked >= 14


def test_identity_and_configuration() -> None:
    with NetGuest(device=lambda wire: VirtioNet(wire, MAC, mtu=9000)) as guest:
        guest.boot()
        assert guest.device.device_id == 1
        assert len(guest.device.queue_max_sizes) == 2
        assert guest.driver.config(0, 12) == MAC + struct.pack("<HHH", 1, 1, 9000)
        assert guest.driver.config(12, 4) == bytes(4)
        guest.transport.write(0x100, 1, 0xFF)
        assert guest.driver.config(0, 6) == MAC


@pytest.mark.parametrize("off", [0, *(1 << bit for bit in (3, 5, 7, 11, 15, 16))])
def test_features_can_be_left_out(off: int) -> None:
    offered = NET_FEATURES & ~off
    with NetGuest(device=lambda wire: VirtioNet(wire, MAC, features=offered)) as guest:
        guest.boot()
        assert guest.driver.features == offered | TRANSPORT_FEATURES


@pytest.mark.parametrize(
    ("mac", "options"),
    [
        (bytes(5), {}),
        (b"\1" + bytes(5), {}),
        (MAC, {"mtu": 67}),
        (MAC, {"mtu": 65536}),
        (MAC, {"features": 1 << 17}),
        (MAC, {"features": NET_FEATURES & ~VIRTIO_NET_F_CSUM}),
        (MAC, {"features": NET_FEATURES & ~VIRTIO_NET_F_GUEST_CSUM}),
    ],
)
def test_what_cannot_be_configured(mac: bytes, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        VirtioNet(Wire(), mac, **options)


def link_up(guest: NetGuest) -> bool:
    return bool(guest.driver.config(6, 2)[0] & 1)


def test_link(guest: NetGuest) -> None:
    assert link_up(guest)
    for up in (False, True):
        before = guest.driver.config_interrupts
        guest.device.set_link(up)
        assert link_up(guest) is up
        assert guest.driver.config_interrupts == before + 1


def test_a_link_that_changed_while_there_was_no_driver() -> None:
    with NetGuest() as guest:
        guest.device.set_link(False)
        guest.boot()
        assert not link_up(guest)
        assert guest.driver.config_interrupts == 1  # a driver may have read it before
        guest.boot()
        assert not link_up(guest)
        assert guest.driver.config_interrupts == 1


# Features


def offloads_of(features: int) -> Offloads:
    return Offloads(
        guest_csum=bool(features & VIRTIO_NET_F_GUEST_CSUM),
        guest_tso4=bool(features & VIRTIO_NET_F_GUEST_TSO4),
        mergeable=bool(features & VIRTIO_NET_F_MRG_RXBUF),
    )


def rx_layout_for(features: int) -> tuple[int, ...]:
    """What Linux posts: merged buffers of a page, pages for the largest, or one small one."""
    if features & VIRTIO_NET_F_MRG_RXBUF:
        return (4096,)
    if features & VIRTIO_NET_F_GUEST_TSO4:
        return (12, 4084, *[4096] * 16)
    return (SMALL + 4,)


@pytest.mark.parametrize("features", offload_subsets(), ids=hex)
def test_every_subset_of_features(features: int) -> None:
    """What was agreed on works in both directions; what was not is dropped, or refused."""
    with NetGuest(
        features=features | TRANSPORT_FEATURES, rx_layouts=[rx_layout_for(features)], indirect=True
    ) as guest:
        guest.boot()
        offloads = offloads_of(features)
        assert guest.wire.started == [offloads]
        guest.wire.queue(pattern(1514))
        guest.wire.queue(pattern(60), **(CSUM if offloads.guest_csum else {}))
        if offloads.guest_tso4:
            guest.wire.queue(pattern(65549), **GSO)
        got = guest.pump()
        assert [frame.frame for frame in got] == [pattern(n) for n in (1514, 60, 65549)][: len(got)]
        assert len(got) == 2 + offloads.guest_tso4
        assert [frame.flags for frame in got] == [0, int(offloads.guest_csum), 1][: len(got)]

        guest.send(pattern(1514))
        guest.send(pattern(60), header(1, 0, 0, 0, 34, 16))
        guest.send(pattern(65549), header(1, 1, 54, 1448, 34, 16), cuts=(66, 32834))
        guest.flush()
        wanted = [(pattern(1514), PLAIN_HEADER)]
        if features & VIRTIO_NET_F_CSUM:
            wanted.append((pattern(60), FrameHeader(True, 0, 34, 16)))
        if features & VIRTIO_NET_F_HOST_TSO4:
            wanted.append((pattern(65549), FrameHeader(True, 1448, 34, 16)))
        assert guest.wire.received == wanted
        assert guest.device.statistics().tx_drops == TxDrops(not_negotiated=3 - len(wanted))
        assert len(guest.tx.completed()) == 3
        assert not guest.broken


@pytest.mark.parametrize(
    "features",
    [VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4, NET_FEATURES & ~VIRTIO_NET_F_GUEST_CSUM],
    ids=hex,
)
def test_a_feature_without_the_one_it_requires_is_refused(features: int) -> None:
    with NetGuest(features=features | TRANSPORT_FEATURES) as guest:
        guest.boot()
        assert guest.broken
        assert guest.wire.started == []
        guest.send(bytes(60))
        guest.flush()
        assert guest.wire.received == []
        guest.features = ALL_FEATURES
        guest.boot()
        guest.send(bytes(60))
        guest.flush()
        assert not guest.broken
        assert len(guest.wire.received) == 1


# From the guest


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize(
    "cuts", [(), (12,), (66,), (5,), (1, 2, 3, 13), (11, 12), (12, 13, 27, 1000)]
)
@pytest.mark.parametrize("length", [14, 60, 1514, 65549])
def test_frames_from_the_guest_in_any_layout(
    guest: NetGuest, length: int, cuts: tuple[int, ...], indirect: bool
) -> None:
    guest.indirect = indirect
    guest.send(pattern(length), cuts=cuts)
    guest.send(pattern(length, 1), header(1, 0, 0, 0, 4, 8), cuts=cuts)
    guest.flush()
    assert guest.wire.received == [
        (pattern(length), PLAIN_HEADER),
        (pattern(length, 1), FrameHeader(True, 0, 4, 8)),
    ]
    statistics = guest.device.statistics()
    assert (statistics.tx_frames, statistics.tx_bytes) == (2, 2 * length)
    assert statistics.tx_drops == TxDrops()
    assert [done.written_bytes for done in guest.tx.completed()] == [0, 0]


DROPPED = [
    ("too_short", 13, header()),
    ("too_short", 0, header()),
    ("too_long", 65550, header()),
    ("too_long", 200_000, header()),
    ("bad_gso", 60, header(1, 1, 54, 0, 34, 16)),  # no gso_size
    ("bad_gso", 60, header(0, 1, 54, 1448)),  # GSO without a checksum to fill in
    ("bad_gso", 60, header(1, 2, 54, 1448, 34, 16)),
    ("bad_gso", 60, header(1, 6, 54, 1448, 34, 16)),
    ("bad_gso", 60, header(1, 0x80, 54, 1448, 34, 16)),  # ECN of nothing
    ("not_negotiated", 60, header(1, 3, 54, 1448, 34, 16)),
    ("not_negotiated", 60, header(1, 4, 54, 1448, 34, 16)),
    ("not_negotiated", 60, header(1, 5, 54, 1448, 34, 16)),
    ("not_negotiated", 60, header(1, 0x81, 54, 1448, 34, 16)),
    ("past_end", 60, header(1, 0, 0, 0, 59, 0)),
    ("past_end", 60, header(1, 0, 0, 0, 0, 59)),
    ("past_end", 60, header(1, 0, 0, 0, 65535, 65535)),
    ("past_end", 60, header(1, 1, 61, 1448, 34, 16)),
]


@pytest.mark.parametrize(("reason", "length", "head"), DROPPED)
def test_what_is_dropped(guest: NetGuest, reason: str, length: int, head: bytes) -> None:
    for _ in range(2):  # the second time, the header is remembered
        guest.send(pattern(length), head)
    guest.send(pattern(60, 1), header(1, 0, 0, 0, 34, 16))
    guest.flush()
    assert guest.wire.received == [(pattern(60, 1), FrameHeader(True, 0, 34, 16))]
    statistics = guest.device.statistics()
    assert statistics.tx_drops == TxDrops(**{reason: 2})
    assert statistics.tx_frames == 1
    assert len(guest.tx.completed()) == 3
    assert not guest.broken


PASSED = [
    (60, header(1, 0, 0, 0, 58, 0), FrameHeader(True, 0, 58, 0)),
    (60, header(1, 0, 0, 0, 0, 58), FrameHeader(True, 0, 0, 58)),
    (60, header(1, 1, 60, 1, 34, 16), FrameHeader(True, 1, 34, 16)),
    (60, header(0, 0, 65535, 65535, 65535, 65535), PLAIN_HEADER),  # fields without a meaning
    (60, header(0xFE, 0, 0, 0, 65535, 65535), PLAIN_HEADER),  # flags that are not for devices
    (60, header(1, 0, 65535, 1448, 34, 16), FrameHeader(True, 0, 34, 16)),
]


@pytest.mark.parametrize(("length", "head", "expected"), PASSED)
def test_what_is_not_dropped(
    guest: NetGuest, length: int, head: bytes, expected: FrameHeader
) -> None:
    guest.send(pattern(length), head)
    guest.flush()
    assert guest.wire.received == [(pattern(length), expected)]


@pytest.mark.parametrize("length", [0, 1, 11])
def test_less_than_a_header(guest: NetGuest, length: int) -> None:
    guest.tx.add(readable=[bytes(length)])
    guest.flush()
    assert guest.device.statistics().tx_drops == TxDrops(too_short=1)
    assert not guest.broken


def test_reasons_are_named_in_order() -> None:
    assert [drop.name.lower() for drop in Drop] == list(TxDrops._fields)


edges = st.sampled_from([0, 1, 2, 12, 14, 34, 58, 59, 60, 61, 255, 256, 1514, 65534, 65535])
halves = edges | st.integers(0, 65535)
headers = st.builds(
    header,
    st.integers(0, 255) | st.sampled_from([0, 1, 1]),
    st.integers(0, 255) | st.sampled_from([0, 1, 1, 3, 4, 5, 0x81]),
    halves,
    halves,
    halves,
    halves,
)


@settings(max_examples=60, deadline=None)
@given(
    features=st.sampled_from(offload_subsets()),
    frames=st.lists(
        st.tuples(
            headers | st.binary(min_size=12, max_size=12),
            edges | st.integers(0, 2000),
            st.lists(st.integers(1, 100), max_size=3).map(sorted),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_hostile_headers(features: int, frames: list[tuple[bytes, int, list[int]]]) -> None:
    """Each frame is either given on, wholly valid, or counted; the next good one is served."""
    with NetGuest(
        features=features | TRANSPORT_FEATURES, rx_layouts=[rx_layout_for(features)], indirect=True
    ) as guest:
        guest.boot()
        expected = []
        for head, length, cuts in frames:
            guest.send(bytes(length), head, cuts=cuts)
            guest.flush()
            if (parsed := judge(head, length, features)) is not None:
                expected.append((bytes(length), parsed))
            assert guest.wire.received == expected
            assert len(guest.tx.completed()) == 1
        assert sum(guest.device.statistics().tx_drops) == len(frames) - len(expected)
        guest.send(pattern(60, 1))
        guest.wire.queue(pattern(61))
        guest.flush()
        assert guest.wire.received == [*expected, (pattern(60, 1), PLAIN_HEADER)]
        assert [got.frame for got in guest.collect()] == [pattern(61)]
        assert not guest.broken


def judge(head: bytes, length: int, features: int) -> FrameHeader | None:
    """What the backend should be told of a frame; None if it should be dropped."""
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = struct.unpack(
        "<BBHHHH", head[:10]
    )
    csum, gso = bool(flags & 1), gso_type != 0
    good = (
        14 <= length <= 65549
        and (not csum or features & VIRTIO_NET_F_CSUM)
        and (not csum or csum_start + csum_offset + 2 <= length)
        and (not gso or (features & VIRTIO_NET_F_HOST_TSO4 and gso_type == 1))
        and (not gso or (csum and gso_size > 0 and hdr_len <= length))
    )
    if not good:
        return None
    fields = (csum_start, csum_offset) if csum else (0, 0)
    return FrameHeader(csum, gso_size if gso else 0, *fields)


# To the guest


@pytest.mark.parametrize("extra", [0, 1, 5000, 65549])
@pytest.mark.parametrize(
    "layouts",
    [
        [[1536]],
        [[4084]],
        [[12, 4084]],
        [[5, 7, 3000]],
        [[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1600]],
        [[12], [13], [2001], [14, 3, 1500], [65549]],
        [[70000]],
    ],
    ids=str,
)
def test_frames_to_the_guest_through_merged_buffers(layouts: list[list[int]], extra: int) -> None:
    with NetGuest(rx_layouts=layouts, queue_size=128, indirect=True) as guest:
        guest.boot()
        guest.wire.reserve_extra = extra
        lengths = [1, 2, 13, 60, 1500, 1513, 1514, 1524, 1525, 3000, 4072, 4073, 20000, 65549]
        for i, length in enumerate(lengths):
            guest.wire.queue(pattern(length, i), **(GSO if length > 1514 else {}))
        got = guest.pump()
        assert [len(frame.frame) for frame in got] == lengths
        assert [frame.frame for frame in got] == [pattern(n, i) for i, n in enumerate(lengths)]
        for frame in got:
            offloads = frame[1:-1]
            assert offloads == ((1, 1, 54, 1448, 34, 16) if len(frame.frame) > 1514 else (0,) * 6)
        statistics = guest.device.statistics()
        assert (statistics.rx_frames, statistics.rx_bytes) == (len(lengths), sum(lengths))


@pytest.mark.parametrize("extra", [0, 700])
@pytest.mark.parametrize("layout", [(SMALL,), (SMALL + 4,), (12, 1514), (3, 9, 1, 1513), (4096,)])
def test_frames_to_the_guest_in_one_chain_each(layout: tuple[int, ...], extra: int) -> None:
    with NetGuest(features=NO_OFFLOADS, rx_layouts=[layout]) as guest:
        guest.boot()
        guest.wire.reserve_extra = extra
        lengths = [1, 60, 1513, 1514]
        for i, length in enumerate(lengths):
            guest.wire.queue(pattern(length, i))
        got = guest.pump()
        assert got == [Got(pattern(n, i), 0, 0, 0, 0, 0, 0, 1) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("length", [1, 1514, 4096, 65549])
def test_large_frames_in_one_chain_each(length: int) -> None:
    features = ALL_FEATURES & ~VIRTIO_NET_F_MRG_RXBUF
    with NetGuest(features=features, rx_layouts=[(12, 4084, *[4096] * 16)], indirect=True) as guest:
        guest.boot()
        guest.wire.queue(pattern(length), **GSO)
        guest.wire.queue(pattern(length, 1))
        one, two = guest.pump()
        assert one == Got(pattern(length), 1, 1, 54, 1448, 34, 16, 1)
        assert two == Got(pattern(length, 1), 0, 0, 0, 0, 0, 0, 1)


class Script(Wire):
    """A backend whose transmit() is the test's."""

    def __init__(self, transmit: Callable[[RxFrames], bool]) -> None:
        super().__init__()
        self.script = transmit

    def transmit(self, rx: RxFrames) -> bool:
        self.pending.popleft()
        return self.script(rx)


def scripted(
    transmit: Callable[[RxFrames], bool], *, boot: bool = True, **options: object
) -> NetGuest:
    guest = NetGuest(**options)  # type: ignore[arg-type]
    guest.wire = Script(transmit)
    guest.device._backend = guest.wire
    return guest.boot() if boot else guest


def test_a_reservation_is_never_larger_than_asked_for_and_may_be_smaller() -> None:
    sizes = []

    def transmit(rx: RxFrames) -> bool:
        for size, least in ((100, 100), (1524, 1), (1525, 1), (65549, 1)):
            buffers = rx.reserve(size, least)
            assert buffers is not None
            sizes.append(sum(map(len, buffers)))
        rx.commit(0x1000)
        assert rx.reserve(1525) is None  # one of three is left
        buffers = rx.reserve(65549, 1)
        assert buffers is not None
        sizes.append(sum(map(len, buffers)))
        rx.cancel()
        return True

    with scripted(transmit, rx_layouts=[[1536]], boot=False) as guest:
        guest.boot(fill=False)
        guest.refill(4)
        guest.loop.run()
        guest.wire.queue(b"")
        guest.loop.run()
        assert sizes == [100, 1524, 1525, 4 * 1536 - 12, 1524]
        assert [done.written_bytes for done in guest.rx.completed()] == [1536, 1536, 1036]
        # What was cancelled is still there for the next frame.
        guest.wire.script = lambda rx: rx.reserve(1) is not None and rx.commit(1) is None
        guest.wire.queue(b"")
        guest.loop.run()
        assert [done.written_bytes for done in guest.rx.completed()] == [13]


@pytest.mark.parametrize(
    ("features", "reserve", "commit"),
    [
        (ALL_FEATURES, 0, None),
        (ALL_FEATURES, 65550, None),
        (ALL_FEATURES, None, {"length": 1}),
        (ALL_FEATURES, 100, {"length": 0}),
        (ALL_FEATURES, 100, {"length": 101}),
        (ALL_FEATURES, 100, {"length": 100, "gso_size": 1}),
        (NO_OFFLOADS, 100, {"length": 100, "csum_start": 1}),
        (ALL_FEATURES & ~VIRTIO_NET_F_GUEST_TSO4, 100, {"length": 100, **GSO}),
    ],
)
def test_misuse_by_a_backend(
    features: int, reserve: int | None, commit: dict[str, int] | None
) -> None:
    def transmit(rx: RxFrames) -> bool:
        if reserve is not None and commit is None:
            with pytest.raises(ValueError):
                rx.reserve(reserve)
        if reserve is not None and commit is not None:
            rx.reserve(reserve)
        if commit is not None:
            with pytest.raises(ValueError):
                rx.commit(**commit)
        assert rx.reserve(60) is not None
        rx.commit(60)
        with pytest.raises(ValueError):
            rx.commit(60)
        return True

    with scripted(transmit, features=features) as guest:
        guest.wire.queue(b"")
        assert [len(got.frame) for got in guest.pump()] == [60]


def test_a_reservation_ends_with_its_pass_or_with_cancel() -> None:
    def leave(rx: RxFrames) -> bool:
        return rx.reserve(60) is not None

    def cancel(rx: RxFrames) -> bool:
        rx.reserve(60)
        rx.cancel()
        return commit(rx)

    def lack(rx: RxFrames) -> bool:
        rx.reserve(60)
        assert rx.reserve(60_000) is None
        return commit(rx)

    def commit(rx: RxFrames) -> bool:
        with pytest.raises(ValueError):
            rx.commit(60)
        return True

    with scripted(leave, boot=False) as guest:
        guest.boot(fill=False)
        guest.refill(4)
        guest.loop.run()
        for script in (leave, commit, cancel, lack):
            guest.wire.script = script
            guest.wire.queue(b"")
        assert guest.rx.used_idx == 0
        assert not guest.broken


def test_a_backend_that_waits_for_something_else_keeps_nobody_busy() -> None:
    """False from transmit() with buffers in the ring: nothing happens before on_pending()."""

    def not_yet(rx: RxFrames) -> bool:
        guest.wire.pending.append((b"", {}))
        return False

    def too_much(rx: RxFrames) -> bool:
        return not_yet(rx) or rx.reserve(65549) is not None

    with scripted(not_yet, boot=False) as guest:
        guest.boot(fill=False)
        guest.refill(3)
        guest.loop.run()
        guest.wire.queue(b"")
        assert not guest.loop.pending
        assert not guest.refill(1)
        guest.wire.script = too_much
        guest.wire.on_pending()
        guest.wire.script = not_yet
        assert guest.refill(1)
        guest.loop.run(max_calls=3)
        assert not guest.refill(1)
        assert guest.device.statistics().rx_stalls == 1


# Running out of buffers


@pytest.mark.parametrize("event_idx", EVENT_IDX)
@pytest.mark.parametrize("refill", [1, 2, 7])
@pytest.mark.parametrize("extra", [0, 65549])
def test_out_of_buffers_and_on_again(event_idx: bool, refill: int, extra: int) -> None:
    """Every frame arrives once and in order, and a kick comes exactly when one is waited for."""
    with NetGuest(
        features=without_event_idx(ALL_FEATURES, event_idx), rx_layouts=[[1536]], queue_size=8
    ) as guest:
        guest.boot()
        guest.wire.reserve_extra = extra
        frames = [pattern(1514 if i % 3 else 3000, i) for i in range(60)]
        for frame in frames:
            guest.wire.pending.append((frame, {}))
        guest.wire.on_pending()
        got: list[Got] = []
        for _ in range(200):
            guest.loop.run(max_calls=20)
            got += guest.collect()
            if not guest.wire.pending:
                break
            assert guest.wire.passes_starved
            guest.refill(refill)
        assert [frame.frame for frame in got] == frames
        statistics = guest.device.statistics()
        assert 0 < statistics.rx_stalls == guest.wire.passes_starved
        # Nothing waits any more: no kick for what is added now.
        guest.rx.completed()
        assert not guest.refill()


@pytest.mark.parametrize("event_idx", EVENT_IDX)
def test_buffers_that_come_just_before_the_device_sleeps(event_idx: bool) -> None:
    """A driver that adds buffers while a kick is not wanted yet gives none: the device looks."""
    with NetGuest(
        features=without_event_idx(ALL_FEATURES, event_idx), rx_layouts=[[1536]], queue_size=8
    ) as guest:
        guest.boot(fill=False)
        guest.refill(1)
        guest.loop.run()
        kicks = []
        guest.wire.on_starved = lambda: kicks.append(guest.refill(1))
        guest.wire.queue(pattern(4000))
        guest.loop.run(max_calls=20)
        assert kicks == [False, False]
        assert [got.frame for got in guest.collect()] == [pattern(4000)]


@pytest.mark.parametrize("event_idx", EVENT_IDX)
def test_frames_that_come_just_before_the_device_sleeps(event_idx: bool) -> None:
    with NetGuest(features=without_event_idx(ALL_FEATURES, event_idx)) as guest:
        guest.boot()
        kicks: list[bool] = []

        def on_receive() -> None:
            # The rest of the pass: the ring was found empty, or is about to be.
            if len(guest.wire.received) == 1:
                guest.wire.pending.append((pattern(60), {}))

        def on_transmit(rx: RxFrames) -> bool:
            guest.send(pattern(61))
            kicks.append(guest.driver.kick(TX_QUEUE))
            return Wire.transmit(guest.wire, rx)

        guest.wire.on_receive = on_receive
        guest.wire.transmit = on_transmit  # type: ignore[method-assign]
        guest.send(pattern(60))
        guest.flush()
        assert kicks == [False]
        assert [len(frame) for frame, _ in guest.wire.received] == [60, 61]


def test_too_few_buffers_do_not_keep_the_loop_busy() -> None:
    """Some are there, but not enough: no pass comes before the next kick."""
    with NetGuest(rx_layouts=[[1536]]) as guest:
        guest.boot(fill=False)
        guest.refill(2)
        guest.loop.run()
        guest.wire.queue(pattern(4000))
        guest.loop.run(max_calls=3)
        assert guest.wire.passes_starved == 1
        guest.send(pattern(60))
        guest.flush()
        assert guest.wire.passes_starved == 2
        assert guest.refill(1)
        guest.loop.run(max_calls=3)
        assert [got.frame for got in guest.collect()] == [pattern(4000)]


# Kicks and interrupts


@pytest.mark.parametrize("event_idx", EVENT_IDX)
def test_one_interrupt_for_a_batch_both_ways(event_idx: bool) -> None:
    with NetGuest(features=without_event_idx(ALL_FEATURES, event_idx)) as guest:
        guest.boot()
        assert guest.line.pulses == 0
        for i in range(40):
            guest.send(pattern(100, i), cuts=())
            guest.wire.pending.append((pattern(200, i), {}))
        assert guest.flush()
        assert guest.line.pulses == 1
        assert len(guest.tx.completed()) == len(guest.collect()) == len(guest.wire.received) == 40


def test_a_driver_that_wants_no_interrupt_gets_none(guest: NetGuest) -> None:
    guest.tx.disable_callbacks()
    guest.send(pattern(100))
    guest.flush()
    assert guest.line.pulses == 0
    guest.wire.queue(pattern(100))
    assert guest.line.pulses == 1


@pytest.mark.parametrize("event_idx", EVENT_IDX)
def test_an_answer_goes_out_in_the_pass_of_its_question(event_idx: bool) -> None:
    """on_pending() from within receive() starts no pass of its own."""
    with NetGuest(features=without_event_idx(ALL_FEATURES, event_idx)) as guest:
        guest.boot()

        def answer() -> None:
            assert guest.tx.used_idx == guest.tx.last_used_idx  # the pass goes on
            guest.wire.queue(guest.wire.received[-1][0])

        guest.wire.on_receive = answer
        for i in range(10):
            guest.send(pattern(60, i))
        guest.flush()
        assert [got.frame for got in guest.collect()] == [pattern(60, i) for i in range(10)]
        assert guest.line.pulses == 1


@pytest.mark.parametrize("event_idx", EVENT_IDX)
def test_no_kick_for_receive_buffers_while_nothing_waits(event_idx: bool) -> None:
    with NetGuest(features=without_event_idx(ALL_FEATURES, event_idx), queue_size=16) as guest:
        guest.boot()
        for i in range(100):
            guest.wire.queue(pattern(100, i))
            assert len(guest.collect()) == 1
            assert not guest.refill()


@pytest.mark.parametrize(("length", "most"), [(60, PASS_FRAMES), (65549, PASS_BYTES // 65549 + 1)])
def test_a_flood_from_the_guest_leaves_the_loop_to_others(length: int, most: int) -> None:
    with NetGuest(queue_size=256, indirect=True) as guest:
        guest.boot()
        for _ in range(150):
            guest.send(bytes(length))
        guest.driver.kick(TX_QUEUE)
        for passes in range(1, 150 // most + 1):
            guest.loop.turn()
            assert len(guest.wire.received) == passes * most
            guest.transport.notify(TX_QUEUE)  # a kick beside the deferred pass adds none
            assert len(guest.loop.pending) == 1
        guest.loop.run()
        assert len(guest.tx.completed()) == 150


@pytest.mark.parametrize(("length", "most"), [(60, PASS_FRAMES), (65549, PASS_BYTES // 65549 + 1)])
def test_a_flood_to_the_guest_leaves_the_loop_to_others(length: int, most: int) -> None:
    with NetGuest(queue_size=256, rx_layouts=[[1536 if length == 60 else 33000]]) as guest:
        guest.boot()
        for _ in range(4 * most):
            guest.wire.pending.append((bytes(length), {}))
        guest.wire.on_pending()
        assert len(guest.collect()) == most
        assert len(guest.loop.pending) == 1
        assert len(guest.pump()) == 3 * most


# Rings that wrap


@pytest.mark.slow
@pytest.mark.parametrize("event_idx", EVENT_IDX)
def test_indices_wrap(event_idx: bool) -> None:
    """More than 65,536 frames each way, in batches of many sizes."""
    with NetGuest(
        features=without_event_idx(ALL_FEATURES, event_idx), rx_layouts=[[80]], queue_size=128
    ) as guest:
        guest.boot()
        guest.wire.reserve_extra = 0 if event_idx else 700
        sent = received = batch = 0
        frame = pattern(60)
        while sent < 66_000:
            batch = (batch * 5 + 13) % 127 + 1
            for _ in range(batch):
                guest.send(frame, cuts=())
                guest.wire.pending.append((frame, {}))
            assert guest.flush()
            sent += batch
            received += len(guest.collect())
            assert len(guest.tx.completed()) == batch
            guest.refill()
            assert sent == received + len(guest.wire.pending)
        assert not guest.broken
        assert not guest.wire.pending
        assert guest.rx.used_idx == guest.tx.used_idx == sent % 65536
        assert guest.wire.received == [(frame, PLAIN_HEADER)] * sent
        assert guest.driver.spurious_interrupts == 0


# Drivers that break the rules


@pytest.mark.parametrize(
    ("features", "layout", "least"),
    [
        (NO_OFFLOADS, (SMALL - 1,), 60),
        (NO_OFFLOADS, (12, 1513), 60),
        (NO_OFFLOADS, (0,), 60),
        (ALL_FEATURES & ~VIRTIO_NET_F_MRG_RXBUF, (SMALL - 1,), 60),
        (ALL_FEATURES & ~VIRTIO_NET_F_MRG_RXBUF, (SMALL,), 1515),
        (ALL_FEATURES, (11,), 60),
        (ALL_FEATURES, (0,), 60),
        (ALL_FEATURES, (13,), 1514),  # more chains than a frame is spread over
    ],
)
def test_receive_buffers_without_room(features: int, layout: tuple[int, ...], least: int) -> None:
    with NetGuest(features=features, rx_layouts=[layout], queue_size=128) as guest:
        guest.boot()
        assert not guest.broken  # no frame has needed them yet
        guest.wire.queue(pattern(least))
        guest.loop.run(max_calls=20)
        assert guest.broken
        assert guest.collect() == []
        guest.rx_layouts = [(SMALL,)]
        guest.boot()
        guest.wire.queue(pattern(60))
        assert [got.frame for got in guest.pump()] == [pattern(60)]


def test_a_whole_ring_without_room_for_an_ordinary_frame() -> None:
    with NetGuest(rx_layouts=[[100]], queue_size=8) as guest:
        guest.boot()
        guest.wire.queue(pattern(788))
        assert len(guest.pump()) == 1
        guest.wire.queue(pattern(789))
        assert guest.broken


@pytest.mark.parametrize("features", [ALL_FEATURES, NO_OFFLOADS])
def test_a_readable_receive_buffer(features: int) -> None:
    with NetGuest(features=features) as guest:
        guest.boot(fill=False)
        guest.rx.add(readable=[bytes(4096)])
        guest.wire.queue(pattern(60))
        assert guest.broken
        guest.boot(fill=False)
        guest.rx.add(readable=[b"x"], writable=[4096])
        guest.wire.queue(pattern(60))
        assert guest.broken


def test_a_writable_transmit_buffer(guest: NetGuest) -> None:
    guest.tx.add(readable=[bytes(72)], writable=[10])
    guest.flush()
    assert guest.broken
    assert guest.wire.received == []


@pytest.mark.parametrize("queue_idx", [RX_QUEUE, TX_QUEUE])
@pytest.mark.parametrize("fault", ["head", "ahead", "address", "loop"])
def test_broken_rings(queue_idx: int, fault: str) -> None:
    with NetGuest() as guest:
        guest.boot(fill=False)
        queue = guest.driver.queues[queue_idx]
        if fault == "head":
            queue.offer(queue.size)
        elif fault == "ahead":
            queue.set_avail_idx(queue.size + 1)
        else:
            gpa, flags = (0, 1 | 2) if fault == "loop" else ((1 << 64) - 4096, 2)
            queue.set_desc(0, gpa, 4096, flags if queue_idx == RX_QUEUE else flags & ~2)
            queue.offer(0)
        guest.wire.queue(pattern(60))
        guest.flush()
        assert guest.broken
        guest.boot()
        guest.wire.queue(pattern(60))
        guest.send(pattern(61))
        guest.flush()
        assert not guest.broken
        assert len(guest.collect()) == 1
        assert guest.wire.received[-1][0] == pattern(61)


# Life


def test_reset_while_frames_wait_in_both_directions() -> None:
    with NetGuest(queue_size=256, indirect=True) as guest:
        guest.boot(fill=False)
        guest.refill(1)
        for i in range(200):
            guest.send(pattern(60, i))
            guest.wire.pending.append((pattern(6000, i), {}))
        guest.driver.kick(TX_QUEUE)
        guest.loop.turn()
        assert guest.loop.pending  # the rest of a pass
        assert guest.wire.pending
        assert guest.wire.resets == 0
        guest.boot()
        assert guest.wire.resets == 1
        assert len(guest.wire.started) == 2
        assert len(guest.wire.received) == PASS_FRAMES
        assert guest.collect() == []
        guest.send(pattern(61))
        guest.wire.queue(pattern(62))
        guest.flush()
        assert guest.wire.received[PASS_FRAMES:] == [(pattern(61), PLAIN_HEADER)]
        assert [got.frame for got in guest.collect()] == [pattern(62)]


def test_the_network_before_and_after_the_driver() -> None:
    """on_pending() without a driver is nobody's; has_pending() is seen at the start."""
    with NetGuest() as guest:
        guest.wire.queue(pattern(60))
        guest.boot()
        assert [got.frame for got in guest.collect()] == [pattern(60)]
        guest.transport.close()
        guest.wire.queue(pattern(60))
        assert guest.loop.pending == guest.loop.pending.__class__()


def test_features_are_forgotten_with_a_reset(guest: NetGuest) -> None:
    """A header that was fine for the last driver is not remembered for the next."""
    head = header(1, 0, 0, 0, 34, 16)
    guest.send(pattern(60), head)
    guest.flush()
    guest.features = NO_OFFLOADS
    guest.boot()
    guest.send(pattern(60), head)
    guest.flush()
    assert len(guest.wire.received) == 1
    assert guest.device.statistics().tx_drops == TxDrops(not_negotiated=1)
    assert [offloads.mergeable for offloads in guest.wire.started] == [True, False]


def test_the_network_hears_of_a_pause_and_of_its_end() -> None:
    with NetGuest() as guest:
        guest.boot()
        guest.transport.pause()
        assert guest.wire.is_paused
        guest.wire.queue(pattern(60))
        assert guest.collect() == []
        guest.transport.resume()
        assert not guest.wire.is_paused
        assert [frame.frame for frame in guest.pump()] == [pattern(60)]


def test_a_snapshot_between_passes_loses_no_buffer() -> None:
    """Buffers kept for the next frame are in the ring when another device takes over."""
    with NetGuest(rx_layouts=[[1536]], queue_size=32) as guest:
        guest.boot()
        guest.wire.reserve_extra = 20_000
        guest.wire.queue(pattern(60))
        assert len(guest.collect()) == 1
        state = guest.transport.state()
        assert state.virtqueues[RX_QUEUE].next_avail_idx == 1
        guest.transport.close()
        other = Wire()
        device = VirtioNet(other, MAC)
        guest.transport = MmioTransport.from_state(
            state,
            device=device,
            memory=guest.memory,
            pulse_irq=guest.line.pulse,
            loop_call_soon=guest.loop.call_soon,
        )
        guest.driver.registers = guest.transport
        other.pending.append((pattern(31 * 1536 - 12), {}))  # all that are left
        got = guest.pump()
        assert [len(frame.frame) for frame in got] == [31 * 1536 - 12]
        assert got[0].num_buffers == 31
        assert other.started == guest.wire.started


# At random


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_traffic(data: st.DataObject) -> None:
    """Whatever the order of things, each frame arrives once, whole and in order."""
    mergeable = data.draw(st.booleans(), "mergeable")
    dropped = 0 if mergeable else VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_GUEST_TSO4
    dropped |= 0 if data.draw(st.booleans(), "event_idx") else VIRTIO_RING_F_EVENT_IDX
    dropped |= VIRTIO_RING_F_INDIRECT_DESC | VIRTIO_NET_F_STATUS | VIRTIO_NET_F_MTU
    pieces = st.lists(st.integers(1, 400), min_size=1, max_size=4).map(
        lambda sizes: [*sizes, 12] if mergeable else [*sizes, SMALL]
    )
    longest = 1500 if mergeable else 1514
    with NetGuest(features=ALL_FEATURES & ~dropped, queue_size=128) as guest:
        guest.boot(fill=False)
        to_guest: list[bytes] = []
        from_guest: list[bytes] = []
        got: list[bytes] = []
        for step in range(data.draw(st.integers(1, 40), "steps")):
            action = data.draw(st.sampled_from(["post", "post", "give", "send", "turn", "collect"]))
            if action == "post":
                for layout in data.draw(st.lists(pieces, max_size=6)):
                    if len(guest.rx.free_descs) >= len(layout):
                        guest.post(*layout)
                guest.driver.kick(RX_QUEUE)
            elif action == "give":
                guest.wire.reserve_extra = data.draw(st.sampled_from([0, 1, 3000]))
                for _ in range(data.draw(st.integers(1, 4))):
                    to_guest.append(pattern(data.draw(st.integers(1, longest)), step))
                    guest.wire.pending.append((to_guest[-1], {}))
                guest.wire.on_pending()
            elif action == "send" and len(guest.tx.free_descs) >= 4:
                from_guest.append(pattern(data.draw(st.integers(14, 2000)), step))
                guest.send(from_guest[-1], cuts=data.draw(st.sampled_from([(), (12,), (3, 40)])))
                guest.driver.kick(TX_QUEUE)
            elif action == "turn":
                guest.loop.run(max_calls=50)
            else:
                got += [frame.frame for frame in guest.collect()]
                guest.tx.completed()
        guest.rx_layouts = [(SMALL,)]
        got += [frame.frame for frame in guest.pump()]
        assert not guest.broken
        assert got == to_guest
        assert [frame for frame, _ in guest.wire.received] == from_guest
        assert guest.driver.status & ~VIRTIO_CONFIG_S_NEEDS_RESET == 0xF
