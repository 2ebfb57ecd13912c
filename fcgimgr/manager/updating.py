"""From the configuration that runs to a new one: each change by the least that it takes (config/difference.py).

The new configuration has been checked whole before any of this. What can still go wrong goes wrong for one pool: a new
generation that does not come up is discarded and the pool keeps its old settings, so that the next update finds the
difference again; the other pools have theirs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from fcgimgr.config.difference import Change, Difference, How, difference, settings_of
from fcgimgr.config.read import ConfigError, read
from fcgimgr.config.settings import Config, PoolSettings, ProcessSettings
from fcgimgr.control.messages import REFUSED, ControlError, ProcessVerdict, Progress, Updated
from fcgimgr.core import generation as core
from fcgimgr.linux.errors import LinuxError
from fcgimgr.manager import waiting
from fcgimgr.manager.daemon import Watcher
from fcgimgr.manager.pools import Pool

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon


async def update(
    daemon: Daemon, progress: Callable[[Progress], None] = lambda progress: None, *, dry_run: bool = False
) -> Updated:
    """Read the configuration file again and apply what is different: a verdict for each change, in their order.

    ControlError: another update is under way.
    """
    try:
        config = read(daemon.config.path, os.environ)
    except ConfigError as error:
        return Updated(ok=False, problems=tuple(map(str, error.problems)))
    found = difference(daemon.config, config)
    if dry_run or not found:
        changes = tuple(map(str, found.changes))
        return Updated(ok=True, changes=changes, restart=found.restart, warnings=config.warnings)
    if daemon.updating:
        raise ControlError("another update is under way; wait for its end", code=REFUSED)
    daemon.updating = True
    for warning in config.warnings:
        if warning not in daemon.config.warnings:
            daemon.journal.warning(warning)
    # What has been begun is brought to its end, though whoever has asked for it may hang up.
    verdicts = await asyncio.shield(daemon.loop.create_task(_apply(daemon, config, found, progress)))
    return Updated(
        ok=all(verdict.ok for verdict in verdicts),
        changes=tuple(map(str, found.changes)),
        restart=found.restart,
        warnings=config.warnings,
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
        adopt_manager_settings(daemon, config, found)
        # What goes may hold the name of what comes.
        going = [change for change in found.changes if How.REMOVE in change.how]
        coming = [change for change in found.changes if How.REMOVE not in change.how]
        for changes in (going, coming):
            for change in changes:
                progress(Progress(name=change.name, state="UPDATING", detail=str(change)))
            verdicts += await asyncio.gather(*(_begin(daemon, change, config, progress) for change in changes))
    finally:  # whatever breaks it off: what was begun runs, and the next update must not begin it once more
        daemon.config = running_config(daemon, config)
        daemon.state_file.all_changed()
        daemon.updating = False
    return verdicts


def adopt_manager_settings(daemon: Daemon, config: Config, found: Difference) -> None:
    """Take over what can be without a restart, and say what cannot."""
    live = {key: getattr(config.manager, key) for key in (*found.manager, "environment")}
    manager = msgspec.structs.replace(daemon.config.manager, **live)
    daemon.config = msgspec.structs.replace(daemon.config, manager=manager)
    daemon.journal.set_level(manager.loglevel)
    for key in found.restart:
        daemon.journal.warning(f"manager.{key} has changed; it takes a restart of the manager, and stays until then")


def running_config(daemon: Daemon, config: Config) -> Config:
    """The configuration as it runs: `config`, but for what stayed as it was."""
    pools = {pool.name: pool.settings for pool in daemon.pools.values()}
    return msgspec.structs.replace(
        config,
        manager=daemon.config.manager,
        pools={name: settings for name, settings in pools.items() if isinstance(settings, PoolSettings)},
        programs={name: settings for name, settings in pools.items() if not isinstance(settings, PoolSettings)},
    )


async def _begin(
    daemon: Daemon, change: Change, config: Config, progress: Callable[[Progress], None]
) -> ProcessVerdict:
    pool = daemon.pools.get(change.before or change.name)
    before = (pool.serving, pool.settings, pool.config) if pool is not None else None
    try:
        if How.REMOVE in change.how:
            return await _remove(daemon, change.name)
        settings = settings_of(config, change.name)
        if How.ADD in change.how:
            return _add(daemon, settings, config)
        return await _change(daemon, change, settings, config, progress)
    except (LinuxError, ControlError) as error:
        return ProcessVerdict(name=change.name, ok=False, result="failed", detail=str(error))
    except Exception as error:  # noqa: BLE001 - a fault of ours in one change must not leave the others half done
        if before is not None and (serving := before[0]).settings is not before[1]:
            serving.adopt(*before[1:])  # so that the next update does all of it
        daemon.loop.call_exception_handler({"message": f"update of {change.name}", "exception": error})
        detail = f"internal error in the manager: {error!r}; how far it came is shown by: fcgimgr status"
        return ProcessVerdict(name=change.name, ok=False, result="failed", detail=detail)


async def _remove(daemon: Daemon, name: str) -> ProcessVerdict:
    pool = daemon.pools[name]
    await stopped(daemon, pool)
    if daemon.pools.get(name) is pool:
        del daemon.pools[name]
        pool.end()
        daemon.state_file.all_changed()
    return ProcessVerdict(name=name, ok=True, result="removed")


async def stopped(daemon: Daemon, pool: Pool) -> None:
    """Stop the pool and return when it is down."""
    pool.stop()
    if pool.down:
        return
    watcher = UntilDown(pool, daemon.loop.create_future())
    daemon.watchers.append(watcher)
    try:
        await watcher.down
    finally:
        daemon.watchers.remove(watcher)


class UntilDown(Watcher):
    """Waits for a pool to be down."""

    def __init__(self, pool: Pool, down: asyncio.Future[None]) -> None:
        self._pool = pool
        self.down = down

    def fault(self, why: str) -> None:
        if not self.down.done():
            self.down.set_exception(ControlError(why))

    def pool_changed(self, pool: Pool) -> None:
        if pool is self._pool and pool.down and not self.down.done():
            self.down.set_result(None)


def _add(daemon: Daemon, settings: ProcessSettings, config: Config) -> ProcessVerdict:
    if settings.name in daemon.pools:  # it was to go, and has not; nobody else knows of its processes
        raise ControlError("what had this name before is still there; run update again")
    pool = daemon.pools[settings.name] = Pool(daemon, settings, config)
    daemon.state_file.all_changed()
    if not settings.autostart:
        return ProcessVerdict(name=settings.name, ok=True, result="added", detail="not started (autostart = false)")
    daemon.start_pool(pool)
    fault = pool.serving.core.fault
    return ProcessVerdict(
        name=settings.name, ok=fault is None, result="added" if fault is None else "failed", detail=fault
    )


async def _change(
    daemon: Daemon,
    change: Change,
    settings: ProcessSettings,
    config: Config,
    progress: Callable[[Progress], None],
) -> ProcessVerdict:
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
    up = serving.core.up
    if How.RELOAD in change.how and up and moved:
        await stopped(daemon, pool)  # on sockets that cannot be shared: these are closed before others are opened
    pool.adopt(settings, config)
    rename(daemon, pool, change)
    if How.SCALE in change.how:
        targets = waiting.scale(daemon, pool, settings.numprocs)
        if How.RELOAD not in change.how:
            came = await waiting.Wait(daemon, targets, progress).verdict()
            bad = next((verdict for verdict in came.processes if not verdict.ok), None)
            if bad is not None:
                return ProcessVerdict(
                    name=change.name, ok=False, result="failed", detail=f"{bad.name}: {bad.detail}", lines=bad.lines
                )
    if How.RELOAD in change.how and up:
        if pool.serving.core.open:
            pool.serving.feed(core.Restart())
        else:
            daemon.start_pool(pool)
    return ProcessVerdict(name=change.name, ok=True, result="updated", detail=change.words)


def rename(daemon: Daemon, pool: Pool, change: Change) -> None:
    """Let the pool be known by its new name."""
    if change.before is not None:
        del daemon.pools[change.before]
        daemon.pools[change.name] = pool
        daemon.state_file.all_changed()


def _addresses(settings: ProcessSettings) -> set[str]:
    return {str(address) for address in settings.sockets} if isinstance(settings, PoolSettings) else set()
