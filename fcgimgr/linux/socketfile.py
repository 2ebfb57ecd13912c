"""The file of a Unix socket: a clear path for it, the file held fast by a descriptor, and its removal.

A directory may be writable for others than us (an app's user, say), so nothing is done by path that can be done by
descriptor: between bind and chown somebody could put a link to /etc/shadow in the socket's place, and a link in the
place of the directory would lead to another pool's socket (linux/directories.py).

bind(2) alone knows paths only, and what it is told is what the socket is called for life (`getsockname()`, sockdiag),
so that it cannot be a way round by /proc/self/fd, unless the path is too long for a socket. So it is looked afterwards,
before anybody may connect, whether the file in the directory that was found is the one to which the socket is bound.

Servers there are that unlink the file of the socket they were given, at their end and not at that of the last of them
(gunicorn, asyncio's). A file without a name is lost: link(2) gives it none again. So it has a second, hidden one beside
the first, and whoever removes the first takes nothing that cannot be put back.
"""

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NoReturn

from fcgimgr.linux import sockdiag
from fcgimgr.linux.directories import directory_of, itself
from fcgimgr.linux.errors import LinuxError, refuse
from fcgimgr.linux.glance import holders
from fcgimgr.linux.libc import exchange, rename_to_free

#: What fits into sockaddr_un: 108 bytes with the closing NUL.
LONGEST_PATH: Final = 107
# What the second name of a file begins with; its inode's number follows.
_SECOND: Final = ".fcgimgr-"
# To have a file fast, whatever its path leads to later.
_PIN: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class SocketFile:
    """A file we made, held by a descriptor of its inode: that stays ours if the path is renamed or replaced."""

    def __init__(self, name: str, path: str, pin: int) -> None:
        self._name = name
        self._path = path
        self._pin = pin
        made = os.fstat(pin)
        self._identity = made.st_dev, made.st_ino
        self._second = _second_name(made.st_ino)

    def set_mode(self, mode: int) -> None:
        self._change(f"set its mode to {mode:04o}", lambda path: os.chmod(path, mode))

    def set_owner(self, uid: int, gid: int) -> None:
        self._change(f"give it to {uid}:{gid}", lambda path: os.chown(path, uid, gid))

    @property
    def path(self) -> str:
        return self._path

    @contextmanager
    def way_in(self) -> Iterator[str]:
        """What to connect to in order to reach this very socket, whatever its path leads to. OSError: it was let go."""
        pin = os.dup(self._pin)
        try:
            yield itself(pin)
        finally:
            os.close(pin)

    def keep(self) -> None:
        """Give it its second name. Where there are no hard links it has none, and cannot be put back."""
        with suppress(OSError), directory_of(self._path) as (directory, _):
            self._link(self._second, directory)

    def is_in_place(self) -> bool:
        """Whether the path leads to it. LinuxError: it cannot be looked at."""
        try:
            with directory_of(self._path) as (directory, name):
                return self._is_at(directory, name)
        except FileNotFoundError:
            return False
        except OSError as error:
            refuse(f"{self._name}: cannot look at {self._path}", error)

    def put_back(self) -> bool:
        """Let the path lead to it again. False: nothing is at its path, and it has no name left, or is of another file
        system than that which its directory is of by now.

        LinuxError: something else is there, or its directory is not.
        """
        with _directory(self._name, self._path) as (directory, name):
            return self._put_back_in(directory, name)

    def attributes(self) -> tuple[int, int, int]:
        """(uid, gid, mode) as they are now, the mode without the file's kind."""
        now = os.fstat(self._pin)
        return now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)

    def trade_places(self, other: "SocketFile") -> bool:
        """Have the path of `other`, which gets this one's, in one step: a client meets the one file or the other.

        False: the other one has no path now. No name of its file was left, and this one was renamed to where it was; or
        this file system cannot exchange two, so that it was renamed over it. LinuxError, and nothing is done: either
        was replaced, or no name of this one is left.
        """
        with (
            _directory(self._name, self._path) as (directory, name),
            _directory(other._name, other._path) as (its_directory, its_name),
        ):
            if not self._put_back_in(directory, name):
                raise LinuxError(f"{self._name}: the socket at {self._path} was removed, and cannot be put back")
            traded = other._put_back_in(its_directory, its_name)
            try:
                if traded:
                    traded = _exchanged(name, its_name, directory, its_directory)
                else:
                    self._rename_to_free(name, its_name, directory, its_directory)
            except OSError as error:
                refuse(f"{self._name}: cannot rename it to {other._path}", error)
        self._name, other._name = other._name, self._name
        self._path, other._path = other._path, self._path
        return traded

    def remove(self) -> None:
        """Unlink it if the path still leads to it, and let go of it. Once only."""
        try:
            with directory_of(self._path) as (directory, name):
                for each in (self._second, name):
                    if self._is_at(directory, each):
                        with suppress(FileNotFoundError):  # gone this moment: somebody tidied up
                            os.unlink(each, dir_fd=directory)
        except FileNotFoundError:
            pass  # its directory was removed
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
        there = _look(self._name, self._path, directory, name)
        return there is not None and (there.st_dev, there.st_ino) == self._identity

    def _put_back_in(self, directory: int, name: str) -> bool:
        """As `put_back`; also True of what is in place."""
        if self._is_at(directory, name):
            return True
        try:
            self._link(name, directory)
        except FileExistsError:
            if not self._is_at(directory, name):
                raise LinuxError(
                    f"{self._name}: the socket at {self._path} is not ours any more; somebody has put another file "
                    "there; move that away"
                ) from None
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.EXDEV or os.fstat(self._pin).st_nlink == 0:
                return False
            refuse(f"{self._name}: cannot put {self._path} back", error)
        return True

    def _rename_to_free(self, name: str, its_name: str, directory: int, its_directory: int) -> None:
        """Have a name that nothing has, in the place of this one. OSError."""
        try:
            rename_to_free(name, its_name, in_directory=directory, in_other=its_directory)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            self._link(its_name, its_directory)
            os.unlink(name, dir_fd=directory)

    def _link(self, name: str, directory: int) -> None:
        """Have this name in a directory too. OSError."""
        # From the descriptor: whatever somebody has put in the place of its other names, it is this file.
        os.link(itself(self._pin), name, dst_dir_fd=directory)

    def _change(self, what: str, call: Callable[[str], None]) -> None:
        try:
            call(itself(self._pin))  # fchmod(2) refuses O_PATH descriptors; this leads to the same inode
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
            _bind_in(sock, path, directory)
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
    file.keep()
    return file


def look_at_place(name: str, path: str) -> None:
    """LinuxError if no socket could be bound to this absolute path, whoever serves there. Nothing is made."""
    with _directory(name, path) as (directory, _):
        there = _look(name, path, directory)
        if there is not None:
            _refuse_other_kind(name, path, there)


def find_again(sock: int, name: str, path: str) -> SocketFile | None:
    """The file at `path`, if the socket of inode `sock` is bound to it; else None. It is put back if it was removed."""
    try:
        with directory_of(path) as (directory, file):
            return _find_in(directory, file, sock, name, path)
    except (OSError, LinuxError):
        return None


def _find_in(directory: int, file: str, sock: int, name: str, path: str) -> SocketFile | None:
    found = _bound_to(sock, name, path, directory, file)
    if found is None and _look(name, path, directory) is None:
        for second in _second_names(directory, sock):
            found = _bound_to(sock, name, path, directory, second, sure=True)
            if found is not None:
                with suppress(LinuxError):
                    found.put_back()
                break
    return found


def _bound_to(sock: int, name: str, path: str, directory: int, found: str, *, sure: bool = False) -> SocketFile | None:
    """What is `found` in a directory, as the file that is to be at `path`, if the socket is bound to it."""
    try:
        pin = os.open(found, _PIN, dir_fd=directory)
    except OSError:
        return None
    bound = sockdiag.unix_is_bound_to(sock, pin)
    # Where netlink is barred nobody can tell; then whoever names the path is believed.
    if bound or (bound is None and not sure):
        file = SocketFile(name, path, pin)
        file.keep()
        return file
    os.close(pin)
    return None


def _second_names(directory: int, sock: int) -> list[str]:
    """Those that the file of this socket may have here: few, however many others make. Where netlink is barred nobody
    can tell, and there are none.
    """
    file = sockdiag.unix_file(sock)
    if file is None:
        return []
    try:
        listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return []
    try:
        numbers = (name.removeprefix(_SECOND) for name in os.listdir(listed) if name.startswith(_SECOND))
        return [f"{_SECOND}{number}" for number in numbers if number.isdecimal() and int(number) & 0xFFFFFFFF == file]
    finally:
        os.close(listed)


def _second_name(inode: int) -> str:
    return f"{_SECOND}{inode}"


def _bind_in(sock: socket.socket, path: str, directory: int) -> None:
    """Bind to this path in its directory, however long it is. OSError."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        sock.bind(path)
        return
    # By a name of its own all the same: what the socket is called for life tells its connections from others'.
    name = f"{_SECOND}{os.urandom(8).hex()}"
    sock.bind(f"{itself(directory)}/{name}")
    try:
        os.link(name, os.path.basename(path), src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    finally:
        os.unlink(name, dir_fd=directory)


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
    try:
        there = os.open(os.path.basename(path), _PIN, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError as error:
        refuse(f"{name}: cannot look at {path}", error)
    try:
        _remove_dead(name, path, directory, there)
    finally:
        os.close(there)


def _remove_dead(name: str, path: str, directory: int, pin: int) -> None:
    there = os.fstat(pin)
    _refuse_other_kind(name, path, there)
    # Bound but not listening yet refuses as a dead one does: somebody is just opening it.
    if _answers(name, path, pin) or sockdiag.unix_bound(pin):
        who = holders(sockdiag.listening_inodes(path))
        raise LinuxError(f"{name}: a live process serves this socket{who}; stop that one or choose another path")
    again = _look(name, path, directory)
    if again is None:
        return
    if not os.path.samestat(again, there):
        raise LinuxError(f"{name}: somebody else is opening this socket at this moment; choose another path")
    second = _look(name, path, directory, _second_name(there.st_ino))
    try:
        os.unlink(os.path.basename(path), dir_fd=directory)
        if second is not None and os.path.samestat(there, second):
            os.unlink(_second_name(there.st_ino), dir_fd=directory)
    except OSError as error:
        refuse(f"{name}: cannot remove the dead socket {path}", error, "remove it by hand, or choose another path")


def _refuse_other_kind(name: str, path: str, there: os.stat_result) -> None:
    if not stat.S_ISSOCK(there.st_mode):
        kind = _KINDS.get(stat.S_IFMT(there.st_mode), "a device")
        raise LinuxError(f"{name}: {path} is {kind}, not a socket; move it away or choose another path")


def _look(name: str, path: str, directory: int, file: str = "") -> os.stat_result | None:
    """What is at a path, or there under another name, in its directory."""
    try:
        return os.stat(file or os.path.basename(path), dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        refuse(f"{name}: cannot look at {path}", error)


def _answers(name: str, path: str, pin: int) -> bool:
    """Whether anybody listens there. Only ECONNREFUSED is a no."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(itself(pin))  # whatever its path leads to by now, and however long that is
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EPROTOTYPE):  # its queue is full; it is of another type
                return True
            refuse(f"{name}: cannot test whether {path} is in use", error, "remove it if it is dead")
    return True


def _pin(name: str, path: str, directory: int, sock: int) -> int:
    """A descriptor of the very file to which the socket of this inode was just bound."""
    try:
        pin = os.open(os.path.basename(path), _PIN, dir_fd=directory)
    except OSError as error:
        refuse(f"{name}: cannot open the socket just made", error)
    made = os.fstat(pin)
    is_new = stat.S_ISSOCK(made.st_mode) and made.st_uid == os.geteuid() and made.st_nlink == 1
    # Where netlink is barred that much must do.
    if is_new and sockdiag.unix_is_bound_to(sock, pin) is not False:
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
