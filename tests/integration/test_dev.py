"""`fcgimgr dev`: each change is taken at once, and code that does not come up changes nothing."""

import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

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
        self.temporary = Path(tempfile.mkdtemp())  # short: there are sockets in it
        self.exit_code = 0
        self._log = directory / f"log-{self.mark}"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*RUN, "--port", "0", *(what or ("app:app", "--directory", str(directory)))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**SHELL, MARK: self.mark, "TMPDIR": str(self.temporary), **environment},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.process.terminate()
            assert self.process.wait(30) == self.exit_code
            assert strays(self.mark) == []
            assert list(self.temporary.iterdir()) == []
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            end_strays(self.mark)
            shutil.rmtree(self.temporary)
            print(self.said())

    def manager(self) -> int:
        """Its pid."""
        (found,) = [process for process in strays(self.mark) if " fcgimgr.manager " in process]
        return int(found.split()[0])

    def said(self) -> str:
        return self._log.read_text()

    @property
    def port(self) -> int:
        return int(eventually(lambda: re.search(r"http://127.0.0.1:(\d+)/", self.said()))[1])

    def answer(self, path: str = "/") -> str:
        return request(self.port, path).text


def save(path: Path, text: str, time: int) -> None:
    """As many editors do: in one step, and here as if at this time."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.utime(new, (time, time))
    os.replace(new, path)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    (tmp_path / "app.py").write_text(APP.format(answer="one"))
    with Dev(tmp_path) as started:
        eventually(lambda: "serving\n" in started.said(), within=30)
        yield started


def test_a_change_serves_and_a_broken_one_is_shown_while_the_old_code_serves_on(dev: Dev) -> None:
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
    with Dev(tmp_path) as dev:
        eventually(lambda: "it does not come up: mend it, and save\n" in dev.said(), within=30)
        assert "No module named 'absent_library'" in dev.said()
        dev.app.write_text(APP.format(answer="mended"))
        eventually(lambda: "serving\n" in dev.said(), within=30)
        assert dev.answer() == "mended"


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
    with Dev(tmp_path, "-c", str(home / "pool.toml")) as dev:
        eventually(lambda: "serving\n" in dev.said(), within=30)
        assert dev.answer() == '100% "shop" shop_00 False one'
        (home / "src" / "texts.py").write_text("END = 'two'\n")
        eventually(lambda: dev.answer().endswith("two"), within=30)


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
    with Dev(tmp_path, "-c", str(tmp_path / "pool.toml"), "shop") as dev:
        eventually(lambda: "serving\n" in dev.said(), within=30)
        (library / "texts.py").write_text("END = 'two'\n")
        eventually(lambda: dev.answer().endswith("two"), within=30)
        (home / "shop.py").write_text(SHOP.replace("{END}", "three"))
        eventually(lambda: dev.answer().endswith("three"), within=30)


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
    with Dev(tmp_path, "pages.app:app", "--directory", str(home), PYTHONPATH=path) as dev:
        eventually(lambda: "serving\n" in dev.said(), within=30)
        assert dev.answer() == "one one"
        (library / "texts.py").write_text("END = 'two'\n")
        eventually(lambda: dev.answer() == "one two", within=30)
        (linked / "page.html").write_text("two")
        eventually(lambda: dev.answer() == "two two", within=30)


def test_what_is_wrong_is_told_in_the_words_that_were_typed_and_not_by_keys_that_nobody_has_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "shop").mkdir()
    module = tmp_path / "shop" / "app.py"
    module.write_text("import absent_library\n")
    with Dev(tmp_path, "shop.app:create", "--directory", str(tmp_path)) as dev:
        eventually(lambda: "mend it, and save\n" in dev.said(), within=30)
        mend = "name the Python that has it: --python /path/to/virtualenv/bin/python"
        assert re.search(rf" error shop\.app:create: FATAL: .*'absent_library'.*{mend}$", dev.said(), re.M)
        module.write_text("import threading\nthreading.get_ident = lambda: 1\n\ndef create(): pass\n")
        eventually(lambda: "set these in a pool.toml, for fcgimgr dev -c pool.toml" in dev.said(), within=30)
        assert "[pool" not in dev.said()
        assert "fcgimgr start" not in dev.said()
    with Dev(tmp_path, "shop.absent:app", "--directory", str(tmp_path)) as dev:
        eventually(
            lambda: "; give --directory or PYTHONPATH, which say where it is. Looked in:\n" in dev.said(), within=30
        )


def test_what_is_wrong_with_a_pool_of_a_configuration_is_told_by_its_keys(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(POOL.replace("pool.shop", 'pool."the.shop"'))
    (tmp_path / "shop.py").write_text(APP.format(answer="one"))
    with Dev(tmp_path, "-c", str(tmp_path / "pool.toml")) as dev:
        eventually(lambda: "serving\n" in dev.said(), within=30)
        (tmp_path / "shop.py").write_text("import absent_library\n")
        # Its second version is another pool for dev, and for nobody else.
        eventually(lambda: '/bin/python" in [pool.the.shop]\n' in dev.said(), within=30)


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["app:"], "app:: expected a WSGI application"),
        ([":app"], ":app: expected a WSGI application"),
        (["app:app", "--python", "/absent/python"], "--python /absent/python: there is no such file"),
        (["app:app", "--python", "/etc/passwd"], "--python /etc/passwd: it cannot be executed"),
        (["-c", "pool.toml"], "pool.toml: pool.shop.directory: "),
    ],
)
def test_what_can_never_run_is_refused_in_the_words_of_its_author(
    tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "pool.toml").write_text(POOL.replace("%(here)s", "%(here)s/absent"))
    done = subprocess.run([*RUN, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "fcgimgr-dev" not in done.stderr


def test_a_save_of_the_same_length_in_the_same_second_is_served_whoever_compiled_the_one_before(dev: Dev) -> None:
    for answer in ("two", "six", "ten"):
        save(dev.app, APP.format(answer=answer), time=1_700_000_000)
        eventually(lambda answer=answer: dev.answer() == answer, within=30)
        py_compile.compile(str(dev.app))
    dev.app.write_text("def app(:\n")
    eventually(lambda: "what served before serves on\n" in dev.said(), within=30)


PATIENT = """\
import pathlib
HERE = pathlib.Path(__file__).parent

def app(environ, start_response):
    if environ["PATH_INFO"] == "/held":
        (HERE / "held-{answer}").touch()
        with open(HERE / "gate") as gate:
            gate.read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"{answer}"]
"""


def test_requests_in_hand_are_finished_by_their_own_code_over_several_changes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "app.py").write_text(PATIENT.format(answer="1"))
    with Dev(tmp_path) as dev, ThreadPoolExecutor(8) as browser:
        held = []
        for number in range(1, 6):
            eventually(lambda number=number: dev.answer() == str(number), within=30)
            held.append(browser.submit(request, dev.port, "/held"))
            eventually(lambda number=number: (tmp_path / f"held-{number}").exists())
            dev.app.write_text(PATIENT.format(answer=number + 1))
        eventually(lambda: dev.answer() == "6", within=30)
        assert held[0].result(30).status == 502  # five versions at a time: the oldest has given way
        with (tmp_path / "gate").open("w"):  # for all that wait there
            pass
        assert [one.result(30).text for one in held[1:]] == ["2", "3", "4", "5"]


def test_the_end_of_dev_is_not_held_up_by_a_request(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "app.py").write_text(PATIENT.format(answer="1"))
    with ThreadPoolExecutor(1) as browser, Dev(tmp_path) as dev:
        eventually(lambda: dev.answer() == "1", within=30)
        browser.submit(request, dev.port, "/held")
        eventually(lambda: (tmp_path / "held-1").exists())


HANGING = """\
import pathlib, time
(pathlib.Path(__file__).parent / "importing").touch()
time.sleep(1000)
"""


@pytest.mark.parametrize("serves", [True, False])
def test_a_change_during_an_import_that_hangs_is_taken_at_once(tmp_path: Path, serves: bool) -> None:
    (tmp_path / "app.py").write_text(APP.format(answer="one") if serves else HANGING)
    with Dev(tmp_path) as dev:
        if serves:
            eventually(lambda: "serving\n" in dev.said(), within=30)
            dev.app.write_text(HANGING)
        eventually(lambda: (tmp_path / "importing").exists(), within=30)
        dev.app.write_text(APP.format(answer="mended"))
        eventually(lambda: dev.answer() == "mended", within=15)  # the import has 30 seconds


WRITING = """\
import pathlib, time
(pathlib.Path(__file__).parent / "version.py").write_text(f"VERSION = {when}")

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"{answer}"]
"""


def test_a_file_that_each_import_writes_ends_no_import_for_ever(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(WRITING.format(when="{time.time_ns()}", answer="one"))
    with Dev(tmp_path) as dev:
        eventually(lambda: "version.py changes at each import" in dev.said(), within=60)
        eventually(lambda: dev.said().count("changed: ") == 4 and dev.answer() == "one")
        dev.app.write_text(WRITING.format(when="{time.time_ns()}", answer="two"))
        eventually(lambda: dev.answer() == "two", within=30)
        (tmp_path / "version.py").write_text("by hand")
        eventually(lambda: dev.said().endswith("changed: version.py\nserving the new code\n"), within=30)
        assert dev.said().count("changes at each import") == 1


def test_a_file_that_an_import_writes_as_it_was_is_no_change(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(WRITING.format(when=1, answer="one"))
    (tmp_path / "version.py").write_text("VERSION = 1")
    with Dev(tmp_path) as dev:
        eventually(lambda: dev.answer() == "one", within=30)
        dev.app.write_text(WRITING.format(when=1, answer="two"))
        eventually(lambda: dev.said().endswith("serving the new code\n"), within=30)
        assert re.findall("changed: .*", dev.said()) == ["changed: app.py"]


def test_the_browser_is_told_why_the_application_does_not_come_up(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("raise RuntimeError('<b>')\n")
    with Dev(tmp_path) as dev:
        eventually(lambda: "it does not come up: mend it, and save\n" in dev.said(), within=30)
        plain = request(dev.port, "/")
        assert plain.status == 502
        assert "mend it, and save" in plain.text
        assert "RuntimeError: <b>" in plain.text
        page = request(dev.port, "/", headers={"Accept": "text/html"})
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "RuntimeError: &lt;b&gt;" in page.text
        assert "<b>" not in page.text


def test_code_that_has_died_and_does_not_come_up_again_is_told_and_mended(dev: Dev) -> None:
    dev.app.write_text("def app(:\n")
    eventually(lambda: "what served before serves on\n" in dev.said(), within=30)
    (worker,) = [process for process in strays(dev.mark) if "worker/start.py" in process]
    os.kill(int(worker.split()[0]), signal.SIGKILL)
    eventually(lambda: "SyntaxError" in dev.answer(), within=30)
    dev.app.write_text(APP.format(answer="mended"))
    eventually(lambda: dev.answer() == "mended", within=30)


@pytest.mark.parametrize("serves", [True, False])
def test_dev_ends_with_its_manager_and_all_that_it_started(tmp_path: Path, serves: bool) -> None:
    (tmp_path / "app.py").write_text(APP.format(answer="one") if serves else HANGING)
    with Dev(tmp_path) as dev:
        dev.exit_code = 1
        eventually(lambda: "serving\n" in dev.said() or (tmp_path / "importing").exists(), within=30)
        os.kill(dev.manager(), signal.SIGKILL)
        assert dev.process.wait(30) == 1
        assert "the manager has ended" in dev.said()


def test_what_a_killed_dev_leaves_behind_ends_and_the_next_one_removes_its_directory(dev: Dev, tmp_path: Path) -> None:
    dev.exit_code = -signal.SIGKILL
    dev.process.kill()
    dev.process.wait()
    eventually(lambda: strays(dev.mark) == [])
    (abandoned,) = dev.temporary.iterdir()
    (dev.temporary / "fcgimgr-dev-link").symlink_to(tmp_path)
    with Dev(tmp_path, TMPDIR=str(dev.temporary)) as other:
        eventually(lambda: "serving\n" in other.said(), within=30)
        assert not abandoned.exists()
        with Dev(tmp_path, TMPDIR=str(dev.temporary)) as third:
            eventually(lambda: "serving\n" in third.said(), within=30)
        assert other.answer() == "one"
    (dev.temporary / "fcgimgr-dev-link").unlink()
    assert (tmp_path / "app.py").exists()


def test_it_serves_on_when_nobody_reads_what_it_says(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP.format(answer="one"))
    with (tmp_path / "errors").open("wb") as errors:
        words = [*RUN, "app:app", "--port", "0"]
        started = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=errors, env=SHELL, text=True)
    with started:
        assert started.stdout is not None
        found = re.search(r":(\d+)/", started.stdout.readline())
        assert found is not None
        started.stdout.close()
        try:
            eventually(lambda: request(int(found[1]), "/").text == "one", within=30)
            app.write_text(APP.format(answer="two"))
            eventually(lambda: request(int(found[1]), "/").text == "two", within=30)
        finally:
            started.terminate()
        assert started.wait(30) == 0
    assert "fcgimgr:" not in (tmp_path / "errors").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_all_that_it_started(dev: Dev, number: signal.Signals) -> None:
    dev.process.send_signal(number)
    assert dev.process.wait(30) == 0
    assert strays(dev.mark) == []
    assert "Traceback" not in dev.said()
