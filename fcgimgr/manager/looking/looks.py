"""When has a process nothing in hand, so that it may be told to end? The looks at one generation, done by a helper.

A process that may die on its stopsignal with a request in hand (`drain = "watch"`) is looked at while it is held
(SIGSTOP): a look at a process that runs would be out of date before the signal arrives. Held, it can accept nothing,
so what it has in hand is what it has; if that is nothing, the manager is told, who sends the stopsignal before it is
let go again, and it is the next thing it hears. On a listener that others serve too its gate is closed before that
(gating.py).

A connection that its client keeps between requests brings new ones as long as it is open. So each that is seen idle is
hung up, and before the process is told, which may take its time to end (a master that has to end its children); its
client makes a new one, to those that serve. A busy one is seen, through the gate, to be answered, and ends
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

One at which a look did not end is not looked at again: it is busy, or, if it ends well by itself, it is told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from fcgimgr.core.process import Retiring
from fcgimgr.linux.draining import Connection, Handshake, Watch, handshakes
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.idle import COLD
from fcgimgr.linux.parting import hang_up
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.procfs import descendants
from fcgimgr.linux.sockdiag import SocketName, established_inodes
from fcgimgr.manager.ground.helping import Ground, Tell
from fcgimgr.manager.looking.gating import Gating

RETIRING: Final = Retiring.__name__
# So many that have nothing in hand are told of at a time: the manager has other work, too.
TOGETHER: Final = 20
# Looks in a row at a process that goes from connection to connection.
IN_A_ROW: Final = 8


class View(NamedTuple):
    """What the manager knows of a generation.

    draining: whether its queue is to become empty. shared: whether new connections still come, for the processes that
    do not retire. names, inodes: of its listeners; none, when they are closed. blocking: whether accept() on them
    waits; None: that is not known. quiet: seconds, as in linux/idle.py. processes: the class and the pid of each state.
    """

    draining: bool
    shared: bool
    names: tuple[SocketName, ...]
    inodes: tuple[int, ...]
    blocking: bool | None
    is_ours: bool
    drains_itself: bool
    quiet: float
    processes: tuple[tuple[str, int | None], ...]

    @property
    def retiring(self) -> list[tuple[int, int]]:
        return [(i, pid) for i, (kind, pid) in enumerate(self.processes) if kind == RETIRING and pid is not None]


class Looks:
    """The looks at one generation, from the first to the last.

    It is asked with a `View`, and answers (whether there is anything left to wait for, whether the next look is wanted
    sooner, seconds that this one took). It tells (what, …): "queue" when nothing can come but what is in the queue
    already, "idle" and the (index, pid) of those that have nothing in hand, "say" what is to be logged, "view" for
    nothing but this: each time it is given a new view, which is of all processes.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._gating = Gating(ground, self._say, self._is_there)
        self._watch: Watch | None = None
        self._handshakes: set[Handshake] | None = None
        self._in_hand: dict[int, frozenset[int]] = {}  # by pid, the connections that were in use at the last look
        self._hurried = False
        self._tell: Tell

    def answer(self, request: Any, tell: Tell) -> tuple[bool, bool, float]:
        """One look at everything."""
        begun = time.monotonic()
        self._view, self._tell, self._hurried = View(*request), tell, False
        go_on = self._look()
        return go_on, self._hurried, time.monotonic() - begun

    def end(self) -> None:
        """Leave no gate closed behind, whatever ends the looks."""
        self._gating.end()

    def _let_know(self, what: str, *more: str | tuple[int, int]) -> None:
        self._view = View(*self._tell((what, *more)))

    def _say(self, level: str, text: str) -> None:
        self._let_know("say", level, text)

    def _is_there(self, pid: int) -> bool:
        self._let_know("view")
        return any(pid == one for _, one in self._view.processes)

    def _look(self) -> bool:
        if self._view.names and not self._view.shared:
            self._gating.let_in()
        if self._view.draining:
            if not self._is_handshaking():
                self._let_know("queue")
            if self._view.draining:
                if self._view.names and not self._view.is_ours:
                    self._hang_up_idle_ones()
                self._settle_gates()
                return True
        if self._view.retiring and self._view.names:
            if self._view.drains_itself:
                self._tell_those_that_may_end()
            else:
                self._find_moments()
        self._settle_gates()
        return bool(self._gating) or bool(self._view.retiring)

    def _is_handshaking(self) -> bool:
        """Whether a handshake that was under way at the switch still is."""
        if self._handshakes is None:
            self._handshakes = handshakes(self._view.names) or set()
        if self._handshakes:
            self._handshakes &= handshakes(self._view.names) or set()
        return bool(self._handshakes)

    def _nobody_is_connected(self) -> bool:
        """Whether those without any connection need not be held at all, since nothing can come to them any more."""
        return not self._view.shared and established_inodes(self._view.names) == set()

    def _let_all_go(self) -> None:
        retiring = self._view.retiring
        for begin in range(0, len(retiring), TOGETHER):
            self._let_know("idle", *retiring[begin : begin + TOGETHER])

    def _family(self, pid: int) -> tuple[int, ...]:
        """The process and those below it."""
        self._ground.at(pid)
        return (pid, *descendants(pid))

    def _is_given_up(self, family: Sequence[int]) -> bool:
        return not set(self._ground.given_up).isdisjoint(family)

    # Those that are told

    def _tell_those_that_may_end(self) -> None:
        if self._nobody_is_connected():
            self._let_all_go()
            return
        for index, pid in self._view.retiring:
            if self._is_to_be_told(pid):
                self._let_know("idle", (index, pid))

    def _is_to_be_told(self, pid: int) -> bool:
        """Whether none of its connections is to be waited for."""
        family = self._family(pid)
        closed_for = None if self._is_given_up(family) else self._gating.close(self._view, pid, family)
        if closed_for is None:
            return True  # there is nothing that can be done
        if closed_for < COLD:
            return False
        seen = self._look_at(self._family(pid)) or {}
        connections = [connection for held in seen.values() for connection in held or ()]
        return not any(is_to_be_waited_for(connection, closed_for, self._view.quiet) for connection in connections)

    # Those that are held

    def _find_moments(self) -> None:
        if self._nobody_is_connected():
            self._let_all_go()
            return
        for index, pid, times in self._worth_holding():
            for _ in range(times):
                self._let_go_if_idle(index, pid)
                if (index, pid) not in self._view.retiring:
                    break

    def _worth_holding(self) -> list[tuple[int, int, int]]:
        """Those worth holding, with how many times: one that is seen at long work without that is not disturbed."""
        families = self._families([pid for _, pid in self._view.retiring])
        retiring = [(index, pid) for index, pid in self._view.retiring if pid in families]
        seen = self._look_at([member for family in families.values() for member in family])
        if seen is None:
            return [(index, pid, 1) for index, pid in retiring]
        before = self._in_hand
        self._in_hand = {
            pid: frozenset(one.inode for member in family for one in seen[member] or () if not one.idle)
            for pid, family in families.items()
        }
        worth = []
        for index, pid in retiring:
            if all(is_idle(seen[member]) for member in families[pid]) or (
                self._can_hang_up(pid) and any(idle_ones(seen[member]) for member in families[pid])
            ):
                worth.append((index, pid, 1))
            elif before.get(pid) and self._in_hand[pid] and before[pid].isdisjoint(self._in_hand[pid]):
                worth.append((index, pid, IN_A_ROW))
                self._hurried = True
        return worth

    def _families(self, pids: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Those that may be looked at, with those below them; the gates are closed of which it is time."""
        families = {pid: self._family(pid) for pid in pids}
        families = {pid: family for pid, family in families.items() if not self._is_given_up(family)}
        self._gating.close_due(self._view, families)
        return families

    def _let_go_if_idle(self, index: int, pid: int) -> None:
        held: list[int] = []
        idle = False
        try:
            if self._view.shared:
                self._gating.close(self._view, pid, self._family(pid))
            for member in self._family(pid):
                if not self._gating.hold(pid, member):
                    return
                held.append(member)
            seen = self._look_at(held, held=True)
            silent = seen is not None and all(is_idle(seen[member]) for member in held)
            if seen is not None and self._can_hang_up(pid):
                # Of one that is to be told, too: it may take its time to end, and its clients count on it until then.
                for member in held:
                    silent &= self._hang_up(member, idle_ones(seen[member]))
            if silent:
                self._let_know("idle", (index, pid))
                idle = True
        except LinuxError as error:  # another user's process: it can only be waited for
            self._say("debug", str(error))
        finally:
            for member in held:
                self._gating.let_go(member, ending=idle)

    def _hang_up_idle_ones(self) -> None:
        """Kept connections must not keep those from being served that wait in the queue."""
        families = self._families([pid for _, pid in self._view.processes if pid is not None])
        leaders = {member: pid for pid, family in families.items() for member in family}
        seen = self._look_at(list(leaders)) or {}
        for member, connections in seen.items():
            if idle_ones(connections):
                try:
                    self._hang_up_held(leaders[member], member)
                except LinuxError as error:
                    self._say("debug", str(error))

    def _hang_up_held(self, pid: int, member: int) -> None:
        if self._gating.hold(pid, member):
            try:
                seen = self._look_at([member], held=True) or {}
                self._hang_up(member, idle_ones(seen.get(member)))
            finally:
                self._gating.let_go(member, ending=False)

    def _hang_up(self, member: int, connections: list[Connection]) -> bool:
        """False: at one of them something has come meanwhile, and it is left as it is."""
        silent = True
        if connections:
            self._ground.at(member)
            try:
                with PidFd(member) as process:
                    for connection in connections:
                        silent &= hang_up(process, connection.fd, self._view.names)
            except LinuxError as error:  # it is not permitted; or it has died
                self._say("debug", str(error))
        return silent

    def _look_at(self, members: Sequence[int], *, held: bool = False) -> dict[int, list[Connection] | None] | None:
        if self._watch is None:
            self._watch = Watch(self._view.names, quiet=self._view.quiet, at=self._ground.at)
        insights = self._gating.insights(members)
        return self._watch.look(members, time.monotonic(), held=held, insights=insights)

    def _can_hang_up(self, pid: int) -> bool:
        """Whether who is hung up on is sure to come to another process."""
        return not self._view.shared or self._gating.of(pid) is not None

    def _settle_gates(self) -> None:
        self._gating.settle(self._view.processes, draining=self._view.draining, at_once=self._view.drains_itself)


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


def idle_ones(connections: list[Connection] | None) -> list[Connection]:
    """Those of a process's connections that are kept between two requests."""
    return [connection for connection in connections or () if connection.idle]
