"""Is anybody still being served? What `drain` waits for: every queue empty, no connection in use.

The kernel has no event for it, so it is looked at, some times a second and only while somebody waits. A kept connection
without a request is not in use, as far as that can be known (linux/draining.py); what cannot be known counts as in use.
Processes are looked at by a helper (ground/helping.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fcgimgr.control.messages import REFUSED, ControlError, Drained, Progress
from fcgimgr.linux.draining import Connection, Watch
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.procfs import descendants
from fcgimgr.linux.sockdiag import established_inodes
from fcgimgr.manager.ground.helpers import InlineJob, Job, StuckError
from fcgimgr.manager.ground.helping import Ground, Tell

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation

# Seconds between two looks, growing from the first to the second.
SHORTEST: Final = 0.01
LONGEST: Final = 0.25

#: Seconds after which a TCP connection that has said nothing is idle, if no other sign speaks for or against it. A
#: request that is being worked on for longer is such a sign: something came in, and nothing went out.
SILENT: Final = 5.0


class Load(NamedTuple):
    """Of one pool: connections in use, and connections that wait to be accepted."""

    in_use: int
    queued: int

    def __str__(self) -> str:
        return f"connections: {self.in_use} in use, {self.queued} in the queue"


class Traffic:
    """Looks at the connections of every pool, again and again: some signs show only in a second look."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._jobs: dict[Generation, Job | InlineJob] = {}

    async def look(self) -> dict[str, Load]:
        """The load of each pool that has any. LinuxError: the kernel does not tell."""
        found: dict[str, Load] = {}
        for pool in tuple(self._daemon.pools.values()):
            queued = 0
            accepted: set[int] = set()
            idle: set[int] = set()
            for generation in tuple(pool.generations.values()):
                if generation.listening is None:
                    continue
                # In this order: what is accepted between the two looks is seen twice, not never.
                queued += sum((place.queue() or (0, 0))[0] for place in generation.listening.places)
                connections = established_inodes(generation.listening.names)
                if connections is None:
                    raise LinuxError(
                        f"{pool.name}: the kernel does not tell of its connections; is AF_NETLINK forbidden "
                        f"(RestrictAddressFamilies=), or the module unix_diag missing?"
                    )
                accepted |= connections
                if connections:
                    idle |= await self._idle(generation)
            if accepted - idle or queued:
                found[pool.name] = Load(len(accepted - idle), queued)
        return found

    async def _idle(self, generation: Generation) -> set[int]:
        """Inodes of the connections that each process which holds them has no request on."""
        job = self._jobs.get(generation)
        if job is None:
            job = self._jobs[generation] = self._daemon.helpers.job("idle")
        names = tuple(generation.listening.names) if generation.listening is not None else ()
        pids = tuple(state.pid for state in generation.core.processes if state.pid is not None)
        try:
            return set(await job.ask((names, pids), lambda told: None))
        except StuckError:
            return set()

    def end(self) -> None:
        """There are no more looks."""
        for job in self._jobs.values():
            job.drop()


class IdleOnes:
    """What a helper sees of one generation: asked with the names of its listeners and its pids, it answers with the
    inodes of the connections that each process which holds them has no request on."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._watch: Watch | None = None

    def answer(self, request: Any, tell: Tell) -> list[int]:
        names, pids = request
        if self._watch is None:
            self._watch = Watch(names, at=self._ground.at)
        leaders = [leader for leader in pids if leader not in self._ground.given_up]
        members = [member for leader in leaders for member in (leader, *descendants(leader))]
        seen = self._watch.look([one for one in members if one not in self._ground.given_up], time.monotonic())
        held = [connection for connections in (seen or {}).values() for connection in connections or ()]
        in_use = {connection.inode for connection in held if not is_idle(connection)}
        return list({connection.inode for connection in held} - in_use)

    def end(self) -> None:
        """There is nothing to be left behind."""


def is_idle(connection: Connection) -> bool:
    if connection.idle is None:
        return connection.silent is not None and connection.silent >= SILENT
    return connection.idle


async def until_quiet(daemon: Daemon, tell: Callable[[Progress], None], timeout: float | None) -> Drained:
    """Wait until drain_delay is over and no connection is in use or waits, or for `timeout` seconds.

    LinuxError: that cannot be known here. ControlError: the drain was taken back.
    """
    traffic = Traffic(daemon)
    try:
        return await _until_quiet(daemon, traffic, tell, timeout)
    finally:
        traffic.end()


async def _until_quiet(
    daemon: Daemon, traffic: Traffic, tell: Callable[[Progress], None], timeout: float | None
) -> Drained:
    deadline = None if timeout is None else daemon.loop.time() + timeout
    told: dict[str, Load] = {}
    pause = SHORTEST
    while True:
        load = await traffic.look()
        for name, now in load.items():
            if told.get(name) != now:
                tell(Progress(name=name, state="DRAINING", detail=str(now)))
        told = load
        delay = daemon.departure.delay if daemon.state != "STOPPING" else 0.0
        if not load and not delay:
            return Drained(ok=True, draining=True, reason="draining; no connection is in use")
        left = LONGEST if deadline is None else deadline - daemon.loop.time()
        if left <= 0:
            still = "; ".join(f"{name}: {now}" for name, now in load.items()) or f"drain_delay: {delay:.3g} s to go"
            return Drained(ok=False, draining=True, reason=f"draining; after {timeout:g} s still {still}")
        await asyncio.sleep(min(pause, left))
        pause = min(LONGEST, pause * 1.5)
        if daemon.departure.since is None and daemon.state != "STOPPING":
            raise ControlError("the drain was taken back", code=REFUSED)
