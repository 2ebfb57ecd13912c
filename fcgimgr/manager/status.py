"""What `status` answers: put together by the manager from what it and the kernel know, without asking any worker.

With `detail` it looks into /proc once for each process. A thousand looks take some tens of milliseconds, so they are
made in slices, between which the loop does its other work.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from fcgimgr import __version__
from fcgimgr.config.settings import PoolSettings
from fcgimgr.config.signals import signal_name
from fcgimgr.control import messages
from fcgimgr.core.process import Backoff, Exited, Fatal, State
from fcgimgr.linux.procfs import rss, socket_inodes
from fcgimgr.linux.sockdiag import established_inodes, queue_length
from fcgimgr.manager.names import Chosen, indexes_of

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools import Pool

SLICE: Final = 50  # processes looked at between two turns of the loop


async def status(daemon: Daemon, chosen: Chosen, *, detail: bool) -> messages.Status:
    """The state of these processes, their pools and the manager."""
    pools = [await _pool(daemon, pool, indexes, detail) for pool, indexes in chosen.items()]
    return messages.Status(
        manager=messages.ManagerStatus(
            pid=os.getpid(),
            version=__version__,
            uptime=round(daemon.loop.time() - daemon.started, 3),
            config=daemon.config.path,
            state=daemon.state,
        ),
        pools=tuple(pools),
    )


async def _pool(daemon: Daemon, pool: Pool, indexes: tuple[int, ...] | None, detail: bool) -> messages.PoolStatus:
    accepted: set[int] | None = None
    sockets = _sockets(pool, detail)
    if detail and pool.listeners:
        accepted = established_inodes([listener.sock.getsockname() for listener in pool.listeners])
    processes = []
    for count, index in enumerate(list(indexes_of(pool, indexes))):
        if detail and count % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        if index < len(pool.core.processes):  # it may have been scaled away in the meantime
            processes.append(_process(daemon, pool, index, accepted, detail))
    core = pool.core
    reason = core.fault
    if core.up and core.waiting:
        reason = f"waits for {', '.join(core.waiting)}"
    return messages.PoolStatus(
        name=pool.name,
        kind=pool.kind,
        state=pool.state.value,
        numprocs=core.wanted,
        generation=1,
        policy="static" if isinstance(pool.settings, PoolSettings) else None,
        sockets=sockets,
        processes=tuple(processes),
        reason=reason,
    )


def _sockets(pool: Pool, detail: bool) -> tuple[messages.SocketStatus, ...]:
    if not isinstance(pool.settings, PoolSettings):
        return ()
    if not pool.listeners:
        return tuple(
            messages.SocketStatus(address=str(address), backlog=None, queued=None) for address in pool.settings.sockets
        )
    sockets = []
    for address, listener in zip(pool.settings.sockets, pool.listeners, strict=True):
        queued, backlog = (queue_length(listener.sock) if detail else None) or (None, None)
        sockets.append(messages.SocketStatus(address=str(address), backlog=backlog, queued=queued))
    return tuple(sockets)


def _process(daemon: Daemon, pool: Pool, index: int, accepted: set[int] | None, detail: bool) -> messages.ProcessStatus:
    state, slot = pool.core.processes[index], pool.slots[index]
    now = daemon.loop.time()
    pid = state.pid
    memory = busy = None
    if detail and pid is not None:
        memory = rss(pid)
        if accepted is not None and (own := socket_inodes(pid)) is not None:
            busy = not accepted.isdisjoint(own)
    return messages.ProcessStatus(
        name=slot.name,
        pid=pid,
        state=state.name,
        generation=1 if slot.spawned else None,
        uptime=round(now - slot.started, 3) if pid is not None else None,
        restarts=max(0, slot.spawned - 1),
        exit=None if slot.exit is None else _exit(slot.exit.code, slot.exit.signal),
        busy=busy,
        requests=slot.requests,
        rss=memory,
        reason=_reason(state) or slot.status_text,
        retry_in=round(max(0.0, state.due - now), 3) if isinstance(state, Backoff) else None,
    )


def _exit(code: int | None, signal: int | None) -> messages.Exit:
    return messages.Exit(code=code, signal=None if signal is None else signal_name(signal))


def _reason(state: State) -> str | None:
    match state:
        case Backoff(why=why) | Fatal(why=why):
            return why
        case Exited(exit=exit):
            return str(exit)
    return None
