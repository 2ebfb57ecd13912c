"""A program that does one thing and ends (`ready = "exit"`): done is what it is when it has ended as expected."""

import pytest

from fcgimgr.core.generation import PoolState, SettingsChanged

from .history import History, settings

SIGKILL = 9


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_is_ready_when_it_has_ended_as_expected(code: int):
    history = History(ready="exit", exitcodes=(0, 3), startsecs=1).start().at(100)
    assert (history.states, history.state, history.timers) == (["STARTING"], PoolState.STARTING, [])
    history.exits("app_00", code=code)
    assert (history.states, history.state, history.timers) == (["EXITED"], PoolState.EXITED, [])
    assert history.start().states == ["STARTING"]


def test_a_job_that_ends_otherwise_has_failed_to_start_however_long_it_took():
    history = History(ready="exit", startretries=1, backoff_initial=1).start().at(100)
    assert history.exits("app_00", code=1).states == ["BACKOFF"]
    assert history.at(102).states == ["STARTING"]
    history.exits("app_00", signal=SIGKILL)
    assert (history.states, history.state) == (["FATAL"], PoolState.FATAL)


def test_several_of_a_job_are_done_when_all_of_them_are():
    history = History(ready="exit", numprocs=2).start()
    assert history.exits("app_00", code=0).state is PoolState.STARTING
    assert history.exits("app_01", code=0).state is PoolState.EXITED
    assert history.stop().state is PoolState.STOPPED


# An update that touches no process


def going_by(history: History, **keys: object) -> History:
    history.settings = settings(**keys)
    return history.feed(SettingsChanged())


def test_what_was_a_job_and_goes_on_is_running_if_it_is_none_any_more():
    history = going_by(History(ready="exit", startsecs=1).start().at(100), startsecs=1)
    assert (history.states, history.state) == (["RUNNING"], PoolState.RUNNING)


@pytest.mark.parametrize("now", [0.5, 100], ids=["starting", "running"])
def test_what_has_become_a_job_is_done_when_it_ends(now: float):
    history = going_by(History(startsecs=1).start().at(now), ready="exit", startsecs=1).at(200)
    assert (history.states, history.timers) == (["STARTING"], [])
    assert history.exits("app_00", code=0).state is PoolState.EXITED


def test_what_has_ended_as_expected_has_done_its_job_if_it_is_one_now():
    history = History(autorestart="unexpected", startsecs=1).start().at(100).exits("app_00", code=0)
    assert history.state is PoolState.STOPPED
    assert going_by(history, autorestart="unexpected", ready="exit").state is PoolState.EXITED
    assert going_by(history, autorestart="unexpected").state is PoolState.STOPPED
