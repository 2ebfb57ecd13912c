"""What the control socket says: every method, its parameters, its result, and the notifications on the way.

JSON-RPC 2.0, one object a line, on a Unix stream socket. A request has an id and gets exactly one response with that
id; a request without one would ask for something and hear nothing, so it is refused. While a command waits, and
after a `tail` or `events` that follows, the manager sends notifications (no id) on the same connection.

The promise to users: what is in these shapes stays, new keys may come. So the manager refuses parameters it does not
know (an old manager must not silently ignore what a newer client means), while the client skips unknown keys of a
result. States are plain text here for the same reason. Unknown is null, never 0.

Times are seconds; `uptime` and `retry_in` are durations, `Event.time` is since the epoch. Sizes are bytes.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

LINE_LIMIT: Final = 1024 * 1024
"""The longest line, in bytes without its newline, that the manager takes from a client."""

CLIENT_LIMIT: Final = 64
"""How many clients the manager serves at once; the next one hears `REFUSED` and is hung up on."""

# Error codes. The negative ones are JSON-RPC's own.
PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
NO_SUCH_NAME: Final = 1
REFUSED: Final = 2

RequestId = int | str | None


class ControlError(Exception):
    """A request that got no result.

    `code` is one of the codes above; `id` is the request's, None where it could not be read.
    """

    def __init__(self, message: str, *, code: int = INTERNAL_ERROR, id: RequestId = None) -> None:
        super().__init__(message)
        self.code = code
        self.id = id


class NoManager(ControlError):  # noqa: N818 - it is a finding, not a fault
    """Nobody answers at the control socket: it is absent, or left over."""


class ManagerGone(ControlError):  # noqa: N818
    """The manager hung up before it answered: it ended, or was asked to."""


# -- parameters -------------------------------------------------------------------------------------------------------

Name = Annotated[str, Meta(min_length=1, max_length=256)]
"""`app` or `app:*` (all of it), `app:app_00`, a group, or `all`."""

Names = Annotated[tuple[Name, ...], Meta(min_length=1)]


class NoParams(Struct, frozen=True, forbid_unknown_fields=True):
    """`ping`, `reopen` and `check` take none."""


class StatusParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Without `names`: all. `detail` asks for what costs a look at each process and socket: `busy`, `rss`, requests,
    the queue lengths."""

    names: tuple[Name, ...] | None = None
    detail: bool = True


class NamesParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`start` and `stop`. With `wait` the response comes when it is over; without, when it has begun."""

    names: Names
    wait: bool = True


class RestartParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`hard`: one process after the other is told to end, without regard to what it has in hand."""

    names: Names
    hard: bool = False
    wait: bool = True


class ReloadParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`canary`: percent of the connections that the new generation gets, until a `promote` or `abort`.

    Without it that is each pool's `reload_canary`; `whole`: none at all.
    """

    names: Names
    canary: Annotated[float, Meta(gt=0, lt=100)] | None = None
    whole: bool = False
    action: Literal["reload", "promote", "abort"] = "reload"
    wait: bool = True


class UpdateParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read the configuration file again and apply what is different; with `dry_run`, only say what that would be."""

    dry_run: bool = False
    wait: bool = True


class ScaleParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`numprocs` is text, so that "+2" (two more) and "2" (two altogether) differ."""

    name: Name
    numprocs: Annotated[str, Meta(pattern=r"^[+-]?[0-9]{1,6}$")]
    wait: bool = True

    def target(self, current: int) -> int:
        """How many processes are asked for when there are `current`; may be below 0, for the caller to refuse."""
        number = int(self.numprocs)
        return current + number if self.numprocs[0] in "+-" else number


class SignalParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`signal` is a name with or without SIG, or a number as text."""

    names: Names
    signal: Annotated[str, Meta(min_length=1, max_length=32)]


class TailParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last `lines` lines of a process, or of each of several; with `follow`, `line` notifications until the client
    hangs up."""

    name: Name
    stream: Literal["stdout", "stderr"] = "stdout"
    lines: Annotated[int, Meta(ge=0, le=100_000)] = 10
    follow: bool = False


class LogParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last `lines` lines of the manager's own log; with `follow`, `line` notifications as in `tail`."""

    lines: Annotated[int, Meta(ge=0, le=100_000)] = 10
    follow: bool = False


class EventsParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The last `n` events, or of those about `names`; with `follow`, `event` notifications until the client hangs up.

    `names` also of what is no more, as long as its events are remembered.
    """

    names: tuple[Name, ...] | None = None
    n: Annotated[int, Meta(ge=0, le=100_000)] = 20
    follow: bool = False


class ShutdownParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`now` skips the grace given to processes. With `wait` the response comes just before the manager ends."""

    now: bool = False
    wait: bool = True


class DrainParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`probe ready` says no from now on; `undo` takes that back. `timeout`: how long to `wait` at most, in seconds."""

    undo: bool = False
    wait: bool = True
    timeout: Annotated[float, Meta(ge=0, le=1e9)] | None = None


class UpgradeParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Execute the code that is installed now. The response comes before that, and then the manager hangs up."""

    wait: bool = True


class ProbeParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`live`: the manager's loop turns. `ready`: the manager is up, and each pool that was started has who serves; with
    `strict`, all its processes, none is saturated, and each log can be written. A manager that does not know `strict`
    is not asked for it in vain."""

    kind: Literal["live", "ready"]
    strict: bool = False


Params = (
    NoParams
    | StatusParams
    | NamesParams
    | RestartParams
    | ReloadParams
    | UpdateParams
    | UpgradeParams
    | ScaleParams
    | SignalParams
    | TailParams
    | LogParams
    | EventsParams
    | ShutdownParams
    | DrainParams
    | ProbeParams
)

METHODS: Final[dict[str, type[Params]]] = {
    "ping": NoParams,
    "status": StatusParams,
    "start": NamesParams,
    "stop": NamesParams,
    "restart": RestartParams,
    "reload": ReloadParams,
    "update": UpdateParams,
    "upgrade": UpgradeParams,
    "scale": ScaleParams,
    "signal": SignalParams,
    "tail": TailParams,
    "log": LogParams,
    "reopen": NoParams,
    "events": EventsParams,
    "shutdown": ShutdownParams,
    "drain": DrainParams,
    "probe": ProbeParams,
    "check": NoParams,
}


# -- results ----------------------------------------------------------------------------------------------------------


class Pong(Struct, frozen=True, kw_only=True):
    """`upgrades`: how often the manager has executed newer code in its own place. `config`: the file that it runs."""

    pid: int
    version: str
    upgrades: int = 0
    config: str | None = None
    pong: bool = True


class Exit(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a process last ended: exactly one of the three. `signal` is a name, "SIGKILL"; `unknown`: it had outlived the
    manager that started it, and only its parent was told."""

    code: int | None = None
    signal: str | None = None
    unknown: bool = False


class RequestStatus(Struct, frozen=True, kw_only=True):
    """A request in hand. `uri` as the client sent it, cut after 448 bytes; `seconds`: since it was begun."""

    method: str
    uri: str
    seconds: float


class ProcessStatus(Struct, frozen=True, kw_only=True):
    """One process. `state` is STOPPED STARTING RUNNING BACKOFF STOPPING EXITED or FATAL.

    `reason` says in words why it is not running; `retry_in` is when a process in BACKOFF is started again, or one that
    is FATAL with `on_fatal = "retry"`; `state_for`, for how long it has been in its state. `crashes`, `recycled` and
    `by_hand` tell its `restarts` apart, as far as they are known. Of a worker of a `wsgi` pool: `in_hand`, how many
    requests it is at work on; `current`, the longest of them first, eight at most; `last_duration`, of the request that
    ended last.
    """

    name: str
    pid: int | None
    state: str
    generation: int | None = None
    uptime: float | None = None
    restarts: int | None = None
    exit: Exit | None = None
    busy: bool | None = None
    requests: int | None = None
    rss: int | None = None
    reason: str | None = None
    retry_in: float | None = None
    in_hand: int | None = None
    last_duration: float | None = None
    crashes: int | None = None
    recycled: int | None = None
    by_hand: int | None = None
    state_for: float | None = None
    current: tuple[RequestStatus, ...] = ()


class AbandonedStatus(Struct, frozen=True, kw_only=True):
    """A process that SIGKILL has not ended and nobody waits for any more. `process`: of which it is; `reason`: its
    state, and who traces it."""

    process: str
    pid: int
    reason: str


class GenerationStatus(Struct, frozen=True, kw_only=True):
    """A generation beside the one that serves. `state`: STARTING (it is not ready yet), CANARY, HELD (it could serve
    again), DRAINING (it finishes what it has accepted).

    `processes`: how many of it live; `queued`: connections that wait for them, also if they are passed on; `doing`: in
    words, what it is at; `killed_in`: seconds until the last of it is killed at the latest.
    """

    number: int
    state: str
    processes: int
    queued: int | None = None
    doing: str | None = None
    killed_in: float | None = None


class SocketStatus(Struct, frozen=True, kw_only=True):
    """`queued`: connections that wait to be accepted, out of `backlog`."""

    address: str
    backlog: int | None
    queued: int | None


class PoolStatus(Struct, frozen=True, kw_only=True):
    """A pool or a program. `state` is RUNNING (all that is wanted), STARTING, DEGRADED, STOPPING, STOPPED or FATAL; of
    a program with `ready = "exit"` EXITED, when it has done what it is for.

    `zygotes`: with `preload` what the processes are forked from, one a generation; none of them serves or counts.
    `generations`: those beside the one that serves; `processes` are of all. `saturated_for`: seconds since when
    connections wait without a break, where that has been told. `state_for`: seconds in this state.
    `discarded`: why the last reload came to nothing, until the next one begins. `retry_in`: of what is FATAL with
    `on_fatal = "retry"`, when that is tried again. `abandoned`: what could not be ended, for as long as it is there.
    """

    name: str
    kind: str
    state: str
    numprocs: int
    generation: int | None = None
    canary: float | None = None
    policy: str | None = None
    sockets: tuple[SocketStatus, ...] = ()
    processes: tuple[ProcessStatus, ...] = ()
    reason: str | None = None
    zygotes: tuple[ProcessStatus, ...] = ()
    discarded: str | None = None
    retry_in: float | None = None
    abandoned: tuple[AbandonedStatus, ...] = ()
    generations: tuple[GenerationStatus, ...] = ()
    saturated_for: float | None = None
    state_for: float | None = None


class ManagerStatus(Struct, frozen=True, kw_only=True):
    """The manager. `state` is STARTING, RUNNING, DRAINING (it serves, and `probe ready` says no) or STOPPING."""

    pid: int
    version: str
    uptime: float
    config: str
    state: str


class LogStatus(Struct, frozen=True, kw_only=True):
    """A log file that cannot be written, or not rotated, just now. `lost`: lines, since that began; of those that the
    workers write themselves it is not known."""

    path: str
    problem: str
    lost: int | None = None


class Status(Struct, frozen=True, kw_only=True):
    """`logs`: those with which something is wrong."""

    manager: ManagerStatus
    pools: tuple[PoolStatus, ...]
    logs: tuple[LogStatus, ...] = ()


class ProcessVerdict(Struct, frozen=True, kw_only=True):
    """`result`: started, already running, done, stopped, not running, restarted, signalled, failed; or, without
    waiting, starting, stopping, restarting. `lines` are the last log lines of a process that failed; `advice`: what to
    do about it."""

    name: str
    ok: bool
    result: str
    detail: str | None = None
    lines: tuple[str, ...] = ()
    advice: str | None = None


class Verdict(Struct, frozen=True, kw_only=True):
    """What came of a command, process by process (named `app:app_00`). `numprocs` only after a `scale`."""

    ok: bool
    processes: tuple[ProcessVerdict, ...]
    numprocs: int | None = None


class Updated(Struct, frozen=True, kw_only=True):
    """`problems`: of the file, and then nothing was applied; `changes`: what differs, in words; `processes`: a verdict
    for each pool and program that was changed; `manager`: settings of the manager that were changed; `restart`: those
    that take a restart; `warnings`: of the file, and of logs that cannot be written, none of them an obstacle."""

    ok: bool
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    manager: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    processes: tuple[ProcessVerdict, ...] = ()


class Tail(Struct, frozen=True, kw_only=True):
    """`processes`: of which process each of the lines is, where several were asked for; else empty."""

    lines: tuple[str, ...]
    processes: tuple[str, ...] = ()


class Reopened(Struct, frozen=True, kw_only=True):
    reopened: int
    problems: tuple[str, ...] = ()


class Event(Struct, frozen=True, kw_only=True):
    """`kind` is process_state, pool_state, reload, listener, load, log, manager or skipped; `time` is since the epoch.

    `detail` says why, in words. Of a process: `cause` is why it ends, has ended or is started, "crash" (nobody wanted
    that), "recycled" or "by_hand"; `by`, who has ordered it, "pid 4711, uid 0" or a signal; `exit`, how it has ended.
    """

    time: float
    kind: str
    name: str
    from_state: str | None = msgspec.field(default=None, name="from")
    to_state: str | None = msgspec.field(default=None, name="to")
    detail: str | None = None
    cause: str | None = None
    by: str | None = None
    exit: Exit | None = None


class Events(Struct, frozen=True, kw_only=True):
    events: tuple[Event, ...]


class Ok(Struct, frozen=True, kw_only=True):
    """The result of `shutdown`."""

    ok: bool = True


class Drained(Struct, frozen=True, kw_only=True):
    """The result of `drain`. `ok` is false where the wait took too long; `reason` says how it stands."""

    ok: bool
    draining: bool
    reason: str


class Probed(Struct, frozen=True, kw_only=True):
    ok: bool
    reason: str


class Checked(Struct, frozen=True, kw_only=True):
    """The configuration file as it is now, read by the running manager; `changed`: it differs from what runs."""

    ok: bool
    problems: tuple[str, ...] = ()
    changed: bool = False


Result = Pong | Status | Verdict | Updated | Tail | Reopened | Events | Ok | Drained | Probed | Checked


# -- notifications ----------------------------------------------------------------------------------------------------


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`line`: one more line of a log that is followed; or, with `skipped`, no line, but how many were left out here,
    because they came faster than the client read. `process`: empty of the manager's own log; `several`: others are
    followed beside it, or were."""

    process: str
    stream: str
    text: str
    skipped: int = 0
    several: bool = False


class Progress(Struct, frozen=True, kw_only=True):
    """`progress`: something happened to `name` while a command waits."""

    name: str
    state: str
    detail: str | None = None


NOTIFICATIONS: Final[dict[str, type[Line | Progress | Event]]] = {"line": Line, "progress": Progress, "event": Event}

Notice = Line | Progress | Event


# -- what travels -----------------------------------------------------------------------------------------------------


class Request(Struct, frozen=True, kw_only=True):
    """A request as the manager sees it: `params` is of the type METHODS gives for `method`."""

    id: RequestId
    method: str
    params: Params


class Problem(Struct, frozen=True, kw_only=True):
    """JSON-RPC's error object."""

    code: int
    message: str
    data: Any = None


class Response(Struct, frozen=True, kw_only=True):
    """An answer as the client sees it: `result` is raw JSON, empty beside an error, to be decoded to what the method
    promises."""

    id: RequestId
    result: msgspec.Raw = msgspec.Raw()
    error: Problem | None = None
