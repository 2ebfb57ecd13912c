"""How far a reload is: of each generation beside the one that serves what it does, and when it will be over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fcgimgr.control.messages import GenerationStatus, Progress
from fcgimgr.core.process import Retiring, Running, State, Stopping
from fcgimgr.core.rollout import Canary
from fcgimgr.manager.pools.losses import connections
from fcgimgr.manager.pools.slots import longest_in_hand

if TYPE_CHECKING:
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.pool import Pool, Verdict

#: Seconds between two words on how far it is, to who waits for its end.
TELL: Final = 1.0


def generation_status(generation: Generation) -> GenerationStatus:
    """Of a generation that does not serve."""
    pool = generation.pool
    coming = pool.core.coming
    if coming is not None and coming.number == generation.number:
        state = "CANARY" if isinstance(coming, Canary) else "STARTING"
    else:
        state = "HELD" if generation.core.held else "DRAINING"
    return GenerationStatus(
        number=generation.number,
        state=state,
        processes=sum(one.pid is not None for one in generation.core.processes),
        queued=generation.listening.waiting if generation.listening is not None else None,
        doing=what_it_does(generation),
        killed_in=killed_in(generation),
    )


def what_it_does(generation: Generation, within: str = "") -> str:
    """In words, for one that does not serve: "3 old processes finish (app_00: GET /slow 22 s), 2 connections in its
    queue". `within`: to be put behind the processes."""
    pool, core = generation.pool, generation.core
    if pool.core.coming is not None and pool.core.coming.number == generation.number:
        ready = sum(isinstance(state, Running) for state in core.processes)
        return f"{ready} of {core.wanted} new processes ready"
    if core.held:
        return "the old processes are held, in case they have to serve again"
    living = [index for index, state in enumerate(core.processes) if state.pid is not None]
    if not living:
        passed = generation.daemon.passing.carries(generation)
        return "connections that were passed on are being answered" if passed else "nothing of it is left"
    finish = "old process finishes" if len(living) == 1 else "old processes finish"
    waiting = generation.listening.waiting if generation.listening is not None else 0
    queue = f", {connections(waiting)} in its queue" if waiting else ""
    longest = longest_in_hand((generation.slots[index] for index in living), generation.daemon.loop.time())
    return f"{len(living)} {finish}{within}{longest}{queue}"


def killed_in(generation: Generation) -> float | None:
    """Seconds until the last of it is killed at the latest; None: it is not to end, or takes as long as it needs."""
    patience, draining = generation.settings.stopwaitsecs, generation.core.draining

    def at(state: State) -> float | None:
        match state:
            case Stopping(due=due, patient=False):
                return due
            case Retiring(due=due):
                return due + patience
            case _:
                return None if draining is None or state.pid is None else draining + patience

    moments = [moment for state in generation.core.processes if (moment := at(state)) is not None]
    if not moments or not generation.core.left:
        return None
    return round(max(0.0, max(moments) - generation.daemon.loop.time()), 3)


def how_far(pool: Pool) -> str:
    """In words: "generation 3 serves; 3 old processes finish, killed in 8 s (app_00: GET /slow 22 s)"."""
    parts = [f"generation {pool.serving.number} serves"]
    for generation in pool.generations.values():
        if generation is not pool.serving:
            due = killed_in(generation)
            parts.append(what_it_does(generation, "" if due is None else f", killed in {due:.0f} s"))
    if pool.core.waiting is not None:
        parts.append("the reload waits for that")
    return "; ".join(parts)


async def tell_how_far(pool: Pool, verdict: asyncio.Future[Verdict], tell: Callable[[Progress], None]) -> Verdict:
    """Wait for the end of a reload, and tell again and again how far it is."""
    while not verdict.done():
        tell(Progress(name=pool.name, state="RELOADING", detail=how_far(pool)))
        await asyncio.wait([verdict], timeout=TELL)
    return verdict.result()
