"""A program that does one thing and ends (`ready = "exit"`): done is what it is when it has ended as expected."""

import pytest

from fcgimgr.core.generation import PoolState

from .history import History

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
