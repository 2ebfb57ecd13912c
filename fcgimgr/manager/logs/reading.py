"""How the manager reads from a pipe: by itself, or where a process of another user writes to it, by a helper.

Whoever writes to a pipe can have everybody wait who reads from it, opens it or closes it (linux/pipereader.py). So one
helper reads all the pipes of strangers, straight into what is in hand (inhand.py), and is waited for: that takes some
microseconds. If it falls asleep over one, it is left to it: that pipe has it for its own from then on, and is not
waited for any more; what comes is taken when it comes. The others get another helper.

A user has MOST_SLOW pipes of that kind at most. From then on no more of that user's pipes are read until one has gone:
whoever writes to them waits, and nobody else does.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.helper import fork_helper
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.pipereader import ANSWER, ASK, CLOSE, OPEN, READ, serve
from fcgimgr.linux.pipes import open_pipe
from fcgimgr.manager.logs import inhand

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from fcgimgr.manager.logs.inhand import Hand

#: Milliseconds between two looks at a helper that has not answered; it is left when it sleeps uninterruptibly at so
#: many of them in a row, or has not answered at all in so many (a machine that has no time for it).
LOOK: Final = 3
ASLEEP: Final = 3
AT_ALL: Final = 300
#: Pipes of one user that may have a helper of their own.
MOST_SLOW: Final = 8
#: Seconds until it is tried again to have a helper.
AGAIN: Final = 1.0
#: Seconds that those may take who have something to hand over before an upgrade, and to end.
LAST: Final = 0.2

#: Takes what was read late: where it is, and how much, or -errno; without the first: it is to be tried again.
Come = Callable[["Hand | None", int], None]


class LateError(Exception):
    """What was to be read comes later, and nothing else is to be read before."""


class Direct:
    """A pipe that is read by ourselves. (Its descriptor is the caller's to begin with.)"""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def begin(self, come: Come) -> None:
        """Nothing comes late."""

    def read(self, hand: Hand) -> int:
        """How many bytes there are in hand; 0: the end. OSError; BlockingIOError: nothing is there."""
        return os.readv(self._fd, hand.read_into)

    def close(self) -> None:
        os.close(self._fd)


class Reader:
    """A helper that reads into this hand. LinuxError: it cannot be had."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        self._known: set[int] = set()  # the pipes that it has, by their numbers
        self._closing = 0  # how many it has not said yet to have closed
        pid, self.socket = fork_helper("fcgimgr-reader", partial(serve, hand.read_into, open_pipe))
        self._process = PidFd(pid)
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)

    def ask(self, what: int, number: int = 0, fd: int = -1, of: tuple[int, int, int] = (0, 0, 0)) -> None:
        """fd: our own descriptor of the pipe. of: for OPEN. OSError: it has died, or has too much to do."""
        message = ASK.pack(what, number, *of)
        if fd >= 0 and number not in self._known:
            socket.send_fds(self.socket, [message], [fd])
            self._known.add(number)
        else:
            self.socket.send(message)
        if what == CLOSE:
            self._known.discard(number)
            self._closing += 1

    @property
    def is_free(self) -> bool:
        """Whether it has closed all that it was to; waits for that, but not if it has fallen asleep over it."""
        try:
            while self._closing and self.answers():
                self.take()
                self._closing -= 1
        except OSError:
            return False
        return not self._closing

    def answers(self) -> bool:
        """Whether it does. Waits for it, as long as it does not sleep."""
        asleep = 0
        for _ in range(AT_ALL):
            if self._poll.poll(LOOK):
                return True
            asleep = asleep + 1 if procfs.state(self._process.pid) == "D" else 0
            if asleep >= ASLEEP:
                return False
        return False

    def take(self) -> int:
        """The answer. OSError: it has died."""
        answer = self.socket.recv(ANSWER.size)
        return int(ANSWER.unpack(answer)[0]) if answer else -errno.ECHILD

    def take_fd(self) -> int | None:
        """The answer to OPEN. OSError."""
        answer, fds, _, _ = socket.recv_fds(self.socket, ANSWER.size, 1)
        if answer and (code := ANSWER.unpack(answer)[0]) < 0:
            raise OSError(-code, os.strerror(-code))
        return fds[0] if fds else None

    @property
    def has_ended(self) -> bool:
        return self._process.fileno() < 0 or self._process.has_ended()

    def hang_up(self) -> None:
        """It ends as soon as it is awake."""
        self.socket.close()

    def wait(self, patience: float) -> None:
        """Until it has ended; blocks, for so many seconds at most, and not for one that sleeps."""
        if self._process.fileno() >= 0 and procfs.state(self._process.pid) != "D":
            self._process.wait(max(0.0, patience))

    def forget(self) -> None:
        """It has ended."""
        self._process.close()


class Guarded:
    """A pipe that a stranger writes to."""

    __slots__ = ("_come", "_fd", "_number", "_own", "_readers", "name", "owner")

    def __init__(self, readers: Readers, number: int, fd: int, owner: str, name: str) -> None:
        self._readers = readers
        self._number = number
        self._fd = fd
        self._own: Reader | None = None  # the helper that reads it and nothing else
        self.owner = owner
        self.name = name
        self._come: Come = lambda hand, size: None

    def begin(self, come: Come) -> None:
        """come: is told what comes after a LateError, once for each."""
        self._come = come

    def read(self, hand: Hand) -> int:
        """As of `Direct`; LateError: it is told later."""
        if self._own is not None:
            self._ask_own(self._own)
        reader = self._readers.shared(self, hand)
        if reader is None:
            raise LateError
        try:
            reader.ask(READ, self._number, self._fd)
            if not reader.answers():
                self._own = reader
                self._readers.lend(self, reader)
                raise LateError
            size = reader.take()
        except OSError:
            size = -errno.ECHILD
        if size == -errno.ECHILD:  # somebody has killed it
            self._readers.lose(reader)
            self.try_again()
            raise LateError
        if size < 0:
            raise OSError(-size, os.strerror(-size))
        return size

    def _ask_own(self, reader: Reader) -> NoReturn:
        try:
            reader.ask(READ, self._number, self._fd)
        except OSError:
            self._give_back()
            self.try_again()
        raise LateError

    def try_again(self) -> None:
        self._readers.loop.call_soon(self._come, None, -errno.EAGAIN)

    def answered(self) -> None:
        """Its own helper has something to say."""
        assert self._own is not None
        reader = self._own
        try:
            size = reader.take()
        except BlockingIOError:
            return
        except OSError:
            size = -errno.ECHILD
        if size == -errno.ECHILD:
            self._give_back()
            self._come(None, -errno.EAGAIN)
            return
        self._come(reader.hand, size)

    def _give_back(self) -> None:
        if self._own is not None:
            self._readers.take_back(self, self._own)
            self._own = None

    def close(self) -> None:
        self._give_back()
        self._readers.forget(self)
        self._readers.close(self._fd, self._number)


class Readers:
    """All helpers that read. say: is told what is to be in the log, and of which process."""

    def __init__(self, loop: AbstractEventLoop, say: Callable[[str, str], None]) -> None:
        self.loop = loop
        self._say = say
        self._numbers = 0
        self._shared: Reader | None = None
        self._lent: dict[Guarded, Reader] = {}
        self._left: list[tuple[str, Reader]] = []  # whom nobody waits for any more, and of which user's pipe
        self._waiting: dict[Guarded, None] = {}  # pipes that are not read, as their user has too many slow ones
        self._told: set[str] = set()  # the users of whom that was said

    def pipe(self, fd: int, owner: str, name: str) -> Guarded:
        """The pipe of this descriptor, which this user's process writes to."""
        self._numbers += 1
        return Guarded(self, self._numbers, fd, owner, name)

    def close(self, fd: int, number: int | None = None) -> None:
        """Close a descriptor of a stranger's pipe, and not be the last to do so, who waits."""
        if number is None:
            self._numbers += 1
            number = self._numbers
        reader = self._free(inhand.hand)
        try:
            if reader is not None:
                reader.ask(CLOSE, number, fd)
        except OSError:
            self.lose(reader)
        os.close(fd)

    def open(self, pid: int, fd: int, inode: int, owner: str) -> int | None:
        """As linux.pipes.open_pipe. OSError."""
        reader = self._free(inhand.hand)
        if reader is None:
            raise OSError(errno.EAGAIN, "there can be no helper to open it")
        reader.ask(OPEN, of=(pid, fd, inode))
        if not reader.answers():
            self._leave(owner, reader)
            self._shared = None
            raise OSError(errno.ETIMEDOUT, "a write to it does not end")
        return reader.take_fd()

    def shared(self, pipe: Guarded, hand: Hand) -> Reader | None:
        """Who is to read this pipe into this hand now; None: it is told when to try again."""
        if self._slow_ones()[pipe.owner] >= MOST_SLOW:
            self._waiting[pipe] = None
            if pipe.owner not in self._told:
                self._told.add(pipe.owner)
                self._say(
                    pipe.name,
                    f"{MOST_SLOW} pipes of the user {pipe.owner} cannot be read: no other output of this user's "
                    "processes is, until one of them has ended",
                )
            self.loop.call_later(AGAIN, self._look_at_waiting)
            return None
        reader = self._free(hand)
        if reader is None:
            self.loop.call_later(AGAIN, pipe.try_again)
        return reader

    def _slow_ones(self) -> Counter[str]:
        for owner, reader in tuple(self._left):
            if reader.has_ended:
                reader.forget()
                self._left.remove((owner, reader))
        return Counter([*(pipe.owner for pipe in self._lent), *(owner for owner, _ in self._left)])

    def _look_at_waiting(self) -> None:
        slow = self._slow_ones()
        self._told = {owner for owner in self._told if slow[owner] >= MOST_SLOW}
        for pipe in tuple(self._waiting):
            del self._waiting[pipe]
            pipe.try_again()

    def _free(self, hand: Hand) -> Reader | None:
        """One that reads into this hand and has nothing to do; None: it cannot be had."""
        reader = self._shared
        if reader is not None and (reader.hand is not hand or not reader.is_free):
            self._leave("", reader)
            self._shared = reader = None
        if reader is None:
            try:
                self._shared = reader = Reader(hand)
            except LinuxError:
                return None
        return reader

    def lend(self, pipe: Guarded, reader: Reader) -> None:
        """It has fallen asleep over this pipe, and is its own now. Nobody else reads into its hand."""
        self._shared = None
        self._lent[pipe] = reader
        self.loop.add_reader(reader.socket, pipe.answered)
        inhand.exchange()
        self._say(
            pipe.name,
            "its output cannot be read: a write of it does not end (memory of a file system that does not answer?)",
        )

    def take_back(self, pipe: Guarded, reader: Reader) -> None:
        """This pipe has no use for it any more."""
        if self._lent.pop(pipe, None) is not None:
            self.loop.remove_reader(reader.socket)
            self._leave(pipe.owner, reader)

    def forget(self, pipe: Guarded) -> None:
        """It is closed."""
        self._waiting.pop(pipe, None)

    def lose(self, reader: Reader | None) -> None:
        """It has died."""
        if reader is not None and reader is self._shared:
            self._leave("", reader)
            self._shared = None

    def _leave(self, owner: str, reader: Reader) -> None:
        reader.hang_up()
        self._left.append((owner, reader))

    def finish(self) -> None:
        """Take in what those have read that are awake, as far as it comes in a moment: they end with this program."""
        sockets = {reader.socket.fileno(): pipe for pipe, reader in self._lent.items()}
        poll = select.poll()
        for fd in sockets:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(LAST * 1000) if sockets else ():
            sockets[fd].answered()

    def end(self) -> None:
        """All that is left is not to be read."""
        for pipe, reader in tuple(self._lent.items()):
            self.take_back(pipe, reader)
        if self._shared is not None:
            self._leave("", self._shared)
            self._shared = None
        until = self.loop.time() + LAST
        for _, reader in self._left:
            reader.wait(until - self.loop.time())
            reader.forget()
