"""What is seen of young processes, as a helper sees it: whether they take their listener, or have a connection of it.

The same sights tell where one listens that does not take it. What they mean is in taking.py.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

from fcgimgr.linux.procfs import descendants, socket_inodes
from fcgimgr.linux.sockdiag import SocketName, established_inodes, listening_names
from fcgimgr.linux.taking import Sight, connection_of, sight
from fcgimgr.manager.ground.helping import Ground, Tell

MOST_MEMBERS: Final = 256  # processes below one that are looked at


class Wanted(NamedTuple):
    """takes: whether it is to be seen if the process takes its listener. elsewhere: and, if it does not, where it
    listens; it does if it may (MAYBE) and `enough` is set."""

    pid: int
    takes: bool
    elsewhere: bool
    enough: bool


class Request(NamedTuple):
    """anew: the connections are others than at the last request. names, inodes: of the listeners. ours: inodes of
    connections that do not count. wanted: as `Wanted`."""

    anew: bool
    names: tuple[SocketName, ...]
    inodes: tuple[int, ...]
    ours: tuple[int, ...]
    wanted: tuple[tuple[Any, ...], ...]


class Seen(NamedTuple):
    """Of one process. sight: None, it was not to be seen. connection: the inode of one it has in its hands; 0: none.
    elsewhere: the names of what it listens on itself."""

    sight: int | None
    connection: int
    elsewhere: list[str]


class Sights:
    """Looks at the processes of one generation. Answers (seconds of work, a `Seen` of each that was wanted)."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._connections: Collection[int] = ()

    def answer(self, request: Any, tell: Tell) -> tuple[float, list[tuple[Any, ...]]]:
        begun = time.thread_time()
        asked = Request(*request)
        if asked.anew:
            found = established_inodes(asked.names) if asked.names else None
            self._connections = (found or set()).difference(asked.ours)
        seen = [tuple(self._look_at(Wanted(*wanted), asked)) for wanted in asked.wanted]
        return time.thread_time() - begun, seen

    def end(self) -> None:
        """There is nothing to be left behind."""

    def _look_at(self, wanted: Wanted, asked: Request) -> Seen:
        found, elsewhere, connection = None, list[str](), 0
        below = descendants(wanted.pid)[:MOST_MEMBERS] if wanted.pid not in self._ground.given_up else ()
        members = [wanted.pid, *below]
        if wanted.takes:
            found = Sight.NO
            for one in self._sights(members, asked):
                found = max(found, one)
                if found is Sight.TAKES:
                    break
            if wanted.elsewhere and (found is Sight.NO or (found is Sight.MAYBE and not wanted.enough)):
                own = {inode for member in self._each(members) for inode in socket_inodes(member) or ()}
                elsewhere = listening_names(own.difference(asked.inodes))
        if self._connections:
            have = (connection_of(one, asked.names, self._connections, asked.ours) for one in self._each(members))
            connection = next(filter(None, have), 0)
        return Seen(None if found is None else int(found), connection, elsewhere)

    def _sights(self, members: list[int], asked: Request) -> Iterator[Sight]:
        if not set(members).isdisjoint(self._ground.given_up):
            yield Sight.UNKNOWN
        for member in self._each(members):
            yield sight(member, asked.inodes)

    def _each(self, members: list[int]) -> Iterator[int]:
        for member in members:
            if member not in self._ground.given_up:
                self._ground.at(member)
                yield member
