"""How long whoever can wake the manager at will may keep it busy: a small share of the time, and more after a rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

SHARE: Final = 0.05  # of the time
SAVED: Final = 0.1  # seconds that may be spent at once, after a rest
WORTH: Final = 0.005  # seconds that are saved up before one is heard again that has spent all


class Budget:
    """The time that what comes from one of them may take."""

    __slots__ = ("_at", "_left", "timer")

    def __init__(self, now: float) -> None:
        self._left = SAVED
        self._at = now
        self.timer: asyncio.TimerHandle | None = None

    def spend(self, begun: float, now: float) -> float:
        """So much was spent; seconds for which nothing more is to be."""
        self._left = min(SAVED, self._left + SHARE * (begun - self._at)) - (now - begun)
        self._at = now
        return 0.0 if self._left > 0 else (WORTH - self._left) / SHARE
