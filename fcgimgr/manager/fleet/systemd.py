"""What the manager's own supervisor hears of it: systemd, or whoever else listens at $NOTIFY_SOCKET (sd_notify(3)).

READY when it is up, RELOADING and READY around an update or a reload of everything, STOPPING when it is decided that it
ends, a line of STATUS that follows the processes, and the watchdog's sign of life, the only timer here, if it is asked
for. The supervisor's socket may be full for a moment; then what must arrive is sent again, and the loop does not wait.

What is left with it (FDSTORE=1) goes the same way, in its turn: sockets/store.py.
"""

from __future__ import annotations

import os
from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from fcgimgr.config.settings import PoolSettings, ProcessSettings
from fcgimgr.core.generation import PoolState
from fcgimgr.core.process import Exited, Running
from fcgimgr.linux.sdnotify import Notifier
from fcgimgr.manager.pools.watcher import Watcher

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.pool import Pool

#: systemd's own limit on a start or a stop (DefaultTimeoutStartSec=, DefaultTimeoutStopSec=), in seconds.
SYSTEMDS_LIMIT: Final = 90.0
DAY: Final = 86400.0
#: More time is asked for with this much to spare, in seconds.
SPARE: Final = 10.0

# Seconds between two tries to say what must arrive, and how often it is tried.
AGAIN_AFTER: Final = 0.1
TRIES: Final = 100


class Service(Watcher):
    """Tells `notifier` how the manager fares, from `begin` to `end`."""

    def __init__(self, daemon: Daemon, notifier: Notifier) -> None:
        self._daemon = daemon
        self._notifier = notifier
        self._up = False  # READY has been said
        self._stopping = False
        self._status = ""
        self._telling = False
        self._patient_until = 0.0
        self._owed: deque[Callable[[], bool]] = deque()
        self._tries = 0
        self._retry: TimerHandle | None = None
        self._watchdog: TimerHandle | None = None

    def begin(self, *, daemonised: bool) -> None:
        """From now on watch the manager; without anybody to tell it to, do nothing at all."""
        if self._notifier.address is None:
            return
        if daemonised:
            self.say(partial(self._notifier.main_pid, os.getpid()))
        if self._notifier.watchdog is not None:
            self._show_life(self._notifier.watchdog / 2)
        self._daemon.watchers.append(self)
        self._tell_soon()

    def end(self) -> None:
        """The manager has ended."""
        for timer in (self._watchdog, self._retry):
            if timer is not None:
                timer.cancel()

    # daemon.Watcher

    def process_changed(self, generation: Generation, index: int) -> None:
        self._tell_soon()

    def pool_changed(self, pool: Pool) -> None:
        self._tell_soon()

    def manager_changed(self) -> None:
        if self._daemon.ending:
            self._stop()
        elif self._daemon.state == "RUNNING" and not self._up:
            self._up = True
            self.say(self._ready)
        self._tell_soon()

    def reload_began(self) -> None:
        if self._up and not self._stopping:
            self.say(self._reloading)

    def reload_over(self) -> None:
        if self._up and not self._stopping and not self._daemon.reloads:
            self.say(self._ready)

    # What is said

    def _ready(self) -> bool:
        return self._notifier.ready(self._summary())

    def _reloading(self) -> bool:
        return self._notifier.reloading(self._summary())

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self.say(lambda: self._notifier.stopping(self._summary()))
        delay = self._daemon.departure.delay if self._daemon.departure.decided else 0.0
        longest = delay + self._daemon.config.manager.shutdown_timeout
        if longest > SYSTEMDS_LIMIT - SPARE:
            self.say(partial(self._notifier.extend_timeout, longest + SPARE))

    def _ask_for_patience(self) -> None:
        """A start that goes on is not to be ended for its length: its own limits (startretries, ready_timeout) do."""
        now = self._daemon.loop.time()
        all_settings = [pool.settings for pool in self._daemon.pools.values()]
        step = max((patience(one) for one in all_settings), default=0.0)
        if now + step > self._patient_until:
            self._patient_until = now + step + SPARE  # said again when SPARE of it has been used up
            self.say(partial(self._notifier.extend_timeout, step + SPARE))

    def _summary(self) -> str:
        self._status = summary(self._daemon)
        return self._status

    def _tell_soon(self) -> None:
        """Send the status if it is another at the end of this turn of the loop."""
        if not self._telling:
            self._telling = True
            self._daemon.loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        if self._daemon.state == "STARTING":
            self._ask_for_patience()
        before = self._status
        if not self._owed and self._summary() != before:
            self._notifier.status(self._status)  # if it gets lost, the next one will not

    def _show_life(self, interval: float) -> None:
        delay = interval if self._notifier.alive() else interval / 8
        self._watchdog = self._daemon.loop.call_later(delay, self._show_life, interval)

    # What must arrive

    def say(self, message: Callable[[], bool]) -> None:
        """Have this said after all before it, now or as soon as somebody listens; False of it: it was not delivered."""
        self._owed.append(message)
        if self._retry is None:
            self._send_owed()

    def _send_owed(self) -> None:
        self._retry = None
        while self._owed:
            if self._owed[0]():
                self._tries = 0
            elif (tries := self._tries + 1) < TRIES:
                self._tries = tries
                self._retry = self._daemon.loop.call_later(AGAIN_AFTER, self._send_owed)
                return
            else:
                self._daemon.journal.warning(f"{self._notifier.address} (NOTIFY_SOCKET) takes no message; given up")
                self._owed.clear()
                self._tries = 0
                self._daemon.fd_store.lost()
                return
            self._owed.popleft()
        self._tell_soon()


def patience(settings: ProcessSettings) -> float:
    """Seconds until something happens to a process that is being started. How long a migration takes, nobody knows."""
    if settings.ready == "exit":
        return DAY
    return max(settings.startsecs, settings.ready_timeout) + settings.backoff_max


def summary(daemon: Daemon) -> str:
    """How it stands, in one line: "2 pools, 8 of 8 processes running"."""
    generations = [pool.serving for pool in daemon.pools.values()]
    if daemon.state == "STOPPING":
        left = sum(
            state.pid is not None
            for pool in daemon.pools.values()
            for generation in pool.generations.values()
            for state in generation.core.processes
        )
        return f"stopping: {count(left, 'process', 'processes')} left"
    wanted = running = 0
    for core in (generation.core for generation in generations if generation.core.up):
        states = core.processes[: core.wanted]
        wanted += sum(not (isinstance(state, Exited) and state.expected) for state in states)
        running += sum(isinstance(state, Running) for state in states)
    pools = sum(isinstance(generation.settings, PoolSettings) for generation in generations)
    parts = [count(pools, "pool", "pools")] if pools else []
    if programs := len(generations) - pools:
        parts.append(count(programs, "program", "programs"))
    parts.append(f"{running} of {count(wanted, 'process', 'processes')} running")
    return "".join((_doing(daemon), ", ".join(parts), *_troubles(daemon)))


def _doing(daemon: Daemon) -> str:
    if daemon.departure.since is not None:
        return "draining: "
    if daemon.state == "STARTING":
        return "starting: "
    return "reloading: " if daemon.reloads else ""


def _troubles(daemon: Daemon) -> list[str]:
    states = (PoolState.FATAL, PoolState.DEGRADED)
    troubled = [pool for pool in daemon.pools.values() if pool.state in states]
    more = [f"; {len(troubled) - 3} more"] if len(troubled) > 3 else []
    return [f"; {pool.name} is {pool.state.value}" for pool in troubled[:3]] + more


def count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
