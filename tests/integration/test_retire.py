"""One process goes, or all of them, and nothing that was accepted is lost, though the program dies at once on TERM."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic

import pytest

from fcgimgr.fastcgi.client import Response, fetch
from tests.integration.backends import front, pool
from tests.integration.commands import Manager, configuration, running, words
from tests.integration.load import Load
from tests.integration.ports import connect, free_address
from tests.integration.scenes import are_gone, is_alive
from tests.waiting import eventually

transports = pytest.mark.parametrize("transport", ["tcp", "unix"])


@contextmanager
def under_load(
    directory: Path, backend: str, transport: str, *keys: str, numprocs: int = 3
) -> Iterator[tuple[Manager, Load]]:
    """A pool of this kind with steady load on it, none of which may be lost."""
    address = free_address(transport, directory)
    with (
        running(directory, pool(directory, backend, address)) as manager,
        front(directory, backend, address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        yield manager, load
        load.goes_on()
    assert load.failures == []


@transports
@pytest.mark.parametrize("backend", ["go", "c"])
def test_scaling_down_under_load_loses_no_request(backend: str, transport: str, tmp_path: Path) -> None:
    with under_load(tmp_path, backend, transport) as (manager, load):
        for numprocs in (4, 2, 3):
            manager("scale", "app", str(numprocs)).succeeds()
            load.goes_on(20)
            assert len(manager.pids("app")) == numprocs
            assert len(manager.pool("app").processes) == numprocs


@transports
def test_the_stop_of_one_process_loses_no_request(transport: str, tmp_path: Path) -> None:
    with under_load(tmp_path, "go", transport) as (manager, load):
        pids = manager.pids("app")
        for index in (1, 0):
            assert manager("stop", f"app:app_0{index}").succeeds() == f"app:app_0{index}: stopped\n"
            assert not is_alive(pids[index])
            load.goes_on(20)
        assert manager.pids("app") == pids[2:]
        manager("start", "app").succeeds()
        assert len(manager.pids("app")) == 3


@transports
@pytest.mark.parametrize("backend", ["go", "c", "php"])
def test_the_restart_of_one_process_loses_no_request(backend: str, transport: str, tmp_path: Path) -> None:
    with under_load(tmp_path, backend, transport) as (manager, load):
        before = manager.pids("app")
        for index in range(3):
            manager("restart", f"app:app_0{index}").succeeds()
            load.goes_on(10)
        assert not set(before) & set(manager.pids("app"))
        assert {answer.generation for answer in load.answers} == {1}


@transports
@pytest.mark.parametrize("backend", ["go", "c"])
def test_one_that_is_never_idle_goes_without_losing_a_request(backend: str, transport: str, tmp_path: Path) -> None:
    """More ask at once than there are processes, so the moment between two requests is microseconds, or never."""
    address = free_address(transport, tmp_path)
    table = pool(tmp_path, backend, address, "stopwaitsecs = 60", numprocs=2)
    with (
        running(tmp_path, table.replace('ready = "ping"', "startsecs = 0")) as manager,
        front(tmp_path, backend, address) as nginx,
        Load(nginx.port, paths=["/0"], clients=8, pause=150) as load,
    ):
        for index in (0, 1):
            pids = manager.pids("app")
            manager("restart", f"app:app_0{index}").succeeds()
            load.goes_on(10)
            assert set(pids) - set(manager.pids("app")) == {pids[index]}
        begun = monotonic()
        manager("scale", "app", "1").succeeds()
        assert monotonic() - begun < 30, "it was let go at its deadline, not at a good moment"
        load.goes_on(10)
    assert load.failures == []


@transports
@pytest.mark.parametrize("backend", ["go", "c"])
def test_connections_that_nginx_keeps_do_not_hold_it(backend: str, transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with (
        running(tmp_path, pool(tmp_path, backend, address, "stopwaitsecs = 60", numprocs=2)) as manager,
        front(tmp_path, backend, address, keep=True) as nginx,
        Load(nginx.port, paths=["/0"], clients=2) as load,
    ):
        for index in (0, 1):
            begun = monotonic()
            manager("restart", f"app:app_0{index}").succeeds()
            assert monotonic() - begun < 30, "it was let go at its deadline, not at a good moment"
            load.goes_on(10)
    assert load.failures == []


def test_a_hard_restart_is_what_the_soft_one_is_measured_by(tmp_path: Path) -> None:
    """The load of these tests does find a loss where there is one."""
    address = free_address("tcp", tmp_path)
    with (
        running(tmp_path, pool(tmp_path, "go", address)) as manager,
        front(tmp_path, "go", address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        for _ in range(10):
            manager("restart", "--hard", "app").succeeds()
            load.goes_on(10)
            if load.failures:
                break
    assert any("502" in failure.why for failure in load.failures)


# -- stop and shutdown ------------------------------------------------------------------------------------------------


class Queue:
    """Requests to a pool of one process that takes one at a time: the first in its hands, the others in the queue."""

    def __init__(self, manager: Manager, address: str, threads: ThreadPoolExecutor, *, count: int, pause: int) -> None:
        uri = f"/0?pause={pause}"
        params = {"REQUEST_METHOD": "GET", "REQUEST_URI": uri, "QUERY_STRING": f"pause={pause}", "SCRIPT_NAME": "/0"}
        self._uri = uri
        self._asked: list[Future[Response]] = [
            threads.submit(fetch, address, params, b"", timeout=30.0) for _ in range(count)
        ]

        def waits() -> bool:
            (shown,) = manager.status(detail=True).pools
            return shown.sockets[0].queued == count - 1 and shown.processes[0].busy is True

        eventually(waits)

    def is_served(self) -> None:
        for asked in self._asked:
            response = asked.result(30)
            assert response.status == 200
            assert f"asked {self._uri}\nend\n" in response.body.decode()


@transports
@pytest.mark.parametrize("how", ["stop app", "shutdown"])
def test_what_was_accepted_and_queued_is_served_before_the_end(how: str, transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    config = configuration(tmp_path, pool(tmp_path, "c", address, numprocs=1))
    with Manager(config, tmp_path / "fcgimgr.sock") as manager, ThreadPoolExecutor(8) as threads:
        queue = Queue(manager, address, threads, count=4, pause=300)
        manager(*how.split()).succeeds()
        queue.is_served()
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            connect(address)


@transports
def test_who_comes_during_a_stop_is_not_let_in(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with (
        running(tmp_path, pool(tmp_path, "c", address, numprocs=1)) as manager,
        ThreadPoolExecutor(8) as threads,
    ):
        queue = Queue(manager, address, threads, count=4, pause=400)
        with subprocess.Popen(words("-c", manager.config, "stop", "app"), stdout=subprocess.DEVNULL) as stop:
            eventually(lambda: manager.pool("app").state == "STOPPING" and "no new connection" in manager.output())
            # A TCP client tries again after a second, and finds nobody then; on a Unix socket there is nobody already.
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                connect(address)
            queue.is_served()
            assert stop.wait(30) == 0
        assert manager.pool("app").state == "STOPPED"
        manager("start", "app").succeeds()
        connect(address).close()


# A request without an end: FCGI_BEGIN_REQUEST of a responder, and no parameters.
BEGUN = bytes.fromhex("0101000100080000 0001000000000000")


@contextmanager
def in_the_middle_of_a_stop(
    directory: Path, transport: str
) -> Iterator[tuple[Manager, ExitStack, subprocess.Popen[str]]]:
    """The manager; two clients, one in the hands of the only process and one in the queue, to be closed; the stop."""
    address = free_address(transport, directory)
    table = pool(directory, "c", address, "stopwaitsecs = 60", numprocs=1)
    with running(directory, table) as manager, ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(connect(address)).sendall(BEGUN)
        with begun(manager, "stop") as stop:
            eventually(lambda: "no new connection" in manager.output())
            yield manager, clients, stop


def begun(manager: Manager, order: str) -> subprocess.Popen[str]:
    """A command for the pool that is at work; its answer is not there yet."""
    command = subprocess.Popen(words("-c", manager.config, order, "app"), stdout=subprocess.PIPE, text=True)
    eventually(lambda: manager.output().count(f"asked to {order} app") == 1)
    return command


def answer(command: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and what it said last."""
    said, _ = command.communicate(timeout=30)
    return command.returncode, said.splitlines()[-1]


@transports
@pytest.mark.parametrize(("order", "result"), [("start", "started"), ("restart", "restarted")])
def test_who_is_wanted_again_during_a_stop_comes_when_it_is_over(
    order: str, result: str, transport: str, tmp_path: Path
) -> None:
    with in_the_middle_of_a_stop(tmp_path, transport) as (manager, clients, stop):
        (before,) = manager.pids("app")
        with begun(manager, order) as command:
            clients.close()
            assert answer(command) == (0, f"app:app_00: {result}")
        assert answer(stop) == (0, "app:app_00: stopped")
        assert not is_alive(before)
        assert manager.pool("app").state == "RUNNING"


def test_a_start_during_a_stop_that_another_stop_undoes_says_so(tmp_path: Path) -> None:
    with in_the_middle_of_a_stop(tmp_path, "unix") as (manager, clients, stop):
        with begun(manager, "start") as start:
            manager("stop", "--no-wait", "app").succeeds()
            assert answer(start) == (1, "app:app_00: failed: somebody stopped it in the meantime")
        clients.close()
        assert answer(stop) == (0, "app:app_00: stopped")
        assert manager.pool("app").state == "STOPPED"


@transports
def test_a_stop_under_load_breaks_no_request_that_was_begun(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with (
        running(tmp_path, pool(tmp_path, "go", address)) as manager,
        front(tmp_path, "go", address) as nginx,
    ):
        with Load(nginx.port, paths=["/0"]) as load:
            begun = monotonic()
            manager("stop", "app").succeeds()
            load.goes_on(20)
        # nginx answers 502 where it found nobody; who was accepted has an answer, and nobody waits in vain.
        assert {failure.why for failure in load.failures} == {"OSError('HTTP/1.1 502 Bad Gateway')"}
        assert all(failure.ended > begun for failure in load.failures)
        log = (tmp_path / "nginx" / "nginx.log").read_text()
        refused = log.count("connect() ") + log.count("Connection refused) while connecting")
        assert "prematurely closed" not in log
        assert "reset by peer" not in log
        assert refused


@pytest.mark.parametrize("how", ["stop app", "shutdown", "reload app", "scale app 1", "restart app:app_01"])
def test_stopwaitsecs_bounds_them_all(how: str, tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    table = pool(tmp_path, "c", address, "stopwaitsecs = 0.6", numprocs=2)
    with (
        running(tmp_path, table.replace('ready = "ping"', "startsecs = 0.1")) as manager,
        front(tmp_path, "c", address) as nginx,
    ):
        pids = manager.pids("app")
        hung = [socket.create_connection(("127.0.0.1", nginx.port)) for _ in range(4)]
        for connection in hung:
            connection.sendall(b"GET /0?pause=60000 HTTP/1.0\r\n\r\n")

        def both_are_busy() -> bool:
            (shown,) = manager.status(detail=True).pools
            return all(process.busy for process in shown.processes)

        eventually(both_are_busy)
        begun = monotonic()
        done = manager(*how.split())
        # Two of four waited in the queue of the old ones, and are passed on, and then it is their time that is over.
        assert done.code == (1 if how == "reload app" else 0), done
        assert 0.6 <= monotonic() - begun < 5
        are_gone(pids[1])
        for connection in hung:
            connection.close()


def test_shutdown_timeout_bounds_the_shutdown(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    text = "shutdown_timeout = 0.8\n" + pool(tmp_path, "c", address, "stopwaitsecs = 60", numprocs=1)
    with running(tmp_path, text) as manager, ThreadPoolExecutor(1) as threads:
        Queue(manager, address, threads, count=1, pause=60_000)
        begun = monotonic()
        manager("shutdown").succeeds()
        assert 0.8 <= monotonic() - begun < 5


# As Node does: the listener is made non-blocking, and at the end what it was.
GIVES_BACK = """
import os, signal, socket, sys, time
os.set_blocking(0, False)
def end(number, frame):
    os.set_blocking(0, True)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
listener = socket.socket(fileno=0)
while True:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        time.sleep(0.01)
"""


def test_one_that_ends_does_not_have_its_siblings_wait_in_accept(tmp_path: Path) -> None:
    (tmp_path / "gives_back.py").write_text(GIVES_BACK)
    address = free_address("tcp", tmp_path)
    lines = [f'socket = "{address}"', f'command = "{sys.executable} gives_back.py"', 'directory = "%(here)s"']
    table = "\n".join(["[pool.app]", *lines, "numprocs = 2", 'ready = "startsecs"', "startsecs = 0.5", ""])
    with running(tmp_path, table) as manager:
        ended, sibling = manager.pids("app")
        manager("stop", "app:app_00").succeeds()
        assert are_gone(ended)
        flags = Path(f"/proc/{sibling}/fdinfo/0").read_text().split("flags:")[1].split()[0]
        assert int(flags, 8) & os.O_NONBLOCK


# -- those that take their time to end --------------------------------------------------------------------------------

SLOW_TO_END = """
import os, pathlib, signal, socket, sys, threading

def end(number, frame):
    pathlib.Path(sys.argv[1], f"told-{os.getpid()}").touch()
    while True:
        signal.pause()

def serve(connection):
    while connection.recv(4096):
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 7\\r\\n\\r\\n%7d" % os.getpid())
    connection.close()

signal.signal(signal.SIGTERM, end)
listener = socket.socket(fileno=0)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def test_clients_learn_that_a_kept_connection_is_over_before_its_process_is_told(tmp_path: Path) -> None:
    """From then on it may be deaf, for as long as it takes to end."""
    (tmp_path / "slow.py").write_text(SLOW_TO_END)
    address = free_address("tcp", tmp_path)
    lines = ["[pool.app]", f'socket = "{address}"', f'command = ["{sys.executable}", "slow.py", "{tmp_path}"]']
    lines += [f'directory = "{tmp_path}"', "numprocs = 2", "stopwaitsecs = 3", ""]
    with running(tmp_path, "\n".join(lines)) as manager, connect(address) as kept:
        kept.settimeout(20)
        kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        pid = int(kept.recv(4096)[-7:])
        index = manager.pids("app").index(pid)
        with ThreadPoolExecutor(1) as background:
            restarted = background.submit(manager, "restart", f"app:app_0{index}")
            eventually((tmp_path / f"told-{pid}").exists, within=20)
            kept.setblocking(False)
            assert kept.recv(4096) == b""
            restarted.result().succeeds()
