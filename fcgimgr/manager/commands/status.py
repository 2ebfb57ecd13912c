"""What `status` answers: put together by the manager from what it and the kernel know, without asking any worker.

With `detail` it looks into /proc once for each process. A thousand looks take some tens of milliseconds, so they are
made in turns, between which the loop does its other work.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from fcgimgr import __version__
from fcgimgr.config.settings import PoolSettings
from fcgimgr.control import messages
from fcgimgr.core.process import Backoff, Fatal, Starting, State, describe
from fcgimgr.core.rollout import Canary
from fcgimgr.fastcgi.scoreboard import Request
from fcgimgr.linux.procfs import rss
from fcgimgr.linux.sockdiag import established_inodes
from fcgimgr.manager.children.descriptors import Inquiry
from fcgimgr.manager.commands.names import Chosen, indexes_of
from fcgimgr.manager.ground.turns import Turns
from fcgimgr.manager.pools.rollouts import generation_status
from fcgimgr.manager.pools.telling import exit_as_told

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.slots import Slot

SHOWN: Final = 8  # requests in hand that are told of one process


async def status(daemon: Daemon, chosen: Chosen, *, detail: bool) -> messages.Status:
    """The state of these processes, their pools and the manager."""
    with Inquiry(daemon) as inquiry:
        asked = inquiry if detail else None
        pools = [await _pool(daemon, serving, indexes, asked) for serving, indexes in chosen.items()]
    return messages.Status(
        manager=messages.ManagerStatus(
            pid=os.getpid(),
            version=__version__,
            uptime=round(daemon.loop.time() - daemon.started, 3),
            config=daemon.config.path,
            state=daemon.shown_state,
        ),
        pools=tuple(pools),
        logs=tuple(
            messages.LogStatus(path=one.path, problem=one.problem, lost=one.lost) for one in daemon.log_troubles
        ),
    )


async def _pool(
    daemon: Daemon, serving: Generation, indexes: tuple[int, ...] | None, inquiry: Inquiry | None
) -> messages.PoolStatus:
    pool = serving.pool
    others = [generation for generation in pool.generations.values() if generation is not serving]
    detail = inquiry is not None
    processes = await _processes(daemon, serving, list(indexes_of(serving, indexes)), inquiry)
    if indexes is None:
        for generation in others:
            processes += await _processes(daemon, generation, list(indexes_of(generation, None)), inquiry)
    core = serving.core
    now, saturated = daemon.loop.time(), daemon.saturation.since(serving)
    reason = core.fault
    if core.up and core.waiting:
        reason = f"waits for {', '.join(core.waiting)}"
    return messages.PoolStatus(
        name=pool.name,
        kind=pool.kind,
        state=pool.state.value,
        numprocs=core.wanted,
        generation=serving.number,
        canary=pool.core.coming.percent if isinstance(pool.core.coming, Canary) else None,
        policy="static" if isinstance(pool.settings, PoolSettings) else None,
        sockets=_sockets(serving, detail),
        processes=tuple(processes),
        reason=reason,
        retry_in=serving.retry_in,
        zygotes=tuple(
            _process(daemon, generation, generation.zygote.state, generation.zygote.slot, {}, detail)
            for generation in (serving, *others)
            if generation.zygote is not None and indexes is None
        ),
        generations=tuple(map(generation_status, others)) if indexes is None else (),
        saturated_for=None if saturated is None else round(now - saturated, 3),
        state_for=round(now - pool.since, 3) if pool.since else None,
        discarded=pool.discarded,
        abandoned=tuple(
            messages.AbandonedStatus(process=name, pid=one.pid, reason=str(one))
            for one in daemon.abandoned
            for of, _, name in [one.process.partition(":")]
            if of == pool.name
        ),
    )


async def _processes(
    daemon: Daemon, generation: Generation, indexes: list[int], inquiry: Inquiry | None
) -> list[messages.ProcessStatus]:
    detail = inquiry is not None
    busy: dict[int, bool | None] = {}
    if inquiry is not None and generation.listening is not None:
        states = [generation.core.processes[index] for index in indexes if index < len(generation.core.processes)]
        pids = [state.pid for state in states if state.pid is not None]
        busy = await _busy(inquiry, pids, established_inodes(generation.listening.names))
    processes = []
    turns = Turns()
    for index in indexes:
        await turns.give_way()
        if index < len(generation.core.processes):  # it may have been scaled away in the meantime
            state, slot = generation.core.processes[index], generation.slots[index]
            processes.append(_process(daemon, generation, state, slot, busy, detail))
    return processes


async def _busy(inquiry: Inquiry, pids: list[int], accepted: set[int] | None) -> dict[int, bool | None]:
    """Who of these has one of these connections; None: unknown."""
    if not accepted:
        return dict.fromkeys(pids, None if accepted is None else False)
    found: dict[int, bool | None] = {}
    async for pid, seen in inquiry.sockets(pids, accepted):
        found[pid] = bool(seen.found) or (False if seen.itself else None)
    return found


def _sockets(generation: Generation, detail: bool) -> tuple[messages.SocketStatus, ...]:
    settings = generation.settings
    if not isinstance(settings, PoolSettings):
        return ()
    if generation.listening is None:
        return tuple(
            messages.SocketStatus(address=str(address), backlog=None, queued=None) for address in settings.sockets
        )
    sockets = []
    for place in generation.listening.places:
        queued, backlog = (place.queue() if detail else None) or (None, None)
        sockets.append(messages.SocketStatus(address=str(place.address), backlog=backlog, queued=queued))
    return tuple(sockets)


def _process(
    daemon: Daemon, generation: Generation, state: State, slot: Slot, busy: dict[int, bool | None], detail: bool
) -> messages.ProcessStatus:
    now = daemon.loop.time()
    pid = state.pid
    memory = board = None
    if detail and pid is not None:
        memory = rss(pid)
        board = slot.reading(now)
    return messages.ProcessStatus(
        name=slot.name,
        pid=pid,
        state=state.name,
        generation=generation.number if slot.spawned else None,
        uptime=round(now - slot.started, 3) if pid is not None else None,
        restarts=max(0, slot.spawned - 1),
        exit=None if slot.exit is None else exit_as_told(slot.exit),
        busy=busy.get(pid) if pid is not None else None,
        requests=slot.requests if board is None else board.requests,
        rss=memory,
        reason=_reason(state) or slot.status_text,
        retry_in=_retry_in(generation, state, now),
        in_hand=None if board is None else len(board.in_hand),
        last_duration=None if board is None or board.last is None else round(board.last, 6),
        crashes=slot.restarts.crashes,
        recycled=slot.restarts.recycled,
        by_hand=slot.restarts.by_hand,
        state_for=round(now - slot.since, 3) if slot.since else None,
        current=() if board is None else tuple(_request(request, now) for request in board.in_hand[:SHOWN]),
    )


def _retry_in(generation: Generation, state: State, now: float) -> float | None:
    if isinstance(state, Fatal):
        return generation.retry_in
    return round(max(0.0, state.due - now), 3) if isinstance(state, Backoff) else None


def _request(request: Request, now: float) -> messages.RequestStatus:
    seconds = round(max(0.0, now - request.since), 3)
    return messages.RequestStatus(method=request.method, uri=request.uri, seconds=seconds)


def _reason(state: State) -> str | None:
    return state.astray or None if isinstance(state, Starting) else describe(state)
