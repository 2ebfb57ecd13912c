"""The file of a Unix socket: a clear path for it, the file held fast by a descriptor, and its removal.

A directory may be writable for others than us (an app's user, say), so nothing is done by path that can be done by
descriptor: between bind and chown somebody could put a link to /etc/shadow in the socket's place.
"""

import errno
import os
import socket
import stat
from collections.abc import Callable
from typing import NoReturn

from fcgimgr.linux import procfs, sockdiag
from fcgimgr.linux.errors import LinuxError, refuse
from fcgimgr.linux.libc import exchange


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

    def attributes(self) -> tuple[int, int, int]:
        """(uid, gid, mode) as they are now, the mode without the file's kind."""
        now = os.fstat(self._pin)
        return now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)

    def trade_places(self, other: "SocketFile") -> bool:
        """Have the path of `other`, which gets this one's, in one step: a client meets the one file or the other.

        False: this file system cannot exchange two files, so it was renamed over the other one, which has none now.
        LinuxError, and nothing is done: either was replaced.
        """
        for file in (self, other):
            try:
                there = file._is_there()
            except OSError as error:
                refuse(f"{file._name}: cannot look at {file._path}", error)
            if not there:
                raise LinuxError(
                    f"{file._name}: the socket at {file._path} is not ours any more; somebody replaced or removed it"
                )
        traded = True
        try:
            try:
                exchange(self._path, other._path)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                os.rename(self._path, other._path)
                traded = False
        except OSError as error:
            refuse(f"{self._name}: cannot rename it to {other._path}", error)
        self._name, other._name = other._name, self._name
        self._path, other._path = other._path, self._path
        return traded

    def remove(self) -> None:
        """Unlink it if the path still leads to it, and let go of it. Once only."""
        try:
            if self._is_there():
                os.unlink(self._path)
        except FileNotFoundError:
            pass  # gone this moment: somebody tidied up
        except OSError as error:
            refuse(f"{self._name}: cannot remove {self._path}", error, "remove it by hand")
        finally:
            os.close(self._pin)

    def leave(self) -> None:
        """Let go of it, and leave it where it is."""
        os.close(self._pin)

    def _is_there(self) -> bool:
        """Whether the path leads to it. OSError: it cannot be looked at."""
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == self._identity

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
    directory = _open_directory(name, os.path.dirname(path))
    try:
        _clear_the_way(name, path, directory)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        except OSError as error:
            _refuse(name, path, error)
        finally:
            os.umask(before)
        file = SocketFile(name, path, _pin(name, path, directory))
    finally:
        os.close(directory)
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
        pin = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    there = os.fstat(pin)
    # Where netlink is barred nobody can tell; then whoever names the path is believed.
    if sockdiag.unix_is_bound_to(sock, there.st_dev, there.st_ino) is not False:
        return SocketFile(name, path, pin)
    os.close(pin)
    return None


def _open_directory(name: str, directory: str) -> int:
    try:
        return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise LinuxError(
            f"{name}: the directory {directory} does not exist; create it (systemd: RuntimeDirectory=)"
        ) from error
    except OSError as error:
        refuse(f"{name}: the directory {directory}", error)


def _clear_the_way(name: str, path: str, directory: int) -> None:
    """Remove a dead socket from the path; LinuxError if anything else is there."""
    there = _look(name, path, directory)
    if there is None:
        return
    if not stat.S_ISSOCK(there.st_mode):
        kind = _KINDS.get(stat.S_IFMT(there.st_mode), "a device")
        raise LinuxError(f"{name}: {path} is {kind}, not a socket; move it away or choose another path")
    # Bound but not listening yet refuses as a dead one does: somebody is just opening it.
    if _answers(name, path) or sockdiag.unix_bound(there.st_dev, there.st_ino):
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


def _answers(name: str, path: str) -> bool:
    """Whether anybody listens there. Only ECONNREFUSED is a no."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EPROTOTYPE):  # its queue is full; it is of another type
                return True
            refuse(f"{name}: cannot test whether {path} is in use", error, "remove it if it is dead")
    return True


def _pin(name: str, path: str, directory: int) -> int:
    """A descriptor of the very file we have bound."""
    try:
        pin = os.open(os.path.basename(path), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        refuse(f"{name}: cannot open the socket just made", error)
    made = os.fstat(pin)
    if stat.S_ISSOCK(made.st_mode) and made.st_uid == os.geteuid() and made.st_nlink == 1:
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
