"""Expansions mean what they mean in Supervisor, and a template loses nothing on its way to a process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.config.expansions import PROCESS_NAMES, escape, expand, template

NAMES: dict[str, str | int] = {"here": "/etc/50%", "process_num": 7, "numprocs": 10, "ENV_A": "a b"}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("%(here)s/x", "/etc/50%/x"),
        ("app_%(process_num)02d of %(numprocs)d", "app_07 of 10"),
        ("%(process_num)s%(process_num)x%(process_num)-3d|", "777  |"),
        ("100%% %%(here)s", "100% %(here)s"),
        ("%(ENV_A)s", "a b"),
    ],
)
def test_an_expansion_is_formatted_as_python_does(text: str, expanded: str):
    assert expand(text, NAMES) == expanded


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("100%", "write %% for a percent sign"),
        ("date +%s", "write %% for a percent sign"),
        ("%(here)/x", "write %(here)s"),
        ("%(here", "write %% for a percent sign"),
        ("%(here)d", "write %(here)s"),
        ("%(her)s", "known here are %(here)s"),
        ("%(A)s", "write %(ENV_A)s"),
        ("%(ENV_B)s", "the environment variable B is not set"),
        ("%(process_num)999999999d", "write %(process_num)s"),
    ],
)
def test_what_cannot_be_expanded_says_what_to_write(text: str, mend: str):
    with pytest.raises(ValueError) as caught:
        expand(text, NAMES)
    assert mend in str(caught.value)


def test_a_value_shared_by_all_processes_cannot_hold_a_process_number():
    with pytest.raises(ValueError, match="different for each process"):
        expand("/run/%(process_num)d.sock", {"here": "/"})


def test_a_variable_of_the_process_is_text():
    with pytest.raises(ValueError, match=r"write %\(ENV_PORT\)s"):
        template("%(ENV_PORT)d", {}, {"ENV_PORT"})


PIECES = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from(["%%", "%(here)s", "%(process_num)02d", "%(numprocs)d", "%(ENV_A)s", "%(x)s", "%", "%("]),
    )
).map("".join)


@given(PIECES)
def test_two_passes_give_what_one_pass_gives(text: str):
    try:
        at_once = expand(text, NAMES)
    except ValueError:
        with pytest.raises(ValueError):
            expand(template(text, NAMES, PROCESS_NAMES), NAMES)
        return
    early = {name: value for name, value in NAMES.items() if name not in PROCESS_NAMES}
    late = {name: value for name, value in NAMES.items() if name in PROCESS_NAMES}
    assert expand(template(text, early, PROCESS_NAMES), late) == at_once


@given(st.text())
def test_escaped_text_expands_to_itself(text: str):
    assert expand(escape(text), {}) == text
