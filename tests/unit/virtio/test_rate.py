"""Token buckets, and a disk that has them."""

from __future__ import annotations

import pytest

from tests.unit.virtio.block_guest import SECTOR, FakeDisk, Guest
from voidbox.memory import GuestMemory
from voidbox.virtio.block_request import VIRTIO_BLK_T_OUT
from voidbox.virtio.rate import RateLimiter, Rates, TokenBucket

S = 1_000_000_000


def test_a_bucket_holds_a_tenth_of_a_second_and_fills_as_time_passes() -> None:
    bucket = TokenBucket(1000, 0)
    assert bucket.wait_ns(0) == 0
    bucket.take(100)
    wait_ns = bucket.wait_ns(0)
    assert 0 < wait_ns <= S // 900
    assert bucket.wait_ns(wait_ns) == 0
    assert bucket.wait_ns(100 * S) == 0
    bucket.take(100)  # no more than it holds was saved
    assert bucket.wait_ns(100 * S) > 0


def test_what_is_taken_too_much_is_paid_for_later() -> None:
    bucket = TokenBucket(1000, 0)
    bucket.take(5100)
    assert 4.9 * S < bucket.wait_ns(0) < 5.1 * S


@pytest.mark.parametrize("rate", [1, 1000, 10**9])
def test_the_rate_holds_on_average(rate: int) -> None:
    bucket, now_ns, taken = TokenBucket(rate, 0), 0, 0
    for _ in range(1000):
        now_ns += bucket.wait_ns(now_ns)
        bucket.take(max(1, rate // 50))
        taken += max(1, rate // 50)
    assert taken <= rate * now_ns / S + rate * 0.1 + 2 * max(1, rate // 50) + 1
    assert taken >= rate * now_ns / S * 0.95


def test_both_limits_hold() -> None:
    limiter = RateLimiter(Rates(1000, 10), 0)
    limiter.take(1)
    assert 0.05 * S < limiter.wait_ns(0) < 0.15 * S  # the request
    limiter.take(1000)
    assert limiter.wait_ns(0) > 0.8 * S  # the bytes


def test_no_rate_is_none() -> None:
    with pytest.raises(ValueError, match="0"):
        TokenBucket(0, 0)
    assert RateLimiter(Rates(), 0).wait_ns(5) == 0


def test_a_disk_waits_and_goes_on(memory: GuestMemory) -> None:
    guest = Guest(memory, FakeDisk())
    timers: list[tuple[float, object]] = []
    guest.device.call_later = lambda seconds, work: timers.append((seconds, work))
    guest.device.set_rates(Rates(bytes_s=10 * SECTOR))
    heads = [guest.add(VIRTIO_BLK_T_OUT, number, bytes([number]) * SECTOR) for number in range(4)]
    guest.run()
    done = {used.head_idx for used in guest.queue.completed()}
    assert len(done) == 1
    while len(done) < len(heads):
        (seconds, work), *others = timers
        assert not others  # one wait at a time
        assert 0 < seconds <= 0.2
        timers.clear()
        guest.now_ns += int(seconds * S)
        work()  # type: ignore[operator]
        guest.run()
        done |= {used.head_idx for used in guest.queue.completed()}
    assert guest.now_ns > 0.2 * S  # four at ten a second, less one that was saved up and one owed
    assert done == set(heads)
    guest.close()


def test_a_rate_that_ends_ends_the_wait(memory: GuestMemory) -> None:
    guest = Guest(memory, FakeDisk())
    guest.device.call_later = lambda seconds, work: None
    guest.device.set_rates(Rates(bytes_s=1))
    assert guest.device.rates == Rates(bytes_s=1)
    for number in range(3):
        guest.add(VIRTIO_BLK_T_OUT, number, bytes(SECTOR))
    guest.run()
    assert len(guest.queue.completed()) == 1
    guest.device.set_rates(Rates())
    guest.run()
    assert len(guest.queue.completed()) == 2
    guest.close()


def test_a_reset_forgets_who_waits(memory: GuestMemory) -> None:
    guest = Guest(memory, FakeDisk())
    timers: list[object] = []
    guest.device.call_later = lambda seconds, work: timers.append(work)
    guest.device.set_rates(Rates(requests_s=1))
    for number in range(3):
        guest.add(VIRTIO_BLK_T_OUT, number, bytes(SECTOR))
    guest.run()
    guest.boot()
    for work in timers:
        work()  # type: ignore[operator]
    guest.run()
    assert not guest.is_broken
    guest.close()
