"""A pool: its listener, its rolling restart, its size, and the bound on crash loops."""

from fcgimgr.core import generation as core
from fcgimgr.core.crashes import full
from fcgimgr.core.generation import Close, Forget, Happened, Open, PoolState, SpawnProcess, WaitFor, step
from fcgimgr.core.process import Running, StopAsked, Takes

from .history import History, settings

SIGTERM, SIGKILL = 15, 9


# The listener


def test_start_opens_the_listener_before_any_process():
    history = History(numprocs=2).start()
    assert history.actions == [Open(), SpawnProcess(0), SpawnProcess(1)]


def test_the_listener_stays_open_while_every_process_crashes_again_and_again():
    history = History(numprocs=3, startretries=-1).start()
    for _ in range(40):
        for name in ("app_00", "app_01", "app_02"):
            if history.index(name) in history.pids:
                history.exits(name, signal=SIGKILL)
        history.at(history.now + 0.5)
        assert history.listening


def test_a_stopped_pool_closes_its_listener_when_the_last_process_has_ended():
    history = History(numprocs=2).start().at(5).stop()
    history.exits("app_00", signal=SIGTERM)
    assert history.listening
    history.exits("app_01", signal=SIGTERM)
    assert not history.listening
    assert history.state is PoolState.STOPPED


def test_a_pool_whose_every_process_is_fatal_closes_its_listener():
    history = History(numprocs=2, startretries=0).start()
    history.exits("app_00", code=1)
    assert history.listening
    history.exits("app_01", code=1)
    assert not history.listening
    assert history.state is PoolState.FATAL


def test_on_fatal_keep_keeps_it():
    history = History(startretries=0, on_fatal="keep").start()
    history.exits("app_00", code=1)
    assert history.listening
    assert history.state is PoolState.FATAL
    assert history.stop().listening is False


def test_a_listener_that_cannot_be_opened_is_fatal_until_somebody_starts_the_pool_again():
    history = History(port_in_use="127.0.0.1:9001: in use").start()
    assert history.state is PoolState.FATAL
    assert history.states == ["STOPPED"]
    assert history.pool.fault == "127.0.0.1:9001: in use"
    history.port_in_use = None
    history.start()
    assert history.at(1).state is PoolState.RUNNING


def test_starting_one_process_of_a_stopped_pool_opens_the_listener_for_it():
    history = History(numprocs=3).start("app_01")
    assert history.listening
    assert history.states == ["STOPPED", "STARTING", "STOPPED"]


def test_stopping_each_process_by_name_closes_the_listener_with_the_last():
    history = History(numprocs=2).start().at(5).stop("app_00")
    history.exits("app_00", signal=SIGTERM).stop("app_01")
    assert history.listening
    history.exits("app_01", signal=SIGTERM)
    assert not history.listening


# The pool's state


def test_a_pool_is_starting_until_all_are_ready_and_degraded_when_one_is_lost():
    history = History(numprocs=2, ready="notify").start()
    history.ready("app_00")
    assert history.state is PoolState.STARTING
    history.ready("app_01")
    assert history.state is PoolState.RUNNING
    history.at(60).exits("app_00", signal=SIGKILL)
    assert history.state is PoolState.DEGRADED
    assert history.ready("app_00").state is PoolState.RUNNING


def test_a_pool_that_waits_for_another_is_starting():
    history = History().feed(WaitFor(("db",)))
    assert history.state is PoolState.STARTING
    assert history.states == ["STOPPED"]
    assert history.stop().state is PoolState.STOPPED


# Rolling restart


def test_restart_takes_the_next_only_when_the_replacement_is_ready():
    history = History(numprocs=3, ready="notify").start()
    for name in ("app_00", "app_01", "app_02"):
        history.ready(name)
    history.at(10).restart()
    for index, name in enumerate(("app_00", "app_01", "app_02")):
        assert [sent.index for sent in history.signals] == list(range(index + 1))
        history.exits(name, signal=SIGTERM)
        assert history.states.count("RUNNING") == 2
        history.ready(name)
    assert history.states == ["RUNNING"] * 3
    assert history.pool.rolling == ()
    assert history.listening


def test_restart_leaves_the_others_alone_when_a_replacement_does_not_come_up():
    history = History(numprocs=3).start().at(10)
    others = [history.pids[1], history.pids[2]]
    history.restart().exits("app_00", signal=SIGTERM).exits("app_00", code=1)
    assert history.pool.rolling == ()
    assert [history.pids[1], history.pids[2]] == others
    assert history.states == ["BACKOFF", "RUNNING", "RUNNING"]


def test_a_restart_that_is_asked_for_twice_restarts_each_once_more():
    history = History(numprocs=2, startsecs=0).start().at(10).restart().restart()
    for _ in range(3):
        history.exits(f"app_0{history.pool.rolling[0]}", signal=SIGTERM)
    assert history.pool.rolling == ()
    assert sorted(history.pids.values()) == [103, 104]


def test_stopping_the_one_under_way_lets_the_restart_go_on_with_the_next():
    history = History(numprocs=3, startsecs=0).start().at(10).restart().stop("app_00")
    history.exits("app_00", signal=SIGTERM)
    assert history.states == ["STOPPED", "STOPPING", "RUNNING"]
    history.exits("app_01", signal=SIGTERM).exits("app_02", signal=SIGTERM)
    assert history.states == ["STOPPED", "RUNNING", "RUNNING"]


def test_restart_of_a_stopped_pool_is_a_start():
    assert History(numprocs=2, startsecs=0).restart().states == ["RUNNING", "RUNNING"]


# Scale


def test_scale_up_starts_only_the_new_ones():
    history = History(numprocs=2, startsecs=0).start().at(5)
    before = dict(history.pids)
    assert history.actions
    history.scale(4)
    assert history.actions == [SpawnProcess(2), SpawnProcess(3)]
    assert {index: history.pids[index] for index in before} == before


def test_scale_down_stops_the_last_ones_and_forgets_them():
    history = History(numprocs=4, startsecs=0).start().at(5).scale(2)
    assert [sent.index for sent in history.signals] == [2, 3]
    assert history.state is PoolState.RUNNING
    history.exits("app_02", signal=SIGTERM)
    assert len(history.states) == 4
    history.exits("app_03", signal=SIGTERM)
    assert history.states == ["RUNNING", "RUNNING"]
    assert history.actions[-2:] == [Forget(3), Forget(2)]


def test_scale_up_again_before_the_last_have_gone_brings_them_back():
    history = History(numprocs=3, startsecs=0).start().at(5).scale(1).scale(3)
    history.exits("app_01", signal=SIGTERM).exits("app_02", signal=SIGTERM)
    assert history.states == ["RUNNING"] * 3


def test_scale_of_a_stopped_pool_starts_nothing():
    assert History(numprocs=1).scale(3).states == ["STOPPED"] * 3


# Crash loops


def test_a_crash_loop_with_startsecs_0_ends():
    history = History(startsecs=0, startretries=3).start()
    deaths = 0
    while history.states == ["RUNNING"]:
        history.exits("app_00", code=1)
        deaths += 1
        if history.states == ["BACKOFF"]:
            history.at(history.timers[0])
        assert deaths < 100
    assert history.states == ["FATAL"]


def test_a_pool_that_crashes_right_after_it_is_ready_is_bounded_as_a_whole():
    history = History(numprocs=10, ready="notify", startretries=-1, backoff_max=10).start()
    spawned = 0
    while history.now < 60:
        for index in list(history.pids):
            history.ready(f"app_{index:02}")
            history.exits(f"app_{index:02}", signal=11)
        spawned += sum(isinstance(action, SpawnProcess) for action in history.actions)
        history.at(history.now + 0.1)
    # 10 at the start, 20 of the burst, then one a second.
    assert spawned <= 10 + 20 + 61
    assert history.listening


def test_a_process_that_proves_stable_gives_the_pool_its_whole_budget_back():
    history = History(numprocs=2, startsecs=0).start()
    for _ in range(12):
        history.exits("app_00", signal=SIGKILL)
        if history.states[0] == "BACKOFF":
            break
        history.at(history.now + 0.01)
    history.at(history.now + 20)
    assert history.states == ["RUNNING", "RUNNING"]
    history.exits("app_01", signal=SIGKILL)
    assert history.pool.budget == full(2, history.now)


def test_a_late_death_is_always_replaced_at_once():
    history = History(numprocs=2, startsecs=1).start()
    for turn in range(1, 60):
        history.at(2.0 * turn).exits("app_00", signal=SIGKILL)
        assert history.states[0] == "STARTING"


# Purity


def test_step_changes_nothing_that_it_was_given():
    history = History(numprocs=2).start().at(5)
    before = history.pool
    after, _ = step(history.settings, before, Happened(0, StopAsked()), 6.0)
    assert after is not before
    assert isinstance(before.processes[0], Running)
    assert history.pool == before


def test_close_is_ordered_once():
    history = History().start().at(5).stop()
    history.exits("app_00", signal=SIGTERM)
    assert history.actions.count(Close()) == 1
    assert history.stop().actions == []


# -- on_fatal = "retry"


RETRYING = {"on_fatal": "retry", "startretries": 0, "startsecs": 1.0}


def test_what_is_fatal_is_tried_once_more_after_growing_pauses_and_refused_meanwhile():
    history = History(numprocs=2, **RETRYING).start()
    for first, last in ((48.0, 60.0), (96.0, 120.0), (192.0, 240.0), (384.0, 480.0), (480.0, 600.0), (480.0, 600.0)):
        history.exits("app_00", code=1).exits("app_01", code=1)
        assert history.state is PoolState.FATAL
        assert not history.listening
        pause = history.pool.retry_at - history.now
        assert first <= pause <= last
        history.actions  # noqa: B018 - what came before
        history.at(history.pool.retry_at)
        assert history.actions == [Open(), SpawnProcess(0), SpawnProcess(1)]
        assert history.state is PoolState.STARTING


def test_one_try_is_all_that_it_has():
    history = History(**(RETRYING | {"startretries": 3})).start()
    for _ in range(3):
        history.exits("app_00", code=1)
        history.at(history.timers[0])
    history.exits("app_00", code=1)
    history.at(history.pool.retry_at)
    assert history.states == ["STARTING"]
    history.exits("app_00", code=1)
    assert history.states == ["FATAL"]


def test_after_a_try_that_was_good_for_longer_than_the_next_pause_it_all_begins_anew():
    history = History(**RETRYING).start().exits("app_00", code=1)
    history.at(history.pool.retry_at).exits("app_00", code=1)  # the next one would be some 120 s
    history.at(history.pool.retry_at).at(history.now + 300)
    assert history.state is PoolState.RUNNING
    assert history.pool.retry_at is None
    history.cannot_spawn = "no such file"
    history.exits("app_00", code=1)
    assert history.state is PoolState.FATAL
    assert history.pool.retry_at - history.now < 61.0


def test_a_port_that_was_in_use_is_tried_again_too():
    history = History(port_in_use="in use", numprocs=2, **RETRYING).start()
    assert history.state is PoolState.FATAL
    history.at(history.pool.retry_at)
    assert history.state is PoolState.FATAL
    history.port_in_use = None
    history.at(history.pool.retry_at)
    assert history.states == ["STARTING", "STARTING"]
    assert history.listening


def test_of_several_the_one_that_is_fatal_is_tried_again_and_the_others_are_not_touched():
    history = History(numprocs=2, **RETRYING).start().exits("app_01", code=1)
    history.at(2.0)
    assert history.state is PoolState.DEGRADED
    history.actions  # noqa: B018 - what came before
    history.at(history.pool.retry_at)
    assert history.actions == [SpawnProcess(1)]


def test_what_is_stopped_is_not_tried_again_and_a_start_does_not_wait_for_it():
    history = History(**RETRYING).start().exits("app_00", code=1)
    history.stop()
    assert history.pool.retry_at is None
    assert history.states == ["STOPPED"]
    history.start().exits("app_00", code=1)
    history.start()
    assert history.states == ["STARTING"]
    assert history.pool.retry_at is None


def test_it_is_begun_and_ended_by_an_update_of_the_key():
    history = History(startretries=0).start().exits("app_00", code=1)
    assert history.pool.retry_at is None
    history.settings = settings(**RETRYING)
    history.feed(core.SettingsChanged())
    assert history.pool.retry_at is not None
    history.settings = settings(startretries=0)
    history.feed(core.SettingsChanged())
    assert history.pool.retry_at is None


# -- another generation has taken its place, and may give it back


def test_one_that_is_held_stays_whole_and_takes_no_orders():
    history = History(numprocs=2).start().at(5).feed(core.Hold())
    history.restart().scale(1).start()
    assert history.states == ["RUNNING", "RUNNING"]
    history.exits("app_00", signal=SIGKILL)
    assert history.states == ["STARTING", "RUNNING"]
    history.at(7).leave()
    assert history.signals
    assert history.states == ["STOPPING", "STOPPING"]


def test_one_that_drains_is_whole_again_when_it_comes_back():
    history = History(numprocs=3).start().at(5)
    history.busy = {"app_02"}
    history.leave()
    assert history.states == ["STOPPING", "STOPPING", "STOPPING"]
    history.exits("app_00", signal=SIGTERM)
    history.feed(core.Return())
    assert history.states == ["STARTING", "STOPPING", "RUNNING"]  # ended, told to, and at work
    history.exits("app_01", signal=SIGTERM).at(10)
    assert history.states == ["RUNNING", "RUNNING", "RUNNING"]
    assert not history.pool.left
    history.restart("app_00")
    assert history.states[0] == "STOPPING"


def test_another_max_lifetime_does_not_make_it_unseen():
    history = History(startsecs=5).start().feed(core.Happened(0, Takes()))
    history.at(6)
    assert history.pool.processes[0].seen
    history.settings = settings(startsecs=5, max_lifetime=100)
    history.feed(core.SettingsChanged())
    assert history.pool.processes[0].seen
