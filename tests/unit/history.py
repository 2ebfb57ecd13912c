"""A history: what happens to one pool, told event by event to the real core, with a clock that is only a number.

    history = History(numprocs=2).start()
    history.at(0.0).ready("app_00").ready("app_01")
    history.at(9.5).exits("app_01", signal=SIGKILL)
    assert history.actions == [SpawnProcess(1)]

The history plays the manager's part as the real one does: it answers an Open with Opened, says when the queue of a
listener that lets nobody in is empty (`queued`), and when a retiring process is idle (not `busy`); and it spawns what
is to be spawned once the event at hand is worked off, pids counting up from 100. `actions`: since the last look.
"""

from __future__ import annotations

from typing import Any

from fcgimgr.config.address import TcpAddress
from fcgimgr.config.settings import PoolSettings, ProcessSettings
from fcgimgr.core import generation as core
from fcgimgr.core.generation import (
    AbandonProcess,
    Action,
    Changed,
    Close,
    DrainDue,
    Forget,
    Happened,
    Open,
    Opened,
    OpenFailed,
    PoolState,
    QueueEmpty,
    RetryDue,
    SignalProcess,
    SpawnProcess,
    new_generation,
    pool_state,
    step,
)
from fcgimgr.core.process import (
    Astray,
    Died,
    Due,
    Executed,
    Exit,
    Idle,
    Ready,
    Retiring,
    Spawned,
    SpawnFailed,
    Spawning,
    Takes,
)


def settings(**keys: Any) -> ProcessSettings:
    what = {} if "wsgi" in keys else {"command": ("app",)}
    return PoolSettings(name="app", sockets=(TcpAddress("127.0.0.1", 9001),), **what, **keys)


class History:
    def __init__(self, *, port_in_use: str | None = None, **keys: Any) -> None:
        self.settings = settings(**keys)
        self.now = 0.0
        self.pool = new_generation(self.settings, self.now)
        self._slots = len(self.pool.processes)
        self.listening = False
        self.port_in_use = port_in_use
        self.cannot_spawn: str | None = None
        self.executes_at_once = True  # what is spawned; else when `executed` says so
        self.queued = 0  # connections that wait to be accepted
        self.busy: set[str] = set()  # names of processes that have a request in hand
        self.pids: dict[int, int] = {}  # index -> pid of what runs
        self.signals: list[SignalProcess] = []
        self._next_pid = 100
        self._actions: list[Action] = []
        self._to_spawn: list[int] = []

    # Events

    def at(self, now: float) -> History:
        """Go on to `now`, with every timer that is due until then firing at its time."""
        while (due := self.next_due()) is not None and due[0] <= now:
            self.now = due[0]
            self.feed(due[1])
        self.now = now
        return self

    def start(self, *names: str) -> History:
        return self.feed(core.Start(self.indexes(names)))

    def stop(self, *names: str) -> History:
        return self.feed(core.Stop(self.indexes(names)))

    def restart(self, *names: str, hard: bool = False) -> History:
        return self.feed(core.Restart(self.indexes(names), hard))

    def recycle(self, name: str, why: str = "it is old") -> History:
        return self.feed(core.Recycle(self.index(name), why))

    def overdue(self, name: str, *, hopeless: bool = False) -> History:
        index = self.index(name)
        return self.feed(core.Overdue(index, self.pids.get(index, 0), hopeless))

    def leave(self) -> History:
        return self.feed(core.Leave())

    def scale(self, numprocs: int) -> History:
        return self.feed(core.Scale(numprocs))

    def kill(self) -> History:
        return self.feed(core.Kill())

    def ready(self, name: str) -> History:
        return self.feed(Happened(self.index(name), Ready()))

    def takes(self, name: str, *, served: bool = False, known: bool = True) -> History:
        return self.feed(Happened(self.index(name), Takes(served=served, known=known)))

    def astray(self, name: str, what: str) -> History:
        return self.feed(Happened(self.index(name), Astray(what)))

    def executed(self, name: str) -> History:
        return self.feed(Happened(self.index(name), Executed()))

    def cannot_execute(self, name: str, why: str) -> History:
        return self.feed(Happened(self.index(name), SpawnFailed(why)))

    def exits(self, name: str, code: int | None = None, signal: int | None = None) -> History:
        index = self.index(name)
        del self.pids[index]
        return self.feed(Happened(index, Died(Exit(code=code, signal=signal))))

    def feed(self, event: core.Event) -> History:
        self._feed(event)
        while self._to_spawn:
            index = self._to_spawn.pop(0)
            if index < len(self.pool.processes) and isinstance(self.pool.processes[index], Spawning):
                self._feed(Happened(index, self._spawn(index)))
        return self.look()

    def look(self) -> History:
        """What the manager sees when it looks at the queue and at those that retire."""
        if self.pool.draining is not None and not self.queued:
            self._feed(QueueEmpty())
        for index, state in enumerate(self.pool.processes):
            if isinstance(state, Retiring) and f"app_{index:02}" not in self.busy:
                self._feed(Happened(index, Idle()))
        return self

    def _feed(self, event: core.Event) -> None:
        self.pool, actions = step(self.settings, self.pool, event, self.now)
        self._actions += actions
        self._slots = max(self._slots, len(self.pool.processes))  # the manager makes room first, then acts
        for action in actions:
            match action:
                case Open():
                    self.listening = self.port_in_use is None
                    self._feed(Opened() if self.listening else OpenFailed(self.port_in_use or ""))
                case Close():
                    self.listening = False
                case SpawnProcess(index):
                    self._to_spawn.append(index)
                case SignalProcess():
                    self.signals.append(action)
                case AbandonProcess(index):
                    del self.pids[index]  # nobody will tell of its death
                case Forget(index):
                    self._slots -= 1
                    assert self._slots == index
        assert self._slots == len(self.pool.processes)

    def _spawn(self, index: int) -> Spawned | SpawnFailed:
        if self.cannot_spawn is not None:
            return SpawnFailed(self.cannot_spawn)
        self.pids[index] = self._next_pid
        self._next_pid += 1
        return Spawned(self.pids[index], executed=self.executes_at_once)

    # What came of it

    @property
    def actions(self) -> list[Action]:
        """What core ordered since this was last asked, without the notes of changed states."""
        actions, self._actions = self._actions, []
        return [action for action in actions if not isinstance(action, Changed)]

    @property
    def states(self) -> list[str]:
        return [state.name for state in self.pool.processes]

    @property
    def state(self) -> PoolState:
        return pool_state(self.pool)

    @property
    def timers(self) -> list[float]:
        return sorted(state.due for state in self.pool.processes if state.due is not None)

    def next_due(self) -> tuple[float, core.Event] | None:
        dues: list[tuple[float, core.Event]] = [
            (state.due, Happened(index, Due(f"app_{index:02}" in self.busy)))
            for index, state in enumerate(self.pool.processes)
            if state.due is not None
        ]
        if self.pool.draining is not None:
            dues.append((self.pool.draining, DrainDue()))
        if self.pool.retry_at is not None:
            dues.append((self.pool.retry_at, RetryDue()))
        return min(dues, key=lambda due: due[0], default=None)

    def index(self, name: str) -> int:
        return int(name.removeprefix("app_"))

    def indexes(self, names: tuple[str, ...]) -> tuple[int, ...] | None:
        return tuple(map(self.index, names)) or None
