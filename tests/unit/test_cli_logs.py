"""`tail`, `log` and `events` against a scripted manager: what they ask, and what they print."""

import json
import os
import re
import time
from typing import Any

import pytest

from fcgimgr.cli.moments import Moment
from fcgimgr.control.messages import Event, Events, EventsParams, Line, LogParams, Tail, TailParams
from tests.unit.conftest import Run
from tests.unit.scripted_manager import Connection, ScriptedManager


def test_tail_shows_lines(run: Run, manager: ScriptedManager):
    manager.answers["tail"] = Tail(lines=("one", "two"))
    assert run("-s", "m.sock", "tail", "-n", "2", "--stderr", "app:app_00") == (0, "one\ntwo\n", "")
    assert manager.asked == [("tail", TailParams(name="app:app_00", stream="stderr", lines=2, follow=False))]


def test_tail_of_several_has_their_names_before_the_lines(run: Run, manager: ScriptedManager):
    manager.answers["tail"] = Tail(lines=("one", "two"), processes=("app:app_00", "app:app_01"))
    assert run("-s", "m.sock", "tail", "app")[1] == "app:app_00| one\napp:app_01| two\n"


@pytest.mark.parametrize(
    ("words", "stream"),
    [
        (("app",), "stdout"),
        (("app", "stdout"), "stdout"),
        (("app", "stderr"), "stderr"),
        (("--stderr", "app", "stderr"), "stderr"),
    ],
)
def test_tail_takes_the_stream_as_supervisorctl_does(
    run: Run, manager: ScriptedManager, words: tuple[str, ...], stream: Any
):
    manager.answers["tail"] = Tail(lines=("one",))
    assert run("-s", "m.sock", "tail", *words) == (0, "one\n", "")
    assert manager.asked == [("tail", TailParams(name="app", stream=stream))]
    assert run("-s", "m.sock", "tail", "app", "mail")[0] == 2
    assert run("-s", "m.sock", "tail", "--stderr", "app", "stdout")[0] == 2


@pytest.mark.parametrize(("stream", "other"), [("stdout", "stderr"), ("stderr", "stdout")])
def test_tail_that_has_nothing_says_where_there_is_something(
    run: Run, manager: ScriptedManager, stream: str, other: str
):
    manager.answers["tail"] = lambda connection, request: Tail(lines=("x",) if request.params.stream == other else ())
    nothing = (
        f"fcgimgr: app has written nothing to {stream} that is remembered, but to {other}: fcgimgr tail app {other}\n"
    )
    assert run("-s", "m.sock", "tail", "app", stream) == (0, "", nothing)


def test_tail_says_when_there_is_nothing(run: Run, manager: ScriptedManager):
    manager.answers["tail"] = Tail(lines=())
    nothing = "fcgimgr: app has written nothing to stderr that is remembered\n"
    assert run("-s", "m.sock", "tail", "--stderr", "app") == (0, "", nothing)
    assert "keep back what they write to a pipe: `fcgimgr help logs`" in run("-s", "m.sock", "tail", "app")[2]


@pytest.mark.parametrize(
    ("text", "ago"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("1d2h3m4s", 93784), ("0s", 0)]
)
def test_a_moment_is_given_by_how_long_ago_it_was(text: str, ago: int):
    assert abs(time.time() - ago - Moment().convert(text, None, None)) < 5


def test_a_moment_is_given_by_date_and_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Etc/GMT-2")  # that is east of Greenwich
    time.tzset()
    try:
        for text in ("2026-03-01T14:00", "2026-03-01 14:00:00", "2026-03-01T12:00Z", "2026-03-01T07:00:00.0-05:00"):
            assert Moment().convert(text, None, None) == 1772366400
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "5", "5 m", "m", "-5m", "tomorrow", "9999-12-31", "2026-13-01", "x" * 10_000])
def test_what_is_no_moment_or_has_not_come_is_refused(run: Run, manager: ScriptedManager, text: str):
    code, _, err = run("-s", "m.sock", "events", "--since", text)
    assert code == 2
    assert "is no moment: give 90s, 5m, 1h30m" in err or "has not come yet" in err


def test_events_since_a_moment_are_all_that_are_remembered_from_it_on(run: Run, manager: ScriptedManager):
    now = time.time()
    happened = tuple(Event(time=now - ago, kind="manager", name="", detail=f"{ago} s ago") for ago in (900, 200, 100))
    manager.answers["events"] = Events(events=happened)
    code, out, err = run("-s", "m.sock", "events", "--since", "5m")
    assert re.findall(r"\d+ s ago", out) == ["200 s ago", "100 s ago"]
    assert (code, err) == (0, "")
    assert run("-s", "m.sock", "events", "--since", "5m", "-n", "3")[1] == out
    assert manager.asked == [("events", EventsParams(n=100_000)), ("events", EventsParams(n=3))]
    code, out, err = run("-s", "m.sock", "events", "--since", "2h")
    assert len(out.splitlines()) == 3
    assert re.fullmatch(r"fcgimgr: nothing before \S+ \S+ is remembered\n", err)
    manager.answers["events"] = Events(events=())
    assert run("-s", "m.sock", "events", "--since", "2h") == (0, "", "")


def test_log_shows_the_managers_own(run: Run, manager: ScriptedManager):
    manager.answers["log"] = Tail(lines=("up",))
    assert run("-s", "m.sock", "log", "-n", "1") == (0, "up\n", "")
    assert manager.asked == [("log", LogParams(lines=1))]


@pytest.mark.parametrize("answers_first", [True, False])
def test_tail_follows_until_the_manager_ends(run: Run, manager: ScriptedManager, answers_first: bool):
    def tail(connection: Connection, request: Any) -> None:
        if answers_first:
            connection.send(b'{"jsonrpc":"2.0","id":1,"result":{"lines":["one"]}}\n')
        else:
            connection.notify("line", Line(process="app:app_00", stream="stdout", text="one"))
        connection.notify("line", Line(process="app:app_00", stream="stdout", text="two"))
        os.unlink(manager.path)
        connection.hang_up()

    manager.answers["tail"] = tail
    assert run("-s", "m.sock", "tail", "-f", "app") == (1, "one\ntwo\n", "fcgimgr: the manager has ended\n")


def test_tail_tells_what_it_missed_and_that_it_was_hung_up_on(run: Run, manager: ScriptedManager):
    def tail(connection: Connection, request: Any) -> None:
        connection.notify("line", Line(process="app:app_00", stream="stdout", text="", skipped=3))
        connection.notify("line", Line(process="app:app_00", stream="stdout", text="four"))
        connection.hang_up()

    manager.answers["tail"] = tail
    code, out, err = run("-s", "m.sock", "tail", "-f", "app")
    assert (code, out) == (1, "four\n")
    assert "3 lines skipped" in err
    assert "hung up, but runs on" in err


def test_events_are_lines(run: Run, manager: ScriptedManager, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "UTC")
    event = Event(time=0.25, kind="process_state", name="app:app_00", from_state="STARTING", to_state="RUNNING")
    told = Event(time=1.0, kind="manager", name="", detail="reopened logs")
    manager.answers["events"] = Events(events=(event, told))
    import time

    time.tzset()
    assert run("-s", "m.sock", "events", "-n", "2")[1] == (
        "1970-01-01 00:00:00.250  app:app_00  STARTING -> RUNNING\n1970-01-01 00:00:01.000  manager  reopened logs\n"
    )
    assert manager.asked == [("events", EventsParams(n=2, follow=False))]
    shown = run("-s", "m.sock", "events", "--json")[1].splitlines()
    assert [json.loads(line)["to"] for line in shown] == ["RUNNING", None]
