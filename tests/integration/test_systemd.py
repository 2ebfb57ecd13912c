"""The manager as a service: what a supervisor at the other end of $NOTIFY_SOCKET hears, word by word and in order.

The stand-in for systemd is a real datagram socket, and the kernel tells it who has sent each message.
"""

import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from fcgimgr.control.messages import ReloadParams
from tests.integration.commands import Manager, configuration, fcgimgr
from tests.integration.ports import free_port
from tests.integration.running import MARK, end_strays
from tests.integration.scenes import Child, fails
from tests.integration.test_idle import rests, switches
from tests.waiting import eventually

PYTHON = f"{sys.executable} -S -E"

# Is ready when the test writes into let-go.
LATE = """\
import os, signal, socket
with open("let-go") as line:
    line.readline()
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""
# A command that does not accept, and is ready all the same.
SILENT = 'command = "sleep 1000"\nready = "startsecs"\nstartsecs = 0'
SLEEPERS = '[program.sleeper]\ncommand = "sleep 1000"\nstartsecs = 0\nnumprocs = 2\n'


def pool(name: str, **keys: object) -> str:
    lines = [f'[pool.{name}]\nsocket = "127.0.0.1:{free_port()}"\n{SILENT}']
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in keys.items())]) + "\n"


@dataclass
class Message:
    """What was said: its assignments, who said it, and when it arrived (seconds, monotonic)."""

    said: dict[str, str]
    pid: int
    at: float


@dataclass
class Supervisor:
    """The other end of $NOTIFY_SOCKET."""

    path: str
    messages: list[Message] = field(default_factory=list)

    def heard(self, key: str) -> list[str]:
        """The values of all assignments to this variable, in their order."""
        return [message.said[key] for message in self.messages if key in message.said]

    @property
    def status(self) -> str:
        """The line that `systemctl status` would show."""
        return (self.heard("STATUS") or [""])[-1]

    @property
    def turns(self) -> list[str]:
        """READY, RELOADING and STOPPING in the order in which they came."""
        words = ("READY", "RELOADING", "STOPPING")
        return [word for message in self.messages for word in words if message.said.get(word) == "1"]

    def come(self, *turns: str) -> bool:
        """Wait until these and no others have come."""
        return eventually(lambda: self.turns == list(turns))


@contextmanager
def listening(path: Path, *, begin: Callable[[], object] = lambda: None) -> Iterator[Supervisor]:
    """A supervisor that reads what it is told, but nothing before `begin` has returned."""
    supervisor = Supervisor(str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.bind(str(path))

        def listen() -> None:
            begin()
            while True:
                text, ancillary, _, _ = receiver.recvmsg(65536, socket.CMSG_SPACE(12))
                if text == b"end":
                    return
                ((_, _, credentials),) = ancillary
                pid = struct.unpack("iII", credentials)[0]
                said = dict(line.partition("=")[::2] for line in text.decode().split("\n"))
                supervisor.messages.append(Message(said, pid, time.monotonic()))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield supervisor
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"end", str(path))
            thread.join()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with listening(tmp_path / "notify") as supervisor:
        yield supervisor


def serving(supervisor: Supervisor, directory: Path, text: str, *, ready: bool = True, **environment: str) -> Manager:
    """A manager to be started as systemd starts a service of Type=notify."""
    config = configuration(directory, text)
    more = {"NOTIFY_SOCKET": supervisor.path, **environment}
    return Manager(config, directory / "fcgimgr.sock", environment=more, ready=ready)


# -- the start --------------------------------------------------------------------------------------------------------


def test_ready_is_said_when_all_is_up_and_not_before(supervisor: Supervisor, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "let-go")
    (tmp_path / "late.py").write_text(LATE)
    late = f"""\
[program.late]
command = "{PYTHON} late.py"
directory = "%(here)s"
ready = "notify"
"""
    with serving(supervisor, tmp_path, pool("app", numprocs=2) + late, ready=False) as manager:
        eventually(lambda: supervisor.status == "starting: 1 pool, 1 program, 2 of 3 processes running")
        assert supervisor.turns == []
        (tmp_path / "let-go").write_text("now\n")
        supervisor.come("READY")
        assert manager("status").code == 0
        assert supervisor.status == "1 pool, 1 program, 3 of 3 processes running"
        assert {message.pid for message in supervisor.messages} == {manager.pid}
        assert supervisor.heard("MAINPID") == []


def test_a_start_that_goes_on_is_given_time_beyond_systemds_limit(supervisor: Supervisor, tmp_path: Path) -> None:
    text = '[program.slow]\ncommand = "sleep 1000"\nready = "notify"\nready_timeout = 300\n'
    with serving(supervisor, tmp_path, text, ready=False):
        eventually(lambda: supervisor.heard("EXTEND_TIMEOUT_USEC"))
        assert int(supervisor.heard("EXTEND_TIMEOUT_USEC")[0]) > 300_000_000


def test_nothing_that_could_be_started_is_no_readiness(supervisor: Supervisor, tmp_path: Path) -> None:
    config = configuration(tmp_path, '[program.bad]\ncommand = "false"\nstartretries = 0\n')
    code, _ = fails(config, environment={"NOTIFY_SOCKET": supervisor.path})
    assert code == 1
    supervisor.come("STOPPING")


def test_a_daemon_says_that_it_is_the_service_now(supervisor: Supervisor, tmp_path: Path) -> None:
    mark = "notify-daemon"
    config = configuration(tmp_path, 'logfile = "%(here)s/own.log"\n' + SLEEPERS)
    environment = os.environ | {"NOTIFY_SOCKET": supervisor.path, MARK: mark}
    try:
        fcgimgr("-c", config, "run", "--daemon", env=environment).succeeds()
        pid = fcgimgr("-c", config, "ping").succeeds().split()[-1]
        # The starter ends only after both have been sent: systemd knows whom to watch before its own child is gone.
        supervisor.come("READY")
        assert supervisor.heard("MAINPID") == [pid]
        assert supervisor.messages[0].said == {"MAINPID": pid}
        assert {message.pid for message in supervisor.messages} == {int(pid)}
        fcgimgr("-c", config, "shutdown").succeeds()
        supervisor.come("READY", "STOPPING")
    finally:
        end_strays(mark)


def test_no_child_hears_of_the_managers_own_supervisor(supervisor: Supervisor, tmp_path: Path) -> None:
    with serving(supervisor, tmp_path, SLEEPERS, WATCHDOG_USEC="10000000") as manager:
        environ = Child(manager.pids("sleeper")[0]).environ
        assert environ["NOTIFY_SOCKET"] != supervisor.path
        assert "WATCHDOG_USEC" not in environ


@pytest.mark.parametrize(("key", "value"), [("WATCHDOG_USEC", "soon"), ("NOTIFY_SOCKET", "vsock:2:1")])
def test_what_makes_no_sense_is_refused(key: str, value: str, supervisor: Supervisor, tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": supervisor.path, key: value}
    code, said = fails(configuration(tmp_path, SLEEPERS), environment=environment)
    assert code == 1
    assert f"{key}: '{value}'" in said


# -- the status -------------------------------------------------------------------------------------------------------


def test_the_status_follows_the_processes_and_is_said_once(supervisor: Supervisor, tmp_path: Path) -> None:
    text = pool("app", numprocs=6) + pool("shop", numprocs=2)
    with serving(supervisor, tmp_path, text) as manager:
        full = "2 pools, 8 of 8 processes running"
        eventually(lambda: supervisor.status == full)
        manager("stop", "shop:shop_01").succeeds()
        eventually(lambda: supervisor.status == "2 pools, 7 of 8 processes running; shop is DEGRADED")
        manager("start", "shop").succeeds()
        eventually(lambda: supervisor.status == full)
        manager("stop", "shop").succeeds()
        eventually(lambda: supervisor.status == "2 pools, 6 of 6 processes running")
        statuses = [message.said["STATUS"] for message in supervisor.messages if set(message.said) == {"STATUS"}]
        assert all(one != other for one, other in pairwise(statuses))
    eventually(lambda: supervisor.status == "stopping: 0 processes left")


def test_a_thousand_changes_in_one_turn_of_the_loop_are_one_message(supervisor: Supervisor, tmp_path: Path) -> None:
    with serving(supervisor, tmp_path, '[program.many]\ncommand = "sleep 1000"\nnumprocs = 100\nstartsecs = 0\n'):
        eventually(lambda: supervisor.status == "1 program, 100 of 100 processes running")
        assert len(supervisor.messages) < 50


def test_a_job_that_is_done_is_not_missed(supervisor: Supervisor, tmp_path: Path) -> None:
    once = '[program.once]\ncommand = "true"\nstartsecs = 0\nautorestart = false\n'
    with serving(supervisor, tmp_path, once + SLEEPERS, ready=False):
        eventually(lambda: supervisor.status == "2 programs, 2 of 2 processes running")


# -- reload -----------------------------------------------------------------------------------------------------------


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_hup_is_a_reload_from_its_beginning_to_its_end(supervisor: Supervisor, tmp_path: Path) -> None:
    text = pool("app", numprocs=2)
    with serving(supervisor, tmp_path, text) as manager:
        supervisor.come("READY")
        configuration(
            tmp_path, text.replace("numprocs = 2", "numprocs = 3\nstartsecs = 0.3").replace("\nstartsecs = 0\n", "\n")
        )
        before = now()
        os.kill(manager.pid, signal.SIGHUP)
        supervisor.come("READY", "RELOADING", "READY")
        assert before <= int(supervisor.heard("MONOTONIC_USEC")[0]) <= now()
        assert len(manager.pids("app")) == 3, "READY again only when all is done"
        began, over = [m for m in supervisor.messages if "RELOADING" in m.said or "READY" in m.said][1:]
        assert began.said["STATUS"] == "reloading: 1 pool, 2 of 2 processes running"
        assert over.said["STATUS"] == "1 pool, 3 of 3 processes running"


@pytest.mark.parametrize("change", ["nothing", "broken"])
def test_hup_ends_in_ready_whatever_comes_of_it(change: str, supervisor: Supervisor, tmp_path: Path) -> None:
    with serving(supervisor, tmp_path, SLEEPERS) as manager:
        supervisor.come("READY")
        if change == "broken":
            configuration(tmp_path, "bogus = 1\n" + SLEEPERS)
        os.kill(manager.pid, signal.SIGHUP)
        supervisor.come("READY", "RELOADING", "READY")


def test_update_and_reload_all_are_reloads_and_a_reload_of_one_is_not(supervisor: Supervisor, tmp_path: Path) -> None:
    with serving(supervisor, tmp_path, pool("app") + SLEEPERS) as manager:
        supervisor.come("READY")
        manager("reload", "app").succeeds()
        manager("update", "--dry-run").succeeds()
        assert supervisor.turns == ["READY"]
        manager("update").succeeds()
        supervisor.come("READY", *["RELOADING", "READY"])
        manager("reload", "all").succeeds()
        supervisor.come("READY", *["RELOADING", "READY"] * 2)
        before = set(manager.pids("app") + manager.pids("sleeper"))
        os.kill(manager.pid, signal.SIGUSR2)
        supervisor.come("READY", *["RELOADING", "READY"] * 3)
        assert not before & set(manager.pids("app") + manager.pids("sleeper"))


def test_after_an_upgrade_it_is_the_same_service(supervisor: Supervisor, tmp_path: Path) -> None:
    """The same main process, and reloads are told as before: systemctl waits for RELOADING and READY."""
    with serving(supervisor, tmp_path, SLEEPERS) as manager:
        supervisor.come("READY")
        pid = supervisor.messages[-1].pid
        manager("upgrade").succeeds()
        supervisor.come("READY", "READY")
        os.kill(pid, signal.SIGHUP)
        supervisor.come("READY", "READY", "RELOADING", "READY")
        assert {message.pid for message in supervisor.messages} == {pid}
        assert supervisor.heard("MAINPID") == []
        assert supervisor.status == "1 program, 2 of 2 processes running"
    supervisor.come("READY", "READY", "RELOADING", "READY", "STOPPING")


def test_two_reloads_at_once_are_over_when_both_are(supervisor: Supervisor, tmp_path: Path) -> None:
    text = pool("app") + '[program.slow]\ncommand = "sleep 1000"\nstartsecs = 0.5\n'
    with serving(supervisor, tmp_path, text) as manager:
        supervisor.come("READY")
        slow = threading.Thread(target=lambda: manager.command("reload", ReloadParams(names=("all",))))
        slow.start()
        supervisor.come("READY", "RELOADING")
        os.kill(manager.pid, signal.SIGHUP)
        slow.join()
        supervisor.come("READY", "RELOADING", "RELOADING", "READY")


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        ("", []),
        ("shutdown_timeout = 100", ["110000000"]),
        ("shutdown_timeout = 60\ndrain_delay = 0.2", []),
        ("shutdown_timeout = 90\ndrain_delay = 0.2", ["100200000"]),
    ],
)
def test_stopping_is_said_and_time_asked_for_where_systemds_own_is_too_short(
    keys: str, asked: list[str], supervisor: Supervisor, tmp_path: Path
) -> None:
    with serving(supervisor, tmp_path, f"{keys}\n{SLEEPERS}") as manager:
        supervisor.come("READY")
        already = len(supervisor.heard("EXTEND_TIMEOUT_USEC"))
        manager.stop()
        supervisor.come("READY", "STOPPING")
        after = supervisor.heard("EXTEND_TIMEOUT_USEC")[already:]
        assert [round(int(time), -4) for time in after] == [int(time) for time in asked]


def test_no_reload_is_announced_once_the_end_is_decided(supervisor: Supervisor, tmp_path: Path) -> None:
    with serving(supervisor, tmp_path, f"drain_delay = 1000\n{SLEEPERS}") as manager:
        supervisor.come("READY")
        os.kill(manager.pid, signal.SIGTERM)
        supervisor.come("READY", "STOPPING")
        eventually(lambda: supervisor.status == "draining: 1 program, 2 of 2 processes running")
        os.kill(manager.pid, signal.SIGHUP)
        os.kill(manager.pid, signal.SIGUSR2)
        assert "is stopping" in manager("update").fails(1)
        assert "is stopping" in manager("reload", "all").fails(1)
        assert supervisor.turns == ["READY", "STOPPING"]


# -- the watchdog, and peace ------------------------------------------------------------------------------------------


def test_the_watchdog_hears_of_life_at_half_its_time(supervisor: Supervisor, tmp_path: Path) -> None:
    def signs() -> list[float]:
        return [message.at for message in supervisor.messages if message.said == {"WATCHDOG": "1"}]

    with serving(supervisor, tmp_path, SLEEPERS, WATCHDOG_USEC="400000"):
        eventually(lambda: len(signs()) >= 8)
        gaps = sorted(later - earlier for earlier, later in pairwise(signs()))
        assert 0.15 < gaps[len(gaps) // 2] < 0.3


def test_without_a_watchdog_an_idle_manager_sleeps(supervisor: Supervisor, tmp_path: Path) -> None:
    with serving(supervisor, tmp_path, pool("app") + SLEEPERS) as manager:
        supervisor.come("READY")
        itself = Child(manager.pid)
        # Our last question's connection has to be gone, and nobody may be young any more.
        eventually(lambda: rests(itself, 1.0), within=30)
        before, told = switches(itself), len(supervisor.messages)
        time.sleep(2)  # a time and not a condition: that nothing happens is what is promised
        assert (switches(itself), len(supervisor.messages)) == (before, told)


def test_what_must_arrive_arrives_also_when_the_socket_was_full(tmp_path: Path) -> None:
    read_on = threading.Event()
    with listening(tmp_path / "notify", begin=read_on.wait) as supervisor:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other:
            fill(other, supervisor.path)
            try:
                with serving(supervisor, tmp_path, SLEEPERS) as manager:
                    assert manager("status").code == 0, "nobody waits for the supervisor"
                    read_on.set()
                    supervisor.come("READY")
            finally:
                read_on.set()
        supervisor.come("READY", "STOPPING")


def fill(sender: socket.socket, path: str) -> None:
    """Send until no more goes in."""
    try:
        while True:
            sender.sendto(b"STATUS=filler", path)
    except BlockingIOError:
        return


def test_a_supervisor_that_is_gone_is_no_trouble(tmp_path: Path) -> None:
    supervisor = Supervisor(str(tmp_path / "nobody"))
    with serving(supervisor, tmp_path, SLEEPERS, WATCHDOG_USEC="10000000") as manager:
        manager("probe", "ready").succeeds()
        eventually(lambda: "takes no message" in manager.output(), within=30)
