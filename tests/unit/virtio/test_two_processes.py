"""Driver and device in two processes over one memory, with real suppression and no polling.

Each side sleeps on an eventfd until the other decides to wake it. If one wrong decision is made in
tens of thousands, both sleep, and the time limit finds it.
"""

from __future__ import annotations

import multiprocessing
import os
import select

import pytest

from tests.unit.virtio.driver import Arena, DriverQueue
from voidbox.memory import GuestMemory
from voidbox.virtio.queue import Virtqueue

REQUESTS = 20_000
QUEUE_SIZE = 32
LIMIT_S = 60.0


def wait(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(LIMIT_S * 1000):
        raise AssertionError("nobody woke us up")
    os.eventfd_read(fd)


def device(queue: Virtqueue, kick_fd: int, irq_fd: int) -> None:
    served = 0
    while served < REQUESTS:
        while (chain := queue.next_chain()) is not None:
            number = int.from_bytes(chain.readable[0], "little")
            chain.writable[0][:] = (number * 3).to_bytes(8, "little")
            queue.add_used(chain.head_idx, 8)
            if queue.publish():
                os.eventfd_write(irq_fd, 1)
            served += 1
        if served < REQUESTS and not queue.enable_notification():
            wait(kick_fd)


def run_driver(driver: DriverQueue, kick_fd: int, irq_fd: int) -> tuple[int, int]:
    sent = kicks = sleeps = 0
    answers: list[int] = []
    numbers: dict[int, int] = {}
    while len(answers) < REQUESTS:
        while sent < REQUESTS and len(driver.free_descs) >= 2:
            numbers[driver.add([sent.to_bytes(8, "little")], [8])] = sent
            sent += 1
            if driver.kick_prepare():
                kicks += 1
                os.eventfd_write(kick_fd, 1)
        done = driver.completed()  # which asks for an interrupt at the next one …
        for item in done:
            assert int.from_bytes(item.data, "little") == numbers.pop(item.head_idx) * 3
            answers.append(1)
        # … and so looks once more before it sleeps, as virtqueue_enable_cb does.
        if not done and driver.used_idx == driver.last_used_idx:
            sleeps += 1
            wait(irq_fd)
    return kicks, sleeps


@pytest.mark.parametrize("event_idx", [False, True])
def test_no_wakeup_is_lost(event_idx: bool) -> None:
    memory = GuestMemory(1 << 20, shared=True)
    driver = DriverQueue(memory, Arena(0x1000, 1 << 20), QUEUE_SIZE, event_idx=event_idx)
    queue = Virtqueue(
        memory,
        size=driver.size,
        desc_gpa=driver.desc_gpa,
        driver_gpa=driver.driver_gpa,
        device_gpa=driver.device_gpa,
        event_idx=event_idx,
    )
    kick_fd, irq_fd = os.eventfd(0), os.eventfd(0)
    process = multiprocessing.get_context("fork").Process(
        target=device, args=(queue, kick_fd, irq_fd)
    )
    process.start()
    try:
        kicks, _ = run_driver(driver, kick_fd, irq_fd)
        process.join(LIMIT_S)
        assert process.exitcode == 0
        assert 0 < kicks <= REQUESTS
    finally:
        process.kill()
        process.join()
        os.close(kick_fd)
        os.close(irq_fd)
        queue.close()
        memory.close()
