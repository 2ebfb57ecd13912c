"""Processes are replaced for their age, their memory, the requests they have served, or one that takes too long: one
at a time, behind a stand-in, and no client notices."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.integration.backends import front, pool
from tests.integration.commands import Manager, running
from tests.integration.load import Load
from tests.integration.ports import free_address
from tests.integration.running import RunningManager
from tests.integration.scenes import is_alive, managing, scene
from tests.integration.succession import killed, next_one
from tests.integration.test_scoreboard import Pool, process, servers
from tests.integration.test_upgrade import upgrade
from tests.waiting import eventually

transports = pytest.mark.parametrize("transport", ["tcp", "unix"])

# `info app:app_00: STOPPING`, `info app:app_00: recycling: …`
CHANGE = re.compile(r"(app_0\d): (recycling|RUNNING|STOPPING|STOPPED)")


@contextmanager
def under_load(directory: Path, backend: str, transport: str, *keys: str) -> Iterator[tuple[Manager, Load]]:
    """A pool of three with steady load on it, none of which may be lost."""
    address = free_address(transport, directory)
    with (
        # On a busy machine one that is recycled twice a second is hardly ever up together with all others.
        running(directory, pool(directory, backend, address, *keys), ready=False) as manager,
        front(directory, backend, address) as nginx,
    ):
        eventually(lambda: {"app_00", "app_01", "app_02"} <= ready_ones(manager), within=30)
        with Load(nginx.port, paths=["/0"]) as load:
            yield manager, load
            load.goes_on()
    assert load.failures == []


def ready_ones(manager: RunningManager) -> set[str]:
    """The names of the processes that have become ready since the start."""
    return {name for name, what in CHANGE.findall(manager.output()) if what == "RUNNING"}


def recycled(manager: RunningManager) -> list[str]:
    """The names of the processes that were, in their order."""
    return [name for name, what in CHANGE.findall(manager.output()) if what == "recycling"]


def most_at_once(manager: RunningManager) -> int:
    """How many of the three were down at the same time, at most."""
    down: set[str] = set()
    most = 0
    for name, what in CHANGE.findall(manager.output()):
        if name == "app_03":
            continue
        if what == "STOPPING":
            down.add(name)
        elif what == "RUNNING":
            down.discard(name)
        most = max(most, len(down))
    return most


@transports
@pytest.mark.parametrize(
    ("backend", "keys"),
    [
        ("wsgi", ("max_requests = 20", "max_requests_jitter = 10")),
        ("wsgi", ("max_lifetime = 0.5",)),
        ("wsgi", ("max_requests = 20", "max_requests_jitter = 10", 'server = "native"')),
        ("wsgi", ("max_requests = 20", "max_requests_jitter = 10", "preload = true")),
        # One thread each. (The Go runtime catches SIGTERM, and its other threads may accept one more before it ends.)
        ("php", ("max_lifetime = 0.5",)),
        ("c", ("max_lifetime = 0.5",)),
    ],
)
def test_under_load_through_nginx_no_request_is_lost(
    backend: str, keys: tuple[str, ...], transport: str, tmp_path: Path
) -> None:
    with under_load(tmp_path, backend, transport, *keys) as (manager, load):
        # On a busy machine the first are gone before there is any load.
        eventually(lambda: len(recycled(manager)) >= 7 and len({answer.pid for answer in load.answers}) > 7, within=60)
        assert set(recycled(manager)) == {"app_00", "app_01", "app_02"}
        assert most_at_once(manager) == 1
        log = manager.output()
        assert "warning" not in log
        assert "EXITED" not in log


@transports
def test_a_pool_of_one_goes_on_serving_and_its_name_stays(transport: str, tmp_path: Path) -> None:
    """Also where the name holds no number, so that the stand-in must have another."""
    address = free_address(transport, tmp_path)
    keys = 'process_name = "app"\nmax_lifetime = 0.5'
    table = pool(tmp_path, "wsgi", address, keys, numprocs=1)
    with (
        running(tmp_path, table) as manager,
        front(tmp_path, "wsgi", address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        eventually(lambda: manager.output().count("app:app: recycling") >= 3, within=30)
        assert manager.pool("app").processes[0].name == "app"
        assert "app:app-1: RUNNING" in manager.output()
        load.goes_on()
    assert load.failures == []


def test_a_process_that_uses_too_much_memory_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "grow")
    # As large as that from the start, it would not be recycled for it: it grows when it is told to.
    grow = 'import time; open("grow").read(); x = bytes(1) * 80_000_000; time.sleep(1000)'
    (tmp_path / "hungry.py").write_text(grow)
    hungry = f"{sys.executable} -S -E {tmp_path}/hungry.py"
    tables = f'[program.app]\ncommand = "{hungry}"\ndirectory = "{tmp_path}"\nstartsecs = 0.1\nmax_rss = "60MB"\n'
    tables += '[program.modest]\ncommand = "sleep 1000"\nstartsecs = 0.1\nmax_rss = "60MB"\n'
    with managing(scene(tmp_path, tables)) as manager:
        (pid,) = manager.pids("app")
        (modest,) = manager.pids("modest")
        (tmp_path / "grow").write_text("now")
        eventually(lambda: manager.pids("app") not in ([], [pid]), within=30)
        assert not is_alive(pid)
        assert manager.pids("modest") == [modest]
        assert re.search(r"app:app_00: recycling: it uses \d+\.\d MB, above max_rss \(60 MB\)", manager.output())


@pytest.mark.parametrize("how", ["as it is", "after an upgrade"])
def test_a_limit_below_what_a_new_process_uses_recycles_nobody(how: str, tmp_path: Path) -> None:
    pool = Pool(tmp_path, 'max_rss = "5MB"')
    with managing(pool.config) as manager:
        before = manager.pids("app")
        if how == "after an upgrade":
            upgrade(manager).succeeds()
        eventually(lambda: re.search(r"app: a new process already uses \d+\.\d MB: raise max_rss", manager.output()))
        assert manager.pids("app") == before
        assert "recycling" not in manager.output()


def test_a_program_asks_for_its_replacement(tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text(
        "import os, socket, time\n"
        "if not os.path.exists('asked'):\n"
        "    open('asked', 'w').close()\n"
        "    time.sleep(0.3)\n"
        "    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:\n"
        "        manager.sendto(b'X_RECYCLE=my cache\\x1b has grown', os.environ['NOTIFY_SOCKET'])\n"
        "time.sleep(1000)\n"
    )
    command = f'command = "{sys.executable} -S -E ask.py"\ndirectory = "%(here)s"\nstartsecs = 0.1\n'
    with managing(scene(tmp_path, f"[program.app]\n{command}")) as manager:
        eventually(lambda: manager.pool("app").processes[0].restarts == 1)
        eventually(manager.all_running)
        assert "app:app_00: recycling: my cache\\x1b has grown" in manager.output()


def test_another_lifetime_holds_at_once_for_those_that_run(tmp_path: Path) -> None:
    config = scene(tmp_path, '[program.app]\ncommand = "sleep 1000"\nstartsecs = 0\n')
    with managing(config) as manager:
        (pid,) = manager.pids("app")
        config.write_text(config.read_text() + "max_lifetime = 0.1\n")
        with_update = Manager(config, manager.control)
        assert "no process is touched" in with_update("update").succeeds()
        eventually(lambda: manager.pids("app") not in ([], [pid]))
        assert "recycling: max_lifetime (0.1 s) is over" in manager.output()


@pytest.mark.parametrize("how", ["upgrade", "kill"])
def test_what_one_manager_has_begun_the_next_one_ends(how: str, tmp_path: Path) -> None:
    pool = Pool(tmp_path, "max_requests = 1", "threads = 2", "stopwaitsecs = 30")
    with killed(pool.config) as first:
        (pid,) = first.pids("app")
        with pool.holding("/long"):
            assert pool.ask("/pid").result().status == 200
            eventually(lambda: [p.state for p in first.pool("app").processes] == ["STOPPING", "RUNNING"])
            if how == "upgrade":
                upgrade(first).succeeds()
            else:
                first.kill()
            with next_one(first, ready=False) if how == "kill" else nullcontext(first) as second:
                assert second.pool("app").processes[0].pid == pid
                assert pool.ask("/pid").result().status == 200  # by the stand-in
                pool.release()
                eventually(lambda: [p.state for p in second.pool("app").processes] == ["RUNNING"], within=30)
                assert second.pids("app") != [pid]


@servers
def test_a_request_that_takes_longer_than_stopwaitsecs_is_not_lost(server: str, tmp_path: Path) -> None:
    pool = Pool(tmp_path, "max_requests = 1", "threads = 4", "stopwaitsecs = 0.1", f'server = "{server}"')
    with managing(pool.config) as manager:
        (pid,) = manager.pids("app")
        with pool.holding("/long"):
            assert pool.ask("/pid").result().status == 200
            eventually(lambda: process(manager).state == "STOPPING")
            eventually(lambda: process(manager).current[0].seconds > 2.5, within=30)
            assert process(manager).pid == pid
            assert pool.ask("/pid").result().status == 200  # by the stand-in
        eventually(lambda: [p.state for p in manager.pool("app").processes] == ["RUNNING"], within=30)
        assert manager.pids("app") != [pid]
        assert "SIGKILL" not in manager.output()


def test_a_stop_does_not_wait_for_what_recycling_waits_for(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "max_requests = 1", "threads = 4", "stopwaitsecs = 0.1")
    with managing(pool.config) as manager:
        request = pool.hold("/long")
        assert pool.ask("/pid").result().status == 200
        eventually(lambda: process(manager).state == "STOPPING")
        Manager(pool.config, manager.control)("stop", "app").succeeds()
        assert request.exception(timeout=10) is not None
        for fifo in pool.held():
            fifo.unlink()


def test_a_pool_that_grows_while_one_is_recycled_has_as_many_as_are_asked_for(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "numprocs = 1", "max_requests = 1", "threads = 4")
    with managing(pool.config) as manager:
        with pool.holding("/long"):
            assert pool.ask("/pid").result().status == 200
            eventually(lambda: process(manager).state == "STOPPING")
            answer = Manager(pool.config, manager.control)("scale", "app", "2").succeeds()
            assert "app_01: started" in answer
            grown = manager.pool("app")
            assert [p.state for p in grown.processes] == ["STOPPING", "RUNNING", "RUNNING"]
            assert grown.state == "RUNNING"
        eventually(lambda: [p.state for p in manager.pool("app").processes] == ["RUNNING"] * 2, within=30)


def test_a_request_timeout_holds_for_what_a_recycled_process_has_in_hand(tmp_path: Path) -> None:
    keys = ("max_requests = 1", "threads = 4", "stopwaitsecs = 0.1", "request_timeout = 2")
    pool = Pool(tmp_path, *keys)
    with managing(pool.config) as manager:
        (pid,) = manager.pids("app")
        request = pool.hold("/long")
        assert pool.ask("/pid").result().status == 200
        eventually(lambda: process(manager).state == "STOPPING")
        eventually(lambda: [p.state for p in manager.pool("app").processes] == ["RUNNING"], within=30)
        assert request.exception(timeout=10) is not None
        log = manager.output()
        assert re.search(r"GET /long has taken 2\.\d s .*pid=" + str(pid), log)
        assert "in answer_hold" in log
        for fifo in pool.held():
            fifo.unlink()


# -- requests that take too long --------------------------------------------------------------------------------------


@servers
@pytest.mark.parametrize(("path", "where"), [("/hold", "answer_hold"), ("/stuck", "answer_stuck")])
def test_a_stuck_request_is_logged_with_its_traceback_and_its_process_replaced(
    path: str, where: str, server: str, tmp_path: Path
) -> None:
    pool = Pool(tmp_path, "request_timeout = 0.5", "stopwaitsecs = 0.5", f'server = "{server}"')
    with managing(pool.config) as manager:
        (pid,) = manager.pids("app")
        request = pool.ask(path, REQUEST_URI=f"{path}?the=culprit")
        eventually(lambda: manager.pids("app") not in ([], [pid]), within=30)
        eventually(lambda: "killed by SIGKILL" in manager.output(), within=30)
        assert request.exception(timeout=10) is not None
        log = manager.output()
        assert f"GET {path}?the=culprit has taken " in log
        assert "request_timeout is 0.5 s" in log
        assert re.search(rf"killed by SIGKILL after .* s, as it had not stopped, with GET {path}.* pid={pid}", log)
        assert re.search(rf'File "{tmp_path}/worker_app.py", line \d+ in {where}', log)
        thread = re.search(r"thread=(0x\w+)", log)
        assert thread is not None
        assert re.search(rf"[Tt]hread {thread[1]}", log)
        assert pool.ask("/pid").result().status == 200
        for fifo in pool.held():
            fifo.unlink()


def test_requests_beside_the_stuck_one_are_finished(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "threads = 2", "request_timeout = 1", "stopwaitsecs = 20")
    with managing(pool.config) as manager:
        stuck = pool.hold("/stuck")
        (fifo,) = pool.held()
        eventually(lambda: process(manager).current[0].seconds > 0.5)
        fine = pool.hold("/fine")
        eventually(lambda: process(manager).state == "STOPPING", within=30)
        pool.release()
        assert (stuck.result().status, fine.result().status) == (200, 200)
        eventually(manager.all_running)
        assert not fifo.exists()


@pytest.mark.parametrize("whose", ["a child", "adopted"])
def test_a_request_that_is_killed_is_logged_once(whose: str, tmp_path: Path) -> None:
    """How an adopted process ends, its manager need not hear."""
    pool = Pool(tmp_path, "request_timeout = 2", "stopwaitsecs = 0.5")
    with killed(pool.config) as first:
        (pid,) = first.pids("app")
        request = pool.hold("/doomed")
        if whose == "adopted":
            first.kill()
        with next_one(first) if whose == "adopted" else nullcontext(first) as manager:
            eventually(lambda: manager.pids("app") not in ([], [pid]) and not is_alive(pid), within=30)
            eventually(lambda: [p.state for p in manager.pool("app").processes] == ["RUNNING"], within=30)
            lines = [line for line in manager.output().splitlines() if "killed by SIGKILL" in line]
            assert len(lines) == 1
            assert re.search(rf"after .* s, as it had not stopped, with GET /doomed in hand for .* pid={pid}", lines[0])
            assert request.exception(timeout=10) is not None
            for fifo in pool.held():
                fifo.unlink()


def test_a_process_with_nothing_else_in_hand_is_not_waited_for(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "threads = 4", "request_timeout = 0.5", "stopwaitsecs = 600")
    with managing(pool.config) as manager:
        (pid,) = manager.pids("app")
        request = pool.hold("/stuck")
        eventually(lambda: manager.pids("app") not in ([], [pid]) and not is_alive(pid), within=30)
        assert request.exception(timeout=10) is not None
        for fifo in pool.held():
            fifo.unlink()


def test_with_a_request_stuck_in_each_process_the_pool_has_all_its_processes(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "numprocs = 2", "threads = 2", "request_timeout = 2", "stopwaitsecs = 600")
    with managing(pool.config) as manager:
        for _ in range(3):  # in one process there is room for one more then
            pool.hold("/stuck")
        workers = manager.pids("app")
        eventually(lambda: max(oldest(manager)) > 1)
        fine = pool.hold("/fine")
        eventually(lambda: sum(map(is_alive, workers)) == 1, within=30)  # the one in which both were stuck
        eventually(lambda: (manager.pool("app").state, len(manager.pids("app"))) == ("RUNNING", 2), within=30)
        assert set(manager.pids("app")).isdisjoint(workers)
        assert pool.ask("/pid").result().status == 200
        for fifo in pool.held():
            if not is_alive(int(fifo.name.split("-")[1])):
                fifo.unlink()
        pool.release()
        assert fine.result().status == 200
        eventually(lambda: [p.state for p in manager.pool("app").processes] == ["RUNNING"] * 2, within=30)


def oldest(manager: RunningManager) -> list[float]:
    """Seconds that the oldest request of each process has taken."""
    return [p.current[0].seconds for p in manager.status(detail=True).pools[0].processes if p.current]


def test_a_timeout_that_comes_by_an_update_or_over_an_upgrade_counts(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "stopwaitsecs = 0.5")
    with managing(pool.config) as manager:
        (pid,) = manager.pids("app")
        request = pool.hold("/long")
        pool.config.write_text(pool.config.read_text() + "request_timeout = 2\n")
        assert "no process is touched" in Manager(pool.config, manager.control)("update").succeeds()
        upgrade(manager).succeeds()
        eventually(lambda: manager.pids("app") not in ([], [pid]), within=30)
        assert "GET /long has taken" in manager.output()
        assert request.exception(timeout=10) is not None
        for fifo in pool.held():
            fifo.unlink()


def test_a_quick_pool_is_left_alone(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "request_timeout = 0.3", 'max_rss = "1GB"', "max_requests = 1000", "max_lifetime = 1000")
    with managing(pool.config) as manager:
        before = manager.pids("app")
        for _ in range(50):
            assert pool.ask("/pid").result().status == 200
        assert manager.pids("app") == before
        assert "recycling" not in manager.output()
