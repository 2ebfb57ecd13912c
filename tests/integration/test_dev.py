"""`fcgimgr dev`: each change is taken at once, and code that does not come up changes nothing."""

import os
import py_compile
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

SHELL = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""A shell as others have it: with this variable no test would meet a compiled file."""

RUN = [sys.executable, "-m", "fcgimgr", "dev"]

APP = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"{answer}"]
"""


class Dev:
    """`fcgimgr dev app:app` in a directory; `what` in place of that."""

    def __init__(self, directory: Path, *what: str, **environment: str) -> None:
        self.app = directory / "app.py"
        self.mark = uuid.uuid4().hex
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*RUN, "--port", "0", *(what or ("app:app", "--directory", str(directory)))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=SHELL | {MARK: self.mark} | environment,
            )

    def said(self) -> str:
        return self._log.read_text()

    def answer(self) -> str:
        found = eventually(lambda: re.search(r"http://127.0.0.1:(\d+)/", self.said()))
        return request(int(found[1]), "/").text


def save(path: Path, text: str, time: int) -> None:
    """As many editors do: in one step, and here as if at this time."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.utime(new, (time, time))
    os.replace(new, path)


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


POOL = """\
[pool.shop]
socket = "/run/of-the-server/shop.sock"
wsgi = "shop:app"
server = "native"
directory = "%(here)s"
pythonpath = ["src"]
user = "nobody-of-this-name"
environment = { GREETING = "100%% \\"%(program_name)s\\"" }
"""

SHOP = """\
import os
from texts import END

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.environ['GREETING']} {os.environ['FCGIMGR_PROCESS']} {environ['wsgi.multithread']} {END}".encode()]
"""


def test_a_pool_of_a_configuration_runs_with_what_is_its_applications(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "src").mkdir(parents=True)
    (home / "pool.toml").write_text(POOL)
    (home / "src" / "shop.py").write_text(SHOP)
    (home / "src" / "texts.py").write_text("END = 'one'\n")
    dev = Dev(tmp_path, "-c", str(home / "pool.toml"))
    try:
        eventually(lambda: "serving\n" in dev.said(), within=30)
        assert dev.answer() == '100% "shop" shop_00 False one'
        (home / "src" / "texts.py").write_text("END = 'two'\n")
        eventually(lambda: dev.answer().endswith("two"), within=30)
    finally:
        dev.process.kill()
        dev.process.wait()
        end_strays(dev.mark)


def test_a_change_below_pythonpath_outside_the_directory_is_taken(tmp_path: Path) -> None:
    home, library = tmp_path / "home", tmp_path / "library"
    home.mkdir()
    library.mkdir()
    (tmp_path / "current").symlink_to("home")
    (home / "shop.py").write_text(SHOP)
    (library / "texts.py").write_text("END = 'one'\n")
    (tmp_path / "pool.toml").write_text(
        POOL.replace('"%(here)s"', '"current"').replace("src", "library")
        + '[pool.php]\nsocket = "*:9"\ncommand = "c"\n'
    )
    dev = Dev(tmp_path, "-c", str(tmp_path / "pool.toml"), "shop")
    try:
        eventually(lambda: "serving\n" in dev.said(), within=30)
        (library / "texts.py").write_text("END = 'two'\n")
        eventually(lambda: dev.answer().endswith("two"), within=30)
        (home / "shop.py").write_text(SHOP.replace("{END}", "three"))
        eventually(lambda: dev.answer().endswith("three"), within=30)
    finally:
        dev.process.kill()
        dev.process.wait()
        end_strays(dev.mark)


TEMPLATED = """\
import pathlib
import texts
TEXT = pathlib.Path(__file__).with_name("page.html").read_text()

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{TEXT} {texts.END}".encode()]
"""


def test_templates_linked_directories_and_those_of_the_environment_are_watched_too(tmp_path: Path) -> None:
    home, library, linked = tmp_path / "home", tmp_path / "library", tmp_path / "linked"
    for directory in (home, library, linked):
        directory.mkdir()
    (home / "pages").symlink_to(linked)
    (linked / "app.py").write_text(TEMPLATED)
    (linked / "page.html").write_text("one")
    (library / "texts.py").write_text("END = 'one'\n")
    (tmp_path / "archive.zip").write_bytes(b"")  # no directory: nothing to watch, and no reason to refuse
    path = f"{library}:{tmp_path}/archive.zip:{tmp_path}/absent"
    dev = Dev(tmp_path, "pages.app:app", "--directory", str(home), PYTHONPATH=path)
    try:
        eventually(lambda: "serving\n" in dev.said(), within=30)
        assert dev.answer() == "one one"
        (library / "texts.py").write_text("END = 'two'\n")
        eventually(lambda: dev.answer() == "one two", within=30)
        (linked / "page.html").write_text("two")
        eventually(lambda: dev.answer() == "two two", within=30)
    finally:
        dev.process.kill()
        dev.process.wait()
        end_strays(dev.mark)


def test_a_save_of_the_same_length_in_the_same_second_is_served_whoever_compiled_the_one_before(dev: Dev) -> None:
    eventually(lambda: "serving\n" in dev.said(), within=30)
    for answer in ("two", "six", "ten"):
        save(dev.app, APP.format(answer=answer), time=1_700_000_000)
        eventually(lambda answer=answer: dev.answer() == answer, within=30)
        py_compile.compile(str(dev.app))
    dev.app.write_text("def app(:\n")
    eventually(lambda: "what served before serves on\n" in dev.said(), within=30)


SECOND = POOL.replace("pool.shop", "pool.admin").replace("shop.sock", "admin.sock")
PHP = '[pool.php]\nsocket = "*:9"\ncommand = "php-cgi"\n'


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        (POOL, ["cart"], "cart is no pool in it; name one of shop, or an application, as in app:app"),
        (POOL + PHP, ["php"], "php has no wsgi; name one of shop"),
        (PHP, [], "no pool in it has wsgi; give an application: fcgimgr dev app:app"),
        (POOL + SECOND, [], "which pool? Name one of shop, admin: fcgimgr dev shop"),
        (POOL, ["app:app"], "give an application, or -c and a pool of it, not both"),
        ("[pool.shop]\n", [], "pool.shop.socket"),
    ],
)
def test_what_is_no_pool_of_the_configuration_is_refused(
    tmp_path: Path, config: str, words: list[str], message: str
) -> None:
    (tmp_path / "pool.toml").write_text(config)
    done = subprocess.run(
        [*RUN, "-c", str(tmp_path / "pool.toml"), *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_at_all_is_asked_about(tmp_path: Path) -> None:
    if os.path.exists("/etc/fcgimgr/pool.toml"):
        pytest.skip("this machine has a configuration")
    done = subprocess.run(RUN, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "which application? Give module:callable, as in app:app, or -c FILE" in done.stderr


def test_a_manager_that_is_gone_is_said_at_the_next_change(dev: Dev) -> None:
    eventually(lambda: "serving\n" in dev.said(), within=30)
    (manager,) = [process for process in strays(dev.mark) if " fcgimgr.manager " in process]
    os.kill(int(manager.split()[0]), signal.SIGKILL)
    dev.app.write_text(APP.format(answer="two"))
    eventually(lambda: "the manager has ended" in dev.said(), within=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_all_that_it_started(dev: Dev, number: signal.Signals) -> None:
    eventually(lambda: "serving\n" in dev.said(), within=30)
    dev.process.send_signal(number)
    assert dev.process.wait(30) == 0
    assert strays(dev.mark) == []
    assert "Traceback" not in dev.said()
