"""The script and the files that docs/deploying.md gives put a release into service, and leave a bad one out of it."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fcgimgr.control.messages import ReloadParams
from fcgimgr.fastcgi.client import fetch
from tests.integration.benches import parameters
from tests.integration.running import RunningManager, copy_example
from tests.integration.scenes import kill, managing, scene
from tests.integration.servers import CHECKOUT, need
from tests.waiting import eventually

GUIDE = (CHECKOUT / "docs" / "deploying.md").read_text()


class Server:
    """A machine as the guide has it, below a directory: what only root could do is left out, the rest is as it stands.

    A virtualenv is one link to the Python of the tests, for nothing is to be downloaded.
    """

    def __init__(self, root: Path) -> None:
        need("jq")
        self.root = root
        self.shop = root / "srv" / "shop"
        self.etc = root / "etc" / "fcgimgr"
        self.socket = root / "run" / "fcgimgr" / "shop.sock"
        self.control = self.socket.with_name("pool.sock")
        for directory in (self.etc, self.socket.parent, root / "bin", self.shop / "releases", self.shop / "data"):
            directory.mkdir(parents=True)
        variables, script, pull = (self.here(text) for text in re.findall(r"^```sh\n(.*?)^```$", GUIDE, re.M | re.S))
        (self.etc / "shop.env").write_text(variables)
        pool = self.here(re.findall(r"^```toml\n(.*?)^```$", GUIDE, re.M | re.S)[0])
        self.config = self.etc / "pool.toml"
        self.config.write_text(re.sub(r"^(user|socket_owner) .*\n", "", pool, flags=re.M))
        self.tool("runuser", '[ "$1 $2 $3" = "-u shop --" ]; shift 3; exec "$@"')
        self.tool("fcgimgr", f'exec {sys.executable} -m fcgimgr "$@"')
        self.tool("python3", '[ "$*" = "-m venv venv" ]; mkdir -p venv/bin; cp "$(dirname "$0")"/tools/* venv/bin')
        self.tool("tools/python", f'exec {sys.executable} "$@"')
        self.tool("tools/pip", '[ "$*" = "install --quiet -r requirements.txt" ]; [ -s requirements.txt ]')
        self.script = self.tool("deploy-shop", script.replace("/usr/bin/python3", "python3"))
        self.pull = self.tool("pull-shop", pull)

    def here(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(srv|etc|run)/(?=shop|fcgimgr)", rf"{self.root}/\1/", text)

    def tool(self, name: str, text: str) -> Path:
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh -e\n{text}\n")
        path.chmod(0o755)
        return path

    def cut_reloads_off(self) -> None:
        """Let `fcgimgr reload` begin one, and end as if it had lost the manager."""
        real = f'{sys.executable} -m fcgimgr "$@"'
        self.tool("fcgimgr", f'case "$*" in *" reload "*) {real} --no-wait; exit 4;; esac\nexec {real}')

    def release(self, number: str, more: str = "") -> None:
        """The example as a release, `more` at the end of its wsgi.py."""
        directory = self.shop / "releases" / number
        copy_example("django", self.root / f"copy-{number}").parent.rename(directory)
        with (directory / "shop" / "wsgi.py").open("a") as module:
            module.write(more)

    def deploy(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.script, *arguments],
            env={"PATH": f"{self.root}/bin:/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        return done.returncode, done.stdout.decode()

    def serving(self) -> str:
        """Which release `current` is, when the pool answers."""
        answer = fetch(f"unix:{self.socket}", parameters("/", HTTP_HOST="shop.example"), timeout=20)
        assert answer.body.startswith(b"Hello from Django"), answer
        return (self.shop / "current").readlink().name


@pytest.fixture
def server(tmp_path: Path) -> Server:
    pytest.importorskip("django")
    return Server(tmp_path)


def test_a_release_is_put_into_service_and_a_bad_one_is_not(server: Server) -> None:
    server.release("42")
    code, said = server.deploy("42")
    assert code == 0, said
    assert "Applying shop.0001_initial... OK" in said
    assert (server.shop / "static" / "shop" / "style.css").exists()
    with RunningManager(server.config, server.root / "run" / "fcgimgr" / "pool.sock") as manager:
        assert server.serving() == "42"
        server.release("43")
        code, said = server.deploy("43")
        assert code == 0, said
        assert "shop: reloaded: generation 2 serves" in said
        assert server.serving() == "43"

        server.release("44", "import absent_library\n")
        code, said = server.deploy("44")
        assert code == 1
        assert "No module named 'absent_library'" in said
        assert said.endswith("deploy-shop: 44 does not come up; releases/43 serves on\n")
        assert server.serving() == "43"
        eventually(lambda: manager.pool("shop").state == "RUNNING")

        server.release("45")
        server.cut_reloads_off()
        code, said = server.deploy("45")
        assert code == 1
        assert said.endswith("deploy-shop: 45 stays, for it serves or may yet: fcgimgr status shop\n")
        assert server.serving() == "45"


def test_what_fails_before_the_switch_changes_nothing(server: Server) -> None:
    server.release("42")
    assert server.deploy("42")[0] == 0
    assert server.deploy()[0] != 0
    assert server.deploy("45")[0] != 0
    assert not (server.shop / "releases" / "45").exists()
    server.release("43")
    (server.shop / "releases" / "43" / "shop" / "models.py").write_text("import absent_library\n")
    assert server.deploy("43")[0] != 0
    assert (server.shop / "current").readlink().name == "42"


# -- git pull in place ------------------------------------------------------------------------------------------------

APP = """\
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"{}"]
"""


HANGS = """\
import pathlib, time

def app(environ, start_response):
    pathlib.Path("hangs").touch()
    time.sleep(1000)
"""

WAITS = """\
import pathlib, time
while not pathlib.Path("go").exists():
    time.sleep(0.01)

"""


class Checkout:
    """A project that is cloned from where it is pushed to, as the guide's `git pull` in place has it."""

    def __init__(self, server: Server) -> None:
        need("git")
        self.server = server
        self.pushed, self.code = server.root / "pushed", server.shop / "code"
        server.shop.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main", str(self.pushed), cwd=server.root)
        self.push(APP.format("first"))
        self.git("clone", "--quiet", str(self.pushed), str(self.code), cwd=server.root)
        pool = server.here(re.findall(r"^```toml\n(.*?)^```$", GUIDE, re.M | re.S)[1])
        pool = re.sub(r"^(user|python) .*\n", "", pool, flags=re.M)
        pool += 'environment = { PYTHONDONTWRITEBYTECODE = "" }\n'  # as others have it
        server.config.write_text(f'[manager]\ncontrol = "{server.control}"\n{pool}numprocs = 2\nstartretries = 0\n')

    def git(self, *words: str, cwd: Path) -> None:
        who = ("-c", "user.name=ann", "-c", "user.email=ann@shop.example")
        subprocess.run(["git", *who, *words], cwd=cwd, check=True, timeout=60)

    def push(self, code: str) -> None:
        (self.pushed / "app.py").write_text(code)
        self.git("add", "app.py", cwd=self.pushed)
        self.git("commit", "--quiet", "--message=a change", cwd=self.pushed)

    def head(self) -> str:
        return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=self.code, text=True, timeout=60).strip()

    def lies_there(self) -> str:
        return (self.code / "app.py").read_text()

    def pull(self) -> tuple[int, str]:
        done = subprocess.run(
            [self.server.pull],
            env={"PATH": f"{self.server.root}/bin:/usr/bin:/bin", "HOME": str(self.server.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        return done.returncode, done.stdout.decode()

    def serves(self) -> bytes:
        return fetch(f"unix:{self.server.socket}", parameters("/"), timeout=20).body


def test_a_pull_serves_new_code_and_puts_the_old_back_where_it_does_not_come_up(tmp_path: Path) -> None:
    checkout = Checkout(Server(tmp_path))
    with RunningManager(checkout.server.config, checkout.server.control) as manager:
        checkout.push(APP.format("second"))
        code, said = checkout.pull()
        assert (code, said) == (0, "shop: reloaded: generation 2 serves\n")
        assert checkout.serves() == b"second"
        # Of the same length: bytecode of it must not be taken for that of what is put back.
        checkout.push("import absent_library\n".ljust(len(APP.format("second")), "#"))
        code, said = checkout.pull()
        assert code == 1
        assert "No module named 'absent_library'" in said
        assert checkout.lies_there() == APP.format("second")
        before = manager.pids("shop")
        kill(before[0])
        eventually(lambda: len(manager.pids("shop")) == 2 and manager.pids("shop") != before)
        assert checkout.serves() == b"second"


def test_a_second_pull_after_a_refused_one_puts_the_old_code_back_again_and_serves_what_is_mended(
    tmp_path: Path,
) -> None:
    checkout = Checkout(Server(tmp_path))
    good = checkout.head()
    with RunningManager(checkout.server.config, checkout.server.control):
        checkout.push("import absent_library\n")
        for _ in range(2):
            code, said = checkout.pull()
            assert code == 1
            assert said.endswith(f" does not come up: {good} serves on, and lies there again\n")
            assert checkout.head() == good
        checkout.push(APP.format("mended"))
        assert checkout.pull()[0] == 0
        assert checkout.serves() == b"mended"
        good = checkout.head()
        checkout.push("import absent_library\n")
        checkout.git("pull", "--quiet", cwd=checkout.code)  # by hand, or by a run that was cut off
        assert checkout.pull()[0] == 1
        assert checkout.head() == good


def test_what_was_changed_in_the_checkout_outlives_a_refused_pull(tmp_path: Path) -> None:
    checkout = Checkout(Server(tmp_path))
    for name in ("staged.txt", "changed.txt"):
        (checkout.pushed / name).write_text("as it was\n")
        checkout.git("add", name, cwd=checkout.pushed)
    checkout.push(APP.format("one") + "\n")
    checkout.git("pull", "--quiet", cwd=checkout.code)
    good = checkout.head()
    changes = {name: f"{name} of ann\n" for name in ("staged.txt", "changed.txt", "new.txt")}
    for name, text in changes.items():
        (checkout.code / name).write_text(text)
    checkout.git("add", "staged.txt", cwd=checkout.code)
    with RunningManager(checkout.server.config, checkout.server.control):
        checkout.push("import absent_library\n")
        assert checkout.pull()[0] == 1
        assert checkout.head() == good
        assert {name: (checkout.code / name).read_text() for name in changes} == changes

        (checkout.code / "app.py").write_text("changed by ann\n")
        code, said = checkout.pull()  # which would have to write over it
        assert code == 1
        assert said.endswith("pull-shop: nothing was reloaded\n")
        assert checkout.lies_there() == "changed by ann\n"
        checkout.git("commit", "--quiet", "--all", "--message=only here", cwd=checkout.code)
        mine = checkout.head()
        code, said = checkout.pull()
        assert (code, checkout.head()) == (1, mine)  # git pull cannot bring the two together
        assert said.endswith("pull-shop: nothing was reloaded\n")


def test_a_commit_that_is_nowhere_else_is_left_where_it_is(tmp_path: Path) -> None:
    checkout = Checkout(Server(tmp_path))
    with RunningManager(checkout.server.config, checkout.server.control):
        assert checkout.pull()[0] == 0
        good = checkout.head()
        (checkout.code / "app.py").write_text("import absent_library\n")
        checkout.git("commit", "--quiet", "--all", "--message=only here", cwd=checkout.code)
        mine = checkout.head()
        code, said = checkout.pull()
        assert (code, checkout.head()) == (1, mine)
        assert said.endswith(f"pull-shop: {mine} is not pushed, and stays: {good} serves on\n")


def test_two_who_pull_at_once_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    checkout = Checkout(Server(tmp_path))
    with RunningManager(checkout.server.config, checkout.server.control), ThreadPoolExecutor(1) as other:
        checkout.push(WAITS + APP.format("two"))
        first = other.submit(checkout.pull)
        eventually(lambda: "while" in checkout.lies_there())
        code, said = checkout.pull()
        assert (code, said) == (1, "pull-shop: somebody else is at it\n")
        (checkout.code / "go").touch()
        assert first.result(60)[0] == 0
        assert checkout.serves() == b"two"


def test_new_code_that_serves_is_not_put_back_because_an_old_request_was_lost(tmp_path: Path) -> None:
    checkout = Checkout(Server(tmp_path))
    checkout.push(HANGS)
    checkout.git("pull", "--quiet", cwd=checkout.code)
    with checkout.server.config.open("a") as config:
        config.write("stopwaitsecs = 1\nreload_watch = 0\n")
    with RunningManager(checkout.server.config, checkout.server.control), ThreadPoolExecutor(1) as clients:
        hung = clients.submit(checkout.serves)
        eventually((checkout.code / "hangs").exists)
        checkout.push(APP.format("two"))
        code, said = checkout.pull()
        assert (code, said) == (
            1,
            "shop: reloaded: generation 2 serves, but 1 connection of generation 1 lost: see the log\n"
            f"pull-shop: {checkout.head()} stays, for it serves or may yet: fcgimgr status shop\n",
        )
        assert checkout.lies_there() == APP.format("two")
        assert checkout.serves() == b"two"
        assert hung.exception() is not None


def test_new_code_that_is_still_to_serve_is_not_put_back_because_the_command_was_cut_off(tmp_path: Path) -> None:
    checkout = Checkout(Server(tmp_path))
    with RunningManager(checkout.server.config, checkout.server.control):
        checkout.server.cut_reloads_off()
        checkout.push(WAITS + APP.format("two"))
        code, said = checkout.pull()
        stays = f"pull-shop: {checkout.head()} stays, for it serves or may yet: fcgimgr status shop\n"
        assert (code, said) == (1, f"shop: reloading\n{stays}")
        assert checkout.lies_there() == WAITS + APP.format("two")
        code, said = checkout.pull()
        assert (code, said) == (1, "pull-shop: no manager, or a reload is under way\n")
        (checkout.code / "go").touch()
        eventually(lambda: checkout.serves() == b"two")


@pytest.mark.parametrize("preload", [False, True])
def test_a_failed_reload_tells_what_the_code_that_lies_there_does_to_who_dies(tmp_path: Path, preload: bool) -> None:
    (tmp_path / "app.py").write_text(APP.format("one"))
    pool = (
        '[pool.shop]\nsocket = "%(here)s/s"\nwsgi = "app:app"\ndirectory = "%(here)s"\nstartretries = 0\nnumprocs = 2\n'
    )
    with managing(scene(tmp_path, pool + f"preload = {str(preload).lower()}\n")) as manager:
        (tmp_path / "app.py").write_text("import absent_library\n")
        (verdict,) = manager.command("reload", ReloadParams(names=("shop",))).processes
        assert not verdict.ok
        assert ("die from now on start with that code too" in (verdict.advice or "")) is not preload
        before = manager.pids("shop")
        kill(before[0])
        if preload:
            eventually(lambda: len(manager.pids("shop")) == 2 and manager.pids("shop") != before)
        else:
            eventually(lambda: manager.pool("shop").state == "DEGRADED" and "FATAL" in manager.output())
