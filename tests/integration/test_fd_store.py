"""Sockets left with systemd: who comes while there is no manager waits, and the next one serves it on the same socket.

The stand-in keeps what it is sent as systemd does (src/core/service.c): by name, the same file once, no more than it
has room for, and passes all of it to the next manager as fds 3, 4, ….
"""

import fcntl
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import fcgimgr
from tests.integration.ports import connect, free_port
from tests.integration.running import RunningManager, end_strays
from tests.integration.scenes import fails, managing
from tests.integration.succession import Load, pool, reload, served_by, write
from tests.integration.test_sockets import PASS_FDS
from tests.waiting import eventually


class Systemd:
    """The service manager's side of $NOTIFY_SOCKET, with room for so many fds (FileDescriptorStoreMax=)."""

    def __init__(self, path: Path, room: int) -> None:
        self.path = path
        self.room = room
        self.refused = 0
        self.store: dict[int, str] = {}  # names by fd
        self._receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._receiver.bind(str(path))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            text, fds, _, _ = socket.recv_fds(self._receiver, 65536, 253)
            if text == b"end":
                return
            said = dict(line.partition("=")[::2] for line in text.decode().split("\n"))
            if said.get("FDSTORE") == "1":
                assert said["FDPOLL"] == "0"
                for fd in fds:
                    self._add(fd, said["FDNAME"])
            elif said.get("FDSTOREREMOVE") == "1":
                assert not fds
                for fd in [fd for fd, name in self.store.items() if name == said["FDNAME"]]:
                    del self.store[fd]
                    os.close(fd)
            else:
                assert not fds, "nothing else is ever sent along"

    def _add(self, fd: int, name: str) -> None:
        known = {os.fstat(other).st_ino for other in self.store}
        if os.fstat(fd).st_ino in known:
            os.close(fd)
        elif len(self.store) >= self.room:
            self.refused += 1
            os.close(fd)
        else:
            self.store[fd] = name

    @property
    def names(self) -> list[str]:
        """What the kernel calls the sockets in the store."""
        names = []
        for fd in list(self.store):
            with socket.socket(fileno=os.dup(fd)) as one:
                names.append(str(one.getsockname()))
        return sorted(names)

    def start(self, config: Path, *, also: dict[str, socket.socket] | None = None, **more: Any) -> RunningManager:
        """A manager of the service: it gets what is in the store, after the sockets of its units (`also`)."""
        passed = [(one.fileno(), name) for name, one in (also or {}).items()] + list(self.store.items())
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd, _ in passed]
        words = [",".join(map(str, high)), ":".join(name for _, name in passed)]
        environment = {"NOTIFY_SOCKET": str(self.path), "FDSTORE": str(self.room)}
        manager = managing(
            config,
            environment=environment | more.pop("environment", {}),
            inherit=high,
            prefix=[sys.executable, "-S", "-E", "-c", PASS_FDS, *words] if high else [],
            **more,
        )
        begin = manager.begin

        def begin_and_close() -> None:
            begin()
            for fd in high:
                os.close(fd)

        manager.begin = begin_and_close  # type: ignore[method-assign]
        return manager

    def close(self) -> None:
        """The service is stopped: the store is emptied."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", str(self.path))
        self._thread.join()
        self._receiver.close()
        for fd in self.store:
            os.close(fd)


@contextmanager
def systemd_with(directory: Path, room: int) -> Iterator[Systemd]:
    systemd = Systemd(directory / "notify", room)
    try:
        yield systemd
    finally:
        systemd.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with systemd_with(tmp_path, 16) as systemd:
        yield systemd


@contextmanager
def killed(systemd: Systemd, config: Path, *, workers: bool = True, **more: Any) -> Iterator[RunningManager]:
    """A manager that has been killed when the block ends, and its workers with it, as KillMode=mixed has it."""
    manager = systemd.start(config, **more)
    manager.__enter__()
    try:
        yield manager
        manager.kill()
    except BaseException:
        workers = True
        print(manager.output())
        manager.kill()
        raise
    finally:
        if workers:
            end_strays(manager.mark)


@pytest.fixture(params=["tcp", "any", "unix", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    port = free_port()
    return {
        "tcp": f"127.0.0.1:{port}",
        "any": f"*:{port}",
        "unix": f"unix:{tmp_path}/app.sock",
        "abstract": f"unix:@fcgimgr-test-{port}",
    }[str(request.param)]


def client(address: str) -> str:
    """What a client of it connects to."""
    return address.replace("*", "127.0.0.1").replace("unix:@", "unix:\0")


@pytest.fixture(params=["tcp", "unix"])
def steerable(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"127.0.0.1:{free_port()}" if request.param == "tcp" else f"unix:{tmp_path}/app.sock"


def refuses(address: str) -> bool:
    """Whether nobody listens there."""
    try:
        connect(address, timeout=1).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


# -- the next manager -------------------------------------------------------------------------------------------------


def test_who_comes_after_a_kill_of_manager_and_workers_is_served_by_the_next(
    systemd: Systemd, address: str, tmp_path: Path
) -> None:
    config = write(tmp_path, pool(address))
    with killed(systemd, config):
        before = served_by(client(address))
    waiting = [connect(client(address)) for _ in range(3)]
    with systemd.start(config) as manager:
        for one in waiting:
            with one:
                assert int(one.recv(100)) in manager.pids("app")
        assert before not in manager.pids("app")
        assert f"{address}: taken back from systemd waiting=3" in manager.output()
        assert len(systemd.store) == 1
        assert reload(manager).ok or address.startswith("unix:@")
        assert served_by(client(address)) in manager.pids("app")


def test_a_restart_refuses_nobody(systemd: Systemd, steerable: str, tmp_path: Path) -> None:
    """`systemctl restart` under load: what has been accepted is answered, and who comes meanwhile waits."""
    config = write(tmp_path, pool(steerable, "numprocs = 2"))
    with systemd.start(config) as first, Load(steerable) as load:
        first.stop()
        connection = connect(steerable)
        with systemd.start(config) as second:
            with connection:
                assert int(connection.recv(100)) in second.pids("app")
            answers = len(load.answers)
            eventually(lambda: len(load.answers) > answers + 10)
            load.stop()
            assert "taken back from systemd" in second.output()
    assert load.failures == []


def test_it_is_the_same_socket_again_and_again(systemd: Systemd, steerable: str, tmp_path: Path) -> None:
    config = write(tmp_path, pool(steerable))
    inodes = set()
    for number in range(3):
        with killed(systemd, config):
            assert len(systemd.store) == 1
            inodes |= {os.fstat(fd).st_ino for fd in systemd.store}
        if number == 1:
            with systemd.start(config):
                pass  # an orderly end in between
    assert len(inodes) == 1


def test_it_is_as_the_configuration_wants_it_now(systemd: Systemd, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with killed(systemd, write(tmp_path, pool(f"unix:{path}"))):
        assert path.stat().st_mode & 0o777 == 0o660
    config = write(tmp_path, pool(f"unix:{path}", 'socket_mode = "0600"', "socket_backlog = 7"))
    with systemd.start(config) as manager:
        assert path.stat().st_mode & 0o777 == 0o600
        assert manager.status(detail=True).pools[0].sockets[0].backlog == 7
        assert "taken back" in manager.output()


# -- what is not wanted any more --------------------------------------------------------------------------------------


def test_an_address_that_is_not_wanted_any_more_is_closed(systemd: Systemd, steerable: str, tmp_path: Path) -> None:
    with killed(systemd, write(tmp_path, pool(steerable))):
        pass
    waiting = connect(steerable)
    other = f"127.0.0.1:{free_port()}"
    with systemd.start(write(tmp_path, pool(other))) as manager, waiting:
        assert served_by(other) in manager.pids("app")
        assert refuses(steerable)
        with suppress(ConnectionResetError):
            assert waiting.recv(100) == b""
        assert not (tmp_path / "app.sock").exists()
        assert "no pool wants it: closed waiting=1" in manager.output()
        eventually(lambda: systemd.names == [str(("127.0.0.1", int(other.split(":")[1])))])


def test_that_of_a_pool_which_is_not_started_is_closed(systemd: Systemd, steerable: str, tmp_path: Path) -> None:
    tables = pool(steerable, "autostart = false") + '[program.other]\ncommand = "sleep 1000"\nstartsecs = 0\n'
    with killed(systemd, write(tmp_path, tables), ready=False) as manager:
        assert manager.start("app").ok
        eventually(lambda: len(systemd.store) == 1)
    with systemd.start(write(tmp_path, tables), ready=False) as manager:
        eventually(lambda: not systemd.store)
        assert refuses(steerable)
        assert manager.start("app").ok
        assert served_by(steerable) in manager.pids("app")
        eventually(lambda: len(systemd.store) == 1)


def test_a_path_that_leads_to_another_socket_by_now_is_not_taken(systemd: Systemd, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    config = write(tmp_path, pool(f"unix:{path}"))
    with killed(systemd, config):
        pass
    path.rename(tmp_path / "aside")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))  # which does not live on
    with systemd.start(config) as manager:
        assert served_by(f"unix:{path}") in manager.pids("app")
        assert "no pool wants it: closed" in manager.output()
        assert "taken back" not in manager.output()
        eventually(lambda: len(systemd.store) == 1)


def test_a_name_alone_proves_nothing(systemd: Systemd, tmp_path: Path) -> None:
    """Another socket that a unit calls like one of ours stays what it is: a unit's socket, to be had by its name."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as other:
        name = "fcgimgr.listener.1"
        config = write(tmp_path, pool(f"systemd:{name}"))
        with systemd.start(config, also={name: other}) as manager:
            assert served_by(f"127.0.0.1:{port}") in manager.pids("app")
            assert systemd.store == {}


def test_sockets_of_units_are_not_left_and_keep_their_names(systemd: Systemd, tmp_path: Path) -> None:
    port, own = free_port(), f"127.0.0.1:{free_port()}"
    tables = pool("systemd:web") + pool(own).replace("pool.app", "pool.own")
    with socket.create_server(("127.0.0.1", port)) as web:
        for _ in range(2):
            with killed(systemd, write(tmp_path, tables), also={"web": web}) as manager:
                assert served_by(f"127.0.0.1:{port}") in manager.pids("app")
                assert served_by(own) in manager.pids("own")
                assert systemd.names == [str(("127.0.0.1", int(own.split(":")[1])))]


# -- while the manager lives ------------------------------------------------------------------------------------------


def test_the_store_follows_reloads_stops_and_upgrades(systemd: Systemd, steerable: str, tmp_path: Path) -> None:
    config = write(tmp_path, pool(steerable))
    with systemd.start(config) as manager:
        first = set(systemd.store.values())
        assert len(first) == 1
        assert reload(manager).ok
        eventually(lambda: len(systemd.store) == 1 and set(systemd.store.values()) != first)
        fcgimgr("-c", config, "upgrade").succeeds()
        eventually(manager.all_running)
        assert len(systemd.store) == 1
        assert reload(manager).ok
        eventually(lambda: len(systemd.store) == 1)
        manager.halt("app")
        eventually(lambda: not systemd.store)
        assert refuses(steerable)
        manager.start("app")
        eventually(lambda: len(systemd.store) == 1)
    with systemd.start(config) as manager:
        assert served_by(steerable) in manager.pids("app")
        assert "taken back" in manager.output()


def test_after_a_reload_the_new_socket_comes_back(systemd: Systemd, steerable: str, tmp_path: Path) -> None:
    config = write(tmp_path, pool(steerable))
    with killed(systemd, config) as manager:
        assert reload(manager).ok
        eventually(lambda: len(systemd.store) == 1)
    waiting = connect(steerable)
    with systemd.start(config) as manager, waiting:
        assert int(waiting.recv(100)) in manager.pids("app")
        assert reload(manager).ok
        assert served_by(steerable) in manager.pids("app")
        assert sorted(path.name for path in tmp_path.glob("app.sock*")) in ([], ["app.sock"])


@pytest.mark.parametrize("left", ["state", "nothing", "processes"])
def test_killed_amid_a_reload_the_socket_that_served_comes_back(
    left: str, systemd: Systemd, steerable: str, tmp_path: Path
) -> None:
    config = write(tmp_path, pool(steerable, "reload_timeout = 1000"))
    early = config.read_text()
    with killed(systemd, config, workers=left != "processes") as first:
        begin_slow_reload(systemd, first)
        before = served_by(steerable)
    config.write_text(early)
    if left == "nothing":
        (tmp_path / "pool.control.state" / "state.jsonl").unlink()
    waiting = [connect(steerable) for _ in range(4)]
    with systemd.start(config, mark=first.mark) as second:
        for one in waiting:
            with one:
                assert int(one.recv(100)) in (second.pids("app") if left != "processes" else [before])
        eventually(lambda: len(systemd.store) == 1)
        assert reload(second).ok
        assert served_by(steerable) in second.pids("app")


def test_stopped_amid_a_reload_the_socket_that_served_comes_back(
    systemd: Systemd, steerable: str, tmp_path: Path
) -> None:
    config = write(tmp_path, pool(steerable, "reload_timeout = 1000"))
    early = config.read_text()
    with systemd.start(config) as first:
        begin_slow_reload(systemd, first)
    config.write_text(early)
    eventually(lambda: len(systemd.store) == 1)
    with connect(steerable) as waiting, systemd.start(config) as second:
        assert int(waiting.recv(100)) in second.pids("app")
        assert reload(second).ok
        assert served_by(steerable) in second.pids("app")


def begin_slow_reload(systemd: Systemd, manager: RunningManager) -> None:
    """Begin one that is not over before the test is."""
    text = manager.config.read_text()
    manager.config.write_text(text.replace("startsecs = 0.1", "startsecs = 500").replace("serve.py ", "serve.py anew"))
    os.kill(manager.pid, signal.SIGHUP)
    eventually(lambda: len(systemd.store) == 2)


def test_no_more_is_left_than_there_is_room_for(tmp_path: Path) -> None:
    one, two = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    tables = pool(one) + pool(two).replace("pool.app", "pool.two")
    with systemd_with(tmp_path, 1) as systemd, systemd.start(write(tmp_path, tables)) as manager:
        assert "systemd keeps no more than 1 sockets" in manager.output()
        eventually(lambda: len(systemd.store) == 1)
        (only,) = systemd.store.values()
        manager.halt("app")
        manager.halt("two")
        manager.start("two")
        eventually(lambda: systemd.store and set(systemd.store.values()) != {only})
        assert served_by(two) in manager.pids("two")
        assert systemd.refused == 0


@pytest.mark.parametrize("environment", [{"FDSTORE": "0"}, {"FDSTORE": ""}])
def test_nothing_is_left_where_nothing_is_kept(
    environment: dict[str, str], systemd: Systemd, steerable: str, tmp_path: Path
) -> None:
    with systemd.start(write(tmp_path, pool(steerable)), environment=environment) as manager:
        assert served_by(steerable) in manager.pids("app")
    assert systemd.store == {}
    assert systemd.refused == 0
    assert refuses(steerable)


def test_what_could_not_be_delivered_is_not_relied_on(steerable: str, tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "FDSTORE": "16"}
    with managing(write(tmp_path, pool(steerable)), environment=environment) as manager:
        assert served_by(steerable) in manager.pids("app")
    assert refuses(steerable)
    assert not (tmp_path / "app.sock").exists()


# -- together with processes that live on -----------------------------------------------------------------------------


def test_processes_that_live_on_go_on_with_what_came_back(systemd: Systemd, steerable: str, tmp_path: Path) -> None:
    """KillMode=process: the same processes, the same socket, and one of it."""
    config = write(tmp_path, pool(steerable, "numprocs = 2"))
    with killed(systemd, config, workers=False) as first:
        pids = first.pids("app")
        left = set(systemd.store.values())
    with systemd.start(config, mark=first.mark) as second:
        assert second.pids("app") == pids
        assert served_by(steerable) in pids
        assert set(systemd.store.values()) == left
        assert reload(second).ok
        eventually(lambda: len(systemd.store) == 1 and set(systemd.store.values()) != left)
        assert served_by(steerable) not in pids


def test_processes_that_no_state_tells_of_do_not_share_what_came_back(
    systemd: Systemd, steerable: str, tmp_path: Path
) -> None:
    """The state is gone with its directory (RuntimeDirectory=); they would answer in the place of ours."""
    config = write(tmp_path, pool(steerable))
    with killed(systemd, config, workers=False) as first:
        pids = first.pids("app")
    for path in (tmp_path / "pool.control.state").iterdir():
        path.unlink()
    (tmp_path / "pool.control.state").rmdir()
    waiting = connect(steerable)  # which the old one may answer
    with systemd.start(config, mark=first.mark) as second, waiting:
        assert not set(second.pids("app")) & set(pids)
        assert {served_by(steerable) for _ in range(5)} <= set(second.pids("app"))


def test_a_store_of_something_else_is_a_number_or_refused(tmp_path: Path) -> None:
    code, said = fails(write(tmp_path, pool("127.0.0.1:1")), environment={"NOTIFY_SOCKET": "/n", "FDSTORE": "many"})
    assert code == 1
    assert "FDSTORE: 'many' is not a number" in said
