"""What is told of a process when its state has changed, or it has ended: in the log, and as an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcgimgr.config.signals import signal_name
from fcgimgr.control import messages
from fcgimgr.core.generation import Changed
from fcgimgr.core.process import SIGKILL, Exit, Running, State, Stopping

if TYPE_CHECKING:
    from fcgimgr.manager.pools.causes import Cause
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.slots import Slot


def tell_change(generation: Generation, change: Changed, cause: Cause | None) -> None:
    """Its state has another name. `cause`: why, if that is known; else its end says it, if that is what it came by."""
    slot, name = generation.slots[change.index], generation.process_name(change.index)
    before, after = change.before.name, change.after.name
    exit = slot.exit if change.before.pid is not None and change.after.pid is None else None
    detail = str(cause) if cause is not None else slot.end if exit is not None else None
    is_told = cause is not None and cause.kind == "recycled" and after == "STOPPING"
    text = f"{after}: {detail}" if detail and not is_told else after
    if after == "FATAL":
        text = f"{text}{generation.advice(name)}"
    log_change(generation, slot, name, change.before, change.after, text)
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


def log_spawn(generation: Generation, slot: Slot, name: str, pid: int) -> None:
    """Log that its process is there, unless it is one more of those that have failed so far."""
    log = generation.daemon.journal.debug if generation.repeats.is_unseen(slot) else generation.daemon.journal.info
    log("spawned", name=name, pid=pid)


def log_change(generation: Generation, slot: Slot, name: str, before: State, after: State, text: str) -> None:
    """Log the `text` of a change of state; what repeats others (repeats.py) is for those who debug."""
    journal, repeats = generation.daemon.journal, generation.repeats
    if after.name == "STARTING":
        return  # "spawned" says it, with the pid
    if after.name == "BACKOFF" and not isinstance(before, Running) and not repeats.has_failed(slot, text):
        journal.debug(text, name=name)
        return
    unseen = {"pid": after.pid} if repeats.is_over(slot) and after.pid is not None else {}
    if after.name == "FATAL":
        journal.error(text, name=name)
    else:
        journal.info(text, name=name, **unseen)


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


def tell_of_death(
    generation: Generation, slot: Slot, name: str, pid: int, *, is_failed_start: bool, repeated: str
) -> None:
    """Log its end, unless others have failed to start by the same. `repeated`: who has said before what it said; "":
    nobody."""
    as_before = f"; what it said before is what {repeated} said" if repeated else ""
    is_known = is_failed_start and generation.repeats.is_known(slot.end)
    log = generation.daemon.journal.debug if is_known else generation.daemon.journal.warning
    log(slot.end + as_before, name=name, pid=pid)


def exit_as_told(exit: Exit) -> messages.Exit:
    """For the control socket."""
    signal = None if exit.signal is None else signal_name(exit.signal)
    return messages.Exit(code=exit.code, signal=signal, unknown=exit == Exit())
