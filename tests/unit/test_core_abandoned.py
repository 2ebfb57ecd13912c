"""What SIGKILL does not end is waited for so long and no longer; what is to follow it follows."""

from fcgimgr.core.generation import AbandonProcess, PoolState
from fcgimgr.core.process import ABANDONED_AFTER, EXECUTED_WITHIN

from .history import History


def abandoned(history: History) -> list[AbandonProcess]:
    return [action for action in history.actions if isinstance(action, AbandonProcess)]


def test_a_stop_ends_though_the_process_does_not():
    history = History(stopwaitsecs=3).start().at(5).stop()
    assert abandoned(history.at(8 + ABANDONED_AFTER - 0.1)) == []
    assert history.states == ["STOPPING"]
    assert abandoned(history.at(8 + ABANDONED_AFTER)) == [AbandonProcess(0, 100)]
    assert (history.states, history.state, history.timers) == (["STOPPED"], PoolState.STOPPED, [])
    assert not history.listening


def test_a_restart_goes_on_with_the_next():
    history = History(numprocs=2, stopwaitsecs=3).start().at(5)
    history.busy = {"app_00", "app_01"}
    history.restart("app_00").at(30)
    assert history.states == ["RUNNING", "RUNNING"]
    assert history.pids[0] == 102


def test_a_kill_that_is_said_twice_does_not_take_longer():
    history = History().start().at(5).kill().at(8).kill()
    assert history.at(5 + ABANDONED_AFTER).states == ["STOPPED"]


def test_one_that_is_never_ready_and_does_not_die_is_a_failed_start():
    history = History(ready="notify", ready_timeout=1, stopwaitsecs=1, startretries=0).start()
    assert history.at(2 + ABANDONED_AFTER).states == ["FATAL"]


def test_one_that_does_not_come_to_its_program_and_does_not_die_is_a_failed_start():
    history = History(startretries=0)
    history.executes_at_once = False
    history.start().at(EXECUTED_WITHIN + ABANDONED_AFTER - 0.1)
    assert history.states == ["STARTING"]
    history.at(EXECUTED_WITHIN + ABANDONED_AFTER)
    assert history.states == ["FATAL"]
    assert "within 30 s" in history.pool.processes[0].why
