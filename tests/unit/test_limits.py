"""What is looked at, and when: by one timer for all pools, at the first moment that any of them needs.

The clock is a number and the loop a heap of timers; memory is this very process's.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fcgimgr.config.address import TcpAddress
from fcgimgr.config.settings import PoolSettings, ProcessSettings, ProgramSettings
from fcgimgr.core.generation import Event, Overdue, Recycle, new_generation
from fcgimgr.core.process import Running, Starting, State
from fcgimgr.fastcgi.scoreboard import TRACEBACK_SIGNAL, Reading, Request
from fcgimgr.manager.looking.limits import LOOKS, RSS_INTERVAL, TRACEBACK_TIME, Limits
from fcgimgr.manager.pools import generation


class Timer:
    def __init__(self, at: float, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.at, self.callback, self.args, self.cancelled = at, callback, args, False

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """As much of asyncio's as counts here. `wakes`: the moments at which it had something to do."""

    def __init__(self) -> None:
        self.now = 100.0
        self.wakes: list[float] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, callback: Callable[..., None], *args: Any) -> Timer:
        timer = Timer(at, callback, args)
        heapq.heappush(self._timers, (at, next(self._order), timer))
        return timer

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> Timer:
        return self.call_at(self.now + delay, callback, *args)

    @property
    def armed(self) -> list[float]:
        return sorted(at for at, _, timer in self._timers if not timer.cancelled)

    def run(self, until: float) -> None:
        while self._timers and self._timers[0][0] <= until:
            at, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self.now = max(self.now, at)
                self.wakes.append(self.now)
                timer.callback(*timer.args)
        self.now = until


class Place:
    """A slot whose process shows what the test says."""

    def __init__(self) -> None:
        self.board: object | None = object()
        self.shown: Reading | None = Reading(0, None, ())
        self.fresh_rss: int | None = None

    def reading(self, now: float) -> Reading | None:
        return self.shown if self.board is not None else None


class Generation:
    """Its processes are in the states that the test says; what it is fed is kept."""

    def __init__(self, house: House, settings: ProcessSettings) -> None:
        self.house, self.settings = house, settings
        self.core: Any = SimpleNamespace(processes=list(new_generation(settings, 0.0).processes))
        self.slots = [Place() for _ in self.core.processes]
        self.fed: list[Event] = []
        self.name = settings.name
        self.max_rss_in_vain: int | None = None

    def process_name(self, index: int) -> str:
        return f"{self.settings.name}:{index}"

    processes_in = generation.Generation.processes_in

    def is_there(self, index: int, pid: int) -> bool:
        return True

    def signal(self, index: int, pid: int, number: int) -> None:
        self.house.signals.append((pid, number))

    def feed(self, event: Event) -> None:
        self.fed.append(event)

    def becomes(self, state: State, index: int = 0) -> None:
        self.core.processes[index] = state
        self.house.limits.process_changed(self, index)  # type: ignore[arg-type]

    def runs(self, index: int = 0, pid: int = 0) -> None:
        self.becomes(Running(pid=pid or 1000 + index, since=self.house.loop.now), index)

    def has_in_hand(self, *ages: float, index: int = 0) -> None:
        now = self.house.loop.now
        in_hand = tuple(Request("GET", f"/{i}", now - age, 7) for i, age in enumerate(ages))
        self.slots[index].shown = Reading(0, None, in_hand)


class House:
    """A manager, as far as Limits sees it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.pools: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.signals: list[tuple[int, int]] = []
        self.journal = SimpleNamespace(warning=lambda text, **_: self.warnings.append(text), error=self.warnings.append)
        self.limits = Limits(self)  # type: ignore[arg-type]

    def pool(self, name: str, **keys: Any) -> Generation:
        return self._add(PoolSettings(name=name, wsgi="m:app", sockets=(TcpAddress("127.0.0.1", 9001),), **keys))

    def program(self, name: str, **keys: Any) -> Generation:
        return self._add(ProgramSettings(name=name, command=("app",), **keys))

    def _add(self, settings: ProcessSettings) -> Generation:
        generation = Generation(self, settings)
        self.pools[settings.name] = SimpleNamespace(generations={1: generation})
        return generation


def test_the_shorter_timeout_of_a_pool_that_comes_later_is_kept():
    house = House()
    lazy, quick = house.pool("lazy", request_timeout=600), house.pool("quick", request_timeout=1)
    lazy.runs()
    house.loop.run(100.5)
    quick.runs()
    quick.has_in_hand(0.0)
    house.loop.run(101.6)
    assert house.signals == [(1000, TRACEBACK_SIGNAL)]
    assert "GET /0 has taken 1.0 s" in house.warnings[0]
    house.loop.run(101.5 + TRACEBACK_TIME + 0.01)
    assert [type(event) for event in quick.fed] == [Overdue]
    assert lazy.fed == []


def test_memory_is_looked_at_beside_a_long_request_timeout():
    house = House()
    lazy, leaky = house.pool("lazy", request_timeout=600), house.program("leaky", max_rss=1)
    lazy.runs()
    house.loop.run(101.0)
    leaky.runs(pid=os.getpid())
    house.loop.run(101.0 + RSS_INTERVAL + 0.01)
    assert [type(event) for event in leaky.fed] == [Recycle]


def test_a_limit_below_what_a_new_process_uses_is_warned_of_once_and_recycles_nobody():
    house = House()
    app = house.program("app", max_rss=1024 * 1024, numprocs=2)
    for index in range(2):
        app.slots[index].fresh_rss = 15 * 1024 * 1024
        app.runs(index, pid=os.getpid())
    house.loop.run(100.0 + 3 * RSS_INTERVAL)
    assert app.fed == []
    assert len(house.warnings) == 1
    assert "a new process already uses 15.0 MB: raise max_rss (1 MB)" in house.warnings[0]


def test_a_process_that_has_grown_above_the_limit_is_recycled_beside_one_that_was_born_above_it():
    house = House()
    app = house.program("app", max_rss=1024 * 1024, numprocs=2)
    for index, fresh in enumerate((15 * 1024 * 1024, 1024)):
        app.slots[index].fresh_rss = fresh
        app.runs(index, pid=os.getpid())
    house.loop.run(100.0 + RSS_INTERVAL)
    assert [event.index for event in app.fed if isinstance(event, Recycle)] == [1]


def test_a_timeout_that_an_update_has_shortened_holds_for_what_is_in_hand():
    house = House()
    pool = house.pool("app", request_timeout=600)
    pool.runs()
    house.loop.run(101.0)
    pool.has_in_hand(0.5)
    pool.settings = PoolSettings(name="app", wsgi="m:app", sockets=(TcpAddress("127.0.0.1", 9001),), request_timeout=2)
    house.limits.look_soon()
    house.loop.run(103.0)
    assert "GET /0 has taken 2.0 s" in house.warnings[0]


def test_a_board_that_cannot_be_read_is_looked_at_again_soon():
    house = House()
    pool = house.pool("app", request_timeout=60)
    pool.slots[0].shown = None
    pool.runs()
    assert house.loop.armed == [100.0 + 60 / LOOKS]
    house.loop.run(100.0 + 60 / LOOKS)
    assert house.loop.armed == [100.0 + 2 * 60 / LOOKS]


def test_where_there_is_no_board_nobody_looks():
    house = House()
    pool = house.pool("app", request_timeout=60)
    pool.slots[0].board = None
    pool.runs()
    assert house.loop.armed == []


def test_without_limits_there_is_no_timer():
    house = House()
    house.pool("app").runs()
    house.program("worker").runs()
    house.limits.look_soon()
    house.loop.run(101.0)
    assert house.loop.armed == []


def test_a_pool_that_is_not_up_has_no_timer():
    house = House()
    pool = house.pool("app", request_timeout=60)
    pool.becomes(Starting(pid=7, since=100.0, tries=0, due=101.0))
    assert house.loop.armed == []


def test_an_idle_pool_wakes_the_manager_once_a_timeout_however_many_processes_it_has():
    house = House()
    pool = house.pool("app", request_timeout=60, numprocs=50)
    for index in range(50):
        pool.runs(index)
        house.loop.run(house.loop.now + 0.01)
    house.loop.wakes.clear()
    house.loop.run(100.0 + 601)
    assert len(house.loop.wakes) == 10


def test_with_many_requests_in_hand_they_are_looked_at_a_bounded_number_of_times():
    house = House()
    pool = house.pool("app", request_timeout=10, numprocs=8)
    for index in range(8):
        pool.runs(index)
    while house.loop.now < 120.0:
        for index in range(8):
            pool.has_in_hand(9.99 - index / 100, index=index)
        house.loop.run(house.loop.now + 0.1)
    assert len(house.loop.wakes) <= 2 * LOOKS + 1
    assert house.signals == []
