"""Code that serves and then dies: the one before takes the traffic back, and nothing that could be served is lost.

Those that die are killed, or die on word of the test. `startsecs` says how long the generation before is held.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.backends import front
from tests.integration.commands import Manager, configuration, running, words
from tests.integration.load import Load
from tests.integration.ports import free_address
from tests.integration.running import RunningManager
from tests.integration.scenes import are_gone, kill
from tests.integration.succession import PYTHON
from tests.integration.test_reload import deploy, deployed
from tests.integration.test_stop_during_reload import HOLD, answered_by, asked
from tests.waiting import eventually

# Ready by its own word; it never accepts, and ends when the file is there.
LATER = """\
#!/bin/sh
exec python -S -E -c '
import os, socket, sys, time
print("missing setting", file=sys.stderr, flush=True)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while not os.path.exists("die"):
    time.sleep(0.02)
sys.exit(3)
'
"""


@pytest.mark.parametrize("transports", [["tcp"], ["unix"], ["tcp", "unix", "tcp"]], ids=",".join)
def test_what_waits_for_code_that_dies_later_is_served_by_the_one_before(transports: list[str], tmp_path: Path) -> None:
    addresses = [free_address(transport, tmp_path) for transport in transports]
    keys = ["startsecs = 60", "reload_watch = 60", "stopwaitsecs = 60"]
    if len(addresses) > 1:
        keys.append('socket_pass = "env"')
    table = deployed(tmp_path, addresses, *keys).replace("reload_timeout = 4", "reload_timeout = 60")
    with (
        running(tmp_path, table) as manager,
        front(tmp_path, "go", *addresses) as nginx,
        Load(nginx.port, paths=[f"/{number}" for number in range(len(addresses))]) as load,
    ):
        pids = manager.pids("app")
        deploy(tmp_path, LATER)
        config = configuration(tmp_path, table.replace('ready = "ping"', 'ready = "notify"'))
        manager("update").succeeds()  # of the key alone: no process is touched
        reload = subprocess.Popen(words("-c", config, "reload", "app"), stdout=subprocess.PIPE)
        eventually(lambda: manager.pool("app").generation == 2, within=60)
        eventually(lambda: any(socket.queued for socket in manager.status(detail=True).pools[0].sockets))
        (tmp_path / "die").touch()
        said, _ = reload.communicate(timeout=60)
        assert reload.returncode == 1
        assert b"app: failed: app:app_0" in said
        assert b", within reload_watch; generation 1 serves again" in said
        assert b"missing setting" in said
        load.goes_on()
        assert "generation 2 was discarded: app:app_0" in manager("status", "app").out
        eventually(lambda: manager.pids("app") == pids)  # nothing is left of it
    assert load.failures == []
    assert {answer.generation for answer in load.answers} == {1}
    assert not list(tmp_path.glob("*.new"))


@contextmanager
def held(directory: Path, transport: str, *keys: str, numprocs: int = 2) -> Iterator[tuple[Manager, str, set[int]]]:
    """A pool whose processes answer with their pid, and hold a request that says so; its first processes."""
    (directory / "hold.py").write_text(HOLD)
    os.mkfifo(directory / "let-go")
    address = free_address(transport, directory)
    more = "".join(f"{key}\n" for key in keys)
    command = f'command = "{PYTHON} hold.py"\ndirectory = "%(here)s"\nnumprocs = {numprocs}\nready = "startsecs"\n'
    config = configuration(directory, f'[pool.app]\nsocket = "{address}"\n{command}stopwaitsecs = 60\n{more}')
    with Manager(config, directory / "fcgimgr.sock") as manager:
        yield manager, address, set(manager.pids("app"))


def new_ones(manager: RunningManager, old: set[int]) -> set[int]:
    """The processes of the generation that serves, which are not the old ones."""
    pool = manager.pool("app")
    return {
        process.pid
        for process in pool.processes
        if process.pid is not None and process.generation == pool.generation and process.state == "RUNNING"
    } - old


def switched(manager: Manager, old: set[int], *arguments: str) -> set[int]:
    """The processes of the new generation, which serves from now on."""
    manager("reload", "--no-wait", "app", *arguments).succeeds()
    return eventually(lambda: len(new := new_ones(manager, old)) == len(old) and new) or set()


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_one_that_drains_serves_again(transport: str, tmp_path: Path) -> None:
    with held(tmp_path, transport, "startsecs = 0", "reload_watch = 60") as (manager, address, old):
        with asked(address, b"hold") as waiting:
            eventually((tmp_path / "holding").exists)
            new = switched(manager, old)
            kill(*new)
            eventually(lambda: manager.pool("app").generation == 1)
            eventually(lambda: manager.pool("app").state == "RUNNING")
            (tmp_path / "let-go").write_text("now\n")
            assert int(waiting.recv(100)) in old
        eventually(lambda: len(manager.pool("app").processes) == 2)
        assert answered_by(address) in manager.pids("app")
        assert len(manager.pids("app")) == 2
        assert "reloaded" in manager("reload", "app").succeeds()


def test_a_pool_that_lost_less_than_half_stays_with_the_new_code(tmp_path: Path) -> None:
    with held(tmp_path, "tcp", "startsecs = 2", "reload_watch = 60", numprocs=3) as (manager, address, old):
        new = switched(manager, old)
        kill(min(new))
        eventually(lambda: min(new) not in manager.pids("app"))
        assert are_gone(*old)
        eventually(lambda: manager.pool("app").state == "RUNNING")
        assert manager.pool("app").generation == 2
        assert answered_by(address) in manager.pids("app")


# Never accepts, and ends when the file is there.
ENDS = """
import os, sys, time
while not os.path.exists("die"):
    time.sleep(0.01)
sys.exit(3)
"""


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_one_whose_last_process_stays_dead_is_watched_too(transport: str, tmp_path: Path) -> None:
    """With the last process that is wanted its listener is closed: that is no reason to refuse clients."""
    keys = ["startsecs = 1", "reload_watch = 60", "autorestart = false"]
    with held(tmp_path, transport, *keys, numprocs=1) as (manager, address, old):
        (tmp_path / "hold.py").write_text(ENDS)
        switched(manager, old)
        with asked(address) as waiting:
            eventually(lambda: any(socket.queued for socket in manager.status(detail=True).pools[0].sockets))
            (tmp_path / "die").touch()
            assert int(waiting.recv(100)) in old
        assert answered_by(address) in old
        assert manager.pool("app").generation == 1


def test_reload_watch_can_be_switched_off(tmp_path: Path) -> None:
    with held(tmp_path, "tcp", "startsecs = 1", "reload_watch = 0") as (manager, address, old):
        with asked(address, b"hold") as waiting:
            eventually((tmp_path / "holding").exists)
            kill(*switched(manager, old))
            eventually(lambda: len(new_ones(manager, old)) == 2)
            (tmp_path / "let-go").write_text("now\n")
            assert int(waiting.recv(100)) in old
        assert are_gone(*old)
        assert manager.pool("app").generation == 2


def test_a_canary_that_was_promoted_is_watched_too(tmp_path: Path) -> None:
    with held(tmp_path, "tcp", "startsecs = 2", "reload_watch = 60") as (manager, address, old):
        manager("reload", "--canary", "50%", "app").succeeds()
        promotion = subprocess.Popen(words("-c", manager.config, "reload", "--promote", "app"), stdout=subprocess.PIPE)
        eventually(lambda: manager.pool("app").generation == 2)
        kill(*new_ones(manager, old))
        said, _ = promotion.communicate(timeout=60)
        assert promotion.returncode == 1
        assert b"generation 1 serves again" in said
        assert answered_by(address) in old
        assert set(manager.pids("app")) == old


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_is_watched_is_taken_for_good_when_the_pool_stops_or_the_manager_is_killed(
    end: str, transport: str, tmp_path: Path
) -> None:
    with held(tmp_path, transport, "startsecs = 5", "reload_watch = 60") as (manager, address, old):
        new = switched(manager, old)
        if end == "stop":
            manager("stop", "app").succeeds()
            assert are_gone(*old, *new)
            manager("start", "app").succeeds()
            return
        assert "a reload or canary is under way" in manager("upgrade").fails(1)
        manager.kill()
        manager.begin()
        eventually(manager.is_up)
        assert are_gone(*old)
        assert set(manager.pids("app")) == new
        assert answered_by(address) in new
        kill(*new)
        eventually(lambda: len(new_ones(manager, new)) == 2)
        assert answered_by(address) in manager.pids("app")
        assert manager.pool("app").generation == 2
        assert not list(tmp_path.glob("*.new"))
