"""The zygote's life, as core decides it."""

from typing import Any

import pytest

from fcgimgr.config.address import UnixAddress
from fcgimgr.config.settings import PoolSettings
from fcgimgr.core import zygote
from fcgimgr.core.process import (
    SIGKILL,
    Backoff,
    CountAsFailed,
    Died,
    Due,
    Exit,
    Exited,
    Fatal,
    Ready,
    Rest,
    Retiring,
    Running,
    Signal,
    Spawn,
    Spawned,
    Spawning,
    StartAgain,
    StartAsked,
    Starting,
    State,
    StopAsked,
    Stopped,
    Stopping,
)

EXIT = Exit(code=1)


def settings(**more: Any) -> PoolSettings:
    keys = {"backoff_initial": 1.0, "backoff_max": 30.0, "startretries": 2, "ready_timeout": 30.0} | more
    return PoolSettings(name="app", sockets=(UnixAddress("/app.sock"),), wsgi="app:app", preload=True, **keys)


class Life:
    """A zygote to which things happen."""

    def __init__(self, **more: Any) -> None:
        self.settings = settings(**more)
        self.state: State = Stopped()

    def at(self, now: float, event: Any) -> State:
        self.state, _ = zygote.step(self.settings, self.state, event, now, 0.0)
        return self.state


def test_it_is_ready_when_it_says_so_whatever_the_pool_calls_ready() -> None:
    for ready in ("startsecs", "ping", "notify"):
        life = Life(ready=ready)
        life.at(0.0, StartAsked())
        assert life.at(0.0, Spawned(7)) == Starting(pid=7, since=0.0, tries=0, due=30.0)
        assert life.at(5.0, Ready()) == Running(pid=7, since=5.0)


def test_the_lifetime_of_a_worker_is_none_of_the_zygotes() -> None:
    life = Life(max_lifetime=60.0)
    life.at(0.0, StartAsked())
    life.at(0.0, Spawned(7))
    assert life.at(5.0, Ready()).due is None


def test_an_import_that_takes_too_long_is_killed_and_has_failed() -> None:
    starting = Starting(pid=7, since=0.0, tries=0, due=30.0)
    state, actions = zygote.step(settings(), starting, Due(), 30.0, 0.0)
    assert isinstance(state, Stopping)
    assert isinstance(state.after, CountAsFailed)
    assert actions == (Signal(SIGKILL, group=True),)


def test_one_that_has_been_of_use_is_replaced_at_once_and_one_that_has_not_after_a_pause() -> None:
    running = Running(pid=7, since=5.0)
    assert zygote.step(settings(), running, Died(EXIT), 65.0, 0.0) == (Spawning(tries=0), (Spawn(),))
    state, actions = zygote.step(settings(), running, Died(EXIT), 5.1, 0.0)
    assert isinstance(state, Backoff)
    assert actions == ()


def test_imports_that_fail_make_it_fatal_after_startretries() -> None:
    life = Life(startretries=2)
    life.at(0.0, StartAsked())
    for now in (10.0, 20.0):
        life.at(now, Spawned(7))
        assert isinstance(life.at(now, Died(EXIT)), Backoff)
        life.at(now + 5.0, Due())
    life.at(30.0, Spawned(7))
    assert isinstance(life.at(30.0, Died(EXIT)), Fatal)


def test_a_stop_kills_it_for_it_has_nothing_in_hand() -> None:
    _, actions = zygote.step(settings(stopsignal=15), Running(pid=7, since=0.0), StopAsked(), 9.0, 0.0)
    assert actions == (Signal(SIGKILL, group=True),)


@pytest.mark.parametrize(
    ("state", "tries", "started"),
    [
        (Stopped(), 0, True),
        (Stopped(), 3, True),
        (Exited(exit=EXIT, expected=True), 3, True),
        (Fatal(why=""), 0, True),
        (Fatal(why=""), 1, False),
        (Fatal(why=""), 4, True),  # more than startretries: it has been FATAL, and is tried once more
        (Backoff(due=9.0, tries=1, why=""), 0, True),
        (Backoff(due=9.0, tries=1, why=""), 1, False),
    ],
)
def test_a_worker_that_has_failed_before_does_not_try_a_zygote_that_has_failed(
    state: State, tries: int, started: bool
) -> None:
    assert zygote.asked_for(settings(startretries=3), state, tries) == (StartAsked() if started else None)


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (Stopped(), False),
        (Exited(exit=EXIT, expected=True), False),
        (Fatal(why=""), False),
        (Stopping(pid=1, due=9.0, after=Rest()), False),
        (Stopping(pid=1, due=9.0, after=StartAgain()), True),
        (Stopping(pid=1, due=9.0, after=CountAsFailed(0, "")), True),
        (Retiring(pid=1, since=0.0, due=9.0, after=Rest()), True),
        (Spawning(tries=0), True),
        (Starting(pid=1, since=0.0, tries=0, due=1.0), True),
        (Running(pid=1, since=0.0), True),
        (Backoff(due=9.0, tries=1, why=""), True),
    ],
)
def test_it_is_wanted_as_long_as_a_worker_may_have_to_be_forked(state: State, wanted: bool) -> None:
    assert zygote.is_wanted([Stopped(), state]) is wanted
