"""What children say on $NOTIFY_SOCKET, in the words of sd_notify(3): READY=1, STATUS=, and two of our own.

X_REQUESTS=n is how many requests it has served; X_RECYCLE=why asks for its replacement by a new process.

There is one datagram socket for each user that runs children, owned by that user with mode 0600: nothing is world-
writable. Where the path is too long for a socket, or a chroot hides it, the socket is an abstract one. Those have no
owner: its name is random, so that nobody can have bound it before.

Who has sent a message is told by the kernel (SCM_CREDENTIALS), not by the message: the process itself, or any
descendant in its session. Descriptors that come along (of sd_notify_barrier(3), say) are dropped. A helper that has
said its word may have ended before it is heard, and then nothing tells whose it was. So from a user's own socket, which
nobody else can write to, its READY=1 is taken for that of the one process of this user that waits to say it; where
several wait it is dropped, with a warning. All else that comes from strangers is dropped.

Whoever says so much that to hear it takes more than SHARE of the time is heard the later for it: what is said waits in
the socket then, and whoever says it waits too.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from fcgimgr.config.settings import ProcessSettings
from fcgimgr.core.generation import Happened, Recycle
from fcgimgr.core.process import ALIVE, Ready, Starting
from fcgimgr.linux.accounts import resolve_user
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import LONGEST_PATH
from fcgimgr.linux.procfs import session
from fcgimgr.linux.rights import cut_short
from fcgimgr.manager.ground.budget import SAVED, Budgeted

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation

LONGEST: Final = 4096  # bytes of one message
MOST_LINES: Final = 32  # of one message
STATUS_LONGEST: Final = 200  # characters
AT_ONCE: Final = 16  # messages read before the loop is given back
TURN: Final = 0.002  # seconds; what comes along with one may take that long to be dropped
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid


class NotifySockets:
    """The sockets, one a user, made when first needed."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._sockets: dict[str, socket.socket] = {}
        self._heard: dict[socket.socket, Budgeted] = {}

    def path_for(self, settings: ProcessSettings) -> str:
        """What $NOTIFY_SOCKET is for a process with these settings: a path, or `@name` of an abstract socket.

        LinuxError when the user does not exist or the socket cannot be made.
        """
        uid = resolve_user(settings.user).uid if settings.user else os.geteuid()
        path = os.path.join(self._daemon.config.manager.state_dir, f"notify-{uid}.sock")
        if settings.chroot is not None or len(os.fsencode(path)) > LONGEST_PATH:
            path = self._abstract_for(uid)
        if path not in self._sockets:
            try:
                self._sockets[path] = bind_abstract(path) if path.startswith("@") else bind_file(path, uid)
            except OSError as error:
                if isinstance(error, PermissionError) and uid != os.geteuid():
                    raise LinuxError(
                        f"user {settings.user}: cannot give it a notify socket; only root may start a child as "
                        f"another user, and this manager runs as uid {os.geteuid()}"
                    ) from error
                raise LinuxError(f"cannot make the notify socket {path}: {error.strerror or error}") from error
            self._listen(path)
        return path

    def _abstract_for(self, uid: int) -> str:
        beginning = f"@fcgimgr-{os.getpid()}-{uid}-"
        known = next((path for path in self._sockets if path.startswith(beginning)), None)
        return known or f"{beginning}{os.urandom(16).hex()}"

    def is_ours(self, path: str) -> bool:
        """Whether a process with this $NOTIFY_SOCKET is of this manager, or of one that it has taken over from."""
        return path in self._sockets

    def put_back(self) -> list[str]:
        """Make those again whose file somebody has removed, under the same path: the paths of these. OSError."""
        gone = [path for path in self._sockets if not path.startswith("@") and not os.path.lexists(path)]
        for path in gone:
            before = self._sockets[path]
            receiver = bind_file(path, int(path.rpartition("-")[2].removesuffix(".sock")))
            until = time.monotonic() + SAVED
            while time.monotonic() < until and (said := receive(before)):  # before it had gone
                for message, pid, uid in said:
                    self._hear(before, pid, uid, message)
            self._sockets[path] = receiver
            self._listen(path)
            self._let_go(before)
        return gone

    @property
    def abstract(self) -> tuple[str, ...]:
        """The names of those that have no file."""
        return tuple(path for path in self._sockets if path.startswith("@"))

    @property
    def fds(self) -> dict[str, int]:
        return {path: receiver.fileno() for path, receiver in self._sockets.items()}

    def take_over(self, fds: dict[str, int]) -> None:
        """Have these sockets from before an exec."""
        for path, fd in fds.items():
            os.set_inheritable(fd, False)
            receiver = socket.socket(fileno=fd)
            receiver.setblocking(False)
            self._sockets[path] = receiver
            self._listen(path)

    def listen_again(self, names: Iterable[str]) -> None:
        """Hear also what is sent to these abstract sockets, which were a dead manager's."""
        for name in names:
            try:
                self._sockets[name] = bind_abstract(name)
            except OSError as error:
                self._daemon.journal.warning(
                    f"the notify socket {name} cannot be bound again: {error.strerror}; what its processes say there "
                    "is not heard until they are restarted"
                )
            else:
                self._listen(name)

    def _listen(self, path: str) -> None:
        receiver = self._sockets[path]
        self._heard[receiver] = Budgeted(self._daemon.loop, receiver, partial(self._read, receiver))

    def _read(self, receiver: socket.socket) -> None:
        for message, pid, uid in receive(receiver):
            self._hear(receiver, pid, uid, message)

    def _hear(self, receiver: socket.socket, pid: int, uid: int, message: bytes) -> None:
        children = self._daemon.children
        leader = session(pid)
        child = children.get(pid) or children.get(leader or 0)
        if child is None and leader is None and b"READY=1" in message.split(b"\n"):
            child = self._only_one_that_waits(receiver, pid, uid)
        if child is None or not may_speak_for(child[0], uid):
            self._daemon.journal.debug("a notification from a process that is not ours was dropped", pid=pid, uid=uid)
            return
        generation, index = child
        for line in message.decode("utf-8", "replace").split("\n", MOST_LINES)[:MOST_LINES]:
            self._heed(generation, index, *line.partition("=")[::2])

    def _only_one_that_waits(self, receiver: socket.socket, pid: int, uid: int) -> tuple[Generation, int] | None:
        """Whose READY=1 it must be that came from a process which has ended: the only one that can have sent it."""
        path = next((path for path, own in self._sockets.items() if own is receiver), "@")
        if path.startswith("@") or not path.endswith(f"-{uid}.sock"):
            return None
        waiting = [
            (generation, index)
            for generation, index in self._daemon.children.values()
            if generation.settings.ready == "notify"
            and isinstance(generation.core.processes[index], Starting)
            and self.path_for(generation.settings) == path
        ]
        if len(waiting) > 1:
            self._daemon.journal.warning(
                f"READY=1 from a process that had ended before it was heard (pid {pid}): whose it was cannot be known; "
                f"let the process itself say it, or its helper wait, as systemd-notify does"
            )
        return waiting[0] if len(waiting) == 1 else None

    def _heed(self, generation: Generation, index: int, key: str, value: str) -> None:
        slot = generation.slots[index]
        if key == "READY" and value == "1":
            if isinstance(generation.core.processes[index], ALIVE):
                generation.feed(Happened(index, Ready()))
        elif key == "STATUS":
            slot.status_text = value[:STATUS_LONGEST]
        elif key == "X_REQUESTS" and value.isascii() and value.isdigit() and len(value) < 19:
            slot.requests = int(value)
        elif key in ("X_ACCESS_LOG", "X_SLOWLOG"):
            generation.hear_of_request_log(index, key, value[:STATUS_LONGEST])
        elif key == "X_RECYCLE" and value:
            generation.feed(Recycle(index, value[:STATUS_LONGEST]))

    def close(self) -> None:
        for path, receiver in self._sockets.items():
            self._let_go(receiver)
            if not path.startswith("@") and os.path.lexists(path):
                os.unlink(path)
        self._sockets.clear()

    def _let_go(self, receiver: socket.socket) -> None:
        self._heard.pop(receiver).end()
        with cut_short():
            receiver.close()


def receive(receiver: socket.socket) -> list[tuple[bytes, int, int]]:
    """What has been said, some of it: each message with the pid and the uid of who has said it."""
    found: list[tuple[bytes, int, int]] = []
    until = time.monotonic() + TURN
    with cut_short():
        while len(found) < AT_ONCE and time.monotonic() < until:
            try:
                message, ancillary, _, _ = receiver.recvmsg(LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                break
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    pid, uid, _ = _CREDENTIALS.unpack(content)
                    found.append((message, pid, uid))
    return found


def may_speak_for(generation: Generation, uid: int) -> bool:
    """Whether this user may say something for a process of this generation: the number of one that has sent a message
    and ended may be that of another's process by the time it is read.
    """
    account = generation.recipes.account if generation.recipes is not None else None
    own = os.geteuid() if account is None else account.uid
    return own == 0 or uid in (0, own)  # what runs as root may have become anybody


def bind_file(path: str, uid: int) -> socket.socket:
    """A socket at `path` that only `uid` can send to."""
    # The directory is the manager's alone, and locked: whatever lies at the path is from an earlier run.
    if os.path.lexists(path):
        os.unlink(path)
    receiver = open_receiver()
    umask = os.umask(0o177)
    try:
        receiver.bind(path)
        if uid != os.geteuid():
            try:
                os.chown(path, uid, -1, follow_symlinks=False)
            except OSError:
                os.unlink(path)
                raise
    except OSError:
        receiver.close()
        raise
    finally:
        os.umask(umask)
    return receiver


def bind_abstract(name: str) -> socket.socket:
    """A socket with no file. Anybody may send to it, and only our own processes are heard."""
    receiver = open_receiver()
    try:
        receiver.bind("\0" + name[1:])
    except OSError:
        receiver.close()
        raise
    return receiver


def open_receiver() -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return receiver
