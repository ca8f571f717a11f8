"""A spare worker, in a child that forks it: it does nothing until it is needed."""

from __future__ import annotations

import pytest

from tests.unit.jail import child

BEGIN = """
import os, time
from voidbox.sandbox.worker.link import fork_worker
link = fork_worker("default", is_spare=True)
pid = link._child_pid
def namespaces():
    return [os.readlink(f"/proc/{pid}/ns/{name}") for name in ("user", "pid_for_children")]
def mine():
    return [os.readlink(f"/proc/self/ns/{name}") for name in ("user", "pid_for_children")]
"""


def test_one_that_is_not_needed_goes_as_it_came() -> None:
    done = child.run(
        f"""{BEGIN}
time.sleep(0.2)
assert namespaces() == mine()
link.orders.close()
link.close(30.0)
assert not os.path.exists(f"/proc/{{pid}}"), "it is still there"
assert os.waitstatus_to_exitcode(link.status) == 1
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_one_that_is_needed_is_a_worker() -> None:
    done = child.run(
        f"""{BEGIN}
worker = link.settle()
assert link.settle() == worker and os.path.exists(f"/proc/{{worker}}")
link.orders.close()
link.close(30.0)
assert os.waitstatus_to_exitcode(link.status) == 0
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("is_needed", [False, True])
def test_one_that_somebody_has_killed_is_told(is_needed: bool) -> None:
    done = child.run(
        f"""{BEGIN}
os.kill(pid, 9)
if {is_needed}:
    link.settle()
link.orders.close()
link.close(30.0)
assert os.waitstatus_to_exitcode(link.status) == -9
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
