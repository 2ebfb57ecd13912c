"""`events --follow`: a slow reader is told what it missed, in order, and what is remembered no longer."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fcgimgr.control.messages import Event, EventsParams, Notice
from fcgimgr.manager.commands import table
from fcgimgr.manager.ground.history import REMEMBERED, History


class SlowReader:
    """A caller that is `behind` when the test says so."""

    def __init__(self) -> None:
        self.behind = False
        self.told: list[Event] = []
        self.catch_up: list[Callable[[], None]] = []
        self.left = asyncio.Event()

    def notify(self, method: str, params: Notice) -> None:
        assert isinstance(params, Event)
        self.told.append(params)

    def when_caught_up(self, callback: Callable[[], None]) -> None:
        self.catch_up.append(callback)

    async def gone(self) -> None:
        await self.left.wait()


async def follow(missed: int) -> list[Event]:
    """What a reader is told of one event, then of so many while it is behind, and of a last one."""
    history, reader = History(), SlowReader()
    daemon: Any = SimpleNamespace(history=history)
    task = asyncio.ensure_future(table.events(daemon, EventsParams(n=0, follow=True), reader))
    await asyncio.sleep(0)
    history.record("log", "first")
    reader.behind = True
    for number in range(missed):
        history.record("log", str(number))
    assert len(reader.told) == 1
    reader.behind = False
    (catch_up,) = reader.catch_up
    catch_up()
    history.record("log", "last")
    reader.left.set()
    await task
    return reader.told


def test_what_was_missed_is_told_when_it_has_caught_up() -> None:
    told = asyncio.run(follow(3))
    assert [event.name for event in told] == ["first", "0", "1", "2", "last"]


def test_what_is_remembered_no_longer_is_counted() -> None:
    told = asyncio.run(follow(REMEMBERED + 5))
    assert (told[1].kind, told[1].detail) == ("skipped", "5 events: they came faster than they were read")
    assert [event.name for event in told[2:]] == [*map(str, range(5, REMEMBERED + 5)), "last"]
