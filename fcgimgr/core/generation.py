"""A generation: the processes started from one version of configuration and code, with their own listener.

`step(settings, generation, event, now) -> (generation, actions)` is all there is; like process.py it touches nothing.
A pool has one generation, but for the time of a reload (pool.py). What a generation adds to its processes: when its
listener is opened and closed; how it is drained; the rolling restart, which takes the next process only when the
replacement of the last is ready; recycling; the change of their number; the bound on crash loops; and, with
on_fatal = "retry", when those that were given up are tried once more, all together.

Recycling replaces a process because of what it has become (its age, its memory, what it says itself), not because
anybody has asked for it; so nobody may notice. One at a time, and in a pool only while one more process than wanted,
the stand-in, serves as well: it is started first, behind the last, and sent away when the last replacement is ready.
A program has no stand-in: two of it at once may be one too many.

And nothing is urgent: our own workers are waited for until they have done what they have in hand (`patient`), which is
known from their scoreboard, and is bounded by request_timeout. Whoever stops or restarts them meanwhile waits for
stopwaitsecs, as always. Of other programs nobody knows how long their work may take: they have stopwaitsecs.

A process that a request takes too long (`late`) has a stand-in as well, while it finishes what else it has in hand and
until the one after it is ready; each has one of its own, but where there are as many already as the pool has processes.

Theory of operation. The manager feeds one event at a time. Commands (Start, Stop, Restart, Scale, Kill) name the
processes by index; what happens to one process arrives as Happened(index, event). Each is turned into events for the
processes, and their answers are collected. Then, whatever the event was, the same questions are asked: is the rolling
restart to go on, or the recycling, are there stand-ins or other processes too few or too many, is the listener still
wanted, and is anything to be tried again later. So no path through the code can forget them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, TypeAlias

import msgspec

from fcgimgr.config.settings import PoolSettings, ProcessSettings
from fcgimgr.core import crashes, process
from fcgimgr.core.backoff import backoff_delay
from fcgimgr.core.process import (
    Abandon,
    Backoff,
    Died,
    Due,
    Exited,
    Fatal,
    Held,
    KillAsked,
    Rest,
    RestartAsked,
    Retiring,
    RetryAsked,
    Running,
    Signal,
    Slot,
    Spawn,
    Spawning,
    StartAsked,
    Starting,
    State,
    StopAsked,
    Stopped,
    Stopping,
    Takes,
    TookTooLong,
    died_early,
)


class PoolState(StrEnum):
    """What `status` says of a pool."""

    RUNNING = "RUNNING"  # all that is wanted is ready
    STARTING = "STARTING"
    DEGRADED = "DEGRADED"  # some of what is wanted is ready
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FATAL = "FATAL"
    EXITED = "EXITED"  # all that is wanted has done what it is for (`ready = "exit"`)


#: What depends on one in such a state may start, and the manager is fit to serve with it.
READY: Final = (PoolState.RUNNING, PoolState.EXITED)


class Generation(msgspec.Struct, frozen=True):
    """A generation at one moment. `processes` may be longer than `wanted`: the last ones are on their way out."""

    wanted: int
    budget: crashes.Budget
    seed: float = 0.0
    processes: tuple[State, ...] = ()
    up: bool = False  # the operator (or autostart) wants it up
    waiting: tuple[str, ...] = ()  # the dependencies that it waits for
    open: bool = False  # listeners are bound
    opening: tuple[int, ...] = ()  # processes to start once they are
    fault: str | None = None  # why they could not be
    rolling: tuple[int, ...] = ()  # still to be restarted; the first one is under way
    hard: bool = False  # … without regard to what they have in hand
    recycling: tuple[Recycle, ...] = ()  # still to be recycled
    replacing: bool = False  # the first of them is under way
    late: tuple[int, ...] = ()  # those that a request took too long, until they are replaced
    stand_ins: tuple[int, ...] = ()  # the processes, behind the others, that serve meanwhile
    recycle_from: float = 0.0  # no sooner: a replacement was no good
    left: bool = False  # another generation has taken its place
    held: bool = False  # but it may have to come back, so that it stays whole
    draining: float | None = None  # it gets no new connection; when it has to end, whatever is still in the queue
    refusing: bool = False  # the listener lets no new connection in, and cannot be made to any more
    again: tuple[int, ...] = ()  # to be started anew, on a new listener, once this one is closed
    complete: bool = False  # all that is wanted has been ready since the last start
    retry_at: float | None = None  # when those that are FATAL are tried once more
    retries: int = 0  # how often that was in vain, in a row
    retried: float | None = None  # when it was last
    retrying: bool = False  # the listeners are opened for that
    to_open: tuple[int, ...] = ()  # the processes that were to start when the listeners could not be bound
    proved: bool = False  # since then one was seen to take the listener
    trust: crashes.Budget = crashes.Budget(tokens=0.0, at=0.0)  # in those that end before they were seen to


def new_generation(settings: ProcessSettings, now: float, seed: float = 0.0) -> Generation:
    """A generation at rest. `seed` in [0, 1) makes its back-off jitter differ from other machines'."""
    return Generation(
        wanted=settings.numprocs,
        budget=crashes.full(settings.numprocs, now),
        seed=seed,
        processes=(Stopped(),) * settings.numprocs,
    )


# Events -------------------------------------------------------------------------------------------------------------


class Start(msgspec.Struct, frozen=True):
    """Start these processes, or all that are wanted (None)."""

    indexes: tuple[int, ...] | None = None


class Stop(msgspec.Struct, frozen=True):
    """Stop these processes, or the pool (None)."""

    indexes: tuple[int, ...] | None = None


class Hold(msgspec.Struct, frozen=True):
    """New connections go to another generation: stay as you are, for they may come back."""


class Return(msgspec.Struct, frozen=True):
    """They have come back: be whole again, whatever you were told since."""


class Leave(msgspec.Struct, frozen=True):
    """New connections go to another generation: serve what has come, and end. `served`: whether any ever came."""

    served: bool = True


class QueueEmpty(msgspec.Struct, frozen=True):
    """No connection waits to be accepted any more, and no new one can come."""


class DrainDue(msgspec.Struct, frozen=True):
    """The moment that `draining` names has come."""


class RetryDue(msgspec.Struct, frozen=True):
    """The moment that `retry_at` names has come."""


class Restart(msgspec.Struct, frozen=True):
    """Restart these processes, or all (None), one after the other; `hard`: without regard to what they have in hand."""

    indexes: tuple[int, ...] | None = None
    hard: bool = False


class Recycle(msgspec.Struct, frozen=True):
    """This process is to be replaced without anybody noticing, when its turn comes."""

    index: int
    why: str


class Overdue(msgspec.Struct, frozen=True):
    """A request takes this process too long: it is to end, and to be replaced.

    hopeless: so do all that it has in hand, so that there is nothing to wait for.
    """

    index: int
    pid: int
    hopeless: bool = False


class Accepted(msgspec.Struct, frozen=True):
    """Connections that waited have been accepted, by whom nobody knows. blind: nor can it be seen of any process."""

    blind: bool = False


class SettingsChanged(msgspec.Struct, frozen=True):
    """The settings are others from now on."""


class Kill(msgspec.Struct, frozen=True):
    """End every process at once."""


class Scale(msgspec.Struct, frozen=True):
    """Have this many processes."""

    numprocs: int


class WaitFor(msgspec.Struct, frozen=True):
    """It is to start as soon as these dependencies are RUNNING."""

    names: tuple[str, ...]


class Opened(msgspec.Struct, frozen=True):
    """The listeners are bound."""


class OpenFailed(msgspec.Struct, frozen=True):
    """The listeners could not be bound; none is left open."""

    why: str


class Happened(msgspec.Struct, frozen=True):
    """Something happened to one process."""

    index: int
    event: process.Event


Event: TypeAlias = (
    Start
    | Stop
    | Hold
    | Return
    | Leave
    | QueueEmpty
    | DrainDue
    | RetryDue
    | Restart
    | Recycle
    | Overdue
    | Accepted
    | SettingsChanged
    | Kill
    | Scale
    | WaitFor
    | Opened
    | OpenFailed
    | Happened
)


# Actions ------------------------------------------------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True):
    """Bind the listeners; answer at once with Opened or OpenFailed."""


class Refuse(msgspec.Struct, frozen=True):
    """Let no new connection in; what waits in the queue is still accepted."""


class Close(msgspec.Struct, frozen=True):
    """Close the listeners: clients are refused from now on."""


class SpawnProcess(msgspec.Struct, frozen=True):
    """Spawn this process when its turn comes, if it is Spawning then; answer with Spawned or SpawnFailed."""

    index: int


class SignalProcess(msgspec.Struct, frozen=True):
    """Send a signal to the process, or its group."""

    index: int
    pid: int
    signal: int
    group: bool


class AbandonProcess(msgspec.Struct, frozen=True):
    """SIGKILL has not ended this process: say what holds it, and wait for it no more."""

    index: int
    pid: int


class Changed(msgspec.Struct, frozen=True):
    """A process has another state, be it only by a later `due`."""

    index: int
    before: State
    after: State


class Forget(msgspec.Struct, frozen=True):
    """The process with this index, the last one, is no longer part of the pool."""

    index: int


class Recycling(msgspec.Struct, frozen=True):
    """Somebody may want to know why this process is replaced now."""

    index: int
    why: str


class PutOff(msgspec.Struct, frozen=True):
    """A process is not recycled yet: new ones ask for it as soon as they have started."""

    index: int
    why: str


class NotRecycled(msgspec.Struct, frozen=True):
    """Processes that were to be recycled stay, because a new one is no good."""

    indexes: tuple[int, ...]


Action: TypeAlias = (
    Open
    | Refuse
    | Close
    | SpawnProcess
    | SignalProcess
    | AbandonProcess
    | Changed
    | Forget
    | Recycling
    | PutOff
    | NotRecycled
)

_AT_REST: Final = (Stopped, Exited, Fatal)

# Seconds without recycling after a new process was no good.
RECYCLE_AGAIN: Final = 60.0

# The pauses between two tries of what is FATAL, from the first to the longest, in times of backoff_max.
RETRY_FIRST: Final = 2.0
RETRY_LONGEST: Final = 20.0

# Seconds that a process has to end when there is nothing to wait for.
HOPELESS: Final = 1.0


def step(
    settings: ProcessSettings, generation: Generation, event: Event, now: float
) -> tuple[Generation, list[Action]]:
    """Answer with the generation after `event` and the actions to carry out, in order.

    Raises process.ImpossibleEventError, having changed nothing.
    """
    draft = _Draft(settings, generation, now)
    draft.take(event)
    draft.go_on_rolling()
    draft.go_on_recycling()
    draft.go_on_standing_in()
    draft.drop_surplus()
    draft.close_unless_wanted()
    draft.go_on_retrying()
    return draft.finish(), draft.actions


def pool_state(pool: Generation) -> PoolState:
    """The one word for the pool that `status` shows."""
    if pool.fault is not None:
        return PoolState.FATAL
    if pool.up and pool.waiting:
        return PoolState.STARTING
    counts = _count(pool.processes[: pool.wanted])
    at_rest = counts["STOPPED"] + counts["EXITED"] + counts["FATAL"]
    if not pool.up:
        return PoolState.STOPPED if at_rest == pool.wanted else PoolState.STOPPING
    running = counts["RUNNING"]
    running += sum(isinstance(pool.processes[index], Running) for index in pool.stand_ins)
    if counts["STARTING"]:
        running += sum(_follows(state) for state in pool.processes[: pool.wanted])
    if running >= pool.wanted:
        return PoolState.RUNNING
    if at_rest == pool.wanted:
        if all(isinstance(state, Exited) and state.done for state in pool.processes[: pool.wanted]):
            return PoolState.EXITED
        return PoolState.FATAL if counts["FATAL"] else PoolState.STOPPED
    if running:
        troubled = pool.complete or counts["BACKOFF"] or counts["FATAL"] or counts["STOPPED"] or counts["EXITED"]
        return PoolState.DEGRADED if troubled else PoolState.STARTING
    return PoolState.STARTING if counts["STARTING"] or counts["BACKOFF"] else PoolState.STOPPING


def _count(processes: Iterable[State]) -> dict[str, int]:
    by_type = Counter(map(type, processes))  # in C: a pool of a thousand is counted often
    counts = dict.fromkeys((state.name for state in process.STATES), 0)
    for state in process.STATES:
        counts[state.name] += by_type[state]
    return counts


def _follows(state: State) -> bool:
    """Whether it is just being replaced, having recycled itself: that is no less ready than before."""
    match state:
        case Spawning(follows=True) | Starting(follows=True, missed=False):
            return True
    return False


class _Draft:
    """The generation while one event is worked into it."""

    __slots__ = (
        "actions",
        "again",
        "budget",
        "draining",
        "fields",
        "late",
        "now",
        "open",
        "opening",
        "pool",
        "processes",
        "recycle_from",
        "recycling",
        "refusing",
        "replacing",
        "retry_at",
        "rolling",
        "settings",
        "stand_ins",
        "up",
        "wanted",
    )

    def __init__(self, settings: ProcessSettings, pool: Generation, now: float) -> None:
        self.settings = settings
        self.pool = pool
        self.now = now
        self.actions: list[Action] = []
        self.processes = list(pool.processes)
        self.fields: dict[str, object] = {}
        self.budget = pool.budget
        self.wanted = pool.wanted
        self.up = pool.up
        self.open = pool.open
        self.opening = pool.opening
        self.rolling = pool.rolling
        self.recycling = pool.recycling
        self.replacing = pool.replacing
        self.late = pool.late
        self.stand_ins = pool.stand_ins
        self.recycle_from = pool.recycle_from
        self.draining = pool.draining
        self.refusing = pool.refusing
        self.again = pool.again
        self.retry_at = pool.retry_at

    # Events

    def take(self, event: Event) -> None:
        if self.pool.left and isinstance(event, Start | Restart | Recycle | Scale | WaitFor):
            return  # its time is over: such orders are for the generation that has taken its place
        match event:
            case Happened(index, happening):
                self._happen(index, happening)
            case Start(indexes):
                self._start(indexes)
            case Stop(None):
                self._stop()
            case Hold():
                self.fields.update(left=True, held=True)
                self.rolling, self.recycling, self.replacing = (), (), False
            case Return():
                self._return()
            case Leave(served):
                self.fields.update(left=True, held=False)
                if served:
                    self._drain()
                else:  # what waits in its queue is a ping that it has left unanswered
                    self._go_down()
                    self._tell_each(range(len(self.processes)), StopAsked())
            case QueueEmpty():
                self._stop_draining(StopAsked(by=self.draining) if self._retires else StopAsked())
            case DrainDue():
                self._stop_draining(StopAsked())
            case RetryDue():
                self._retry()
            case Stop(tuple(indexes)):
                # The one under way stays at the head: the next is taken when it has come to rest.
                self.rolling = self.rolling[:1] + tuple(index for index in self.rolling[1:] if index not in indexes)
                self.fields["to_open"] = tuple(index for index in self.pool.to_open if index not in indexes)
                self._tell_each(indexes, self._gentle_stop())
            case Restart(indexes, hard):
                self._restart(indexes, hard)
            case Recycle():
                self._recycle_unless_too_soon(event)
            case Overdue(index, pid, hopeless):
                self._end_overdue(index, pid, hopeless)
            case Accepted(blind):
                self._believe(blind)
            case SettingsChanged():
                self._go_by_new_settings()
            case Kill():
                self._go_down()
                self._tell_each(range(len(self.processes)), KillAsked())
            case Scale(numprocs):
                self._scale(numprocs)
            case WaitFor(names):
                self.up = True
                self.fields.update(waiting=names, fault=None, complete=False)
            case Opened():
                self.open = True
                opening, self.opening = self.opening, ()
                self.fields.update(retrying=False, to_open=())
                for index in opening:
                    once = self.pool.retrying and isinstance(self.processes[index], Fatal)
                    self._tell(index, RetryAsked() if once else StartAsked())
            case OpenFailed(why):
                self.fields.update(fault=why, retrying=False, to_open=self.opening)
                self.opening = ()
                self.rolling = ()

    def _happen(self, index: int, event: process.Event) -> None:
        if index >= len(self.processes):
            raise process.ImpossibleEventError(f"there is no process {index} that could take {event}")
        state = self.processes[index]
        if isinstance(event, Died) and isinstance(state, Starting | Running):
            event = self._charge(state, event)
        elif isinstance(event, Takes) and event.known:
            self.fields["proved"] = True
        elif isinstance(event, Due) and isinstance(state, Backoff):
            event = self._let_try_or_hold(event)
        elif isinstance(event, Due) and isinstance(state, Running):
            self._recycle(Recycle(index, state.put_off or f"max_lifetime ({self.settings.max_lifetime:g} s) is over"))
        self._tell(index, event)

    def _charge(self, state: Starting | Running, event: Died) -> Died:
        """An early death costs the pool a token; one that came late shows that the pool is sound.

        An expected end of one that was seen to accept is none of a crash; of one that was not, it costs a token of
        another kind. (Any other death before it was ready is a failed start.)
        """
        event = msgspec.structs.replace(event, proved=self.pool.proved)
        if isinstance(state, Running) and not died_early(self.settings, self.now - state.since):
            self.budget = crashes.full(self.wanted, self.now)
        elif event.proved and process.expected(self.settings, event.exit):
            if state.seen:
                self.fields["trust"] = crashes.full(self.wanted, self.now)
            else:
                spare, self.fields["trust"] = crashes.spend(self.pool.trust, self.wanted, self.now)
                event = msgspec.structs.replace(event, spare=spare)
        elif isinstance(state, Running):
            spare, self.budget = crashes.spend(self.budget, self.wanted, self.now)
            event = msgspec.structs.replace(event, spare=spare)
        return event

    def _believe(self, blind: bool) -> None:
        """Those that end as expected without having been seen do serve, if nobody is there that was seen."""
        if blind:
            self.fields["proved"] = True
        if any(isinstance(state, Starting | Running) and state.seen for state in self.processes):
            return
        self.fields["trust"] = crashes.full(self.wanted, self.now)
        for index, state in enumerate(self.processes):
            if isinstance(state, Spawning | Starting | Running) and (state.unseen or (blind and state.tries)):
                after = msgspec.structs.replace(state, unseen=0, tries=0 if blind else state.tries)
                self.processes[index] = after
                self.actions.append(Changed(index, state, after))

    def _let_try_or_hold(self, event: Due) -> Due | Held:
        spare, self.budget = crashes.spend(self.budget, self.wanted, self.now)
        if spare:
            return event
        stable = (
            isinstance(state, Running) and not died_early(self.settings, self.now - state.since)
            for state in self.processes
        )
        if any(stable):
            self.budget = crashes.full(self.wanted, self.now)
            return event
        return Held(until=crashes.next_token(self.budget))

    def _start(self, indexes: tuple[int, ...] | None) -> None:
        if indexes is None:
            self.fields.update(complete=False, proved=False)
        indexes = self._wanted(indexes)
        if self.refusing:
            self.again = tuple(dict.fromkeys(self.again + indexes))
            return
        self.up = True
        self.retry_at = None
        self.fields.update(waiting=(), fault=None, retries=0, retried=None, retrying=False, to_open=())
        if self.open:
            self._tell_each(indexes, StartAsked())
        else:
            self.opening = indexes
            self.actions.append(Open())

    def _wanted(self, indexes: tuple[int, ...] | None) -> tuple[int, ...]:
        """These processes, or all, without those that scaling down takes away."""
        return tuple(range(self.wanted) if indexes is None else (i for i in indexes if i < self.wanted))

    @property
    def _retires(self) -> bool:
        """Whether its processes may lose what they have in hand on the stopsignal. Our own workers do not."""
        return isinstance(self.settings, PoolSettings) and self.settings.wsgi is None

    def _gentle_stop(self) -> StopAsked:
        return StopAsked(by=self.now + self.settings.stopwaitsecs if self._retires else None)

    @property
    def _has_patience(self) -> bool:
        """Whether it is known how long its processes have work, so that they can be waited for."""
        return isinstance(self.settings, PoolSettings) and self.settings.wsgi is not None

    def _go_down(self) -> None:
        self.up = False
        self.opening = ()
        self.rolling = ()
        self.recycling = ()
        self.replacing = False
        self.late = ()
        self.stand_ins = ()  # they go with the others
        self.draining = None
        self.again = ()
        self.fields.update(waiting=(), fault=None, to_open=())

    def _stop(self) -> None:
        if self.refusing:
            self.again = ()  # it is on its way down already
            self.up = False  # and does not wait any more for what it depends on
            self.fields["waiting"] = ()
        elif not (self.open and isinstance(self.settings, PoolSettings) and self._anybody_serves()):
            self._go_down()
            self._tell_each(range(len(self.processes)), StopAsked())
        elif self.draining is None:
            self._drain()
            self.refusing = True
            self.actions.append(Refuse())

    def _return(self) -> None:
        if self.refusing or not self.open:
            return  # it was on its way down before, and nobody comes to it any more
        self.fields.update(left=False, held=False)
        self.draining = None
        self.up = True
        for index in range(self.wanted):
            self._hurry(index)
            self._tell(index, StartAsked())  # also of one that was told to end: it is started anew when it has

    def _drain(self) -> None:
        self._go_down()
        self.draining = self.now + self.settings.stopwaitsecs

    def _stop_draining(self, event: StopAsked) -> None:
        if self.draining is not None:
            self.draining = None
            self._tell_each(range(len(self.processes)), event)

    def _anybody_serves(self) -> bool:
        return any(isinstance(state, process.ALIVE) for state in self.processes)

    def _restart(self, indexes: tuple[int, ...] | None, hard: bool) -> None:
        indexes = self._wanted(indexes)
        if not self.open or self.refusing or not indexes:
            self._start(indexes)
            return
        self.up = True
        if self.replacing and not self.rolling:
            self.rolling = (self.recycling[0].index,)
            self.recycling, self.replacing = self.recycling[1:], False
            self._hurry(self.rolling[0])
        self.recycling = tuple(one for one in self.recycling if one.index not in indexes)
        under_way, queued = self.rolling[:1], self.rolling[1:]
        # One that is under way was told before this command came, so it has to go once more to run the newest code.
        self.rolling = under_way + tuple(index for index in queued if index not in indexes) + indexes
        self.fields["hard"] = hard
        if not under_way:
            self._tell(self.rolling[0], self._restart_asked(hard))

    def _restart_asked(self, hard: bool) -> RestartAsked:
        return RestartAsked(by=None if hard else self._gentle_stop().by)

    def _scale(self, numprocs: int) -> None:
        before, self.wanted = self.wanted, numprocs
        self.rolling = self.rolling[:1] + tuple(index for index in self.rolling[1:] if index < numprocs)
        self.opening = tuple(index for index in self.opening if index < numprocs)
        self.again = tuple(index for index in self.again if index < numprocs)
        if numprocs != before:
            # Those that stay are like all others now, and those that are to be replaced still need a stand-in.
            self.stand_ins = tuple(index for index in self.stand_ins if before < numprocs <= index)
            self.replacing = self.replacing and self.recycling[0].index < numprocs
            self.recycling = tuple(one for one in self.recycling if one.index < numprocs)
        self.processes.extend(Stopped() for _ in range(numprocs - len(self.processes)))
        if numprocs < before:
            self._tell_each(range(numprocs, len(self.processes)), self._gentle_stop())
        elif self.up and self.open and not self.refusing:
            for index in range(before, numprocs):
                self._hurry(index)  # a stand-in that is on its way out
                self._tell(index, StartAsked())

    def _end_overdue(self, index: int, pid: int, hopeless: bool) -> None:
        state = self.processes[index] if index < len(self.processes) else None
        if state is None or state.pid != pid or not isinstance(state, Running | Stopping):
            return
        within = min(HOPELESS, self.settings.stopwaitsecs) if hopeless else self.settings.stopwaitsecs
        if isinstance(state, Running) and index < self.wanted:
            self.late = (*(one for one in self.late if one != index), index)
            self.recycling = tuple(one for one in self.recycling if one.index != index)  # the next one is new anyway
        self.stand_ins = tuple(one for one in self.stand_ins if one != index)
        self._tell(index, TookTooLong(within, again=index < self.wanted))

    def _hurry(self, index: int) -> None:
        """Somebody waits for the end of this process, so that it has no more than stopwaitsecs left for it."""
        state = self.processes[index]
        if isinstance(state, Stopping) and state.patient:
            self._tell(index, StopAsked() if isinstance(state.after, Rest) else RestartAsked())

    def _recycle_unless_too_soon(self, event: Recycle) -> None:
        """One that is to be replaced as soon as it has started is as good as one that crashes then: it costs a token,
        and without one it has to wait. A max_lifetime is what its operator wants, however short.
        """
        if not self._may_be_recycled(event.index):
            return
        state = self.processes[event.index]
        if isinstance(state, Running) and died_early(self.settings, self.now - state.since):
            if state.put_off:
                return
            spare, self.budget = crashes.spend(self.budget, self.wanted, self.now)
            if not spare:
                due = self.now + self.settings.backoff_max
                if state.due is not None:
                    due = min(due, state.due)
                after = msgspec.structs.replace(state, due=due, put_off=event.why)
                self.processes[event.index] = after
                self.actions += [Changed(event.index, state, after), PutOff(event.index, event.why)]
                return
        self._recycle(event)

    def _recycle(self, event: Recycle) -> None:
        if self._may_be_recycled(event.index):
            self.recycling += (event,)

    def _may_be_recycled(self, index: int) -> bool:
        if not (self.up and self.open) or self.refusing or self.pool.left:
            return False
        if index >= self.wanted or self.now < self.recycle_from:
            return False
        known = index in self.rolling or any(one.index == index for one in self.recycling)
        return not known and isinstance(self.processes[index], Running)

    def _retry(self) -> None:
        """Start what is FATAL once more, all together: the cause may have gone."""
        if self.retry_at is None or self.now < self.retry_at:
            return  # it was put off, or is not wanted any more
        self.retry_at = None
        self.fields.update(fault=None, retried=self.now)
        fatal = tuple(index for index in range(self.wanted) if isinstance(self.processes[index], Fatal))
        if self.open:
            self._tell_each(fatal, RetryAsked())
            return
        unopened = [index for index in self.pool.to_open if index < self.wanted and index not in fatal]
        self.opening = tuple(sorted([*fatal, *unopened]))
        if self.opening:
            self.fields["retrying"] = True
            self.actions.append(Open())

    def _go_by_new_settings(self) -> None:
        """Another max_lifetime, or another idea of what is ready, holds for the processes that are there, too."""
        for index, state in enumerate(self.processes):
            after = process.go_by(self.settings, state, self.now)
            if after != state:
                self.processes[index] = after
                self.actions.append(Changed(index, state, after))

    # The questions that follow every event

    def go_on_rolling(self) -> None:
        while self.rolling:
            match self.processes[self.rolling[0]]:
                case Running() | Stopped() | Exited(expected=True):  # replaced; or stopped by somebody since
                    self.rolling = self.rolling[1:]
                    if self.rolling:
                        self._tell(self.rolling[0], self._restart_asked(self.pool.hard))
                case Backoff() | Fatal() | Exited():  # the replacement is no good: the others stay as they are
                    self.rolling = ()
                case _:
                    return

    def go_on_recycling(self) -> None:
        while self.recycling:
            index, why = self.recycling[0].index, self.recycling[0].why
            match self.processes[index]:
                case Running() if not self.replacing:
                    if self.rolling or not self._is_covered():
                        break
                    self.actions.append(Recycling(index, why))
                    self.replacing = True
                    self._tell(index, RestartAsked(by=self._gentle_stop().by, patient=self._has_patience))
                case Fatal() if self.replacing:
                    self._recycle_no_more()
                    self.recycling, self.replacing = (), False
                case Backoff() if self.replacing:
                    self._recycle_no_more()
                    return  # and the stand-in stays with it
                case Spawning() | Starting() | Retiring() | Stopping() if self.replacing:
                    return
                case _:  # replaced; or gone for another reason
                    self.recycling, self.replacing = self.recycling[1:], False

    def _is_covered(self) -> bool:
        """Whether another process can be spared."""
        if not isinstance(self.settings, PoolSettings):
            return True
        ready = sum(isinstance(self.processes[index], Running) for index in self.stand_ins)
        return ready > sum(map(self._is_missed, self.late))

    def _recycle_no_more(self) -> None:
        """A new process is no good: those that wait for their turn stay as they are."""
        self.recycle_from = self.now + RECYCLE_AGAIN
        under_way = self.recycling[:1] if self.replacing else ()
        if waiting := self.recycling[len(under_way) :]:
            self.actions.append(NotRecycled(tuple(one.index for one in waiting)))
        self.recycling = under_way

    def _is_missed(self, index: int) -> bool:
        """Whether this one, which a request took too long, is still to be replaced."""
        if index >= self.wanted:
            return False
        match self.processes[index]:
            case Stopping(after=Rest()):  # told by somebody to stay down
                return False
            case Stopping() | Retiring() | Spawning() | Starting() | Backoff():
                return True
            case _:
                return False

    def go_on_standing_in(self) -> None:
        self.late = tuple(index for index in self.late if self._is_missed(index))
        if not (self.up and self.open) or self.refusing:
            return  # those there are serve what has come, like all others
        good = tuple(i for i in self.stand_ins if isinstance(self.processes[i], Spawning | Starting | Running))
        if good != self.stand_ins:
            self.stand_ins = good
            self._recycle_no_more()
        needed = self._stand_ins_needed()
        while len(self.stand_ins) > needed:
            not_ready = [index for index in self.stand_ins if not isinstance(self.processes[index], Running)]
            leaving = (not_ready or self.stand_ins)[-1]
            self.stand_ins = tuple(index for index in self.stand_ins if index != leaving)
        for index in range(self.wanted, len(self.processes)):
            if index not in self.stand_ins and isinstance(
                self.processes[index], Spawning | Starting | Running | Backoff
            ):
                self._tell(index, StopAsked(by=self._gentle_stop().by, patient=self._has_patience))
        while len(self.stand_ins) < needed and self._there_is_room(needed):
            self._start_stand_in()

    def _stand_ins_needed(self) -> int:
        if not isinstance(self.settings, PoolSettings):
            return 0
        return len(self.late) + bool(self.recycling and not self.rolling)

    def _there_is_room(self, needed: int) -> bool:
        """For one more stand-in. One that is on its way out has to go first; but where requests are stuck, only if
        there are as many behind the others as the pool has processes."""
        if self.now < self.recycle_from:
            return False
        behind = sum(not isinstance(state, _AT_REST) for state in self.processes[self.wanted :])
        urgent = len(self.stand_ins) < len(self.late)
        return behind < (max(needed, self.wanted) if urgent else needed)

    def _start_stand_in(self) -> None:
        at_rest = (i for i in range(self.wanted, len(self.processes)) if isinstance(self.processes[i], _AT_REST))
        index = next(at_rest, len(self.processes))
        if index == len(self.processes):
            self.processes.append(Stopped())
        self.stand_ins += (index,)
        self._tell(index, StartAsked())

    def drop_surplus(self) -> None:
        while len(self.processes) > self.wanted and isinstance(self.processes[-1], _AT_REST):
            self.processes.pop()
            self.actions.append(Forget(len(self.processes)))

    def close_unless_wanted(self) -> None:
        if not self.open or self.opening:
            return
        # From the end: a thousand that are stopped together die in their order, and each death asks this question.
        if any(not isinstance(state, _AT_REST) for state in reversed(self.processes)):
            return
        failed = any(isinstance(state, Fatal) for state in self.processes)
        if self.up and failed and isinstance(self.settings, PoolSettings) and self.settings.on_fatal == "keep":
            return
        self.open = self.refusing = False
        self.draining = None
        self.actions.append(Close())
        if self.again:
            self.opening, self.again, self.up = self.again, (), True
            self.actions.append(Open())

    def go_on_retrying(self) -> None:
        wanted = self.settings.on_fatal == "retry" and self.up and not (self.refusing or self.opening)
        if not wanted or self._now_is("waiting") or not (self._now_is("fault") or self._is_any_fatal()):
            self.retry_at = None
        elif self.retry_at is None:
            self.retry_at = self.now + self._pause()

    def _is_any_fatal(self) -> bool:
        return Fatal in map(type, self.processes[: self.wanted])  # in C, as this is asked often

    def _pause(self) -> float:
        """Seconds until the next try; they grow, until one was good for longer than the pause that would follow."""
        first, longest = RETRY_FIRST * self.settings.backoff_max, RETRY_LONGEST * self.settings.backoff_max
        retries = self.pool.retries
        retried = self._now_is("retried")
        pause = backoff_delay(retries, first, longest, (self.pool.seed + 0.414 * retries) % 1.0)
        if not isinstance(retried, float) or self.now - retried >= pause:
            retries, pause = 0, backoff_delay(0, first, longest, self.pool.seed)
        self.fields["retries"] = retries + 1
        return pause

    def _now_is(self, field: str) -> object:
        return self.fields.get(field, getattr(self.pool, field))

    def finish(self) -> Generation:
        if not self.pool.complete and "complete" not in self.fields and isinstance(self.processes[-1], Running):
            self.fields["complete"] = all(isinstance(state, Running) for state in self.processes[: self.wanted])
        return msgspec.structs.replace(
            self.pool,
            processes=tuple(self.processes),
            wanted=self.wanted,
            budget=self.budget,
            up=self.up,
            open=self.open,
            opening=self.opening,
            rolling=self.rolling,
            recycling=self.recycling,
            replacing=self.replacing,
            late=self.late,
            stand_ins=self.stand_ins,
            recycle_from=self.recycle_from,
            draining=self.draining,
            refusing=self.refusing,
            again=self.again,
            retry_at=self.retry_at,
            **self.fields,
        )

    # Processes

    def _tell_each(self, indexes: Iterable[int], event: process.Event) -> None:
        for index in indexes:
            self._tell(index, event)

    def _tell(self, index: int, event: process.Event) -> None:
        before = self.processes[index]
        slot = Slot(self.settings, index, self.pool.seed)
        after, actions = process.step(slot, before, event, self.now)
        self.processes[index] = after
        if after is not before:
            self.actions.append(Changed(index, before, after))
        for action in actions:
            match action:
                case Spawn():
                    self.actions.append(SpawnProcess(index))
                case Signal(signal, group):
                    pid = before.pid
                    assert pid is not None  # TRANSITIONS signals only from states that have a pid
                    self.actions.append(SignalProcess(index, pid, signal, group))
                case Abandon():
                    assert before.pid is not None  # as above
                    self.actions.append(AbandonProcess(index, before.pid))
