"""Whoever reads the output of a process as it comes (`tail -f`): by its place in the pool, whoever has that.

A process that is started again is in the same slot. A reload has slots of its own, and both are read until the old ones
are gone: nothing is missed, neither the last words of the one nor the first of the other. So has a scale that goes down
and up again. Only when its pool is no more there is nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fcgimgr.manager.daemon import Watcher

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools import Pool
    from fcgimgr.manager.slots import Lines, Slot


class Following(Watcher):
    """`callback` gets the lines, until `end`. `over` is done when the pool is no more."""

    def __init__(self, daemon: Daemon, pool: Pool, index: int, stream: str, callback: Callable[[Lines], None]) -> None:
        self._daemon = daemon
        self._pool = pool
        self._index = index
        self._stream = stream
        self._callback = callback
        self._stops: dict[Slot, Callable[[], None]] = {}
        self.over = daemon.loop.create_future()
        self._look()
        daemon.watchers.append(self)

    def pool_changed(self, pool: Pool) -> None:
        if pool is self._pool:
            self._look()

    def reload_over(self) -> None:
        if self._pool not in self._daemon.pools.values() and not self.over.done():
            self.over.set_result(None)

    def _look(self) -> None:
        """Read of every generation the slot in this place."""
        slots = [generation.slots for generation in self._pool.generations.values()]
        there = {each[self._index] for each in slots if self._index < len(each)}
        for slot in self._stops.keys() - there:
            self._stops.pop(slot)()
        for slot in there - self._stops.keys():
            self._stops[slot] = slot.follow(self._stream, self._callback)

    def end(self) -> None:
        self._daemon.watchers.remove(self)
        for stop in self._stops.values():
            stop()
