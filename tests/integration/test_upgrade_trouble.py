"""An upgrade when not all is as it should be: what can go wrong is found before, or survived."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fcgimgr.control.client import Client
from fcgimgr.control.messages import Drained, DrainParams, NamesParams, Probed, ProbeParams, Verdict
from tests.integration.commands import lines_of
from tests.integration.ports import connect, free_address
from tests.integration.scenes import Child, are_gone, managing, scene
from tests.integration.servers import CHECKOUT
from tests.integration.succession import PYTHON, Load, killed, next_one, pool, served_by, write
from tests.integration.test_upgrade import pong, upgrade
from tests.waiting import eventually

# Shuts the listener down on the first connection: for all who share it.
SHUTS_DOWN = """
import socket, sys, time
listener = socket.socket(fileno=0)
connection, _ = listener.accept()
connection.sendall(b"1")
listener.shutdown(socket.SHUT_RDWR)
connection.close()
time.sleep(1000)
"""


@contextlib.contextmanager
def in_an_environment_of_its_own(directory: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """A virtualenv whose code can be changed: its directory, and what to give to `managing`."""
    home = directory / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin/python").symlink_to(os.path.realpath(sys.executable))
    (home / "pyvenv.cfg").write_text(f"home = {Path(os.path.realpath(sys.executable)).parent}\n")
    shutil.copytree(CHECKOUT / "fcgimgr", home / "fcgimgr", ignore=shutil.ignore_patterns("__pycache__"))
    site = Path(msgspec.__file__).parent.parent
    # The first of the words that follow is the interpreter that runs the tests: another takes its place.
    prefix = ["env", "-C", str(home), "sh", "-c", 'shift; exec "$PYTHON_HERE" "$@"', "sh"]
    environment = {"PYTHONPATH": f"{home}:{site}", "PYTHON_HERE": str(home / "bin/python")}
    yield home, {"prefix": prefix, "environment": environment}


# -- the exec itself fails --------------------------------------------------------------------------------------------


def test_when_the_exec_fails_the_old_code_goes_on_as_before(tmp_path: Path) -> None:
    """The interpreter vanishes in the moment between the trial and the exec."""
    address = free_address("tcp", tmp_path)
    with in_an_environment_of_its_own(tmp_path) as (home, place):
        config = write(tmp_path, pool(address, "numprocs = 2"))
        with managing(config, **place) as manager:
            pids, fds = manager.pids("app"), Child(manager.pid).fds
            start = home / "fcgimgr/manager/start.py"
            good = start.read_text()
            python, aside = home / "bin/python", home / "bin/aside"
            said = "    os.write(1, upgrading.GOOD)\n"
            start.write_text(good.replace(said, f"    os.rename({str(python)!r}, {str(aside)!r})\n{said}"))
            with Load(address) as load:
                with Client(str(manager.control)) as client:
                    client.call("upgrade", None, answer=dict, patient=True)
                eventually(lambda: "upgrade: cannot execute" in manager.output())
                eventually(lambda: pong(manager).upgrades == 0)
                assert "the old code goes on" in manager.output()
                # Nothing is held off any more, and nothing leaks into a child.
                assert int(Child(manager.pid).status["SigBlk"], 16) == 0
                eventually(lambda: len(Child(manager.pid).fds) <= len(fds))
                before = Child(pids[0]).fds.keys()
                assert manager.scale("app", "+1").ok
                assert Child(manager.pids("app")[2]).fds.keys() == before
                os.kill(manager.pid, signal.SIGUSR1)
                eventually(lambda: "reopened" in manager.output())
                start.write_text(good)
                os.rename(aside, python)
                upgrade(manager).succeeds()
                assert manager.pids("app")[:2] == pids
                load.stop()
            assert load.failures == []


# -- what workers have done -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["upgrade", "kill"])
def test_a_listener_that_a_worker_has_shut_down_is_its_own_pools_trouble(way: str, tmp_path: Path) -> None:
    bad, good = free_address("tcp", tmp_path), free_address("unix", tmp_path)
    (tmp_path / "shuts.py").write_text(SHUTS_DOWN)
    tables = pool(bad).replace("pool.app", "pool.bad").replace("serve.py", "shuts.py") + pool(good)
    with killed(write(tmp_path, tables)) as manager:
        (old,), pids = manager.pids("bad"), manager.pids("app")
        assert served_by(bad) == 1
        eventually(lambda: is_refused(bad))
        if way == "upgrade":
            upgrade(manager).succeeds()
        else:
            manager.kill()
            manager = next_one(manager).__enter__()
        assert manager.pids("app") == pids
        assert served_by(good) in pids
        eventually(lambda: manager.pids("bad") not in ([], [old]) and manager.all_running())
        assert served_by(bad) == 1  # It has a socket again.
        manager.stop()


def is_refused(address: str) -> bool:
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    return False


# -- sockets that are passed ------------------------------------------------------------------------------------------


def test_what_was_not_passed_is_no_obstacle(tmp_path: Path) -> None:
    """The number is that of a descriptor of the manager's own, and is not taken for more."""
    tables = pool(free_address("tcp", tmp_path)) + pool("fd:7").replace("pool.app", "pool.passed")
    with managing(write(tmp_path, tables), ready=False) as manager:
        eventually(lambda: manager.pool("passed").state == "FATAL" and manager.pids("app"))
        assert "fd:7: nothing was passed to the manager under this number" in manager.output()
        upgrade(manager).succeeds()
        assert not manager.start("passed").ok
        assert manager.output().count("error passed: fd:7: nothing was passed") == 2


def test_what_was_passed_is_there_after_it_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        address = f"127.0.0.1:{given.getsockname()[1]}"
        with managing(write(tmp_path, pool(f"fd:{given.fileno()}")), inherit=[given.fileno()]) as manager:
            pids = manager.pids("app")
            upgrade(manager).succeeds()
            assert served_by(address) == pids[0]
            assert manager.halt("app").ok
            upgrade(manager).succeeds()
            assert manager.start("app").ok
            assert served_by(address) in manager.pids("app")


# -- in the midst of other things -------------------------------------------------------------------------------------


def test_a_manager_that_drains_drains_on(tmp_path: Path) -> None:
    def probe() -> Probed:
        with Client(str(manager.control)) as client:
            return client.call("probe", ProbeParams(kind="ready"), answer=Probed)

    def drain(*, undo: bool) -> None:
        with Client(str(manager.control)) as client:
            assert client.call("drain", DrainParams(undo=undo, wait=False), answer=Drained).ok

    with managing(write(tmp_path, pool(free_address("tcp", tmp_path)))) as manager:
        drain(undo=False)
        upgrade(manager).succeeds()
        assert manager.status().manager.state == "DRAINING"
        assert not probe().ok
        assert "asked over the control socket" in probe().reason
        drain(undo=True)
        upgrade(manager).succeeds()
        assert probe().ok


def test_a_term_in_the_midst_of_it_is_heeded(tmp_path: Path) -> None:
    """With a drain_delay: the new code would not know of it, were the old one to go over all the same."""
    config = write(tmp_path, pool(free_address("tcp", tmp_path)), manager="drain_delay = 1")
    with managing(config) as manager:
        asked = subprocess.Popen(
            [sys.executable, "-m", "fcgimgr", "-s", str(manager.control), "upgrade"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            eventually(lambda: "asked to upgrade" in manager.output(), every=0.001)
            os.kill(manager.pid, signal.SIGTERM)
            assert manager.wait() == 0
        finally:
            asked.terminate()
            asked.wait()


def test_what_is_stopping_or_retiring_goes_on(tmp_path: Path) -> None:
    """A deadline comes, and who has a request in hand is let go only when it is answered."""
    late = """
        import os, signal, socket
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open("let-go") as line:
            line.readline()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
        signal.pause()
    """
    holds = """
        import socket, time
        listener = socket.socket(fileno=0)
        connection, _ = listener.accept()
        connection.recv(100)
        open("in-hand", "w").close()
        with open("answer") as line:
            line.readline()
        connection.sendall(b"answered")
        connection.close()
        time.sleep(1000)
    """
    for name, text in (("late.py", late), ("holds.py", holds)):
        (tmp_path / name).write_text("\n".join(line[8:] for line in text.splitlines()))
    os.mkfifo(tmp_path / "let-go")
    os.mkfifo(tmp_path / "answer")
    address = free_address("tcp", tmp_path)
    keys = f'directory = "%(here)s"\nstartsecs = 0\ncommand = "{PYTHON}'
    tables = f"""
[program.late]
ready = "notify"
stopwaitsecs = 2
{keys} late.py"
[pool.busy]
socket = "{address}"
stopwaitsecs = 600
{keys} holds.py"
"""
    with managing(scene(tmp_path, tables), ready=False) as manager:
        eventually(lambda: manager.pids("busy"))
        with Client(str(manager.control)) as client, connect(address) as connection:
            connection.sendall(b"x")
            eventually((tmp_path / "in-hand").exists)
            (busy,) = manager.pids("busy")
            (tmp_path / "let-go").write_text("go\n")
            eventually(lambda: manager.status().manager.state == "RUNNING")
            (late_one,) = manager.pids("late")
            client.call("stop", NamesParams(names=("late:late_00",), wait=False), answer=Verdict)
            client.call("stop", NamesParams(names=("busy:busy_00",), wait=False), answer=Verdict)
            eventually(lambda: manager.pool("busy").processes[0].state == "STOPPING")
            done = upgrade(manager)
            done.succeeds()
            assert manager.pool("busy").processes[0].pid == busy
            assert are_gone(late_one)  # SIGKILL at its deadline
            assert Child(busy).stat[0] == "S"
            (tmp_path / "answer").write_text("now\n")
            assert connection.recv(100) == b"answered"
            eventually(lambda: manager.pool("busy").processes[0].state == "STOPPED")
            assert are_gone(busy)


def test_what_is_not_there_any_more_is_not_needed(tmp_path: Path) -> None:
    """The working directory, and the directory of the log: neither would be accepted at a start."""
    (tmp_path / "work").mkdir()
    (tmp_path / "logs").mkdir()
    keys = 'directory = "%(here)s/work"\nlogfile = "%(here)s/logs/manager.log"'
    with managing(write(tmp_path, pool(free_address("tcp", tmp_path)), manager=keys)) as manager:
        pids = manager.pids("app")
        eventually(lambda: lines_of(tmp_path / "logs/manager.log"))
        shutil.rmtree(tmp_path / "work")
        shutil.rmtree(tmp_path / "logs")
        upgrade(manager).succeeds()
        assert manager.pids("app") == pids


def test_who_follows_the_events_is_told(tmp_path: Path) -> None:
    with managing(write(tmp_path, pool(free_address("tcp", tmp_path)))) as manager:
        words = [sys.executable, "-m", "fcgimgr", "-s", str(manager.control), "events", "-f"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as following:
            assert following.stdout is not None
            following.stdout.readline()
            upgrade(manager).succeeds()
            said = following.stdout.read()
        assert "RUNNING -> UPGRADING" in said
        assert "hung up, but runs on" in said
