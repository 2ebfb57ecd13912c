"""The access log: PHP-FPM's characters, JSON, and no line or field that a client could forge."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.config.pools import PoolSettings
from fcgimgr.fastcgi.accessformat import LETTERS, UNITS
from fcgimgr.worker.accesslog import AccessLog, Served, escaped, json_line, text_line
from fcgimgr.worker.appending import AppendedFile
from fcgimgr.worker.retiring import Retirement
from fcgimgr.worker.watching import Watch

ENDED = 1_800_000_000.25


def served(uri: str = "/a/b?x=1&y=2", **environ: object) -> Served:
    known = {"REMOTE_ADDR": "192.0.2.7", "CONTENT_LENGTH": "", "SCRIPT_FILENAME": "/srv/app.py"} | environ
    return Served(known, "GET", uri, 200, 512, ENDED, 1.5)


@pytest.fixture(autouse=True)
def in_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCGIMGR_POOL", "shop")
    monkeypatch.setenv("FCGIMGR_PROCESS", "shop_00")


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("%R %u %m %r%Q%q %s", "192.0.2.7 - GET /a/b?x=1&y=2 200"),
        ("%l %b %d", "0 512 1.500"),
        ("%{milliseconds}d %{milli}d %{mili}d %{MILLI}d", "1500.000 1500.000 1500.000 1500.000"),
        ("%{microseconds}d %{micro}d %{seconds}d %{}d", "1500000 1500000 1.500 1.500"),
        ("%n %f 100%%", "shop /srv/app.py 100%"),
        ("%{REMOTE_ADDR}e %{NOTHING}e", "192.0.2.7 -"),
        ("%{%s}t %{%s}T", f"{int(ENDED - 1.5)} {int(ENDED)}"),
        ("%R{x} %{seconds}d{x} {%s}", "192.0.2.7{x} 1.500{x} {200}"),
        ("plain", "plain"),
    ],
)
def test_each_character(form: str, line: str):
    assert text_line(form)(served()) == line


def test_the_processes():
    assert text_line("%p %P")(served()) == f"{os.getpid()} {os.getppid()}"


def test_the_default_form():
    form = PoolSettings.__struct_defaults__[list(PoolSettings.__struct_fields__).index("access_format")
        - len(PoolSettings.__struct_fields__)]  # fmt: skip
    stamp = time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(int(ENDED - 1.5)))
    assert (
        text_line(form)(served(REMOTE_USER="ann"))
        == f'192.0.2.7 - ann {stamp} "GET /a/b?x=1&y=2" 200 1.500 {os.getpid()}'
    )


def test_the_time_of_day_goes_on():
    line = text_line("%{%s}T")
    assert [line(served()._replace(ended=ENDED + step)) for step in (0, 0.5, 1, 0)] == [
        str(int(ENDED + step)) for step in (0, 0.5, 1, 0)
    ]


def test_without_a_query_there_is_no_question_mark():
    assert text_line("%r%Q%q|")(served("/x")) == "/x|"
    assert text_line("%r%Q%q|")(served("/x?")) == "/x|"


@given(st.text(st.sampled_from('/?a" é')))
def test_path_and_query_are_the_same_together_and_apart(uri: str):
    assert text_line("%r%Q%q")(served(uri)) == text_line("%r|%Q|%q")(served(uri)).replace("|", "")


def test_the_time_of_php_fpms_own_example():
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(int(ENDED - 1.5)))
    assert text_line("%{%Y-%m-%dT%H:%M:%S%z}t")(served()) == stamp


@pytest.mark.parametrize("letter", LETTERS)
def test_what_the_configuration_takes_the_worker_knows(letter: str):
    assert text_line("%{NAME}e" if letter == "e" else f"%{letter}")(served())


@pytest.mark.parametrize("unit", UNITS)
def test_and_so_with_the_units(unit: str):
    assert text_line(f"%{{{unit}}}d")(served())


@pytest.mark.parametrize("form", ["%z", "%{weeks}d", "%{x}R", "%e", "%d{milli}"])
def test_what_the_configuration_refuses_the_worker_refuses(form: str):
    with pytest.raises(ValueError, match="at character 1: "):
        text_line(form)


def test_quotes_controls_and_bytes_are_escaped():
    assert escaped('a"b\\c\r\n\x1b\x7f\x85\xff d') == "a\\x22b\\x5cc\\x0d\\x0a\\x1b\\x7f\\x85\\xff d"
    assert escaped("\u2028\udcff") == "\\xe2\\x80\\xa8\\xed\\xb3\\xbf"
    assert escaped("") == "-"


@given(st.text())
def test_no_client_can_forge_a_line_or_a_field_in_quotes(text: str):
    shown = escaped(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert '"' not in shown
    assert re.sub(r"\\x[0-9a-f]{2}", "", shown).count("\\") == 0


@given(uri=st.text(), user=st.text(), method=st.text())
def test_json_is_one_line_and_gives_back_what_was_sent(uri: str, user: str, method: str):
    line = json_line()(served(uri, REMOTE_USER=user)._replace(method=method))
    assert line.isascii()
    assert line.isprintable()
    said = json.loads(line)
    assert (said["uri"], said["user"], said["method"]) == (uri, user or None, method)


def test_json_says_all():
    said = json.loads(json_line()(served(CONTENT_LENGTH="17")))
    assert said == {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ENDED - 1.5)) + ".750Z",
        "pool": "shop", "process": "shop_00", "pid": os.getpid(), "remote": "192.0.2.7", "user": None, "method": "GET",
        "uri": "/a/b?x=1&y=2", "status": 200, "received": 17, "sent": 512, "seconds": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize("length", ["x", "-1", "9" * 40, "²"])
def test_a_length_that_is_none_is_unknown(length: str):
    assert json.loads(json_line()(served(CONTENT_LENGTH=length)))["received"] is None


def test_a_line_goes_into_the_file(tmp_path: Path):
    log = AccessLog("%m %r", AppendedFile(str(tmp_path / "log"), standard=1))
    log.write(served("/x"))
    log.write(served("/y" * 100_000))
    assert (tmp_path / "log").read_text() == "GET /x\nGET " + "/y" * 100_000 + "\n"


class Lazy:
    """What some applications put into their environ: an object that becomes its text when it is asked for it."""

    def __init__(self, text: str | BaseException) -> None:
        self._text = text

    def __str__(self) -> str:
        if isinstance(self._text, BaseException):
            raise self._text
        return self._text


@pytest.mark.parametrize(("user", "shown"), [(b"ann", "b'ann'"), (Lazy("ann"), "ann"), (17, "17"), (Lazy(""), "")])
def test_whatever_the_application_says_of_the_user_is_written_as_text(user: object, shown: str):
    about = served(REMOTE_USER=user, REMOTE_ADDR=user, CONTENT_LENGTH=user)
    assert json.loads(json_line()(about))["user"] == (shown or None)
    assert json.loads(json_line()(about))["remote"] == (shown or None)
    assert text_line("%u %R %l")(about) == f"{shown or '-'} {shown or '-'} {shown or '0'}"


def test_a_name_with_a_space_shifts_no_column():
    assert text_line("%R %u %s")(served(REMOTE_USER="a 404 b")) == r"192.0.2.7 a\x20404\x20b 200"


@pytest.mark.parametrize("form", ["json", "%u"])
@pytest.mark.parametrize("error", [ValueError("a\nb\x1b[2J"), SystemExit(1)])
def test_what_has_no_text_costs_its_own_line_alone_and_is_said_once(
    form: str, error: BaseException, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    log = AccessLog(form, AppendedFile(str(tmp_path / "log"), standard=1))
    for user in ("ann", Lazy(error), Lazy(error), "bob"):
        log.write(served(REMOTE_USER=user))
    assert [name for name in ("ann", "bob") if name in (tmp_path / "log").read_text()] == ["ann", "bob"]
    assert (tmp_path / "log").read_text().count("\n") == 2
    said = capfd.readouterr().err
    assert said.startswith(
        "fcgimgr worker: GET /a/b?x=1&y=2 has no line in the access log, nor has any other like it: "
    )
    assert said.count("\n") == 1
    assert type(error).__name__ in said
    assert "\x1b" not in said


def test_a_worker_asks_to_be_replaced_before_it_writes_its_line():
    acts = []

    class Noting(Retirement):
        def one_more(self, now: float) -> bool:
            acts.append("asks")
            return super().one_more(now)

    class Log(AccessLog):
        def write(self, served: Served) -> None:
            acts.append("writes")

    watch = Watch(retirement=Noting(1, 0, None), access_log=Log("json", AppendedFile("-", standard=1)))
    watch.begin({}, time.monotonic())
    assert not watch.end(200, 0, time.monotonic())
    assert acts == ["asks", "writes"]


def test_no_locale_of_the_applications_names_a_month_or_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """No locale but C is sure to be there: what would ask one for a word never comes to strftime."""
    asked: list[str] = []
    real = time.strftime

    def strftime(form: str, moment: time.struct_time) -> str:
        asked.append(form)
        return real(form, moment)

    monkeypatch.setattr("time.strftime", strftime)
    for month in range(12):
        then = served()._replace(ended=ENDED + 31 * 86_400 * month, took=0.0)
        moment = time.localtime(then.ended)
        for form in ("%d/%b/%Y:%H:%M:%S %z", "%A %a %B %b %h %I %p %% %%b %-d"):
            assert text_line(f"%{{{form}}}t")(then) == real(form, moment)
        assert text_line("%t")(then) == real("%d/%b/%Y:%H:%M:%S %z", moment)
    assert not [form for form in asked if re.search("%[aAbBhp]", form.replace("%%", ""))]
