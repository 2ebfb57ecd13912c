"""Listeners: real sockets, real collisions, and what is left on the disk."""

import errno
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import LOWEST_FD, Listener, inherited_sockets, open_tcp, open_unix, take_inherited
from tests.rights import as_root

as_ordinary_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may do that")


def port_of(listener: Listener) -> int:
    return int(listener.sock.getsockname()[1])


def greets(listener: Listener, family: int, address: object) -> bool:
    """Whether a client that connects to `address` is the one the listener accepts."""
    with socket.socket(family) as client:
        client.connect(address)  # type: ignore[arg-type]
        connection, _ = listener.sock.accept()
        with connection:
            connection.sendall(b"hello")
            return client.recv(5) == b"hello"


@pytest.fixture
def short(tmp_path: Path) -> str:
    """A path for a socket. (pytest's own are long, a socket's may have 107 bytes.)"""
    return str(tmp_path / "s")


# --- TCP


def test_tcp_on_ipv4() -> None:
    with open_tcp("127.0.0.1", 0, backlog=8) as listener:
        assert greets(listener, socket.AF_INET, ("127.0.0.1", port_of(listener)))


def test_tcp_on_ipv6_serves_ipv6_only() -> None:
    with open_tcp("::1", 0, backlog=8) as listener:
        assert listener.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        assert greets(listener, socket.AF_INET6, ("::1", port_of(listener)))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port_of(listener)))


def test_a_star_serves_both_families() -> None:
    with open_tcp("*", 0, backlog=8) as listener:
        assert greets(listener, socket.AF_INET, ("127.0.0.1", port_of(listener)))
        assert greets(listener, socket.AF_INET6, ("::1", port_of(listener)))


def test_a_star_is_ipv4_where_ipv6_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    # The one thing played here: a machine booted with ipv6.disable=1.
    class Socket(socket.socket):
        def __init__(self, family: int = -1, *rest: int, **more: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *rest, **more)

    monkeypatch.setattr(socket, "socket", Socket)
    with open_tcp("*", 0, backlog=8) as listener:
        assert listener.sock.family == socket.AF_INET
    with pytest.raises(LinuxError, match="IPv6 switched off"):
        open_tcp("::1", 0, backlog=8)


def test_a_host_name_is_looked_up() -> None:
    with open_tcp("localhost", 0, backlog=8) as listener:
        assert listener.sock.getsockname()[0] in ("127.0.0.1", "::1")
    with pytest.raises(LinuxError, match=r"nowhere\.invalid:1: no address is known"):
        open_tcp("nowhere.invalid", 1, backlog=8)
    with pytest.raises(LinuxError, match="ASCII"):
        open_tcp("grün", 1, backlog=8)


def test_a_port_in_use_names_its_holder() -> None:
    with open_tcp("127.0.0.1", 0, backlog=8) as first:
        with pytest.raises(LinuxError) as refusal:
            open_tcp("127.0.0.1", port_of(first), backlog=8)
        assert re.match(
            rf"127\.0\.0\.1:{port_of(first)}: the port is in use by pid {os.getpid()} \(.+\); .*another port",
            str(refusal.value),
        )


def test_a_port_is_free_again_while_old_connections_linger() -> None:
    with open_tcp("127.0.0.1", 0, backlog=8) as listener:
        port = port_of(listener)
        with socket.create_connection(("127.0.0.1", port)) as client:
            connection, _ = listener.sock.accept()
            connection.close()  # ours closes first: TIME_WAIT stays on this port
            assert client.recv(1) == b""
    open_tcp("127.0.0.1", port, backlog=8).close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(LinuxError, match=r"192\.0\.2\.1 is not an address of this machine; `ip address`"):
        open_tcp("192.0.2.1", 9001, backlog=8)


@as_ordinary_user
def test_a_low_port_is_refused_with_the_ways_out() -> None:
    with pytest.raises(LinuxError, match=r"no permission to listen on port 1 as uid .*CAP_NET_BIND_SERVICE"):
        open_tcp("127.0.0.1", 1, backlog=8)


# --- every listener


def test_fds_are_high_and_close_on_exec(short: str) -> None:
    with open_tcp("127.0.0.1", 0, backlog=8) as tcp, open_unix(short, backlog=8) as unix:
        for listener in (tcp, unix):
            assert listener.fileno() >= LOWEST_FD
            assert not os.get_inheritable(listener.fileno())
            assert listener.inode == os.fstat(listener.fileno()).st_ino


def test_the_name_is_the_callers(short: str) -> None:
    with open_unix(short, backlog=8, name="unix:/somewhere") as listener:
        assert listener.name == "unix:/somewhere"
    with open_tcp("::1", 0, backlog=8) as listener:
        assert listener.name == "[::1]:0"


def test_the_backlog_changes_live(short: str) -> None:
    with open_unix(short, backlog=0) as listener, socket.socket(socket.AF_UNIX) as first:
        first.connect(short)
        with socket.socket(socket.AF_UNIX) as second:
            second.setblocking(False)
            with pytest.raises(BlockingIOError):
                second.connect(short)
            listener.set_backlog(8)
            second.connect(short)


def test_blocking_is_switched_for_all_who_share_it(short: str) -> None:
    with open_unix(short, backlog=8) as listener:
        shared = os.dup(listener.fileno())
        assert os.get_blocking(shared)
        listener.set_blocking(False)
        assert not os.get_blocking(shared)
        listener.set_blocking(True)
        assert os.get_blocking(shared)
        os.close(shared)


def test_no_fd_is_left_by_success_or_failure(short: str) -> None:
    before = os.listdir("/proc/self/fd")
    with open_unix(short, backlog=8):
        for _ in range(3):
            with pytest.raises(LinuxError):
                open_unix(short, backlog=8)
    with open_tcp("127.0.0.1", 0, backlog=8) as tcp, pytest.raises(LinuxError):
        open_tcp("127.0.0.1", port_of(tcp), backlog=8)
    assert os.listdir("/proc/self/fd") == before


# --- Unix


def test_unix_serves(short: str) -> None:
    with open_unix(short, backlog=8) as listener:
        assert greets(listener, socket.AF_UNIX, short)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o000])
def test_the_mode_is_as_asked_whatever_the_umask(short: str, mode: int) -> None:
    before = os.umask(0o777)
    try:
        with open_unix(short, backlog=8, mode=mode):
            assert stat.S_IMODE(os.stat(short).st_mode) == mode
        assert os.umask(0o777) == 0o777
    finally:
        os.umask(before)


def test_the_mode_is_right_from_birth(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = os.chmod

    def chmod(path: str, mode: int) -> None:
        seen.append(stat.S_IMODE(os.stat(short).st_mode))
        real(path, mode)

    monkeypatch.setattr(os, "chmod", chmod)
    open_unix(short, backlog=8, mode=0o606).close()
    assert seen == [0o606]


def test_the_mode_changes_live_and_follows_a_rename(short: str) -> None:
    with open_unix(short, backlog=8, mode=0o600) as listener:
        os.rename(short, short + ".moved")
        Path(short).touch(mode=0o644)
        listener.set_mode(0o666)
        assert stat.S_IMODE(os.stat(short + ".moved").st_mode) == 0o666
        assert stat.S_IMODE(os.stat(short).st_mode) == 0o644


@as_root
def test_the_owner_is_as_asked_and_changes_live(short: str) -> None:
    with open_unix(short, backlog=8, owner=(12345, 54321), mode=0o660) as listener:
        made = os.stat(short)
        assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (12345, 54321, 0o660)
        listener.set_owner(-1, 4)
        assert (os.stat(short).st_uid, os.stat(short).st_gid) == (12345, 4)


@as_root
def test_an_owner_never_reaches_through_a_link(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = Path(short + ".precious")
    precious.touch()
    real = os.open

    def swap_then_open(path: str, flags: int, *rest: int, **more: int) -> int:
        if path == os.path.basename(short):  # the moment between bind and the descriptor
            os.unlink(short)
            os.symlink(precious, short)
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(LinuxError, match="replaced while it was being made"):
        open_unix(short, backlog=8, owner=(12345, 12345), mode=0o666)
    assert precious.stat().st_uid == 0
    assert stat.S_IMODE(precious.stat().st_mode) != 0o666


@as_ordinary_user
def test_an_owner_we_may_not_give_it_to_is_refused_and_leaves_nothing(short: str) -> None:
    with pytest.raises(LinuxError, match=r"cannot give it to 0:0.*only root"):
        open_unix(short, backlog=8, owner=(0, 0))
    assert not os.path.lexists(short)


def test_close_unlinks_our_own_file_only(short: str) -> None:
    listener = open_unix(short, backlog=8)
    listener.close()
    assert not os.path.lexists(short)
    listener.close()

    listener = open_unix(short, backlog=8)
    os.unlink(short)
    Path(short).write_text("somebody else's")
    listener.close()
    assert Path(short).read_text() == "somebody else's"


def test_a_dead_socket_gives_way(short: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(short)
        dead.listen()
    assert os.path.lexists(short)
    with open_unix(short, backlog=8) as listener:
        assert greets(listener, socket.AF_UNIX, short)


def test_a_dead_socket_gives_way_while_a_connection_of_its_lives_on(short: str) -> None:
    old = open_unix(short, backlog=8)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(short)
        connection, _ = old.sock.accept()
        with connection:
            old.sock.close()  # as kill -9 of a manager leaves it: the file stays, and a worker's connection too
            with open_unix(short, backlog=8) as listener:
                assert greets(listener, socket.AF_UNIX, short)
    old.close()


def test_a_live_owner_is_named_and_left_alone(short: str) -> None:
    with open_unix(short, backlog=8) as first:
        with pytest.raises(LinuxError, match=rf"a live process serves this socket by pid {os.getpid()} .*another path"):
            open_unix(short, backlog=8)
        first.sock.accept()[0].close()  # the test-connect
        assert greets(first, socket.AF_UNIX, short)


def test_a_live_owner_with_a_full_queue_is_alive(short: str) -> None:
    with open_unix(short, backlog=0), socket.socket(socket.AF_UNIX) as client:
        client.connect(short)
        with pytest.raises(LinuxError, match="live process"):
            open_unix(short, backlog=8)


def test_one_that_is_just_being_opened_is_alive(short: str) -> None:
    with socket.socket(socket.AF_UNIX) as early:
        early.bind(short)
        with pytest.raises(LinuxError, match="live process"):
            open_unix(short, backlog=8)


def test_a_datagram_socket_is_alive(short: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(short)
        with pytest.raises(LinuxError, match="live process"):
            open_unix(short, backlog=8)


def test_what_is_not_a_socket_is_never_removed(short: str) -> None:
    makers: dict[str, Callable[[], object]] = {
        "a regular file": lambda: Path(short).write_text("precious"),
        "a directory": lambda: os.mkdir(short),
        "a symbolic link": lambda: os.symlink("/nowhere", short),
        "a named pipe": lambda: os.mkfifo(short),
    }
    for kind, make in makers.items():
        make()
        with pytest.raises(LinuxError, match=f"is {kind}, not a socket; move it away"):
            open_unix(short, backlog=8)
        assert os.path.lexists(short)
        os.rename(short, short + kind.replace(" ", "-"))


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(LinuxError, match=rf"the directory {tmp_path}/run does not exist; create it"):
        open_unix(f"{tmp_path}/run/s", backlog=8)


def test_a_file_for_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(LinuxError, match=rf"the directory {tmp_path}/run: not a directory"):
        open_unix(f"{tmp_path}/run/s", backlog=8)


def test_a_path_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LinuxError, match="the path has 108 bytes, a socket's may have 107"):
        open_unix("/" + "s" * 107, backlog=8)
    with pytest.raises(LinuxError, match="relative"):
        open_unix("app.sock", backlog=8)


@as_ordinary_user
def test_a_directory_we_may_not_write_to_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LinuxError, match=rf"uid {os.geteuid()} has no permission to create a file in {tmp_path};"):
        open_unix(f"{tmp_path}/s", backlog=8)
    tmp_path.chmod(0o700)


def test_an_abstract_name_serves_and_leaves_no_file() -> None:
    name = f"@fcgimgr-test-{os.getpid()}"
    with open_unix(name, backlog=8) as listener:
        assert greets(listener, socket.AF_UNIX, "\0" + name[1:])
        with pytest.raises(LinuxError, match=rf"the name is in use by pid {os.getpid()}"):
            open_unix(name, backlog=8)
    open_unix(name, backlog=8).close()


# --- inherited


def test_an_inherited_socket_is_served_and_left_open(short: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        listener = take_inherited(given.fileno(), backlog=8)
        assert greets(listener, socket.AF_INET, given.getsockname())
        listener.close()
        with take_inherited(given.fileno(), backlog=8) as again:
            assert greets(again, socket.AF_INET, given.getsockname())
    with open_unix(short, backlog=8) as given_unix:
        take_inherited(given_unix.fileno(), backlog=8).close()
        assert os.path.lexists(short), "whoever made the file removes it"


def test_what_is_no_listener_is_refused(tmp_path: Path) -> None:
    ordinary = os.open(tmp_path / "file", os.O_CREAT)
    with pytest.raises(LinuxError, match=f"fd:{ordinary}: is open, but is not a socket"):
        take_inherited(ordinary, backlog=8)
    os.close(ordinary)
    with pytest.raises(LinuxError, match=f"fd:{ordinary}: bad file descriptor; nothing was passed"):
        take_inherited(ordinary, backlog=8)
    one, other = socket.socketpair()
    with one, other, pytest.raises(LinuxError, match="not a listening stream socket"):
        take_inherited(one.fileno(), backlog=8)


SYSTEMD_CHILD = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
from fcgimgr.linux.listeners import inherited_sockets
print(inherited_sockets(), [k for k in os.environ if k.startswith("LISTEN_")], os.get_inheritable(3), flush=True)
"""


def by_systemd(environment: dict[str, str], pid_offset: int = 0) -> str:
    """What a process with three sockets passed as 3, 4, 5 makes of `environment`."""
    with socket.create_server(("127.0.0.1", 0)) as given:

        def pass_them() -> None:
            high = os.dup2(given.fileno(), 60)
            for fd in (3, 4, 5):
                os.dup2(high, fd)

        return subprocess.run(
            [sys.executable, "-c", SYSTEMD_CHILD, str(pid_offset)],
            env={"PATH": os.environ["PATH"], **environment},
            preexec_fn=pass_them,
            close_fds=False,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()


def test_systemds_sockets_are_found_by_name() -> None:
    said = by_systemd({"LISTEN_FDS": "3", "LISTEN_FDNAMES": "app:web:app"})
    assert said == "{'app': [3, 5], 'web': [4]} [] False"
    assert by_systemd({"LISTEN_FDS": "2"}) == "{'unknown': [3, 4]} [] False"


def test_sockets_for_another_process_are_none_of_ours() -> None:
    assert by_systemd({"LISTEN_FDS": "2"}, pid_offset=1) == "{} [] True"


def test_a_wrong_list_of_sockets_is_refused() -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}
    with pytest.raises(LinuxError, match="'many' is not a number"):
        inherited_sockets(environment)
    assert inherited_sockets({}) == {}


def test_a_killed_owner_leaves_a_path_that_can_be_taken(short: str) -> None:
    script = (
        "import sys, time; from fcgimgr.linux.listeners import open_unix; l = open_unix(sys.argv[1], backlog=8);"
        "print('up', flush=True); l.sock.accept()"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, short], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        owner.kill()
    finally:
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()
    assert os.path.lexists(short)
    open_unix(short, backlog=8).close()
