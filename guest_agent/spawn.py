"""Start a program as a user, on pipes or on a terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import struct
import termios
from typing import NamedTuple

from guest_agent.connection import RequestError
from guest_agent.users import User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from guest_agent.cgroups import Group

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # what a shell's exit status would be
OPEN_FILES = (1024, 65536)  # soft and hard limit of what we start; the agent has more
_FAILURE = struct.Struct("<BI")  # where it failed, errno
_IN_CWD, _IN_EXEC, _ELSEWHERE = 0, 1, 2


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
        pid = os.fork()
        if pid == 0:
            _become(program, theirs, failure_write, group)
        for fd in {*theirs, failure_write}:
            opened.remove(fd)
            os.close(fd)
        failure = os.read(failure_read, _FAILURE.size)  # b"" once exec has closed it
        if failure:
            os.waitpid(pid, 0)
            _raise_failure(program, *_FAILURE.unpack(failure))
        for fd in set(ours) - {-1}:
            os.set_blocking(fd, False)
            opened.remove(fd)
        return Child(pid, *ours)
    finally:
        for fd in opened:
            os.close(fd)


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


def _become(
    program: Program, streams: tuple[int, int, int], failure_fd: int, group: Group | None
) -> NoReturn:
    """Turn this child into the program."""
    where = _ELSEWHERE
    try:
        os.setsid()
        if group is not None:
            group.join()
        if program.window_size is not None:
            fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
        for target, fd in enumerate(streams):
            os.dup2(fd, target)
        _reset_process()
        if os.geteuid() == 0:
            os.setgroups(program.user.groups)
            os.setgid(program.user.gid)
            os.setuid(program.user.uid)
        where = _IN_CWD
        os.chdir(program.cwd)
        where = _IN_EXEC
        os.execvpe(program.argv[0], program.argv, program.environment)
    except OSError as error:
        os.write(failure_fd, _FAILURE.pack(where, error.errno or errno.EIO))
    except BaseException:
        os.write(failure_fd, _FAILURE.pack(where, errno.EINVAL))
    finally:
        os._exit(NOT_FOUND)


def _reset_process() -> None:
    """Undo what the agent, Python, and whoever started them set for themselves."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    hard = min(OPEN_FILES[1], resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES[0], hard), hard))
    if os.getppid() == 1:
        # The agent is the last that the kernel may kill for want of memory; this is not.
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("0")


def _raise_failure(program: Program, where: int, number: int) -> NoReturn:
    reason = os.strerror(number)
    if where == _IN_CWD:
        code = errno.errorcode.get(number, "EIO")
        raise RequestError(code, f"cannot work in {program.cwd}: {reason}")
    if where == _IN_EXEC:
        exit_code = NOT_FOUND if number in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE
        text = "command not found" if number == errno.ENOENT else reason
        raise StartError(exit_code, f"{program.argv[0]}: {text}")
    raise OSError(number, f"cannot start {program.argv[0]}: {reason}")
