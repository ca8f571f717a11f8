"""A folder of the host that takes what a guest sends: nothing is ever written outside it.

The guest may be hostile, and so may be what an earlier download left here. Names are checked, and
every folder on the way is opened below the one before, never through a symbolic link. A file gets
its name when it is whole, which replaces a link of that name rather than following it. Links are
made only if they cannot lead outside:

    ../../a/b   in x/y/z/   leads to x/a/b: up and then down
    a/../b                  refused: "a" may itself be a link, and then ".." is anywhere
    /etc/passwd             refused, and so is what goes up too far
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from voidbox.agent.core import printable
from voidbox.errors import AgentError, ConfigError, HostError

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE_FLAGS = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)  # what a folder answers to a new file
_OFFSET_MAX = (1 << 63) - 1  # loff_t
_MTIME_NS_MAX = 1 << 62


def split_name(name: object) -> tuple[str, ...]:
    """Return the parts of a name in a folder that the guest listed.

    Raises:
        AgentError: it is no name of something in that folder.
    """
    parts = tuple(name.split("/")) if isinstance(name, str) else ()
    if not parts or any(part in ("", ".", "..") or "\0" in part for part in parts):
        shown = printable(str(name)[:200])
        raise AgentError(f"the guest's agent listed {shown!r}, which is not in the folder: refused")
    return parts


def is_safe_link(parts: tuple[str, ...], target: str) -> bool:
    """Whether a link at `parts`, in folders that are no links, leads to something beside them."""
    if not target or target.startswith("/") or "\0" in target:
        return False
    words = [word for word in target.split("/") if word not in ("", ".")]
    ups = 0
    while ups < len(words) and words[ups] == "..":
        ups += 1
    return ups <= len(parts) - 1 and ".." not in words[ups:]


class HostFile:
    """A file that is on its way, under a temporary name.

    Where no other file can take the place of an old one, that is written to itself: in a folder
    that is not the user's, and where something is mounted on it.

    Args:
        folder_fd: of the folder that it will be in; owned by this from now on.
    """

    def __init__(self, folder_fd: int, name: str, shown: str, mode: int) -> None:
        self.name = printable(shown)
        self._final = name
        self._folder_fd = folder_fd
        self._temporary = f".voidbox-{os.urandom(8).hex()}.part"
        self._fd = -1
        try:
            old = self._old_file()
            self._is_replacing = old is not None
            self._fd = self._open(mode, old)
        except BaseException:
            os.close(folder_fd)
            raise

    def _open(self, mode: int, old: os.stat_result | None) -> int:
        if old is not None and self._stays(old):
            return self._open_old()
        try:
            # Set-user-id and the like are not the guest's to give; the umask holds.
            return os.open(self._temporary, _NEW_FILE_FLAGS, mode & 0o777, dir_fd=self._folder_fd)
        except OSError as error:
            if old is None or error.errno not in _NOT_OURS:
                raise
            return self._open_old()

    def _stays(self, old: os.stat_result) -> bool:
        """Whether no other file can get this one's name, though the folder takes new ones."""
        folder, uid = os.fstat(self._folder_fd), os.geteuid()
        is_sticky = folder.st_mode & stat.S_ISVTX and uid not in (0, folder.st_uid, old.st_uid)
        return bool(is_sticky) or old.st_dev != folder.st_dev

    def _open_old(self) -> int:
        fd = os.open(self._final, _OLD_FILE_FLAGS, dir_fd=self._folder_fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # since a moment ago
            os.close(fd)
            raise ConfigError(f"{self.name} is no regular file any more: refused")
        os.ftruncate(fd, 0)
        self._temporary = ""
        return fd

    def _old_file(self) -> os.stat_result | None:
        """Describe the file there is. Refuses the name of a FIFO: nothing would be left of it."""
        try:
            old = os.stat(self._final, dir_fd=self._folder_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        mode = old.st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise ConfigError(
                f"{self.name} is neither a file nor a folder, and would be replaced: refused"
            )
        return old if stat.S_ISREG(mode) else None

    def write(self, data: bytes | memoryview) -> int:
        """Add bytes."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        return len(data)

    def skip(self, size: int) -> None:
        """Leave a hole."""
        end = os.lseek(self._fd, 0, os.SEEK_CUR) + size
        if end > _OFFSET_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        os.ftruncate(self._fd, end)
        os.lseek(self._fd, end, os.SEEK_SET)

    def commit(self, mode: int | None = None, mtime_ns: int = 0) -> None:
        """Give it its name."""
        # What is not under a temporary name may be somebody else's, and then stays as it is.
        with contextlib.nullcontext() if self._temporary else contextlib.suppress(PermissionError):
            if mode is not None:
                os.fchmod(self._fd, mode & 0o777 & ~umask())
            _set_time(self._fd, mtime_ns)
        if self._is_replacing:  # or a crash of the host may leave neither the old nor the new one
            os.fsync(self._fd)
        if self._temporary:
            folder_fd = self._folder_fd
            os.rename(self._temporary, self._final, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
            self._temporary = ""

    def close(self) -> None:
        """Free it; without a commit nothing is left of it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self._temporary:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._folder_fd)
            os.close(self._folder_fd)

    def __enter__(self) -> HostFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _set_time(fd: int, mtime_ns: int) -> None:
    if 0 < mtime_ns < _MTIME_NS_MAX:
        os.utime(fd, ns=(mtime_ns, mtime_ns))


def umask() -> int:
    """Return this process's umask, without changing it for a moment as umask(2) would."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


class HostFolder:
    """The folder. Thread: any, several at once.

    Attributes:
        is_new: this has made it.
    Raises:
        ConfigError: it cannot be made, or is no folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_new = not os.path.exists(path)
        try:
            os.makedirs(path, exist_ok=True)
            self._fd = os.open(path, _FOLDER_FLAGS & ~os.O_NOFOLLOW)  # the user's own may be a link
        except OSError as error:
            raise ConfigError(f"cannot write into {path}: {error.strerror}") from error

    @classmethod
    def of(cls, fd: int, path: str) -> HostFolder:
        """Return one that is open already. The descriptor is taken over; the path is for errors."""
        host = cls.__new__(cls)
        host.path, host.is_new, host._fd = path, False, fd
        return host

    def _open(self, parts: tuple[str, ...], makes: bool = True) -> int:
        """Return a descriptor of a folder in this one."""
        fd = os.dup(self._fd)
        try:
            for part in parts:
                if makes:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                inner = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = inner
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextlib.contextmanager
    def _says(self, parts: tuple[str, ...]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = printable("/".join((self.path, *parts)))
            reason = error.strerror
            if isinstance(error, NotADirectoryError):
                reason = "something on the way is a link or a file, and links are not followed"
            raise HostError(f"cannot write {where}: {reason}", error.errno or 0) from error

    def make_folder(self, parts: tuple[str, ...], mode: int) -> bool:
        """Make a folder; False if it exists."""
        with self._says(parts):
            fd = self._open(parts[:-1])
            try:
                try:
                    os.mkdir(parts[-1], mode & 0o777 | 0o700, dir_fd=fd)
                except FileExistsError:
                    os.close(os.open(parts[-1], _FOLDER_FLAGS, dir_fd=fd))
                    return False
            finally:
                os.close(fd)
            return True

    def finish_folder(self, parts: tuple[str, ...], mode: int, mtime_ns: int) -> None:
        """Give a folder, or with no parts this one, its permissions and time."""
        with self._says(parts):
            fd = self._open(parts, makes=False)
            try:
                os.fchmod(fd, mode & 0o777 & ~umask() | 0o700)  # what is in it can be removed
                _set_time(fd, mtime_ns)
            finally:
                os.close(fd)

    def new_file(self, parts: tuple[str, ...], mode: int) -> HostFile:
        """Begin a file; the folders above are made."""
        with self._says(parts):
            fd = self._open(parts[:-1])
            return HostFile(fd, parts[-1], "/".join((self.path, *parts)), mode)

    def write_file(self, parts: tuple[str, ...], data: bytes, mode: int, mtime_ns: int) -> None:
        """Write a whole file."""
        with self._says(parts), self.new_file(parts, mode) as file:
            file.write(data)
            file.commit(mode, mtime_ns)

    def link(self, parts: tuple[str, ...], target: str) -> None:
        """Make a symbolic link that is_safe_link()."""
        if not is_safe_link(parts, target):
            raise ValueError(f"not a safe link: {target!r}")
        with self._says(parts):
            fd = self._open(parts[:-1])
            try:
                temporary = f".voidbox-{os.urandom(8).hex()}.part"
                os.symlink(target, temporary, dir_fd=fd)
                try:
                    os.rename(temporary, parts[-1], src_dir_fd=fd, dst_dir_fd=fd)
                except OSError:
                    os.unlink(temporary, dir_fd=fd)
                    raise
            finally:
                os.close(fd)

    def close(self) -> None:
        """Free it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> HostFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
