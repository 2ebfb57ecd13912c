"""A pool whose processes are all busy while connections wait says so, once, and once more when that is over."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from fcgimgr.control.client import Client
from fcgimgr.control.messages import Event, Events, EventsParams
from fcgimgr.core.saturation import LASTS
from tests.integration.commands import Done, Manager, running
from tests.integration.ports import free_address
from tests.integration.running import RunningManager
from tests.integration.scenes import ANSWER, Child, ask, managing, scene
from tests.integration.succession import PYTHON
from tests.integration.test_hung import all_hang, asked, pool, queued
from tests.integration.test_idle import rests
from tests.waiting import eventually


def told(manager: RunningManager) -> list[Event]:
    with Client(str(manager.control)) as client:
        happened = client.call("events", EventsParams(names=("app",), n=1000), answer=Events).events
    return [event for event in happened if event.kind == "load"]


def hang(manager: Manager, address: str, waiting: int) -> list[socket.socket]:
    hung = all_hang(manager, address)
    hung += [asked(address, "/") for _ in range(waiting)]
    eventually(lambda: queued(manager) == waiting)
    return hung


def strict(manager: Manager) -> Done:
    return manager("probe", "ready", "--strict")


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_it_is_told_once_and_its_end_once(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with running(tmp_path, pool(tmp_path, address, "numprocs = 2")) as manager:
        connections = hang(manager, address, waiting=3)
        assert not told(manager)
        eventually(lambda: told(manager), within=LASTS + 10)
        saturated = "for 5 s connections have been waiting at every look, 3 now: all 2 processes are busy"
        assert f"warning app: {saturated}\n" in manager.output()
        assert manager.pool("app").saturated_for is not None
        assert "  saturated for " in manager("status").succeeds()
        assert strict(manager).out.startswith("app is saturated: for ")
        assert strict(manager).code == 1
        manager("probe", "ready").succeeds()

        (tmp_path / "free").touch()
        for connection in connections:
            connection.close()
        eventually(lambda: len(told(manager)) == 2, within=LASTS + 10)
        begun, over = told(manager)
        assert (begun.to_state, begun.detail) == ("SATURATED", saturated)
        assert over.to_state == "EASED"
        assert (over.detail or "").startswith("no connection waits any more, after ")
        assert manager.output().count("connections have been waiting") == 1
        assert manager.pool("app").saturated_for is None
        assert strict(manager).succeeds() == "app is RUNNING\n"


def test_who_stops_a_saturated_pool_ends_that(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with running(tmp_path, pool(tmp_path, address, "stopwaitsecs = 0.5")) as manager:
        connections = hang(manager, address, waiting=1)
        eventually(lambda: told(manager), within=LASTS + 10)
        manager("stop", "app").succeeds()
        eventually(lambda: [event.to_state for event in told(manager)] == ["SATURATED", "EASED"])
        for connection in connections:
            connection.close()


def test_clients_wake_the_manager_twice_a_second_at_most_and_nobody_never(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    tables = f'''
        [pool.app]
        socket = "{address}"
        command = "{PYTHON} %(here)s/answer.py"
        ready = "startsecs"
        startsecs = 0.1
    '''
    with managing(scene(tmp_path, tables)) as manager:
        itself = Child(manager.pid)
        eventually(lambda: rests(itself, 1.5))
        began, before = time.monotonic(), int(itself.status["voluntary_ctxt_switches"])
        for _ in range(200):
            ask(address)
        eventually(lambda: rests(itself, 1.5))  # the last one who came has been looked at
        woken = int(itself.status["voluntary_ctxt_switches"]) - before
        assert 2 <= woken <= 2 * (time.monotonic() - began) + 2


SHUT = """\
import os, signal, socket
listener = socket.socket(fileno=0)
signal.signal(signal.SIGUSR1, lambda *_: listener.shutdown(int(os.environ["HOW"])))
while True:
    signal.pause()
"""


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR], ids=["for reading", "altogether"])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_listener_that_a_process_has_shut_down_is_told_and_wakes_nobody(
    transport: str, how: int, tmp_path: Path
) -> None:
    address = free_address(transport, tmp_path)
    (tmp_path / "shut.py").write_text(SHUT)
    tables = f'''
        [pool.app]
        socket = "{address}"
        command = "{PYTHON} %(here)s/shut.py"
        environment = {{ HOW = "{how}" }}
        ready = "startsecs"
        startsecs = 0.1
    '''
    with managing(scene(tmp_path, tables)) as manager:
        itself = Child(manager.pid)
        eventually(lambda: rests(itself, 1.5))
        os.kill(manager.pids("app")[0], signal.SIGUSR1)
        eventually(lambda: "was shut down by a process" in manager.output())
        eventually(lambda: rests(itself, 1.5))
        assert "connections have been waiting" not in manager.output()
        assert manager.pool("app").saturated_for is None

        assert manager.halt("app").ok  # what it is told to do is of use
        (tmp_path / "shut.py").write_text(ANSWER)
        assert manager.start("app").ok
        assert ask(address)["pid"] == manager.pids("app")[0]
        assert manager.output().count("was shut down by a process") == 1
