"""A log file that the workers of a pool write to themselves: whole lines, whatever their length.

Not through the manager's pipes, as standard output: a pipe takes 64 KB and then waits for its reader, so that a worker
would stand still when the manager is gone; a line above PIPE_BUF may be mixed with another thread's; and at 40,000
requests a second the manager would be as busy as the workers. A line is one write(2) to a file that is open with
O_APPEND: Linux holds the inode's lock for all of it, so that lines of several processes never mix, at any length.

The manager creates the file, with the pool's user as its owner, and a worker opens it by its path; after logrotate it
does so again, before the next line, when the manager has changed the number on the scoreboard (`fcgimgr reopen`), and
within a second when the file has been renamed or removed and nobody has said so. A worker waits for no other process,
but for the file system as write(2) does: long, where that stands still. ("-" is whatever the standard output is, such a
pipe perhaps.) What cannot be written is counted, and said once on standard error, and once more when it is over. The
part of a line that a full disk has still taken is left on a line of its own, unless another worker is the first to
write again.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from fcgimgr.worker.saying import say

#: Seconds between two looks at whether the file is still at its path, or can be opened by now.
LOOK_AGAIN: Final = 1.0

_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
_MODE: Final = 0o640

#: What is found between the rename of a file and `fcgimgr reopen`, where none but the manager may make the new one: it
#: is no trouble unless the next look finds it too.
_BETWEEN: Final = (errno.ENOENT, errno.EACCES)


class AppendedFile:
    """The file at `path`; "-" is the descriptor `standard`. `reopen` gives a number that changes when it is to be
    opened anew. `tell` hears what is wrong with it, as often as that changes, and of the first line; "" is nothing:
    the process before may have left it with something wrong."""

    def __init__(
        self,
        path: str,
        *,
        standard: int,
        reopen: Callable[[], int] = lambda: 0,
        tell: Callable[[str], None] = lambda problem: None,
    ) -> None:
        self._path = path
        self._tell = tell
        self._standard = standard if path == "-" else -1
        self._reopen = reopen
        self._number = reopen()
        self._fd = -1
        self._look_at = 0.0
        self._inode = (0, 0)
        self._lost = 0
        self._cut = False  # the last that was written is a part of a line
        self._between = False
        self._not_opened = self._not_written = ""  # as it was said, while it is so
        self._has_told = False
        self._lock = threading.Lock()

    def write(self, lines: bytes) -> None:
        """Append `lines`, which end in a newline. Raises nothing."""
        with self._lock:  # of this process's threads; a short write is to be completed before the next
            if self._standard >= 0:
                self._write(self._standard, lines)
                return
            now = monotonic()
            if self._number != (number := self._reopen()):
                self._number = number
                self._open(asked=True)
            elif now >= self._look_at:
                if self._fd >= 0 and self._is_at_its_path():
                    self._is_open()
                else:
                    self._open(asked=False)
            else:
                now = self._look_at - LOOK_AGAIN
            self._look_at = now + LOOK_AGAIN
            if self._fd < 0:
                self._lost += 1
            else:
                self._write(self._fd, lines)

    def _write(self, fd: int, lines: bytes) -> None:
        if self._cut:
            lines = b"\n" + lines
        written = 0
        try:
            while written < len(lines):  # a disk that is nearly full takes a part
                written += os.write(fd, lines[written:])
        except OSError as error:
            if written:
                self._cut = not lines.endswith(b"\n", 0, written)
            self._lost += 1
            trouble = f"cannot be written: {error.strerror}"
            if trouble != self._not_written:
                self._not_written = trouble
                self._say(f"{trouble}; its lines are lost until this is mended")
        else:
            self._cut = False
            if self._not_written:
                self._not_written = ""
                self._say(f"is written again{self._lost_lines()}")
            elif not self._has_told:
                self._tell_manager()

    def _open(self, *, asked: bool) -> None:
        """Have the file that is at the path now; the one before, if that cannot be had."""
        try:
            fd = os.open(self._path, _FLAGS, _MODE)
            about = os.fstat(fd)
            if not (stat.S_ISREG(about.st_mode) or stat.S_ISCHR(about.st_mode)):
                os.close(fd)
                raise OSError(errno.EINVAL, "it is not a regular file")
        except OSError as error:
            if self._fd >= 0 and not asked and not self._between and error.errno in _BETWEEN:
                self._between = True
                return
            trouble = f"cannot be opened: {error.strerror}"
            if trouble != self._not_opened:
                self._not_opened = trouble
                after = "the lines go on into the file before" if self._fd >= 0 else "its lines are lost"
                self._say(f"{trouble}; {after} until this is mended")
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._cut = False
        self._inode = about.st_dev, about.st_ino
        self._is_open()

    def _is_open(self) -> None:
        self._between = False
        if self._not_opened:
            self._not_opened = ""
            self._say(f"is opened again{self._lost_lines()}")

    def _is_at_its_path(self) -> bool:
        try:
            about = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return False
        return (about.st_dev, about.st_ino) == self._inode

    def _lost_lines(self) -> str:
        lost, self._lost = self._lost, 0
        return f"; {lost} lines were lost" if lost else ""

    def _say(self, what: str) -> None:
        say(f"{'its standard output' if self._standard >= 0 else self._path}: {what}")
        self._tell_manager()

    def _tell_manager(self) -> None:
        self._has_told = True
        self._tell(self._not_opened or self._not_written)
