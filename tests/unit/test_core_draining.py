"""Letting go: of one process (retire), of a generation (leave), of a pool (stop), without what they have in hand."""

from fcgimgr.core.generation import Leave, PoolState, Refuse, SignalProcess, WaitFor

from .history import History

SIGTERM, SIGKILL = 15, 9


def signals(history):
    return [(sent.index, sent.signal) for sent in history.signals]


# One process


def test_a_busy_process_is_told_to_end_only_when_it_has_nothing_in_hand():
    history = History(numprocs=2, startsecs=0).start().at(5)
    history.busy.add("app_01")
    history.scale(1)
    assert history.states == ["RUNNING", "STOPPING"]
    assert signals(history) == []
    history.busy.clear()
    history.look()
    assert signals(history) == [(1, SIGTERM)]


def test_patience_with_a_busy_process_ends_after_stopwaitsecs_and_then_it_has_as_long_to_end():
    history = History(numprocs=2, startsecs=0, stopwaitsecs=3).start().at(5)
    history.busy.add("app_01")
    history.scale(1).at(7.9)
    assert signals(history) == []
    history.at(8)
    assert signals(history) == [(1, SIGTERM)]
    history.at(11)
    assert signals(history) == [(1, SIGTERM), (1, SIGKILL)]


def test_a_process_that_is_wanted_again_before_it_was_told_to_end_serves_on():
    history = History(numprocs=2, startsecs=0).start().at(5)
    history.busy.add("app_01")
    pid = history.pids[1]
    history.scale(1).scale(2)
    assert history.states == ["RUNNING", "RUNNING"]
    assert (history.pids[1], signals(history)) == (pid, [])


def test_our_own_worker_is_told_at_once_for_it_finishes_by_itself():
    history = History(numprocs=2, startsecs=0, wsgi="app:app").start().at(5)
    history.busy.add("app_01")
    history.scale(1)
    assert signals(history) == [(1, SIGTERM)]


def test_a_rolling_restart_waits_for_each_process_to_be_idle_and_a_hard_one_does_not():
    history = History(numprocs=2, startsecs=0).start().at(5)
    history.busy = {"app_00", "app_01"}
    history.restart()
    assert signals(history) == []
    hard = History(numprocs=2, startsecs=0).start().at(5)
    hard.busy = {"app_00", "app_01"}
    hard.restart(hard=True)
    assert signals(hard) == [(0, SIGTERM)]


# A generation, a pool


def test_a_generation_that_leaves_serves_its_queue_first_and_refuses_nobody():
    history = History(numprocs=2, startsecs=0).start().at(5)
    history.queued = 3
    history.leave()
    assert history.states == ["RUNNING", "RUNNING"]
    assert Refuse() not in history.actions
    history.queued = 0
    history.look()
    assert sorted(signals(history)) == [(0, SIGTERM), (1, SIGTERM)]


def test_a_stop_refuses_new_connections_and_serves_those_that_wait():
    history = History(numprocs=1, startsecs=0).start().at(5)
    history.queued = 3
    history.stop()
    assert Refuse() in history.actions
    assert history.state is PoolState.STOPPING
    assert signals(history) == []
    history.queued = 0
    history.look()
    assert signals(history) == [(0, SIGTERM)]
    assert history.exits("app_00", signal=SIGTERM).state is PoolState.STOPPED
    assert not history.listening


def test_a_process_that_dies_while_the_queue_is_served_is_replaced():
    history = History(numprocs=1, startsecs=0).start().at(5)
    history.queued = 3
    history.stop().exits("app_00", signal=SIGKILL)
    assert history.states == ["RUNNING"]


def test_a_queue_that_nobody_serves_holds_a_stop_for_stopwaitsecs_only():
    history = History(numprocs=1, startsecs=0, stopwaitsecs=3).start().at(5)
    history.queued = 3
    history.stop().at(7.9)
    assert signals(history) == []
    history.at(8)
    assert signals(history) == [(0, SIGTERM)]


def test_a_start_while_the_pool_stops_begins_anew_once_it_has_stopped():
    history = History(numprocs=2, startsecs=0).start().at(5)
    history.busy.add("app_00")
    history.stop().start()
    assert history.state is PoolState.STOPPING
    history.exits("app_01", signal=SIGTERM)
    history.busy.clear()
    history.look().exits("app_00", signal=SIGTERM)
    assert history.state is PoolState.RUNNING
    assert history.listening


def test_what_has_left_takes_no_more_orders():
    history = History(numprocs=1, startsecs=0).start().at(5)
    history.queued = 1
    history.leave().start().restart().scale(5)
    assert history.states == ["RUNNING"]
    assert history.feed(Leave()).states == ["RUNNING"]


def test_what_never_served_is_stopped_at_once_whatever_waits_in_its_queue():
    history = History(numprocs=2, startsecs=1).start()
    history.queued = 1
    history.feed(Leave(served=False))
    assert signals(history) == [(0, SIGTERM), (1, SIGTERM)]
    history.exits("app_00", signal=SIGTERM).exits("app_01", signal=SIGTERM)
    assert not history.listening


def test_a_kill_waits_for_nothing():
    history = History(numprocs=1, startsecs=0).start().at(5)
    history.queued = 3
    history.stop().kill()
    assert signals(history) == [(0, SIGKILL)]


def test_signals_go_to_the_process_that_was_meant():
    history = History(numprocs=1, startsecs=0).start().at(5)
    pid = history.pids[0]
    history.stop()
    assert history.signals == [SignalProcess(0, pid, SIGTERM, group=False)]


def test_a_stop_while_the_pool_stops_ends_the_wait_for_a_dependency():
    history = History(numprocs=1, startsecs=0).start().at(5)
    history.queued = 3
    history.stop().feed(WaitFor(("db",))).stop()
    history.queued = 0
    assert history.look().exits("app_00", signal=SIGTERM).state is PoolState.STOPPED
