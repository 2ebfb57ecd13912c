"""Recycling: a process is replaced for what it has become, and nobody notices: one at a time, behind a stand-in."""

from collections.abc import Callable

import pytest

from fcgimgr.config.settings import ProgramSettings
from fcgimgr.core import crashes
from fcgimgr.core.generation import (
    HOPELESS,
    RECYCLE_AGAIN,
    Forget,
    Hold,
    NotRecycled,
    Overdue,
    PoolState,
    PutOff,
    Recycling,
    SettingsChanged,
    SignalProcess,
    SpawnProcess,
    new_generation,
)
from fcgimgr.core.process import ASK_AGAIN

from .history import History

SIGTERM, SIGKILL = 15, 9
RUNNING, STARTING, STOPPING = "RUNNING", "STARTING", "STOPPING"


def up(**keys: object) -> History:
    history = History(**{"numprocs": 2, "startsecs": 1} | keys).start().at(1.0)
    assert set(history.states) == {RUNNING}
    assert history.actions
    return history


def test_a_stand_in_comes_first_then_the_process_is_replaced_then_the_stand_in_goes():
    history = up().recycle("app_00")
    assert history.actions == [SpawnProcess(2)]
    assert history.states == [RUNNING, RUNNING, STARTING]
    history.at(2.0)
    assert history.actions == [Recycling(0, "it is old"), SignalProcess(0, 100, SIGTERM, False)]
    assert history.states == [STOPPING, RUNNING, RUNNING]
    history.exits("app_00", code=0)
    assert history.actions == [SpawnProcess(0)]
    history.at(3.0)
    assert history.states == [RUNNING, RUNNING, STOPPING]
    assert history.actions == [SignalProcess(2, 102, SIGTERM, False)]
    history.exits("app_02", code=0)
    assert history.states == [RUNNING, RUNNING]
    assert history.pids == {0: 103, 1: 101}
    assert history.timers == []


def test_the_pool_is_running_all_the_while():
    history = up(numprocs=1).recycle("app_00")
    assert history.state is PoolState.RUNNING
    for step in (lambda: history.at(2.0), lambda: history.exits("app_00", code=0), lambda: history.at(3.0)):
        step()
        assert history.state is PoolState.RUNNING
        assert history.states.count(RUNNING) >= 1


def test_never_more_than_one_is_replaced_and_one_stand_in_serves_for_all():
    history = up(numprocs=3)
    for name in ("app_02", "app_00", "app_02", "app_01"):
        history.recycle(name)
    history.at(2.0)
    for turn, index in enumerate((2, 0, 1)):
        assert [i for i, state in enumerate(history.states) if state == STOPPING] == [index]
        assert history.states[3] == RUNNING
        history.exits(f"app_{index:02}", code=0)
        history.at(3.0 + turn)
    assert history.states == [RUNNING, RUNNING, RUNNING, STOPPING]
    history.exits("app_03", code=0)
    assert history.states == [RUNNING] * 3
    assert history.actions.count(SpawnProcess(3)) == 1


def test_a_busy_process_is_not_told_to_end():
    history = up()
    history.busy.add("app_00")
    history.recycle("app_00").at(2.0)
    assert history.states == [STOPPING, RUNNING, RUNNING]
    assert history.signals == []
    history.busy.discard("app_00")
    history.look()
    assert [sent.index for sent in history.signals] == [0]


def test_a_program_is_replaced_without_a_stand_in():
    """Two of it at once may be one too many."""
    history = History(numprocs=2)
    history.settings = ProgramSettings(name="app", command=("app",), numprocs=2)
    history.pool = new_generation(history.settings, 0.0)
    history.start().at(1.0)
    history.recycle("app_00").recycle("app_01")
    assert history.states == [STOPPING, RUNNING]
    history.exits("app_00", code=0)
    assert history.states == [STARTING, RUNNING]
    history.at(2.0)
    assert history.states == [RUNNING, STOPPING]


def test_a_lifetime_ends_for_one_after_the_other():
    history = up(max_lifetime=10)
    assert history.timers == [10.0, 10.0]
    history.at(10.0)
    assert history.states == [RUNNING, RUNNING, STARTING]
    history.at(11.0)
    assert history.actions[1:] == [
        Recycling(0, "max_lifetime (10 s) is over"), SignalProcess(0, 100, SIGTERM, False)
    ]  # fmt: skip
    history.exits("app_00", code=0).at(12.0)
    assert history.states == [RUNNING, STOPPING, RUNNING]
    history.exits("app_01", code=0).at(13.0)
    history.exits("app_02", code=0)
    assert history.states == [RUNNING, RUNNING]
    assert history.timers == [21.0, 22.0]  # of the new ones, from their start


def test_another_lifetime_holds_for_those_that_run():
    history = up()
    assert history.timers == []
    history.settings = type(history.settings)(
        name="app", command=("app",), sockets=history.settings.sockets, numprocs=2, max_lifetime=10
    )
    history.at(4.0).feed(SettingsChanged())
    assert history.timers == [10.0, 10.0]
    history.settings = type(history.settings)(
        name="app", command=("app",), sockets=history.settings.sockets, numprocs=2, max_lifetime=3
    )
    history.feed(SettingsChanged())
    assert history.timers == [4.0, 4.0]


def test_a_stand_in_that_is_no_good_leaves_all_as_it_was():
    history = up()
    history.cannot_spawn = "no such file"
    history.recycle("app_00")
    assert history.actions == [SpawnProcess(2), NotRecycled((0,)), Forget(2)]
    assert history.states == [RUNNING, RUNNING]
    history.recycle("app_00")
    assert history.actions == []  # not again at once
    history.cannot_spawn = None
    history.at(1.0 + RECYCLE_AGAIN).recycle("app_00")
    assert history.actions == [SpawnProcess(2)]


def test_a_lifetime_that_could_not_be_ended_is_remembered():
    history = up(max_lifetime=10)
    history.cannot_spawn = "no such file"
    history.at(10.0)
    assert history.states == [RUNNING, RUNNING]
    assert history.timers == [10.0 + ASK_AGAIN] * 2
    history.cannot_spawn = None
    history.at(10.0 + ASK_AGAIN)
    assert history.states == [RUNNING, RUNNING, STARTING]


def test_while_a_replacement_is_no_good_the_stand_in_stays_and_the_others_are_not_touched():
    history = up().recycle("app_00").recycle("app_01").at(2.0)
    history.actions  # noqa: B018
    history.exits("app_00", code=0).exits("app_00", code=1)
    assert history.actions == [SpawnProcess(0), NotRecycled((1,))]
    assert history.states == ["BACKOFF", RUNNING, RUNNING]
    history.at(history.timers[0]).at(history.now + 1)
    assert history.states == [RUNNING, RUNNING, STOPPING]


def test_one_that_dies_while_it_waits_for_its_turn_is_new_anyway():
    history = up().recycle("app_00")
    history.exits("app_00", signal=SIGKILL)
    history.at(2.0)
    assert history.states == [RUNNING, RUNNING, STOPPING]
    assert not any(isinstance(action, Recycling) for action in history.actions)


@pytest.mark.parametrize("moment", [1.0, 2.0])
def test_a_restart_takes_over_what_recycling_has_begun(moment: float):
    history = up().recycle("app_01").at(moment)
    history.restart()
    assert history.states.count(STOPPING) - (history.states[2:] == [STOPPING]) == 1
    for _ in range(3):
        for index, state in enumerate(history.states):
            if state == STOPPING:
                history.exits(f"app_{index:02}", code=0)
        history.at(history.now + 1)
    assert history.states == [RUNNING, RUNNING]
    assert {100, 101}.isdisjoint(history.pids.values())


def test_a_stop_stops_the_stand_in_too():
    history = up().recycle("app_00").at(2.0).stop()
    for index in tuple(history.pids):
        history.exits(f"app_{index:02}", code=0)
    assert history.states == ["STOPPED", "STOPPED"]
    assert history.state is PoolState.STOPPED


def test_scaling_makes_the_stand_in_one_of_them_and_has_another_one_stand_in():
    history = up().recycle("app_00").at(2.0)
    assert history.actions
    history.scale(3)
    assert history.actions == [SpawnProcess(3)]
    assert history.at(3.0).states == [STOPPING, RUNNING, RUNNING, RUNNING]
    assert history.state is PoolState.RUNNING
    history.exits("app_00", code=0).at(4.0)
    assert history.states == [RUNNING, RUNNING, RUNNING, STOPPING]
    history.exits("app_03", code=0)
    assert history.states == [RUNNING] * 3


@pytest.mark.parametrize("moment", [1.0, 2.0])
def test_scaling_down_takes_the_stand_in_along(moment: float):
    history = up().recycle("app_01").at(moment).scale(1)
    for index in sorted(history.pids, reverse=True)[:-1]:
        history.exits(f"app_{index:02}", code=0)
    assert history.at(9.0).states == [RUNNING]
    assert history.timers == []


def test_nobody_is_recycled_who_does_not_run_or_is_not_there():
    history = History(numprocs=2).start()
    history.recycle("app_00").recycle("app_05")
    assert history.states == [STARTING, STARTING]
    history.at(1.0).stop().recycle("app_00")
    assert history.pool.recycling == ()


def test_a_generation_that_has_left_recycles_nobody():
    history = up(max_lifetime=5)
    history.queued = 1
    history.leave()
    history.at(5.0)
    assert history.pool.recycling == ()


def ours(**keys: object) -> History:
    """A pool of workers that finish what they have in hand, one of which is being recycled with a request in hand."""
    history = up(wsgi="m:app", stopwaitsecs=3, **keys)
    history.busy.add("app_00")
    history.recycle("app_00").at(2.0)
    assert history.states == [STOPPING, RUNNING, RUNNING]
    assert history.actions[-1] == SignalProcess(0, 100, SIGTERM, False)
    return history


def test_a_recycled_worker_has_as_long_as_its_request_takes_and_the_next_one_waits_for_it():
    history = ours().recycle("app_01").at(3600.0)
    assert history.states == [STOPPING, RUNNING, RUNNING]
    assert history.actions == []
    history.busy.clear()
    history.exits("app_00", code=0).at(3601.0)
    assert history.states == [RUNNING, STOPPING, RUNNING]


def test_a_recycled_worker_that_does_not_end_with_nothing_in_hand_is_killed():
    history = ours().at(10.0)
    assert history.actions == []
    history.busy.clear()
    history.at(13.0)
    assert history.actions == [SignalProcess(0, 100, SIGKILL, True)]


def test_a_stand_in_has_as_long_as_its_request_takes():
    history = ours()
    history.busy.add("app_02")
    history.exits("app_00", code=0).at(3.0)
    assert history.states == [RUNNING, RUNNING, STOPPING]
    assert history.actions[-1] == SignalProcess(2, 102, SIGTERM, False)
    history.at(3600.0)
    assert history.actions == []


@pytest.mark.parametrize(
    "command",
    [
        lambda history: history.stop(),
        lambda history: history.stop("app_00"),
        lambda history: history.restart(),
        lambda history: history.restart("app_01"),
        lambda history: history.restart(hard=True),
        lambda history: history.leave(),
    ],
    ids=["stop", "stop of it", "restart", "restart of another", "hard restart", "reload"],
)
def test_whoever_waits_for_a_recycled_worker_waits_for_stopwaitsecs(command: Callable[[History], object]):
    history = ours().at(100.0)
    command(history)
    assert SignalProcess(0, 100, SIGKILL, True) not in history.actions
    history.at(102.9)
    assert SignalProcess(0, 100, SIGKILL, True) not in history.actions
    history.at(103.0)
    assert SignalProcess(0, 100, SIGKILL, True) in history.actions


def test_a_recycled_worker_that_was_stopped_stays_down_when_another_is_restarted():
    history = ours().stop("app_00").restart("app_01")
    history.exits("app_00", code=0)
    assert history.states[0] == "STOPPED"


def test_a_request_of_a_recycled_worker_that_takes_too_long_ends_it_after_stopwaitsecs():
    history = ours().at(100.0).overdue("app_00").at(103.0)
    assert history.actions == [SignalProcess(0, 100, SIGKILL, True)]
    history.exits("app_00", signal=SIGKILL)
    assert history.actions == [SpawnProcess(0)]


def test_scaling_up_does_not_wait_for_long_for_the_stand_in_that_is_on_its_way_out():
    history = ours()
    history.busy.add("app_02")
    history.exits("app_00", code=0).at(50.0).scale(3).at(53.0)
    assert history.actions[-1] == SignalProcess(2, 102, SIGKILL, True)
    history.exits("app_02", signal=SIGKILL).at(54.0)
    assert history.states == [RUNNING] * 3


def test_a_process_that_takes_too_long_is_told_to_end_at_once_then_killed():
    history = up(stopwaitsecs=3)
    history.busy.add("app_00")
    history.overdue("app_00")
    assert history.actions == [SignalProcess(0, 100, SIGTERM, False), SpawnProcess(2)]
    history.at(4.0)
    assert history.actions == [SignalProcess(0, 100, SIGKILL, True)]
    history.exits("app_00", signal=SIGKILL)
    assert history.actions == [SpawnProcess(0)]


def test_where_a_request_is_stuck_in_each_process_each_has_a_stand_in():
    history = up(stopwaitsecs=10).overdue("app_00").overdue("app_01")
    assert history.states == [STOPPING, STOPPING, STARTING, STARTING]
    history.at(2.0)
    assert history.states == [STOPPING, STOPPING, RUNNING, RUNNING]
    assert history.state is PoolState.RUNNING
    history.at(11.0).exits("app_00", signal=SIGKILL).at(12.0)
    assert history.states == [RUNNING, STOPPING, RUNNING, STOPPING]
    history.exits("app_03", code=0).exits("app_01", signal=SIGKILL).at(13.0).exits("app_02", code=0)
    assert history.states == [RUNNING, RUNNING]
    assert history.timers == []


def test_where_nothing_is_left_to_wait_for_it_is_killed_soon():
    history = up(stopwaitsecs=10).overdue("app_00", hopeless=True)
    assert history.actions == [SignalProcess(0, 100, SIGTERM, False), SpawnProcess(2)]
    history.at(1.0 + HOPELESS)
    assert history.actions == [SignalProcess(0, 100, SIGKILL, True)]
    assert history.states == [STOPPING, RUNNING, RUNNING]


def test_a_stand_in_that_takes_too_long_makes_room_for_another_and_does_not_come_back():
    history = up(stopwaitsecs=10).overdue("app_00").at(2.0).overdue("app_02")
    assert history.states == [STOPPING, RUNNING, STOPPING, STARTING]
    history.at(3.0).exits("app_02", code=0)
    assert history.states == [STOPPING, RUNNING, "STOPPED", RUNNING]
    history.exits("app_00", code=0).at(4.0).exits("app_03", code=0)
    assert history.states == [RUNNING, RUNNING]


def test_stand_ins_are_never_more_than_the_pool_has_processes():
    history = up(stopwaitsecs=100)
    for name in ("app_00", "app_01", "app_02", "app_03", "app_04", "app_05"):
        history.at(history.now + 2).overdue(name)
    assert len(history.pids) == 4
    assert history.states == [STOPPING] * 4


def test_where_new_processes_are_no_good_nobody_stands_in():
    history = up()
    history.cannot_spawn = "no such file"
    history.overdue("app_00")
    assert history.states == [STOPPING, RUNNING]
    history.overdue("app_01")
    assert history.actions.count(SpawnProcess(2)) == 1


def test_a_program_that_takes_too_long_has_no_stand_in():
    history = History(numprocs=2)
    history.settings = ProgramSettings(name="app", command=("app",), numprocs=2)
    history.pool = new_generation(history.settings, 0.0)
    history.start().at(1.0).overdue("app_00")
    assert history.states == [STOPPING, RUNNING]


def test_one_that_waits_to_be_recycled_and_takes_too_long_is_replaced_once():
    history = up(stopwaitsecs=3, numprocs=3).recycle("app_00").recycle("app_01").at(2.0).overdue("app_01")
    assert history.states == [STOPPING, STOPPING, RUNNING, RUNNING, STARTING]
    history.at(3.0)
    assert history.state is PoolState.RUNNING
    history.exits("app_01", code=0).exits("app_00", code=0).at(4.0)
    history.exits("app_04", code=0).exits("app_03", code=0)
    assert history.states == [RUNNING] * 3
    assert not any(action == Recycling(1, "it is old") for action in history.actions)


def test_too_late_news_of_one_that_takes_too_long_hits_nobody_else():
    history = up()
    history.exits("app_00", signal=SIGKILL).at(2.0)

    history.feed(Overdue(0, 100))
    assert history.states == [RUNNING, RUNNING]


def test_a_stand_in_that_has_just_gone_comes_back_for_the_next():
    history = up().recycle("app_00").at(2.0).exits("app_00", code=0).at(3.0)
    assert history.states == [RUNNING, RUNNING, STOPPING]
    history.recycle("app_01")
    assert history.states == [RUNNING, RUNNING, STOPPING]
    history.exits("app_02", code=0)
    assert history.states == [RUNNING, RUNNING, STARTING]
    history.at(4.0)
    assert history.states == [RUNNING, STOPPING, RUNNING]


def alone(**keys: object) -> History:
    """A program of one process that says itself when it is ready."""
    history = History(numprocs=1)
    history.settings = ProgramSettings(name="app", command=("app",), ready="notify", **keys)
    history.pool = new_generation(history.settings, 0.0)
    return history.start().ready("app_00")


def recycle_until_put_off(history: History) -> int:
    """How often the process was replaced that asks for it as soon as it is there."""
    count = 0
    while not any(isinstance(action, PutOff) for action in history.recycle("app_00", "please").actions):
        history.exits("app_00", code=0).ready("app_00")
        count += 1
        assert count < 100
    return count


def test_who_asks_as_soon_as_it_has_started_is_as_good_as_one_that_crashes():
    history = alone(backoff_max=7)
    assert recycle_until_put_off(history) == crashes.SMALLEST_BURST
    assert history.states == [RUNNING]  # it serves meanwhile
    history.recycle("app_00", "again")
    assert history.actions == []  # nor does it cost anything to say so again
    told = len(history.signals)
    history.at(6.9)
    assert len(history.signals) == told
    history.at(7.0)
    assert history.actions[0] == Recycling(0, "please")
    assert history.states == [STOPPING]


def test_a_token_a_second_lets_it_be_recycled_again():
    history = alone(backoff_max=7)
    recycle_until_put_off(history)
    history.at(7.0).exits("app_00", code=0).ready("app_00")
    assert recycle_until_put_off(history) == 7


def test_who_asks_later_costs_nothing():
    history = alone(startsecs=2)
    for turn in range(1, 40):
        history.at(2.0 * turn).recycle("app_00", "please").exits("app_00", code=0).ready("app_00")
    assert not any(isinstance(action, PutOff) for action in history.actions)
    assert history.pool.budget.tokens == crashes.SMALLEST_BURST


def test_a_short_lifetime_is_what_its_operator_wants():
    history = alone(max_lifetime=0.1)
    for turn in range(1, 40):
        history.at(0.1 * turn).exits("app_00", code=0).ready("app_00")
    assert not any(isinstance(action, PutOff) for action in history.actions)


def test_a_lifetime_that_ends_sooner_than_it_is_put_off_is_kept():
    history = alone(max_lifetime=3, backoff_max=7)
    recycle_until_put_off(history)
    assert history.timers == [3.0]


def test_a_lifetime_that_is_over_after_another_generation_has_come_ends_nothing():
    """Its operator may still want this one back; a process that was to be restarted may run that long."""
    history = up(max_lifetime=10)
    history.restart("app_00").feed(Hold()).at(10.0)
    assert not history.pool.recycling


def test_what_was_put_off_is_not_forgotten_by_an_update():
    history = alone(max_lifetime=30, backoff_max=7)
    recycle_until_put_off(history)
    history.feed(SettingsChanged())
    assert history.timers == [7.0]
    assert any(isinstance(action, Recycling) for action in history.at(7.0).actions)
