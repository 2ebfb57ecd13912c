"""The line that tells most likely why a process has ended is found among its last, and none where there is none."""

import asyncio
import os

import pytest

from fcgimgr.config.pools import ProgramSettings
from fcgimgr.core.process import Exit
from fcgimgr.manager.causes import LONGEST, last_word
from fcgimgr.manager.pump import Pump
from fcgimgr.manager.slots import OF_ITS_END, Slot
from tests.unit.logs_bench import Clock, Memory, child_pipe

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


@pytest.mark.parametrize("exit", [Exit(code=0), Exit(signal=9), Exit(signal=15), Exit()])
def test_who_ended_as_expected_or_was_killed_has_said_nothing_of_it(exit: Exit) -> None:
    assert word(exit, [b"served 5 requests"]) == ""


def test_it_can_neither_forge_a_line_nor_fill_the_log() -> None:
    assert "\x1b" not in word(Exit(code=1), [b"\x1b[2J\xff\r"])
    assert len(word(Exit(code=1), [b"x" * 100_000])) == LONGEST + 1
    assert word(Exit(code=1), []) == ""


@pytest.mark.parametrize("redirected", [False, True])
def test_what_it_said_long_before_tells_nothing_of_its_end(redirected: bool) -> None:
    loop, clock, slot = asyncio.new_event_loop(), Clock(), Slot("app_00")
    loop.time = clock  # type: ignore[method-assign]
    pipes = [child_pipe() for _ in range(1 if redirected else 2)]
    stdout, stderr, *_ = *(Pump(loop, fd, Memory(), process="a", stream="a") for fd, _ in pipes), None
    assert stdout is not None
    slot.begin(clock(), stdout, stderr)
    said_to = pipes[-1][1]
    os.write(said_to, b"INFO: cache warmed up\n")
    slot.hear_last_words()
    clock.passes(OF_ITS_END)
    assert slot.lines_before_its_end() == [b"INFO: cache warmed up"]
    clock.passes(0.1)
    assert slot.lines_before_its_end() == []
    os.write(said_to, b"RuntimeError: no database\n")  # found when it is dead
    slot.hear_last_words()
    assert slot.lines_before_its_end()[-1] == b"RuntimeError: no database"
    slot.close()
    for _, writer in pipes:
        os.close(writer)
    loop.close()
