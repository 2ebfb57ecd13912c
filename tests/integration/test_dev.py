"""`fcgimgr dev`: each change is taken at once, and code that does not come up changes nothing."""

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.running import MARK, end_strays, strays
from tests.integration.servers import request
from tests.waiting import eventually

APP = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"{answer}"]
"""


class Dev:
    """`fcgimgr dev app:app` in a directory."""

    def __init__(self, directory: Path) -> None:
        self.app = directory / "app.py"
        self.mark = uuid.uuid4().hex
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fcgimgr", "dev", "app:app", "--port", "0", "--directory", str(directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {MARK: self.mark},
            )

    def said(self) -> str:
        return self._log.read_text()

    def answer(self) -> str:
        found = eventually(lambda: re.search(r"http://127.0.0.1:(\d+)/", self.said()))
        return request(int(found[1]), "/").text


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    (tmp_path / "app.py").write_text(APP.format(answer="one"))
    started = Dev(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()
    end_strays(started.mark)


def test_a_change_serves_and_a_broken_one_is_shown_while_the_old_code_serves_on(dev: Dev) -> None:
    eventually(lambda: "serving\n" in dev.said(), within=30)
    assert dev.answer() == "one"
    dev.app.write_text(APP.format(answer="two"))
    eventually(lambda: dev.answer() == "two", within=30)
    assert "changed: app.py\n" in dev.said()
    dev.app.write_text("def app(:\n")
    eventually(lambda: "what served before serves on\n" in dev.said(), within=30)
    assert "SyntaxError" in dev.said()
    assert dev.answer() == "two"
    dev.app.write_text(APP.format(answer="three"))
    eventually(lambda: dev.answer() == "three", within=30)


def test_code_that_is_broken_from_the_beginning_serves_once_it_is_mended(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import absent_library\n")
    dev = Dev(tmp_path)
    try:
        eventually(lambda: "it does not come up: mend it, and save\n" in dev.said(), within=30)
        assert "No module named 'absent_library'" in dev.said()
        dev.app.write_text(APP.format(answer="mended"))
        eventually(lambda: "serving\n" in dev.said(), within=30)
        assert dev.answer() == "mended"
    finally:
        dev.process.kill()
        dev.process.wait()
        end_strays(dev.mark)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_all_that_it_started(dev: Dev, number: signal.Signals) -> None:
    eventually(lambda: "serving\n" in dev.said(), within=30)
    dev.process.send_signal(number)
    assert dev.process.wait(30) == 0
    assert strays(dev.mark) == []
    assert "Traceback" not in dev.said()
