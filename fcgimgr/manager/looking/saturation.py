"""Tells when the queue of a pool is never seen empty, and who of its processes is busy; and its end: once each.

That somebody has waited at every look does not tell that one has waited from the first to the last: a pool that is
fully used and brisk may be told as well, and so nothing else is said of it.

A listener is readable while a connection waits (accept(2)), so the loop is woken by the first one that comes and not by
time; then it is not watched any more until a look, a second later, finds its queue empty (core/saturation.py). A pool
to which nobody comes wakes nobody, and one with a million clients the manager twice a second. A listener that a process
has shut down is readable for ever and nobody comes to it: that is told, and it is left alone.

Only of the generation that serves: what waits for another is its drain's affair.
"""

from __future__ import annotations

from asyncio import TimerHandle
from typing import TYPE_CHECKING, Final

from fcgimgr.core import saturation as core
from fcgimgr.core.process import Running
from fcgimgr.core.saturation import Asleep, Saturated
from fcgimgr.linux.arrivals import shut_down, somebody_waits
from fcgimgr.linux.sockdiag import established_inodes
from fcgimgr.manager.children.descriptors import Inquiry
from fcgimgr.manager.pools.slots import longest_in_hand

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.pool import Pool

# Of so many processes it is looked at whether they are busy, when an episode begins.
MOST_LOOKED_AT: Final = 256


class Saturation:
    """Watches every pool that serves."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._watched: dict[Generation, _Watch] = {}

    def pool_changed(self, pool: Pool) -> None:
        """Something happened in this pool."""
        serving = pool.serving
        if serving not in self._watched and is_to_be_watched(serving):
            self._watched[serving] = _Watch(self._daemon, serving)

    def let_go(self, generation: Generation) -> None:
        """Before its listeners are closed: others may have the descriptors as well, and then the loop would be woken
        for ever."""
        if (watch := self._watched.pop(generation, None)) is not None:
            watch.end()

    def since(self, generation: Generation) -> float | None:
        """Since when some have waited at every look, if that was told and is not over; monotonic seconds."""
        watch = self._watched.get(generation)
        return watch.since if watch is not None else None

    def close(self) -> None:
        for generation in tuple(self._watched):
            self.let_go(generation)


def is_to_be_watched(generation: Generation) -> bool:
    """Whether clients come to it, and can be heard of."""
    core, listening = generation.core, generation.listening
    return core.open and not (core.left or core.refusing) and listening is not None and not listening.lost


class _Watch:
    """One generation."""

    def __init__(self, daemon: Daemon, generation: Generation) -> None:
        assert generation.listening is not None  # else it is not to be watched
        self._daemon = daemon
        self._generation = generation
        self._fds = tuple(generation.listening.fds)
        self._timer: TimerHandle | None = None
        self._is_told_since: float | None = None  # the beginning of the episode that is told
        self._state: core.State = Asleep()
        self._listens = False
        self._listen()

    @property
    def since(self) -> float | None:
        """Since when some have waited at every look, if that is told and not over."""
        return self._is_told_since

    def end(self) -> None:
        """Others wait for who comes now, or nobody does."""
        self._listen_no_more()
        if self._timer is not None:
            self._timer.cancel()
        self._state = Asleep()
        self._tell_end(self._daemon.loop.time(), "nobody comes to it any more")

    def _listen(self) -> None:
        self._listens = True
        for fd in self._fds:
            self._daemon.loop.add_reader(fd, self._somebody_came)

    def _listen_no_more(self) -> None:
        if self._listens:
            self._listens = False
            for fd in self._fds:
                self._daemon.loop.remove_reader(fd)

    def _somebody_came(self) -> None:
        self._listen_no_more()
        self._timer = self._daemon.loop.call_later(core.SOON, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._daemon.loop.time()
        self._leave_alone(shut_down(self._fds))
        before, self._state = self._state, core.step(self._state, somebody_waits(self._fds), now)
        if isinstance(self._state, Asleep):
            if isinstance(before, Saturated):
                self._tell_end(before.empty_since or now)
            self._listen()
            return
        self._timer = self._daemon.loop.call_later(core.AGAIN, self._look)
        if isinstance(self._state, Saturated) and not isinstance(before, Saturated):
            self._daemon.in_background(self._tell_beginning(self._state.since))

    def _leave_alone(self, shut: frozenset[int]) -> None:
        """Of these listeners nothing more is to be heard."""
        assert self._generation.listening is not None  # else `end` was called
        for place in self._generation.listening.places:
            if place.listener.fileno() in shut:
                name = self._generation.name
                text = f"its listener on {place.address} was shut down by a process: clients are refused there"
                self._daemon.journal.error(f"{text}; fcgimgr stop {name}, and start {name}", name=name)
                self._daemon.history.record("listener", name, detail=text)
        self._fds = tuple(fd for fd in self._fds if fd not in shut)

    async def _tell_beginning(self, since: float) -> None:
        generation = self._generation
        who = await who_is_busy(generation)
        if not isinstance(self._state, Saturated) or generation.listening is None:
            return  # its listeners were closed meanwhile
        self._is_told_since = since
        waiting = generation.listening.waiting
        many = f", {waiting} now" if waiting else ""  # where the kernel does not tell
        text = f"for {self._daemon.loop.time() - since:.0f} s connections have been waiting at every look{many}: {who}"
        self._daemon.journal.warning(text, name=generation.name)
        self._daemon.history.record("load", generation.name, "EASED", "SATURATED", text)

    def _tell_end(self, at: float, how: str = "no connection waits any more") -> None:
        since, self._is_told_since = self._is_told_since, None
        if since is None:
            return
        text = f"{how}, after {at - since:.0f} s"
        self._daemon.journal.info(text, name=self._generation.name)
        self._daemon.history.record("load", self._generation.name, "SATURATED", "EASED", text)


async def who_is_busy(generation: Generation) -> str:
    """In words: how many of its processes are, and what the one is at that has been at it for longest."""
    now = generation.daemon.loop.time()
    listening = generation.listening
    accepted = established_inodes(listening.names) if listening is not None else None
    running = [(index, state.pid) for index, state in generation.processes_in(Running).items()]
    slots = dict(enumerate(generation.slots))  # one that is about to come may have none yet
    looked_at = [(slots[index], pid) for index, pid in running[:MOST_LOOKED_AT] if index in slots]
    readings = [(slot.reading(now), pid) for slot, pid in looked_at]
    busy = sum(reading is not None and bool(reading.in_hand) for reading, _ in readings)
    unshown = [pid for reading, pid in readings if reading is None]  # who has no board
    what = longest_in_hand((slot for slot, _ in looked_at), now)
    if accepted and unshown:
        with Inquiry(generation.daemon) as inquiry:
            async for _, seen in inquiry.sockets(unshown, accepted):
                busy += bool(seen.found)
    many = len(running)
    if not many:
        return "no process runs"
    if many > MOST_LOOKED_AT:
        return f"{many} processes run{what}"
    if busy == many:
        return f"{'its process is' if many == 1 else f'all {many} processes are'} busy{what}"
    return f"{busy} of {many} processes {'is' if busy == 1 else 'are'} busy just now{what}"
