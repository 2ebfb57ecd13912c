"""The file of a Unix socket: a clear path for it, the file held fast by a descriptor, and its removal.

A directory may be writable for others than us (an app's user, say), so nothing is done by path that can be done by
descriptor: between bind and chown somebody could put a link to /etc/shadow in the socket's place, and a link in the
place of the directory would lead to another pool's socket (linux/directories.py).

bind(2) alone knows paths only, and what it is told is what the socket is called for life (`getsockname()`, sockdiag),
so that it cannot be a way round by /proc/self/fd. So it is looked afterwards, before anybody may connect, whether the
file in the directory that was found is the one to which the socket is bound.
"""

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

from fcgimgr.linux import procfs, sockdiag
from fcgimgr.linux.directories import directory_of
from fcgimgr.linux.errors import LinuxError, refuse
from fcgimgr.linux.libc import exchange, rename_to_free


class SocketFile:
    """A file we made, held by a descriptor of its inode: that stays ours if the path is renamed or replaced."""

    def __init__(self, name: str, path: str, pin: int) -> None:
        self._name = name
        self._path = path
        self._pin = pin
        made = os.fstat(pin)
        self._identity = made.st_dev, made.st_ino

    def set_mode(self, mode: int) -> None:
        self._change(f"set its mode to {mode:04o}", lambda itself: os.chmod(itself, mode))

    def set_owner(self, uid: int, gid: int) -> None:
        self._change(f"give it to {uid}:{gid}", lambda itself: os.chown(itself, uid, gid))

    @property
    def path(self) -> str:
        return self._path

    @contextmanager
    def way_in(self) -> Iterator[str]:
        """What to connect to in order to reach this very socket, whatever its path leads to. OSError: it was let go."""
        pin = os.dup(self._pin)
        try:
            yield f"/proc/self/fd/{pin}"
        finally:
            os.close(pin)

    def attributes(self) -> tuple[int, int, int]:
        """(uid, gid, mode) as they are now, the mode without the file's kind."""
        now = os.fstat(self._pin)
        return now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)

    def trade_places(self, other: "SocketFile") -> bool:
        """Have the path of `other`, which gets this one's, in one step: a client meets the one file or the other.

        False: the other one has no path now. Its file had been removed, and this one was renamed to where it was; or
        this file system cannot exchange two, so that it was renamed over it. LinuxError, and nothing is done: either
        was replaced, or this one removed.
        """
        with (
            _directory(self._name, self._path) as (directory, name),
            _directory(other._name, other._path) as (its_directory, its_name),
        ):
            if not self._is_at(directory, name):
                raise LinuxError(self._lost())
            is_there = other._is_at(its_directory, its_name)
            if not is_there and _look(other._name, other._path, its_directory) is not None:
                raise LinuxError(other._lost())
            try:
                if is_there:
                    traded = _exchanged(name, its_name, directory, its_directory)
                else:
                    traded = False
                    rename_to_free(name, its_name, in_directory=directory, in_other=its_directory)
            except OSError as error:
                refuse(f"{self._name}: cannot rename it to {other._path}", error)
        self._name, other._name = other._name, self._name
        self._path, other._path = other._path, self._path
        return traded

    def remove(self) -> None:
        """Unlink it if the path still leads to it, and let go of it. Once only."""
        try:
            with directory_of(self._path) as (directory, name):
                if self._is_at(directory, name):
                    os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass  # gone this moment: somebody tidied up
        except OSError as error:
            refuse(f"{self._name}: cannot remove {self._path}", error, "remove it by hand")
        finally:
            self.leave()

    def leave(self) -> None:
        """Let go of it, and leave it where it is."""
        pin, self._pin = self._pin, -1
        os.close(pin)

    def _is_at(self, directory: int, name: str) -> bool:
        """Whether this name in a directory leads to it."""
        there = _look(self._name, self._path, directory)
        return there is not None and (there.st_dev, there.st_ino) == self._identity

    def _lost(self) -> str:
        return f"{self._name}: the socket at {self._path} is not ours any more; somebody replaced or removed it"

    def _change(self, what: str, call: Callable[[str], None]) -> None:
        try:
            call(f"/proc/self/fd/{self._pin}")  # fchmod(2) refuses O_PATH descriptors; this leads to the same inode
        except OSError as error:
            advice = "only root may do that, and others only for groups they are in"
            refuse(f"{self._name}: cannot {what}", error, advice if isinstance(error, PermissionError) else "")


def bind(sock: socket.socket, name: str, path: str, owner: tuple[int, int] | None, mode: int) -> SocketFile:
    """Bind `sock` to an absolute path: a dead socket there gives way, anything else is a LinuxError.

    owner: (uid, gid), -1 leaves that one alone. If it fails, no file of ours stays behind.
    """
    with _directory(name, path) as (directory, _):
        _clear_the_way(name, path, directory)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        except OSError as error:
            _refuse(name, path, error)
        finally:
            os.umask(before)
        file = SocketFile(name, path, _pin(name, path, directory, os.fstat(sock.fileno()).st_ino))
    try:
        file.set_mode(mode)  # a default ACL of the directory overrules the umask, so say it again
        if owner is not None and owner != (-1, -1):
            file.set_owner(*owner)
    except BaseException:
        file.remove()
        raise
    return file


def find_again(sock: int, name: str, path: str) -> SocketFile | None:
    """The file at `path`, if the socket of inode `sock` is bound to it; else None."""
    try:
        with directory_of(path) as (directory, file):
            pin = os.open(file, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    there = os.fstat(pin)
    # Where netlink is barred nobody can tell; then whoever names the path is believed.
    if sockdiag.unix_is_bound_to(sock, there.st_dev, there.st_ino) is not False:
        return SocketFile(name, path, pin)
    os.close(pin)
    return None


def _exchanged(name: str, its_name: str, directory: int, its_directory: int) -> bool:
    """Whether two files were exchanged; False: this file system cannot, and the first was renamed over the other."""
    try:
        exchange(name, its_name, in_directory=directory, in_other=its_directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        os.rename(name, its_name, src_dir_fd=directory, dst_dir_fd=its_directory)
        return False
    return True


@contextmanager
def _directory(name: str, path: str) -> Iterator[tuple[int, str]]:
    """As `directory_of`; LinuxError, in words."""
    where = os.path.dirname(path)
    with ExitStack() as found:
        try:
            place = found.enter_context(directory_of(path))
        except FileNotFoundError as error:
            raise LinuxError(
                f"{name}: the directory {where} does not exist; create it (systemd: RuntimeDirectory=)"
            ) from error
        except OSError as error:
            refuse(f"{name}: the directory {where}", error)
        yield place


def _clear_the_way(name: str, path: str, directory: int) -> None:
    """Remove a dead socket from the path; LinuxError if anything else is there."""
    there = _look(name, path, directory)
    if there is None:
        return
    if not stat.S_ISSOCK(there.st_mode):
        kind = _KINDS.get(stat.S_IFMT(there.st_mode), "a device")
        raise LinuxError(f"{name}: {path} is {kind}, not a socket; move it away or choose another path")
    # Bound but not listening yet refuses as a dead one does: somebody is just opening it.
    if _answers(name, path, directory) or sockdiag.unix_bound(there.st_dev, there.st_ino):
        who = procfs.holders(sockdiag.listening_inodes(path))
        raise LinuxError(f"{name}: a live process serves this socket{who}; stop that one or choose another path")
    again = _look(name, path, directory)
    if again is None:
        return
    if (again.st_dev, again.st_ino) != (there.st_dev, there.st_ino):
        raise LinuxError(f"{name}: somebody else is opening this socket at this moment; choose another path")
    try:
        os.unlink(os.path.basename(path), dir_fd=directory)
    except OSError as error:
        refuse(f"{name}: cannot remove the dead socket {path}", error, "remove it by hand, or choose another path")


def _look(name: str, path: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(os.path.basename(path), dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        refuse(f"{name}: cannot look at {path}", error)


def _answers(name: str, path: str, directory: int) -> bool:
    """Whether anybody listens there. Only ECONNREFUSED is a no."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_way_by(directory, path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EPROTOTYPE):  # its queue is full; it is of another type
                return True
            refuse(f"{name}: cannot test whether {path} is in use", error, "remove it if it is dead")
    return True


def _way_by(directory: int, path: str) -> str:
    """How to connect to a socket in a directory that is open, whatever its path leads to by now."""
    way = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    # A longer one fits into no address; what a connection says there is not believed any further.
    return way if len(os.fsencode(way)) <= 107 else path


def _pin(name: str, path: str, directory: int, sock: int) -> int:
    """A descriptor of the very file to which the socket of this inode was just bound."""
    try:
        pin = os.open(os.path.basename(path), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        refuse(f"{name}: cannot open the socket just made", error)
    made = os.fstat(pin)
    is_new = stat.S_ISSOCK(made.st_mode) and made.st_uid == os.geteuid() and made.st_nlink == 1
    # Where netlink is barred that much must do.
    if is_new and sockdiag.unix_is_bound_to(sock, made.st_dev, made.st_ino) is not False:
        return pin
    os.close(pin)
    raise LinuxError(
        f"{name}: the socket was replaced while it was being made; use a directory that only this user can write to"
    )


def _refuse(name: str, path: str, error: OSError) -> NoReturn:
    where = os.path.dirname(path)
    if error.errno in (errno.EACCES, errno.EPERM):
        raise LinuxError(
            f"{name}: uid {os.geteuid()} has no permission to create a file in {where}; give it write access or "
            "choose another directory"
        ) from error
    if error.errno == errno.EADDRINUSE:
        raise LinuxError(f"{name}: somebody else made {path} at this moment; choose another path") from error
    advice = "choose a directory that can be written to" if error.errno == errno.EROFS else ""
    refuse(f"{name}: cannot create {path}", error, advice)


_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
}
