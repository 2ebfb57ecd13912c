"""One process of a pool or program: what it is doing, and what to do next.

Nothing here touches a process. The manager reports what happened (`event`) and when (`now`, monotonic seconds);
`step` answers with the new state and the actions to carry out. A state that waits for a moment in time carries it
as `due`; the manager keeps one timer a process and reports `Due` when that moment has come, so no timer can be
forgotten or left behind: it is always the one that the present state asks for.

TRANSITIONS is total over state x event. A pair that cannot happen is written down as `impossible`: it raises, and
changes nothing, because it would mean that the manager and this table no longer agree about the world.

The states are Supervisor's, with one more for the time between the decision to spawn and its outcome
(`Spawning`, shown as STARTING): so a `Starting` always has a pid, and a `Stopped` never has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, TypeAlias

import msgspec

from fcgimgr.config.settings import ProcessSettings
from fcgimgr.config.signals import signal_name
from fcgimgr.core.backoff import backoff_delay

SIGKILL: Final = 9

# A SIGKILL is certain, but not instant. What is still there after so many seconds is held by the kernel (where nothing
# interrupts its sleep), or by whoever traces it, to whom alone its end is shown (ptrace(2)), and nobody knows for how
# long. It runs no more code of its own, so that what is to follow it may.
ABANDONED_AFTER: Final = 5.0

# A fork of the manager comes to its program in milliseconds, and under the heaviest load in seconds. One that takes
# longer, in seconds, is stuck: in a file system that does not answer, or stopped by somebody.
EXECUTED_WITHIN: Final = 30.0

# A process that has outlived max_lifetime and could not be replaced: seconds until that is asked for again.
ASK_AGAIN: Final = 60.0

# A process that lived shorter than this many seconds, or than startsecs, died early: it may be in a crash loop.
EARLY: Final = 1.0

# Expected ends in a row, in one place, of processes that were not seen to accept though their program is known to: so
# many are believed to have served too fast to be seen (docs/processes.md).
MOST_UNSEEN: Final = 30

# One that is waited for patiently is looked at every stopwaitsecs, and at least at this distance, in seconds.
PATIENCE: Final = 1.0


class ImpossibleEventError(Exception):
    """An event that the present state cannot take: a fault of the program, never of a user."""


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: by exit code, by signal, or unknown (neither)."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {signal_name(self.signal)}"
        return "ended" if self.code is None else f"exited with code {self.code}"


# States -------------------------------------------------------------------------------------------------------------
#
# They are written down by these names (tag) for the manager that comes next: manager/succession/state.py, whose test
# holds a sample that must stay readable.


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """Not running, and nobody wants it to."""

    name: ClassVar[str] = "STOPPED"
    due: ClassVar[None] = None
    pid: ClassVar[None] = None


class Spawning(msgspec.Struct, frozen=True, tag=True):
    """The manager is to spawn it and has not yet said how that went. `tries`: failed starts before.

    follows: it takes the place of one that was ready and has ended as expected, having recycled itself: for a while it
    counts as no less ready. unseen: so many before it ended so, in a row, without having been seen to accept.
    """

    name: ClassVar[str] = "STARTING"
    due: ClassVar[None] = None
    pid: ClassVar[None] = None
    tries: int
    follows: bool = False
    unseen: int = 0


class Starting(msgspec.Struct, frozen=True, tag=True):
    """Spawned, not yet ready. `due`: when startsecs, or the patience for its readiness, is over; None: it has no end.

    executed: False while it is a fork of the manager that has not come to its program, and `due` is the end of the
    patience for that. fault: why it will not come to it, and was killed.

    takes: it was seen to take its listener, or may not be looked at; seen: not only the latter; served: it had a
    connection in its hands. astray: what it does instead, as far as that is known. follows, unseen: as of Spawning.
    missed: it follows, and should have been ready by now.
    """

    name: ClassVar[str] = "STARTING"
    pid: int
    since: float
    tries: int
    due: float | None
    executed: bool = True
    fault: str = ""
    takes: bool = False
    seen: bool = False
    served: bool = False
    astray: str = ""
    follows: bool = False
    missed: bool = False
    unseen: int = 0


class Running(msgspec.Struct, frozen=True, tag=True):
    """Ready: fit to serve. `since`: when it was spawned; `tries`: failed starts before, until it has proved stable.

    `due`: when its max_lifetime is over, or when it is to be said again that it is. seen, unseen: as of Starting.
    put_off: why it is to be recycled when `due` comes, for it has asked for that too soon.
    """

    name: ClassVar[str] = "RUNNING"
    pid: int
    since: float
    tries: int = 0
    due: float | None = None
    seen: bool = False
    unseen: int = 0
    put_off: str = ""


class Backoff(msgspec.Struct, frozen=True, tag=True):
    """A start failed; `due` is when the next is tried."""

    name: ClassVar[str] = "BACKOFF"
    pid: ClassVar[None] = None
    due: float
    tries: int
    why: str


class Retiring(msgspec.Struct, frozen=True, tag=True):
    """To be told to end as soon as it has nothing in hand; until then it serves. `due`: when patience is over."""

    name: ClassVar[str] = "STOPPING"
    pid: int
    since: float
    due: float
    after: After


class Stopping(msgspec.Struct, frozen=True, tag=True):
    """Told to end. `due`: when SIGKILL is sent; once it is `killed`, when it is abandoned.

    patient: nothing is urgent. What is known to have a request in hand then is not killed, but looked at again later.
    """

    name: ClassVar[str] = "STOPPING"
    pid: int
    due: float
    after: After
    killed: bool = False
    patient: bool = False


class Exited(msgspec.Struct, frozen=True, tag=True):
    """It ended by itself and is not to be started again (autorestart). done: that was all that it is for (`ready`).

    word: as of Died, where its end was not expected.
    """

    name: ClassVar[str] = "EXITED"
    due: ClassVar[None] = None
    pid: ClassVar[None] = None
    exit: Exit
    expected: bool
    done: bool = False
    word: str = ""


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """It would not start; an operator's `start` tries again, and with on_fatal = "retry" its generation does."""

    name: ClassVar[str] = "FATAL"
    due: ClassVar[None] = None
    pid: ClassVar[None] = None
    why: str


class Rest(msgspec.Struct, frozen=True, tag=True):
    """After a stop: stay down."""


class StartAgain(msgspec.Struct, frozen=True, tag=True):
    """After a stop: start anew (a restart)."""


class CountAsFailed(msgspec.Struct, frozen=True, tag=True):
    """After a stop: this was a start that failed (it never became ready)."""

    tries: int
    why: str


After: TypeAlias = Rest | StartAgain | CountAsFailed
State: TypeAlias = Stopped | Spawning | Starting | Running | Backoff | Retiring | Stopping | Exited | Fatal
STATES: Final = (Stopped, Spawning, Starting, Running, Backoff, Retiring, Stopping, Exited, Fatal)
ALIVE: Final = (Starting, Running, Retiring, Stopping)


# Events -------------------------------------------------------------------------------------------------------------


class StartAsked(msgspec.Struct, frozen=True):
    """Somebody wants it to run: the pool's start, or an operator."""


class StopAsked(msgspec.Struct, frozen=True):
    """Somebody wants it down: at once, or with `by` when it has nothing in hand, by then (monotonic) at the latest.

    patient: told at once, it may take as long as its requests need.
    """

    by: float | None = None
    patient: bool = False


class RestartAsked(msgspec.Struct, frozen=True):
    """Somebody wants it down and up again; `by` and `patient` as for StopAsked."""

    by: float | None = None
    patient: bool = False


class RetryAsked(msgspec.Struct, frozen=True):
    """The pause after it was given up is over (on_fatal = "retry"): it has one try."""


class TookTooLong(msgspec.Struct, frozen=True):
    """A request takes it too long: it is to end in so many seconds at most; `again`: and to be started anew."""

    within: float
    again: bool = True


class KillAsked(msgspec.Struct, frozen=True):
    """It is to end at once."""


class Spawned(msgspec.Struct, frozen=True):
    """The spawn worked; `executed`: to the end. Else Executed or SpawnFailed follows, or it dies."""

    pid: int
    executed: bool = True


class Executed(msgspec.Struct, frozen=True):
    """It has come to its program."""


class SpawnFailed(msgspec.Struct, frozen=True):
    """The spawn did not work: nothing runs, or what runs will not come to its program and ends."""

    why: str


class Ready(msgspec.Struct, frozen=True):
    """It has shown that it is fit to serve: it answered a ping, or said READY=1."""


class Takes(msgspec.Struct, frozen=True):
    """It, or a process below it, was seen to wait for connections on its listener; or, `served`, to have one in hand.

    known: False, nothing was seen, for it may not be looked at.
    """

    served: bool = False
    known: bool = True


class Astray(msgspec.Struct, frozen=True):
    """It does not take its listener, but does this."""

    what: str


class Died(msgspec.Struct, frozen=True):
    """It is dead and reaped. `spare`: the pool can afford an early death (see crashes.py).

    proved: its program is known to take its listener. word: what it said of its end on its standard error.
    """

    exit: Exit
    spare: bool = True
    proved: bool = False
    word: str = ""


class Idle(msgspec.Struct, frozen=True):
    """It has nothing in hand, and is held so until this event has been worked off."""


class Due(msgspec.Struct, frozen=True):
    """The moment that the state's `due` names has come. `busy`: it has a request in hand, for all that is known."""

    busy: bool = False


class Held(msgspec.Struct, frozen=True):
    """The next try has to wait until then: the pool as a whole is crash-looping."""

    until: float


Event: TypeAlias = (
    StartAsked
    | StopAsked
    | RestartAsked
    | RetryAsked
    | TookTooLong
    | KillAsked
    | Spawned
    | Executed
    | SpawnFailed
    | Ready
    | Takes
    | Astray
    | Died
    | Idle
    | Due
    | Held
)
EVENTS: Final = (
    StartAsked, StopAsked, RestartAsked, RetryAsked, TookTooLong, KillAsked, Spawned, Executed, SpawnFailed, Ready,
    Takes, Astray,
    Died, Idle, Due, Held,
)  # fmt: skip


# Actions ------------------------------------------------------------------------------------------------------------


class Spawn(msgspec.Struct, frozen=True):
    """Start a process and answer with Spawned or SpawnFailed, if the state is still Spawning when its turn comes."""


class Signal(msgspec.Struct, frozen=True):
    """Send `signal` to the leader, or to its whole process group."""

    signal: int
    group: bool


class Abandon(msgspec.Struct, frozen=True):
    """SIGKILL has not ended it: say what holds it, and wait for it no more."""


Action: TypeAlias = Spawn | Signal | Abandon
Outcome: TypeAlias = tuple[State, tuple[Action, ...]]

_SPAWN: Final = (Spawn(),)


class Slot(msgspec.Struct, frozen=True):
    """What a decision may look at besides state and event: the settings, and where this process stands in its pool."""

    settings: ProcessSettings
    index: int = 0
    seed: float = 0.0


def step(slot: Slot, state: State, event: Event, now: float) -> Outcome:
    """Answer with the state after `event` and the actions to carry out, in order.

    Raises ImpossibleEventError where the pair is `impossible`.
    """
    return TRANSITIONS[type(state)][type(event)](slot, state, event, now)


# The decisions, in the order of a life. Each is (slot, state, event, now) -> (state, actions); their parameters are
# untyped in state and event because the table, not the type checker, pairs them.


def spawn(slot: Slot, state: State, event: Event, now: float) -> Outcome:
    return Spawning(tries=0), _SPAWN


def try_again(slot: Slot, state: Backoff, event: Event, now: float) -> Outcome:
    return Spawning(tries=state.tries), _SPAWN


def try_once(slot: Slot, state: Fatal, event: RetryAsked, now: float) -> Outcome:
    """If that fails it is FATAL again at once: the next pause is its generation's affair."""
    return Spawning(tries=slot.settings.startretries + 1), _SPAWN


def wait_longer(slot: Slot, state: Backoff, event: Held, now: float) -> Outcome:
    return msgspec.structs.replace(state, due=max(state.due, event.until)), ()


def come_up(slot: Slot, state: Spawning, event: Spawned, now: float) -> Outcome:
    if not event.executed:
        due = now + EXECUTED_WITHIN
        return _starting(state, event.pid, now, due, executed=False), ()
    return _become_ready(slot, event.pid, state, now)


def go_on_starting(slot: Slot, state: Starting, event: Executed, now: float) -> Outcome:
    if state.executed or state.fault:
        return state, ()
    return _become_ready(slot, state.pid, state, now)


def _become_ready(slot: Slot, pid: int, before: Spawning | Starting, now: float) -> Outcome:
    settings = slot.settings
    if settings.ready == "exit":
        return _starting(before, pid, now, None), ()
    if settings.ready == "startsecs" and settings.startsecs <= 0:
        return running(settings, pid, now, before.tries, now, unseen=before.unseen), ()
    if settings.ready == "startsecs" or (settings.ready == "accepts" and settings.startsecs > 0):
        patience = settings.startsecs
    else:
        patience = ready_within(settings)
    if before.follows:
        patience = min(ready_within(settings), max(settings.startsecs, EARLY))
    return _starting(before, pid, now, now + patience), ()


def _starting(
    before: Spawning | Starting, pid: int, now: float, due: float | None, *, executed: bool = True
) -> Starting:
    tries, follows, unseen = before.tries, before.follows, before.unseen
    return Starting(pid=pid, since=now, tries=tries, due=due, executed=executed, follows=follows, unseen=unseen)


def ready_within(settings: ProcessSettings) -> float:
    """Seconds from its start in which a process has to be ready."""
    match settings.ready:
        case "startsecs":
            return settings.startsecs
        case "accepts":
            return max(settings.startsecs, settings.ready_timeout)
        case _:
            return settings.ready_timeout


def running(
    settings: ProcessSettings,
    pid: int,
    since: float,
    tries: int,
    now: float,
    *,
    seen: bool = False,
    unseen: int = 0,
) -> Running:
    """With the end of its lifetime, if it has one."""
    due = None if settings.max_lifetime is None else max(now, since + settings.max_lifetime)
    return Running(pid=pid, since=since, tries=tries, due=due, seen=seen, unseen=unseen)


def go_by(settings: ProcessSettings, state: State, now: float) -> State:
    """The state after a change of the settings that touches no process."""
    ends = settings.ready == "exit"
    match state:
        case Exited(expected=True):
            return msgspec.structs.replace(state, done=ends)
        case Starting(executed=True, fault="") if ends:
            return msgspec.structs.replace(state, due=None)
        case Running(pid=pid, since=since, tries=tries) if ends:
            return Starting(pid=pid, since=since, tries=tries, due=None, seen=state.seen, unseen=state.unseen)
        case Starting(due=None, pid=pid, since=since, tries=tries):
            return running(settings, pid, since, tries, now)
        case Running(pid=pid, since=since, tries=tries, put_off=put_off):
            after = running(settings, pid, since, tries, now, seen=state.seen, unseen=state.unseen)
            if not put_off:
                return after
            due = min(due for due in (state.due, after.due) if due is not None)
            return msgspec.structs.replace(after, due=due, put_off=put_off)
    return state


def _run(slot: Slot, state: Starting, now: float) -> Running:
    seen, unseen = state.seen, state.unseen
    return running(slot.settings, state.pid, state.since, state.tries, now, seen=seen, unseen=unseen)


def outlive(slot: Slot, state: Running, event: Due, now: float) -> Outcome:
    """Its lifetime is over: the generation sees to its replacement (generation.py), when its turn comes."""
    return msgspec.structs.replace(state, due=now + ASK_AGAIN), ()


def fail_to_spawn(slot: Slot, state: Spawning, event: SpawnFailed, now: float) -> Outcome:
    return back_off_or_give_up(slot, state.tries, event.why, now)


def fail_to_execute(slot: Slot, state: Starting, event: SpawnFailed, now: float) -> Outcome:
    """It is about to end by itself; but it may be another user's by now, who could hold it up."""
    return _end_before_program(state, event.why, now)


def _end_before_program(state: Starting, why: str, now: float) -> Outcome:
    return msgspec.structs.replace(state, fault=why, due=now + ABANDONED_AFTER), (Signal(SIGKILL, group=False),)


def be_ready(slot: Slot, state: Starting, event: Ready, now: float) -> Outcome:
    if slot.settings.ready in ("startsecs", "accepts", "exit") or state.fault:
        return state, ()  # readiness is not a matter of its word here; a READY=1 that nobody asked for changes nothing
    return _run(slot, state, now), ()


def take(slot: Slot, state: Starting, event: Takes, now: float) -> Outcome:
    """It serves, or will: ready as soon as it has lived startsecs too, unless its forerunners have shown enough."""
    if state.fault or not state.executed:
        return state, ()
    settings = slot.settings
    seen, served = state.seen or event.known, state.served or event.served
    if state.takes and (seen, served) == (state.seen, state.served):
        return state, ()
    after = msgspec.structs.replace(
        state,
        takes=True,
        seen=seen,
        served=served,
        tries=0 if served else state.tries,
        unseen=0 if seen else state.unseen,
        astray="" if seen else state.astray,
    )
    if settings.ready != "accepts":
        return after, ()
    if (state.follows and event.known) or now - state.since >= settings.startsecs:
        return _run(slot, after, now), ()
    return msgspec.structs.replace(after, due=state.since + settings.startsecs), ()


def be_seen(slot: Slot, state: Running, event: Takes, now: float) -> Outcome:
    if not event.known or state.seen:
        return state, ()
    return msgspec.structs.replace(state, seen=True, unseen=0), ()


def go_astray(slot: Slot, state: Starting, event: Astray, now: float) -> Outcome:
    return (state if state.takes else msgspec.structs.replace(state, astray=event.what)), ()


def be_ready_or_give_up(slot: Slot, state: Starting, event: Due, now: float) -> Outcome:
    settings = slot.settings
    if state.fault:
        return _abandon(back_off_or_give_up(slot, state.tries, state.fault, now))
    if not state.executed:
        return _end_before_program(state, f"had not come to execute its program within {EXECUTED_WITHIN:g} s", now)
    if settings.ready == "startsecs" or (settings.ready == "accepts" and state.takes):
        return _run(slot, state, now), ()
    last = state.since + ready_within(settings)
    if now < last:
        return msgspec.structs.replace(state, due=last, missed=state.follows), ()
    stopping = Stopping(
        pid=state.pid, due=now + settings.stopwaitsecs, after=CountAsFailed(state.tries, _not_ready(settings, state))
    )
    return stopping, (_stop_signal(settings),)


def _not_ready(settings: ProcessSettings, state: Starting) -> str:
    what = "did not take the pool's socket" if settings.ready == "accepts" else "not ready"
    astray = f": {state.astray}" if state.astray else ""
    return f"{what} within ready_timeout ({settings.ready_timeout:g} s){astray}"


def die_young(slot: Slot, state: Starting, event: Died, now: float) -> Outcome:
    settings = slot.settings
    if state.fault:
        return back_off_or_give_up(slot, state.tries, state.fault, now)
    if settings.ready == "exit":
        if expected(settings, event.exit):
            return Exited(exit=event.exit, expected=True, done=True), ()
        why = f"{event.exit} {_seconds(now - state.since)} after its start{said(event.word)}"
        return back_off_or_give_up(slot, state.tries, why, now)
    if expected(settings, event.exit):
        if settings.autorestart is not True:
            return Exited(exit=event.exit, expected=True), ()  # a one-shot that was quicker than startsecs
        if state.seen or _is_believed(state, event):
            # Having served proves as much as the time it did not live; but an answer or a word that is waited for, not.
            follows = state.follows or (state.served and settings.ready in ("startsecs", "accepts"))
            return _recycled(state, follows=follows), _SPAWN
    why = f"{event.exit} {_seconds(now - state.since)} after its start, before it was ready{said(event.word)}"
    return back_off_or_give_up(slot, state.tries, why, now)


def respawn_or_rest(slot: Slot, state: Running, event: Died, now: float) -> Outcome:
    settings = slot.settings
    as_expected = expected(settings, event.exit)
    if settings.autorestart is False or (settings.autorestart == "unexpected" and as_expected):
        return Exited(exit=event.exit, expected=as_expected, word="" if as_expected else event.word), ()
    age = now - state.since
    if not died_early(settings, age):
        return Spawning(tries=0, follows=as_expected and event.proved), _SPAWN
    if as_expected and (state.seen or _is_believed(state, event)):
        return _recycled(state, follows=True), _SPAWN
    if not event.spare or (as_expected and event.proved):
        why = f"{event.exit} {_seconds(age)} after its start, as others of this pool just did{said(event.word)}"
        return back_off_or_give_up(slot, state.tries, why, now)
    return Spawning(tries=state.tries), _SPAWN


def _is_believed(state: Starting | Running, event: Died) -> bool:
    """Whether one that ended as expected has accepted, for all that is known, and only was not seen to.

    Not after a failed start.
    """
    return event.proved and event.spare and state.unseen < MOST_UNSEEN and state.tries == 0


def _recycled(state: Starting | Running, *, follows: bool) -> Spawning:
    if state.seen:
        return Spawning(tries=0, follows=follows)
    return Spawning(tries=state.tries, follows=follows, unseen=state.unseen + 1)


def back_off_or_give_up(slot: Slot, tries: int, why: str, now: float) -> Outcome:
    settings = slot.settings
    if 0 <= settings.startretries <= tries:
        return Fatal(why=why), ()
    jitter = (slot.seed + 0.618 * slot.index + 0.414 * tries) % 1.0  # spreads siblings evenly, repeatable in a test
    delay = backoff_delay(tries, settings.backoff_initial, settings.backoff_max, jitter)
    return Backoff(due=now + delay, tries=tries + 1, why=why), ()


def stop(slot: Slot, state: Starting | Running | Retiring, event: StopAsked, now: float) -> Outcome:
    return _end(slot, state, event, Rest(), now)


def stop_to_restart(slot: Slot, state: Starting | Running | Retiring, event: RestartAsked, now: float) -> Outcome:
    return _end(slot, state, event, StartAgain(), now)


def _end(
    slot: Slot, state: Starting | Running | Retiring, event: StopAsked | RestartAsked, after: After, now: float
) -> Outcome:
    if event.by is not None:
        return Retiring(pid=state.pid, since=state.since, due=event.by, after=after), ()
    settings = slot.settings
    due = now + (_patience(settings) if event.patient else settings.stopwaitsecs)
    return Stopping(pid=state.pid, due=due, after=after, patient=event.patient), (_stop_signal(settings),)


def _patience(settings: ProcessSettings) -> float:
    return max(settings.stopwaitsecs, PATIENCE)


def end_in_time(slot: Slot, state: Running, event: TookTooLong, now: float) -> Outcome:
    after: After = StartAgain() if event.again else Rest()
    return Stopping(pid=state.pid, due=now + event.within, after=after), (_stop_signal(slot.settings),)


def lose_patience(slot: Slot, state: Stopping, event: TookTooLong, now: float) -> Outcome:
    if not state.patient:
        return state, ()  # its end is known
    return msgspec.structs.replace(state, due=now + event.within, patient=False), ()


def stop_at_last(slot: Slot, state: Retiring, event: Idle | Due, now: float) -> Outcome:
    """The moment has come, or will not come in time."""
    return _end(slot, state, StopAsked(), state.after, now)


def serve_on(slot: Slot, state: Retiring, event: StartAsked, now: float) -> Outcome:
    return running(slot.settings, state.pid, state.since, 0, now), ()


def kill(slot: Slot, state: Starting | Running | Retiring, event: KillAsked, now: float) -> Outcome:
    stopping = Stopping(pid=state.pid, due=now + ABANDONED_AFTER, after=Rest(), killed=True)
    return stopping, (Signal(SIGKILL, slot.settings.killasgroup),)


def kill_now(slot: Slot, state: Stopping, event: KillAsked, now: float) -> Outcome:
    due = state.due if state.killed else now + ABANDONED_AFTER  # who says it twice does not wait the longer for it
    killed = msgspec.structs.replace(state, due=due, killed=True, patient=False, after=Rest())
    return killed, (Signal(SIGKILL, slot.settings.killasgroup),)


def wait_or_take_no_excuses(slot: Slot, state: Stopping, event: Due, now: float) -> Outcome:
    if state.patient and event.busy:
        return msgspec.structs.replace(state, due=now + _patience(slot.settings)), ()
    if state.killed:
        return _abandon(_go_on_after(slot, state.after, now))
    killed = msgspec.structs.replace(state, due=now + ABANDONED_AFTER, killed=True, patient=False)
    return killed, (Signal(SIGKILL, slot.settings.killasgroup),)


def stay_down(slot: Slot, state: Stopping, event: StopAsked, now: float) -> Outcome:
    return msgspec.structs.replace(_in_time(slot, state, event, now), after=Rest()), ()


def start_after_stop(slot: Slot, state: Stopping, event: StartAsked, now: float) -> Outcome:
    return msgspec.structs.replace(state, after=StartAgain()), ()


def restart_after_stop(slot: Slot, state: Stopping, event: RestartAsked, now: float) -> Outcome:
    return msgspec.structs.replace(_in_time(slot, state, event, now), after=StartAgain()), ()


def _in_time(slot: Slot, state: Stopping, event: StopAsked | RestartAsked, now: float) -> Stopping:
    """It was waited for patiently, and now somebody waits."""
    if event.patient or not state.patient:
        return state
    return msgspec.structs.replace(state, due=now + slot.settings.stopwaitsecs, patient=False)


def end_stop(slot: Slot, state: Retiring | Stopping, event: Died, now: float) -> Outcome:
    return _go_on_after(slot, state.after, now)


def _go_on_after(slot: Slot, after: After, now: float) -> Outcome:
    if isinstance(after, StartAgain):
        return Spawning(tries=0), _SPAWN
    if isinstance(after, CountAsFailed):
        return back_off_or_give_up(slot, after.tries, after.why, now)
    return Stopped(), ()


def _abandon(outcome: Outcome) -> Outcome:
    """What follows a process that nothing ends is what follows one that has ended."""
    after, actions = outcome
    return after, (Abandon(), *actions)


def rest(slot: Slot, state: State, event: Event, now: float) -> Outcome:
    return Stopped(), ()


def stay(slot: Slot, state: State, event: Event, now: float) -> Outcome:
    return state, ()


def impossible(slot: Slot, state: State, event: Event, now: float) -> Outcome:
    raise ImpossibleEventError(f"{state} cannot take {event}")


def died_early(settings: ProcessSettings, age: float) -> bool:
    """Whether a process that ended `age` seconds after its start may be crash-looping."""
    return age < max(settings.startsecs, EARLY)


def expected(settings: ProcessSettings, exit: Exit) -> bool:
    """Whether a process may end so of its own accord."""
    return exit.code is not None and exit.code in settings.exitcodes


def said(word: str) -> str:
    """What a process said of its end, to be put behind what is told of that."""
    return f": {word}" if word else ""


def describe(state: State) -> str | None:
    """Why nothing runs in a state that is no order's, in words."""
    match state:
        case Backoff(why=why) | Fatal(why=why):
            return why
        case Exited(exit=exit, word=word):
            return f"{exit}{said(word)}"
    return None


def _stop_signal(settings: ProcessSettings) -> Signal:
    return Signal(settings.stopsignal, settings.stopasgroup)


def _seconds(age: float) -> str:
    return f"{age:.1f} s" if age >= 0.1 else f"{age * 1000:.0f} ms"


Decision: TypeAlias = Callable[..., Outcome]

# A process without a pid cannot die, come up or be ready; a timer is only ever due where the state has one.
_DOWN: Final[dict[type, Decision]] = {
    StartAsked: spawn,
    StopAsked: rest,
    RestartAsked: spawn,
    RetryAsked: impossible,
    TookTooLong: impossible,
    KillAsked: rest,
    Spawned: impossible,
    Executed: impossible,
    SpawnFailed: impossible,
    Ready: impossible,
    Takes: impossible,
    Astray: impossible,
    Died: impossible,
    Idle: impossible,
    Due: impossible,
    Held: impossible,
}

TRANSITIONS: Final[dict[type, dict[type, Decision]]] = {
    Stopped: _DOWN,
    Exited: _DOWN,
    Fatal: _DOWN | {RetryAsked: try_once},
    # A spawn waits its turn behind others, so orders may overtake it; the manager spawns only what is still Spawning.
    Spawning: {
        StartAsked: stay,
        StopAsked: rest,
        RestartAsked: stay,
        RetryAsked: impossible,
        TookTooLong: impossible,
        KillAsked: rest,
        Spawned: come_up,
        Executed: impossible,
        SpawnFailed: fail_to_spawn,
        Ready: impossible,
        Takes: impossible,
        Astray: impossible,
        Died: impossible,
        Idle: impossible,
        Due: impossible,
        Held: impossible,
    },
    Starting: {
        StartAsked: stay,
        StopAsked: stop,
        RestartAsked: stop_to_restart,
        RetryAsked: impossible,
        TookTooLong: impossible,
        KillAsked: kill,
        Spawned: impossible,
        Executed: go_on_starting,
        SpawnFailed: fail_to_execute,
        Ready: be_ready,
        Takes: take,
        Astray: go_astray,
        Died: die_young,
        Idle: impossible,
        Due: be_ready_or_give_up,
        Held: impossible,
    },
    Running: {
        StartAsked: stay,
        StopAsked: stop,
        RestartAsked: stop_to_restart,
        RetryAsked: impossible,
        TookTooLong: end_in_time,
        KillAsked: kill,
        Spawned: impossible,
        Executed: stay,
        SpawnFailed: stay,  # its death follows
        Ready: stay,
        Takes: be_seen,
        Astray: stay,
        Died: respawn_or_rest,
        Idle: impossible,
        Due: outlive,
        Held: impossible,
    },
    Backoff: _DOWN | {Due: try_again, Held: wait_longer},
    Retiring: {
        StartAsked: serve_on,
        StopAsked: stop,
        RestartAsked: stop_to_restart,
        RetryAsked: impossible,
        TookTooLong: impossible,
        KillAsked: kill,
        Spawned: impossible,
        Executed: stay,
        SpawnFailed: stay,
        Ready: stay,
        Takes: stay,
        Astray: stay,
        Died: end_stop,
        Idle: stop_at_last,
        Due: stop_at_last,
        Held: impossible,
    },
    Stopping: {
        StartAsked: start_after_stop,
        StopAsked: stay_down,
        RestartAsked: restart_after_stop,
        RetryAsked: impossible,
        TookTooLong: lose_patience,
        KillAsked: kill_now,
        Spawned: impossible,
        Executed: stay,
        SpawnFailed: stay,
        Ready: stay,
        Takes: stay,
        Astray: stay,
        Died: end_stop,
        Idle: stay,
        Due: wait_or_take_no_excuses,
        Held: impossible,
    },
}
