"""What `probe ready` answers: whether clients can be served; strictly, whether a person has something to mend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fcgimgr.control.messages import Probed
from fcgimgr.core.generation import READY, PoolState

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.pool import Pool


def ready(daemon: Daemon, *, strict: bool) -> Probed:
    """Whether the manager is up, and each pool that was started has who serves.

    strict: with all its processes, no pool that is saturated, and no log that cannot be written.
    """
    if daemon.state != "RUNNING":
        return Probed(ok=False, reason=f"the manager is {daemon.state}")
    if daemon.departure.since is not None:
        return Probed(ok=False, reason=f"the manager is DRAINING: {daemon.departure.why}")
    wanted = [pool for pool in daemon.pools.values() if pool.serving.core.up]
    fit = READY if strict else (*READY, PoolState.DEGRADED)
    wrong = [f"{pool.name} is {pool.state.value}" for pool in wanted if pool.state not in fit]
    if strict:
        wrong += [*_saturated(daemon, wanted), *_unwritten(daemon)]
    if wrong:
        return Probed(ok=False, reason=", ".join(wrong))
    if not wanted:
        return Probed(ok=False, reason="nothing is started")
    return Probed(ok=True, reason=", ".join(f"{pool.name} is {pool.state.value}" for pool in wanted))


def _saturated(daemon: Daemon, pools: list[Pool]) -> Iterator[str]:
    now = daemon.loop.time()
    for pool in pools:
        if (since := daemon.saturation.since(pool.serving)) is not None:
            yield f"{pool.name} is saturated: for {now - since:.0f} s connections have been waiting at every look"


def _unwritten(daemon: Daemon) -> Iterator[str]:
    for trouble in daemon.log_troubles:
        lost = f" ({trouble.lost} line{'' if trouble.lost == 1 else 's'} lost)" if trouble.lost else ""
        yield f"log {trouble.path}: {trouble.problem}{lost}"
