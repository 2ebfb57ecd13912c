"""What clients lose when a process is killed, or a listener closed: told when it happens, and counted of a generation
that leaves, for a reload is to lose nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fcgimgr.core.generation import Event, Happened
from fcgimgr.core.process import SIGKILL, Due, Exit, Retiring, State
from fcgimgr.linux.glance import NoGlanceError, glance
from fcgimgr.linux.sockdiag import established_inodes
from fcgimgr.manager.children.descriptors import look

if TYPE_CHECKING:
    from fcgimgr.manager.pools.generation import Generation

#: Seconds for which nobody of a generation is looked at after one that has let us wait.
UNSEEN_FOR: Final = 10.0


def may_be(before: State, event: Event, signal: int) -> bool:
    """Whether a process in this state is told to end by this signal, on this event, whatever it has in hand."""
    late = isinstance(before, Retiring) and isinstance(event, Happened) and isinstance(event.event, Due)
    return signal == SIGKILL or late


def count(generation: Generation, index: int, pid: int) -> None:
    """This process is about to be told."""
    slot, now = generation.slots[index], generation.daemon.loop.time()
    slot.at_risk = 0
    if generation.listening is None or now < generation.unseen_until:
        return
    if not (accepted := established_inodes(generation.listening.names)):
        return
    given_up = generation.daemon.helpers.given_up
    try:  # it cannot be done in peace: the signal is to be sent now
        slot.at_risk = glance(lambda at: len(look(at, pid, accepted, given_up, family=True).found))
    except NoGlanceError:
        generation.unseen_until = now + UNSEEN_FOR


def in_hand(generation: Generation, index: int) -> str:
    """What a process has in hand, to be put behind what is said of its end."""
    slot = generation.slots[index]
    requests = slot.in_hand(generation.daemon.loop.time())  # of our own workers
    return requests or (f", with {connections(slot.at_risk)} in hand" if slot.at_risk else "")


def died(generation: Generation, index: int, exit: Exit) -> None:
    """Its process is dead. One that has ended by itself has finished what it had.

    What it had in hand may have been a WebSocket, which lives until then; so it counts for itself. Only our own engines
    show that it was a request.
    """
    if not generation.core.left or exit.signal is None:
        return
    slot = generation.slots[index]
    if (reading := slot.reading(generation.daemon.loop.time())) is not None:
        if lost := len(reading.in_hand):
            generation.lost += lost
            _say(generation, f"{connections(lost)} lost: the process that had it in hand was killed")
    else:
        generation.cut += slot.at_risk


def closing(generation: Generation) -> None:
    """The listeners are about to be closed."""
    assert generation.listening is not None
    # One that has not served has nothing there but pings that it has left unanswered.
    if generation.has_served and (lost := generation.listening.waiting):
        generation.lost += lost
        _say(generation, f"{connections(lost)} lost: nobody has accepted them")


def not_passed_on(generation: Generation, error: Exception) -> None:
    """A connection from its queue could not be brought to the generation that serves."""
    generation.lost += 1
    why = str(error) or "the queue of those that serve is full"  # a timeout says nothing
    _say(generation, f"1 connection lost: it could not be passed on: {why}")


def dropped(generation: Generation, count: int) -> None:
    """So many that are being passed on are broken off."""
    generation.lost += count
    _say(generation, f"{connections(count)} lost: not answered within stopwaitsecs of being passed on")


def _say(generation: Generation, text: str) -> None:
    generation.daemon.journal.warning(text, name=generation.name, generation=generation.number)


def connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"
