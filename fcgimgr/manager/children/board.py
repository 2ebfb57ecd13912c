"""The manager's side of the scoreboard (fcgimgr/fastcgi/scoreboard.py): it makes a board for each worker, and reads it.

A board belongs to one process and ends with it. It outlives the manager, because the worker holds it too: newer code
inherits the descriptor, and a manager that follows a killed one finds it again in the worker's table of descriptors.
"""

from __future__ import annotations

import mmap
import os

from fcgimgr.config.settings import PoolSettings, ProcessSettings
from fcgimgr.fastcgi import scoreboard
from fcgimgr.fastcgi.scoreboard import Reading
from fcgimgr.linux.glance import glance_fd
from fcgimgr.linux.sharedmem import find_shared, open_shared, shared_memory
from fcgimgr.linux.spawn import FIRST_LISTENER


class Board:
    """One worker's board, read by descriptor `fd`, which is its own from now on."""

    __slots__ = ("_size", "fd", "inode")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        about = os.fstat(fd)
        self.inode = about.st_ino
        self._size = about.st_size

    @classmethod
    def new(cls, settings: PoolSettings) -> Board:
        """An empty one for a worker of this pool. LinuxError."""
        lanes = max(settings.threads or 0, scoreboard.LANES)
        return cls(shared_memory("fcgimgr-scoreboard", scoreboard.size(lanes)))

    @classmethod
    def of(cls, pid: int, settings: ProcessSettings, inode: int) -> Board | None:
        """The board that a worker was given by a manager before us; None: it has none. OSError: it cannot be had.
        NoGlanceError.
        """
        place = board_fd(settings)
        if place is None or not inode:
            return None
        # A worker that was forked from a zygote has it wherever there was room.
        preloaded = isinstance(settings, PoolSettings) and settings.preload
        fd = glance_fd(lambda: find_shared(pid, inode) if preloaded else open_shared(pid, place, inode))
        return None if fd is None else cls(fd)

    def read(self, now: float) -> Reading | None:
        """What the worker says at `now`, monotonic seconds; None: it cannot be told."""
        return scoreboard.read(lambda: os.pread(self.fd, self._size, 0), now)

    def ask_to_reopen(self) -> None:
        """Let the worker open its log files anew before it writes the next line."""
        field = scoreboard.REOPEN
        # Not by write(2), which waits for a lock: the worker may be in a write of its own, of a page that never comes.
        # Nobody can make the file shorter (SIGBUS).
        with mmap.mmap(self.fd, scoreboard.HEAD_SIZE) as head:
            (number,) = field.unpack_from(head, scoreboard.REOPEN_AT)
            field.pack_into(head, scoreboard.REOPEN_AT, (number + 1) & 0xFFFFFFFF)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def board_fd(settings: ProcessSettings) -> int | None:
    """The descriptor as which a process with these settings gets its board; None: it gets none."""
    if not isinstance(settings, PoolSettings) or settings.wsgi is None:
        return None
    return FIRST_LISTENER + (0 if settings.socket_pass == "stdin" else len(settings.sockets))
