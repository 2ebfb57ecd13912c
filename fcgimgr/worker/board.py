"""The worker's side of the scoreboard (fcgimgr/fastcgi/scoreboard.py): its lanes, written by the threads that serve."""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
from collections.abc import MutableMapping

from fcgimgr.fastcgi.scoreboard import (
    COUNT,
    HALVES,
    HEAD_SIZE,
    IDLE,
    LANE_SIZE,
    MAGIC,
    REOPEN,
    REOPEN_AT,
    REST,
    THREAD,
    THREAD_AT,
    URI_LONGEST,
    VARIABLE,
    WORK,
    WORKING,
)
from fcgimgr.worker.patched import get_ident


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
    """What one thread shows of itself. To be made by that thread."""

    __slots__ = ("_count", "_memory", "_resting_at", "_shown", "_working_at")

    def __init__(self, board: Board, at: int) -> None:
        self._memory = board.memory
        # Work and rest take turns, so that each has a half of its own.
        self._resting_at, self._working_at = at + HALVES[0], at + HALVES[1]
        self._count = 0  # of the last rest, which is even
        self._shown = memoryview(board.memory)[at : at + COUNT.size].cast("I")
        THREAD.pack_into(board.memory, at + THREAD_AT, get_ident())

    def work(self, requests: int, since: float, last: float, method: str, uri: str) -> None:
        """A request is in hand, since that monotonic time, after so many, of which the last took so long; what is too
        long is cut."""
        text = uri.encode("latin-1", "replace")
        length = len(text)
        WORK.pack_into(
            self._memory,
            self._working_at,
            WORKING,
            requests,
            since,
            last,
            method.encode("latin-1", "replace"),
            length if length < URI_LONGEST else URI_LONGEST,
            text,
        )
        self._shown[0] = self._count + 1

    def rest(self, requests: int, since: float, last: float) -> None:
        """None is in hand."""
        REST.pack_into(self._memory, self._resting_at, IDLE, requests, since, last)
        self._count = self._shown[0] = (self._count + 2) & 0xFFFFFFFF or 2  # 0: there was none


def inherited_board(environ: MutableMapping[str, str]) -> Board | None:
    """The board that the manager has passed, if it has; its variable is taken out of `environ`."""
    named = environ.pop(VARIABLE, "")
    if not named:
        return None
    try:
        return Board(int(named))
    except (ValueError, OSError):  # a worker that was started by hand from such an environment
        return None
