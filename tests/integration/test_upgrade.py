"""`fcgimgr upgrade`: newer code in the same process, with the same children and sockets, and no request is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from fcgimgr.control.client import Client
from fcgimgr.control.messages import ControlError, NamesParams, Pong, TailParams
from fcgimgr.linux import procfs
from tests.integration.commands import Done, lines_of
from tests.integration.ports import connect, free_address
from tests.integration.running import RunningManager
from tests.integration.scenes import Child, kill, managing, ordinary_user, scene
from tests.integration.servers import CHECKOUT
from tests.integration.succession import Load, killed, next_one, pool, reload, speaking, write
from tests.integration.test_supervision import replaced
from tests.rights import as_root
from tests.waiting import eventually

TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "unix"])


def upgrade(manager: RunningManager) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "fcgimgr", "-s", str(manager.control), "upgrade"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def pong(manager: RunningManager) -> Pong:
    with Client(str(manager.control)) as client:
        return client.call("ping", None, answer=Pong)


# -- the promise ------------------------------------------------------------------------------------------------------


@TRANSPORTS
@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_an_upgrade_under_load_loses_no_request_and_forgets_nothing(user: str, transport: str, tmp_path: Path) -> None:
    directory, prefix = tmp_path, list[str]()
    ordinary = ordinary_user()
    if user == "ordinary":
        directory, prefix = ordinary.__enter__()
    try:
        address = free_address(transport, directory)
        with managing(write(directory, pool(address, "numprocs = 3")), prefix=prefix) as manager:
            itself, children = Child(manager.pid), Child(manager.pid)
            kill(manager.pids("app")[1])
            eventually(lambda: manager.pool("app").processes[1].restarts == 1 and manager.all_running())
            before, started, fds = manager.pool("app").processes, manager.status().manager.uptime, len(itself.fds)
            with Load(address) as load:
                for number in (1, 2, 3):
                    upgrade(manager).succeeds()
                    assert pong(manager).upgrades == number
                    assert pong(manager).pid == manager.pid
                    after = manager.pool("app").processes
                    assert [process.pid for process in after] == [process.pid for process in before]
                    assert [process.restarts for process in after] == [0, 1, 0]
                assert manager.status().manager.uptime > started
                eventually(lambda: len(itself.fds) <= fds)
                eventually(lambda: sorted(children.children) == sorted(manager.pids("app")))
                # All goes on as it was: a reload, a scale, a death that is replaced.
                assert reload(manager).ok
                load.stop()
            assert load.failures == []
            assert manager.scale("app", "+1").ok
            dead = manager.pids("app")[0]
            kill(dead)
            replaced(manager, "app", dead, number=4)
        assert not (directory / "pool.sock").exists()
        assert not (directory / "pool.control").exists()
        assert not (directory / "pool.control.state").exists()
    finally:
        if user == "ordinary":
            ordinary.__exit__(None, None, None)


def test_back_off_and_what_was_given_up_go_on(tmp_path: Path) -> None:
    tables = """
        [program.good]
        command = "sleep 1000"
        startsecs = 0
        [program.stopped]
        command = "sleep 1000"
        startsecs = 0
        [program.bad]
        command = "false"
        startretries = -1
        backoff_initial = 600
        backoff_max = 600
        [program.fatal]
        command = "false"
        startretries = 0
    """
    with managing(scene(tmp_path, tables), ready=False) as manager:
        assert manager.halt("stopped").ok
        eventually(lambda: manager.pool("bad").processes[0].state == "BACKOFF")
        eventually(lambda: manager.pool("fatal").state == "FATAL")
        eventually(lambda: manager.status().manager.state == "RUNNING")
        upgrade(manager).succeeds()
        states = {one.name: one.processes[0].state for one in manager.status().pools}
        assert states == {"good": "RUNNING", "stopped": "STOPPED", "bad": "BACKOFF", "fatal": "FATAL"}


def test_no_line_of_a_log_is_torn_or_lost(tmp_path: Path) -> None:
    speaker = "import os\nfor word in open('say'):\n    os.write(1, word.strip().replace('|', '\\n').encode())\n"
    with managing(speaking(tmp_path, speaker)) as manager, (tmp_path / "say").open("w", buffering=1) as say:
        say.write("one|tw\n")
        eventually(lambda: lines_of(tmp_path / "out.log") == ["one"])
        upgrade(manager).succeeds()
        say.write("o|three|\n")
        eventually(lambda: lines_of(tmp_path / "out.log") == ["one", "two", "three"])
        with Client(str(manager.control)) as client:
            assert "two" in str(client.call("tail", TailParams(name="app:app_00"), answer=dict))


def test_a_signal_that_comes_during_the_upgrade_is_heeded(tmp_path: Path) -> None:
    with managing(write(tmp_path, pool(free_address("tcp", tmp_path)))) as manager:
        end = time.monotonic() + 20
        asked = subprocess.Popen(
            [sys.executable, "-m", "fcgimgr", "-s", str(manager.control), "upgrade"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        # HUP and USR1 only: a manager between two codes that did not hold them off would die of them.
        while asked.poll() is None and time.monotonic() < end:
            os.kill(manager.pid, signal.SIGUSR1)
            time.sleep(0.001)
        asked.communicate()
        assert asked.returncode == 0
        assert pong(manager).upgrades == 1


# Answers each connection when two words have come.
PATIENT = """\
import socket
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1), connection.recv(1)
        connection.sendall(b"here you are")
"""


def test_one_that_is_to_end_and_was_left_stopped_goes_on(tmp_path: Path) -> None:
    (tmp_path / "patient.py").write_text(PATIENT)
    address = free_address("tcp", tmp_path)
    tables = (
        f'[pool.app]\nsocket = "{address}"\ncommand = "python patient.py"\ndirectory = "%(here)s"\nstopwaitsecs = 60'
    )
    with managing(scene(tmp_path, tables)) as manager, closing(connect(address)) as client:
        (pid,) = manager.pids("app")
        client.sendall(b"1")
        eventually(lambda: len(procfs.sockets(pid) or ()) > 1)
        manager.command("restart", NamesParams(names=("app:app_00",), wait=False))
        eventually(lambda: manager.pids("app") != [pid])
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: procfs.state(pid) in ("T", "t"))
        upgrade(manager).succeeds()
        eventually(lambda: pong(manager).upgrades == 1)
        client.settimeout(10)
        client.sendall(b"2")
        assert client.recv(100) == b"here you are"


def test_it_can_be_killed_and_followed_afterwards(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with killed(write(tmp_path, pool(address, "numprocs = 2"))) as first:
        pids = first.pids("app")
        upgrade(first).succeeds()
        first.kill()
        with next_one(first) as second:
            assert second.pids("app") == pids
            upgrade(second).succeeds()  # Of processes that are not its children, too.
            assert second.pids("app") == pids
            kill(pids[0])
            replaced(second, "app", pids[0], number=2)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_code_that_cannot_start_is_found_before_and_the_old_goes_on(tmp_path: Path) -> None:
    """The installed package is broken under the running manager, as by a bad deployment."""
    installed = tmp_path / "installed"
    shutil.copytree(CHECKOUT / "fcgimgr", installed / "fcgimgr", ignore=shutil.ignore_patterns("__pycache__"))
    address = free_address("tcp", tmp_path)
    config = write(tmp_path, pool(address, "numprocs = 2"))
    # From a place where nothing but PYTHONPATH leads to a package of this name.
    prefix = ["env", "-C", str(tmp_path)]
    with managing(config, environment={"PYTHONPATH": str(installed)}, prefix=prefix) as manager:
        pids = manager.pids("app")
        state = installed / "fcgimgr" / "manager" / "succession" / "state.py"
        good = state.read_text()
        with Load(address) as load:
            older = good.replace("VERSION: Final = 1", "VERSION: Final = 0")
            # The version is the same, but what is in it is not.
            other = good.replace("    born: int | None = None", "    born: str | None = None")
            for broken in ("def broken(:\n", older, other):
                state.write_text(broken)
                done = upgrade(manager)
                assert done.code == 1
                assert "the installed code cannot take over" in done.out
                assert ("SyntaxError" in done.out) == broken.startswith("def")
                assert ("cannot be read: Expected `str | null`" in done.out) == (broken == other)
                assert pong(manager).upgrades == 0
                assert manager.pids("app") == pids
            state.write_text(good)
            upgrade(manager).succeeds()
            load.stop()
        assert load.failures == []
        assert manager.pids("app") == pids


def test_a_broken_configuration_is_found_before(tmp_path: Path) -> None:
    config = write(tmp_path, pool(free_address("tcp", tmp_path)))
    with managing(config) as manager:
        good = config.read_text()
        config.write_text(good + "numproc = 3\n")
        done = upgrade(manager)
        assert done.code == 1
        assert "did you mean numprocs" in done.out
        config.write_text(good)
        upgrade(manager).succeeds()


def test_it_is_refused_while_a_canary_is_out(tmp_path: Path) -> None:
    with managing(write(tmp_path, pool(free_address("tcp", tmp_path)))) as manager:
        assert reload(manager, canary=50.0).ok
        done = upgrade(manager)
        assert done.code == 1
        assert "a reload or canary is under way" in done.err
        assert reload(manager, action="promote").ok
        eventually(lambda: len(manager.pool("app").processes) == 1)
        upgrade(manager).succeeds()


def test_who_follows_a_log_is_hung_up_on(tmp_path: Path) -> None:
    with managing(write(tmp_path, pool(free_address("tcp", tmp_path)))) as manager:
        with Client(str(manager.control)) as client:
            upgrade(manager).succeeds()
            with pytest.raises((ControlError, OSError)):
                client.call("ping", None, answer=Pong)
        assert pong(manager).upgrades == 1


@as_root
def test_a_pidfile_stays_locked(tmp_path: Path) -> None:
    config = write(tmp_path, pool(free_address("tcp", tmp_path)), manager='pidfile = "%(here)s/pid"')
    with managing(config) as manager:
        upgrade(manager).succeeds()
        assert int((tmp_path / "pid").read_text()) == manager.pid
        other = scene(
            tmp_path, '[program.idle]\ncommand = "sleep 1000"\n', manager='pidfile = "%(here)s/pid"', name="other"
        )
        done = subprocess.run(
            [sys.executable, "-m", "fcgimgr", "-c", str(other)], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 1
        assert "already held" in done.stderr
    assert not (tmp_path / "pid").exists()
