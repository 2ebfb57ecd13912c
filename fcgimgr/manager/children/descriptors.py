"""Who has which sockets open, as a helper sees it (ground/helping.py).

To read whose socket a descriptor is waits for a process that executes another program, and may wait for ever
(linux/procfs.py). So it is asked for. Where it cannot be waited for, as a signal is about to be sent, there is
`linux/glance.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.procfs import MOST_FDS, MOST_PROCESSES, descendants, open_sockets
from fcgimgr.manager.ground.helpers import StuckError
from fcgimgr.manager.ground.helping import Ground, Tell
from fcgimgr.manager.ground.turns import Turns

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon

#: So many processes are asked about at a time, and of so many looks that do not end the rest is not asked for.
AT_ONCE: Final = 64
MOST_STUCK: Final = 3


class Seen(NamedTuple):
    """Which sockets (inodes), of those asked for, a process has open, or one of its descendants if these count.

    itself: whether all of its own could be seen. whole: of its descendants as well.
    """

    found: frozenset[int] = frozenset()
    itself: bool = False
    whole: bool = False


UNSEEN: Final = Seen()


class Descriptors:
    """What a helper does: answers [found, itself, whole] for each process that was asked for, in the same order."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def answer(self, request: Any, tell: Tell) -> list[tuple[Any, ...]]:
        pids, wanted, family = request
        given_up = self._ground.given_up
        return [tuple(look(self._ground.at, pid, frozenset(wanted), given_up, family=family)) for pid in pids]

    def end(self) -> None:
        """There is nothing to be left behind."""


def look(
    at: Callable[[int], None],
    pid: int,
    wanted: Container[int],
    given_up: Container[int] = (),
    *,
    family: bool,
    most: int = MOST_FDS,
) -> Seen:
    """May block. family: with its descendants; `most`: descriptors of each, more are not looked at."""
    found: set[int] = set()
    known: list[bool] = []
    members = (pid, *descendants(pid, MOST_PROCESSES)) if family else (pid,)
    stuck = any(member in given_up for member in members)
    for member in () if stuck else members:
        at(member)
        try:
            found.update(inode for _, inode in open_sockets(member, most) if inode in wanted)
            known.append(True)
        except OSError:  # it has gone, or may not be looked at, or has too many
            known.append(False)
    return Seen(frozenset(found), bool(known) and known[0], bool(known) and all(known))


class Inquiry:
    """Some questions of one kind, to be closed after the last of them."""

    def __init__(self, daemon: Daemon) -> None:
        self._job = daemon.helpers.job("descriptors")
        self._stuck = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._job.drop()

    async def sockets(
        self, pids: Iterable[int], wanted: Iterable[int], *, family: bool = False
    ) -> AsyncIterator[tuple[int, Seen]]:
        """Which of the sockets `wanted` each of these processes has open. UNSEEN: it lets nobody look at it."""
        left, sought = list(dict.fromkeys(pids)), list(wanted)
        turns = Turns()
        while left:
            await turns.give_way()
            some, answers = left[:AT_ONCE], list[Any]()
            if self._stuck < MOST_STUCK:
                try:
                    answers = await self._job.ask((some, sought, family), lambda told: None)
                except StuckError:
                    self._stuck += 1
                    continue
                except LinuxError:  # there can be no helper now
                    self._stuck = MOST_STUCK
            del left[: len(some)]
            for pid, answer in zip_longest(some, answers):
                yield pid, UNSEEN if answer is None else Seen(*answer)
