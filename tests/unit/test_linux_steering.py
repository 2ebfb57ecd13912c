"""Steering: which listener a connection ends up at, asked of the real kernel, also while eight threads connect."""

import errno
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from fcgimgr.linux import sockdiag
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import Listener, open_tcp, open_unix
from fcgimgr.linux.steering import Group, admit_again, refuse_new
from tests.unit.generations import serve
from tests.unit.handshakes import let_hear, needs_filter, shy_client
from tests.waiting import eventually

HOSTS = {"ipv4": "127.0.0.1", "ipv6": "::1", "both": "*"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture(params=HOSTS)
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    with group_on(HOSTS[request.param]) as made:
        yield made


@contextmanager
def group_on(host: str) -> Iterator[Group]:
    made = Group(open_tcp(host, 0, backlog=4096, reuseport=True))
    try:
        yield made
    finally:
        while made.listeners:
            made.close(made.listeners[0])


def ways_to(listener: Listener) -> list[tuple[str, int]]:
    """Every address a client can reach it at: a dual-stack one by IPv4 as well."""
    host, port = listener.sock.getsockname()[:2]
    return [("127.0.0.1", port), ("::1", port)] if host == "::" else [(host, port)]


def connect(stack: ExitStack, listener: Listener, times: int) -> None:
    for address in ways_to(listener):
        for _ in range(times):
            stack.enter_context(socket.create_connection(address, timeout=10))


def queued(listener: Listener) -> int:
    length = sockdiag.queue_length(listener.sock)
    assert length is not None
    return length[0]


def got(group: Group, stack: ExitStack, times: int = 20) -> list[int]:
    """How many of some new connections each listener gets, in the group's order, as a part of `times` for each way."""
    before = [queued(listener) for listener in group.listeners]
    connect(stack, group.listeners[0], times)
    ways = len(ways_to(group.listeners[0]))
    return [(queued(one) - old) // ways for one, old in zip(group.listeners, before, strict=True)]


def test_a_newcomer_gets_nothing_until_it_is_switched_to(group: Group, stack: ExitStack) -> None:
    new = group.beside(backlog=4096)
    assert got(group, stack) == [20, 0]
    group.steer_to(new)
    assert got(group, stack) == [0, 20]
    assert group.current is new


def test_what_waits_with_the_old_stays_with_the_old(group: Group, stack: ExitStack) -> None:
    old = group.current
    connect(stack, old, 5)
    waiting = queued(old)
    group.steer_to(group.beside(backlog=4096))
    assert queued(old) == waiting
    old.sock.accept()[0].close()


@pytest.mark.parametrize("leaving", [0, 1])
@pytest.mark.parametrize("current", [0, 1])
def test_one_of_two_leaves(leaving: int, current: int, stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        group.beside(backlog=4096)
        group.steer_to(group.listeners[current])
        stays = group.listeners[1 - leaving]
        group.close(group.listeners[leaving])
        assert (group.listeners, group.current) == ((stays,), stays)
        assert got(group, stack) == [20]


@pytest.mark.parametrize("leaving", [0, 1, 2])
@pytest.mark.parametrize("current", [0, 1, 2])
def test_one_of_three_leaves_and_the_last_takes_its_place(leaving: int, current: int, stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        group.beside(backlog=4096)
        group.beside(backlog=4096)
        one, two, three = group.listeners
        group.steer_to(group.listeners[current])
        expected = {0: (three, two), 1: (one, three), 2: (one, two)}[leaving]
        wanted = group.current if current != leaving else expected[0]
        group.close(group.listeners[leaving])
        assert group.listeners == expected
        assert group.current is wanted
        for listener in group.listeners:  # not only the steered one: each must be where we think it is
            group.steer_to(listener)
            assert got(group, stack) == [20 if other is listener else 0 for other in group.listeners]


def test_a_newcomer_after_a_leave_is_the_last(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        for _ in range(5):  # five reloads
            new = group.beside(backlog=4096)
            assert got(group, stack) == [20, 0]
            group.steer_to(new)
            group.close(group.listeners[0])
            assert group.listeners == (new,)
            assert got(group, stack) == [20]


def test_a_listener_that_a_child_still_has_open_leaves_all_the_same(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        old = group.current
        child = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[old.fileno()]
        )
        try:
            new, newer = group.beside(backlog=4096), group.beside(backlog=4096)
            group.steer_to(newer)
            group.close(old)
            assert group.listeners == (newer, new)
            assert got(group, stack) == [20, 0]
        finally:
            child.communicate(b"\n")


def test_one_client_alone_reaches_the_newcomer(group: Group, stack: ExitStack) -> None:
    new = group.beside(backlog=4096)
    for expected, (host, port) in enumerate(ways_to(new), start=1):
        ping = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        ping.bind((host, 0))
        group.only_from(new, ping.getsockname()[:2])
        connect(stack, new, 20)
        assert queued(new) == expected - 1, "strangers"
        ping.connect((host, port))
        assert queued(new) == expected
    assert group.current is group.listeners[0]


def test_a_ping_through_a_mapped_address_is_recognised(stack: ExitStack) -> None:
    with group_on("*") as group:
        new = group.beside(backlog=64)
        ping = stack.enter_context(socket.socket(socket.AF_INET6))
        ping.bind(("::ffff:127.0.0.1", 0))
        group.only_from(new, ping.getsockname()[:2])
        ping.connect(("::ffff:127.0.0.1", new.sock.getsockname()[1]))
        assert queued(new) == 1


def test_the_same_port_of_another_address_is_a_stranger(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        new = group.beside(backlog=64)
        stranger = stack.enter_context(socket.socket())
        stranger.bind(("127.0.0.2", 0))
        group.only_from(new, ("127.0.0.1", stranger.getsockname()[1]))
        stranger.connect(new.sock.getsockname())
        assert (queued(group.current), queued(new)) == (1, 0)


def test_a_ping_is_recognised_behind_ip_options(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        new = group.beside(backlog=64)
        ping = stack.enter_context(socket.socket())
        ping.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01" * 8)  # eight bytes of NOP
        ping.bind(("127.0.0.1", 0))
        group.only_from(new, ping.getsockname())
        ping.connect(new.sock.getsockname())
        assert (queued(group.current), queued(new)) == (0, 1)


@pytest.mark.parametrize(("percent", "low", "high"), [(0, 0, 0), (5, 60, 145), (50, 900, 1100), (100, 2000, 2000)])
def test_a_canary_gets_its_share(percent: float, low: int, high: int, stack: ExitStack) -> None:
    # Bounds four standard deviations wide: one run in 16,000 falls outside by chance.
    with group_on("127.0.0.1") as group:
        new = group.beside(backlog=4096)
        group.share(new, percent)
        for _ in range(2000):
            socket.create_connection(new.sock.getsockname()).close()
        assert low <= queued(new) <= high
        assert queued(new) + queued(group.current) == 2000
        assert group.current is group.listeners[0]


def test_a_ping_takes_nothing_from_a_canarys_share(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        old, canary = group.current, group.beside(backlog=64)
        group.share(canary, 100)
        assert not group.gets_all(old)
        assert not group.gets_all(canary)
        for listener, queues in ((old, (1, 20)), (canary, (1, 41))):
            ping = stack.enter_context(socket.socket())
            ping.bind(("127.0.0.1", 0))
            group.only_from(listener, ping.getsockname())
            connect(stack, canary, 20)
            ping.connect(old.sock.getsockname())
            assert (queued(old), queued(canary)) == queues
        group.steer_to(old)
        assert group.gets_all(old)
        group.only_from(canary, ("127.0.0.1", 1))
        connect(stack, canary, 10)
        assert (queued(old), queued(canary)) == (11, 41)


def test_a_share_beyond_the_whole_is_a_mistake_of_the_caller() -> None:
    with group_on("127.0.0.1") as group, pytest.raises(ValueError, match="101"):
        group.share(group.current, 101)


def test_a_newcomer_during_a_canary_gets_nothing(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        canary = group.beside(backlog=64)
        group.share(canary, 100)
        group.close(canary)
        assert got(group, stack) == [20]
        group.beside(backlog=64)
        assert got(group, stack) == [20, 0]


def test_a_listener_of_another_group_is_a_mistake_of_the_caller() -> None:
    with group_on("127.0.0.1") as group, group_on("127.0.0.1") as other, pytest.raises(ValueError, match="not of this"):
        group.steer_to(other.current)


# --- under load


def test_switching_under_load_refuses_nobody_and_leaves_nobody_behind() -> None:
    """Eight threads connect without pause through 20 switches; each answer tells which generation gave it."""
    with group_on("127.0.0.1") as group:
        name = group.current.sock.getsockname()
        generation = 0
        answers: list[tuple[int, int]] = []  # (the generation in force when the client set out, who answered)
        failures: list[OSError] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                set_out = generation
                try:
                    with socket.create_connection(name, timeout=10) as client:
                        answers.append((set_out, int(client.recv(16))))
                except OSError as error:
                    failures.append(error)

        servers = [threading.Thread(target=serve, args=(group.current.sock, 0))]
        clients = [threading.Thread(target=ask) for _ in range(8)]
        for thread in servers + clients:
            thread.start()
        try:
            for number in range(1, 21):
                old, new = group.current, group.beside(backlog=4096)
                servers.append(threading.Thread(target=serve, args=(new.sock, number)))
                servers[-1].start()
                group.steer_to(new)
                generation = number
                so_far = len(answers)
                eventually(lambda far=so_far: len(answers) > far + 50 or failures, every=0.001)
                eventually(lambda old=old: queued(old) == 0, every=0.001)
                group.close(old)
        finally:
            done.set()
            for thread in clients:
                thread.join()
            group.current.sock.shutdown(socket.SHUT_RDWR)
            for thread in servers:
                thread.join()
        assert failures == []
        assert {answer for _, answer in answers} == set(range(21))
        late = [pair for pair in answers if pair[1] < pair[0]]
        assert late == [], "set out after a switch and reached the generation before it"


# --- who is let in, and what is refused


def test_the_first_of_a_group_finds_a_port_in_use(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        port = group.current.sock.getsockname()[1]
        for reuseport in (True, False):
            with pytest.raises(LinuxError, match=rf"the port is in use by pid {os.getpid()}"):
                open_tcp("127.0.0.1", port, backlog=8, reuseport=reuseport)
    stranger = stack.enter_context(shared_socket(0))
    with pytest.raises(LinuxError, match="the port is in use"):
        open_tcp("127.0.0.1", stranger.getsockname()[1], backlog=8, reuseport=True)


def test_of_two_that_begin_at_once_the_later_withdraws(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    listen = socket.socket.listen

    def listen_late(self: socket.socket, backlog: int) -> None:
        """The other one has got through its bind at the same time, and listens first."""
        monkeypatch.setattr(socket.socket, "listen", listen)
        stack.enter_context(shared_socket(self.getsockname()[1]))
        listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen_late, raising=False)
    with pytest.raises(LinuxError, match=rf"somebody else began to listen .*pid {os.getpid()}"):
        open_tcp("127.0.0.1", 0, backlog=8, reuseport=True)


def test_a_stranger_that_came_in_by_reuseport_gets_nothing_and_bars_a_reload(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        old = group.current
        stranger = stack.enter_context(shared_socket(old.sock.getsockname()[1]))
        assert got(group, stack) == [20]
        with pytest.raises(LinuxError, match=rf"somebody else listens .*pid {os.getpid()}.*rolling restart"):
            group.beside(backlog=8)
        assert group.listeners == (old,)
        assert got(group, stack) == [20], "and all is as before"
        stranger.close()
        group.beside(backlog=8)


def test_a_socket_that_was_not_meant_for_it_is_refused() -> None:
    refusal = pytest.raises(LinuxError, match=r"refuses to steer connections: .*; a rolling restart")
    with open_tcp("127.0.0.1", 0, backlog=8) as alone, refusal:
        Group(alone)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_listener_of_another_user_cannot_be_joined(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        os.seteuid(65534)
        try:
            with pytest.raises(LinuxError, match=r"no second listener .*the port is in use.*rolling restart"):
                group.beside(backlog=8)
        finally:
            os.seteuid(0)
        assert got(group, stack) == [20]


def test_a_group_is_restored_in_its_order(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as before:
        before.beside(backlog=64)
        before.beside(backlog=64)
        before.close(before.listeners[0])
        after = Group.restored(before.listeners, before.listeners[1])
        assert got(after, stack) == [0, 20]


def test_a_group_with_a_missing_member_is_not_restored() -> None:
    with group_on("127.0.0.1") as group:
        gone = group.beside(backlog=8)
        order = group.listeners
        gone.sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(LinuxError, match="not all of its listeners listen"):
            Group.restored(order, order[0])


# --- no new connection


def connect_late(stack: ExitStack, listener: Listener) -> int:
    """One client for each way to the listener, that comes too late and tries on; how many."""
    for host, port in ways_to(listener):
        client = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        client.setblocking(False)
        client.connect_ex((host, port))
    return len(ways_to(listener))


def serve_all(listener: Listener) -> int:
    """Accept and answer what waits, and how many that were."""
    waiting = queued(listener)
    for _ in range(waiting):
        connection, _ = listener.sock.accept()
        with connection:
            connection.sendall(b"served")
    return waiting


def test_a_group_lets_nobody_in_while_its_queue_is_served(group: Group, stack: ExitStack) -> None:
    listener = group.current
    connect(stack, listener, 3)
    waiting = queued(listener)
    group.refuse_new()
    group.refuse_new()
    late = connect_late(stack, listener)
    assert serve_all(listener) == waiting
    assert queued(listener) == 0
    group.admit_again()
    group.admit_again()
    assert group.listeners == (listener,)
    assert eventually(lambda: queued(listener) == late), "their SYN comes again within 1 s"
    assert got(group, stack) == [20]


def test_late_clients_are_refused_once_the_group_is_closed(stack: ExitStack) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    with group_on("127.0.0.1") as group:
        group.refuse_new()
        late = stack.enter_context(socket.socket())
        late.setblocking(False)
        late.connect_ex(group.current.sock.getsockname())
    late.settimeout(10)
    poll = select.poll()
    poll.register(late, select.POLLOUT)
    assert poll.poll(10_000), "their SYN comes again within 1 s"
    assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    late.close()
    assert len(os.listdir("/proc/self/fd")) == fds


def test_several_generations_let_nobody_in(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        old, new = group.current, group.beside(backlog=64)
        group.share(new, 50)
        connect(stack, old, 20)
        waiting = queued(old) + queued(new)
        group.refuse_new()
        connect_late(stack, old)
        assert serve_all(old) + serve_all(new) == waiting == 20


@needs_filter
def test_a_handshake_under_way_ends_at_its_listener_though_nobody_is_let_in(group: Group, stack: ExitStack) -> None:
    listener = group.current
    client = shy_client(stack, ways_to(listener)[0])
    group.refuse_new()
    let_hear(client)
    assert eventually(lambda: queued(listener) == 1), "the SYN-ACK comes again within 1 s"


@needs_filter
def test_a_handshake_under_way_ends_at_the_listener_it_began_at(stack: ExitStack) -> None:
    with group_on("127.0.0.1") as group:
        old, new = group.current, group.beside(backlog=64)
        client = shy_client(stack, old.sock.getsockname())
        group.steer_to(new)
        let_hear(client)
        assert eventually(lambda: queued(old) == 1), "the SYN-ACK comes again within 1 s"
        assert queued(new) == 0


@needs_filter
@pytest.mark.parametrize("host", HOSTS.values())
def test_a_lone_listener_lets_nobody_in_while_its_queue_is_served(host: str, stack: ExitStack) -> None:
    with open_tcp(host, 0, backlog=64) as listener:
        connect(stack, listener, 3)
        waiting = queued(listener)
        refuse_new(listener)
        late = connect_late(stack, listener)
        assert serve_all(listener) == waiting
        assert queued(listener) == 0
        admit_again(listener)
        assert eventually(lambda: queued(listener) == late), "their SYN comes again within 1 s"
        with pytest.raises(LinuxError, match="cannot let new connections in again"):
            admit_again(listener)


@needs_filter
def test_what_was_accepted_is_not_cut_by_the_filter(stack: ExitStack) -> None:
    with open_tcp("127.0.0.1", 0, backlog=8) as listener:
        client = stack.enter_context(socket.create_connection(listener.sock.getsockname()))
        refuse_new(listener)
        connection = stack.enter_context(listener.sock.accept()[0])
        for sender, receiver in ((client, connection), (connection, client)):
            sender.sendall(b"x" * 100_000)
            left = 100_000
            while left:
                left -= len(receiver.recv(left))


@needs_filter
def test_a_handshake_under_way_passes_the_filter(stack: ExitStack) -> None:
    with open_tcp("127.0.0.1", 0, backlog=8) as listener:
        client = shy_client(stack, listener.sock.getsockname())
        refuse_new(listener)
        assert queued(listener) == 0
        let_hear(client)
        assert eventually(lambda: queued(listener) == 1), "the SYN-ACK comes again within 1 s"


def test_a_unix_path_is_gone_while_its_queue_is_served(tmp_path: os.PathLike[str], stack: ExitStack) -> None:
    path = f"{tmp_path}/s"
    with open_unix(path, backlog=8) as listener:
        early = stack.enter_context(socket.socket(socket.AF_UNIX))
        early.connect(path)
        refuse_new(listener)
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(FileNotFoundError):
            late.connect(path)
        listener.sock.accept()[0].close()
        assert early.recv(1) == b""
        with pytest.raises(LinuxError, match="no file of its own"):
            refuse_new(listener)


def test_an_abstract_socket_cannot_refuse() -> None:
    refusal = pytest.raises(LinuxError, match="no file of its own")
    with open_unix(f"@fcgimgr-steer-{os.getpid()}", backlog=8) as listener, refusal:
        refuse_new(listener)


def shared_socket(port: int) -> socket.socket:
    """What any other program of our uid may do."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    socket.socket.listen(sock, 8)
    return sock


def test_a_group_that_refuses_and_closes_leaves_its_port_free() -> None:
    first = open_tcp("127.0.0.1", 0, backlog=8, reuseport=True)
    port = first.sock.getsockname()[1]
    group = Group(first)
    group.refuse_new()
    group.close(first)
    assert group.listeners == ()
    open_tcp("127.0.0.1", port, backlog=8, reuseport=True).close()
