"""The virtualenv that is active where the manager is started is the one of a pool that names no Python, for good."""

import venv
from pathlib import Path

import pytest

from fcgimgr.control.client import Client
from fcgimgr.control.messages import Updated, UpdateParams
from fcgimgr.fastcgi.client import fetch
from tests.integration.benches import parameters
from tests.integration.scenes import fails, managing, scene
from tests.integration.succession import killed, next_one, reload
from tests.integration.test_upgrade import upgrade
from tests.waiting import eventually

APP = """\
import only_there
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [only_there.place.encode()]
"""
POOL = '[pool.app]\nsocket = "%(here)s/s"\ndirectory = "%(here)s"\nwsgi = "app:application"\nserver = "native"\n'


@pytest.fixture
def active(tmp_path: Path) -> dict[str, str]:
    """What `activate` says, of a virtualenv that has what the application imports."""
    (tmp_path / "app.py").write_text(APP)
    home = tmp_path / "its-python"
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python3.*/site-packages")
    (packages / "only_there.py").write_text("place = __file__\n")
    return {"VIRTUAL_ENV": str(home)}


def served(directory: Path) -> str:
    return fetch(f"unix:{directory}/s", parameters("/"), timeout=20).body.decode()


def test_the_pool_runs_in_it_and_does_so_after_an_update_and_an_upgrade(tmp_path: Path, active: dict[str, str]) -> None:
    config, python = scene(tmp_path, POOL), f"{active['VIRTUAL_ENV']}/bin/python"
    with managing(config, environment=active) as manager:
        assert f"run in the virtualenv that is active here: {python}\n" in manager.output()
        assert served(tmp_path).startswith(active["VIRTUAL_ENV"])
        scene(tmp_path, POOL + 'umask = "027"\n')
        with Client(str(manager.control)) as client:
            assert client.call("update", UpdateParams(), answer=Updated, patient=True).ok
        assert manager.pool("app").generation == 2
        assert upgrade(manager).code == 0
        assert reload(manager).ok
        assert served(tmp_path).startswith(active["VIRTUAL_ENV"])


def test_a_manager_after_a_crash_that_finds_none_lets_the_old_processes_serve(
    tmp_path: Path, active: dict[str, str]
) -> None:
    with killed(scene(tmp_path, POOL), environment=active) as first:
        before = first.pids("app")
        first.kill()
        with next_one(first) as second:
            eventually(lambda: "after taking over: failed" in second.output())
            assert "has no module 'only_there'" in second.output()
            assert second.pids("app") == before
            assert reload(second).ok  # as they are, for the change was refused
            assert served(tmp_path).startswith(active["VIRTUAL_ENV"])


def test_one_that_is_gone_is_named_by_its_variable(tmp_path: Path) -> None:
    # As root it would not be taken: that nobody else can put it there is to be seen.
    home = tmp_path / "gone"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").mkdir()
    code, said = fails(scene(tmp_path, POOL), environment={"VIRTUAL_ENV": str(home)})
    assert code == 1
    assert f"python ($VIRTUAL_ENV) {home}/bin/python: {home}/bin/python is a directory" in said
