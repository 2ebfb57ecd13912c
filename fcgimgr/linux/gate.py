"""A gate before accept(): one process of a shared listener is kept from taking new connections, from outside.

A process that is to end must first have nothing in hand, and under steady load it never has: it takes the next
connection microseconds after the last one, or serves many at once. So while its gate is closed every thread of it is
traced, and one that is about to accept(2) from a listener does not get to do it: on a listener that blocks it stands
still there, on one that does not it hears EAGAIN, "nobody waits". All else goes on, if slower: each system call is
seen. The connections wait for the process's siblings. With nothing new the work in hand comes to its end, and then the
process can be ended; a thread that stands before accept hears EINTR then, as if the signal had come while it waited.

In the same way it is seen what a process reads and sends: an observer is told before it sends, and may send in its
place, and after it has read or sent, with the thread that did it standing still.

Nothing of this outlives the manager: when a tracer dies, the kernel lets go of all it traced. Not everywhere may one
trace (ptrace(2): another tracer, a sandbox, another architecture than x86-64); then there is a LinuxError at once and
nothing has changed.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final, Protocol

from fcgimgr.linux import procfs, ptrace
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.holding import is_held
from fcgimgr.linux.ptrace import Stop
from fcgimgr.linux.transfers import RECEIVING, SENDING, Transfer, transfer

_PAUSE: Final = 0.00005
#: So many stops are done with at once; whoever stops after that goes on at the end of the turn.
AT_ONCE: Final = 64
#: Seconds between two interrupted accept(2) of a thread that is to hear of a signal.
EINTR_AGAIN: Final = 0.04
_MOVING: Final = SENDING | RECEIVING


class Observer(Protocol):
    """Who wants to know what a process reads and sends."""

    def before(self, thread: int, sends: Transfer) -> int | None:
        """A thread is about to send this. Not None: it has been done in its place, so many bytes of it."""

    def after(self, thread: int, moved: Transfer, count: int) -> None:
        """A thread has read or sent so many bytes of this; less than 0: none, for an error."""

    def gone(self, thread: int) -> None:
        """Nothing more will be heard of this thread, whatever it is about to do."""

    def close(self) -> None:
        """Nothing more will be heard at all."""


class Gates:
    """The gates that are closed, by the pid of the process. What the kernel tells of traced threads comes here."""

    def __init__(self, at: Callable[[int], None] = lambda pid: None) -> None:
        """at: is told whom the next stop concerns."""
        self._at = at
        self._gates: dict[int, Gate] = {}
        self._stops = 0  # in this turn
        self._late: set[Gate] = set()  # who has threads that go on at the end of it

    def close(self, pid: int, barred: Collection[int], *, blocking: bool, observer: Observer | None = None) -> Gate:
        """As `Gate`; one that is closed already stays so, as it is, and one that is being opened is closed again."""
        gate = self._gates.get(pid)
        if gate is None:
            gate = self._gates[pid] = Gate(pid, barred, blocking=blocking, observer=observer)
        elif gate.is_opening:
            gate.close(barred, blocking=blocking, observer=observer)
        return gate

    def of(self, pid: int) -> Gate | None:
        """The closed gate of this process."""
        gate = self._gates.get(pid)
        return None if gate is None or gate.is_opening else gate

    def stopped(self, thread: int) -> None:
        """A traced thread has stopped. When all that have are done with, `go_on` is to be called.

        A thread makes its next call sooner than it takes to look for the next stop: were each let go on at once, the
        looking would not end while one is busy.
        """
        gate = self._gate_of(thread) or self._gate_of_new(thread)
        if gate is not None:
            self._stops += 1
            self._at(gate.pid)
            gate.stopped(thread, late=self._stops > AT_ONCE)
            if self._stops > AT_ONCE:
                self._late.add(gate)
            self._drop_if_open(gate)
        elif (stop := ptrace.look(thread)) is not None:  # of a process whose gate was opened: nobody waits for it here
            with suppress(ProcessLookupError):
                ptrace.let_go(thread, stop.signal)

    def go_on(self) -> None:
        """The turn is over in which stops were told of."""
        self._stops = 0
        while self._late:
            self._late.pop().go_on()

    def ended(self, thread: int) -> bool:
        """A child has ended; whether it was a mere thread of a process that is traced."""
        if (gate := self._gates.pop(thread, None)) is not None:
            gate.close_observer()
            return False
        gate = self._gate_of(thread)
        if gate is not None:
            gate.ended(thread)
            self._drop_if_open(gate)
        return gate is not None

    def open(self, pid: int) -> None:
        """Open the gate of a process, if it is closed."""
        gate = self._gates.get(pid)
        if gate is not None:
            gate.open()
            self._drop_if_open(gate)

    def open_of(self, thread: int) -> None:
        """As `open`, of the process that this thread is of."""
        if (gate := self._gate_of(thread)) is not None:
            self.open(gate.pid)

    def open_at_once(self, pid: int) -> None:
        """Open it before anything else happens; blocks for milliseconds."""
        gate = self._gates.get(pid)
        if gate is not None:
            self._at(pid)
            gate.hold()
            gate.open()
            self._drop_if_open(gate)

    def _drop_if_open(self, gate: Gate) -> None:
        if gate.is_open:
            self._gates.pop(gate.pid, None)

    def _gate_of(self, thread: int) -> Gate | None:
        return next((gate for gate in self._gates.values() if gate.has(thread)), None)

    def _gate_of_new(self, thread: int) -> Gate | None:
        """One that was made by a traced thread is traced from birth, and may be heard of before its maker."""
        return next((gate for gate in self._gates.values() if os.path.exists(f"/proc/{gate.pid}/task/{thread}")), None)


class Gate:
    """The gate of one process; closed when made."""

    def __init__(self, pid: int, barred: Collection[int], *, blocking: bool, observer: Observer | None = None) -> None:
        """barred: inodes of listeners from which nothing is to be accepted; there may be none. blocking: whether
        accept() on them waits. LinuxError: it cannot be closed.
        """
        if not ptrace.AVAILABLE:
            raise LinuxError("only on x86-64 can a process be kept from accepting")
        self.pid = pid
        self._moves: dict[int, Transfer] = {}  # what those are about to read or to send that are in such a call
        self._fresh: set[int] = set()  # those that were in a call when the gate was closed, and have not left one since
        self._entering: set[int] = set()  # those that stand at the beginning of a call
        self._inside: set[int] = set()  # those that were let into one, and have not come out
        self._threads: dict[int, Stop | None] = {}  # where each stands still; None: it runs
        self._waiting: set[int] = set()  # those of them that stand before an accept()
        self._held = False
        self.close(barred, blocking=blocking, observer=observer)

    def close(self, barred: Collection[int], *, blocking: bool, observer: Observer | None = None) -> None:
        """Close it again that is being opened; as when it was made."""
        self._barred = {f"socket:[{inode}]" for inode in barred}
        self._blocking = blocking
        self.observer = observer
        self._told: dict[int, float] | None = None  # who has heard EINTR there, and when; None: it is not to end yet
        self._opening = False
        try:
            self._seize()
        except OSError as error:
            self.open()
            why = os.strerror(error.errno or 0)
            raise LinuxError(f"pid {self.pid} cannot be kept from accepting: {why}") from error

    @property
    def is_open(self) -> bool:
        """Whether nothing of it is traced any more."""
        return not self._threads

    @property
    def is_opening(self) -> bool:
        """Whether it is to be open as soon as all its threads have stopped once more."""
        return self._opening

    def has(self, thread: int) -> bool:
        """Whether this is a thread of it that is traced."""
        return thread in self._threads

    @property
    def computes(self) -> bool:
        """Whether a thread of it is, as far as is known, not waiting in a system call."""
        return any(thread not in self._inside and not is_over(thread) for thread in self._threads)

    def _seize(self) -> None:
        dead: set[int] = set()  # and still listed: the first thread, when it has ended before the others
        while new := self._all_threads() - set(self._threads) - dead:
            for thread in new:
                try:
                    ptrace.seize(thread)
                except ProcessLookupError:
                    continue
                except PermissionError:
                    if is_over(thread):
                        dead.add(thread)
                    elif procfs.tracer(thread) != os.getpid():  # else one of those seized has just made it
                        raise
                self._threads[thread] = None
                self._fresh.add(thread)
                with suppress(ProcessLookupError):
                    ptrace.interrupt(thread)

    def _all_threads(self) -> set[int]:
        return set(map(int, os.listdir(f"/proc/{self.pid}/task")))

    # What the kernel tells

    def stopped(self, thread: int, *, late: bool = False) -> None:
        """This thread has stopped, as far as is known. late: it is to go on when `go_on` says so."""
        stop = ptrace.look(thread)
        if stop is None:
            return
        self._threads[thread] = stop
        self._waiting.discard(thread)  # execve(2) has given it the number of one that did
        if stop.made_thread:  # they are traced too, and have stopped before they did anything
            with suppress(FileNotFoundError, ProcessLookupError):  # it has been killed meanwhile
                for new in self._all_threads() - set(self._threads):
                    self._threads[new] = None
        if stop.at_call and not self._opening:
            self._judge(thread)
        if self._opening:
            self._let_go(thread)
        elif not self._held and not late:
            self._go_on(thread)

    def go_on(self) -> None:
        """Let those go on that stopped late."""
        if not self._held:
            for thread in tuple(self._threads):
                self._go_on(thread)

    def ended(self, thread: int) -> None:
        """This thread is no more."""
        self._threads.pop(thread, None)
        self._waiting.discard(thread)
        self._forget_call(thread)
        if self.observer is not None:
            self.observer.gone(thread)
        if self._told is not None:
            self._told.pop(thread, None)  # the number may be another's soon

    def _forget_call(self, thread: int) -> None:
        self._moves.pop(thread, None)
        for each in (self._fresh, self._entering, self._inside):
            each.discard(thread)

    def _judge(self, thread: int) -> None:
        """Of a thread at a system call: is it to wait there, or to be sent away? What has it read, or will it send?"""
        try:
            call = ptrace.call_at(thread)
            if not isinstance(call, ptrace.Call):
                self._has_left(thread, call)
                return
            self._entering.add(thread)
            if call.number in ptrace.ACCEPTING:
                self._bar(thread, call)
            elif self.observer is not None and call.number in _MOVING:
                self._enters(thread, call)
        except OSError:  # killed meanwhile; or its descriptor is none, and the call itself says so
            return

    def _bar(self, thread: int, call: ptrace.Call) -> None:
        if os.readlink(f"/proc/{self.pid}/fd/{call.arguments[0] & 0x7FFFFFFF}") in self._barred:
            if self._blocking:
                self._waiting.add(thread)
            else:
                ptrace.answer_call(thread, -errno.EAGAIN)

    def _enters(self, thread: int, call: ptrace.Call) -> None:
        moved = transfer(self.pid, call)
        if moved is None or self.observer is None:
            return
        self._moves[thread] = moved
        if not moved.receives and (done := self.observer.before(thread, moved)) is not None:
            ptrace.answer_call(thread, done)

    def _has_left(self, thread: int, gave: int | None) -> None:
        moved = self._moves.pop(thread, None)
        if gave in ptrace.BEGUN_AGAIN:
            self._inside.add(thread)
        else:
            self._inside.discard(thread)
        if self.observer is None or gave is None:
            return
        if moved is None and gave > 0 and thread in self._fresh and (call := ptrace.call_left(thread)) is not None:
            moved = transfer(self.pid, call)  # it was in it when its gate was closed
        self._fresh.discard(thread)
        if moved is not None:
            self.observer.after(thread, moved, gave)

    def _go_on(self, thread: int) -> None:
        stop = self._threads[thread]
        if stop is None or (thread in self._waiting and not self._send_away(thread)):
            return
        self._threads[thread] = None
        if thread in self._entering:
            self._entering.discard(thread)
            self._inside.add(thread)
        with suppress(ProcessLookupError):  # killed meanwhile: its end will be reported
            if stop.in_group:
                ptrace.stay_stopped(thread)
            else:
                ptrace.go_on(thread, stop.signal)

    def _send_away(self, thread: int) -> bool:
        """Whether a thread that waits before accept() goes on: after the signal to end, with EINTR.

        Whenever a signal waits for it, which it takes then: php-cgi's children have theirs from their parent. And now
        and then, for another thread may have taken the signal, and have left it to this one to end: so it is in Python,
        where the main thread does, and has come back here if it was let go before the other had heard of it.
        """
        if self._told is None:
            return False
        now = time.monotonic()
        if now < self._told.get(thread, 0.0) + EINTR_AGAIN and not procfs.signal_waits(thread):
            return False
        self._told[thread] = now
        self._waiting.discard(thread)
        with suppress(ProcessLookupError):
            ptrace.answer_call(thread, -errno.EINTR)
        return True

    def _let_go(self, thread: int) -> None:
        stop = self._threads.pop(thread)
        self._waiting.discard(thread)
        self._forget_call(thread)
        assert stop is not None
        with suppress(ProcessLookupError):
            ptrace.let_go(thread, stop.signal)

    # What the manager wants

    def hold(self, patience: float = 0.02) -> bool:
        """Have all its threads stand still; False, and they go on: not so in `patience` seconds. Blocks that long."""
        deadline = time.monotonic() + patience
        self._held = True
        self._interrupt()
        while not self._stands_still():
            if time.monotonic() > deadline:
                self.resume()
                return False
            time.sleep(_PAUSE)
        return bool(self._threads)

    def _stands_still(self) -> bool:
        for thread, stop in tuple(self._threads.items()):
            if stop is None:
                self.stopped(thread)
        still = all(stop is not None or is_over(thread) for thread, stop in self._threads.items())
        return still and is_held(self.pid)

    def resume(self, *, ending: bool = False) -> None:
        """Let go on what `hold` holds; the gate stays closed. ending: a signal to end is on its way."""
        self._held = False
        if ending and self._told is None:
            self._told = {}
        self.go_on()

    def let_in(self) -> None:
        """Nothing is to be kept from it any more; what it sends is still seen."""
        self._barred.clear()
        self._waiting.clear()
        self.go_on()

    def open(self) -> None:
        """Trace it no longer: those that stand still from now on, the others as soon as they have stopped once more."""
        self._opening = True
        self.close_observer()
        for thread, stop in tuple(self._threads.items()):
            if stop is not None:
                self._let_go(thread)
        self._interrupt()

    def close_observer(self) -> None:
        """It hears of nothing from now on."""
        if self.observer is not None:
            self.observer.close()
            self.observer = None

    def _interrupt(self) -> None:
        for thread, stop in tuple(self._threads.items()):
            if stop is None:
                try:
                    ptrace.interrupt(thread)
                except ProcessLookupError:  # execve(2) by another thread ends it without a word (ptrace(2))
                    self.ended(thread)


def is_over(thread: int) -> bool:
    """Whether it has come to its end, and waits to be reaped at most."""
    return procfs.state(thread) in {None, "Z", "X"}
