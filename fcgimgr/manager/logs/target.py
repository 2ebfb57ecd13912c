"""What log lines can be written to, and how a target that fails says so: once, and once more when it is over."""

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from fcgimgr.manager.logs.inhand import Left
from fcgimgr.manager.logs.lines import Split

Report = Callable[[str], None]
"""Takes a message for the operator. It may end in a write to the very target that reports."""


class Target(ABC):
    """A place for lines. Writing never raises and never waits; what cannot be written is counted and reported."""

    __slots__ = ()

    #: Whether it can be seen, when a manager has been killed, how far it had written.
    shows_how_far = False

    @abstractmethod
    def write(self, chunk: bytes | memoryview) -> None:
        """Write `chunk`, whole lines. Its memory may be used again as soon as this returns."""

    def grown(self, left: Left, split: Split) -> int:
        """How many bytes of what a dead manager had in hand it has written here. split: into lines of the log."""
        return 0

    @property
    def blocked(self) -> bool:
        """Whether a writer that can wait should: lines written now may have to be dropped."""
        return False

    @property
    def is_terminal(self) -> bool:
        """Whether control characters in a line would be obeyed."""
        return False

    def when_free(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when `blocked` is over."""
        callback()


class Discard(Target):
    """Where `stdout_logfile = "none"` leads."""

    __slots__ = ()

    def write(self, chunk: bytes | memoryview) -> None:
        """Take `chunk` and forget it."""


NOWHERE = Discard()


class Trouble(NamedTuple):
    """What is wrong with a log just now. lost: lines that could not be written since it began; None: not known."""

    path: str
    problem: str
    lost: int | None


class Outage:
    """A time in which something does not work: its beginning and its end are each told once.

    Messages wait until `tell`: reporting may lead to a write to the target that reports, so it happens last, when the
    target's own state is consistent.
    """

    __slots__ = ("_messages", "_name", "_report", "_trouble", "lasts", "lost")

    def __init__(self, name: str, report: Report) -> None:
        self._name = name
        self._report = report
        self._messages: list[str] = []
        self._trouble = ""
        self.lasts = False
        self.lost = 0

    def begin(self, trouble: str, so: str = "") -> None:
        """`so`: what comes of it, to be told with it."""
        if not self.lasts:
            self.lasts = True
            self._trouble = trouble
            self.note(f"{trouble}; {so}" if so else trouble)

    @property
    def trouble(self) -> Trouble | None:
        """What it is, while it lasts."""
        return Trouble(self._name, self._trouble, self.lost) if self.lasts else None

    def end(self, recovery: str) -> None:
        if self.lasts:
            self.lasts = False
            lost, self.lost = self.lost, 0
            self.note(f"{recovery}; {'1 line was' if lost == 1 else f'{lost} lines were'} lost" if lost else recovery)

    def close(self) -> None:
        """The target is to be no more; what was lost until then is told, a trouble that lost nothing is over."""
        if self.lost:
            self.end("closed")
        self.lasts = False

    def lose(self, chunk: bytes | bytearray | memoryview, start: int = 0) -> None:
        """Count the lines that end in `chunk` from `start` on as lost."""
        self.lost += bytes(chunk).count(b"\n", start)

    def note(self, message: str) -> None:
        self._messages.append(f"{self._name}: {message}")

    def tell(self) -> None:
        if self._messages:
            messages, self._messages = self._messages, []
            for message in messages:
                self._report(message)


def write_some(fd: int, chunk: bytes | bytearray | memoryview) -> int:
    """os.write, with a device that takes nothing made an error: asking it again would be for ever."""
    written = os.write(fd, chunk)
    if written == 0 and chunk:
        raise OSError(errno.EIO, "the device takes nothing")
    return written


def last_bytes(fd: int, count: int, size: int) -> bytes:
    """Of a regular file of this size its last bytes, so many; none of anything else, or where it cannot be read."""
    if count <= 0 or size <= 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
        return b""
    try:
        readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(readable, count, max(0, size - count))
    except OSError:
        return b""
    finally:
        os.close(readable)


def reason(error: OSError) -> str:
    """What is wrong, in words."""
    return error.strerror or str(error)
