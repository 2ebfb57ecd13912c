"""The manager's own output (`-`): its stderr, a pipe to a log collector, a terminal, a journal's socket.

Nobody has to read it, so it must never be waited for; and it is often read a little slower than a child can write, so
lines must not be dropped the moment a pipe is full. So what the reader has not taken waits in a bounded buffer, the
stream is `blocked` while something waits, and pumps that write to it rest meanwhile (their children then wait, as they
would with the reader at the other end of their own pipe). When the reader has taken nothing for PATIENCE seconds, it is
given up: lines are dropped and counted until it reads again. The same holds for a terminal that was stopped by ^S.

O_NONBLOCK sits on the open file description, which is shared with the shell and whoever else has it: it is never set
here. A pipe or terminal is opened once more through /proc/self/fd, which makes a description of our own; a socket is
written with MSG_DONTWAIT; a regular file never blocks. Where the second opening is refused (a pipe made by another
user), we ask `poll` first and write PIPE_BUF bytes at most, which a pipe that polls writable takes without blocking
(pipe(7)).
"""

import os
import select
import socket
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fcgimgr.manager.logs.target import Outage, Report, Target, reason, write_some

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle

RETRY = 1.0  # seconds after an error in which lines are dropped untried
PATIENCE = 5.0  # seconds without a byte taken after which the reader is given up
LIMIT = 1024 * 1024  # bytes that may wait for the reader

Send = Callable[[bytes | bytearray | memoryview], int]
"""Writes what can be written at once and returns how many bytes; BlockingIOError when none can."""


class Stream(Target):
    """Output to what `fd` is now; `fd` stays the caller's and may be given another meaning later (daemonizing).

    `loop`: without it (early in the manager's life) what waits is tried again at each write, and `blocked` is never
    true. `clock`: monotonic seconds.
    """

    __slots__ = (
        "_clock", "_cut", "_given_up", "_inside_line", "_loop", "_outage", "_own", "_paused", "_progress_at",
        "_resting_until", "_send", "_timer", "_waiting", "_watching", "fd",
    )  # fmt: skip

    def __init__(
        self,
        fd: int,
        *,
        report: Report,
        loop: "AbstractEventLoop | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fd = fd
        self._clock = clock
        self._loop = loop
        self._outage = Outage({1: "stdout", 2: "stderr"}.get(fd, f"output {fd}"), report)
        self._own, self._send = never_waiting(fd)
        self._waiting = bytearray()
        self._watching = False
        self._paused: list[Callable[[], None]] = []
        self._timer: TimerHandle | None = None
        self._progress_at = 0.0  # loop.time()
        self._given_up = False  # the reader; what waits is kept, as half a line of it may be out already
        self._resting_until = 0.0
        self._inside_line = False  # what was taken last did not end its line
        self._cut = False  # and never will: an end of line must come first

    @property
    def is_terminal(self) -> bool:
        return os.isatty(self.fd)

    def attach(self, loop: "AbstractEventLoop") -> None:
        """Use `loop` from now on to write what waits when the reader has made room."""
        self._loop = loop
        if self._waiting:
            self._wait()

    def write(self, chunk: bytes | memoryview) -> None:
        if self._waiting and not self._watching:
            self._flush()
        if self._waiting:
            self._keep(chunk)
        elif self._outage.lasts and self._clock() < self._resting_until:
            self._outage.lose(chunk)
        elif chunk:
            self._write_now(b"\n" + bytes(chunk) if self._cut else chunk)
        self._outage.tell()

    @property
    def blocked(self) -> bool:
        return self._watching and not self._given_up

    def when_free(self, callback: Callable[[], None]) -> None:
        if self.blocked:
            self._paused.append(callback)
        else:
            callback()

    def close(self, patience: float = 1.0) -> None:
        """Write what waits, for `patience` seconds at most, and let go of the stream; lines written later are lost."""
        if self._resting_until == float("inf"):
            return
        self._stop_watching()
        self.flush(patience)
        if self._waiting:
            self._outage.begin("closed while something waited for its reader")
            self._outage.lose(self._waiting)
            self._waiting.clear()
        self._outage.close()
        self._outage.tell()
        self._outage.lasts = True
        self._resting_until = float("inf")
        if self._own is not None:
            self._own.close()
            self._own = None

    def flush(self, patience: float = 1.0) -> None:
        """Write what waits, for `patience` seconds at most."""
        poller = select.poll()
        poller.register(self._watched_fd(), select.POLLOUT)
        deadline = self._clock() + patience
        while self._waiting and (rest := deadline - self._clock()) > 0:
            poller.poll(rest * 1000)
            self._flush()

    # -- writing ----------------------------------------------------------------------------------------------------

    def _write_now(self, chunk: bytes | memoryview) -> None:
        written = 0
        try:
            while written < len(chunk):
                written += self._send(memoryview(chunk)[written:] if written else chunk)
        except BlockingIOError:
            self._waiting += memoryview(chunk)[written:]
        except OSError as error:
            self._outage.lose(memoryview(chunk)[written:])
            self._fail(error)
        if written:
            self._cut = False
            self._inside_line = chunk[written - 1] != 0x0A
        if self._waiting:
            self._wait()
        elif written == len(chunk):
            self._outage.end("can be written again")

    def _keep(self, chunk: bytes | memoryview) -> None:
        if self._given_up or len(self._waiting) + len(chunk) > LIMIT:
            self._outage.begin("is not read as fast as lines come; they are dropped until it is")
            self._outage.lose(chunk)
        else:
            self._waiting += chunk

    def _flush(self) -> None:
        """Write what waits, as far as the reader takes it now."""
        try:
            while self._waiting:
                written = self._send(self._waiting)
                self._inside_line = self._waiting[written - 1] != 0x0A
                self._cut = False
                del self._waiting[:written]
                if self._loop:
                    self._progress_at = self._loop.time()
        except BlockingIOError:
            return
        except OSError as error:
            self._outage.lose(self._waiting)
            self._waiting.clear()
            self._fail(error)
            return
        self._stop_watching()
        self._outage.end("is read again")

    def _fail(self, error: OSError) -> None:
        self._cut = self._inside_line
        self._resting_until = self._clock() + RETRY
        self._outage.begin(f"cannot be written: {reason(error)}; lines are dropped until it can")
        self._stop_watching()

    # -- waiting for the reader ---------------------------------------------------------------------------------------

    def _wait(self) -> None:
        if self._loop is None or self._watching:
            return
        self._watching = True
        self._progress_at = self._loop.time()
        self._loop.add_writer(self._watched_fd(), self._on_room)
        self._timer = self._loop.call_later(PATIENCE, self._lose_patience)

    def _on_room(self) -> None:
        self._flush()
        self._outage.tell()

    def _lose_patience(self) -> None:
        assert self._loop is not None
        rest = self._progress_at + PATIENCE - self._loop.time()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._lose_patience)
            return
        self._timer = None
        self._given_up = True
        self._outage.begin(f"has not been read for {PATIENCE:g} seconds; lines are dropped until it is")
        self._wake()
        self._outage.tell()

    def _stop_watching(self) -> None:
        if self._loop and self._watching:
            self._loop.remove_writer(self._watched_fd())
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._watching = self._given_up = False
        self._wake()

    def _wake(self) -> None:
        paused, self._paused = self._paused, []
        for callback in paused:
            callback()

    def _watched_fd(self) -> int:
        return self.fd if self._own is None else self._own.fileno()


class OwnDescription:
    """A second open file description of what a descriptor leads to."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def never_waiting(fd: int) -> tuple[OwnDescription | socket.socket | None, Send]:
    """How to write to `fd` without ever waiting, and what was opened for it."""
    try:
        kind = os.fstat(fd).st_mode
    except OSError as error:  # closed by whoever started us: what gets this number later is not meant for log lines
        return None, partial(refuse, error)
    if stat.S_ISREG(kind):
        return None, partial(write_some, fd)
    if stat.S_ISSOCK(kind):
        sock = socket.socket(fileno=os.dup(fd))
        return sock, lambda chunk: sock.send(chunk, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # not permitted, or no /proc: ask first
        return None, partial(write_if_writable, fd)
    return OwnDescription(own), partial(write_some, own)


def write_if_writable(fd: int, chunk: bytes | bytearray | memoryview) -> int:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if not poller.poll(0):
        raise BlockingIOError
    return write_some(fd, memoryview(chunk)[: select.PIPE_BUF])


def refuse(error: OSError, chunk: bytes | bytearray | memoryview) -> int:
    raise error
