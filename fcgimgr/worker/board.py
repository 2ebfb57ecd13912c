"""The worker's side of the scoreboard (fcgimgr/fastcgi/scoreboard.py): its lanes, written by the threads that serve."""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
from collections.abc import MutableMapping

from fcgimgr.fastcgi.scoreboard import (
    HEAD_SIZE,
    LANE,
    LANE_SIZE,
    MAGIC,
    REOPEN,
    REOPEN_AT,
    URI_LONGEST,
    VARIABLE,
)


class Board:
    """The board behind descriptor `fd`. OSError, ValueError: there is none of its kind.

    The descriptor stays open, for a manager that has to find the board again, but no program that the application
    starts gets it.
    """

    def __init__(self, fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # refused for whatever is not a memfd: nothing else shall be written to
        os.set_inheritable(fd, False)
        self.memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self.memory[: len(MAGIC)] = MAGIC
        self._lanes = itertools.count(HEAD_SIZE, LANE_SIZE)

    def lane(self) -> Lane | None:
        """A lane for one more thread; None: all are taken."""
        at = next(self._lanes)
        return Lane(self, at) if at + LANE_SIZE <= len(self.memory) else None

    @property
    def reopen(self) -> int:
        """Changes when the log files are to be opened anew."""
        number: int = REOPEN.unpack_from(self.memory, REOPEN_AT)[0]
        return number


class Lane:
    """What one thread shows of itself."""

    __slots__ = ("_at", "_count", "_memory")

    def __init__(self, board: Board, at: int) -> None:
        self._memory = board.memory
        self._at = at
        self._count = 0

    def write(
        self, state: int, requests: int, since: float, last: float, thread: int, method: bytes = b"", uri: bytes = b""
    ) -> None:
        """Show this; what is too long is cut."""
        self._count = count = (self._count + 1) & 0xFFFFFFFF
        length = min(len(uri), URI_LONGEST)
        LANE.pack_into(self._memory, self._at, count, state, requests, since, last, thread, method, length, uri, count)


def inherited_board(environ: MutableMapping[str, str]) -> Board | None:
    """The board that the manager has passed, if it has; its variable is taken out of `environ`."""
    named = environ.pop(VARIABLE, "")
    if not named:
        return None
    try:
        return Board(int(named))
    except (ValueError, OSError):  # a worker that was started by hand from such an environment
        return None
