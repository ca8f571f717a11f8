"""Start a program as a user, on pipes or on a terminal."""

from __future__ import annotations

import _posixsubprocess
import contextlib
import errno
import fcntl
import os
import resource
import signal
import struct
import termios

from guest_agent.connection import RequestError
from guest_agent.records import NamedTuple
from guest_agent.users import User, acting_as, call_as

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from guest_agent.cgroups import Group

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # what a shell's exit status would be
OPEN_FILES = (1024, 65536)  # soft and hard limit of what we start; the agent has more
OF_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # which every Python ignores
_FAILURE_BYTES_MAX = 1024  # of what a child says that could not become the program


class Program(NamedTuple):
    """What to start.

    Attributes:
        window_size: (rows, columns) of its terminal, or None for pipes.
        has_stdin: it gets a pipe to read from, else /dev/null.
    """

    argv: list[str]
    environment: dict[str, str]
    cwd: str
    user: User
    window_size: tuple[int, int] | None
    has_stdin: bool


class Child(NamedTuple):
    """A started program and our ends of its streams, non-blocking; -1 where there is none.

    On a terminal `stdin` and `stdout` are the same descriptor.
    """

    pid: int
    stdin: int
    stdout: int
    stderr: int


class StartError(Exception):
    """The program could not be executed.

    Attributes:
        exit_code: 127 or 126, as a shell has it.
    """

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def start(program: Program, group: Group | None = None) -> Child:
    """Start a program in a session of its own.

    Args:
        group: what it and its descendants are to be in.
    Raises:
        StartError: it is not there or not executable.
        RequestError: its working folder cannot be entered.
        OSError: out of processes, descriptors or memory.
    """
    opened: list[int] = []
    try:
        ours, theirs = _streams(program, opened)
        failure_read, failure_write = _opened(opened, os.pipe2(os.O_CLOEXEC))
        with _inherited(program, group):
            pid = _fork(program, theirs, (failure_read, failure_write))
        for fd in {*theirs, failure_write}:
            opened.remove(fd)
            os.close(fd)
        failure = os.read(failure_read, _FAILURE_BYTES_MAX)  # b"" once exec has closed it
        if failure:
            os.waitpid(pid, 0)
            _raise_failure(program, failure)
        for fd in set(ours) - {-1}:
            os.set_blocking(fd, False)
            opened.remove(fd)
        return Child(pid, *ours)
    finally:
        for fd in opened:
            os.close(fd)


@contextlib.contextmanager
def _inherited(program: Program, group: Group | None) -> Iterator[None]:
    """Have for a moment what a child is to inherit: its folder, its limits, its cgroup.

    The agent does nothing else meanwhile. So a child need not run Python before it is the program,
    which costs a multiple: each object that it touches is a page to be copied.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as afterwards:  # all of it, whatever fails
        home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        afterwards.callback(os.close, home)
        afterwards.callback(os.fchdir, home)
        _enter(program)
        afterwards.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES[0], hard), hard))
        if group is not None:
            afterwards.callback(group.leave)
            group.join()
        yield


def _enter(program: Program) -> None:
    try:
        with acting_as(program.user):
            os.chdir(program.cwd)
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "EIO")
        raise RequestError(code, f"cannot work in {program.cwd}: {error.strerror}") from error


def _fork(program: Program, streams: tuple[int, int, int], failure_pipe: tuple[int, ...]) -> int:
    """Return the child that becomes the program; what goes wrong there, it writes."""
    user = program.user
    is_other = os.geteuid() == 0 and (user.uid, user.gid, {*user.groups, 0}) != (0, 0, {0})
    if program.window_size is None:
        try:
            if is_other:
                return call_as(user, lambda: _fork_exec(program, streams, failure_pipe))
            return _fork_exec(program, streams, failure_pipe)
        except TypeError:
            pass  # another Python's, of other arguments
    pid = os.fork()
    if pid == 0:
        _become(program, streams, failure_pipe[1])
    return pid


def _fork_exec(
    program: Program, streams: tuple[int, int, int], failure_pipe: tuple[int, ...]
) -> int:
    """Fork and execute without Python in between, by what the module subprocess is made of.

    A vfork, which copies no page tables: it is one for whoever changes no credentials in the child,
    so this thread has those of the program already. The module's own import would cost a guest's
    start as much as a command.
    """
    return _posixsubprocess.fork_exec(
        program.argv,
        _candidates(program),
        False,  # close_fds: all of ours are closed by exec
        failure_pipe[1:],
        None,  # cwd
        [os.fsencode(f"{name}={value}") for name, value in program.environment.items()],
        *(streams[0], -1, -1, streams[1], -1, streams[2]),
        *failure_pipe,
        True,  # restore_signals
        True,  # call_setsid
        -1,  # pgid_to_set
        *(None, None, None),  # gid, groups, uid
        0o022,
        None,  # preexec_fn
        True,  # allow_vfork
    )


def _candidates(program: Program) -> list[bytes]:
    """Return where the program may be; as execvp(3) looks for it."""
    name = program.argv[0]
    if "/" in name:
        return [os.fsencode(name)]
    return [os.fsencode(os.path.join(f, name)) for f in os.get_exec_path(program.environment)]


def _opened(opened: list[int], fds: tuple[int, ...]) -> tuple[int, ...]:
    opened += fds
    return fds


def _streams(
    program: Program, opened: list[int]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return our ends and the child's, each as stdin, stdout, stderr."""
    if program.window_size is not None:
        master, slave = _opened(opened, os.openpty())
        set_window_size(master, *program.window_size)
        if os.geteuid() == 0:
            os.fchown(slave, program.user.uid, program.user.gid)
            os.fchmod(slave, 0o620)
        return (master, master, -1), (slave, slave, slave)
    out_read, out_write = _pipe(program, opened)
    error_read, error_write = _pipe(program, opened)
    if program.has_stdin:
        in_read, in_write = _pipe(program, opened)
    else:
        (in_read,) = _opened(opened, (os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC),))
        in_write = -1
    return (in_write, out_read, error_read), (in_read, out_write, error_write)


def _pipe(program: Program, opened: list[int]) -> tuple[int, ...]:
    """Return both ends of a pipe that the program's user may open again by /dev/stdout."""
    ends = _opened(opened, os.pipe2(os.O_CLOEXEC))
    if os.geteuid() == 0:
        os.fchown(ends[0], program.user.uid, program.user.gid)  # of the pipe: of both ends
    return ends


def set_window_size(fd: int, rows: int, columns: int) -> None:
    """Tell a terminal its size; its foreground processes get SIGWINCH."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _become(program: Program, streams: tuple[int, int, int], failure_fd: int) -> NoReturn:
    """Turn this child into the program, on a terminal."""
    what = "noexec"
    try:
        os.setsid()
        if program.window_size is not None:
            fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
        for target, fd in enumerate(streams):
            os.dup2(fd, target)
        for number in OF_PYTHON:
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o022)
        if os.geteuid() == 0:
            os.setgroups(program.user.groups)
            os.setgid(program.user.gid)
            os.setuid(program.user.uid)
        what = ""
        os.execvpe(program.argv[0], program.argv, program.environment)
    except OSError as error:
        os.write(failure_fd, b"OSError:%x:%s" % (error.errno or errno.EIO, what.encode()))
    except BaseException:
        os.write(failure_fd, b"OSError:%x:noexec" % errno.EINVAL)
    finally:
        os._exit(NOT_FOUND)


def reset_signals() -> None:
    """Have no signal ignored or blocked because the agent's parent did so: children would too."""
    for number in signal.valid_signals() - set(OF_PYTHON):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _raise_failure(program: Program, failure: bytes) -> NoReturn:
    """Raise what a child wrote: the kind of error, its number in hexadecimal, and where it was."""
    _, code, what = failure.split(b":", 2)
    number = int(code, 16)
    reason = os.strerror(number)
    if not what.startswith(b"noexec"):
        exit_code = NOT_FOUND if number in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE
        text = "command not found" if number == errno.ENOENT else reason
        raise StartError(exit_code, f"{program.argv[0]}: {text}")
    raise OSError(number, f"cannot start {program.argv[0]}: {reason}")
