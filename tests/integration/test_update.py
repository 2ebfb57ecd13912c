"""From one configuration to another by the least that it takes, and whole or not at all."""

import os
import signal
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.backends import front, pool
from tests.integration.commands import Manager, configuration, running
from tests.integration.load import Load
from tests.integration.ports import connect, free_address
from tests.integration.running import strays
from tests.integration.scenes import NOBODY, are_gone, ask, scene
from tests.rights import as_root
from tests.waiting import eventually

SLEEPER = """\
[program.sleeper]
command = "sleep 1000"
startsecs = 0
"""


class Answering:
    """A pool of processes that say what they are to whoever connects, beside a program that nothing is done to.

    `now` writes the configuration anew with other keys; what `keys` says, `others` keep.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = free_address("unix", directory)
        self.keys = {
            "socket": f'"{self.address}"',
            "command": '"python -S -E answer.py"',
            "directory": '"%(here)s"',
            "numprocs": "2",
            "startsecs": "0.1",
        }
        scene(directory, "")  # for answer.py
        self.write()

    def write(self, name: str = "app", manager: str = "", more: str = SLEEPER, **keys: str) -> Path:
        table = "".join(f"{key} = {value}\n" for key, value in (self.keys | keys).items())
        return configuration(self.directory, f"{manager}\n[pool.{name}]\n{table}\n{more}")


@contextmanager
def answering(directory: Path) -> Iterator[tuple[Answering, Manager]]:
    """Such a pool under a manager. At the end nothing may have touched the sleeper."""
    app = Answering(directory)
    with Manager(app.write(), directory / "fcgimgr.sock") as manager:
        sleeper = manager.pids("sleeper")
        yield app, manager
        assert manager.pids("sleeper") == sleeper


# -- what is touched, and what is not ---------------------------------------------------------------------------------


def test_what_has_not_changed_is_not_touched(tmp_path: Path) -> None:
    with answering(tmp_path) as (_, manager):
        before = manager.pids("app")
        assert manager("update").succeeds() == "no pool or program has changed\n"
        assert manager.pids("app") == before


def test_more_processes_are_started_and_no_other_is_touched(tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        before = manager.pids("app")
        app.write(numprocs="4")
        assert manager("update").succeeds() == "app: updated: numprocs changed: scale\n"
        assert manager.pids("app")[:2] == before
        assert len(manager.pids("app")) == 4
        app.write(numprocs="1")
        manager("update").succeeds()
        eventually(lambda: manager.pids("app") == before[:1])
        assert len(manager.pool("app").processes) == 1


@as_root
def test_mode_owner_and_backlog_change_on_the_open_socket(tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        before, path = manager.pids("app"), Path(app.address.removeprefix("unix:"))
        inode = path.stat().st_ino
        app.write(socket_mode='"0600"', socket_owner='"nobody:nogroup"', socket_backlog="77")
        said = manager("update").succeeds()
        assert said == "app: updated: socket_backlog, socket_owner, socket_mode changed: change the socket\n"
        after = path.stat()
        assert (stat.S_IMODE(after.st_mode), after.st_uid, after.st_ino) == (0o600, NOBODY, inode)
        (shown,) = manager.status(detail=True).pools[0].sockets
        assert shown.backlog == 77
        assert manager.pids("app") == before


def test_what_only_the_manager_looks_at_touches_nobody(tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        before = manager.pids("app")
        app.write(startsecs="0.2", stopwaitsecs="3", priority="5", autorestart="false")
        said = manager("update").succeeds()
        assert said.endswith("changed: no process is touched\n")
        assert manager.pids("app") == before
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: manager.pool("app").processes[0].state == "EXITED")  # autorestart is known


@pytest.mark.parametrize(
    "changed",
    [{"command": '"python -S -E -B answer.py"'}, {"environment": '{ COLOUR = "blue" }'}, {"umask": '"077"'}],
    ids=["command", "environment", "umask"],
)
def test_what_a_process_is_started_with_takes_new_ones(changed: dict[str, str], tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        before = manager.pids("app")
        app.write(**changed, numprocs="3")
        said = manager("update").succeeds()
        assert said.startswith("app: reloaded: ")
        assert next(iter(changed)) in said
        are_gone(*before)
        assert len(manager.pids("app")) == 3
        assert manager.pool("app").generation == 2
        if "environment" in changed:
            assert ask(app.address)["environ"]["COLOUR"] == "blue"


def test_a_new_pool_is_started_and_one_that_is_gone_is_stopped(tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        before, second = manager.pids("app"), free_address("tcp", tmp_path)
        table = f'[pool.new]\nsocket = "{second}"\ncommand = "python -S -E answer.py"\ndirectory = "%(here)s"\n'
        app.write(more=SLEEPER + table)
        assert manager("update").succeeds() == "new: added\n"
        assert ask(second)["environ"]["FCGIMGR_POOL"] == "new"
        new = eventually(lambda: manager.pids("new"))
        app.write()
        assert manager("update").succeeds() == "new: removed\n"
        are_gone(*new)
        with pytest.raises(ConnectionRefusedError):
            connect(second)
        assert manager.pids("app") == before
        assert [pool.name for pool in manager.status().pools] == ["app", "sleeper"]


def test_a_renamed_pool_keeps_its_socket(tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        before = manager.pids("app")
        app.write(name="shop")
        assert manager("update").succeeds().startswith("shop: reloaded: ")
        are_gone(*before)
        assert {pool.name for pool in manager.status().pools} == {"shop", "sleeper"}
        assert ask(app.address)["environ"]["FCGIMGR_POOL"] == "shop"
        assert ask(app.address)["pid"] in manager.pids("shop")
        manager("reload", "shop").succeeds()


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_pool_moves_to_another_address(transport: str, tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        (tmp_path / "other").mkdir()
        address = free_address(transport, tmp_path / "other")
        app.write(socket=f'"{address}"')
        assert manager("update").succeeds().startswith("app: reloaded: socket changed")
        assert ask(address)["pid"] in manager.pids("app")
        with pytest.raises(FileNotFoundError):
            connect(app.address)


# -- whole or not at all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["update", "HUP"])
def test_of_a_broken_file_nothing_is_applied(how: str, tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        before = manager.pids("app")
        config = app.write(numprocs="4", sockte='"no"', startsecs='"soon"')
        if how == "update":
            complaint = manager("update").fails(2)
        else:
            os.kill(manager.pid, signal.SIGHUP)
            complaint = eventually(lambda: manager.output() if "sockte" in manager.output() else "")
        assert f"{config}: pool.app.sockte: " in complaint
        assert "pool.app.startsecs: " in complaint
        assert "nothing was applied" in complaint or how == "HUP"
        assert manager.pids("app") == before
        assert manager.pool("app").numprocs == 2
        app.write(numprocs="3")
        manager("update").succeeds()
        assert len(manager.pids("app")) == 3


def test_a_dry_run_only_tells(tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        before = manager.pids("app")
        app.write(numprocs="4", command='"python -S -E -B answer.py"', more="")
        said = manager("update", "--dry-run").succeeds()
        assert said.splitlines() == ["app: command, numprocs changed: reload and scale", "sleeper: removed"]
        assert manager.pids("app") == before
        app.write()


def test_the_broken_code_of_one_pool_fails_that_pool_alone(tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        before = manager.pids("app")
        second = '[program.second]\ncommand = "sleep 1000"\nstartsecs = 0\n'
        broken = '"python -S -E -c \'raise SystemExit(\\"no database\\")\'"'
        app.write(command=broken, startretries="0", more=SLEEPER + second)
        failed = manager("update")
        assert failed.code == 1
        assert "app: failed: app:app_0" in failed.out
        assert "the old processes serve on, with the old settings" in failed.out
        assert "no database" in failed.out
        assert "second: added" in failed.out
        assert manager.pids("app") == before
        assert len(eventually(lambda: manager.pids("second"))) == 1

        assert "app: command" in manager("update", "--dry-run").succeeds()
        app.write(command='"python -S -E -B answer.py"', startretries="0", more=SLEEPER + second)
        assert manager("update").succeeds().startswith("app: reloaded: ")
        assert ask(app.address)["pid"] in manager.pids("app")


def test_hup_does_the_same(tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        before = manager.pids("app")
        app.write(numprocs="3")
        os.kill(manager.pid, signal.SIGHUP)
        eventually(lambda: len(manager.pids("app")) == 3)
        assert manager.pids("app")[:2] == before
        app.write(numprocs="3", environment='{ COLOUR = "red" }')
        os.kill(manager.pid, signal.SIGHUP)
        eventually(lambda: manager.pool("app").generation == 2 and len(manager.pool("app").processes) == 3)
        assert ask(app.address)["environ"]["COLOUR"] == "red"


def test_settings_of_the_manager_that_need_a_restart_are_named(tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        app.write(manager='loglevel = "debug"\nminfds = 2000\nshutdown_timeout = 20')
        assert manager("update").succeeds().splitlines()[0] == (
            "manager.minfds: changed; it takes a restart of the manager"
        )
        assert manager("update", "--dry-run").succeeds().splitlines()[0].startswith("manager.minfds: ")


def test_what_is_strange_in_the_new_configuration_is_said_and_logged_once(tmp_path: Path) -> None:
    with answering(tmp_path) as (app, manager):
        for number in ("3", "4"):
            app.write(stopwaitsecs="60", numprocs=number)
            for words in (("update", "--dry-run"), ("update",)):
                done = manager(*words)
                assert done.succeeds()
                assert "warning: " in done.err
                assert "set shutdown_timeout in [manager] to 60 or more, too" in done.err
        assert manager.output().count("pool.app.stopwaitsecs: ") == 1
        app.write(stopwaitsecs="60", numprocs="4", manager="shutdown_timeout = 60")
        done = manager("update")
        said = "manager.shutdown_timeout: updated\nno pool or program has changed\n"
        assert (done.succeeds(), done.err) == (said, "")


def test_what_an_update_removes_nobody_starts_again(tmp_path: Path) -> None:
    """Whoever orders it while it is being stopped is told so, and no process is left that nobody knows."""
    address = free_address("unix", tmp_path)
    keys = 'command = "sh deaf.sh"\ndirectory = "%(here)s"\nready = "startsecs"\nstartsecs = 0\nstopwaitsecs = 2'
    (tmp_path / "deaf.sh").write_text('trap "" TERM\nwhile :; do sleep 0.05; done\n')
    with running(tmp_path, f'{SLEEPER}[pool.app]\nsocket = "{address}"\nnumprocs = 3\n{keys}\n') as manager:
        configuration(tmp_path, SLEEPER)
        with ThreadPoolExecutor() as others:
            update = others.submit(manager, "update")
            eventually(lambda: manager.pool("app").state == "STOPPING")
            restart = others.submit(manager, "restart", "app")
            assert update.result(20).succeeds()
            restart.result(20).fails(1)
        assert manager.output().count("app:app_00: spawned") == 1
        assert [pool.name for pool in manager.status().pools] == ["sleeper"]
        known = {manager.pid, *manager.pids("sleeper")}
        eventually(lambda: {int(stray.split()[0]) for stray in strays(manager.mark)} == known)


# -- under load -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_an_update_under_load_loses_no_request(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with (
        running(tmp_path, pool(tmp_path, "go", address)) as manager,
        front(tmp_path, "go", address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        changes = [
            pool(tmp_path, "go", address, numprocs=5),
            pool(tmp_path, "go", address, 'rlimit_core = "0"', numprocs=2),
            pool(tmp_path, "go", address, 'rlimit_core = "0"', "socket_backlog = 200", numprocs=3),
            pool(tmp_path, "go", address, "socket_backlog = 300", name="shop"),
        ]
        for change in changes:
            configuration(tmp_path, change)
            manager("update").succeeds()
            load.goes_on(30)
    assert load.failures == []
