"""Letting go without losing anything: when is a queue empty, and when has a process nothing in hand?

There is no event for either, so they are looked at, every few milliseconds and only while somebody waits for it.

A process that may die on its stopsignal with a request in hand is looked at while it is held (SIGSTOP): a look at a
process that runs would be out of date before the signal arrives. Held, it can accept nothing, so what it has in hand is
what it has; if that is nothing, the stopsignal is sent before it is let go again, and is the next thing it hears.

A connection that its client keeps between requests brings new ones as long as it is open, and several are hardly ever
idle together. So each that is seen idle while others are not is hung up; its client makes a new one, to those that
serve. One that is hardly ever seen idle is hung up as its process has sent the end of an answer (FastCGI), which is
seen through its gate (linux/gate.py).

On a listener that others serve too a process may find new work again and again, and one of several threads may find it
between the signal and the end. There its gate is closed: at once if that moment has come and it has several threads;
and for as long as it takes if it does not come, so that what it has in hand comes to an end with nothing new.

Either is done only GATE_AFTER the first look, for every system call of the process takes longer from then on.

Where no gate can be closed, the moment is found by looking often: one that serves a request at a time has empty hands
for some ten microseconds between two. Whoever is seen with another connection each time is held and looked at again
and again at once. One who keeps the same connection is not: a long request would only be made longer.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from fcgimgr.config.settings import PoolSettings, ProcessSettings
from fcgimgr.core.generation import Happened, QueueEmpty
from fcgimgr.core.process import Idle, Retiring, Running, Stopping
from fcgimgr.fastcgi.records import ends_request, ends_stdin
from fcgimgr.linux.draining import Connection, Handshake, Watch, handshakes, hang_up
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.gate import Gate
from fcgimgr.linux.holding import hold, let_go
from fcgimgr.linux.procfs import children, threads
from fcgimgr.linux.sockdiag import established_inodes

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.generation import Generation
    from fcgimgr.manager.listening import Listening

# Seconds between two looks, growing from the first to the second.
SHORTEST: Final = 0.002
LONGEST: Final = 0.05
# Looks in a row at a process that goes from connection to connection, and seconds between two rows.
IN_A_ROW: Final = 8
BETWEEN_ROWS: Final = 0.003
# Seconds for which a process may find a moment of its own accord.
GATE_AFTER: Final = 0.25


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
        self._watch: Watch | None = None
        self._handshakes: set[Handshake] | None = None
        self._in_hand: dict[int, frozenset[int]] = {}  # by pid, the connections that were in use at the last look
        self._since: dict[int, float] = {}  # by pid, when it was first looked at
        self._gated: dict[int, int] = {}  # whose gate was to be closed, and of which process it is a part

    def look(self) -> bool:
        """One look at everything; False when there is nothing left to wait for."""
        generation = self._generation
        if generation.listening is not None and not self._is_shared(generation.listening):
            self._let_in()
        if generation.core.draining is not None:
            if not self._nothing_can_come():
                if generation.listening is not None and not drains_itself(generation.settings):
                    self._hang_up_idle_ones(generation.listening)
                self._settle_gates()
                return True
            generation.feed(QueueEmpty())
        retiring = [(i, s.pid) for i, s in enumerate(generation.core.processes) if isinstance(s, Retiring)]
        listening = generation.listening
        if retiring and listening is not None:
            watch = self._watch_of(listening)
            self._close_gates_due(listening, [pid for _, pid in retiring])
            for index, pid, times in self._worth_holding(listening, watch, retiring):
                for _ in range(times):
                    self._let_go_if_idle(listening, index, pid, watch)
                    if not isinstance(generation.core.processes[index], Retiring):
                        break
        self._settle_gates()
        return bool(self._gated) or any(isinstance(state, Retiring) for state in generation.core.processes)

    def end(self) -> None:
        """Leave no gate closed behind, whatever ends the looks."""
        for member in self._gated:
            self._daemon.gates.open(member)

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

    def _is_shared(self, listening: Listening) -> bool:
        """Whether new connections still come, for the processes that do not retire."""
        return not (self._generation.core.left or listening.refuses)

    def _worth_holding(
        self, listening: Listening, watch: Watch, retiring: list[tuple[int, int]]
    ) -> list[tuple[int, int, int]]:
        """Those worth holding, with how many times: one that is seen at long work without that is not disturbed.

        Of a generation to which nothing can come any more, those without any connection need not be held at all.
        """
        if not self._is_shared(listening) and established_inodes(listening.names) == set():
            for index, _ in retiring:
                self._generation.feed(Happened(index, Idle()))
            return []
        members = {pid: (pid, *descendants(pid)) for _, pid in retiring}
        seen = watch.look([member for each in members.values() for member in each], self._daemon.loop.time())
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
            for member in (pid, *descendants(pid)):
                if self._is_shared(listening) and threads(member) > 1:
                    self._close_gate(listening, member, pid)
                if not self._hold(member):
                    return
                held.append(member)
            seen = watch.look(held, self._daemon.loop.time(), held=True)
            idle = seen is not None and all(is_idle(seen[member]) for member in held)
            if idle:
                self._generation.feed(Happened(index, Idle()))
            elif seen is not None and self._can_hang_up(listening, pid):
                for member in held:
                    for connection in idle_ones(seen[member]):
                        hang_up(member, connection.fd, listening.names)
        except LinuxError as error:  # another user's process: it can only be waited for
            self._daemon.journal.debug(str(error), name=self._generation.name)
        finally:
            for member in held:
                self._let_go(member, ending=idle)

    def _hang_up_idle_ones(self, listening: Listening) -> None:
        """Kept connections must not keep those from being served that wait in the queue."""
        pids = [state.pid for state in self._generation.core.processes if state.pid is not None]
        self._close_gates_due(listening, pids)
        watch = self._watch_of(listening)
        members = [member for pid in pids for member in (pid, *descendants(pid))]
        seen = watch.look(members, self._daemon.loop.time()) or {}
        for pid in members:
            if idle_ones(seen.get(pid)):
                try:
                    self._hang_up_held(listening, pid, watch)
                except LinuxError as error:
                    self._daemon.journal.debug(str(error), name=self._generation.name)

    def _hang_up_held(self, listening: Listening, pid: int, watch: Watch) -> None:
        if self._hold(pid):
            try:
                seen = watch.look([pid], self._daemon.loop.time(), held=True) or {}
                for connection in idle_ones(seen.get(pid)):
                    hang_up(pid, connection.fd, listening.names)
            finally:
                self._let_go(pid, ending=False)

    def _hang_up_if_answered(self, pid: int, fd: int, sent: bytes) -> None:
        """A process that stands still at this moment has just sent this."""
        listening = self._generation.listening
        if listening is not None and ends_request(sent):
            try:
                hang_up(pid, fd, listening.names, may_wait=ends_stdin)
            except LinuxError as error:
                self._daemon.journal.debug(str(error), name=self._generation.name)

    def _watch_of(self, listening: Listening) -> Watch:
        if self._watch is None:
            self._watch = Watch(listening.names)
        return self._watch

    def _can_hang_up(self, listening: Listening, pid: int) -> bool:
        """Whether who is hung up on is sure to come to another process."""
        return not self._is_shared(listening) or self._gate(pid) is not None

    def _hold(self, pid: int) -> bool:
        gate = self._gate(pid)
        return hold(pid) if gate is None else gate.hold()

    def _let_go(self, pid: int, *, ending: bool) -> None:
        gate = self._gate(pid)
        if gate is None:
            let_go(pid)
        else:
            gate.resume(ending=ending)

    # Gates

    def _gate(self, pid: int) -> Gate | None:
        return self._daemon.gates.of(pid)

    def _close_gates_due(self, listening: Listening, pids: list[int]) -> None:
        """Of those that never have empty hands, and of the processes below them."""
        now = self._daemon.loop.time()
        for pid in pids:
            if now - self._since.setdefault(pid, now) >= GATE_AFTER:
                for member in (pid, *descendants(pid)):
                    self._close_gate(listening, member, pid)

    def _close_gate(self, listening: Listening, member: int, pid: int) -> None:
        if member in self._gated:
            return
        self._gated[member] = pid
        barred = {listener.inode for listener in listening.listeners} if self._is_shared(listening) else set[int]()
        blocking = all(map(os.get_blocking, listening.fds))
        try:
            self._daemon.gates.close(member, barred, blocking=blocking, sent=self._hang_up_if_answered)
        except LinuxError as error:
            self._daemon.journal.debug(str(error), name=self._generation.name)

    def _let_in(self) -> None:
        """No others serve the queue in its place any more: the pool is to stop, or the generation has left."""
        for member in self._gated:
            if (gate := self._gate(member)) is not None:
                gate.let_in()

    def _settle_gates(self) -> None:
        """Open those that are not needed: of one that serves on, whose moment was not one, or that has left children.

        Tell those that end.
        """
        states = {state.pid: state for state in self._generation.core.processes}
        now = self._daemon.loop.time()
        for member, pid in tuple(self._gated.items()):
            match states.get(pid):
                case Retiring() if now - self._since[pid] >= GATE_AFTER:
                    continue
                case Running() if self._generation.core.draining is not None:
                    continue
                case Stopping() if (gate := self._gate(member)) is not None:
                    gate.resume(ending=True)
                    continue
                case _:
                    self._daemon.gates.open(member)
            del self._gated[member]


def is_idle(connections: list[Connection] | None) -> bool:
    """Whether a process with these connections has nothing in hand, for certain; unknown is not certain."""
    return connections is not None and all(connection.idle for connection in connections)


def drains_itself(settings: ProcessSettings) -> bool:
    """Whether its processes are ours, which let go of kept connections by themselves."""
    return isinstance(settings, PoolSettings) and settings.wsgi is not None


def idle_ones(connections: list[Connection] | None) -> list[Connection]:
    """Those of a process's connections that are kept between two requests."""
    return [connection for connection in connections or () if connection.idle]


def descendants(pid: int) -> list[int]:
    """The processes below this one: php-cgi's and fcgiwrap's accept in its place."""
    found = list(children(pid) or ())
    for one in found:  # which grows meanwhile
        found += children(one) or ()
    return found
