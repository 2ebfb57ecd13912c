"""The manager at work: one loop, all pools, and the order in which they come and go.

What it hears (deaths, signals, commands, a dependency that has become ready) it hands on as core events; what is
decided about pools together (start order, stop waves, when it is over) is decided by core.order and carried out here.
It never waits inside the loop, and when nothing happens it makes no system call.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from fcgimgr.config.settings import Config, ProcessSettings
from fcgimgr.core import generation as core
from fcgimgr.core import order
from fcgimgr.core.generation import READY, PoolState
from fcgimgr.core.process import (
    ABANDONED_AFTER,
    Backoff,
    Died,
    Exit,
    Retiring,
    Spawning,
    Starting,
    Stopping,
)
from fcgimgr.linux.gate import Gates
from fcgimgr.linux.helper import was_helper
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.processes import Death, reap
from fcgimgr.manager.children.abandoned import Abandoned
from fcgimgr.manager.children.adopted import Adopted
from fcgimgr.manager.children.descriptors import Descriptors
from fcgimgr.manager.children.environments import Environments, Looking
from fcgimgr.manager.children.leftovers import Leftovers
from fcgimgr.manager.children.notify import NotifySockets
from fcgimgr.manager.children.signalling import Signalling
from fcgimgr.manager.children.unreaped import Unreaped
from fcgimgr.manager.fleet.lame_duck import Departure
from fcgimgr.manager.ground.faults import fault_of_ours
from fcgimgr.manager.ground.helpers import Helpers
from fcgimgr.manager.ground.helping import Makers
from fcgimgr.manager.ground.history import History
from fcgimgr.manager.ground.orders import giver
from fcgimgr.manager.logs.file import Logs
from fcgimgr.manager.logs.inhand import Left
from fcgimgr.manager.logs.journal import Journal
from fcgimgr.manager.logs.reading import Readers
from fcgimgr.manager.logs.requestfiles import RequestFiles
from fcgimgr.manager.logs.requestlogs import RequestLogs
from fcgimgr.manager.logs.target import Trouble
from fcgimgr.manager.looking.canary import Canaries
from fcgimgr.manager.looking.draining import Draining
from fcgimgr.manager.looking.limits import Limits
from fcgimgr.manager.looking.looks import Looks
from fcgimgr.manager.looking.passing import Passing
from fcgimgr.manager.looking.readiness import Readiness
from fcgimgr.manager.looking.removed_files import Ground
from fcgimgr.manager.looking.saturation import Saturation
from fcgimgr.manager.looking.sights import Sights
from fcgimgr.manager.looking.taking import Taking
from fcgimgr.manager.looking.traffic import IdleOnes
from fcgimgr.manager.pools.generation import Generation
from fcgimgr.manager.pools.pool import Pool
from fcgimgr.manager.pools.spawning import give_up_spawning, spawn_due
from fcgimgr.manager.pools.watcher import Watcher
from fcgimgr.manager.pools.zygote import Zygote
from fcgimgr.manager.sockets.store import FdStore
from fcgimgr.manager.succession.statefile import StateFile

# How long, in seconds, spawning may keep the loop from its other work before it lets it look: some twenty spawns.
SPAWN_SLICE: Final = 0.010
SPAWN_TOGETHER: Final = 16  # how many are spawned at the same time

LOOK_AGAIN: Final = 1.0  # seconds to the next look at a pool when a fault of ours has broken one off

# Seconds from the last SIGKILL of a shutdown to its end, whatever is left by then.
LAST_RESORT: Final = ABANDONED_AFTER + 0.5


class Daemon:
    """Everything that the running manager has. `run` lives as long as the manager does."""

    def __init__(
        self,
        config: Config,
        *,
        loop: asyncio.AbstractEventLoop,
        journal: Journal,
        logs: Logs,
        soft_nofile: int | None,
        sockets: dict[str, list[int]],
        made_dir: bool = False,
    ) -> None:
        self.config = config
        self.loop = loop
        self.journal = journal
        self.logs = logs
        self.soft_nofile = soft_nofile
        self.sockets = sockets  # passed by systemd, by name, or by another who started us, as fd:N
        self.fd_store = FdStore(journal)
        self.service_environment: dict[str, str] = {}  # what systemd told the manager about itself
        self.started = loop.time()
        self.advises = True  # what is to be done about what is FATAL
        self.updating = False
        self.reloads = 0  # updates and reloads of everything that are under way
        self._background: set[asyncio.Task[None]] = set()
        self.state = "STARTING"  # then RUNNING, then STOPPING
        self.stopping = ""  # why, then
        self.exit_code = 0
        self.history = History()
        logs.when_told(lambda text: self.history.record("log", "", detail=text))
        self.request_logs = RequestLogs(logs.report)
        self.devnull = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.children: dict[int, tuple[Generation, int]] = {}
        self.zygotes: dict[int, Zygote] = {}
        self.unreaped = Unreaped(self)
        self.signalling = Signalling(self.unreaped)
        self.notify = NotifySockets(self)
        self.abandoned = Abandoned(journal, lambda: self.state_file.all_changed())
        self.readiness = Readiness(self)
        self.taking = Taking(self)
        self.canaries = Canaries(self)
        self.gates = Gates()  # where they are not closed by a helper
        kinds: Makers = {"looks": Looks, "sights": Sights, "idle": IdleOnes, "environments": Looking}
        kinds |= {"descriptors": Descriptors}
        self.helpers = Helpers(self, kinds)
        self.environments = Environments(self)
        self.leftovers = Leftovers(
            loop,
            self.children,
            self.notify.is_ours,
            self.abandoned.add_leftovers,
            self.environments,
            self.abandoned,
        )
        self.readers = Readers(loop, lambda name, message: journal.warning(message, name=name))
        self.draining = Draining(self)
        self.passing = Passing(self)
        self.limits = Limits(self)
        self.saturation = Saturation(self)
        self.departure = Departure(self)
        self.watchers: list[Watcher] = []
        self.ended = loop.create_future()
        self._to_spawn: deque[tuple[Generation, int]] = deque()
        self._spawning = False
        self._to_look_at: dict[Pool, None] = {}  # one that is removed may have the name of one that comes
        self._waves: deque[tuple[str, ...]] = deque()
        self._deadline: asyncio.TimerHandle | None = None
        self._last_resort: asyncio.TimerHandle | None = None
        self.adopted = Adopted(self)
        self.state_file = StateFile(self)
        self.ground = Ground(self)
        self.request_files = RequestFiles(self.ground.watch_request_log)
        self.made_dir = made_dir  # state_dir was made by a manager, and is nobody else's
        self.outlives_terminal = False
        self.upgrades = 0  # how often newer code was executed in this process
        self.go_over: Callable[[], Coroutine[Any, Any, None]] | None = None  # how that is done, once the manager is up
        self.taking_over = False  # nothing is to be started yet
        self.left: dict[int, Left] = {}  # what a manager before us had read and not yet logged, by the pipe
        self.pools = self._new_pools()

    def _new_pools(self) -> dict[str, Pool]:
        units: dict[str, ProcessSettings] = {**self.config.pools, **self.config.programs}
        return {name: Pool(self, settings, self.config) for name, settings in units.items()}

    @property
    def settings(self) -> dict[str, ProcessSettings]:
        return {name: pool.settings for name, pool in self.pools.items()}

    @property
    def ending(self) -> bool:
        """Whether it has been decided that the manager ends, though it may still be serving (drain_delay)."""
        return self.state == "STOPPING" or self.departure.decided

    @property
    def shown_state(self) -> str:
        """`state`, and DRAINING for a manager that serves and is not to be sent anything new."""
        return "DRAINING" if self.state == "RUNNING" and self.departure.since is not None else self.state

    @property
    def log_troubles(self) -> list[Trouble]:
        """Which logs cannot be written just now."""
        return self.logs.troubles + self.request_logs.troubles

    # Coming up

    def start(self) -> None:
        """Start what is to start by itself, in order."""
        self.history.record("manager", self.config.manager.identifier, None, self.state, f"pid {os.getpid()}")
        self.state_file.all_changed()
        for name in order.start_order(self.settings):
            if self.pools[name].settings.autostart:
                self.start_pool(self.pools[name])
        self.go_on()

    def go_on(self) -> None:
        """Let what was begun take its course."""
        self.taking_over = False
        self.wait_anew()  # of what was taken over, the manager before may not have told any more who is ready
        self.loop.call_soon(self._look_at_pools)  # also when there is nothing to start

    def begin_anew(self, config: Config) -> None:
        """Have the pools of this configuration, all at rest, in the place of those that were, which are down."""
        for pool in self.pools.values():
            pool.end()
        self.config = config
        self.pools = self._new_pools()

    def start_pool(self, pool: Pool, indexes: tuple[int, ...] | None = None) -> None:
        """Start a pool, or some of its processes, as soon as what it depends on is ready."""
        if self.state == "STOPPING":  # whoever wanted it has been overtaken
            return
        if missing := order.missing(pool.settings, {name: other.state for name, other in self.pools.items()}):
            self.journal.info(f"waits for {', '.join(missing)}", name=pool.name)
            pool.serving.feed(core.WaitFor(missing))
        else:
            pool.serving.feed(core.Start(indexes))

    def _settle(self) -> None:
        """STARTING is over when every pool that was to start has started, or has failed to."""
        on_their_way: dict[str, bool] = {}
        hopeless: dict[str, bool] = {}
        if (
            self.state != "STARTING"
            or self.taking_over
            or any(self._is_on_its_way(pool, on_their_way) for pool in self.pools.values())
        ):
            return
        wanted = [pool for pool in self.pools.values() if pool.settings.autostart]
        if wanted and all(self._is_hopeless(pool, hopeless) for pool in wanted):
            whys = "; ".join(f"{pool.name}: {pool.why_fatal()}" for pool in wanted if pool.state is PoolState.FATAL)
            self.journal.error(f"nothing at all could be started: giving up: {whys}")
            self.exit_code = 1
            self.shutdown("nothing could be started")
            return
        self.state = "RUNNING"
        failed = [pool.name for pool in wanted if pool.state in (PoolState.FATAL, PoolState.STARTING)]
        self.fd_store.give_up_rest()
        self.journal.info("up" + (f", without {', '.join(failed)}" if failed else ""))
        self.history.record("manager", self.config.manager.identifier, "STARTING", "RUNNING")
        self.manager_changed()

    def _is_on_its_way(self, pool: Pool, known: dict[str, bool]) -> bool:
        """Whether it will be known if the pool comes up: not if it waits for what does not, or is tried for ever.

        `known`: what has been found out of others, each of which may be waited for on many ways.
        """
        if pool.name not in known:
            known[pool.name] = pool.state is PoolState.STARTING and self._may_come_up(pool, known)
        return known[pool.name]

    def _may_come_up(self, pool: Pool, known: dict[str, bool]) -> bool:
        core = pool.serving.core
        if pool.settings.startretries < 0 and any(isinstance(state, Backoff) for state in core.processes):
            return False
        waited_for = [self.pools.get(name) for name in core.waiting]
        return all(other and (other.state in READY or self._is_on_its_way(other, known)) for other in waited_for)

    def may_be_ready(self, name: str) -> bool:
        """Whether it is of use to wait for this pool, without anybody's doing anything about it."""
        pool = self.pools.get(name)
        if pool is None or pool.state in READY:
            return pool is not None
        core = pool.serving.core
        if pool.state in (PoolState.DEGRADED, PoolState.STOPPING):
            tried = pool.settings.startretries >= 0
            coming = (
                (Spawning, Starting, Retiring, Stopping, Backoff) if tried else (Spawning, Starting, Retiring, Stopping)
            )
            return bool(core.again) or (core.up and any(isinstance(state, coming) for state in core.processes))
        return self._is_on_its_way(pool, {})

    def _is_hopeless(self, pool: Pool, known: dict[str, bool]) -> bool:
        """Whether the pool has failed to start for good, or waits for one that has. `known`: as before."""
        if pool.name not in known:
            waits = pool.serving.core.waiting if pool.state is PoolState.STARTING else ()
            hopeless = any(name not in self.pools or self._is_hopeless(self.pools[name], known) for name in waits)
            fatal = pool.state is PoolState.FATAL and pool.settings.on_fatal != "retry"
            known[pool.name] = hopeless or fatal
        return known[pool.name]

    def manager_changed(self) -> None:
        """The manager itself went into another state: whoever watches is told."""
        for watcher in tuple(self.watchers):
            watcher.manager_changed()

    # What pools tell

    def spawn_soon(self, generation: Generation, index: int) -> None:
        """Spawn this process in its turn; at once, if nobody is before it."""
        self._to_spawn.append((generation, index))
        if not self._spawning:
            self._spawning = True
            self.loop.call_soon(self._spawn_some)

    def _spawn_some(self) -> None:
        until = self.loop.time() + SPAWN_SLICE
        while self._to_spawn and self.loop.time() < until:
            generation, index = self._to_spawn.popleft()
            indexes = [index]
            while self._to_spawn and self._to_spawn[0][0] is generation and len(indexes) < SPAWN_TOGETHER:
                indexes.append(self._to_spawn.popleft()[1])
            try:
                spawn_due(generation, indexes)
            except Exception as error:  # noqa: BLE001 - core waits for an answer, and others for their turn
                self.loop.call_exception_handler({"message": f"spawning {generation.name}", "exception": error})
                give_up_spawning(generation, indexes, fault_of_ours(error))
        if self._to_spawn:
            self.loop.call_soon(self._spawn_some)
        else:
            self._spawning = False

    @property
    def is_spawning(self) -> bool:
        """Whether processes wait for their turn to be spawned."""
        return self._spawning

    def process_changed(self, generation: Generation, index: int) -> None:
        """A process went into another state."""
        self.readiness.process_changed(generation)
        self.taking.process_changed(generation, index)
        self.limits.process_changed(generation, index)
        for watcher in tuple(self.watchers):
            watcher.process_changed(generation, index)

    def look_at_soon(self, pool: Pool) -> None:
        """Work out the pool's state once the present rush of events is over: not a thousand times for a thousand."""
        if not self._to_look_at:
            self.loop.call_soon(self._look_at_pools)
        self._to_look_at[pool] = None

    def _look_at_pools(self) -> None:
        pools, self._to_look_at = self._to_look_at, {}
        changed = [pool for pool in pools if self._refresh(pool)]
        for pool in changed:
            if pool.state in READY:
                self._start_dependents(pool.name)
            elif pool.state is PoolState.FATAL and self.config.manager.exit_on_fatal and self.state != "STOPPING":
                self.journal.error("FATAL, and exit_on_fatal is set", name=pool.name)
                self.exit_code = 1
                self.shutdown(f"{pool.name} is FATAL")
        for pool in pools:
            self.saturation.pool_changed(pool)
        for watcher in tuple(self.watchers):
            for pool in pools:
                watcher.pool_changed(pool)
        self._settle()
        self.go_on_stopping()

    def _refresh(self, pool: Pool) -> bool:
        try:
            return pool.refresh()
        except Exception as error:  # noqa: BLE001 - a fault in one pool must not leave the others unseen, nor this one
            self.loop.call_exception_handler({"message": f"a look at {pool.name}", "exception": error})
            self.loop.call_later(LOOK_AGAIN, self.look_at_soon, pool)
            return False

    def _start_dependents(self, name: str) -> None:
        for pool in self.pools.values():
            if pool.serving.core.waiting and name in pool.settings.depends_on:
                self.start_pool(pool)

    def wait_anew(self) -> None:
        """What is waited for may be another since (an update): start what waits for nothing more."""
        states = {name: pool.state for name, pool in self.pools.items()}
        for pool in self.pools.values():
            waiting = pool.serving.core.waiting
            if waiting and waiting != order.missing(pool.settings, states):
                self.start_pool(pool)

    def notify_socket_for(self, settings: ProcessSettings) -> str:
        return self.notify.path_for(settings)

    # Deaths

    def died(self, generation: Generation, index: int, pid: int, exit: Exit, leader: PidFd | None = None) -> None:
        """A process has died; its leftovers are to be looked at when this round of deaths is over.

        leader: what holds it, to be closed; None: it was another manager's child.
        """
        told_of = partial(self._tell_of_death, generation, index, pid, exit)
        if generation.settings.killasgroup:
            self.leftovers.leader_died(pid, leader, generation, index, told_of)
            return
        if leader is not None:
            leader.close()
        told_of()

    def _tell_of_death(self, generation: Generation, index: int, pid: int, exit: Exit) -> None:
        try:
            generation.died(index, pid, exit)
        except Exception as error:  # noqa: BLE001 - whatever else comes of it, what is dead must not be shown as alive
            self.loop.call_exception_handler({"message": f"the death of {pid}", "exception": error})
            if index < len(generation.core.processes) and generation.core.processes[index].pid == pid:
                generation.happened(index, Died(exit))

    def reap_children(self) -> None:
        """Take in every child that has died: ours, and, as subreaper or PID 1, strangers."""
        for death in reap(self.gates.stopped):
            try:
                self._take_in(death)
            except Exception as error:  # noqa: BLE001 - a fault in one death must not leave the others unheard of
                self.loop.call_exception_handler({"message": f"the death of {death.pid}", "exception": error})
        self.gates.go_on()
        self.leftovers.look()

    def _take_in(self, death: Death) -> None:
        if self.gates.ended(death.pid) or was_helper(death.pid):
            return
        exit = Exit(code=death.code, signal=death.signal)
        if not self._is_dead(death.pid, exit) and not self.abandoned.reaped(death.pid):
            self.journal.debug("reaped a stranger", pid=death.pid)

    def _is_dead(self, pid: int, exit: Exit) -> bool:
        """False: it is none of ours, or its death was known."""
        process = self.signalling.of(pid)
        if (zygote := self.zygotes.pop(pid, None)) is not None and process is not None:
            self.signalling.release(process)
            process.close()
            zygote.died(pid, exit)
            return True
        child = self.children.pop(pid, None)
        if child is None or process is None:
            return False
        self.signalling.release(process)
        self.adopted.forget(process, child)
        self.died(*child, pid, exit, process)
        return True

    def name_of(self, pid: int) -> str:
        """What this process of ours is called in messages."""
        if pid in self.zygotes:
            return self.zygotes[pid].name
        if pid in self.children:
            generation, index = self.children[pid]
            return generation.process_name(index)
        return self.config.manager.identifier

    def take_for_dead(self, pid: int, exit: Exit) -> None:
        """This child has ended, and is not shown to us; nobody forgets it."""
        name = self.name_of(pid)
        if self._is_dead(pid, exit):
            self.abandoned.note(name, pid, [pid])
            self.leftovers.look()
            self.go_on_stopping()

    # What does not die

    def abandon(self, pid: int, name: str) -> None:
        """Wait no more for the process that had this pid: it, or what it has left, was not ended by SIGKILL."""
        place, process = self.children.pop(pid, None), self.signalling.of(pid)
        if place is not None and process is not None:
            self.adopted.forget(process, place)
        its_own = place is not None or self.zygotes.pop(pid, None) is not None
        if its_own and process is not None:
            self.signalling.release(process)
            process.close()
        self.abandoned.add(name, pid, [pid] if its_own else self.leftovers.abandon(pid))

    # Going down

    def shutdown(self, why: str) -> None:
        """Stop everything in reverse order, and end; a second call while that goes on changes nothing."""
        if self.state == "STOPPING":
            return
        self.journal.info(f"stopping: {why}")
        by = giver()
        self.history.record("manager", self.config.manager.identifier, self.state, "STOPPING", why, by=by or None)
        self.state = "STOPPING"
        self.stopping = f"{why}, by {by}" if by and by not in why else why
        self.departure.forget()
        self._waves = deque(order.stop_waves(self.settings))
        self._deadline = self.loop.call_later(self.config.manager.shutdown_timeout, self._out_of_time)
        self.manager_changed()  # before anything stops: whoever asks why it was FATAL still gets an answer
        self.go_on_stopping()

    def shutdown_now(self, why: str) -> None:
        """Kill everything, and end, with exit code 1 if something does not die."""
        self.shutdown(why)
        if self._last_resort is None:
            self._last_resort = self.loop.call_later(LAST_RESORT, self._end_regardless)
        self.journal.warning(f"killing what is left: {why}")
        self._waves.clear()
        owners = [generation.pool for generation, _ in self.children.values()]
        owners += [zygote.generation.pool for zygote in self.zygotes.values()]
        for pool in dict.fromkeys([*self.pools.values(), *owners]):  # whoever runs ends, be its pool known or not
            pool.kill()
        self.passing.close()
        self.leftovers.kill_all()
        self.go_on_stopping()

    def _out_of_time(self) -> None:
        self.shutdown_now(f"shutdown_timeout ({self.config.manager.shutdown_timeout:g} s) is over")

    def go_on_stopping(self) -> None:
        """If the manager is stopping: is it the next pools' turn, or is it over?"""
        if self.state != "STOPPING" or self.ended.done():
            return
        while all(pool.down for pool in self.pools.values() if not pool.serving.core.up):
            if not self._waves:
                if self.leftovers:
                    self.leftovers.when_gone(self.go_on_stopping)
                elif not self.children and not self.zygotes:
                    self._be_over()
                return
            for name in self._waves.popleft():
                if (pool := self.pools.get(name)) is not None:  # an update that was under way may have removed it
                    pool.stop()

    def _end_regardless(self) -> None:
        """Whatever it was that has not come to its end, a fault of ours included: a shutdown does."""
        if self.ended.done():
            return
        left = {pid: generation.name for pid, (generation, _) in self.children.items()}
        left |= {pid: zygote.name for pid, zygote in self.zygotes.items()}
        for pid, name in left.items():
            self.abandon(pid, name)
        self._be_over()

    def _be_over(self) -> None:
        for one in self.abandoned:
            self.journal.error(f"left behind: {one}", name=one.process)
            self.exit_code = 1
        self.ended.set_result(None)

    def end(self) -> None:
        """Let go of all that is held: sockets are unlinked, logs flushed."""
        for timer in (self._deadline, self._last_resort):
            if timer is not None:
                timer.cancel()
        self.ground.end()
        self.limits.close()
        self.saturation.close()
        self.passing.close()
        self.helpers.kill()
        self.leftovers.kill_strays()
        for pool in self.pools.values():
            pool.end()
        self.readers.end()
        self.state_file.remove()
        self.adopted.close()
        self.signalling.close()
        self.notify.close()
        os.close(self.devnull)

    # Orders that concern all

    def in_background(self, order: Coroutine[Any, Any, None]) -> None:
        """Carry out an order that nobody waits for."""
        task = self.loop.create_task(order)
        self._background.add(task)  # the loop itself holds it only weakly
        task.add_done_callback(self._background.discard)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """While an update or a reload of everything is under way: watchers hear when it begins and when it is over."""
        self.reloads += 1
        try:
            for watcher in tuple(self.watchers):
                watcher.reload_began()
            yield
        finally:
            self.reloads -= 1
            for watcher in tuple(self.watchers):
                watcher.reload_over()

    def fault(self, error: BaseException) -> None:
        """A fault of ours has cut something short: whoever waits for its end is told, since that may never come."""
        why = fault_of_ours(error)
        for pool in self.pools.values():
            pool.fault(why)
        for watcher in tuple(self.watchers):
            watcher.fault(why)

    def reopen_logs(self) -> tuple[int, list[str]]:
        """Open every log file anew (after logrotate): how many, and what went wrong."""
        count, problems = self.logs.reopen_all()
        for pool in self.pools.values():
            for generation in pool.generations.values():
                more, wrong = generation.reopen_request_logs()
                count += more
                problems += wrong
        self.journal.info(f"reopened {count} log files")
        return count, problems
