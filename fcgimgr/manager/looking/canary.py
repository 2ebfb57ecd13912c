"""While a canary with `ready = "ping"` is out: are its processes still well?

Before it begins each of them has answered a ping. From then on they are pinged every INTERVAL, and one answer that is
no good discards the canary: an error, none at all, or none in time (ready_timeout). There is a timer only while a
canary is out.

A ping reaches whichever process accepts it, so a round has one for each process, and as many more as it takes while
they find new ones. A process that always leaves them to its siblings leaves them the clients too.

A ping may wait behind real requests, in the queue or in the hands of a process that has others; that is no fault of the
code. Where no answer came in time it is therefore looked at what those who have it got on with meanwhile. If they have
finished anything, nothing is said against them. If they have nothing in hand, they are stuck. If all that they have is
as it was, they may be at long requests; these take stopwaitsecs at most, which is what a drain waits for them too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fcgimgr.core.process import Running
from fcgimgr.core.rollout import Failed
from fcgimgr.fastcgi.records import ProtocolError
from fcgimgr.linux.errors import LinuxError
from fcgimgr.manager.looking.asking import OverloadedError
from fcgimgr.manager.looking.in_hand import has_worked, in_hand
from fcgimgr.manager.looking.pinging import Ping, is_pinged

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation

#: Seconds between the end of one round of pings and the next.
INTERVAL: Final = 2.0
AT_ONCE: Final = 8


class Canaries:
    """Looks after each canary from `watch` to `forget`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._tasks: dict[Generation, asyncio.Task[None]] = {}

    def watch(self, generation: Generation) -> None:
        """It gets its share of the connections from now on."""
        if is_pinged(generation.settings) and generation not in self._tasks:
            self._tasks[generation] = self._daemon.loop.create_task(self._look_after(generation))

    def forget(self, generation: Generation) -> None:
        """It has been promoted or discarded."""
        task = self._tasks.pop(generation, None)
        if task is not None:
            task.cancel()

    async def _look_after(self, generation: Generation) -> None:
        while generation in self._tasks:
            await asyncio.sleep(INTERVAL)
            if why := await self._round(generation):
                del self._tasks[generation]  # or it would be cancelled in the midst of telling
                generation.pool.feed(Failed(generation.number, why))

    async def _round(self, generation: Generation) -> str | None:
        """Ping each process that can be reached: why one is no good, or None."""
        unseen = set(ready(generation))
        while unseen:
            pings = [Ping(generation) for _ in range(min(AT_ONCE, len(unseen)))]
            asked = [self._daemon.loop.create_task(self._failure(generation, ping, pings)) for ping in pings]
            try:
                for failure in asyncio.as_completed(asked):
                    if why := await failure:
                        return why
            finally:
                for task in asked:
                    task.cancel()
            found = unseen.intersection(ping.holder for ping in pings)
            if not found:
                break
            unseen -= found
        return None

    async def _failure(self, generation: Generation, ping: Ping, pings: Sequence[Ping]) -> str | None:
        """Send this one of `pings`, and answer with what it says against the canary, if anything."""
        task = self._daemon.loop.create_task(ping.ask(None, children=True))
        try:
            stuck = await self._stuck(generation, task, ping, pings)
            if task.done():
                task.result()
                return None
            return stuck
        except OverloadedError:
            return None
        except ProtocolError as error:
            return None if ping.strayed else f"{who(generation, ping)}: ping: {error}"
        except ConnectionError as error:
            return None if ping.strayed else f"{who(generation, ping)}: ping: {error.strerror}"
        except (OSError, LinuxError) as error:  # no descriptor or no memory left: that says nothing of the canary
            self._daemon.journal.warning(f"ping: {error}", name=generation.name, generation=generation.number)
            return None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _stuck(
        self, generation: Generation, task: asyncio.Task[None], ping: Ping, pings: Sequence[Ping]
    ) -> str | None:
        """Wait until `task` is done, or until it can be told that those who have the ping are stuck, or are not."""
        patience, longest = generation.settings.ready_timeout, generation.settings.stopwaitsecs
        before = await in_hand(generation, ready(generation))
        begun = self._daemon.loop.time()
        while not (await asyncio.wait({task}, timeout=patience))[0]:
            suspects = ready(generation) if ping.holder is None else [ping.holder]
            ours = {one.inode for one in pings if one.inode is not None}
            after = await in_hand(generation, suspects, ours)
            waited = self._daemon.loop.time() - begun
            if ping.strayed or any(has_worked(before.get(pid, {}), after.get(pid, {})) for pid in suspects):
                return None  # it is not their turn yet; the next round has a new one
            if not any(after.values()) or waited >= longest:
                what = "answered" if ping.accepted else "accepted"
                return f"{who(generation, ping)}: a ping was not {what} within {waited:.0f} s"
            patience = longest - waited
        return None


def ready(generation: Generation) -> list[int]:
    """The pids of the processes that are ready."""
    return [state.pid for state in generation.processes_in(Running).values()]


def who(generation: Generation, ping: Ping) -> str:
    """The name of the process that has the ping, or where that is not known, of the pool."""
    for index, state in enumerate(generation.core.processes):
        if ping.holder is not None and state.pid == ping.holder:
            return generation.process_name(index)
    return generation.name
