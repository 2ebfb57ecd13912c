"""What is told of a process when its state has changed, or it has ended: in the log, and as an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcgimgr.config.signals import signal_name
from fcgimgr.control import messages
from fcgimgr.core.generation import Changed
from fcgimgr.core.process import SIGKILL, Exit, State, Stopping

if TYPE_CHECKING:
    from fcgimgr.manager.causes import Cause
    from fcgimgr.manager.generation import Generation


def tell_change(generation: Generation, change: Changed, cause: Cause | None) -> None:
    """Its state has another name. `cause`: why, if that is known; else its end says it, if that is what it came by."""
    slot, name = generation.slots[change.index], generation.process_name(change.index)
    before, after = change.before.name, change.after.name
    exit = slot.exit if change.before.pid is not None and change.after.pid is None else None
    detail = str(cause) if cause is not None else slot.end if exit is not None else None
    if after == "FATAL":
        generation.daemon.journal.error(f"FATAL: {detail}{generation.advice(name)}", name=name)
    elif after != "STARTING":  # "spawned" says it, with the pid
        is_told = cause is not None and cause.kind == "recycled" and after == "STOPPING"
        generation.daemon.journal.info(after + (f": {detail}" if detail and not is_told else ""), name=name)
    generation.daemon.history.record(
        "process_state",
        name,
        before,
        after,
        detail,
        cause=cause.kind if cause is not None else None,
        by=(cause.by or None) if cause is not None else None,
        exit=None if exit is None else exit_as_told(exit),
    )


def tell_of_kill(generation: Generation, index: int, pid: int, before: State, in_hand: str) -> None:
    """Say what is lost by a SIGKILL, and now: how a process ends that is not our child we may never hear."""
    state = generation.core.processes[index]
    if not (isinstance(state, Stopping) and state.killed) or (isinstance(before, Stopping) and before.killed):
        return  # its stopsignal, or that of one that has not come to its program; or it is only sent again
    why = ", as it had not stopped" if isinstance(before, Stopping) else ""
    age = generation.daemon.loop.time() - generation.slots[index].started
    end = f"{Exit(signal=SIGKILL)} after {age:.1f} s{why}{in_hand}"
    generation.daemon.journal.warning(end, name=generation.process_name(index), pid=pid)


def is_told(generation: Generation, index: int, exit: Exit) -> bool:
    """Whether it is told of this process that it is dead: it has not ended as it may."""
    if exit.signal is None and exit.code in (None, *generation.settings.exitcodes):
        return False
    state, slot = generation.core.processes[index], generation.slots[index]
    by_signal = state.name == "STOPPING" and (
        (exit.signal != SIGKILL and not slot.at_risk)
        or generation.settings.stopsignal == SIGKILL
        or (isinstance(state, Stopping) and state.killed)  # said when it was
    )
    return not by_signal  # the one that it was sent: nothing that an operator need look at


def tell_of_death(generation: Generation, index: int, pid: int, repeated: str) -> None:
    """`repeated`: who has said before what it said; "": nobody."""
    slot = generation.slots[index]
    as_before = f"; what it said before is what {repeated} said" if repeated else ""
    generation.daemon.journal.warning(slot.end + as_before, name=generation.process_name(index), pid=pid)


def exit_as_told(exit: Exit) -> messages.Exit:
    """For the control socket."""
    signal = None if exit.signal is None else signal_name(exit.signal)
    return messages.Exit(code=exit.code, signal=signal, unknown=exit == Exit())
