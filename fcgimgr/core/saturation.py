"""Do connections wait that nobody comes for? When that is to be looked at, and when it is worth telling. Pure.

A queue is not empty for a moment whenever a few clients come together, and that is what it is for. An episode is a time
in which it was not empty at any look; it is told when it has lasted for LASTS, and again when it has been over for as
long, so that no more than two things can be told in twice that time.

While nothing waits nobody looks: the first connection that comes is heard of, and is as a rule in a worker's hands by
the time of the look. So a busy pool whose queue is empty costs a look in SOON, and one to which nobody comes nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

#: Seconds from when somebody has come to the look at whether they still wait.
SOON: Final = 1.0
#: Seconds between two looks while they do, or did a moment ago.
AGAIN: Final = 0.5
#: Seconds for which they must wait, or nobody must, before that is told.
LASTS: Final = 5.0


class Asleep(NamedTuple):
    """Nobody waits, and the next who comes is to be heard of."""


class Suspected(NamedTuple):
    """Somebody has waited at every look since then."""

    since: float


class Saturated(NamedTuple):
    """That was told. `empty_since`: nobody has waited at any look since then; None: somebody does."""

    since: float
    empty_since: float | None = None


State: TypeAlias = Asleep | Suspected | Saturated


def step(state: State, waiting: bool, now: float) -> State:
    """What is so after a look at which somebody was `waiting`, or nobody."""
    match state:
        case Asleep():
            return Suspected(now) if waiting else state
        case Suspected(since):
            if not waiting:
                return Asleep()
            return Saturated(since) if now - since >= LASTS else state
        case Saturated(since, empty_since):
            if waiting:
                return Saturated(since)
            if empty_since is None:
                return Saturated(since, now)
            return Asleep() if now - empty_since >= LASTS else state
