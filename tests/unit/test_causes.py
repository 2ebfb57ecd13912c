"""The line that tells most likely why a process has ended is found among its last, and none where there is none."""

import pytest

from fcgimgr.config.pools import ProgramSettings
from fcgimgr.core.process import Exit
from fcgimgr.manager.causes import LONGEST, last_word

SETTINGS = ProgramSettings(name="app", command=("app",))
TRACEBACK = [
    b"Traceback (most recent call last):",
    b'  File "app.py", line 3, in <module>',
    b"    raise RuntimeError('no database')",
    b"RuntimeError: no database",
    b"",
]


def word(exit: Exit, lines: list[bytes], *, was_ready: bool = False) -> str:
    return last_word(SETTINGS, exit, lines, was_ready=was_ready)


def test_it_is_the_last_line_of_a_traceback() -> None:
    assert word(Exit(code=1), TRACEBACK) == "RuntimeError: no database"


def test_lines_that_belong_to_one_before_them_are_passed_over() -> None:
    assert word(Exit(code=2), [b"no config in any of", b"  /etc/app", b"\t/app"]) == "no config in any of"


@pytest.mark.parametrize("was_ready", [False, True])
def test_a_worker_of_ours_that_could_not_start_says_it_itself(was_ready: bool) -> None:
    own = b"fcgimgr worker: cannot load 'app:app': RuntimeError: no database"
    expected = "RuntimeError: no database" if was_ready else "cannot load 'app:app': RuntimeError: no database"
    assert word(Exit(code=1), [own, *TRACEBACK], was_ready=was_ready) == expected


def test_what_only_leads_to_the_lines_behind_it_is_left_out() -> None:
    own = b"fcgimgr worker: cannot load 'app:app': there is no module 'flask'; set pythonpath. Looked in:"
    assert word(Exit(code=1), [own, b"  /a", b"  /b"]).endswith("there is no module 'flask'; set pythonpath")


@pytest.mark.parametrize("exit", [Exit(code=0), Exit(signal=9), Exit()])
def test_who_ended_as_expected_or_was_killed_has_said_nothing_of_it(exit: Exit) -> None:
    assert word(exit, [b"served 5 requests"]) == ""


def test_it_can_neither_forge_a_line_nor_fill_the_log() -> None:
    assert "\x1b" not in word(Exit(code=1), [b"\x1b[2J\xff\r"])
    assert len(word(Exit(code=1), [b"x" * 100_000])) == LONGEST + 1
    assert word(Exit(code=1), []) == ""
