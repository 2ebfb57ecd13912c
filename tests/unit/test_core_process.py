"""One process: a life in each of its forms, and the table that decides them."""

import pytest

from fcgimgr.core.backoff import backoff_delay
from fcgimgr.core.generation import SignalProcess, SpawnProcess
from fcgimgr.core.process import (
    EVENTS,
    EXECUTED_WITHIN,
    STATES,
    TRANSITIONS,
    Astray,
    Backoff,
    CountAsFailed,
    Died,
    Due,
    Executed,
    Exit,
    Exited,
    Fatal,
    Held,
    Idle,
    ImpossibleEventError,
    KillAsked,
    Ready,
    Rest,
    RestartAsked,
    Retiring,
    RetryAsked,
    Running,
    Slot,
    Spawned,
    SpawnFailed,
    Spawning,
    StartAsked,
    Starting,
    StopAsked,
    Stopped,
    Stopping,
    Takes,
    TookTooLong,
    impossible,
    step,
)

from .history import History, settings

SIGTERM, SIGKILL = 15, 9

EXAMPLES = {
    Stopped: Stopped(),
    Spawning: Spawning(tries=0),
    Starting: Starting(pid=7, since=0.0, tries=0, due=1.0),
    Running: Running(pid=7, since=0.0),
    Backoff: Backoff(due=1.0, tries=1, why="it broke"),
    Retiring: Retiring(pid=7, since=0.0, due=10.0, after=Rest()),
    Stopping: Stopping(pid=7, due=10.0, after=Rest()),
    Exited: Exited(exit=Exit(code=0), expected=True),
    Fatal: Fatal(why="it broke"),
    StartAsked: StartAsked(),
    StopAsked: StopAsked(),
    RestartAsked: RestartAsked(),
    RetryAsked: RetryAsked(),
    TookTooLong: TookTooLong(within=1.0),
    KillAsked: KillAsked(),
    Spawned: Spawned(pid=7),
    Executed: Executed(),
    SpawnFailed: SpawnFailed(why="no such file"),
    Ready: Ready(),
    Takes: Takes(),
    Astray: Astray("it listens elsewhere"),
    Died: Died(Exit(code=1)),
    Idle: Idle(),
    Due: Due(),
    Held: Held(until=5.0),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_every_state_answers_every_event_or_calls_it_impossible(state: type, event: type):
    slot = Slot(settings())
    if TRANSITIONS[state][event] is impossible:
        with pytest.raises(ImpossibleEventError):
            step(slot, EXAMPLES[state], EXAMPLES[event], 5.0)
    else:
        after, _ = step(slot, EXAMPLES[state], EXAMPLES[event], 5.0)
        assert isinstance(after, STATES)


def test_the_table_has_no_entry_but_for_states_and_events():
    assert set(TRANSITIONS) == set(STATES)
    assert all(set(row) == set(EVENTS) for row in TRANSITIONS.values())


def test_a_process_is_running_after_startsecs():
    history = History(startsecs=2).start()
    assert history.states == ["STARTING"]
    assert history.at(1.9).states == ["STARTING"]
    assert history.at(2.0).states == ["RUNNING"]
    assert history.timers == []


def test_with_startsecs_0_it_is_running_at_once():
    assert History(startsecs=0).start().states == ["RUNNING"]


def test_a_death_in_running_is_replaced_at_once():
    history = History(numprocs=2).start().at(9.5)
    assert history.actions
    history.exits("app_01", signal=SIGKILL)
    assert history.actions == [SpawnProcess(1)]
    assert history.states == ["RUNNING", "STARTING"]


def test_a_death_in_starting_backs_off_exponentially_and_gives_up_after_startretries():
    history = History(startretries=3, backoff_initial=1, backoff_max=30).start()
    waits = []
    for _ in range(3):
        history.exits("app_00", code=1)
        assert history.states == ["BACKOFF"]
        waits.append(history.timers[0] - history.now)
        history.at(history.timers[0])
    assert history.states == ["STARTING"]
    history.exits("app_00", code=1)
    assert history.states == ["FATAL"]
    assert "exited with code 1" in history.pool.processes[0].why
    assert [0.8 <= wait / expected <= 1.0 for wait, expected in zip(waits, (1, 2, 4), strict=True)] == [True] * 3


def test_startretries_minus_1_tries_for_ever_and_never_waits_longer_than_backoff_max():
    history = History(startretries=-1, backoff_max=5).start()
    for _ in range(50):
        history.exits("app_00", code=1)
        wait = history.timers[0] - history.now
        assert wait <= 5
        history.at(history.timers[0])
    assert history.states == ["STARTING"]


def test_a_stable_run_resets_the_count_of_failed_starts():
    history = History(startretries=1).start()
    for _ in range(5):
        history.exits("app_00", code=1)
        assert history.states == ["BACKOFF"]
        history.at(history.timers[0]).at(history.now + 5)
        assert history.states == ["RUNNING"]
        history.exits("app_00", code=1)
        assert history.states == ["STARTING"]


def test_jitter_spreads_siblings_and_never_lengthens_a_wait():
    waits = {backoff_delay(2, 1.0, 30.0, jitter / 10) for jitter in range(10)}
    assert len(waits) == 10
    assert all(3.2 <= wait <= 4.0 for wait in waits)


def test_startsecs_count_from_when_the_program_is_executed():
    history = History(startsecs=2)
    history.executes_at_once = False
    assert history.start().at(20).states == ["STARTING"]
    assert history.executed("app_00").at(21.9).states == ["STARTING"]
    assert history.at(22).states == ["RUNNING"]


def test_with_startsecs_0_it_is_running_as_soon_as_its_program_is_executed():
    history = History(startsecs=0)
    history.executes_at_once = False
    assert history.start().states == ["STARTING"]
    assert history.executed("app_00").states == ["RUNNING"]
    assert history.timers == []


def test_a_program_that_cannot_be_executed_is_a_failed_start_once_its_process_is_gone():
    history = History(startretries=0)
    history.executes_at_once = False
    history.start().cannot_execute("app_00", "user nobody: operation not permitted")
    assert history.states == ["STARTING"]
    assert SignalProcess(0, 100, SIGKILL, group=False) in history.actions
    assert history.exits("app_00", code=127).states == ["FATAL"]
    assert history.pool.processes[0].why == "user nobody: operation not permitted"


def test_a_process_that_does_not_come_to_its_program_in_time_is_killed_and_a_failed_start():
    history = History(startsecs=0, startretries=0)
    history.executes_at_once = False
    assert history.start().at(EXECUTED_WITHIN - 0.1).signals == []
    assert history.at(EXECUTED_WITHIN).signals == [SignalProcess(0, 100, SIGKILL, group=False)]
    assert history.executed("app_00").states == ["STARTING"], "too late"
    assert history.exits("app_00", signal=SIGKILL).states == ["FATAL"]
    assert "within 30 s" in history.pool.processes[0].why


def test_a_process_is_stopped_before_it_has_come_to_its_program():
    history = History()
    history.executes_at_once = False
    history.start().stop()
    history.executed("app_00").at(3)
    assert history.states == ["STOPPING"]
    assert history.exits("app_00", signal=SIGTERM).states == ["STOPPED"]


def test_a_program_that_cannot_be_spawned_is_a_failed_start():
    history = History(startretries=0)
    history.cannot_spawn = "command not found: app"
    history.start()
    assert history.states == ["FATAL"]
    assert history.pool.processes[0].why == "command not found: app"


def test_an_operator_leads_a_process_out_of_fatal():
    history = History(startretries=0).start()
    history.exits("app_00", code=1)
    assert history.states == ["FATAL"]
    history.start("app_00")
    assert history.at(history.now + 1).states == ["RUNNING"]


@pytest.mark.parametrize(
    ("autorestart", "code", "signal", "state"),
    [
        (True, 0, None, "STARTING"),
        (True, 1, None, "STARTING"),
        (False, 0, None, "EXITED"),
        (False, 1, None, "EXITED"),
        ("unexpected", 0, None, "EXITED"),
        ("unexpected", 3, None, "EXITED"),
        ("unexpected", 1, None, "STARTING"),
        ("unexpected", None, SIGKILL, "STARTING"),
    ],
)
def test_autorestart_and_exitcodes_say_which_end_is_final(autorestart, code, signal, state):
    history = History(autorestart=autorestart, exitcodes=(0, 3)).start().at(5)
    history.exits("app_00", code=code, signal=signal)
    assert history.states == [state]


def test_a_one_shot_quicker_than_startsecs_has_not_failed():
    history = History(autorestart="unexpected", startsecs=5).start()
    assert history.exits("app_00", code=0).states == ["EXITED"]


def test_stop_sends_the_stopsignal_and_after_stopwaitsecs_sigkill_to_the_group():
    history = History(stopwaitsecs=3).start().at(5)
    pid = history.pids[0]
    history.stop()
    assert history.signals == [SignalProcess(0, pid, SIGTERM, group=False)]
    history.at(7.9)
    assert history.states == ["STOPPING"]
    history.at(8.0)
    assert history.signals[-1] == SignalProcess(0, pid, SIGKILL, group=True)
    assert history.exits("app_00", signal=SIGKILL).states == ["STOPPED"]
    assert history.timers == []


def test_stopasgroup_and_killasgroup_say_who_is_signalled():
    history = History(stopasgroup=True, killasgroup=False, stopsignal=10).start().at(5).stop().at(60)
    assert [(sent.signal, sent.group) for sent in history.signals[:2]] == [(10, True), (SIGKILL, False)]


def test_a_start_while_it_stops_brings_it_up_again():
    history = History().start().at(5).stop()
    history.start()
    assert history.states == ["STOPPING"]
    assert history.exits("app_00", signal=SIGTERM).states == ["STARTING"]


def test_a_stop_while_it_waits_to_try_again_ends_that():
    history = History().start()
    history.exits("app_00", code=1)
    assert history.stop().states == ["STOPPED"]
    assert history.timers == []


def test_ready_by_notify_waits_for_the_word_and_not_for_the_clock():
    history = History(ready="notify", startsecs=1, ready_timeout=30).start()
    assert history.at(20).states == ["STARTING"]
    assert history.ready("app_00").states == ["RUNNING"]


def test_one_that_is_not_ready_in_time_is_stopped_and_counts_as_a_failed_start():
    history = History(ready="notify", ready_timeout=5, startretries=0).start()
    assert history.at(5).states == ["STOPPING"]
    assert [sent.signal for sent in history.signals] == [SIGTERM]
    history.exits("app_00", signal=SIGTERM)
    assert history.states == ["FATAL"]
    assert "ready_timeout" in history.pool.processes[0].why


def test_an_operators_stop_overrules_a_failed_readiness():
    failing = Stopping(pid=7, due=9.0, after=CountAsFailed(0, "not ready"))
    after, _ = step(Slot(settings()), failing, StopAsked(), 1.0)
    assert isinstance(after, Stopping)
    assert isinstance(after.after, Rest)


def test_kill_does_not_wait():
    history = History(numprocs=2).start().at(5).kill()
    assert [(sent.signal, sent.group) for sent in history.signals] == [(SIGKILL, True)] * 2


def test_a_stop_overtakes_an_order_to_spawn():
    after, actions = step(Slot(settings()), Spawning(tries=0), StopAsked(), 1.0)
    assert (after, actions) == (Stopped(), ())
