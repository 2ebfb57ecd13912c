"""Signals to the manager, none lost however many come at once.

asyncio's own way writes each signal's number into a socket and looks at what it reads there: when a thousand children
die together the socket is full of SIGCHLD, and a SIGTERM that comes then is dropped, with a traceback on standard
error. Here the handlers only note which signals came, and the descriptor only wakes the loop: full means awake.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable


class Signals:
    """Calls handlers from the loop, each at most once a turn. For the main thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handlers: dict[int, Callable[[], object]] = {}
        self._came: set[int] = set()
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        loop.add_reader(self._read_end, self._wake)

    def handle(self, number: int, handler: Callable[[], object]) -> None:
        """Call `handler` from the loop when the signal has come."""
        self._handlers[number] = handler
        signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._came.add(number)

    def _wake(self) -> None:
        # Emptied first: what comes from here on writes again, and wakes the loop again.
        os.read(self._read_end, 65536)
        for number in tuple(self._came):
            # Each in a turn of its own: a fault in one must not swallow the others.
            self._loop.call_soon(self._heed, number)

    def _heed(self, number: int) -> None:
        if number in self._came:
            self._came.remove(number)
            self._handlers[number]()

    def hold(self) -> None:
        """Let signals wait, beyond an exec too, until the mask is lifted: what comes now, and what was not heeded yet.

        What a handler has begun goes on: give the loop a turn before you look at it.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while self._came:
            signal.raise_signal(self._came.pop())

    def let_come(self) -> None:
        """Take back `hold`."""
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def close(self) -> None:
        """From here on a signal is noted and nothing more: the manager is ending."""
        self._loop.remove_reader(self._read_end)
        signal.set_wakeup_fd(-1)
        os.close(self._read_end)
        os.close(self._write_end)
