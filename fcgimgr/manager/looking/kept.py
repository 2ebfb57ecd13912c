"""The connections of one process behind its gate: what is said on them is followed, and the last answer ends each.

For a process that is to end, or a generation that is: a connection that its client keeps would bring it one request
after the other. Each that is seen to be answered whole, with no other request in hand, is closed as its last bytes are
sent (linux/parting.py), so that its client makes a new one, to those that serve.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from fcgimgr.answers.conversation import Conversation, State
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.idle import Talk
from fcgimgr.linux.parting import MOST, Last, accepted
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.sockdiag import SocketName, unix_place
from fcgimgr.linux.transfers import Transfer

#: Seconds for which the end of a Unix connection waits for its client to be asleep.
_PATIENCE: Final = 1.0


class Kept:
    """The observer (linux/gate.py) of one process."""

    def __init__(
        self, pid: int, names: Sequence[SocketName], listeners: Iterable[int], clock: Callable[[], float]
    ) -> None:
        """names, listeners: of the listeners, these as inodes. LinuxError: it is gone."""
        self.is_told = False  # to end: it may close a connection itself as soon as it has answered
        self._process = PidFd(pid)
        self._names = names
        self._places = set[Any]()  # of those that are Unix sockets; none: nobody knows
        if any(not isinstance(name, tuple) for name in names):
            self._places = {unix_place(inode) for inode in listeners} - {None}
        self._clock = clock
        self._conversations: dict[int, Conversation | None] = {}  # by inode; None: no connection of these listeners
        self._ended: set[int] = set()  # inodes of those that were closed
        self._since: dict[int, float] = {}  # when the end of one was first put off
        self._ending: dict[int, Last] = {}  # by thread, what it is about to send

    def before(self, thread: int, sends: Transfer) -> int | None:
        inode, conversation = self._at(sends)
        if conversation is None or inode in self._ended:
            return None
        if not (sends.whole and conversation.would_be_answered(sends.whole, sends.read)):
            return None
        try:
            last = Last(self._process, sends.fd, inode)
        except LinuxError:
            return None
        if not last.is_possible(conversation.may_wait):
            last.give_up()
        elif not last.is_unix:
            last.hold_back()
            self._ending[thread] = last
        elif (
            sends.plain
            and sends.whole <= MOST
            and (all_of_it := sends.read_all()) is not None
            and not self._is_to_wait(inode, last)
        ):
            count = last.send(all_of_it)
            if count == sends.whole:
                self._ended.add(inode)
            return count
        else:
            last.give_up()
        return None

    def _is_to_wait(self, inode: int, last: Last) -> bool:
        now = self._clock()
        return not self.is_told and last.client_is_awake and now - self._since.setdefault(inode, now) < _PATIENCE

    def after(self, thread: int, moved: Transfer, count: int) -> None:
        last = self._ending.pop(thread, None)
        inode, conversation = self._at(moved)
        if conversation is not None and count > 0:
            conversation.last = self._clock()
            (conversation.came if moved.receives else conversation.sent)(count, moved.read)
        if last is None:
            return
        if conversation is not None and count == moved.whole and conversation.state is State.ANSWERED:
            last.finish()
            self._ended.add(inode)
        else:
            last.give_up()

    def gone(self, thread: int) -> None:
        if thread in self._ending:
            self._ending.pop(thread).give_up()

    def close(self) -> None:
        for thread in tuple(self._ending):
            self.gone(thread)
        self._process.close()

    def talk(self, inode: int) -> Talk | None:
        """What is known of a connection by what was said there since the gate was closed; None: nothing was."""
        conversation = self._conversations.get(inode)
        if conversation is None or conversation.last is None:
            return None
        state = conversation.state
        in_use = None if state is State.UNKNOWN else state is State.IN_USE
        return Talk(in_use, conversation.last, inode in self._ended, conversation.is_upgraded)

    def _at(self, moved: Transfer) -> tuple[int, Conversation | None]:
        """The connection: its inode, and what has been said there."""
        target = ""
        with suppress(OSError):
            target = os.readlink(f"/proc/{moved.process}/fd/{moved.fd}")
        if not target.startswith("socket:["):
            return 0, None
        inode = int(target[8:-1])
        if inode not in self._conversations:
            self._conversations[inode] = Conversation() if self._is_ours(moved.fd, inode) else None
        return inode, self._conversations[inode]

    def _is_ours(self, fd: int, inode: int) -> bool:
        """Whether it is a connection of the listeners, and not one to others that calls itself so."""
        name = accepted(self._process, fd, self._names)
        if name is None or isinstance(name, tuple) or not self._places:
            return name is not None
        return unix_place(inode) in self._places
