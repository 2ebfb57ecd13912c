"""The table of `status`: aligned, a header line a pool, and quick to read with a thousand processes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from fcgimgr.control.messages import GenerationStatus, PoolStatus, ProcessStatus, SocketStatus, Status

from .terminal import Paint, laid_out, safe

FOLD_ABOVE: Final = 50
"""A pool with more processes than this is folded: what just runs is one line."""

SHOWN_OF_A_STATE: Final = 20
"""Of a folded pool, so many processes of each other state are shown; the rest is one line."""

_JUST_STARTED: Final = 60.0
"""Seconds: a process that was restarted within this time is worth showing."""

_LONGEST: Final = 10_000 * 86400.0
"""Seconds. A worker runs other people's code, which may have written anything where its times stand."""

_HEADINGS: Final = ("NAME", "STATE", "PID", "UPTIME", "RESTARTS", "BUSY", "REQUESTS", "RSS")
_STATE_WIDTH: Final = len("STARTING")
_BELOW_A_POOL: Final = " " * 4
_BELOW_A_PROCESS: Final = " " * 6


def all_running(pool: PoolStatus) -> bool:
    """Whether nothing that is wanted is missing.

    The pool's own state knows what is wanted; where the manager was asked for some of its processes only, these count.
    """
    if not _is_selection(pool):
        return pool.state in ("RUNNING", "EXITED")
    return all(process.state == "RUNNING" for process in pool.processes)


def _is_selection(pool: PoolStatus) -> bool:
    """Whether the manager was asked for some of its processes only: for one that is missing there is a row too."""
    return 0 < len(pool.processes) < pool.numprocs


def render(status: Status, paint: Paint, *, verbose: bool = False, columns: int | None = None) -> Iterable[str]:
    """The lines of the table. columns: of the terminal, where what is said of a row goes on below it; None: no end."""
    manager = status.manager
    state = "" if manager.state == "RUNNING" else f"  {paint.state(manager.state)}"
    about = f"fcgimgr {manager.version}  pid {manager.pid}  up {duration(manager.uptime)}  {safe(manager.config)}"
    yield paint(about, "grey") + state
    if status.pools:
        yield from _table(status, paint, verbose, columns)
    else:
        yield "no pools and no programs"
    for log in status.logs:
        lost = [f"{log.lost} line{'' if log.lost == 1 else 's'} lost"] if log.lost else []
        facts = [safe(log.problem), *lost]
        lines = laid_out(safe(f"log {log.path}: "), facts, ", ", columns, _BELOW_A_POOL)
        yield from (paint(line, "red") for line in lines)


def _table(status: Status, paint: Paint, verbose: bool, columns: int | None) -> Iterable[str]:
    parts = [part for pool in status.pools for part in _parts(pool, verbose)]
    rows = {id(process): _row(part.pool, process) for part in parts for process in part.processes}
    names = [(_generation_name(part.beside) if part.beside else part.pool.name,) for part in parts]
    widths = _widths([_HEADINGS, *rows.values(), *names])
    yield ""
    yield paint(_aligned(_HEADINGS, widths, _HEADINGS[1].ljust(widths[1])), "bold").rstrip()
    for part in parts:
        if part.beside is None:
            name, state, facts = part.pool.name, part.pool.state, _pool_facts(part.pool, paint)
        else:
            name, state, facts = _generation_name(part.beside), part.beside.state, _generation_facts(part.beside, paint)
        head = f"{name.ljust(widths[0])}  {paint.state(state, widths[1])}  "
        yield from laid_out(head, facts, "  ", columns, _BELOW_A_POOL)
        for process in part.processes:
            row = _aligned(rows[id(process)], widths, paint.state(process.state, widths[1]))
            notes = [safe(note) for note in _notes(part.pool, process, verbose)]
            yield from laid_out(f"{row}  ", notes, "; ", columns, _BELOW_A_PROCESS)
            if verbose:
                yield from _requests(process)
        yield from (f"  {summary}" for summary in part.summaries)
    if any(_why_restarted(process) for part in parts for process in part.processes):
        yield paint("RESTARTS: c after a crash, r recycled, h by hand", "grey")


# -- which processes are shown ----------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """What is shown together: a pool, or of it a generation `beside` the one that serves."""

    pool: PoolStatus
    processes: Sequence[ProcessStatus]
    summaries: list[str]
    beside: GenerationStatus | None = None


def _parts(pool: PoolStatus, verbose: bool) -> Iterable[_Part]:
    numbers = {generation.number for generation in pool.generations}
    own = [process for process in pool.processes if process.generation not in numbers]
    processes, summaries = _fold(own, verbose)
    yield _Part(pool, [*_zygotes(pool, verbose), *processes], summaries)
    for generation in pool.generations:
        its = [process for process in pool.processes if process.generation == generation.number]
        yield _Part(pool, *_fold(its, verbose), generation)


def _fold(processes: Sequence[ProcessStatus], verbose: bool) -> tuple[Sequence[ProcessStatus], list[str]]:
    """The processes worth a line, and a line for each lot of the others."""
    if verbose or len(processes) <= FOLD_ABOVE:
        return processes, []
    by_state: dict[str, list[ProcessStatus]] = defaultdict(list)
    plain = []
    for process in processes:
        if _plain(process):
            plain.append(process)
        else:
            by_state[process.state].append(process)
    shown = [process for some in by_state.values() for process in some[:SHOWN_OF_A_STATE]]
    rest = {state: some[SHOWN_OF_A_STATE:] for state, some in by_state.items()}
    rest["RUNNING"] = plain + rest.get("RUNNING", [])
    return shown, [_summary(state, some, len(shown)) for state, some in rest.items() if some]


def _zygotes(pool: PoolStatus, verbose: bool) -> Sequence[ProcessStatus]:
    """Those worth a line: who does not want to know of them hears of them when they fail."""
    return [zygote for zygote in pool.zygotes if verbose or zygote.state in ("BACKOFF", "FATAL")]


def _plain(process: ProcessStatus) -> bool:
    lately = process.restarts and process.uptime is not None and process.uptime < _JUST_STARTED
    return process.state == "RUNNING" and not process.reason and not lately


def _summary(state: str, processes: list[ProcessStatus], shown: int) -> str:
    facts = [f"{len(processes)} {'more ' if shown else ''}{state}"]
    busy = [process.busy for process in processes if process.busy is not None]
    if busy:
        facts.append(f"{sum(busy)} busy")
    memory = [process.rss for process in processes if process.rss is not None]
    if memory:
        facts.append(f"RSS {size(sum(memory))} together, {size(max(memory))} at most")
    return f"{', '.join(facts)} (-v lists them)"


# -- how a line looks -------------------------------------------------------------------------------------------------


def _row(pool: PoolStatus, process: ProcessStatus) -> tuple[str, ...]:
    return (
        f"  {pool.name}:{process.name}",
        process.state,
        _known(process.pid),
        "-" if process.uptime is None else duration(process.uptime),
        _why_restarted(process) or _known(process.restarts),
        "-" if process.busy is None else "yes" if process.busy else "no",
        _known(process.requests),
        "-" if process.rss is None else size(process.rss),
    )


def _why_restarted(process: ProcessStatus) -> str:
    """How often by which cause, "2c 5r"; "": never, or that is not known."""
    counts = ((process.crashes, "c"), (process.recycled, "r"), (process.by_hand, "h"))
    parts = [f"{count}{letter}" for count, letter in counts if count]
    unknown = (process.restarts or 0) - sum(count or 0 for count, _ in counts)
    return " ".join([*([str(unknown)] if unknown > 0 else []), *parts]) if parts else ""


def _known(number: int | None) -> str:
    return "-" if number is None else str(number)


def _widths(rows: Iterable[Sequence[str]]) -> list[int]:
    widths = [0] * len(_HEADINGS)
    widths[1] = _STATE_WIDTH
    for row in rows:
        for column, cell in enumerate(row):
            widths[column] = max(widths[column], len(cell))
    return widths


def _aligned(row: Sequence[str], widths: list[int], state: str) -> str:
    """Names and states to the left, numbers to the right; `state` is padded already, because colour has no width."""
    numbers = (cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
    return "  ".join((row[0].ljust(widths[0]), state, *numbers))


def _pool_facts(pool: PoolStatus, paint: Paint) -> list[str]:
    beside = {generation.number for generation in pool.generations}
    own = [process for process in pool.processes if process.generation not in beside]
    running = sum(process.state == "RUNNING" for process in own)
    if _is_selection(pool):
        known = f"{running} of {len(own)} running, {pool.numprocs - len(own)} not asked for"
    elif pool.state == "RUNNING":  # one that has just recycled itself is missed no more than its forerunner
        known = f"{max(running, pool.numprocs)} of {pool.numprocs} running"
    else:
        known = f"{running} of {pool.numprocs} running"
    facts = [known, *(_socket(socket, paint) for socket in pool.sockets if not _is_in_reason(socket, pool))]
    if pool.saturated_for is not None:
        facts.append(paint(f"saturated for {duration(pool.saturated_for)}", "yellow"))
    if pool.reason:
        facts.append(safe(pool.reason))
    if pool.state == "FATAL":
        if pool.state_for is not None:
            facts.append(f"FATAL for {duration(pool.state_for)}")
        facts += _advice(pool.name, pool.retry_in)
    if pool.canary is not None:
        facts.append(paint(f"canary {pool.canary:g} %", "yellow"))
    if pool.discarded:
        facts.append(paint(safe(pool.discarded), "red"))
    facts += [paint(safe(f"could not be killed: {one.process}, {one.reason}"), "red") for one in pool.abandoned]
    return facts


def _generation_name(generation: GenerationStatus) -> str:
    return f"  generation {generation.number}"


def _generation_facts(generation: GenerationStatus, paint: Paint) -> list[str]:
    facts = [safe(generation.doing)] if generation.doing else []
    if generation.queued is not None:
        facts.append(paint(f"queue {generation.queued}", "yellow" if generation.queued else None))
    if generation.killed_in is not None:
        facts.append(f"killed in {generation.killed_in:.0f} s")
    return facts


def _is_in_reason(socket: SocketStatus, pool: PoolStatus) -> bool:
    """Whether the reason of a pool that cannot listen begins with this address."""
    return pool.reason is not None and pool.reason.startswith(f"{socket.address}: ")


def _socket(socket: SocketStatus, paint: Paint) -> str:
    if socket.queued is None:
        return safe(socket.address)
    queue = f"queue {socket.queued}/{_known(socket.backlog)}"
    return f"{safe(socket.address)} {paint(queue, 'yellow' if socket.queued else None)}"


def _requests(process: ProcessStatus) -> Iterable[str]:
    """A line for each request that it has in hand."""
    for request in process.current:
        yield f"      {safe(request.method)} {safe(request.uri)}  for {took(request.seconds)}"
    if process.in_hand is not None and process.in_hand > len(process.current):
        yield f"      and {process.in_hand - len(process.current)} more"


def _advice(name: str, retry_in: float | None) -> list[str]:
    """What is to be done about what is FATAL."""
    waiting = [] if retry_in is None else [f"next try in {retry_in:.0f} s"]
    return [*waiting, f"once it is mended: fcgimgr start {name}"]


def _notes(pool: PoolStatus, process: ProcessStatus, verbose: bool) -> list[str]:
    """Why it is not running, and what comes next; of one that runs, how long its last request took."""
    notes = []
    if process.reason:
        notes.append(process.reason)
    elif process.state != "RUNNING" and process.exit is not None:
        if process.exit.unknown:
            notes.append("ended, nobody knows how")
        if process.exit.signal is not None:
            notes.append(f"killed by {process.exit.signal}")
        elif process.exit.code is not None:
            notes.append(f"exit code {process.exit.code}")
    if process.state == "FATAL":
        if process.state_for is not None:
            notes.append(f"FATAL for {duration(process.state_for)}")
        if pool.state != "FATAL":  # else it stands beside the pool's name
            notes += _advice(f"{pool.name}:{process.name}", process.retry_in)
    elif process.retry_in is not None:
        notes.append(f"next try in {process.retry_in:.0f} s")
    if verbose and process.last_duration is not None:
        notes.append(f"last request took {took(process.last_duration)}")
    return notes


def took(seconds: float) -> str:
    """As exact as is of use: 0.4 ms, 12 ms, 3.2 s, 12m34s."""
    if seconds < 1:
        return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def duration(seconds: float) -> str:
    """Two figures at most: 12s, 3m20s, 5h12m, 3d4h; what no clock can have shown is ">9999d"."""
    if not seconds < _LONGEST:
        return ">9999d"
    whole = max(0, int(seconds))
    for unit, length, below, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length}{unit}{whole % length // part}{below}"
    return f"{whole}s"


def size(count: int) -> str:
    """Bytes in the largest unit that keeps a figure before the point: 512B, 21.3M."""
    amount = float(count)
    for unit in ("B", "K", "M", "G"):
        if amount < 1024:
            return f"{amount:.0f}{unit}" if unit == "B" else f"{amount:.1f}{unit}"
        amount /= 1024
    return f"{amount:.1f}T"
