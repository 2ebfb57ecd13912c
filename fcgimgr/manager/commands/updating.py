"""From the configuration that runs to a new one: each change by the least that it takes (config/difference.py).

The new configuration has been checked whole before any of this. What can still go wrong goes wrong for one pool: a new
generation that does not come up is discarded and the pool keeps its old settings, so that the next update finds the
difference again; the other pools have theirs. Whoever is to have what another one has waits for its turn
(config/moves.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fcgimgr.config.difference import Change, Difference, How, difference, settings_of
from fcgimgr.config.logplaces import unwritable
from fcgimgr.config.moves import Moves, moves, shared
from fcgimgr.config.read import ConfigError, read
from fcgimgr.config.settings import Config, PoolSettings, ProcessSettings
from fcgimgr.control.messages import REFUSED, ControlError, ProcessVerdict, Progress, Updated
from fcgimgr.core import generation as core
from fcgimgr.linux.errors import LinuxError
from fcgimgr.manager.children.abandoned import in_words
from fcgimgr.manager.commands import waiting
from fcgimgr.manager.ground.faults import fault_of_ours
from fcgimgr.manager.ground.orders import given_by, giver
from fcgimgr.manager.pools.pool import Pool
from fcgimgr.manager.pools.watcher import Watcher

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation


async def update(
    daemon: Daemon, progress: Callable[[Progress], None] = lambda progress: None, *, dry_run: bool = False
) -> Updated:
    """Read the configuration file again and apply what is different: a verdict for each change, in their order.

    ControlError: another update is under way.
    """
    daemon.ground.put_sockets_back()
    try:
        config = read(daemon.config.path, os.environ)
    except ConfigError as error:
        return Updated(ok=False, problems=tuple(map(str, error.problems)), warnings=error.warnings)
    # What the pools have counts. A reload may have come to its end after the update that began it was broken off, or
    # may have failed, and with it that pool's share in a change of [manager] environment.
    environment = config.manager.environment
    stale = {pool.name for pool in daemon.pools.values() if pool.config.manager.environment != environment}
    found = difference(running_config(daemon, daemon.config), config, stale)
    unwritten = unwritable(config)
    warnings = (*config.warnings, *dict.fromkeys(unwritten.values()))
    if dry_run or not found:
        return Updated(
            ok=True,
            changes=tuple(map(str, found.changes)),
            manager=found.manager,
            restart=found.restart,
            warnings=warnings,
        )
    if daemon.updating:
        raise ControlError("another update is under way; wait for its end", code=REFUSED)
    try:
        open_control(daemon, config, found)  # first, for it can be refused
    except LinuxError as error:
        return Updated(ok=False, problems=(f"{config.path}: manager.control_owner: {error}",))
    daemon.updating = True
    known = {*unwritten, *(trouble.path for trouble in daemon.log_troubles)}
    for warning in config.warnings:
        if warning not in daemon.config.warnings:
            daemon.journal.warning(warning)
    # What has been begun is brought to its end, though whoever has asked for it may hang up.
    verdicts = await asyncio.shield(daemon.loop.create_task(_apply(daemon, config, found, progress)))
    new = [f"{trouble.path}: {trouble.problem}" for trouble in daemon.log_troubles if trouble.path not in known]
    return Updated(
        ok=all(verdict.ok for verdict in verdicts),
        changes=tuple(map(str, found.changes)),
        manager=found.manager,
        restart=found.restart,
        warnings=(*warnings, *new),
        processes=tuple(verdicts),
    )


async def update_and_log(daemon: Daemon, why: str) -> None:
    """An update that has nobody to answer to but the log, which calls it `why`."""
    try:
        updated = await update(daemon)
    except ControlError as error:
        daemon.journal.error(f"{why}: {error}")
        return
    for problem in updated.problems:
        daemon.journal.error(problem)
    if updated.problems:
        daemon.journal.error(f"{why}: the configuration is broken; nothing of it was applied")
    elif not updated.changes:
        daemon.journal.info(f"{why}: no change for any pool or program")
    log_verdicts(daemon, why, updated.processes)


def log_verdicts(daemon: Daemon, order: str, verdicts: Iterable[ProcessVerdict]) -> None:
    """What came of an order that nobody waits for."""
    for verdict in verdicts:
        log = daemon.journal.info if verdict.ok else daemon.journal.error
        log(f"{order}: {verdict.result}" + (f": {verdict.detail}" if verdict.detail else ""), name=verdict.name)


async def _apply(
    daemon: Daemon, config: Config, found: Difference, progress: Callable[[Progress], None]
) -> list[ProcessVerdict]:
    verdicts: list[ProcessVerdict] = []
    try:
        _know_by_name(daemon)
        adopt_manager_settings(daemon, config, found)
        # What goes may hold the name of what comes.
        going = [change for change in found.changes if How.REMOVE in change.how]
        coming = [change for change in found.changes if How.REMOVE not in change.how]
        in_order = moves(coming, daemon.settings, {**config.pools, **config.programs})
        for changes, order in ((going, Moves()), (coming, in_order)):
            these = Round(daemon, config, progress, order)
            for change in changes:
                progress(Progress(name=change.name, state="UPDATING", detail=str(change)))
                before = _before(daemon, change)
                if before is not None and before.up and change.name in order.yielding:
                    daemon.journal.info(
                        "stopped until the pool that it changes places with has moved", name=change.name
                    )
                    these.yielded[change.name] = daemon.loop.create_task(_yield(these, before.pool))
                these.made[change.name] = daemon.loop.create_task(_begin(these, change, before))
            await _all_over(these.made.values())
            verdicts += [task.result() for task in these.made.values()]
    finally:  # whatever breaks it off: what was begun runs, and the next update must not begin it once more
        daemon.updating = False
        _know_by_name(daemon)
        daemon.config = running_config(daemon, config)
        daemon.state_file.all_changed()
        daemon.wait_anew()
    return verdicts


class Round:
    """Changes that are made together, each in its turn.

    By the names that they lead to: yielded, the pools that are stopped before anybody's turn; made, all changes.
    """

    def __init__(self, daemon: Daemon, config: Config, progress: Callable[[Progress], None], order: Moves) -> None:
        self.daemon = daemon
        self.config = config
        self.progress = progress
        self.order = order
        self.by = giver()
        self.yielded: dict[str, asyncio.Task[None]] = {}
        self.made: dict[str, asyncio.Task[ProcessVerdict]] = {}


class Before(NamedTuple):
    """A pool as it was before it was changed."""

    pool: Pool
    serving: Generation
    settings: ProcessSettings
    config: Config
    up: bool


def _before(daemon: Daemon, change: Change) -> Before | None:
    pool = daemon.pools.get(change.before or change.name)
    if pool is None or How.ADD in change.how:
        return None
    return Before(pool, pool.serving, pool.settings, pool.config, pool.serving.core.up)


async def _all_over(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Wait until all of these have come to an end, whichever."""
    if waited_for := tuple(tasks):
        await asyncio.wait(waited_for)


def _know_by_name(daemon: Daemon) -> None:
    """A change of name may have been broken off: let each pool be known by the name that it has."""
    for name, pool in tuple(daemon.pools.items()):
        if pool.name not in daemon.pools:
            daemon.pools[pool.name] = daemon.pools.pop(name)


def open_control(daemon: Daemon, config: Config, found: Difference) -> None:
    """Let those control us whom the new configuration names. LinuxError: it cannot be, and all is as it was."""
    if {"control_mode", "control_owner"} & set(found.manager):
        daemon.ground.open_control_to(
            msgspec.structs.replace(
                daemon.config.manager,
                control_mode=config.manager.control_mode,
                control_owner=config.manager.control_owner,
            )
        )


def adopt_manager_settings(daemon: Daemon, config: Config, found: Difference) -> None:
    """Take over what can be without a restart, and say what cannot."""
    live = {key: getattr(config.manager, key) for key in (*found.manager, "environment")}
    manager = msgspec.structs.replace(daemon.config.manager, **live)
    daemon.journal.set_level(manager.loglevel)
    for key in found.manager:
        daemon.journal.info(f"manager.{key} has changed, and is applied")
    for key in found.restart:
        daemon.journal.warning(f"manager.{key} has changed; it takes a restart of the manager, and stays until then")
    daemon.config = msgspec.structs.replace(daemon.config, manager=manager)


def running_config(daemon: Daemon, config: Config) -> Config:
    """The configuration as it runs: `config`, but for what stayed as it was."""
    pools = {pool.name: pool.settings for pool in daemon.pools.values()}
    return msgspec.structs.replace(
        config,
        manager=daemon.config.manager,
        pools={name: settings for name, settings in pools.items() if isinstance(settings, PoolSettings)},
        programs={name: settings for name, settings in pools.items() if not isinstance(settings, PoolSettings)},
    )


async def _yield(these: Round, pool: Pool) -> None:
    with given_by(these.by):
        await stopped(these.daemon, pool)


async def _begin(these: Round, change: Change, before: Before | None) -> ProcessVerdict:
    """Make this change when its turn has come. What goes wrong is undone, so that the next update does all of it."""
    with given_by(these.by):
        return await _make(these, change, before)


async def _make(these: Round, change: Change, before: Before | None) -> ProcessVerdict:
    daemon = these.daemon
    try:
        await _all_over(these.yielded.values())
        if change.name in these.yielded:
            these.yielded[change.name].result()  # else it still has what others are to have
        await _all_over(these.made[other] for other in these.order.after.get(change.name, ()))
        _refuse_while_stopping(daemon)
        if How.REMOVE in change.how:
            return await _remove(daemon, change.name)
        settings = settings_of(these.config, change.name)
        pool = before.pool if before is not None else None
        await _until(daemon, lambda: not _is_being_left(daemon, settings, pool))
        _refuse_while_stopping(daemon)
        _refuse_what_another_has(daemon, settings, pool)
        # It was to go, and has not; nobody else knows of its processes.
        if (How.ADD in change.how or change.before is not None) and change.name in daemon.pools:
            raise ControlError("what had this name before is still there; run update again")
        if How.ADD in change.how:
            return _add(daemon, settings, these.config)
        return await _change(these, change, settings, was_up=change.name in these.yielded)
    except (LinuxError, ControlError) as error:
        await _undo(daemon, change, before)
        return ProcessVerdict(name=change.name, ok=False, result="failed", detail=str(error))
    except Exception as error:  # noqa: BLE001 - a fault of ours in one change must not leave the others half done
        daemon.loop.call_exception_handler({"message": f"update of {change.name}", "exception": error})
        await _undo(daemon, change, before, added=How.ADD in change.how)
        return ProcessVerdict(name=change.name, ok=False, result="failed", detail=fault_of_ours(error))


async def _undo(daemon: Daemon, change: Change, before: Before | None, *, added: bool = False) -> None:
    """added: the pool may have been added, and nobody knows how far it came."""
    try:
        if added and change.name in daemon.pools:
            await _remove(daemon, change.name)
        if before is None or How.REMOVE in change.how:
            return
        pool, serving = before.pool, before.serving
        if serving.settings is not before.settings:
            serving.have(before.settings, before.config)
        if before.up and not pool.serving.core.up and pool in daemon.pools.values():
            daemon.start_pool(pool)
    except Exception as error:  # noqa: BLE001 - as above
        daemon.loop.call_exception_handler({"message": f"undoing the update of {change.name}", "exception": error})


def _refuse_while_stopping(daemon: Daemon) -> None:
    if daemon.state == "STOPPING":
        raise ControlError("the manager is stopping", code=REFUSED)


def _refuse_what_another_has(daemon: Daemon, settings: ProcessSettings, pool: Pool | None) -> None:
    if pool is not None and _addresses(settings) <= _addresses(pool.settings):
        return
    for other in daemon.pools.values():
        for generation in other.generations.values() if other is not pool else ():
            if generation.listening is not None and (address := shared(generation.settings, settings)):
                raise ControlError(f"{address}: {other.name} is still there; run update again when it has moved")


def _is_being_left(daemon: Daemon, settings: ProcessSettings, pool: Pool | None) -> bool:
    """Whether an address that these are to have is still that of another pool, but only until its old generation ends.

    So it is for a while after an update that was broken off, or whose reload nobody waits for any more.
    """
    if pool is not None and _addresses(settings) <= _addresses(pool.settings):
        return False
    return any(
        generation.listening is not None and shared(generation.settings, settings)
        for other in daemon.pools.values()
        if other is not pool and other.core.leaving and not shared(other.settings, settings)
        for number, generation in other.generations.items()
        if number in other.core.leaving
    )


async def _remove(daemon: Daemon, name: str) -> ProcessVerdict:
    pool = daemon.pools[name]
    await stopped(daemon, pool)
    if daemon.pools.get(name) is pool:
        del daemon.pools[name]
        pool.remove()
        daemon.state_file.all_changed()
    left = in_words(one for one in daemon.abandoned if one.process.startswith(f"{name}:"))
    detail = f"still there after SIGKILL, and given up: {left}" if left else None
    return ProcessVerdict(name=name, ok=not left, result="removed", detail=detail)


async def stopped(daemon: Daemon, pool: Pool) -> None:
    """Stop the pool and return when it is down. Whoever orders meanwhile that it be started again, orders in vain."""
    pool.stop()
    while not pool.down:
        await _until(daemon, lambda: pool.down or pool.serving.core.up or bool(pool.serving.core.again))
        pool.stop()


async def _until(daemon: Daemon, is_so: Callable[[], bool]) -> None:
    """Wait until it was so of the pools, at least for a moment. ControlError: a fault of ours may have prevented it."""
    if is_so():
        return
    watcher = Until(is_so, daemon.loop.create_future())
    daemon.watchers.append(watcher)
    try:
        await watcher.came
    finally:
        daemon.watchers.remove(watcher)


class Until(Watcher):
    """Waits for something to be so of the pools."""

    def __init__(self, is_so: Callable[[], bool], came: asyncio.Future[None]) -> None:
        self._is_so = is_so
        self.came = came

    def fault(self, why: str) -> None:
        if not self.came.done():
            self.came.set_exception(ControlError(why))

    def pool_changed(self, pool: Pool) -> None:
        if not self.came.done() and self._is_so():
            self.came.set_result(None)


def _add(daemon: Daemon, settings: ProcessSettings, config: Config) -> ProcessVerdict:
    pool = daemon.pools[settings.name] = Pool(daemon, settings, config)
    daemon.state_file.all_changed()
    if not settings.autostart:
        return ProcessVerdict(name=settings.name, ok=True, result="added", detail="not started (autostart = false)")
    daemon.start_pool(pool)
    fault = pool.serving.core.fault
    return ProcessVerdict(
        name=settings.name, ok=fault is None, result="added" if fault is None else "failed", detail=fault
    )


async def _change(these: Round, change: Change, settings: ProcessSettings, *, was_up: bool) -> ProcessVerdict:
    """was_up: it has been stopped for the time of the change."""
    daemon, config = these.daemon, these.config
    pool = daemon.pools[change.before or change.name]
    serving = pool.serving
    if How.SOCKET in change.how and serving.listening is not None and isinstance(settings, PoolSettings):
        serving.listening.change(settings)
    if How.RELOAD in change.how and serving.core.up and pool.can_reload():
        verdict = await asyncio.shield(pool.reload(settings, config))
        if not (verdict.ok or verdict.switched):
            detail = verdict.why + ("; the old processes serve on, with the old settings" if verdict.known else "")
            return ProcessVerdict(name=change.name, ok=False, result="failed", detail=detail, lines=verdict.lines)
        rename(daemon, pool, change)
        detail = change.words if verdict.ok else verdict.why
        return ProcessVerdict(name=change.name, ok=verdict.ok, result="reloaded", detail=detail)
    moved = isinstance(settings, PoolSettings) and _addresses(settings) != _addresses(serving.settings)
    up = serving.core.up or was_up
    if How.RELOAD in change.how and up and moved:
        await stopped(daemon, pool)  # on sockets that cannot be shared: these are closed before others are opened
        _refuse_while_stopping(daemon)
    pool.have(settings, config)
    rename(daemon, pool, change)
    if How.SCALE in change.how:
        targets = waiting.scale(daemon, pool, settings.numprocs)
        if How.RELOAD not in change.how and (bad := await _failed(these, change, targets)) is not None:
            return bad
    if How.RELOAD in change.how and up:
        targets = waiting.targets({pool.serving: None}, waiting.started(daemon)) if was_up else []
        if pool.serving.core.open:
            pool.serving.feed(core.Restart())
        else:
            daemon.start_pool(pool)
        if not pool.serving.core.waiting and (bad := await _failed(these, change, targets)) is not None:
            return bad
    return ProcessVerdict(name=change.name, ok=True, result="updated", detail=change.words)


async def _failed(these: Round, change: Change, targets: list[waiting.Target]) -> ProcessVerdict | None:
    """The verdict if what becomes of one of these is not good."""
    came = await waiting.Wait(these.daemon, targets, these.progress).verdict()
    bad = next((verdict for verdict in came.processes if not verdict.ok), None)
    if bad is None:
        return None
    detail = f"{bad.name}: {bad.detail}"
    return ProcessVerdict(name=change.name, ok=False, result="failed", detail=detail, lines=bad.lines)


def rename(daemon: Daemon, pool: Pool, change: Change) -> None:
    """Let the pool be known by its new name."""
    if change.before is not None:
        del daemon.pools[change.before]
        daemon.pools[change.name] = pool
        daemon.state_file.all_changed()


def _addresses(settings: ProcessSettings) -> set[str]:
    return {str(address) for address in settings.sockets} if isinstance(settings, PoolSettings) else set()
