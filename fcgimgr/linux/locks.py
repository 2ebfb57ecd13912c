"""A file that only one process can hold: the pidfile, and the lock beside the control socket.

The lock is flock(2)'s, which the kernel drops when its holder dies, however it dies: a file left behind is no obstacle.
The lock sits on an inode and not on a path, so after locking we look whether the path still leads to that inode; else
somebody removed the file while we waited, and another could be locking a new one by the same name.

Whoever may open the file may hold its lock, and who may write to its directory may put another in its place: a file of
theirs is not used, and root uses no directory of theirs.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, Self

from fcgimgr.linux.directories import directory_of, who_else_may_write
from fcgimgr.linux.errors import LinuxError, refuse
from fcgimgr.linux.procfs import command

_LINK: Final = "it is a symbolic link, which is not followed; remove it or choose another path"


class LockFile:
    """A held lock, with our pid in the file. Children do not inherit it (close-on-exec)."""

    def __init__(self, path: str) -> None:
        """Take it now or raise LinuxError; never waits. The file is made with mode 0644 if it is not there."""
        self.path = path
        self._fd = _take(path)
        try:
            self.write_pid()
        except LinuxError:
            self.remove()
            raise

    @classmethod
    def kept(cls, path: str, fd: int) -> Self:
        """A lock from before an exec: it is held as long as its descriptor is open."""
        lock = cls.__new__(cls)
        lock.path = path
        lock._fd = fd
        os.set_inheritable(fd, False)
        return lock

    def fileno(self) -> int:
        return self._fd

    def is_in_place(self) -> bool:
        """Whether the path still leads to the file that is locked."""
        try:
            with directory_of(self.path) as (directory, name):
                return _leads_to(directory, name, self._fd)
        except OSError:
            return False

    def write_pid(self) -> None:
        """Write our pid (again: the lock outlives a fork, the number in the file does not)."""
        text = b"%d\n" % os.getpid()
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text, 0)
        except OSError as error:
            refuse(f"{self.path}: cannot write the pid", error)

    def remove(self) -> None:
        """Unlink the file while it is held, then let go. A file that is no longer ours stays."""
        try:
            if self._fd >= 0:
                with directory_of(self.path) as (directory, name):
                    if _leads_to(directory, name, self._fd):
                        os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass  # its directory was removed
        except OSError as error:  # the directory may have lost its write permission: say so, but let go
            refuse(f"{self.path}: cannot remove it", error)
        finally:
            self.release()

    def release(self) -> None:
        """Let go and leave the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def look_at_lock(path: str) -> None:
    """LinuxError if none could be taken here, whoever holds it. Nothing is made."""
    with _directory(path) as (directory, name):
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISLNK(found.st_mode):
            raise LinuxError(f"{path}: {_LINK}")
        _refuse_file(path, found)


def _take(path: str) -> int:
    with _directory(path) as (directory, name):
        return _take_in(directory, name, path)


@contextmanager
def _directory(path: str) -> Iterator[tuple[int, str]]:
    """As `directory_of`, and a safe one. LinuxError."""
    with ExitStack() as found:
        try:
            directory, name = found.enter_context(directory_of(path))
        except OSError as error:
            refuse(path, error, _advice(path, error))
        if os.geteuid() == 0:
            _refuse_directory(path, os.fstat(directory))
        yield directory, name


def _take_in(directory: int, name: str, path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    while True:
        try:
            fd = os.open(name, flags, 0o644, dir_fd=directory)
        except OSError as error:
            refuse(path, error, _advice(path, error))
        try:
            _refuse_file(path, os.fstat(fd))
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _leads_to(directory, name, fd):
                return fd
        except BlockingIOError as error:
            message = f"{path}: already held by {_holder(fd)}; stop that one first, or choose another path"
            os.close(fd)
            raise LinuxError(message) from error
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # removed under our hands: lock the one that is there now


def _refuse_directory(path: str, found: os.stat_result) -> None:
    where = os.path.dirname(path) or "."
    other = who_else_may_write(where, found)
    why = other.why if other is not None else f"belongs to uid {found.st_uid}" if found.st_uid != 0 else ""
    if why:
        raise LinuxError(f"{path}: its directory {why}, who could put another in its place; choose one of root's")


def _refuse_file(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise LinuxError(f"{path}: is not a regular file; move it away or choose another path")
    if found.st_uid not in (0, os.geteuid()):
        raise LinuxError(f"{path}: belongs to uid {found.st_uid}, who could hold it; remove it or choose another path")
    if found.st_nlink > 1:
        raise LinuxError(f"{path}: has another name (a hard link), which would be overwritten; remove it")


def _leads_to(directory: int, name: str, fd: int) -> bool:
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    ours = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _holder(fd: int) -> str:
    text = os.pread(fd, 32, 0).strip()
    if not text.isdigit():
        return "another process"
    name = command(int(text))
    return f"pid {int(text)}" + (f" ({name})" if name else "")


def _advice(path: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"create the directory {os.path.dirname(path) or '.'}"
    if isinstance(error, PermissionError):
        return "choose a path this user may write to"
    return _LINK if os.path.islink(path) else ""
