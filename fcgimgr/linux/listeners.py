"""Listening sockets: opened so that nobody ever meets one half-made, and closed without touching what is not ours.

A Unix socket's file has its mode from birth (bind under umask); owner and mode are set through a descriptor of the very
inode we bound, so nobody who may write to the directory can slip a link under our chown; listen comes last, so no
client gets in before all that. Only a dead *socket* is removed from the path, and at the end only our own.

Each listener's fd is 64 or above, clear of 0, 3, 4, … where children get theirs, and close-on-exec.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, Self

from fcgimgr.linux import sockdiag, tcpsocket
from fcgimgr.linux.errors import LinuxError, refuse
from fcgimgr.linux.glance import holders
from fcgimgr.linux.rights import cut_short
from fcgimgr.linux.socketfile import LONGEST_PATH, SocketFile, bind, find_again
from fcgimgr.linux.tcpsocket import LOWEST_FD, stream_socket

__all__ = [
    "BESIDE",
    "LONGEST_PATH",
    "LOWEST_FD",
    "Listener",
    "LostListener",
    "inherited_sockets",
    "open_tcp",
    "open_unix",
    "take_inherited",
]

#: What `beside` adds to a path.
BESIDE: Final = ".new"

_FIRST_INHERITED: Final = 3  # SD_LISTEN_FDS_START


class Listener:
    """A bound, listening socket.

    name: how messages and status call it. inode: of the socket, the number in `socket:[N]`, as sockdiag knows it.
    """

    def __init__(self, name: str, sock: socket.socket, file: SocketFile | None = None) -> None:
        self.name = name
        self.sock = sock
        self.inode = os.fstat(sock.fileno()).st_ino
        self._file = file

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def path(self) -> str | None:
        """Of a Unix socket's file, where it is now; None: it has none, or the path leads to another by now."""
        return self._file.path if self._file else None

    @property
    def file(self) -> SocketFile | None:
        """Of a Unix socket; None as of `path`."""
        return self._file

    @contextmanager
    def way_in(self) -> Iterator[str]:
        """What to connect to in order to reach a Unix socket by its file. OSError: it has none."""
        if not self._file:
            raise FileNotFoundError(errno.ENOENT, f"the file of {self.name} was removed or replaced")
        with self._file.way_in() as way:
            yield way

    def set_backlog(self, backlog: int) -> None:
        """Connections that may wait, from now on; those that wait already stay. The kernel caps it at somaxconn."""
        self.sock.listen(backlog)

    def set_mode(self, mode: int) -> None:
        """chmod of a Unix socket's file, wherever it is by now. Nothing to do for any other socket."""
        if self._file:
            self._file.set_mode(mode)

    def set_owner(self, uid: int, gid: int) -> None:
        """chown of a Unix socket's file; -1 leaves that one alone. LinuxError if it may not be given away."""
        if self._file:
            self._file.set_owner(uid, gid)

    def set_blocking(self, blocking: bool) -> None:
        """For all who share the socket, now: the flag sits on the open description. Blocking is how it is opened."""
        os.set_blocking(self.sock.fileno(), blocking)

    def beside(self, *, backlog: int) -> "Listener":
        """A Unix socket bound to PATH.new, owner and mode those of PATH's file now. A dead one there gives way.

        It is bound for life under that name, which is what `getsockname()` and sockdiag go on to call it and the
        connections it accepts; where that is too long for a socket, under another one. LinuxError: this one has no
        file (TCP, abstract), or a live process serves PATH.new.
        """
        if not self._file:
            raise LinuxError(f"{self.name}: has no file beside which another one could be bound")
        uid, gid, mode = self._file.attributes()
        path = self._file.path + BESIDE
        return _open_file(f"unix:{path}", path, backlog, (uid, gid), mode)

    def take_over(self, predecessor: "Listener") -> None:
        """Rename our file over the path of `predecessor`, which then has none: the next client to come is ours.

        Atomic. LinuxError, and nothing has changed: somebody has replaced or removed either file.
        """
        if self.trade_places(predecessor):
            self.keep_place(predecessor)

    def trade_places(self, predecessor: "Listener") -> bool:
        """Have the path of `predecessor`, which gets ours. To be undone by doing it again.

        False: this file system cannot do that, so `predecessor` has no path now, as after `take_over`. LinuxError as
        there.
        """
        if not (self._file and predecessor._file):
            raise LinuxError(f"{self.name}: cannot take the place of {predecessor.name}: both need a file")
        traded = self._file.trade_places(predecessor._file)
        self.name, predecessor.name = predecessor.name, self.name
        if not traded:
            self.keep_place(predecessor)
        return traded

    def keep_place(self, predecessor: "Listener") -> None:
        """After `trade_places`: `predecessor` has no path any more. LinuxError: its file could not be removed."""
        predecessor.name = self.name
        predecessor.unlink()

    def unlink(self) -> bool:
        """Unlink the file of a Unix socket, if the path still leads to it; the queue stays. False: it has no file."""
        file, self._file = self._file, None
        if file:
            file.remove()
        return file is not None

    def close(self) -> None:
        """Unlink the file if the path still leads to ours, and close our descriptor; those of children stay open."""
        try:
            self.unlink()
        finally:
            self._close()

    def leave(self) -> None:
        """Close our descriptor alone: whoever else keeps the socket open has it, with its file and its queue."""
        file, self._file = self._file, None
        if file:
            file.leave()
        self._close()

    def _close(self) -> None:
        if self.sock.family != socket.AF_UNIX:
            self.sock.close()
            return
        with cut_short():  # descriptors may have come with what waits there, and be the last ones
            self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Listener {self.name} fd={self.sock.fileno()} inode={self.inode}>"


class LostListener(Listener):
    """A listener of our own from before a crash that its processes have and we could not get back.

    What can be done by name can still be done: another may be opened `beside` it, and `take_over` its path. What takes
    its descriptor (`sock`) is a LinuxError.
    """

    def __init__(self, name: str, inode: int, path: str | None = None) -> None:
        """path: of its file, if it has one. inode: of the socket."""
        self.name = name
        self.inode = inode
        self._file = (path and find_again(inode, name, path)) or None

    def __getattr__(self, name: str) -> Any:
        if name == "sock":
            raise LinuxError(f"{self.name}: its processes have this socket, but it could not be taken back from them")
        raise AttributeError(name)

    def close(self) -> None:
        """Unlink the file if the path still leads to it."""
        self.unlink()

    def __repr__(self) -> str:
        return f"<LostListener {self.name} inode={self.inode}>"


def open_tcp(host: str, port: int, *, backlog: int, name: str | None = None, reuseport: bool = False) -> Listener:
    """Listen on TCP. host: an IPv4 or IPv6 address, "*" (all, of both families), or a host name (its first address).

    An IPv6 address serves IPv6 only; "*" serves both, or IPv4 alone where IPv6 is switched off. reuseport: it shall be
    the first of a `steering.Group`. Nobody may listen there yet all the same. LinuxError: why not.
    """
    name = name or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    sharing = tcpsocket.Sharing.FIRST if reuseport else tcpsocket.Sharing.NONE
    if host != "*":
        family, address = tcpsocket.resolve(name, host, port)
        return Listener(name, tcpsocket.listen(name, family, address, backlog, sharing=sharing))
    try:
        sock = tcpsocket.listen(name, socket.AF_INET6, ("::", port), backlog, dual_stack=True, sharing=sharing)
        return Listener(name, sock)
    except LinuxError as refusal:
        cause = refusal.__cause__
        if not (isinstance(cause, OSError) and cause.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)):
            raise
    return Listener(name, tcpsocket.listen(name, socket.AF_INET, ("0.0.0.0", port), backlog, sharing=sharing))


def open_unix(
    path: str, *, backlog: int, owner: tuple[int, int] | None = None, mode: int = 0o660, name: str | None = None
) -> Listener:
    """Listen on a Unix socket. path: absolute, or "@name" in the abstract namespace, where owner and mode mean nothing.

    owner: (uid, gid) as for chown, -1 leaves that one alone. The directory must exist. LinuxError says why not.
    """
    name = name or f"unix:{path}"
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise LinuxError(f"{name}: the path has {len(os.fsencode(path))} bytes, a socket's may have {LONGEST_PATH}")
    if path.startswith("@"):
        return _bind_abstract(name, path, backlog)
    if not os.path.isabs(path):
        raise LinuxError(f"{name}: the path is relative; give an absolute one")
    return _open_file(name, path, backlog, owner, mode)


def take_inherited(fd: int, *, backlog: int, name: str | None = None) -> Listener:
    """A listening socket that whoever started us has opened. `fd` itself stays open, so that it can be taken again.

    LinuxError: not open, not a socket, not listening.
    """
    name = name or f"fd:{fd}"
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError as error:
        refuse(name, error, "nothing was passed under this number; is the manager started by what opens the socket?")
    if not is_socket:
        raise LinuxError(f"{name}: is open, but is not a socket")
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_FD))
    try:
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise LinuxError(
                f"{name}: is a socket, but not a listening stream socket (systemd: ListenStream=, Accept=no)"
            )
        sock.listen(backlog)
        return Listener(name, sock)
    except BaseException:
        sock.close()
        raise


def take_back(fd: int, *, name: str, path: str | None = None, inode: int | None = None) -> Listener:
    """A listener of our own from before an exec, or from a dead manager's child (`pidfd.get_fd`). Takes `fd` over.

    path: of a Unix socket's file; it is ours again if it leads to what the socket is bound to, else it stays alone. The
    queue and the backlog stay. inode: of the socket, if that is known. LinuxError: not open, not listening, or not it.
    """
    try:
        kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_FD)
        os.close(fd)
    except OSError as error:
        refuse(f"{name}: fd {fd}", error)
    try:
        sock = socket.socket(fileno=kept)
    except OSError as error:
        os.close(kept)
        refuse(f"{name}: fd {fd}", error)
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise LinuxError(f"{name}: is a socket, but does not listen any more")
        if inode not in (None, os.fstat(kept).st_ino):
            raise LinuxError(f"{name}: is another socket by now")
        return Listener(name, sock, (path and find_again(os.fstat(sock.fileno()).st_ino, name, path)) or None)
    except BaseException:
        sock.close()
        raise


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> dict[str, list[int]]:
    """Fds passed by systemd's protocol (sd_listen_fds(3)), by name; those without a name are called "unknown".

    Takes LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES out of `environ`: they are for us, not for children. The fds become
    close-on-exec. Empty when nothing was passed, or not to this process. LinuxError: LISTEN_FDS is not a number.
    """
    pid, count, names = (environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count:
        return {}
    if not (count.isascii() and count.isdigit()):
        raise LinuxError(f"LISTEN_FDS: {count!r} is not a number; whoever started the manager set it wrong")
    words = names.split(":") if names else []
    sockets: dict[str, list[int]] = {}
    for index in range(int(count)):
        fd = _FIRST_INHERITED + index
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            refuse(f"LISTEN_FDS={count}: fd {fd}", error, "whoever started the manager did not pass it")
        word = words[index] if index < len(words) else ""
        sockets.setdefault(word or "unknown", []).append(fd)
    return sockets


# --- Unix


def _open_file(name: str, path: str, backlog: int, owner: tuple[int, int] | None, mode: int) -> Listener:
    file: SocketFile | None = None
    sock = _unix_socket(name)
    try:
        file = bind(sock, name, path, owner, mode)
        sock.listen(backlog)
        return Listener(name, sock, file)
    except BaseException as error:
        if file:
            file.remove()
        sock.close()
        if isinstance(error, OSError):
            refuse(name, error)
        raise


def _bind_abstract(name: str, path: str, backlog: int) -> Listener:
    sock = _unix_socket(name)
    address = b"\0" + os.fsencode(path[1:])
    try:
        sock.bind(address)
        sock.listen(backlog)
        return Listener(name, sock)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            who = holders(sockdiag.listening_inodes(address))
            raise LinuxError(f"{name}: the name is in use{who}; stop that one or choose another name") from error
        refuse(name, error)


def _unix_socket(name: str) -> socket.socket:
    try:
        return stream_socket(socket.AF_UNIX)
    except OSError as error:
        refuse(name, error)
