"""Whether a kept connection is idle: what is unknown is not, and none that was used a moment ago."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.linux.idle import COLD, EXPECTED, QUIET, Evidence, Signs, Talk, is_idle

NOW = 1000.0
TCP = Signs(unread=0, received=100, answered=True, silent=QUIET)
UNIX = Signs(unread=0, received=None, answered=None, silent=None)
NOTHING = Evidence(talk=None, is_read=False, active=False, seen_for=QUIET, now=NOW)


def talk(in_use: bool | None, ago: float) -> Evidence:
    return NOTHING._replace(talk=Talk(in_use, NOW - ago))


@pytest.mark.parametrize(
    ("signs", "evidence", "idle"),
    [
        # The kernel's times alone: an answer, perhaps by half, until it has been silent for long.
        (TCP, NOTHING, True),
        (TCP._replace(silent=QUIET - 0.1), NOTHING, None),
        (TCP, NOTHING._replace(active=True), False),
        (TCP._replace(answered=False), NOTHING, False),
        (TCP._replace(answered=None), NOTHING, None),
        (TCP._replace(unread=1), NOTHING, False),
        (TCP._replace(is_closed=True, silent=None), NOTHING, True),
        # Nothing was ever asked.
        (TCP._replace(received=0, answered=False, silent=EXPECTED), NOTHING, True),
        (TCP._replace(received=0, answered=False, silent=EXPECTED - 0.1), NOTHING, False),
        # A thread waits for the next request; or for the rest of one.
        (TCP._replace(silent=COLD), NOTHING._replace(is_read=True), True),
        (TCP._replace(silent=COLD - 0.1), NOTHING._replace(is_read=True), False),
        (TCP._replace(silent=COLD, answered=False), NOTHING._replace(is_read=True), False),
        (UNIX, NOTHING._replace(is_read=True), True),
        (UNIX, NOTHING._replace(is_read=True, seen_for=QUIET - 0.1), False),
        (UNIX, NOTHING, None),
        # What was seen to be said goes before them.
        (TCP, talk(in_use=True, ago=QUIET), False),
        (UNIX, talk(in_use=True, ago=QUIET), False),
        (UNIX, talk(in_use=False, ago=COLD), True),
        (UNIX, talk(in_use=False, ago=COLD - 0.1), False),
        (UNIX, talk(in_use=None, ago=QUIET), None),
        (UNIX, talk(in_use=None, ago=QUIET)._replace(is_read=True), None),
        (UNIX, NOTHING._replace(talk=Talk(False, NOW, has_ended=True)), True),
    ],
)
def test_what_is_idle(signs: Signs, evidence: Evidence, idle: bool | None) -> None:
    assert is_idle(signs, evidence) is idle


seconds = st.floats(0, 2 * QUIET)
talks = st.none() | st.builds(
    Talk, st.none() | st.booleans(), seconds.map(lambda ago: NOW - ago), st.just(False), st.just(False)
)


@given(
    st.builds(
        Signs, st.just(0), st.none() | st.integers(0, 9), st.none() | st.booleans(), st.none() | seconds, st.just(False)
    ),
    st.builds(Evidence, talks, st.booleans(), st.booleans(), seconds, st.just(NOW)),
)
def test_none_is_idle_that_was_used_a_moment_ago(signs: Signs, evidence: Evidence) -> None:
    silent = evidence.silent(signs)
    if silent is not None and silent < COLD:
        assert is_idle(signs, evidence) is not True
