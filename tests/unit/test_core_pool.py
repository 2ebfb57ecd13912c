"""A pool's generations: a reload that succeeds, fails, waits, or is a canary."""

from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.core.pool import (
    Abort,
    Arriving,
    Begin,
    Canary,
    Discard,
    Due,
    Failed,
    Gone,
    Leave,
    Pool,
    Promote,
    Queued,
    Ready,
    Refused,
    Reload,
    Share,
    Switch,
    step,
)

RELOAD = Reload(patience=60.0)


def play(*events):
    """The pool after these events, and the actions of the last of them."""
    pool, actions = Pool(), []
    for now, event in enumerate(events):
        pool, actions = step(pool, event, float(now))
    return pool, actions


def test_a_reload_begins_a_generation_and_switches_when_it_is_ready():
    pool, actions = play(RELOAD)
    assert actions == [Begin(2)]
    assert pool.serving == 1
    pool, actions = play(RELOAD, Ready(2))
    assert actions == [Switch(2), Leave(1)]
    assert (pool.serving, pool.leaving) == (2, {1})
    pool, actions = play(RELOAD, Ready(2), Gone(1))
    assert pool == Pool(serving=2, last=2)


def test_a_generation_that_fails_is_discarded_and_the_old_one_serves_on():
    pool, actions = play(RELOAD, Failed(2, "it crashed"))
    assert actions == [Discard(2, "it crashed")]
    assert (pool.serving, pool.coming) == (1, None)


def test_a_second_reload_after_a_failed_one_is_a_new_generation():
    _, actions = play(RELOAD, Failed(2, "it crashed"), Gone(2), RELOAD)
    assert actions == [Begin(3)]


def test_patience_ends_at_reload_timeout():
    pool, _ = play(RELOAD)
    assert pool.due == 60.0
    pool, actions = play(RELOAD, Due())
    assert [type(action) for action in actions] == [Discard]
    assert pool.due is None


def test_a_reload_during_a_reload_is_refused():
    pool, actions = play(RELOAD, RELOAD)
    assert [type(action) for action in actions] == [Refused]
    assert pool.coming == Arriving(2, due=60.0)


def test_a_reload_while_the_last_one_drains_waits_for_it():
    pool, actions = play(RELOAD, Ready(2), RELOAD)
    assert actions == [Queued()]
    pool, actions = play(RELOAD, Ready(2), RELOAD, Gone(1))
    assert actions == [Begin(3)]
    assert isinstance(pool.coming, Arriving)


def test_a_canary_gets_its_share_until_it_is_promoted():
    canary = Reload(patience=60.0, percent=5.0)
    pool, actions = play(canary, Ready(2))
    assert actions == [Share(2, 5.0)]
    assert pool.coming == Canary(2, 5.0)
    assert pool.due is None
    pool, actions = play(canary, Ready(2), Promote())
    assert actions == [Switch(2), Leave(1)]


def test_a_canary_that_dies_or_is_aborted_gives_its_share_back():
    canary = Reload(patience=60.0, percent=5.0)
    for end in (Failed(2, "it died"), Abort("it died")):
        pool, actions = play(canary, Ready(2), end)
        assert actions == [Discard(2, "it died", served=True)]
        assert (pool.serving, pool.coming) == (1, None)


def test_there_is_nothing_to_promote_or_abort_without_a_reload():
    for event in (Promote(), Abort("asked")):
        _, actions = play(event)
        assert [type(action) for action in actions] == [Refused]


def test_what_an_earlier_generation_says_late_changes_nothing():
    before, _ = play(RELOAD, Ready(2), Gone(1), RELOAD)
    for event in (Ready(1), Ready(2), Failed(2, "late"), Gone(7)):
        assert step(before, event, 9.0) == (before, [])


NUMBERS = st.integers(1, 5)
EVENTS = st.one_of(
    st.just(RELOAD),
    st.just(Reload(patience=60.0, percent=10.0)),
    st.builds(Ready, NUMBERS),
    st.builds(Failed, NUMBERS, st.just("no good")),
    st.just(Due()),
    st.just(Promote()),
    st.just(Abort("asked")),
    st.builds(Gone, NUMBERS),
)


@given(st.lists(EVENTS, max_size=30))
def test_in_any_order_exactly_one_generation_serves_and_every_other_one_is_ended(events):
    pool, begun, ended = Pool(), {1}, set()
    for now, event in enumerate(events):
        if isinstance(event, Gone) and event.number not in pool.leaving:
            continue  # only what was told to leave or was discarded can be gone
        pool, actions = step(pool, event, float(now))
        begun |= {action.number for action in actions if isinstance(action, Begin)}
        ended |= {action.number for action in actions if isinstance(action, Leave | Discard)}
        coming = {pool.coming.number} if pool.coming else set()
        assert begun - ended == {pool.serving} | coming
        assert pool.serving not in ended
        assert pool.leaving <= ended
        assert not (coming and pool.waiting)
