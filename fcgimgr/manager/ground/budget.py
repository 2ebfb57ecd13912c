"""How long whoever can wake the manager at will may keep it busy: a small share of the time, and more after a rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle

SHARE: Final = 0.05  # of the time
SAVED: Final = 0.1  # seconds that may be spent at once, after a rest
WORTH: Final = 0.005  # seconds that are saved up before one is heard again that has spent all


class Source(Protocol):
    """Where something comes from."""

    def fileno(self) -> int:
        """The descriptor that is readable then."""
        ...


class Budgeted:
    """Calls `hear` when there is something at `source`, until `end`; not for a while, when that has taken too much."""

    __slots__ = ("_at", "_ended", "_hear", "_left", "_loop", "_source", "_timer")

    def __init__(self, loop: AbstractEventLoop, source: Source, hear: Callable[[], None]) -> None:
        self._loop = loop
        self._source = source
        self._hear = hear
        self._left = SAVED
        self._at = time.monotonic()
        self._timer: TimerHandle | None = None
        self._ended = False
        self._listen()

    def end(self) -> None:
        """Before the source is closed."""
        self._ended = True
        self._loop.remove_reader(self._source)
        if self._timer is not None:
            self._timer.cancel()

    def _listen(self) -> None:
        self._timer = None
        self._loop.add_reader(self._source, self._hear_in_time)

    def _hear_in_time(self) -> None:
        begun = time.monotonic()
        self._hear()
        now = time.monotonic()
        self._left = min(SAVED, self._left + SHARE * (begun - self._at)) - (now - begun)
        self._at = now
        if self._left <= 0 and not self._ended:
            self._loop.remove_reader(self._source)
            self._timer = self._loop.call_later((WORTH - self._left) / SHARE, self._listen)
