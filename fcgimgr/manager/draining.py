"""Letting go without losing anything: when is a queue empty, and when has a process nothing in hand?

There is no event for either, so they are looked at, every few milliseconds and only while somebody waits for it.

A process that may die on its stopsignal with a request in hand (`drain = "watch"`) is looked at while it is held
(SIGSTOP): a look at a process that runs would be out of date before the signal arrives. Held, it can accept nothing,
so what it has in hand is what it has; if that is nothing, the stopsignal is sent before it is let go again, and is the
next thing it hears. On a listener that others serve too its gate is closed before that (gating.py).

A connection that its client keeps between requests brings new ones as long as it is open. So each that is seen idle is
hung up; its client makes a new one, to those that serve. A busy one is seen, through the gate, to be answered, and ends
with that answer (kept.py).

On a shared listener a process may find new work again and again. There its gate stays closed if no moment has come by
itself within GATE_AFTER, so that what it has in hand comes to an end with nothing new.

Where no gate can be closed, the moment is found by looking often: one that serves a request at a time has empty hands
for some ten microseconds between two. Whoever is seen with another connection each time is held and looked at again
and again at once. One who keeps the same connection is not: a long request would only be made longer.

A process that ends well by itself (`drain = "self"`) is told as soon as none of its connections is to be waited for. On
the signal it closes those that it thinks idle, at a moment when a client may be about to send on one; and it closes
those that are no HTTP (any more), WebSockets. Behind its gate each that is used ends with its next answer; so what is
left after COLD is a request that takes longer, which it finishes, and what has been silent for a while or talks on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fcgimgr.config.settings import PoolSettings, ProcessSettings
from fcgimgr.core.generation import Happened, QueueEmpty
from fcgimgr.core.process import Idle, Retiring
from fcgimgr.linux.draining import Connection, Handshake, Watch, handshakes
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.idle import COLD, QUIET
from fcgimgr.linux.parting import hang_up
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.sockdiag import established_inodes
from fcgimgr.manager.gating import Gating, descendants

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.generation import Generation
    from fcgimgr.manager.listening import Listening

# Seconds between two looks, growing from the first to the second.
SHORTEST: Final = 0.002
LONGEST: Final = 0.05
# Seconds after which a queue that is still not empty is passed on (passing.py).
LATE: Final = 0.5
# Looks in a row at a process that goes from connection to connection, and seconds between two rows.
IN_A_ROW: Final = 8
BETWEEN_ROWS: Final = 0.003


class Draining:
    """Looks at the generations that drain or have processes that retire."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._tasks: dict[Generation, asyncio.Task[None]] = {}

    def watch(self, generation: Generation) -> None:
        """Something in this generation is to be let go."""
        if generation not in self._tasks:
            self._tasks[generation] = self._daemon.loop.create_task(self._look_again_and_again(generation))

    async def _look_again_and_again(self, generation: Generation) -> None:
        pause = SHORTEST
        looks = Looks(self._daemon, generation)
        try:
            # Only after a turn of the loop: whoever began this is still in the midst of carrying out what core said.
            await asyncio.sleep(0)
            while looks.look():
                pause = BETWEEN_ROWS if looks.hurried else min(LONGEST, pause * 1.5)
                await asyncio.sleep(pause)
        finally:
            del self._tasks[generation]
            looks.end()


class Looks:
    """The looks at one generation, from the first to the last."""

    def __init__(self, daemon: Daemon, generation: Generation) -> None:
        self.hurried = False  # the next look is wanted sooner
        self._daemon = daemon
        self._generation = generation
        self._gating = Gating(daemon, generation)
        self._watch: Watch | None = None
        self._handshakes: set[Handshake] | None = None
        self._in_hand: dict[int, frozenset[int]] = {}  # by pid, the connections that were in use at the last look

    def look(self) -> bool:
        """One look at everything; False when there is nothing left to wait for."""
        generation = self._generation
        if generation.listening is not None and not self._is_shared(generation.listening):
            self._gating.let_in()
        if generation.core.draining is not None:
            if not self._nothing_can_come():
                self._pass_on_if_late(generation.core.draining)
                if generation.listening is not None and not is_ours(generation.settings):
                    self._hang_up_idle_ones(generation.listening)
                self._settle_gates()
                return True
            generation.feed(QueueEmpty())
        retiring = [(i, s.pid) for i, s in enumerate(generation.core.processes) if isinstance(s, Retiring)]
        listening = generation.listening
        if retiring and listening is not None:
            watch = self._watch_of(listening)
            if drains_itself(generation.settings):
                self._tell_those_that_may_end(listening, watch, retiring)
            else:
                self._find_moments(listening, watch, retiring)
        self._settle_gates()
        return bool(self._gating) or any(isinstance(state, Retiring) for state in generation.core.processes)

    def end(self) -> None:
        """Leave no gate closed behind, whatever ends the looks."""
        self._gating.end()

    def _nothing_can_come(self) -> bool:
        """Whether nothing waits to be accepted, and no handshake that was under way at the switch still is."""
        listening = self._generation.listening
        if listening is None:
            return True
        if self._handshakes is None:
            self._handshakes = handshakes(listening.names) or set()
        if self._handshakes:
            self._handshakes &= handshakes(listening.names) or set()
        return not self._handshakes and listening.queue_is_empty()

    def _pass_on_if_late(self, due: float) -> None:
        """Where they do not come to their queue, those that serve now shall; due: when they have to end."""
        generation, within = self._generation, self._generation.settings.stopwaitsecs
        if generation.core.left and self._daemon.loop.time() >= due - within + min(LATE, within / 2):
            generation.pool.pass_on(generation.number)

    def _is_shared(self, listening: Listening) -> bool:
        """Whether new connections still come, for the processes that do not retire."""
        return not (self._generation.core.left or listening.refuses)

    def _nobody_is_connected(self, listening: Listening) -> bool:
        """Whether those without any connection need not be held at all, since nothing can come to them any more."""
        return not self._is_shared(listening) and established_inodes(listening.names) == set()

    # Those that are told

    def _tell_those_that_may_end(self, listening: Listening, watch: Watch, retiring: list[tuple[int, int]]) -> None:
        unconnected = self._nobody_is_connected(listening)
        for index, pid in retiring:
            if unconnected or self._is_to_be_told(listening, watch, pid):
                self._generation.feed(Happened(index, Idle()))

    def _is_to_be_told(self, listening: Listening, watch: Watch, pid: int) -> bool:
        """Whether none of its connections is to be waited for."""
        closed_for = self._gating.close(listening, pid, shared=self._is_shared(listening))
        if closed_for is None:
            return True  # there is nothing that can be done
        if closed_for < COLD:
            return False
        seen = self._look(watch, (pid, *descendants(pid))) or {}
        connections = [connection for held in seen.values() for connection in held or ()]
        return not any(is_to_be_waited_for(connection, closed_for, self._quiet) for connection in connections)

    # Those that are held

    def _find_moments(self, listening: Listening, watch: Watch, retiring: list[tuple[int, int]]) -> None:
        self._gating.close_due(listening, [pid for _, pid in retiring], shared=self._is_shared(listening))
        for index, pid, times in self._worth_holding(listening, watch, retiring):
            for _ in range(times):
                self._let_go_if_idle(listening, index, pid, watch)
                if not isinstance(self._generation.core.processes[index], Retiring):
                    break

    def _worth_holding(
        self, listening: Listening, watch: Watch, retiring: list[tuple[int, int]]
    ) -> list[tuple[int, int, int]]:
        """Those worth holding, with how many times: one that is seen at long work without that is not disturbed."""
        if self._nobody_is_connected(listening):
            for index, _ in retiring:
                self._generation.feed(Happened(index, Idle()))
            return []
        members = {pid: (pid, *descendants(pid)) for _, pid in retiring}
        seen = self._look(watch, [member for each in members.values() for member in each])
        if seen is None:
            return [(index, pid, 1) for index, pid in retiring]
        before = self._in_hand
        self._in_hand = {
            pid: frozenset(one.inode for member in each for one in seen[member] or () if not one.idle)
            for pid, each in members.items()
        }
        self.hurried = False
        worth = []
        for index, pid in retiring:
            if all(is_idle(seen[member]) for member in members[pid]) or (
                self._can_hang_up(listening, pid) and any(idle_ones(seen[member]) for member in members[pid])
            ):
                worth.append((index, pid, 1))
            elif before.get(pid) and self._in_hand[pid] and before[pid].isdisjoint(self._in_hand[pid]):
                worth.append((index, pid, IN_A_ROW))
                self.hurried = True
        return worth

    def _let_go_if_idle(self, listening: Listening, index: int, pid: int, watch: Watch) -> None:
        held: list[int] = []
        idle = False
        try:
            if self._is_shared(listening):
                self._gating.close(listening, pid, shared=True)
            for member in (pid, *descendants(pid)):
                if not self._gating.hold(pid, member):
                    return
                held.append(member)
            seen = self._look(watch, held, held=True)
            idle = seen is not None and all(is_idle(seen[member]) for member in held)
            if idle:
                self._generation.feed(Happened(index, Idle()))
            elif seen is not None and self._can_hang_up(listening, pid):
                for member in held:
                    self._hang_up(member, idle_ones(seen[member]), listening)
        except LinuxError as error:  # another user's process: it can only be waited for
            self._daemon.journal.debug(str(error), name=self._generation.name)
        finally:
            for member in held:
                self._gating.let_go(member, ending=idle)

    def _hang_up_idle_ones(self, listening: Listening) -> None:
        """Kept connections must not keep those from being served that wait in the queue."""
        processes = enumerate(self._generation.core.processes)
        pids = [s.pid for i, s in processes if s.pid is not None and self._generation.is_there(i, s.pid)]
        self._gating.close_due(listening, pids, shared=self._is_shared(listening))
        watch = self._watch_of(listening)
        leaders = {member: pid for pid in pids for member in (pid, *descendants(pid))}
        seen = self._look(watch, list(leaders)) or {}
        for member, connections in seen.items():
            if idle_ones(connections):
                try:
                    self._hang_up_held(listening, leaders[member], member, watch)
                except LinuxError as error:
                    self._daemon.journal.debug(str(error), name=self._generation.name)

    def _hang_up_held(self, listening: Listening, pid: int, member: int, watch: Watch) -> None:
        if self._gating.hold(pid, member):
            try:
                seen = self._look(watch, [member], held=True) or {}
                self._hang_up(member, idle_ones(seen.get(member)), listening)
            finally:
                self._gating.let_go(member, ending=False)

    def _hang_up(self, member: int, connections: list[Connection], listening: Listening) -> None:
        if connections:
            with PidFd(member) as process:  # which is held, and cannot have ended
                for connection in connections:
                    hang_up(process, connection.fd, listening.names)

    def _look(
        self, watch: Watch, members: Sequence[int], *, held: bool = False
    ) -> dict[int, list[Connection] | None] | None:
        insights = self._gating.insights(members)
        return watch.look(members, self._daemon.loop.time(), held=held, insights=insights)

    def _watch_of(self, listening: Listening) -> Watch:
        if self._watch is None:
            self._watch = Watch(listening.names, quiet=self._quiet)
        return self._watch

    @property
    def _quiet(self) -> float:
        return min(QUIET, self._generation.settings.stopwaitsecs / 2)

    def _can_hang_up(self, listening: Listening, pid: int) -> bool:
        """Whether who is hung up on is sure to come to another process."""
        return not self._is_shared(listening) or self._gating.of(pid) is not None

    def _settle_gates(self) -> None:
        core, at_once = self._generation.core, drains_itself(self._generation.settings)
        self._gating.settle(core.processes, draining=core.draining is not None, at_once=at_once)


def is_idle(connections: list[Connection] | None) -> bool:
    """Whether a process with these connections has nothing in hand, for certain; unknown is not certain."""
    return connections is not None and all(connection.idle for connection in connections)


def is_to_be_waited_for(connection: Connection, seen_for: float, quiet: float) -> bool:
    """Whether a process that drains itself is not to be told yet. seen_for: seconds for which it is behind its gate.

    A request that was seen to begin is not waited for: the process finishes it.
    """
    if connection.idle:
        return False
    silent = seen_for if connection.silent is None else connection.silent
    talk = connection.talk
    if talk is None or talk.in_use is None:
        return silent < quiet
    return talk.is_upgraded or (not talk.in_use and silent < COLD)


def is_ours(settings: ProcessSettings) -> bool:
    """Whether its processes are our own workers, which let go of kept connections by themselves."""
    return isinstance(settings, PoolSettings) and settings.wsgi is not None


def drains_itself(settings: ProcessSettings) -> bool:
    """Whether its processes finish what they have in hand when they are told to end."""
    return isinstance(settings, PoolSettings) and settings.drain == "self"


def idle_ones(connections: list[Connection] | None) -> list[Connection]:
    """Those of a process's connections that are kept between two requests."""
    return [connection for connection in connections or () if connection.idle]
