"""The process outside a worker's pid namespace, in children."""

from __future__ import annotations

import pytest

from tests.host_jail import needs_namespaces
from tests.unit.jail import child

BEGIN = """
import os
from voidbox.jail import allowed, privileges, seccomp
from voidbox.sandbox.worker import warden
ours, theirs = os.pipe()
extra = os.open("/dev/null", os.O_RDONLY)
host_pid = os.getpid()
"""


@needs_namespaces
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("os._exit(0)", 0),
        ("os._exit(3)", 3),
        ("os.execv('/bin/true', ['true'])", -31),  # SIGSYS
    ],
)
def test_it_ends_as_the_worker_does(code: str, status: int) -> None:
    done = child.run(
        f"""{BEGIN}
assert warden.enter("default", theirs, False)
assert os.getpid() == 1 != host_pid
said = int(os.read(ours, 20))
assert said == int(os.readlink("/proc/self")), said
print("seen", flush=True)
privileges.set_no_new_privs()
seccomp.install(allowed.program(allowed.Needs(1)))
{code}
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "seen\n", "")


@needs_namespaces
def test_what_the_worker_forks_ends_with_it() -> None:
    done = child.run(
        f"""{BEGIN}
import time
assert warden.enter("default", theirs, False)
if not os.fork():
    os.setsid()
    time.sleep(60)
print("done", flush=True)
os._exit(0)
"""
    )
    # child.run reads until nobody has its output open any more.
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@needs_namespaces
def test_the_warden_has_given_up_all_that_it_can() -> None:
    done = child.run(
        f"""{BEGIN}
import time
held, let_go = os.pipe()
assert warden.enter("default", theirs, False)
os.close(let_go)
assert os.read(held, 1) == b""  # the warden has not kept its end
def said(name, what):
    with open(f"/proc/{{host_pid}}/{{name}}") as file:
        return [line.split() for line in file if line.startswith(what)]
deadline = time.monotonic() + 60
while said("limits", "Max core")[0][4:6] != ["0", "0"]:  # which it does last
    assert time.monotonic() < deadline
    time.sleep(0.01)
print([line[1] for line in said("status", ("CapPrm", "CapEff", "CapBnd", "NoNewPrivs"))])
try:
    os.readlink(f"/proc/{{host_pid}}/exe")
except PermissionError:
    print("cannot be traced")
os._exit(0)
"""
    )
    expected = f"{['0' * 16] * 3 + ['1']}\ncannot be traced\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_without_a_jail_or_without_namespaces_there_is_none() -> None:
    done = child.run(
        f"""{BEGIN}
from tests.guest.poor_host import refuse
assert not warden.enter("off", os.dup(theirs), False)
refuse(("unshare",))
assert not warden.enter("default", theirs, False)
assert os.getpid() == host_pid
assert os.read(ours, 20) == b""
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
