"""Whose gates are closed on a generation's way out (linux/gate.py), and from what they keep whom.

A gate does two things. On a listener that others serve too, it keeps a process from new connections, so that what it
has in hand comes to an end; it must be closed before such a process is told to end, or an event loop accepts one more
connection between the signal and its hearing of it. And it shows what is said on the connections that clients keep
(kept.py), so that each ends with an answer.

While it is closed every system call of the process takes longer, so where neither is certain to be needed it is closed
only GATE_AFTER the first look. Where none can be closed (linux/gate.py says when), that is said once in the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from fcgimgr.core.process import Retiring, Running, Stopping
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.gate import Gate
from fcgimgr.linux.holding import hold, let_go
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.manager.looking.kept import Kept

if TYPE_CHECKING:
    from fcgimgr.manager.ground.helping import Ground
    from fcgimgr.manager.looking.looks import View

#: Seconds for which a process may find a moment of its own accord.
GATE_AFTER: Final = 0.25
#: Seconds for which one that could not be held (a thread of it may be in vfork(2)) is left alone, growing from the
#: first to the second.
UNHELD: Final = 0.02
UNHELD_LONGEST: Final = 0.5


class Gating:
    """The gates of one generation."""

    def __init__(self, ground: Ground, say: Callable[[str, str], None], is_there: Callable[[int], bool]) -> None:
        """say: is told at what level what is to be logged. is_there: whether the process with this pid is still one of
        the generation, at the moment of the call."""
        self._ground = ground
        self._gates = ground.gates
        self._say = say
        self._is_there = is_there
        self._since: dict[int, float] = {}  # by pid, when it was first looked at
        self._gated: dict[int, int] = {}  # whose gate was to be closed, and of which process it is a part
        self._closed: dict[int, float] = {}  # by pid, when the gates of it and of those below it were closed
        self._unheld: dict[int, tuple[float, float]] = {}  # by pid, until when it is left alone, and for how long
        self._has_complained = False
        self._leaders: dict[int, PidFd] = {}  # the processes themselves, by pid
        self._held: dict[int, PidFd] = {}  # by pid, those that stand still without a gate

    def __bool__(self) -> bool:
        return bool(self._gated)

    def of(self, member: int) -> Gate | None:
        return self._gates.of(member)

    def insights(self, members: Iterable[int]) -> dict[int, _Insight]:
        """What is known of those that are behind a gate."""
        gates = {member: self.of(member) for member in members}
        return {
            member: _Insight(gate, gate.observer)
            for member, gate in gates.items()
            if gate is not None and isinstance(gate.observer, Kept)
        }

    def close_due(self, view: View, families: Mapping[int, Iterable[int]]) -> None:
        """Of those that never have empty hands, and of the processes below them."""
        now = time.monotonic()
        for pid, family in families.items():
            if now - self._since.setdefault(pid, now) >= GATE_AFTER:
                self.close(view, pid, family)

    def close(self, view: View, pid: int, family: Iterable[int]) -> float | None:
        """Of this process and those below it; seconds since that was done, or None: it cannot be."""
        now = time.monotonic()
        for member in family:
            if member not in self._gated:
                self._gated[member] = pid
                if not self._close(view, member):
                    continue
            if self.of(member) is not None:
                self._closed.setdefault(pid, now)
        return now - self._closed[pid] if pid in self._closed else None

    def _close(self, view: View, member: int) -> bool:
        self._ground.at(member)
        observer = None
        try:
            if view.blocking is None:
                raise LinuxError("the pool's socket could not be taken back: it does not tell how one accepts from it")
            barred = view.inodes if view.shared else ()
            observer = Kept(member, view.names, view.inodes, time.monotonic)
            gate = self._gates.close(member, barred, blocking=view.blocking, observer=observer)
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
        level = "debug" if self._has_complained else "info"
        self._has_complained = True
        self._say(level, text)

    def hold(self, pid: int, member: int) -> bool:
        """Have a member of the process `pid`, itself or one below it, stand still. False: it does not, or has not
        lately, and goes on. LinuxError: not permitted."""
        self._ground.at(member)
        not_before, pause = self._unheld.get(member, (0.0, UNHELD))
        if time.monotonic() < not_before:
            return False
        gate = self.of(member)
        if self._hold(pid, member) if gate is None else gate.hold():
            self._unheld.pop(member, None)
            return True
        self._unheld[member] = time.monotonic() + pause, min(2 * pause, UNHELD_LONGEST)
        return False

    def _hold(self, pid: int, member: int) -> bool:
        leader = self._leader(pid)
        process = leader if leader is None or member == pid else PidFd.below(member, pid)
        if leader is None or process is None:
            return False
        with ExitStack() as undo:
            undo.callback(self._close_held, process)
            if leader.has_ended() or not self._ground.progress.will_hold(member):
                return False
            undo.callback(self._ground.progress.has_let_go, member)
            if not hold(process):
                return False
            undo.pop_all()
        self._held[member] = process
        return True

    def _leader(self, pid: int) -> PidFd | None:
        if pid not in self._leaders:
            process = PidFd(pid)
            # Whom the manager has now it has not reaped: so the number was its own when it was opened.
            if not self._is_there(pid):
                process.close()
                return None
            self._leaders[pid] = process
        return self._leaders[pid]

    def _close_held(self, process: PidFd) -> None:
        if self._leaders.get(process.pid) is not process:
            process.close()

    def let_go(self, member: int, *, ending: bool) -> None:
        gate = self.of(member)
        if (process := self._held.pop(member, None)) is not None:
            with suppress(LinuxError):  # another user's by now, and nobody's to let go
                let_go(process)
            self._ground.progress.has_let_go(member)
            self._close_held(process)
        if gate is not None:
            gate.resume(ending=ending)

    def let_in(self) -> None:
        """No others serve the queue in its place any more: the pool is to stop, or the generation has left."""
        for member in self._gated:
            if (gate := self.of(member)) is not None:
                gate.let_in()

    def settle(self, processes: Iterable[tuple[str, int | None]], *, draining: bool, at_once: bool) -> None:
        """Open those that are not needed: of one that serves on, whose moment was not one, or that has left children.

        Tell those that end. processes: as in a `View`. at_once: none waits for GATE_AFTER.
        """
        kinds = {pid: kind for kind, pid in processes}
        now = time.monotonic()
        for member, pid in tuple(self._gated.items()):
            match kinds.get(pid):
                case Retiring.__name__ if at_once or now - self._since.setdefault(pid, now) >= GATE_AFTER:
                    continue
                case Running.__name__ if draining:
                    continue
                case Stopping.__name__ if (gate := self.of(member)) is not None:
                    if isinstance(gate.observer, Kept):
                        gate.observer.is_told = True
                    gate.resume(ending=True)
                    continue
                case _:
                    self._gates.open(member)
            del self._gated[member]
            self._closed.pop(pid, None)

    def end(self) -> None:
        """Leave no gate closed behind, whatever ends the looks."""
        for member in self._gated:
            self._gates.open_at_once(member)
        self._gated.clear()
        for process in self._leaders.values():
            process.close()
        self._leaders.clear()


class _Insight:
    """What a gate and its observer know of a process."""

    def __init__(self, gate: Gate, kept: Kept) -> None:
        self._gate = gate
        self.talk = kept.talk

    @property
    def computes(self) -> bool:
        return self._gate.computes
