"""A pool's generations: a reload that succeeds, fails, waits, or is a canary."""

from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.core.rollout import (
    Abort,
    Arriving,
    Begin,
    CameBack,
    Canary,
    ComeBack,
    Discard,
    Due,
    Failed,
    Gone,
    Hold,
    Leave,
    Lost,
    Promote,
    Queued,
    Ready,
    Refused,
    Reload,
    Return,
    Rollout,
    Settle,
    Share,
    Switch,
    step,
)

RELOAD = Reload(patience=60.0)


def play(*events):
    """The rollout after these events, and the actions of the last of them."""
    rollout, actions = Rollout(), []
    for now, event in enumerate(events):
        rollout, actions = step(rollout, event, float(now))
    return rollout, actions


def test_a_reload_begins_a_generation_and_switches_when_it_is_ready():
    rollout, actions = play(RELOAD)
    assert actions == [Begin(2)]
    assert rollout.serving == 1
    rollout, actions = play(RELOAD, Ready(2))
    assert actions == [Switch(2), Leave(1)]
    assert (rollout.serving, rollout.leaving) == (2, {1})
    rollout, actions = play(RELOAD, Ready(2), Gone(1))
    assert rollout == Rollout(serving=2, last=2)


def test_a_generation_that_fails_is_discarded_and_the_old_one_serves_on():
    rollout, actions = play(RELOAD, Failed(2, "it crashed"))
    assert actions == [Discard(2, "it crashed")]
    assert (rollout.serving, rollout.coming) == (1, None)


def test_a_second_reload_after_a_failed_one_is_a_new_generation():
    _, actions = play(RELOAD, Failed(2, "it crashed"), Gone(2), RELOAD)
    assert actions == [Begin(3)]


def test_patience_ends_at_reload_timeout():
    rollout, _ = play(RELOAD)
    assert rollout.due == 60.0
    rollout, actions = play(RELOAD, Due())
    assert [type(action) for action in actions] == [Discard]
    assert rollout.due is None


def test_a_reload_during_a_reload_is_refused():
    rollout, actions = play(RELOAD, RELOAD)
    assert [type(action) for action in actions] == [Refused]
    assert rollout.coming == Arriving(2, due=60.0)


def test_a_reload_while_the_last_one_drains_waits_for_it():
    rollout, actions = play(RELOAD, Ready(2), RELOAD)
    assert actions == [Queued()]
    rollout, actions = play(RELOAD, Ready(2), RELOAD, Gone(1))
    assert actions == [Begin(3)]
    assert isinstance(rollout.coming, Arriving)


def test_a_canary_gets_its_share_until_it_is_promoted():
    canary = Reload(patience=60.0, percent=5.0)
    rollout, actions = play(canary, Ready(2))
    assert actions == [Share(2, 5.0)]
    assert rollout.coming == Canary(2, 5.0)
    assert rollout.due is None
    rollout, actions = play(canary, Ready(2), Promote())
    assert actions == [Switch(2), Leave(1)]


def test_a_canary_that_dies_or_is_aborted_gives_its_share_back():
    canary = Reload(patience=60.0, percent=5.0)
    for end in (Failed(2, "it died"), Abort("it died")):
        rollout, actions = play(canary, Ready(2), end)
        assert actions == [Discard(2, "it died", served=True)]
        assert (rollout.serving, rollout.coming) == (1, None)


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
    st.builds(Ready, NUMBERS, st.just(2.0), st.just(5.0)),
    st.just(Promote(hold=2.0, watch=5.0)),
    st.builds(Lost, NUMBERS, st.integers(0, 1), st.just(2)),
    st.just(CameBack()),
    st.just(Settle()),
)


@given(st.lists(EVENTS, max_size=30))
def test_in_any_order_exactly_one_generation_serves_and_every_other_one_is_ended(events):
    rollout, begun, ended = Rollout(), {1}, set()
    for now, event in enumerate(events):
        if isinstance(event, Gone) and event.number not in rollout.leaving:
            continue  # only what was told to leave or was discarded can be gone
        rollout, actions = step(rollout, event, float(now))
        begun |= {action.number for action in actions if isinstance(action, Begin)}
        ended |= {action.number for action in actions if isinstance(action, Leave | Discard | Hold)}
        for action in actions:
            if isinstance(action, Return):
                ended = ended - {action.number} | {action.bad}
        coming = {rollout.coming.number} if rollout.coming else set()
        assert begun - ended == {rollout.serving} | coming
        assert rollout.serving not in ended
        assert rollout.leaving <= ended
        assert not (coming and rollout.waiting)
        assert rollout.watch is None or (rollout.watch.old in rollout.leaving and not coming)
        assert rollout.watch is None or rollout.due is not None


# -- what has been switched to is watched


WATCHED = Ready(2, hold=1.0, watch=10.0)


def lost(*indexes, of=4):
    return [Lost(2, index, of) for index in indexes]


def test_the_old_one_is_held_at_the_switch_and_leaves_when_that_is_over():
    rollout, actions = play(RELOAD, WATCHED)
    assert actions == [Switch(2), Hold(1)]
    assert rollout.leaving == {1}
    assert rollout.due == 2.0  # of the second event, which is at 1.0
    rollout, actions = step(rollout, Due(), 1.9)
    assert actions == []
    rollout, actions = step(rollout, Due(), 2.0)
    assert actions == [Leave(1)]
    assert rollout.due == 11.0
    rollout, actions = step(rollout, Due(), 11.0)
    assert actions == []
    assert rollout == Rollout(serving=2, last=2, leaving=frozenset({1}))


def test_it_is_held_for_longer_while_the_new_one_leaves_connections_waiting_but_not_for_ever():
    rollout, _ = play(RELOAD, WATCHED)
    for due in (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0):
        assert rollout.due == due
        rollout, actions = step(rollout, Due(unproven=True), due)
        assert actions == []
    assert rollout.due == 11.0
    _, actions = step(rollout, Due(unproven=True), 11.0)
    assert actions == [Leave(1)]
    _, actions = step(rollout, Due(), 11.0)
    assert actions == [Leave(1)]


def test_the_traffic_goes_back_when_more_than_half_are_lost():
    for begun in ((RELOAD, WATCHED), (RELOAD, WATCHED, Due())):  # held, and leaving
        rollout, actions = play(*begun, *lost(0, 1, 1))
        assert actions == []
        rollout, actions = play(*begun, *lost(0, 1, 1, 2))
        assert actions == [ComeBack(1)]
        rollout, actions = play(*begun, *lost(0, 1, 1, 2), CameBack())
        assert actions == [Return(1, 2)]
        assert rollout == Rollout(serving=1, last=2, leaving=frozenset({2}))


def test_where_it_cannot_go_back_what_serves_stays():
    rollout, actions = play(RELOAD, WATCHED, *lost(0, of=1), Settle())
    assert actions == [Leave(1)]
    assert (rollout.serving, rollout.watch) == (2, None)


def test_there_is_nothing_to_go_back_to_when_the_old_one_has_gone_or_the_time_is_over():
    for over in (Gone(1), Settle()):
        rollout, _ = play(RELOAD, WATCHED, Due(), over)
        assert rollout.watch is None
        assert step(rollout, Lost(2, 0, 1), 5.0) == (rollout, [])
    rollout, actions = play(RELOAD, Ready(2, hold=1.0, watch=0.0))
    assert actions == [Switch(2), Leave(1)]
    assert rollout.watch is None


def test_a_reload_that_waits_for_the_old_one_waits_for_the_bad_one_too():
    rollout, actions = play(RELOAD, WATCHED, RELOAD, *lost(0, of=1), CameBack())
    assert rollout.waiting == RELOAD
    rollout, actions = step(rollout, Gone(2), 9.0)
    assert actions == [Begin(3)]
