"""Sandboxes of one team write to each other, through their processes and the guest's command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.unit.sandbox.owned import Sandboxes
from voidbox.sandbox.state.records import SandboxRecord


def relay(sandboxes: Sandboxes, record: SandboxRecord, *arguments: str) -> tuple[int, str]:
    """Run voidbox-relay as a program of a sandbox's guest."""
    path = f"{sandboxes.store.path(record.id, 'vsock.sock')}_5001"
    result = subprocess.run(
        [sys.executable, "-m", "guest_agent.relay", *arguments],
        env={**os.environ, "VOIDBOX_RELAY_SOCKET": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.slow
def test_mates_and_others(sandboxes: Sandboxes) -> None:
    ann = sandboxes.launch(name="ann", team="red")
    bob = sandboxes.launch(name="bob", team="red")
    eve = sandboxes.launch(name="eve", team="blue")
    dan = sandboxes.launch(name="dan")
    assert relay(sandboxes, ann, "peers") == (0, "bob\n")
    assert relay(sandboxes, ann, "send", "bob", "hello", "there")[0] == 0
    assert relay(sandboxes, bob, "receive") == (0, "ann: hello there\n")
    for stranger in (eve.name, dan.name, "nobody", bob.id):
        status, output = relay(sandboxes, ann, "send", stranger, "x")
        assert status == 1, output
    assert relay(sandboxes, dan, "peers")[0] != 0
    assert relay(sandboxes, bob, "broadcast", "to all") == (0, "")
    assert relay(sandboxes, ann, "receive") == (0, "bob: to all\n")

    sandboxes.store.rename(bob.id, "bill")
    assert relay(sandboxes, ann, "peers") == (0, "bill\n")
    sandboxes.control(bob).request("kill")
    sandboxes.wait_ended(bob)
    assert relay(sandboxes, ann, "peers") == (0, "")
    assert relay(sandboxes, ann, "send", "bill", "x")[0] == 1


def test_the_host_writes_to_anybody(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    answer = sandboxes.control(record).request("deliver", text="from outside")
    assert answer["outcome"] == "delivered"
    assert relay(sandboxes, record, "receive") == (0, "@host: from outside\n")


def test_its_socket_goes_with_the_sandbox(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch(team="red")
    sandboxes.control(record).request("kill")
    ended = sandboxes.wait_ended(record)
    assert ended.reason == "it was killed"
    assert not os.path.exists(f"{sandboxes.store.path(record.id, 'vsock.sock')}_5001")
