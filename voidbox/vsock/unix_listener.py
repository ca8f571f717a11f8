"""The Unix socket on which the host's programs ask for connections: made, replaced, removed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from voidbox.errors import ConfigError, HostError

PATH_BYTES_MAX = 107  # sizeof(sun_path) less the terminating zero
BACKLOG = 1024


class UnixListener:
    """A listening socket of mode 0600 that removes its name when it is closed.

    Raises:
        ConfigError: the path is too long, taken by a live socket, or by something else.
        HostError: the folder is missing or may not be written.
    """

    def __init__(self, path: str) -> None:
        if not 0 < len(os.fsencode(path)) <= PATH_BYTES_MAX:
            raise ConfigError(
                f"the socket path {path!r} is empty or longer than {PATH_BYTES_MAX} bytes: "
                "choose a shorter folder"
            )
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # Before bind(), which gives the name the socket's mode: it never has a wider one.
            os.fchmod(self.socket.fileno(), 0o600)
            _remove_dead(path)
            self.socket.bind(path)
            self._identity = _identity(path)
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.socket.close()
            if error.errno == errno.EADDRINUSE:  # somebody else was faster
                raise ConfigError(f"the socket {path} is in use") from error
            raise HostError.from_errno(f"listen on {path}", error.errno or 0) from error
        except ConfigError:
            self.socket.close()
            raise

    def let_go(self) -> None:
        """Listen no longer: another process does, and has a copy. The name is still ours."""
        self.socket.close()

    def close(self) -> None:
        """Stop listening and remove the name, unless it is another socket's by now. Idempotent."""
        self.socket.close()
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                os.unlink(self.path)


class HandedListener:
    """A listening socket that another process made, and whose name that one removes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self.socket.close()


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is no socket: remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its backlog is full, so it has an owner
    raise ConfigError(f"the socket {path} is in use: is another machine running with it?")
