"""A pool and its generations: which one serves, which one is coming, which ones are leaving.

A reload makes a second generation beside the one that serves: with its own listener, to which no client is led yet.
Only when every process of it is ready is the traffic switched over, in one step; then the old generation is left to
finish what it has accepted. If anything goes wrong before that (a process of the new one dies, or is not ready in
time), the new one is discarded and the old one has served all along. A canary is the same with a pause in the middle,
in which the new generation gets a share of the traffic.

    steady ──Reload──▶ arriving ──Ready──▶ steady, the old one held and watched over, then leaving
                          │  └───Ready──▶ canary ──Promote──▶ as above
                          └──Failed, Due, Abort──▶ steady, as before

Code that is ready may still be no good: it dies of the first requests, say. So what has been switched to is watched for
a while. If more than half of its processes are lost in that time, and the old generation is still there, the traffic
goes back to that one. To be sure that it is, it is held for a moment before it leaves, idle, but whole; and for longer
while what serves leaves connections waiting, or is not whole. After that it is there as long as it finishes what it has
accepted.

One at a time: a reload that is asked for while a generation is still leaving waits until that has gone; one that is
asked for while another is arriving is refused, because nobody can say what its author expects of it.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

#: Why a generation is discarded at its `due`; the manager adds who was not ready.
NOT_READY: Final = "not ready within reload_timeout"


class Arriving(msgspec.Struct, frozen=True):
    """A generation that is not ready yet. `due`: when patience is over; `percent`: it is to be a canary."""

    number: int
    due: float
    percent: float | None = None


class Canary(msgspec.Struct, frozen=True):
    """A generation that serves `percent` of the connections, until somebody decides."""

    number: int
    percent: float


class Watch(msgspec.Struct, frozen=True):
    """What serves since a moment ago is not trusted yet, and `old` could serve again.

    `until`: when it is trusted; `held_until`: how long `old` stays whole, None: it is leaving; `hold`: by how much that
    is put off while there are signs of trouble; `lost`: the indexes of the processes that have died since the switch.
    """

    old: int
    until: float
    hold: float
    held_until: float | None = None
    lost: frozenset[int] = frozenset()


class Rollout(msgspec.Struct, frozen=True):
    """A pool's generations by number, as they are started; `serving` gets the traffic."""

    serving: int = 1
    last: int = 1
    coming: Arriving | Canary | None = None
    leaving: frozenset[int] = frozenset()
    waiting: Reload | None = None  # to be done when nothing is leaving any more
    watch: Watch | None = None  # over what serves, since the last switch

    @property
    def due(self) -> float | None:
        if isinstance(self.coming, Arriving):
            return self.coming.due
        if self.watch is None:
            return None
        return self.watch.until if self.watch.held_until is None else self.watch.held_until


# Events -------------------------------------------------------------------------------------------------------------


class Reload(msgspec.Struct, frozen=True):
    """Replace the processes by new ones; `patience`: seconds until they must be ready; `percent`: as a canary."""

    patience: float
    percent: float | None = None


class Ready(msgspec.Struct, frozen=True):
    """Every process of this generation is ready. `hold`, `watch`: seconds, as for Promote."""

    number: int
    hold: float = 0.0
    watch: float = 0.0


class Failed(msgspec.Struct, frozen=True):
    """This generation is no good."""

    number: int
    why: str


class Due(msgspec.Struct, frozen=True):
    """The moment that the pool's `due` names has come.

    `unproven`: what serves has connections that wait to be accepted, or is not whole.
    """

    unproven: bool = False


class Promote(msgspec.Struct, frozen=True):
    """The canary is to get all the traffic; it is watched for `watch` seconds, the old one held for `hold`."""

    hold: float = 0.0
    watch: float = 0.0


class Lost(msgspec.Struct, frozen=True):
    """A process of this generation, which has `of` in all, has died although nobody wanted that."""

    number: int
    index: int
    of: int


class CameBack(msgspec.Struct, frozen=True):
    """The traffic goes to the generation before again."""


class Settle(msgspec.Struct, frozen=True):
    """What serves stays: nothing is to be gone back to any more."""


class Abort(msgspec.Struct, frozen=True):
    """What is coming is not wanted any more."""

    why: str


class Gone(msgspec.Struct, frozen=True):
    """Nothing is left of this generation."""

    number: int


Event: TypeAlias = Reload | Ready | Failed | Due | Promote | Lost | CameBack | Settle | Abort | Gone


# Actions ------------------------------------------------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True):
    """Make this generation, on a listener beside the serving one's, and start it."""

    number: int


class Share(msgspec.Struct, frozen=True):
    """Lead `percent` of the new connections to this generation."""

    number: int
    percent: float


class Switch(msgspec.Struct, frozen=True):
    """Lead all new connections to this generation, at once."""

    number: int


class Hold(msgspec.Struct, frozen=True):
    """Let this generation stay as it is, without new connections."""

    number: int


class ComeBack(msgspec.Struct, frozen=True):
    """Lead all new connections back to this generation; answer with CameBack, or Settle where that cannot be."""

    number: int


class Return(msgspec.Struct, frozen=True):
    """Let this generation, which was held or leaving, be whole again, and do away with `bad`, which has served."""

    number: int
    bad: int


class Leave(msgspec.Struct, frozen=True):
    """Let this generation finish what it has accepted, and end."""

    number: int


class Discard(msgspec.Struct, frozen=True):
    """Do away with this generation. `served`: as a canary it was given connections, which it finishes."""

    number: int
    why: str
    served: bool = False


class Queued(msgspec.Struct, frozen=True):
    """The reload waits until the generations before have left."""


class Refused(msgspec.Struct, frozen=True):
    """What was asked for cannot be done now."""

    why: str


Action: TypeAlias = Begin | Share | Switch | Hold | ComeBack | Return | Leave | Discard | Queued | Refused


def step(rollout: Rollout, event: Event, now: float) -> tuple[Rollout, list[Action]]:
    """Answer with the rollout after `event` and the actions to carry out, in order."""
    coming = rollout.coming
    match event:
        case Reload():
            return _reload(rollout, event, now)
        case Ready(number, hold, watch) if isinstance(coming, Arriving) and coming.number == number:
            if coming.percent is None:
                return _switch(rollout, number, hold, watch, now)
            canary = Canary(number, coming.percent)
            return msgspec.structs.replace(rollout, coming=canary), [Share(number, coming.percent)]
        case Failed(number, why) if coming is not None and coming.number == number:
            return _discard(rollout, number, why)
        case Due() if isinstance(coming, Arriving):
            return _discard(rollout, coming.number, NOT_READY)
        case Due(unproven) if rollout.watch is not None:
            return _watch_on(rollout, rollout.watch, unproven, now)
        case Lost(number, index, of) if rollout.watch is not None and rollout.serving == number:
            return _lose(rollout, rollout.watch, index, of)
        case CameBack() if rollout.watch is not None:
            return _return(rollout, rollout.watch.old)
        case Settle() if rollout.watch is not None:
            return _let_leave(rollout, rollout.watch, None)
        case Promote(hold, watch):
            if isinstance(coming, Canary):
                return _switch(rollout, coming.number, hold, watch, now)
            return rollout, [Refused("there is no canary to promote")]
        case Abort(why):
            if coming is not None:
                return _discard(rollout, coming.number, why)
            if rollout.waiting is not None:
                return msgspec.structs.replace(rollout, waiting=None), []
            return rollout, [Refused("there is no reload or canary to abort")]
        case Gone(number):
            return _forget(rollout, number, now)
    return rollout, []  # word from a generation that is no longer the one in question


def _reload(rollout: Rollout, event: Reload, now: float) -> tuple[Rollout, list[Action]]:
    if isinstance(rollout.coming, Canary):
        return rollout, [Refused("a canary is out; --promote or --abort it first")]
    if rollout.coming is not None or rollout.waiting is not None:
        return rollout, [Refused("a reload is under way already; wait for its verdict, or --abort it")]
    if rollout.leaving:
        return msgspec.structs.replace(rollout, waiting=event), [Queued()]
    number = rollout.last + 1
    arriving = Arriving(number, due=now + event.patience, percent=event.percent)
    return msgspec.structs.replace(rollout, coming=arriving, last=number), [Begin(number)]


def _switch(rollout: Rollout, number: int, hold: float, watch: float, now: float) -> tuple[Rollout, list[Action]]:
    old = rollout.serving
    held = min(hold, watch)
    held_until = now + held if held > 0 else None
    watched = Watch(old, until=now + watch, hold=held, held_until=held_until) if watch > 0 else None
    after = msgspec.structs.replace(
        rollout, serving=number, coming=None, leaving=rollout.leaving | {old}, watch=watched
    )
    return after, [Switch(number), Hold(old) if held > 0 else Leave(old)]


def _watch_on(rollout: Rollout, watch: Watch, unproven: bool, now: float) -> tuple[Rollout, list[Action]]:
    if watch.held_until is not None and now >= watch.held_until:
        longer = min(watch.until, now + watch.hold)
        if unproven and longer > now:
            return msgspec.structs.replace(rollout, watch=msgspec.structs.replace(watch, held_until=longer)), []
        return _let_leave(rollout, watch, msgspec.structs.replace(watch, held_until=None))
    if watch.held_until is None and now >= watch.until:
        return msgspec.structs.replace(rollout, watch=None), []
    return rollout, []


def _let_leave(rollout: Rollout, watch: Watch, after: Watch | None) -> tuple[Rollout, list[Action]]:
    held = watch.held_until is not None
    return msgspec.structs.replace(rollout, watch=after), [Leave(watch.old)] if held else []


def _lose(rollout: Rollout, watch: Watch, index: int, of: int) -> tuple[Rollout, list[Action]]:
    lost = watch.lost | {index}
    after = msgspec.structs.replace(rollout, watch=msgspec.structs.replace(watch, lost=lost))
    return after, [ComeBack(watch.old)] if 2 * len(lost) > of else []


def _return(rollout: Rollout, old: int) -> tuple[Rollout, list[Action]]:
    bad = rollout.serving
    after = msgspec.structs.replace(rollout, serving=old, leaving=rollout.leaving - {old} | {bad}, watch=None)
    return after, [Return(old, bad)]


def _discard(rollout: Rollout, number: int, why: str) -> tuple[Rollout, list[Action]]:
    after = msgspec.structs.replace(rollout, coming=None, leaving=rollout.leaving | {number})
    return after, [Discard(number, why, served=isinstance(rollout.coming, Canary))]


def _forget(rollout: Rollout, number: int, now: float) -> tuple[Rollout, list[Action]]:
    watch = rollout.watch if rollout.watch is not None and rollout.watch.old != number else None
    after = msgspec.structs.replace(rollout, leaving=rollout.leaving - {number}, watch=watch)
    if after.leaving or after.waiting is None:
        return after, []
    waiting = after.waiting
    return _reload(msgspec.structs.replace(after, waiting=None), waiting, now)
