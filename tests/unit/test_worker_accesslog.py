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

ENDED = 1_800_000_000.25


def served(uri: str = "/a/b?x=1&y=2", **environ: str) -> Served:
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
    assert text_line(form)(served(REMOTE_USER="ann")) == f'192.0.2.7 - ann {stamp} "GET /a/b?x=1&y=2" 200'


def test_the_time_of_day_goes_on():
    line = text_line("%{%s}T")
    assert [line(served()._replace(ended=ENDED + step)) for step in (0, 0.5, 1, 0)] == [
        str(int(ENDED + step)) for step in (0, 0.5, 1, 0)
    ]


def test_without_a_query_there_is_no_question_mark():
    assert text_line("%r%Q%q|")(served("/x")) == "/x|"
    assert text_line("%r%Q%q|")(served("/x?")) == "/x|"


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
