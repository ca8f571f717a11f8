"""Each layer for itself, on this host's kernel: in children, which stay in it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.host_jail import has_namespaces, landlock_version, needs_landlock, needs_namespaces
from tests.unit.jail import child
from voidbox.jail import landlock, mounts, namespaces, seccomp, system, trial


@needs_landlock
def test_landlock_leaves_what_is_named(tmp_path: Path) -> None:
    for name in ("open", "read", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    done = child.run(
        """
import os, sys
from voidbox.jail import landlock, privileges
here = sys.argv[1]
privileges.set_no_new_privs()
os.close(unused := os.dup(0))
landlock.restrict(
    [(f"{here}/open", landlock.WRITE), (f"{here}/read", landlock.READ), ("/nowhere", landlock.READ)]
)
assert os.dup(0) == unused  # no descriptor is left open
def attempt(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        return error.errno
    return 0
print(attempt(open, f"{here}/open/file"), attempt(open, f"{here}/open/new", "w"),
      attempt(os.rename, f"{here}/open/new", f"{here}/open/newer"),
      attempt(open, f"{here}/read/file"), attempt(open, f"{here}/read/file", "r+"),
      attempt(open, f"{here}/closed/file"), attempt(os.listdir, f"{here}/closed"),
      attempt(os.mknod, f"{here}/open/device", 0o020666, 0x103))
""",
        str(tmp_path),
    )
    assert (done.stdout, done.stderr) == ("0 0 0 0 13 13 13 13\n", "")


def test_seccomp_refuses_in_all_threads_and_says_what_was_asked_for() -> None:
    done = child.run(
        """
import errno, os, socket, threading
from voidbox.jail import allowed, bpf, numbers, privileges, seccomp
go, results = threading.Event(), []
def attempt():
    try:
        socket.socket(socket.AF_UNIX)
    except OSError as error:
        results.append(error.errno)
def later():
    go.wait()
    attempt()
thread = threading.Thread(target=later)
thread.start()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pid = os.fork()
if not pid:
    theirs.close()
    listener_fd = socket.recv_fds(ours, 1, 1)[1][0]
    for _ in range(2):
        number, arguments = seccomp.answer_next(listener_fd, lambda call: errno.EPERM)
        os.write(2, f"{numbers.name_of(number)} {arguments[0]}\\n".encode())
    os._exit(0)
privileges.set_no_new_privs()
needs = allowed.Needs(os.getpid())
fd = seccomp.install_with_listener(allowed.program(needs, bpf.RET_USER_NOTIF))
assert seccomp.install_with_listener(allowed.without_sending()) is None  # one alone has it
socket.send_fds(theirs, [b"."], [fd])
seccomp.install(allowed.without_sending())
attempt()
go.set()
thread.join()
try:
    theirs.sendmsg([b"."])
except OSError as error:
    results.append(error.errno)
print(results, flush=True)
os._exit(0)
"""
    )
    assert (done.stdout, done.stderr) == ("[1, 1, 1]\n", "socket 1\nsocket 1\n")


def test_a_filter_that_not_all_threads_take_is_none() -> None:
    done = child.run(
        """
import threading
from voidbox.jail import bpf, privileges, seccomp
privileges.set_no_new_privs()
program = bpf.assemble([], bpf.RET_ALLOW, bpf.RET_ALLOW)
there, over = threading.Event(), threading.Event()
def one_of_its_own():
    seccomp._set_filter(program, 0)
    there.set()
    over.wait()
thread = threading.Thread(target=one_of_its_own)
thread.start()
there.wait()
try:
    seccomp.install(program)
except OSError as error:
    print(error.strerror.replace(str(thread.native_id), "N"))
over.set()
"""
    )
    assert done.stdout == "thread N has another filter\n", done.stderr


def test_a_path_with_a_nul_is_none() -> None:
    with pytest.raises(OSError, match="embedded null byte"):
        system.text("/a\0b")


def test_running_a_program_is_the_end() -> None:
    done = child.run(
        """
import os
from voidbox.jail import allowed, privileges, seccomp
privileges.set_no_new_privs()
seccomp.install(allowed.program(allowed.Needs(os.getpid())))
os.execv("/bin/true", ["true"])
"""
    )
    assert done.returncode == -31  # SIGSYS


@needs_namespaces
def test_a_root_of_ones_own_has_what_is_named_and_nothing_else(tmp_path: Path) -> None:
    for name in ("rw", "ro", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "link").symlink_to("ro")
    done = child.run(
        """
import os, sys
from voidbox.jail import mounts, namespaces
here = sys.argv[1]
fd = os.open(f"{here}/other/file", os.O_RDONLY)
namespaces.enter(tuple(namespaces.NAMES))
mounts.enter_root([(f"{here}/rw", True), (f"{here}/link", False), ("/nowhere", False)])
open(f"{here}/rw/new", "w").write("x")
print(sorted(os.listdir(here)), open(f"{here}/link/file").read(), os.read(fd, 9), os.getcwd())
print(os.listdir("/"), [name for name in os.listdir("/proc") if name != str(os.getpid())])
for attempt in (lambda: open(f"{here}/ro/file", "w"), lambda: os.stat("/etc"),
                lambda: open("/new", "w"), lambda: os.stat(f"{here}/other")):
    try:
        attempt()
        print("done")
    except OSError as error:
        print(error.errno, end=" ")
""",
        str(tmp_path),
    )
    top = tmp_path.parts[1]
    lines = done.stdout.split("\n")
    assert done.stderr == ""
    assert lines[0] == "['link', 'ro', 'rw'] ro b'other' /"
    assert sorted(lines[1]) == sorted(f"['{top}', 'proc'] ['self']")
    assert lines[2] == "30 2 30 2 "
    assert (tmp_path / "rw" / "new").read_text() == "x"


@needs_namespaces
def test_a_root_of_ones_own_is_as_it_was_asked_for_in_every_depth(tmp_path: Path) -> None:
    for name in ("ro/rw/ro", "ro/mounted", "twice"):
        (tmp_path / name).mkdir(parents=True)
    done = child.run(
        """
import os, sys
from voidbox.jail import mounts, namespaces
here = sys.argv[1]
namespaces.enter(tuple(namespaces.NAMES))
mounts._mount("inner", f"{here}/ro/mounted", "tmpfs", 0)
os.close(unused := os.dup(0))
mounts.enter_root([(f"{here}/ro", False), (f"{here}/ro/rw", True), (f"{here}/ro/rw/ro", False),
                   (f"{here}/twice", True), (f"{here}/twice", False)])
assert os.dup(0) == unused  # no descriptor is left open
for name in ("ro", "ro/mounted", "ro/rw", "ro/rw/ro", "twice"):
    try:
        open(f"{here}/{name}/new", "w").close()
        print("done", end=" ")
    except OSError as error:
        print(error.errno, end=" ")
print(*(os.statvfs(path).f_flag & os.ST_NOSUID for path in ("/", f"{here}/ro", f"{here}/twice")),
      os.statvfs("/").f_flag & os.ST_NODEV)
print(os.path.exists("/../usr"))  # the old root is not under the new one
""",
        str(tmp_path),
    )
    assert done.stdout == "30 30 done 30 done 2 2 2 4\nFalse\n", done.stderr


@needs_namespaces
def test_no_capability_is_left_and_no_network(tmp_path: Path) -> None:
    done = child.run(
        """
import os, socket
from voidbox.jail import namespaces, privileges
before = os.geteuid()
namespaces.enter(("user", "net", "ipc", "uts", "cgroup"))
privileges.drop_capabilities()
assert os.geteuid() == before
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")])
print(len(socket.if_nameindex()))
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
except OSError as error:
    print(error.errno)
"""
    )
    assert done.stdout == f"{['0' * 16] * 5}\n1\n101\n", done.stderr


def test_what_is_asked_of_the_kernel_for_a_process_is_in_force() -> None:
    done = child.run(
        """
import signal
from voidbox.jail import privileges, system
PR_GET_PDEATHSIG, PR_GET_CHILD_SUBREAPER, PR_GET_MDWE = 2, 37, 66
said = system.buffer(bytes(4))
privileges.die_with_parent(signal.SIGTERM)
system.prctl(PR_GET_PDEATHSIG, said)
print(said[0] == bytes([signal.SIGTERM]))
privileges.inherit_orphans()
system.prctl(PR_GET_CHILD_SUBREAPER, said)
print(said[0] == b"\\1")
print(not privileges.refuse_writable_code() or system.prctl(PR_GET_MDWE) == 1)
"""
    )
    assert done.stdout == "True\nTrue\nTrue\n", done.stderr


def test_limits_are_lowered_and_never_raised() -> None:
    done = child.run(
        """
import resource
from voidbox.jail import privileges
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
privileges.limit(core=5, fsize=1 << 20)
print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_FSIZE))
"""
    )
    assert done.stdout == "(0, 0) (1048576, 1048576)\n", done.stderr


@needs_namespaces
def test_a_limit_of_tasks_counts_those_of_the_namespace_alone() -> None:
    done = child.run(
        """
import threading, time
from voidbox.jail import namespaces, privileges
namespaces.enter(("user",))
privileges.drop_capabilities()
privileges.limit(nproc=10)
made, go = [], threading.Event()
try:
    for _ in range(20):
        made.append(threading.Thread(target=go.wait))
        made[-1].start()
except RuntimeError:
    made.pop()
go.set()
print(0 < len(made) < 10 or len(made) == 20 and __import__("os").geteuid() == 0)
"""
    )
    assert done.stdout == "True\n", done.stderr


@needs_landlock
@needs_namespaces
def test_a_layer_that_changes_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def do_nothing(*_arguments: object) -> None:
        pass

    enter = namespaces.enter
    with monkeypatch.context() as patched:
        patched.setattr(namespaces, "enter", lambda names: enter(set(names) - {"pid"}))
        assert trial._try(trial.PID, trial._try_pid).problem == "pid: it has no numbers of its own"
        assert trial._try("any", lambda: os._exit(3)).problem == "its trial ended with status 768"
    for module, name in ((seccomp, "install"), (landlock, "restrict"), (mounts, "enter_root")):
        monkeypatch.setattr(module, name, do_nothing)
    found = {one.layer: one.problem for one in trial.run_all()}
    assert found == {
        trial.SECCOMP: "seccomp: the filter refuses nothing",
        trial.LANDLOCK: "Landlock: it refuses nothing",
        trial.NAMESPACES: "",
        trial.MOUNT: "mount: other files can be seen",
        trial.PID: "mount: other files can be seen",
    }


@pytest.mark.parametrize(
    ("release", "uid", "counts"),
    [
        ("5.14.0-rc1", 1000, True),
        ("5.13.19-2-pve", 1000, False),
        ("5.4-custom1", 1000, False),
        ("6.1.0-18-cloud-amd64", 1000, True),
        ("6.1.0-18-cloud-amd64", 0, False),
    ],
)
def test_whose_tasks_are_counted(
    monkeypatch: pytest.MonkeyPatch, release: str, uid: int, counts: bool
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert namespaces.count_tasks() == counts


def test_each_layer_is_tried_and_its_failure_told() -> None:
    trials = {one.layer: one for one in trial.run_all()}
    assert set(trials) == {
        trial.SECCOMP, trial.LANDLOCK, trial.NAMESPACES, trial.MOUNT, trial.PID,
    }  # fmt: skip
    problems = [bool(one.problem) for one in trials.values()]
    assert problems == [False, not landlock_version(), *[not has_namespaces()] * 3], trials
    assert trials[trial.LANDLOCK].detail == str(landlock_version() or "")
    # In a container's filter, which lets nobody make namespaces and knows no Landlock.
    done = child.run(
        """
import errno
from voidbox.jail import bpf, numbers, privileges, seccomp, trial
privileges.set_no_new_privs()
rules = [bpf.Rule(numbers.NR[name], bpf.RET_ERRNO | errno.EPERM) for name in ("unshare", "mount")]
rules += [bpf.Rule(numbers.NR["landlock_create_ruleset"], bpf.RET_ERRNO | errno.ENOSYS)]
seccomp.install(bpf.assemble(rules, bpf.RET_ALLOW, bpf.RET_ALLOW))
for one in trial.run_all():
    print(one.layer, "-", one.problem)
"""
    )
    lines = done.stdout.split("\n")
    assert lines[0] == "seccomp - "
    assert "no Landlock" in lines[1]
    assert "Operation not permitted" in lines[2]
    assert lines[3].startswith("mount - ")
    assert len(lines[3]) > 10
