"""Whoever reads the output of processes as it comes (`tail -f`): by their places in a pool, whoever has those.

A process that is started again is in the same slot. A reload has slots of its own, and both are read until the old ones
are gone: nothing is missed, neither the last words of the one nor the first of the other. So has a scale that goes down
and up again, and one that is new in a pool of which all is followed. Only when no pool is left there is nothing to wait
for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from fcgimgr.manager.pools.watcher import Watcher

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.pool import Pool
    from fcgimgr.manager.pools.slots import Lines, Slot


class Following(Watcher):
    """`callback` gets the lines, each time with the name of their process, until `end`. `over` is done when none of the
    pools is any more.

    `places`: the index of the one process that is followed of each pool; None: all of them.
    """

    def __init__(
        self,
        daemon: Daemon,
        places: Mapping[Pool, int | None],
        stream: str,
        callback: Callable[[str, Lines], None],
    ) -> None:
        self._daemon = daemon
        self._places = places
        self._stream = stream
        self._callback = callback
        self._stops: dict[Pool, dict[Slot, Callable[[], None]]] = {pool: {} for pool in places}
        self.over = daemon.loop.create_future()
        for pool in places:
            self._look(pool)
        daemon.watchers.append(self)

    def pool_changed(self, pool: Pool) -> None:
        if pool in self._places:
            self._look(pool)

    def reload_over(self) -> None:
        if self._stops.keys().isdisjoint(self._daemon.pools.values()) and not self.over.done():
            self.over.set_result(None)

    def _look(self, pool: Pool) -> None:
        """Read of every generation the slots in these places."""
        index, stops = self._places[pool], self._stops[pool]
        slots = [generation.slots for generation in pool.generations.values()]
        there = {slot for each in slots for slot in (each if index is None else each[index : index + 1])}
        for slot in stops.keys() - there:
            stops.pop(slot)()
        for slot in there - stops.keys():
            stops[slot] = slot.follow(self._stream, partial(self._callback, f"{pool.name}:{slot.name}"))

    def end(self) -> None:
        self._daemon.watchers.remove(self)
        for stops in self._stops.values():
            for stop in stops.values():
                stop()
