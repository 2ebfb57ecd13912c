"""What was seen of a process decides whether it is ready, and whether its end was a crash."""

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fcgimgr.core.crashes import SMALLEST_BURST
from fcgimgr.core.generation import Accepted, PoolState
from fcgimgr.core.process import MOST_UNSEEN, Fatal, Running, Starting

from .history import History

SIGKILL = 9


def history(**keys) -> History:
    return History(**{"ready": "accepts", **keys})


# Ready


def test_ready_is_who_has_lived_startsecs_and_was_seen_to_accept():
    one = history(startsecs=2, ready_timeout=30).start()
    assert one.at(5).states == ["STARTING"]
    assert one.takes("app_00").states == ["RUNNING"]


def test_one_that_accepts_early_is_ready_after_startsecs():
    one = history(startsecs=2).start()
    one.at(0.1).takes("app_00")
    assert one.at(1.9).states == ["STARTING"]
    assert one.at(2.0).states == ["RUNNING"]


def test_with_startsecs_0_it_is_ready_as_soon_as_it_is_seen():
    one = history(startsecs=0).start()
    assert one.at(0.5).states == ["STARTING"]
    assert one.takes("app_00").states == ["RUNNING"]


def test_one_that_may_not_be_looked_at_is_ready_after_startsecs():
    one = history(startsecs=2).start().takes("app_00", known=False)
    assert one.at(1.9).states == ["STARTING"]
    assert one.at(2.0).states == ["RUNNING"]


def test_one_that_never_accepts_has_failed_to_start():
    one = history(startsecs=1, ready_timeout=5, startretries=0).start()
    assert one.at(4.9).states == ["STARTING"]
    assert one.at(5.0).states == ["STOPPING"]
    assert one.exits("app_00", code=0).states == ["FATAL"]
    assert why(one) == "did not take the pool's socket within ready_timeout (5 s)"


def test_what_it_does_instead_is_told():
    one = history(startsecs=1, ready_timeout=5, startretries=0).start()
    one.at(2).astray("app_00", "it listens on 127.0.0.1:8000 itself").at(5)
    one.exits("app_00", code=0)
    assert why(one).endswith("(5 s): it listens on 127.0.0.1:8000 itself")


def test_one_that_takes_it_after_all_is_ready():
    one = history(startsecs=1, ready_timeout=5).start()
    one.at(2).astray("app_00", "it listens on 127.0.0.1:9100 itself").takes("app_00")
    assert one.states == ["RUNNING"]


def test_a_startsecs_longer_than_ready_timeout_is_waited_for():
    one = history(startsecs=40, ready_timeout=5).start().takes("app_00")
    assert one.at(39).states == ["STARTING"]
    assert one.at(40).states == ["RUNNING"]


@pytest.mark.parametrize("ready", ["ping", "http:/", "notify"])
def test_where_an_answer_or_a_word_is_waited_for_accepting_is_not_enough(ready):
    one = history(ready=ready, startsecs=0).start().takes("app_00", served=True).at(5)
    assert one.states == ["STARTING"]
    assert one.ready("app_00").states == ["RUNNING"]


def test_time_alone_is_enough_with_startsecs():
    one = history(ready="startsecs").start().takes("app_00")
    assert one.at(0.9).states == ["STARTING"]
    assert one.at(1).states == ["RUNNING"]


def test_it_need_not_be_ready_by_its_own_word():
    assert history(startsecs=0).start().ready("app_00").states == ["STARTING"]


# Recycling


@pytest.mark.parametrize("ready", ["accepts", "startsecs"])
def test_one_that_has_served_and_ends_as_expected_is_replaced_at_once_however_young(ready):
    pool = history(ready=ready, numprocs=2).start()
    for tenth in range(1, 500):
        pool.at(tenth / 10).takes("app_00", served=True).takes("app_01", served=True)
        pool.exits("app_00", code=0)
        assert pool.states[0] in ("STARTING", "RUNNING")
        assert 0 in pool.pids
        if tenth > 10:
            assert pool.state is PoolState.RUNNING


def test_the_pool_stays_running_while_its_processes_recycle_themselves_too_fast_to_be_seen():
    pool = history(numprocs=4).start()
    for index in range(4):
        pool.takes(f"app_{index:02}")
    pool.at(1.0)
    for turn in range(2000):
        pool.at(1.0 + 0.04 * turn)
        name = f"app_{turn % 4:02}"
        if turn % 5 == 0:
            pool.takes(name, served=True)
        pool.exits(name, code=0)
        assert pool.state is PoolState.RUNNING


def test_the_follower_is_ready_as_soon_as_it_is_seen():
    one = history(startsecs=1).start().takes("app_00", served=True).at(1)
    one.exits("app_00", code=0)
    assert one.states == ["STARTING"]
    assert one.at(1.02).takes("app_00").states == ["RUNNING"]


def test_a_follower_that_does_not_come_to_accept_soon_is_missed():
    one = history(startsecs=1, ready_timeout=9).start().takes("app_00", served=True).at(1)
    one.exits("app_00", code=0)
    assert one.at(1.9).state is PoolState.RUNNING
    assert one.at(2.0).state is PoolState.STARTING
    assert one.at(9.9).states == ["STARTING"]
    assert one.at(10.0).states == ["STOPPING"]


@pytest.mark.parametrize(("code", "signal"), [(1, None), (None, SIGKILL)])
def test_another_end_of_one_that_has_served_is_a_crash(code, signal):
    one = history(startretries=0).start().takes("app_00", served=True)
    one.exits("app_00", code=code, signal=signal)
    assert one.states == ["FATAL"]


def test_autorestart_has_its_say_on_one_that_has_served():
    one = history(autorestart="unexpected").start().takes("app_00", served=True)
    assert one.exits("app_00", code=0).states == ["EXITED"]


def test_one_that_was_never_seen_to_accept_has_failed_to_start_whatever_its_exit_code():
    one = history(startretries=0).start()
    assert one.exits("app_00", code=0).states == ["FATAL"]


def test_one_that_answers_its_ping_is_not_replaced_by_one_that_counts_as_ready_before_it_has():
    one = history(ready="ping").start().takes("app_00", served=True)
    one.exits("app_00", code=0)
    assert one.states == ["STARTING"]
    assert one.state is PoolState.STARTING


def test_what_was_proved_of_the_old_code_says_nothing_after_a_start():
    one = history(startretries=0).start().takes("app_00").at(2)
    one.stop().exits("app_00", signal=15)
    one.start()
    assert one.exits("app_00", code=0).states == ["FATAL"]


# Crash loops


def test_a_program_that_ends_at_once_after_others_were_seen_is_a_crash_loop_all_the_same():
    pool = history(numprocs=2).start().takes("app_00").takes("app_01").at(1)
    spawned = 0
    while pool.now < 300:
        for index in tuple(pool.pids):
            spawned += 1
            pool.exits(f"app_{index:02}", code=0)
        pool.at(pool.now + 0.005)
    assert pool.states == ["FATAL", "FATAL"]
    assert spawned <= 2 + SMALLEST_BURST + 2 * 4


def test_one_of_several_in_a_crash_loop_is_seen_as_such_while_the_others_recycle_themselves():
    pool = history(numprocs=3).start().takes("app_00").takes("app_01").takes("app_02").at(1)
    ends = 0
    for turn in range(10_000):
        pool.at(1 + turn / 100)
        pool.takes("app_00", served=True).takes("app_01", served=True)
        pool.exits("app_00", code=0).exits("app_01", code=0)
        if 2 in pool.pids:
            ends += 1
            pool.exits("app_02", code=0)
    assert isinstance(pool.pool.processes[2], Fatal)
    assert ends <= MOST_UNSEEN + 2 * 4
    assert pool.state is PoolState.DEGRADED


def test_those_that_are_never_seen_are_believed_while_the_queue_is_worked_off():
    pool = history(numprocs=2, startsecs=0).start().takes("app_00").takes("app_01").at(1)
    for turn in range(1000):
        pool.at(1 + turn / 20)
        pool.exits(f"app_{turn % 2:02}", code=0)
        pool.feed(Accepted())
        assert pool.state is PoolState.RUNNING


def test_where_others_are_seen_the_queue_says_nothing_of_one_that_is_not():
    pool = history(numprocs=2, startsecs=0).start().takes("app_00").takes("app_01").at(1)
    for turn in range(1000):
        pool.at(1 + turn / 20)
        if 1 in pool.pids:
            pool.exits("app_01", code=0)
        pool.feed(Accepted())
    assert pool.states == ["RUNNING", "FATAL"]


def test_one_that_crashes_beside_others_that_recycle_themselves_is_seen_as_such():
    pool = history(numprocs=2, startsecs=0).start()
    crashes = 0
    for turn in range(6000):
        pool.at(turn / 100)
        for index in tuple(pool.pids):
            pool.takes(f"app_{index:02}")
        pool.exits("app_00", code=0)
        if 1 in pool.pids:
            crashes += 1
            pool.exits("app_01", code=1)
    assert crashes <= SMALLEST_BURST + pool.now + 4


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    numprocs=st.integers(1, 4),
    startsecs=st.sampled_from([0.0, 1.0]),
    ready=st.sampled_from(["accepts", "startsecs", "ping", "notify"]),
    age=st.sampled_from([0.0, 0.002, 0.04, 0.5]),
    accepts=st.booleans(),
    code=st.sampled_from([0, 1, None]),
)
def test_every_loop_of_those_that_never_serve_is_bounded(numprocs, startsecs, ready, age, accepts, code):
    """Unless they are seen to accept and end as expected it comes to no more than a death a second in the end."""
    accepts = accepts and code != 0
    pool = history(numprocs=numprocs, startsecs=startsecs, ready=ready, startretries=-1).start()
    deaths = 0
    for _ in range(2000):
        if pool.now >= 120:
            break
        for index in tuple(pool.pids):
            name = f"app_{index:02}"
            if accepts:
                pool.takes(name)
            if ready in ("ping", "notify"):
                pool.ready(name)
        pool.at(pool.now + age)
        for index in tuple(pool.pids):
            deaths += 1
            pool.exits(f"app_{index:02}", code=code, signal=SIGKILL if code is None else None)
        pool.at(pool.now + 0.001 if pool.pids else max(pool.now, *pool.timers[:1]) + 0.001)
    burst = max(SMALLEST_BURST, 2 * numprocs)
    assert deaths <= burst + numprocs + pool.now + 1


def why(one: History) -> str:
    state = one.pool.processes[0]
    assert isinstance(state, Fatal)
    return state.why


def test_what_was_seen_is_kept_when_it_is_ready():
    one = history(startsecs=1).start().takes("app_00", served=True)
    assert isinstance(one.pool.processes[0], Starting)
    state = one.at(1).pool.processes[0]
    assert isinstance(state, Running)
    assert state.seen
