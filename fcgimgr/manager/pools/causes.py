"""Why a process came to its end, or was told to: for events, the log, and for what `status` makes of its restarts.

core decides that a process is to go, and no state of it says why: an operator, a limit, or the generation after it. The
event that core was fed tells; and where it only began what goes on by itself (a rolling restart, a drain), the order
that did is kept until the next one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from fcgimgr.core import generation as core
from fcgimgr.core import process
from fcgimgr.core.process import Backoff, CountAsFailed, Exit, Exited, Fatal, Retiring, Running, Spawning, Starting
from fcgimgr.manager.ground.orders import giver
from fcgimgr.manager.logs.lines import printable

if TYPE_CHECKING:
    from fcgimgr.config.settings import ProcessSettings
    from fcgimgr.manager.pools.generation import Generation

#: A crash is whatever nobody wanted: also an end for a request that took too long, or because it was never ready.
Kind = Literal["crash", "recycled", "by_hand"]

# Characters of what a process said last that are told of it; it is in its log as it is.
LONGEST: Final = 400
# How our own workers begin what they say of themselves (worker/saying.py).
OURS: Final = "fcgimgr worker: "

# Lines of a dump that begin in the first column and tell nothing: what is wrong stands before them.
_OF_A_DUMP: Final = re.compile(
    r"(?:Current thread|Thread) 0x|Current thread's C stack|Extension modules: |Python runtime state: "  # faulthandler
    r"|goroutine \d+ \[|created by |\[signal SIG|exit status \d+$|\S+\((?:|\.\.\.|[{}0-9a-fx?, .]+)\)$"  # Go
    r"|Stack trace:$|#\d+ "  # PHP
    r"|Node\.js v\d|[\])}]+$"  # Node, and the end of an error's properties
    r"|note: run with `RUST_BACKTRACE|stack backtrace:$"  # Rust
)


class Cause(NamedTuple):
    """`by`: who has ordered it; "": nobody."""

    kind: Kind
    why: str
    by: str = ""

    def __str__(self) -> str:
        return f"{self.why}, by {self.by}" if self.by and self.by not in self.why else self.why


class OrderRecord(msgspec.Struct, frozen=True):
    """Why processes were told to start or to end, and by whom, as the state file has it."""

    kind: Kind
    why: str
    by: str = ""


class OrdersRecord(msgspec.Struct, frozen=True):
    """The last order to any process of a generation, to `end` all of them, and to restart them, `rolling`."""

    last: OrderRecord
    end: OrderRecord
    rolling: OrderRecord


TRIED_AGAIN: Final = Cause("crash", "tried again")
NOT_STARTED: Final = Cause("by_hand", "not started yet")
# Of what was taken over from a manager that has not written down who it was, and why.
ORDERED_BEFORE: Final = Cause("by_hand", "ordered before this manager took over")


class Restarts:
    """How often a process was started anew, by why the one before had ended."""

    __slots__ = ("by_hand", "crashes", "next", "recycled")

    def __init__(self, crashes: int = 0, recycled: int = 0, by_hand: int = 0) -> None:
        self.crashes = crashes
        self.recycled = recycled
        self.by_hand = by_hand
        self.next: Kind = "by_hand"  # what the next start will be because of

    def count(self) -> None:
        match self.next:
            case "crash":
                self.crashes += 1
            case "recycled":
                self.recycled += 1
            case "by_hand":
                self.by_hand += 1


class Causes:
    """Of one generation's processes."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self.missing = Cause("by_hand", "")  # why the last that has left STARTING or RUNNING has
        self._begin_with(NOT_STARTED)

    def take_over(self, orders: OrdersRecord | None) -> None:
        """Its processes had their orders from another manager. orders: what it has written down."""
        self._begin_with(ORDERED_BEFORE)
        if orders is not None:
            self.order, self.end, self._rolling = map(_read, (orders.last, orders.end, orders.rolling))

    @property
    def record(self) -> OrdersRecord:
        """What the next manager is to know."""
        return OrdersRecord(*map(_written, (self.order, self.end, self._rolling)))

    def _begin_with(self, order: Cause) -> None:
        self.order = order  # the last that has stopped, or started, any of them
        self.end = order  # the last that was to end all of them
        self._rolling = order  # the last that was to restart them

    def hear(self, event: core.Event) -> None:
        """core is about to be fed this."""
        generation = self._generation
        ending = f"the manager is stopping: {why}" if (why := generation.daemon.stopping) else ""
        match event:
            case core.Start():
                what = "start"
            case core.Stop():
                what = ending or "stop"
            case core.Restart(hard=hard):
                what = "restart --hard" if hard else "restart"
            case core.Scale(numprocs):
                what = f"scale to {numprocs}"
            case core.Leave(served=served):
                what = f"generation {generation.pool.core.serving} serves" if served else "its generation is discarded"
            case core.Return():
                what = "its generation serves again"
            case core.RetryDue():
                self.order = TRIED_AGAIN
                return
            case core.Kill():
                what = f"{ending}, at once" if ending else "to end at once"
            case _:
                return
        self.order = Cause("by_hand", what, giver())
        if isinstance(event, core.Restart):
            self._rolling = self.order
        elif isinstance(event, core.Stop | core.Kill | core.Leave):
            self.end = self.order

    def of(self, event: core.Event, recycled: Mapping[int, str], change: core.Changed) -> Cause | None:
        """Why core has changed the state of a process so, on this event; None: that needs no reason.

        recycled: those that it recycles on this event, and why.
        """
        cause = missing = self._of(event, recycled, change)
        if missing is None and isinstance(change.after, Exited):
            missing = Cause("recycled", self._generation.slots[change.index].end)
        if missing is not None and isinstance(change.before, Starting | Running):
            why = f"{self._generation.process_name(change.index)}: {missing.why}"
            self.missing = Cause(missing.kind, why, missing.by)
        return cause

    def _of(self, event: core.Event, recycled: Mapping[int, str], change: core.Changed) -> Cause | None:
        index, before, after = change.index, change.before, change.after
        match after:
            case Starting() | Running():
                return self.order if isinstance(before, Retiring) else None
            case Backoff(why=why) | Fatal(why=why):
                return Cause("crash", why)
            case Exited(exit=exit, expected=expected, word=word):
                return None if expected else Cause("crash", f"{exit}{process.said(word)}")
            case _ if after.name == "STOPPING":
                return self._of_stop(event, recycled, change)
            case _ if before.name == "STOPPING":
                return None  # as it was said when it was told to
            case Spawning() if isinstance(before, Starting | Running):
                return self._of_death(event, index)
            case Spawning() if isinstance(before, Backoff) and not isinstance(event, core.Start | core.Restart):
                return TRIED_AGAIN
            case Spawning() if index >= self._generation.core.wanted:
                return Cause("recycled", "it stands in for another, which is to be replaced")
            case _:
                return self.order

    def _of_stop(self, event: core.Event, recycled: Mapping[int, str], change: core.Changed) -> Cause:
        index, after = change.index, change.after
        if isinstance(after, process.Stopping) and isinstance(after.after, CountAsFailed):
            return Cause("crash", after.after.why)
        if index in recycled:
            return Cause("recycled", f"recycling: {recycled[index]}")
        if isinstance(event, core.Overdue) and event.index == index:
            return Cause("crash", "a request took longer than request_timeout")
        generation = self._generation
        if generation.core.rolling[:1] == (index,):
            return self._rolling
        if index >= generation.core.wanted and isinstance(event, core.Happened):
            return Cause("recycled", "it stood in for another, which is replaced")
        return self.order

    def _of_death(self, event: core.Event, index: int) -> Cause | None:
        if not isinstance(event, core.Happened) or not isinstance(event.event, process.Died):
            return None
        expected = process.expected(self._generation.settings, event.event.exit)
        return Cause("recycled" if expected else "crash", self._generation.slots[index].end)


def _written(order: Cause) -> OrderRecord:
    return OrderRecord(order.kind, order.why, order.by)


def _read(record: OrderRecord) -> Cause:
    """It is shown on terminals and in logs, and a file may have been changed by anybody who was root for a moment."""
    return Cause(record.kind, printable(record.why[:LONGEST]), printable(record.by[:LONGEST]))


def last_word(settings: ProcessSettings, exit: Exit, lines: list[bytes], *, was_ready: bool) -> str:
    """Of the last lines on its standard error the one that tells most likely why a process has ended so; "": none.

    Its last line, but for those that belong to one before them, or are of a dump below it; of our own workers what they
    say themselves, unless a signal has ended them. Whoever is killed has said nothing of it.
    """
    is_killed = exit.signal in (process.SIGKILL, settings.stopsignal)
    if process.expected(settings, exit) or is_killed or exit == Exit():
        return ""
    shown = [line.decode("utf-8", "backslashreplace").rstrip() for line in lines]
    ours = [line.removeprefix(OURS) for line in shown if line.startswith(OURS)]
    if ours and not was_ready and exit.signal is None:
        word = printable(ours[-1])
    else:
        word = printable(next((line for line in reversed(shown) if _tells(line)), ""))
    if word.endswith(":") and ". " in word:  # what follows it is of no use without the log
        word = word.rpartition(". ")[0]
    return word if len(word) <= LONGEST else f"{word[:LONGEST]}…"


def _tells(line: str) -> bool:
    return bool(line) and not line[0].isspace() and _OF_A_DUMP.match(line) is None
