"""Letting go without losing anything: when is a queue empty, and when has a process nothing in hand?

There is no event for either, so they are looked at, every few milliseconds and only while somebody waits for it.

A process that may die on its stopsignal with a request in hand is looked at while it is held (SIGSTOP): a look at a
process that runs would be out of date before the signal arrives. Held, it can accept nothing, so what it has in hand is
what it has; if that is nothing, the stopsignal is sent before it is let go again, and is the next thing it hears.

Where more wait in the queue than there are processes, one that serves a request at a time goes from connection to
connection, with empty hands for some ten microseconds in between. That moment is found by looking often: whoever is
seen with another connection each time is held and looked at again and again at once. One who keeps the same connection
is not: a long request would only be made longer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fcgimgr.core.generation import Happened, QueueEmpty
from fcgimgr.core.process import Idle, Retiring
from fcgimgr.linux.draining import Connection, Handshake, Watch, handshakes
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.holding import hold, let_go
from fcgimgr.linux.procfs import children
from fcgimgr.linux.sockdiag import established_inodes

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.generation import Generation

# Seconds between two looks, growing from the first to the second.
SHORTEST: Final = 0.002
LONGEST: Final = 0.05
# Looks in a row at a process that goes from connection to connection, and seconds between two rows.
IN_A_ROW: Final = 8
BETWEEN_ROWS: Final = 0.003


class Draining:
    """Looks at the generations that drain or have processes that retire."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._tasks: dict[Generation, asyncio.Task[None]] = {}
        self._watches: dict[Generation, Watch] = {}
        self._handshakes: dict[Generation, set[Handshake]] = {}
        self._in_hand: dict[Generation, dict[int, frozenset[int]]] = {}
        self._hurried: set[Generation] = set()

    def watch(self, generation: Generation) -> None:
        """Something in this generation is to be let go."""
        if generation not in self._tasks:
            self._tasks[generation] = self._daemon.loop.create_task(self._look_again_and_again(generation))

    async def _look_again_and_again(self, generation: Generation) -> None:
        pause = SHORTEST
        try:
            # Only after a turn of the loop: whoever began this is still in the midst of carrying out what core said.
            await asyncio.sleep(0)
            while self._look(generation):
                pause = BETWEEN_ROWS if generation in self._hurried else min(LONGEST, pause * 1.5)
                await asyncio.sleep(pause)
        finally:
            del self._tasks[generation]
            self._watches.pop(generation, None)
            self._handshakes.pop(generation, None)
            self._in_hand.pop(generation, None)
            self._hurried.discard(generation)

    def _look(self, generation: Generation) -> bool:
        """One look at everything; False when there is nothing left to wait for."""
        if generation.core.draining is not None:
            if not self._nothing_can_come(generation):
                return True
            generation.feed(QueueEmpty())
        retiring = [(i, s.pid) for i, s in enumerate(generation.core.processes) if isinstance(s, Retiring)]
        if retiring and generation.listening is not None:
            watch = self._watches.setdefault(generation, Watch(generation.listening.names))
            for index, pid, times in self._worth_holding(generation, watch, retiring):
                for _ in range(times):
                    self._let_go_if_idle(generation, index, pid, watch)
                    if not isinstance(generation.core.processes[index], Retiring):
                        break
        return any(isinstance(state, Retiring) for state in generation.core.processes)

    def _nothing_can_come(self, generation: Generation) -> bool:
        """Whether nothing waits to be accepted, and no handshake that was under way at the switch still is."""
        listening = generation.listening
        if listening is None:
            return True
        shaking = self._handshakes.get(generation)
        if shaking is None:
            shaking = handshakes(listening.names) or set()
        if shaking:
            shaking &= handshakes(listening.names) or set()
        self._handshakes[generation] = shaking
        return not shaking and listening.queue_is_empty()

    def _worth_holding(
        self, generation: Generation, watch: Watch, retiring: list[tuple[int, int]]
    ) -> list[tuple[int, int, int]]:
        """Those worth holding, with how many times: one that is seen at long work without that is not disturbed.

        Of a generation to which nothing can come any more, those without any connection need not be held at all.
        """
        listening = generation.listening
        assert listening is not None
        closed = generation.core.left or listening.refuses
        if closed and established_inodes(listening.names) == set():
            for index, _ in retiring:
                generation.feed(Happened(index, Idle()))
            return []
        seen = watch.look([pid for _, pid in retiring], self._daemon.loop.time())
        if seen is None:
            return [(index, pid, 1) for index, pid in retiring]
        before = self._in_hand.get(generation, {})
        in_hand = {
            pid: frozenset(c.inode for c in held if not c.idle) for pid, held in seen.items() if held is not None
        }
        self._in_hand[generation] = in_hand
        self._hurried.discard(generation)
        worth = []
        for index, pid in retiring:
            if is_idle(seen[pid]):
                worth.append((index, pid, 1))
            elif before.get(pid) and in_hand.get(pid) and before[pid].isdisjoint(in_hand[pid]):
                worth.append((index, pid, IN_A_ROW))
                self._hurried.add(generation)
        return worth

    def _let_go_if_idle(self, generation: Generation, index: int, pid: int, watch: Watch) -> None:
        held: list[int] = []
        try:
            for member in (pid, *descendants(pid)):
                if not hold(member):
                    return
                held.append(member)
            seen = watch.look(held, self._daemon.loop.time())
            if seen is not None and all(is_idle(seen[member]) for member in held):
                generation.feed(Happened(index, Idle()))
        except LinuxError as error:  # another user's process: it can only be waited for
            self._daemon.journal.debug(str(error), name=generation.name)
        finally:
            for member in held:
                let_go(member)


def is_idle(connections: list[Connection] | None) -> bool:
    """Whether a process with these connections has nothing in hand, for certain; unknown is not certain."""
    return connections is not None and all(connection.idle for connection in connections)


def descendants(pid: int) -> list[int]:
    """The processes below this one: php-cgi's and fcgiwrap's accept in its place."""
    found = list(children(pid) or ())
    for one in found:  # which grows meanwhile
        found += children(one) or ()
    return found
