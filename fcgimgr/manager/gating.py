"""Whose gates are closed on a generation's way out (linux/gate.py), and from what they keep whom.

A gate does two things. On a listener that others serve too, it keeps a process from new connections, so that what it
has in hand comes to an end; it must be closed before such a process is told to end, or an event loop accepts one more
connection between the signal and its hearing of it. And it shows what is said on the connections that clients keep
(kept.py), so that each ends with an answer.

While it is closed every system call of the process takes longer, so where neither is certain to be needed it is closed
only GATE_AFTER the first look. Where none can be closed (linux/gate.py says when), that is said once in the log.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from fcgimgr.core.process import Retiring, Running, State, Stopping
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.gate import Gate
from fcgimgr.linux.holding import hold, let_go
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.procfs import children
from fcgimgr.manager.kept import Kept

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.generation import Generation
    from fcgimgr.manager.listening import Listening

#: Seconds for which a process may find a moment of its own accord.
GATE_AFTER: Final = 0.25


class Gating:
    """The gates of one generation."""

    def __init__(self, daemon: Daemon, generation: Generation) -> None:
        self._daemon = daemon
        self._generation = generation
        self._since: dict[int, float] = {}  # by pid, when it was first looked at
        self._gated: dict[int, int] = {}  # whose gate was to be closed, and of which process it is a part
        self._closed: dict[int, float] = {}  # by pid, when the gates of it and of those below it were closed
        self._has_complained = False
        self._held: dict[int, PidFd] = {}  # by pid, those that stand still without a gate

    def __bool__(self) -> bool:
        return bool(self._gated)

    def of(self, member: int) -> Gate | None:
        return self._daemon.gates.of(member)

    def insights(self, members: Iterable[int]) -> dict[int, _Insight]:
        """What is known of those that are behind a gate."""
        gates = {member: self.of(member) for member in members}
        return {
            member: _Insight(gate, gate.observer)
            for member, gate in gates.items()
            if gate is not None and isinstance(gate.observer, Kept)
        }

    def close_due(self, listening: Listening, pids: Iterable[int], *, shared: bool) -> None:
        """Of those that never have empty hands, and of the processes below them."""
        now = self._daemon.loop.time()
        for pid in pids:
            if now - self._since.setdefault(pid, now) >= GATE_AFTER:
                self.close(listening, pid, shared=shared)

    def close(self, listening: Listening, pid: int, *, shared: bool) -> float | None:
        """Of this process and those below it; seconds since that was done, or None: it cannot be."""
        now = self._daemon.loop.time()
        for member in (pid, *descendants(pid)):
            if member not in self._gated:
                self._gated[member] = pid
                if not self._close(listening, member, shared=shared):
                    continue
            if self.of(member) is not None:
                self._closed.setdefault(pid, now)
        return now - self._closed[pid] if pid in self._closed else None

    def _close(self, listening: Listening, member: int, *, shared: bool) -> bool:
        barred = {listener.inode for listener in listening.listeners} if shared else set[int]()
        observer = None
        try:
            # A socket that only its processes have (LostListener) tells nothing: then there is no gate.
            blocking = all(map(os.get_blocking, listening.fds))
            observer = Kept(member, listening.names, self._daemon.loop.time)
            gate = self._daemon.gates.close(member, barred, blocking=blocking, observer=observer)
        except LinuxError as error:
            if observer is not None:
                observer.close()
            self._complain(error)
            return False
        if gate.observer is not observer:  # it was closed already
            observer.close()
        return True

    def _complain(self, error: LinuxError) -> None:
        text = f"{error}; so a connection that its client keeps busy ends at stopwaitsecs only"
        if self._has_complained:
            self._daemon.journal.debug(text, name=self._generation.name)
        else:
            self._daemon.journal.info(text, name=self._generation.name)
        self._has_complained = True

    def hold(self, pid: int, member: int) -> bool:
        """Have a member of the process `pid`, itself or one below it, stand still. False: it could not be made to.

        LinuxError: not permitted.
        """
        gate = self.of(member)
        if gate is not None:
            return gate.hold()
        process = PidFd(member) if member == pid else PidFd.below(member, pid)
        if process is None:
            return False
        with ExitStack() as undo:
            undo.callback(process.close)
            if not hold(process):
                return False
            undo.pop_all()
        self._held[member] = process
        return True

    def let_go(self, member: int, *, ending: bool) -> None:
        gate = self.of(member)
        if (process := self._held.pop(member, None)) is not None:
            with process:
                let_go(process)
        if gate is not None:
            gate.resume(ending=ending)

    def let_in(self) -> None:
        """No others serve the queue in its place any more: the pool is to stop, or the generation has left."""
        for member in self._gated:
            if (gate := self.of(member)) is not None:
                gate.let_in()

    def settle(self, states: Iterable[State], *, draining: bool, at_once: bool) -> None:
        """Open those that are not needed: of one that serves on, whose moment was not one, or that has left children.

        Tell those that end. at_once: none waits for GATE_AFTER.
        """
        by_pid = {state.pid: state for state in states}
        now = self._daemon.loop.time()
        for member, pid in tuple(self._gated.items()):
            match by_pid.get(pid):
                case Retiring() if at_once or now - self._since.setdefault(pid, now) >= GATE_AFTER:
                    continue
                case Running() if draining:
                    continue
                case Stopping() if (gate := self.of(member)) is not None:
                    if isinstance(gate.observer, Kept):
                        gate.observer.is_told = True
                    gate.resume(ending=True)
                    continue
                case _:
                    self._daemon.gates.open(member)
            del self._gated[member]
            self._closed.pop(pid, None)

    def end(self) -> None:
        """Leave no gate closed behind, whatever ends the looks."""
        for member in self._gated:
            self._daemon.gates.open(member)


class _Insight:
    """What a gate and its observer know of a process."""

    def __init__(self, gate: Gate, kept: Kept) -> None:
        self._gate = gate
        self.talk = kept.talk

    @property
    def computes(self) -> bool:
        return self._gate.computes


def descendants(pid: int) -> list[int]:
    """The processes below this one: php-cgi's and fcgiwrap's accept in its place."""
    found = list(children(pid) or ())
    for one in found:  # which grows meanwhile
        found += children(one) or ()
    return found
