"""What the kernel says of sockets: checked against sockets in a known state."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fcgimgr.linux import sockdiag
from fcgimgr.linux.listeners import Listener, open_tcp, open_unix
from fcgimgr.linux.procfs import socket_inodes


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.fixture(params=["ipv4", "ipv6", "both", "unix", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    openers: dict[str, Callable[[], Listener]] = {
        "ipv4": lambda: open_tcp("127.0.0.1", 0, backlog=7),
        "ipv6": lambda: open_tcp("::1", 0, backlog=7),
        "both": lambda: open_tcp("*", 0, backlog=7),
        "unix": lambda: open_unix(str(tmp_path / "s"), backlog=7),
        "abstract": lambda: open_unix(f"@fcgimgr-diag-{os.getpid()}", backlog=7),
    }
    with openers[request.param]() as opened:
        yield opened


@pytest.fixture
def client(listener: Listener) -> Iterator[Callable[[], socket.socket]]:
    """A function that makes one more connection to the listener."""
    with ExitStack() as stack:

        def connect() -> socket.socket:
            name = listener.sock.getsockname()
            if isinstance(name, tuple):
                host = name[0] if name[0] != "::" else "127.0.0.1"
                return stack.enter_context(socket.create_connection((host, name[1])))
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(name)
            return connection

        yield connect


def test_the_queue_is_what_waits_and_the_backlog_in_force(
    listener: Listener, client: Callable[[], socket.socket]
) -> None:
    assert sockdiag.queue_length(listener.sock) == (0, 7)
    for _ in range(3):
        client()
    assert sockdiag.queue_length(listener.sock) == (3, 7)
    listener.sock.accept()[0].close()
    assert sockdiag.queue_length(listener.sock) == (2, 7)
    listener.set_backlog(64)
    assert sockdiag.queue_length(listener.sock) == (2, 64)


def test_accepted_connections_are_told_from_waiting_ones(
    listener: Listener, client: Callable[[], socket.socket]
) -> None:
    name = listener.sock.getsockname()
    assert sockdiag.established_inodes([name]) == set()
    client(), client()
    assert sockdiag.established_inodes([name]) == set(), "both wait"
    connection, _ = listener.sock.accept()
    with connection:
        assert sockdiag.established_inodes([name]) == {inode(connection)}
        held = socket_inodes(os.getpid())
        assert held is not None
        assert {inode(connection), listener.inode} <= held
    assert sockdiag.established_inodes([name]) == set()


def test_a_connection_half_closed_by_its_client_still_counts(
    listener: Listener, client: Callable[[], socket.socket]
) -> None:
    mine = client()
    connection, _ = listener.sock.accept()
    with connection:
        mine.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
        assert sockdiag.established_inodes([listener.sock.getsockname()]) == {inode(connection)}


def test_the_other_end_of_a_connection_is_known_once_accepted(
    listener: Listener, client: Callable[[], socket.socket]
) -> None:
    mine = client()
    assert sockdiag.peer_inode(mine) is None
    connection, _ = listener.sock.accept()
    with connection:
        assert sockdiag.peer_inode(mine) == inode(connection)
        assert sockdiag.peer_inode(connection) == inode(mine)
    with socket.socket() as unconnected:
        assert sockdiag.peer_inode(unconnected) is None


def test_who_listens_is_found_by_address(listener: Listener) -> None:
    assert sockdiag.listening_inodes(listener.sock.getsockname()) == {listener.inode}


def test_other_addresses_of_a_port_are_not_mixed_in() -> None:
    with open_tcp("127.0.0.1", 0, backlog=7) as one:
        port = one.sock.getsockname()[1]
        with open_tcp("127.0.0.2", port, backlog=7) as other, socket.create_connection(("127.0.0.2", port)):
            connection, _ = other.sock.accept()
            with connection:
                assert sockdiag.established_inodes([one.sock.getsockname()]) == set()
                both = [one.sock.getsockname(), other.sock.getsockname()]
                assert sockdiag.established_inodes(both) == {inode(connection)}


def test_many_connections_take_several_answers(tmp_path: Path) -> None:
    with ExitStack() as stack:
        unix = stack.enter_context(open_unix(str(tmp_path / "s"), backlog=600))
        tcp = stack.enter_context(open_tcp("127.0.0.1", 0, backlog=600))
        for listener in (unix, tcp):
            accepted = set()
            for _ in range(500):
                connection = stack.enter_context(socket.socket(listener.sock.family))
                connection.connect(listener.sock.getsockname())
                accepted.add(inode(stack.enter_context(listener.sock.accept()[0])))
            assert sockdiag.established_inodes([listener.sock.getsockname()]) == accepted


def test_a_socket_file_that_is_bound_but_not_served(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        file = os.open(path, os.O_PATH)
        assert sockdiag.unix_bound(file) is True
    assert sockdiag.unix_bound(file) is False
    os.close(file)


def test_unknown_is_none_where_netlink_is_barred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # What systemd's RestrictAddressFamilies does to a socket(2) call.
    class Socket(socket.socket):
        def __init__(self, family: int = -1, *rest: int, **more: int) -> None:
            if family == socket.AF_NETLINK:
                raise OSError(97, os.strerror(97))
            super().__init__(family, *rest, **more)

    with open_unix(str(tmp_path / "s"), backlog=7) as listener, open_tcp("127.0.0.1", 0, backlog=7) as tcp:
        monkeypatch.setattr(socket, "socket", Socket)
        assert sockdiag.queue_length(listener.sock) is None
        assert sockdiag.queue_length(tcp.sock) == (0, 7), "TCP needs no netlink"
        assert sockdiag.established_inodes([tcp.sock.getsockname()]) is None
        assert sockdiag.listening_inodes(listener.sock.getsockname()) is None
        assert sockdiag.unix_bound(listener.fileno()) is None


def test_no_fd_is_left(listener: Listener, client: Callable[[], socket.socket]) -> None:
    mine = client()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        sockdiag.queue_length(listener.sock)
        sockdiag.established_inodes([listener.sock.getsockname()])
        sockdiag.peer_inode(mine)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("family", ["v4", "v6", "unix", "abstract"])
def test_what_waits_in_a_queue_is_told_one_by_one(family: str, tmp_path: Path):
    if family in ("v4", "v6"):
        kind = socket.AF_INET if family == "v4" else socket.AF_INET6
        listener = socket.create_server(("127.0.0.1" if family == "v4" else "::1", 0), family=kind)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s") if family == "unix" else f"\0fcgimgr-test-{tmp_path}")
        listener.listen()
    name = listener.getsockname()
    with listener:
        assert sockdiag.waiting([name]) == frozenset()
        clients = [socket.socket(listener.family) for _ in range(3)]
        for client in clients:
            client.connect(name)
        before = sockdiag.waiting([name])
        assert len(before) == 3
        accepted, _ = listener.accept()
        assert len(before - sockdiag.waiting([name])) == 1
        clients[2].close()
        assert len(sockdiag.waiting([name])) == 2, "it is still there to be accepted"
        accepted.close()
        for client in clients[:2]:
            client.close()
