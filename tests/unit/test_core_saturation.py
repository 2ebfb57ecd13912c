"""An episode of connections that nobody comes for is told once, and its end once, however the queue flickers."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.core.saturation import AGAIN, LASTS, Asleep, Saturated, State, Suspected, step


def history(*looks: tuple[float, bool]) -> State:
    state: State = Asleep()
    for at, waiting in looks:
        state = step(state, waiting, at)
    return state


def test_a_queue_that_is_empty_at_the_first_look_is_none() -> None:
    assert history((0.0, False)) == Asleep()


def test_a_burst_that_is_over_at_the_next_look_is_none() -> None:
    assert history((0.0, True), (LASTS - 0.1, True), (LASTS, False)) == Asleep()


def test_connections_that_wait_at_every_look_are_an_episode() -> None:
    assert history((10.0, True), (10.0 + LASTS - 0.1, True)) == Suspected(10.0)
    assert history((10.0, True), (10.0 + LASTS, True)) == Saturated(10.0)


def test_it_is_over_when_nobody_has_waited_for_as_long() -> None:
    begun = (0.0, True), (5.0, True)
    assert history(*begun, (6.0, False), (7.0, False)) == Saturated(0.0, 6.0)
    assert history(*begun, (6.0, False), (7.0, True)) == Saturated(0.0)
    assert history(*begun, (6.0, False), (6.0 + LASTS, False)) == Asleep()


@given(st.lists(st.booleans(), max_size=200))
def test_no_more_than_two_things_are_told_in_twice_the_time(looks: list[bool]) -> None:
    state: State = Asleep()
    told = []
    for number, waiting in enumerate(looks):
        before, state = state, step(state, waiting, number * AGAIN)
        if isinstance(before, Saturated) != isinstance(state, Saturated):
            told.append(number * AGAIN)
    assert all(later - before >= LASTS for before, later in itertools.pairwise(told))
