"""`ready = "ping"` and `"http"`: a process is ready when it has answered a request of ours (pinging.py, asking.py).

Where it cannot be known who has answered (a worker with children of its own that accept, or fds that may not be read)
a process counts as ready when it has lived startsecs and the pool has answered. And where the kernel keeps handing the
pings to siblings (servers on epoll share unevenly) it does so after half its ready_timeout: it is alive, and its pool
answers. But in either case it must have been seen to take the listener (taking.py), unless it may not be looked at: one
that serves another port would pass for ready on its siblings' answers.

On a pool that serves, a new process may have no time for a ping: it is handed real requests, and the ping waits behind
them. So while nobody accepts our ping it is looked at what the new processes have in hand. One that has lived startsecs
and has been seen to finish a request is ready. So is one that has a request in hand after half its ready_timeout: the
pool is at long requests, and to end it then would lose one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fcgimgr.core.generation import Happened
from fcgimgr.core.process import Ready, Starting, Takes
from fcgimgr.core.rollout import Canary
from fcgimgr.fastcgi.records import ProtocolError
from fcgimgr.linux.errors import LinuxError
from fcgimgr.manager.looking.in_hand import Hands, has_worked, in_hand
from fcgimgr.manager.looking.pinging import LONGEST, SHORTEST, Ping, is_pinged

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation

# Pings at a time, once siblings have answered: many wake more of those that wait on epoll than one does.
AT_ONCE: Final = 8
ANSWERED_WITHIN: Final = 5.0
# Seconds that nobody accepts a ping, after which the processes' hands are looked at.
ACCEPTED_SOON: Final = 0.5


class Readiness:
    """Pings the pools that have a process waiting to be found ready, and nothing while there is none."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._tasks: dict[Generation, asyncio.Task[None]] = {}

    def process_changed(self, generation: Generation) -> None:
        """Begin to ping when the first process of a pool is spawned that is to be found ready so."""
        if not is_pinged(generation.settings) or generation in self._tasks or not generation.processes_in(Starting):
            return
        self._tasks[generation] = self._daemon.loop.create_task(self._ping(generation))

    async def _ping(self, generation: Generation) -> None:
        pause = SHORTEST
        number = 1
        pings: list[Ping] = []  # all that there were: a process may still have one in hand that is stuck in it
        try:
            while generation.processes_in(Starting):
                answered, found = await self._round(generation, pings, number)
                if answered:
                    number = min(AT_ONCE, number * 2)
                if found:
                    pause, number = SHORTEST, 1
                    continue
                await asyncio.sleep(pause)
                pause = min(LONGEST, pause * 1.5)
        finally:
            del self._tasks[generation]

    async def _round(self, generation: Generation, pings: list[Ping], number: int) -> tuple[bool, bool]:
        """So many pings at once, until each is answered or nobody waits for it any more; they are added to `pings`.

        Whether one was answered well, and whether that or its work has made a process ready.
        """
        new = [Ping(generation) for _ in range(number)]
        pings += new
        tasks = {self._daemon.loop.create_task(ping.ask(ANSWERED_WITHIN)): ping for ping in new}
        begun = self._daemon.loop.time()
        waiting = set(tasks)
        hands: dict[int, Hands] = {}
        answered = found = False
        try:
            while waiting and generation.processes_in(Starting):
                done, waiting = await asyncio.wait(waiting, timeout=LONGEST, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if self._was_answered(generation, task):
                        answered = True
                        found |= self._heed(generation, tasks[task].holder)
                queued = any(tasks[task].accepted is False for task in waiting)
                if queued and self._daemon.loop.time() - begun > ACCEPTED_SOON:
                    self._tell(generation, "it waits in the queue: no process accepts it")
                    now = await self._in_hand(generation, pings)
                    found |= self._heed_work(generation, hands, now)
                    hands = now
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return answered, found

    def _was_answered(self, generation: Generation, task: asyncio.Task[None]) -> bool:
        try:
            task.result()
        except (OSError, ProtocolError, LinuxError) as error:  # TimeoutError is an OSError
            self._tell(generation, str(error) or "no answer in time")
            return False
        return True

    def _tell(self, generation: Generation, failure: str) -> None:
        if failure != generation.ping_failure:
            generation.ping_failure = failure
            self._daemon.journal.warning(f"ping: {failure}", name=generation.name)

    def _heed(self, generation: Generation, holder: int | None) -> bool:
        """A ping was answered, by the process with this pid if that is known. True if it made a process ready."""
        now = self._daemon.loop.time()
        settings = generation.settings
        patience = settings.startsecs if holder is None else settings.ready_timeout / 2
        found = False
        for index, state in generation.processes_in(Starting).items():
            if state.pid == holder or (state.takes and now - state.since >= patience):
                if state.pid == holder:
                    generation.feed(Happened(index, Takes()))
                generation.feed(Happened(index, Ready()))
                found = True
        return found

    async def _in_hand(self, generation: Generation, pings: list[Ping]) -> dict[int, Hands]:
        """What clients have given to those that are not ready yet; where no client is led, there is nothing to see."""
        pool = generation.pool
        if generation is not pool.serving and not isinstance(pool.core.coming, Canary):
            return {}
        ours = {ping.inode for ping in pings if ping.inode is not None}
        return await in_hand(generation, [state.pid for state in generation.processes_in(Starting).values()], ours)

    def _heed_work(self, generation: Generation, before: dict[int, Hands], after: dict[int, Hands]) -> bool:
        """Nobody has time for a ping. True if the work that was seen made a process ready."""
        now = self._daemon.loop.time()
        settings = generation.settings
        found = False
        for index, state in generation.processes_in(Starting).items():
            hands, age = after.get(state.pid, {}), now - state.since
            worked = age >= settings.startsecs and has_worked(before.get(state.pid, {}), hands)
            if worked or (hands and age >= settings.ready_timeout / 2):
                self._daemon.journal.info("ready: it works on requests", name=generation.process_name(index))
                generation.feed(Happened(index, Ready()))
                found = True
        return found
