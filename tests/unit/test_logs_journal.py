"""The manager's own log: one line an event, which nobody else can write."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.manager.logs.journal import LEVELS, LONGEST, Journal
from tests.unit.logs_bench import Memory

NOW = 1_795_190_391_123_456_789
STAMP = "2026-11-20T15:59:51.123Z"


def written(format: str, level: str = "info") -> tuple[Journal, Memory]:
    memory = Memory()
    return Journal(level, format, memory, clock=lambda: NOW), memory


def text_of(message: str, **fields: object) -> str:
    journal, memory = written("text")
    journal.info(message, **fields)
    return memory.text.decode()


def test_a_text_line_says_when_how_grave_who_and_what() -> None:
    assert text_of("started", name="app:app_00", pid=123) == f"{STAMP} info app:app_00: started pid=123\n"
    assert text_of("up") == f"{STAMP} info up\n"


def test_a_json_line_says_the_same() -> None:
    journal, memory = written("json")
    journal.warning("died", name="app:app_00", pid=123, after=1.5, code=None, lines=[b"a\xff", "b"])
    assert json.loads(memory.text) == {
        "time": STAMP,
        "level": "warning",
        "name": "app:app_00",
        "message": "died",
        "pid": 123,
        "after": 1.5,
        "code": None,
        "lines": ["a\\xff", "b"],
    }


def test_values_are_quoted_where_they_are_not_plain() -> None:
    line = text_of("x", a="plain", b="two words", c='say "hi"', d="back\\slash", e="", f=None, g=True, h=[1, "two"])
    assert line.split(" x ")[1] == 'a=plain b="two words" c="say \\"hi\\"" d="back\\\\slash" e="" f=- g=true h=1,two\n'


@pytest.mark.parametrize("level", list(LEVELS))
def test_what_is_below_the_level_is_not_written(level: str) -> None:
    journal, memory = written("text", level)
    for name in LEVELS:
        getattr(journal, name)("event")
    assert [chunk.split()[1].decode() for chunk in memory.chunks] == [
        name for name in LEVELS if LEVELS[name] >= LEVELS[level]
    ]
    journal.set_level("error")
    journal.warning("event")
    assert len(memory.chunks) == 4 - list(LEVELS).index(level)


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_field_cannot_stand_in_for_what_the_line_says(format: str) -> None:
    journal, memory = written(format)
    journal.info("real", time="never", level="debug", message="forged")
    if format == "json":
        entry = json.loads(memory.text)
        assert (entry["time"], entry["level"], entry["message"]) == (STAMP, "info", "real")
    else:
        assert memory.text.decode().startswith(f"{STAMP} info real ")


@given(
    message=st.text(),
    name=st.text(),
    value=st.one_of(st.text(), st.binary(), st.lists(st.text()), st.integers(), st.floats(), st.none()),
)
def test_nothing_from_outside_can_begin_a_line_or_steer_a_terminal(message: str, name: str, value: object) -> None:
    for format in ("text", "json"):
        journal, memory = written(format)
        journal.info(message, name=name, value=value)
        line = memory.text.decode("utf-8", "strict")
        assert line.endswith("\n")
        assert line.count("\n") == 1
        if format == "text":
            assert line[:-1].isprintable()
            assert line.splitlines() == [line[:-1]]
        else:
            assert not re.search("[\x00-\x1f]", line[:-1])
            assert json.loads(line)["level"] == "info"


def test_an_escape_sequence_and_a_forged_line_are_shown_as_what_they_are() -> None:
    line = text_of("bad name", name="a\x1b[2Jb", given=f"x\n{STAMP} error forged")
    assert line == f'{STAMP} info a\\x1b[2Jb: bad name given="x\\n{STAMP} error forged"\n'


def test_surrogates_of_file_names_do_not_break_the_line() -> None:
    for format in ("text", "json"):
        journal, memory = written(format)
        journal.info("cannot open", path=b"/tmp/\xff".decode("utf-8", "surrogateescape"))
        assert b"\\udcff" in memory.text


def test_a_megabyte_in_a_name_is_shortened() -> None:
    assert len(text_of("x", name="n" * 1_000_000, value="v" * 1_000_000)) < 2 * LONGEST + 100


def test_an_error_is_written_as_its_words() -> None:
    assert text_of("x", error=OSError(2, "No such file", "/a b")).endswith("error=\"[Errno 2] No such file: '/a b'\"\n")
    journal, memory = written("json")
    journal.info("x", error=ValueError("bad"), huge=2**70)
    assert json.loads(memory.text)["error"] == "bad"
