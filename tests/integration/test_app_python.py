"""An application runs in an interpreter of its own, which knows nothing of fcgimgr; what is wrong with it is said."""

import ast
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flup  # type: ignore[import-untyped,unused-ignore]
import msgspec
import pytest

from fcgimgr.control.messages import ReloadParams, Status
from fcgimgr.fastcgi.client import fetch
from fcgimgr.worker import FLUP_VARIABLE, MAIN
from tests.integration.benches import Bench, parameters, unix_bench
from tests.integration.pythons import old_pythons, other_pythons
from tests.integration.scenes import managing, scene
from tests.waiting import eventually

APP = """\
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(answer()).encode()]
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(unix_bench(tmp_path)) as made:
        yield made


@pytest.fixture
def python(tmp_path: Path) -> str:
    """The interpreter of a new virtualenv without anything in it."""
    venv.create(tmp_path / "venv", with_pip=False)
    return str(tmp_path / "venv" / "bin" / "python")


def packages(python: str) -> Path:
    (found,) = Path(python).parents[1].glob("lib/python3.*/site-packages")
    return found


def started_by(directory: Path, *options: str) -> str:
    """An interpreter with options, as a wrapper script gives it them."""
    wrapper = directory / "python-with-options"
    wrapper.write_text(f'#!/bin/sh\nexec {directory}/venv/bin/python {" ".join(options)} "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


# --- what the application finds is its own


WHOSE_FLUP = """\
import flup
from flup.server.fcgi import WSGIServer
from worker_app import application

def answer(environ, start_response):
    if environ["PATH_INFO"] != "/flup":
        return application(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [flup.__file__.encode()]
"""


def install_flup6(into: Path) -> None:
    """Another package of the name `flup`, of other classes: old `*.fcgi` projects list it."""
    words = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--disable-pip-version-check",
    ]
    installed = subprocess.run(
        [*words, "--target", str(into), "flup6==1.1.1"], capture_output=True, text=True, timeout=120, check=False
    )
    if installed.returncode:
        message = f"cannot install flup6: {installed.stderr}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.mark.parametrize("place", ["virtualenv", "directory"])
def test_flup6_is_for_the_application_alone(bench: Bench, python: str, place: str) -> None:
    """flup_engine stands on flup 1.0.3, and would fail on flup6 at each connection."""
    own = packages(python) if place == "virtualenv" else bench.directory
    install_flup6(own)
    (bench.directory / "with_flup.py").write_text(WHOSE_FLUP)
    bench.start("with_flup:answer", "--server", "flup", python=python)
    assert bench.fetch("/flup").body == str(own / "flup" / "__init__.py").encode()
    assert bench.fetch("/echo", b"x" * 100_000).body == b"x" * 100_000
    assert bench.stderr() == ""


def test_without_a_flup_of_ours_one_that_is_flup6_is_refused_at_the_start(bench: Bench, python: str) -> None:
    install_flup6(packages(python))
    bench.engine = ("--server", "flup")
    worker = bench.start(ready=False, python=python, env={FLUP_VARIABLE: str(bench.directory)})
    assert worker.wait(20) == 1
    assert f"server = flup: {packages(python)}/flup is not flup 1.0.3 (flup6 has the same name)" in bench.stderr()


def test_a_directory_that_is_called_flup_is_no_flup(bench: Bench, python: str) -> None:
    (bench.directory / "flup").mkdir()
    (bench.directory / "with_flup.py").write_text(WHOSE_FLUP)
    bench.start("with_flup:answer", "--server", "flup", python=python)
    assert bench.fetch("/flup").body == flup.__file__.encode()


def test_packages_of_the_virtualenv_are_what_the_application_imports(bench: Bench, python: str) -> None:
    """Even where they have the names of what the manager depends on, in versions that the manager could not use."""
    for name in ("msgspec", "click", "tomli"):
        (packages(python) / f"{name}.py").write_text("version = 'of the application'\n")
    shutil.copytree(Path(flup.__file__).parent, packages(python) / "flup")
    (bench.directory / "app.py").write_text(
        "import click, flup, msgspec, tomli\n"
        "def answer(): return [click.version, msgspec.version, tomli.version, flup.__file__]\n" + APP
    )
    bench.start("app:application", python=python)
    answered = bench.fetch("/").body.decode()
    assert answered == str(["of the application"] * 3 + [str(packages(python) / "flup" / "__init__.py")])


@pytest.mark.parametrize("name", ["queue", "select", "argparse", "traceback", "worker", "core", "config", "linux"])
def test_a_module_beside_the_application_does_not_become_ours(bench: Bench, python: str, name: str) -> None:
    """A queue.py, say, that has its own meaning in the application's directory."""
    (bench.directory / f"{name}.py").write_text("raise SystemExit('not meant for the worker')\n")
    (bench.directory / "app.py").write_text("def answer(): return 'served'\n" + APP)
    bench.start("app:application", python=python)
    assert bench.fetch("/").body == b"served"


def test_pythonpath_and_directory_come_in_that_order_after_the_working_directory(bench: Bench, python: str) -> None:
    src, lib = bench.directory / "src", bench.directory / "lib"
    for place in (src, lib):
        place.mkdir()
        (place / "shared.py").write_text(f"place = {place.name!r}\n")
    (bench.directory / "app.py").write_text("import shared\ndef answer(): return shared.place\n" + APP)
    bench.start("app:application", python=python, env={"PYTHONPATH": f"{src}:{lib}"})
    assert bench.fetch("/").body == b"src"


# --- -P and -I


def test_with_safe_path_the_working_directory_is_not_searched_and_pythonpath_is(bench: Bench, python: str) -> None:
    (bench.directory / "app.py").write_text("def answer(): return 'served'\n" + APP)
    (bench.directory / "src").mkdir()
    safe = {"PYTHONSAFEPATH": "1"}
    assert bench.start("app:application", python=python, env=safe, ready=False).wait(20) == 1
    assert "there is no module 'app'; set directory or pythonpath" in bench.stderr()
    shutil.move(bench.directory / "app.py", bench.directory / "src" / "app.py")
    bench.start("app:application", python=python, env=safe | {"PYTHONPATH": str(bench.directory / "src")})
    assert bench.fetch("/").body == b"served"


@pytest.mark.parametrize("options", [["-I"], ["-P"], ["-E", "-s"]], ids=" ".join)
def test_an_installed_application_needs_no_path_at_all(bench: Bench, python: str, options: list[str]) -> None:
    (packages(python) / "installed.py").write_text("def answer(): return 'served'\n" + APP)
    bench.start("installed:application", python=started_by(bench.directory, *options))
    assert bench.fetch("/").body == b"served"


# --- what is wrong is said


@pytest.mark.parametrize("python", old_pythons())
def test_an_interpreter_that_is_too_old_says_so(bench: Bench, python: str) -> None:
    assert bench.start(python=python, ready=False).wait(20) == 1
    assert "a wsgi pool needs Python 3.9 or later: set python to one" in bench.stderr()
    assert "Traceback" not in bench.stderr()


def test_every_python_can_read_the_script_that_it_is_given() -> None:
    """The check above runs only where old Pythons are; this one looks for what they cannot read."""
    text = Path(MAIN).read_text(encoding="ascii")
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, (ast.AnnAssign, ast.JoinedStr, ast.NamedExpr, ast.AsyncFunctionDef)), ast.dump(node)
        if isinstance(node, ast.FunctionDef):
            annotations = [argument.annotation for argument in node.args.args]
            assert [*annotations, node.returns] == [None] * (len(annotations) + 1)
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('wsgi = "app:application"\npython = "%(here)s/absent/bin/python"', "python {here}/absent/bin/python: "),
        ('wsgi = "app:application"\npython = "%(here)s/app.py"', "app.py is not executable"),
        ('wsgi = "absent:application"', "there is no module 'absent'; set directory or pythonpath"),
        ('wsgi = "app:absent"', "module app ({here}/app.py) has no 'absent'; did you mean app:application?"),
        ('wsgi = "app:aplicaton"', "has no 'aplicaton'; did you mean app:application?"),
        ('wsgi = "app:application.absent"', "app.application of module app ({here}/app.py) has no 'absent'"),
        ('wsgi = "needy:application"', 'needy.py", line 1, in <module>'),
        ('wsgi = "needy:application"', "ModuleNotFoundError: No module named 'absent_library'"),
    ],
)
def test_the_answer_of_start_and_the_log_say_why(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "app.py").write_text("def answer(): return 'served'\n" + APP)
    (tmp_path / "needy.py").write_text("import absent_library\n")
    tables = (
        '[pool.app]\nsocket = "%(here)s/s"\ndirectory = "%(here)s"\nautostart = false\nstartretries = 0\n'
        + table
        + "\n"
    )
    with managing(scene(tmp_path, tables), ready=False) as manager:
        verdict = manager.start("app")
        assert not verdict.ok
        expected = said.replace("{here}", str(tmp_path))
        assert any(expected in line for line in texts(msgspec.to_builtins(verdict)))
        eventually(lambda: expected in manager.output())


@pytest.mark.parametrize("server", ["flup", "native"])
@pytest.mark.parametrize("code", ["import absent_library\n", "import os, absent_library.part\n"])
def test_a_module_that_another_python_may_have_is_told_with_the_key_that_names_one(
    tmp_path: Path, python: str, code: str, server: str
) -> None:
    (tmp_path / "app.py").write_text(code)
    pool = f"""\
[pool.app]
socket = "%(here)s/s"
directory = "%(here)s"
wsgi = "app:application"
server = "{server}"
python = "{sys.executable}"
autostart = false
startretries = 0
"""
    with managing(scene(tmp_path, pool), ready=False) as manager:
        last = list(texts(msgspec.to_builtins(manager.start("app"))))[-1]
        assert last == (
            f"fcgimgr worker: {sys.executable} has no module 'absent_library'; there is a virtualenv in "
            f'{tmp_path}/venv: python = "{python}" in [pool.app]'
        )


def test_a_module_that_the_virtualenv_lacks_is_to_be_installed_there(bench: Bench, python: str) -> None:
    (bench.directory / "app.py").write_text("import absent_library\n")
    assert bench.start("app:application", python=python, ready=False).wait(20) == 1
    assert f"\nfcgimgr worker: {python} has no module 'absent_library'; install it there, or name" in bench.stderr()


def test_an_application_that_is_in_another_virtualenv_is_told_so(bench: Bench, python: str) -> None:
    assert bench.start("absent:application", python=sys.executable, ready=False).wait(20) == 1
    hint = f'; if it is in the virtualenv {bench.directory}/venv: python = "{python}". Looked in:\n'
    assert hint in bench.stderr().partition("there is no module 'absent'")[2]


def test_a_part_that_the_applications_own_package_lacks_is_in_no_virtualenv(bench: Bench, python: str) -> None:
    (bench.directory / "shop").mkdir()
    (bench.directory / "shop" / "__init__.py").write_text("")
    (bench.directory / "app.py").write_text("import shop.absent\n")
    assert bench.start("app:application", python=sys.executable, ready=False).wait(20) == 1
    assert bench.stderr().endswith("No module named 'shop.absent'\n")


in_every_python = pytest.mark.parametrize("python", [sys.executable, *other_pythons()])


def refused(bench: Bench, python: str, target: str = "app:application") -> str:
    """What a worker says that cannot load its application; nothing of it may be about files of our own."""
    assert bench.start(target, python=python, ready=False).wait(20) == 1
    assert "/fcgimgr/worker/" not in bench.stderr()
    return bench.stderr()


@in_every_python
@pytest.mark.parametrize("own", ["site/wsgi.py", "site.py"])
def test_a_module_that_pythons_own_hides_is_named_with_what_hides_it(bench: Bench, python: str, own: str) -> None:
    """`site` is imported before anything of the application's."""
    (bench.directory / own).parent.mkdir(exist_ok=True)
    (bench.directory / own).write_text("def answer(): return 'served'\n" + APP)
    said = refused(bench, python, "site.wsgi:application" if "/" in own else "site:application")
    assert "/site.py" in said
    assert ("'site' is /" in said and "which is no package" in said) is ("/" in own)
    hidden = bench.directory / own.removesuffix("/wsgi.py")
    assert said.endswith(f"it is Python's own and hides {hidden}: give that another name\n")


def test_a_module_below_one_that_is_no_package_is_not_looked_for_in_vain(bench: Bench) -> None:
    (bench.directory / "app.py").write_text("def answer(): return 'served'\n" + APP)
    said = refused(bench, sys.executable, "app.wsgi:application")
    assert said.endswith(f"no module 'app.wsgi': 'app' is {bench.directory}/app.py, which is no package\n")
    said = refused(bench, sys.executable, "json.wsgi:application")
    assert said.endswith("it is Python's own: a module of yours must have another name\n")


@in_every_python
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("'please set SECRET_KEY'", "called sys.exit while it was imported: please set SECRET_KEY\n"),
        ("3", "called sys.exit(3) while it was imported\n"),
        ("", "called sys.exit() while it was imported\n"),
    ],
    ids=["message", "number", "nothing"],
)
def test_an_exit_deep_in_an_import_is_shown_with_its_message_and_its_place(
    bench: Bench, python: str, given: str, said: str
) -> None:
    (bench.directory / "settings.py").write_text(f"import sys\nsys.exit({given})\n")
    (bench.directory / "app.py").write_text("import settings\n")
    shown = refused(bench, python)
    assert said in shown
    assert f'  File "{bench.directory}/app.py", line 1, in <module>\n    import settings\n' in shown
    assert f'  File "{bench.directory}/settings.py", line 2, in <module>\n' in shown


@in_every_python
def test_a_crash_in_an_import_shows_where(bench: Bench, python: str) -> None:
    (bench.directory / "extension.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    (bench.directory / "app.py").write_text("import extension\n")
    assert bench.start("app:application", python=python, ready=False).wait(20) == -signal.SIGSEGV
    shown = bench.stderr()
    assert "Fatal Python error: Segmentation fault" in shown
    assert f'File "{bench.directory}/extension.py", line 2 in <module>' in shown
    assert f'File "{bench.directory}/app.py", line 1 in <module>' in shown


BAD_TEXT = """\
class Bad({base}):
    def __str__(self):
        raise RuntimeError("no text")
"""


@in_every_python
@pytest.mark.parametrize(
    "code",
    [
        BAD_TEXT.format(base="Exception") + "raise Bad\n",
        BAD_TEXT.format(base="SyntaxError") + "raise Bad('x', ('file', 'line', 1, None))\n",
        BAD_TEXT.format(base="Exception") + "raise SystemExit(Bad())\n",
        BAD_TEXT.format(base="Exception") + "def __getattr__(name): raise Bad\n",
        "class Bad: pass\nraise ModuleNotFoundError(name=Bad())\n",
    ],
    ids=["exception", "syntax-error", "exit", "attribute", "name"],
)
def test_an_exception_that_cannot_be_told_is_the_applications_all_the_same(
    bench: Bench, python: str, code: str
) -> None:
    (bench.directory / "app.py").write_text(code)
    shown = refused(bench, python)
    assert shown.startswith("fcgimgr worker: cannot load 'app:application': ")
    assert f'  File "{bench.directory}/app.py", line ' in shown
    assert "During handling" not in shown


@pytest.mark.parametrize("preload", ["false", "true"])
def test_an_import_that_hangs_is_shown_where_it_is(tmp_path: Path, preload: str) -> None:
    """In a thread of its own: what hangs is as a rule in C, and no signal handler of Python runs then."""
    served = "def answer(): return 'served'\n" + APP
    (tmp_path / "app.py").write_text(served)
    tables = (
        '[pool.app]\nsocket = "%(here)s/s"\ndirectory = "%(here)s"\nwsgi = "app:application"\n'
        f"ready_timeout = 10\npreload = {preload}\n"
    )
    with managing(scene(tmp_path, tables)) as manager:
        # Waits in C and for ever, as a client of a database may; nothing in the interpreter wakes it.
        waiting = "import ctypes, os\nctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)\n"
        (tmp_path / "app.py").write_text(waiting + served)
        verdict = manager.command("reload", ReloadParams(names=("app",)))
        assert not verdict.ok
        said = [line for process in verdict.processes for line in (process.detail or "", *process.lines)]
        assert any("not ready within ready_timeout (10 s)" in line for line in said)
        assert any("the import of 'app:application' has taken" in line for line in said)
        assert f'  File "{tmp_path}/app.py", line 2, in <module>' in said
        assert said[-1].startswith("    ctypes.CDLL(None).read(")
        assert fetch(f"unix:{tmp_path}/s", parameters("/")).body == b"served"


def texts(told: object) -> Iterator[str]:
    """Every text in an answer."""
    if isinstance(told, str):
        yield told
    elif isinstance(told, (dict, list, tuple)):
        for part in told.values() if isinstance(told, dict) else told:
            yield from texts(part)


def test_an_import_that_fails_late_fails_the_reload_and_the_old_code_serves_on(tmp_path: Path) -> None:
    """Later than startsecs, by which a process without readiness of its own would have counted as started."""
    app = tmp_path / "app.py"
    app.write_text("def answer(): return 'the old code'\n" + APP)
    config = scene(tmp_path, '[pool.app]\nsocket = "%(here)s/s"\ndirectory = "%(here)s"\nwsgi = "app:application"\n')
    gate = tmp_path / "gate"
    with managing(config) as manager:
        before = manager.pids("app")
        os.mkfifo(gate)
        app.write_text(f"open({str(gate)!r}).read()\nimport absent_library\n")
        with ThreadPoolExecutor(1) as thread:
            reload = thread.submit(manager.restart, "app")
            with gate.open("w"):  # it is importing
                eventually(lambda: age_of_the_new(manager.status()) > 1.5)
            verdict = reload.result(30)
        assert not verdict.ok
        assert any("No module named 'absent_library'" in line for line in texts(msgspec.to_builtins(verdict)))
        assert manager.pids("app") == before


def age_of_the_new(status: Status) -> float:
    """Seconds since the process that is still starting was spawned."""
    (age,) = (each.uptime for pool in status.pools for each in pool.processes if each.state == "STARTING")
    assert age is not None
    return age


def test_a_reload_follows_the_link_to_a_new_release_and_an_old_process_stays_in_its_own(tmp_path: Path) -> None:
    current = tmp_path / "current"
    for release in ("41", "42"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "late.py").write_text(f"release = {release!r}\n")
        (tmp_path / release / "app.py").write_text("def answer():\n    import late\n    return late.release\n" + APP)
    current.symlink_to("41")
    pool = '[pool.app]\nsocket = "%(here)s/s"\ndirectory = "%(here)s/current"\nwsgi = "app:application"\n'
    with managing(scene(tmp_path, pool)) as manager:
        current.unlink()
        current.symlink_to("42")
        assert served_by(tmp_path) == b"41"
        assert manager.restart("app").ok
        assert served_by(tmp_path) == b"42"


def served_by(directory: Path) -> bytes:
    return fetch(f"unix:{directory}/s", parameters("/"), b"", timeout=20).body
