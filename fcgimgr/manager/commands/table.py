"""The commands of the control socket: each a few lines that feed core events and wait for their outcome.

A command gets its typed parameters and the `Caller`, through which notifications go out while it waits.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final, Protocol

from fcgimgr import __version__
from fcgimgr.config.read import ConfigError, read
from fcgimgr.config.settings import PoolSettings
from fcgimgr.config.signals import signal_number
from fcgimgr.control import messages
from fcgimgr.control.messages import (
    INVALID_PARAMS,
    REFUSED,
    ControlError,
    Notice,
    ProcessVerdict,
    Result,
    Verdict,
)
from fcgimgr.core import generation as core
from fcgimgr.core import rollout
from fcgimgr.linux.errors import LinuxError
from fcgimgr.manager.children.abandoned import in_words
from fcgimgr.manager.children.leftovers import mark_of
from fcgimgr.manager.commands import probing, updating, waiting
from fcgimgr.manager.commands.names import Chosen, choose, choose_pool, events_of, indexes_of
from fcgimgr.manager.commands.showing import log, tail
from fcgimgr.manager.commands.status import status as status_of
from fcgimgr.manager.looking.traffic import until_quiet
from fcgimgr.manager.pools.rollouts import tell_how_far
from fcgimgr.manager.succession import upgrading

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.pool import Pool
    from fcgimgr.manager.pools.pool import Verdict as Reloaded

MOST_PROCESSES: Final = 10_000
#: Of new code that does not come up: the pool serves by the processes that it has, and by no others.
NO_WAY_BACK: Final = "processes that die from now on start with that code too: mend it, or put the old code back"


class Caller(Protocol):
    """Who gave the command."""

    def notify(self, method: str, params: Notice) -> None:
        """Send a notification."""

    @property
    def behind(self) -> bool:
        """Whether so much is still unread that only what must be said should be said."""

    def when_caught_up(self, callback: Callable[[], None]) -> None:
        """Call once, as soon as `behind` is over."""

    async def gone(self) -> None:
        """Returns when the caller has hung up."""


async def ping(daemon: Daemon, params: messages.NoParams, caller: Caller) -> Result:
    return messages.Pong(pid=os.getpid(), version=__version__, upgrades=daemon.upgrades, config=daemon.config.path)


async def status(daemon: Daemon, params: messages.StatusParams, caller: Caller) -> Result:
    return await status_of(daemon, choose(daemon, params.names or ("all",)), detail=params.detail)


async def start(daemon: Daemon, params: messages.NamesParams, caller: Caller) -> Result:
    refuse_while_stopping(daemon)
    chosen = choose(daemon, params.names)
    targets = waiting.targets(chosen, waiting.started(daemon))
    for generation, indexes in chosen.items():
        daemon.start_pool(generation.pool, indexes)
    return await outcome(daemon, targets, caller, wait=params.wait, begun="starting")


async def stop(daemon: Daemon, params: messages.NamesParams, caller: Caller) -> Result:
    refuse_while_stopping(daemon)
    chosen = choose(daemon, params.names)
    of = [(generation, index) for generation, indexes in chosen.items() for index in indexes_of(generation, indexes)]
    marks = {mark_of(generation, index) for generation, index in of}
    targets = waiting.targets(chosen, waiting.stopped)
    for generation, indexes in chosen.items():
        if indexes is None:
            generation.pool.stop()
        else:
            generation.feed(core.Stop(indexes))
    verdict = await outcome(daemon, targets, caller, wait=params.wait, begun="stopping")
    if params.wait:  # also of those that had died by themselves, as of one in BACKOFF
        await daemon.leftovers.none_left_of(marks)
    return verdict


async def restart(daemon: Daemon, params: messages.RestartParams, caller: Caller) -> Result:
    refuse_while_stopping(daemon)
    return await replace(daemon, choose(daemon, params.names), caller, hard=params.hard, wait=params.wait)


async def reload(daemon: Daemon, params: messages.ReloadParams, caller: Caller) -> Result:
    refuse_while_stopping(daemon)
    chosen = choose(daemon, params.names)
    for generation, indexes in chosen.items():
        if indexes is not None:
            name = generation.process_name(indexes[0])
            raise ControlError(
                f"{generation.name} is reloaded as a whole; for one process there is: fcgimgr restart {name}",
                code=INVALID_PARAMS,
            )
    if params.action == "reload":
        everything = len(chosen) == len(daemon.pools) and params.canary is None
        shares = {} if params.whole else canary_shares(chosen, params.canary)
        with daemon.reloading() if everything else nullcontext():
            return await replace(daemon, chosen, caller, shares=shares, wait=params.wait)
    verdicts = []
    for generation in chosen:
        event: rollout.Event = rollout.Abort("an operator has aborted it")
        if params.action == "promote":
            event = rollout.Promote(*generation.pool.patience)
        verdicts.append(await decided(generation.pool, event, wait=params.wait))
    return Verdict(ok=all(verdict.ok for verdict in verdicts), processes=tuple(verdicts))


async def replace(
    daemon: Daemon,
    chosen: Chosen,
    caller: Caller,
    *,
    shares: Mapping[str, float] | None = None,
    hard: bool = False,
    wait: bool = True,
) -> Verdict:
    """New processes for old: by generations where that can be, else one after the other on the same listener.

    `shares`: the pools, by name, whose new processes get so many percent of the connections, and no more.
    """
    daemon.ground.put_sockets_back()
    reloads = []
    shares = shares or {}
    rolling: Chosen = {}
    for generation, indexes in chosen.items():
        pool = generation.pool
        if indexes is None and not hard and generation.core.up and pool.can_reload():
            reloads.append((pool, pool.reload(pool.settings, pool.config, shares.get(pool.name))))
        else:
            rolling[generation] = indexes
    targets = waiting.targets(rolling, waiting.restarted(daemon))
    for generation, indexes in rolling.items():
        generation.feed(core.Restart(indexes, hard))
    if not wait:
        begun = tuple(ProcessVerdict(name=pool.name, ok=True, result="reloading") for pool, _ in reloads)
        rest = await outcome(daemon, targets, caller, wait=False, begun="restarting")
        return Verdict(ok=True, processes=begun + rest.processes)

    def tell(progress: messages.Progress) -> None:
        caller.notify("progress", progress)

    ends = await asyncio.gather(*(tell_how_far(pool, verdict, tell) for pool, verdict in reloads))
    verdicts = [reload_verdict(pool, end) for (pool, _), end in zip(reloads, ends, strict=True)]
    rest = await outcome(daemon, targets, caller, wait=True, begun="")
    return Verdict(ok=rest.ok and all(verdict.ok for verdict in verdicts), processes=(*verdicts, *rest.processes))


def reload_verdict(pool: Pool, verdict: Reloaded) -> ProcessVerdict:
    result, detail, advice = "failed", verdict.why or None, None
    if verdict.ok and isinstance(canary := pool.core.coming, rollout.Canary):
        result = "canary"
        detail = f"generation {canary.number} gets {canary.percent:g} % of the connections; --promote or --abort it"
    elif verdict.ok:
        result, detail = "reloaded", verdict.why or f"generation {pool.core.serving} serves"
    elif verdict.switched:
        result = "reloaded"
    elif pool.discarded is not None and verdict.process not in ("", pool.name) and not _has_its_code_in_memory(pool):
        advice = NO_WAY_BACK
    return ProcessVerdict(
        name=pool.name, ok=verdict.ok, result=result, detail=detail, lines=verdict.lines, advice=advice
    )


def _has_its_code_in_memory(pool: Pool) -> bool:
    """Whether its processes are forked from what was imported once, whatever lies in the directory now."""
    return isinstance(pool.settings, PoolSettings) and pool.settings.preload


async def decided(pool: Pool, event: rollout.Event, *, wait: bool) -> ProcessVerdict:
    """What comes of a promotion or an abort."""
    verdict = pool.decide(event)
    if not wait and not verdict.done():
        return ProcessVerdict(name=pool.name, ok=True, result="promoting")
    answer = await asyncio.shield(verdict)
    if isinstance(event, rollout.Abort) and answer.why == event.why:
        return ProcessVerdict(
            name=pool.name, ok=True, result="aborted", detail=f"generation {pool.core.serving} serves"
        )
    return reload_verdict(pool, answer)


def canary_shares(chosen: Chosen, asked: float | None) -> dict[str, float]:
    """What share of the connections the canary of each pool gets: what was asked for, else its `reload_canary`.

    Pools that are reloaded whole are left out. ControlError: a canary is wanted where none can be had.
    """
    shares: dict[str, float] = {}
    for generation in chosen:
        settings = generation.settings
        share = asked
        if asked is None and generation.core.up and isinstance(settings, PoolSettings) and settings.can_have_canary:
            share = settings.reload_canary
        if share is not None:
            refuse_canary(generation)
            shares[generation.name] = share
    return shares


def refuse_canary(generation: Generation) -> None:
    listening = generation.listening
    if listening is None or not listening.can_share:
        raise ControlError(
            f"{generation.name}: a canary needs a TCP socket of the manager's own, where the kernel can share out "
            f"connections; reload it as a whole (reload --no-canary)",
            code=INVALID_PARAMS,
        )


async def scale(daemon: Daemon, params: messages.ScaleParams, caller: Caller) -> Result:
    refuse_while_stopping(daemon)
    pool = choose_pool(daemon, params.name)
    numprocs = params.target(pool.serving.core.wanted)
    if not 1 <= numprocs <= MOST_PROCESSES:
        raise ControlError(
            f"{pool.name} would have {numprocs} processes; it can have 1 to {MOST_PROCESSES}"
            + (f" (to have none, stop it: fcgimgr stop {pool.name})" if numprocs < 1 else ""),
            code=INVALID_PARAMS,
        )
    if numprocs > 1 and "%(process_num)" not in pool.settings.process_name:
        raise ControlError(
            f"{pool.name} can have one process only: its process_name {pool.settings.process_name!r} does not hold "
            f"%(process_num)d, so that all would have the same name",
            code=INVALID_PARAMS,
        )
    changed = numprocs != pool.serving.core.wanted
    targets = waiting.scale(daemon, pool, numprocs)
    if changed and not targets:  # nothing of it runs, and nothing is to
        detail = f"{numprocs} processes as soon as it is started; it is {pool.state}"
        scaled = ProcessVerdict(name=pool.name, ok=True, result="scaled", detail=detail)
        return Verdict(ok=True, processes=(scaled,), numprocs=numprocs)
    answer = await outcome(daemon, targets, caller, wait=params.wait, begun="scaling")
    return Verdict(ok=answer.ok, processes=answer.processes, numprocs=numprocs)


async def signal(daemon: Daemon, params: messages.SignalParams, caller: Caller) -> Result:
    try:
        number = signal_number(params.signal)
    except ValueError as error:
        raise ControlError(str(error), code=INVALID_PARAMS) from error
    chosen = choose(daemon, params.names)
    verdicts = [send(pool, index, number) for pool, indexes in chosen.items() for index in indexes_of(pool, indexes)]
    return Verdict(ok=all(verdict.ok for verdict in verdicts), processes=tuple(verdicts))


def send(generation: Generation, index: int, number: int) -> ProcessVerdict:
    state = generation.core.processes[index]
    name, pid = generation.process_name(index), state.pid
    try:
        # One that is being stopped may be dead already while its children finish: then the number is not its own.
        if pid is not None and generation.signal(index, pid, number):
            return ProcessVerdict(name=name, ok=True, result="signalled")
    except LinuxError as error:
        return ProcessVerdict(name=name, ok=False, result="failed", detail=str(error))
    return ProcessVerdict(name=name, ok=False, result="not running", detail=state.name)


async def reopen(daemon: Daemon, params: messages.NoParams, caller: Caller) -> Result:
    count, problems = daemon.reopen_logs()
    return messages.Reopened(reopened=count, problems=tuple(problems))


async def events(daemon: Daemon, params: messages.EventsParams, caller: Caller) -> Result:
    of = events_of(daemon, params.names)
    last = daemon.history.last(params.n, of)
    if not params.follow:
        return messages.Events(events=last)
    for event in last:
        caller.notify("event", event)
    missed = 0

    def pass_on(event: messages.Event) -> None:
        nonlocal missed
        if not of(event):
            return
        if not caller.behind:
            caller.notify("event", event)
            return
        if not missed:
            caller.when_caught_up(catch_up)
        missed += 1

    def catch_up() -> None:
        nonlocal missed
        count, missed = missed, 0
        remembered = daemon.history.last(count, of)
        if lost := count - len(remembered):
            detail = f"{lost} events: they came faster than they were read"
            caller.notify("event", messages.Event(time=remembered[0].time, kind="skipped", name="", detail=detail))
        for event in remembered:
            caller.notify("event", event)

    stop = daemon.history.follow(pass_on)
    try:
        await caller.gone()
    finally:
        stop()
    return messages.Events(events=())


async def shutdown(daemon: Daemon, params: messages.ShutdownParams, caller: Caller) -> Result:
    (daemon.shutdown_now if params.now else daemon.shutdown)("asked over the control socket")
    if params.wait:
        await asyncio.shield(daemon.ended)
        if left := in_words(daemon.abandoned):
            raise ControlError(f"the manager ends, and leaves behind what SIGKILL did not end: {left}")
    return messages.Ok()


async def drain(daemon: Daemon, params: messages.DrainParams, caller: Caller) -> Result:
    if params.undo:
        if daemon.ending:
            raise ControlError("the manager is ending; that cannot be taken back", code=REFUSED)
        daemon.departure.undo()
        return messages.Drained(ok=True, draining=False, reason="not draining")
    daemon.departure.drain("asked over the control socket")
    if not params.wait:
        return messages.Drained(ok=True, draining=True, reason="draining")
    return await until_quiet(daemon, lambda progress: caller.notify("progress", progress), params.timeout)


async def probe(daemon: Daemon, params: messages.ProbeParams, caller: Caller) -> Result:
    if params.kind == "live":
        return messages.Probed(ok=True, reason="the manager answers")
    return probing.ready(daemon, strict=params.strict)


async def check(daemon: Daemon, params: messages.NoParams, caller: Caller) -> Result:
    return check_config(daemon)


async def update(daemon: Daemon, params: messages.UpdateParams, caller: Caller) -> Result:
    refuse_while_stopping(daemon)

    def tell(progress: messages.Progress) -> None:
        caller.notify("progress", progress)

    with nullcontext() if params.dry_run else daemon.reloading():
        updated = await updating.update(daemon, tell, dry_run=params.dry_run)
    if not params.dry_run:
        daemon.ground.look()
    return updated


async def upgrade(daemon: Daemon, params: messages.UpgradeParams, caller: Caller) -> Result:
    refuse_while_stopping(daemon)
    return await upgrading.upgrade(daemon)


def check_config(daemon: Daemon) -> messages.Checked:
    """Read the configuration file as it is now, and say whether it is good and whether it differs from what runs."""
    try:
        config = read(daemon.config.path, os.environ)
    except ConfigError as error:
        return messages.Checked(ok=False, problems=tuple(map(str, error.problems)))
    return messages.Checked(ok=True, changed=config != daemon.config)


async def outcome(daemon: Daemon, targets: list[waiting.Target], caller: Caller, *, wait: bool, begun: str) -> Verdict:
    """The verdict when it is over, or, without waiting, that it has begun."""
    if not wait:
        processes = tuple(ProcessVerdict(name=target.name, ok=True, result=begun) for target in targets)
        return Verdict(ok=True, processes=processes)
    return await waiting.Wait(daemon, targets, lambda progress: caller.notify("progress", progress)).verdict()


def refuse_while_stopping(daemon: Daemon) -> None:
    if daemon.ending:
        raise ControlError("the manager is stopping; nothing is started or stopped any more", code=REFUSED)


#: Every method of control.messages.METHODS; a test holds the two together.
COMMANDS: Final[dict[str, Callable[..., Awaitable[Result]]]] = {
    "ping": ping,
    "status": status,
    "start": start,
    "stop": stop,
    "restart": restart,
    "reload": reload,
    "scale": scale,
    "signal": signal,
    "tail": tail,
    "log": log,
    "reopen": reopen,
    "events": events,
    "shutdown": shutdown,
    "drain": drain,
    "probe": probe,
    "check": check,
    "update": update,
    "upgrade": upgrade,
}


class Nobody:
    """Gives commands and waits for no word: a signal to the manager."""

    behind = False

    def notify(self, method: str, params: Notice) -> None:
        """It is not there."""

    def when_caught_up(self, callback: Callable[[], None]) -> None:
        """It never falls behind."""

    async def gone(self) -> None:
        """It never was here."""


#: Those that change something, and so are worth a line in the log that says who gave them.
CHANGING: Final = frozenset(
    {"start", "stop", "restart", "reload", "update", "upgrade", "scale", "signal", "shutdown", "drain"}
)
