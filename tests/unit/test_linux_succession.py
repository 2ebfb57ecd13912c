"""A Unix socket's successor: bound beside the old one, renamed over it, and each removes only its own file."""

import errno
import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fcgimgr.linux import sockdiag
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import LONGEST_PATH, Listener, open_tcp, open_unix, take_back
from fcgimgr.linux.procfs import sockets
from tests.rights import as_root
from tests.unit.generations import serve
from tests.waiting import eventually


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def answered_by(path: str, listener: Listener) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        waiting = sockdiag.queue_length(listener.sock)
        if waiting is None or not waiting[0]:
            return False
        listener.sock.accept()[0].close()
        return True


def test_the_successor_waits_beside_and_takes_the_place_at_once(path: str, stack: ExitStack) -> None:
    old = stack.enter_context(open_unix(path, backlog=8))
    new = stack.enter_context(old.beside(backlog=8))
    assert answered_by(path, old)
    assert answered_by(f"{path}.new", new), "a ping reaches the new one alone"
    new.take_over(old)
    assert answered_by(path, new)
    assert not os.path.exists(f"{path}.new")
    assert new.name == old.name == f"unix:{path}"


def test_what_waits_with_the_old_stays_with_the_old(path: str, stack: ExitStack) -> None:
    old = stack.enter_context(open_unix(path, backlog=8))
    client = stack.enter_context(socket.socket(socket.AF_UNIX))
    client.connect(path)
    stack.enter_context(old.beside(backlog=8)).take_over(old)
    assert sockdiag.queue_length(old.sock) == (1, 8)
    old.sock.accept()[0].close()
    assert client.recv(1) == b""


def test_the_old_leaves_the_new_file_and_the_new_removes_it(path: str) -> None:
    old = open_unix(path, backlog=8)
    new = old.beside(backlog=8)
    new.take_over(old)
    old.close()
    assert answered_by(path, new)
    new.set_mode(0o600)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    new.close()
    assert not os.path.exists(path)


def shown(path: str) -> list[str]:
    """The files beside this one, with it, that are not hidden."""
    return sorted(name for name in os.listdir(os.path.dirname(path)) if not name.startswith("."))


def test_an_abandoned_successor_leaves_no_file(path: str) -> None:
    with open_unix(path, backlog=8) as old:
        old.beside(backlog=8).close()
        assert shown(path) == ["s"]
        assert answered_by(path, old)


def test_ten_successions_in_a_row(path: str) -> None:
    listener = open_unix(path, backlog=8)
    fds = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        old, listener = listener, listener.beside(backlog=8)
        listener.take_over(old)
        old.close()
    assert answered_by(path, listener)
    assert len(os.listdir("/proc/self/fd")) == fds
    listener.close()
    assert os.listdir(os.path.dirname(path)) == []


def test_the_successor_has_the_mode_the_file_has_now(path: str, stack: ExitStack) -> None:
    old = stack.enter_context(open_unix(path, backlog=8, mode=0o660))
    old.set_mode(0o606)
    stack.enter_context(old.beside(backlog=8))
    assert stat.S_IMODE(os.stat(f"{path}.new").st_mode) == 0o606


@as_root
def test_the_successor_has_the_owner_the_file_has_now(path: str, stack: ExitStack) -> None:
    old = stack.enter_context(open_unix(path, backlog=8))
    old.set_owner(1234, 4321)
    stack.enter_context(old.beside(backlog=8))
    made = os.stat(f"{path}.new")
    assert (made.st_uid, made.st_gid) == (1234, 4321)


def test_a_dead_socket_beside_gives_way_and_a_live_one_does_not(path: str, stack: ExitStack) -> None:
    old = stack.enter_context(open_unix(path, backlog=8))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{path}.new")
    stack.enter_context(old.beside(backlog=8))
    with pytest.raises(LinuxError, match=rf"s\.new: a live process serves this socket by pid {os.getpid()}"):
        old.beside(backlog=8)


def test_a_path_replaced_by_somebody_else_is_not_taken_over(path: str, stack: ExitStack) -> None:
    old = stack.enter_context(open_unix(path, backlog=8))
    new = stack.enter_context(old.beside(backlog=8))
    os.unlink(path)
    Path(path).write_text("precious")
    with pytest.raises(LinuxError, match=r"the socket at .*/s is not ours any more"):
        new.take_over(old)
    assert Path(path).read_text() == "precious"
    assert answered_by(f"{path}.new", new)


def test_a_successor_that_lost_its_file_takes_nothing_over(path: str, stack: ExitStack) -> None:
    old = stack.enter_context(open_unix(path, backlog=8))
    new = stack.enter_context(old.beside(backlog=8))
    for name in os.listdir(os.path.dirname(path)):
        if os.path.samefile(os.path.join(os.path.dirname(path), name), f"{path}.new") and name != "s.new":
            os.unlink(os.path.join(os.path.dirname(path), name))
    os.unlink(f"{path}.new")
    with pytest.raises(LinuxError, match=r"s\.new was removed, and cannot be put back"):
        new.take_over(old)
    assert answered_by(path, old)


@pytest.mark.parametrize("removed", ["s", "s.new"])
def test_a_file_that_was_removed_is_put_back_for_its_successor(removed: str, path: str, stack: ExitStack) -> None:
    old = stack.enter_context(open_unix(path, backlog=8))
    new = stack.enter_context(old.beside(backlog=8))
    os.unlink(os.path.join(os.path.dirname(path), removed))
    assert new.trade_places(old)
    assert answered_by(path, new)
    assert answered_by(f"{path}.new", old)


@pytest.mark.parametrize("code", [0, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("anew", ["the file", "its directory"])
def test_where_no_name_is_left_of_the_old_file_the_new_one_takes_the_free_path(
    anew: str, code: int, path: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(old: str, new: str, *, in_directory: int, in_other: int) -> None:
        raise OSError(code, os.strerror(code))

    if code:
        monkeypatch.setattr("fcgimgr.linux.socketfile.rename_to_free", refuse)
    old = stack.enter_context(open_unix(path, backlog=8))
    if anew == "the file":
        for name in os.listdir(os.path.dirname(path)):
            os.unlink(os.path.join(os.path.dirname(path), name))
    else:
        shutil.rmtree(os.path.dirname(path))
        os.mkdir(os.path.dirname(path))
    new = stack.enter_context(old.beside(backlog=8))
    assert not new.trade_places(old)
    assert answered_by(path, new)
    assert (new.path, old.path) == (path, None)
    assert shown(path) == ["s"]
    old.close()
    assert answered_by(path, new)


def test_places_that_were_traded_are_traded_back(path: str, stack: ExitStack) -> None:
    old = stack.enter_context(open_unix(path, backlog=8))
    new = stack.enter_context(old.beside(backlog=8))
    for first, second in ((new, old), (old, new)):
        assert new.trade_places(old)
        assert answered_by(path, first)
        assert answered_by(f"{path}.new", second)
        assert (first.path, first.name) == (path, f"unix:{path}")
        assert (second.path, second.name) == (f"{path}.new", f"unix:{path}.new")
    assert new.trade_places(old)
    new.keep_place(old)
    assert (old.path, old.name) == (None, f"unix:{path}")
    assert shown(path) == ["s"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_where_nothing_can_be_exchanged_it_is_renamed(
    code: int, path: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(one: str, other: str, *, in_directory: int, in_other: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcgimgr.linux.socketfile.exchange", refuse)
    old = stack.enter_context(open_unix(path, backlog=8))
    new = stack.enter_context(old.beside(backlog=8))
    assert not new.trade_places(old)
    assert answered_by(path, new)
    assert shown(path) == ["s"]
    old.close()
    assert answered_by(path, new)


def test_where_there_is_no_file_there_is_no_beside(stack: ExitStack) -> None:
    for listener in (open_tcp("127.0.0.1", 0, backlog=8), open_unix(f"@fcgimgr-next-{os.getpid()}", backlog=8)):
        stack.enter_context(listener)
        with pytest.raises(LinuxError, match="has no file beside"):
            listener.beside(backlog=8)


def test_the_longest_path_has_one_beside_it_as_any_other(tmp_path: Path, stack: ExitStack) -> None:
    longest = str(tmp_path / ("s" * (LONGEST_PATH - len(str(tmp_path)) - 1)))
    old = stack.enter_context(open_unix(longest, backlog=8))
    new = stack.enter_context(old.beside(backlog=8))
    with pytest.raises(LinuxError, match="a live process serves this socket"):
        old.beside(backlog=8)
    with new.way_in() as way:
        assert answered_by(way, new)
    assert new.trade_places(old)
    assert answered_by(longest, new)


def test_renaming_under_load_refuses_nobody(path: str) -> None:
    """Eight threads connect without pause through 20 successions."""
    done = threading.Event()
    failures: list[OSError] = []
    answers: list[int] = []

    def ask() -> None:
        while not done.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(path)
                    answers.append(int(client.recv(16)))
            except OSError as error:
                failures.append(error)

    listener = open_unix(path, backlog=4096)
    listeners = [listener]
    servers = [threading.Thread(target=serve, args=(listener.sock, 0))]
    clients = [threading.Thread(target=ask) for _ in range(8)]
    for thread in servers + clients:
        thread.start()
    try:
        for number in range(1, 21):
            old, listener = listener, listener.beside(backlog=4096)
            listeners.append(listener)
            servers.append(threading.Thread(target=serve, args=(listener.sock, number)))
            servers[-1].start()
            listener.take_over(old)
            eventually(lambda number=number: number in answers[-50:] or failures, every=0.001)
    finally:
        done.set()
        for thread in clients:
            thread.join()
        for one in listeners:
            one.sock.shutdown(socket.SHUT_RDWR)
        for thread in servers:
            thread.join()
        for one in listeners:
            one.close()
    assert failures == []
    assert set(answers) == set(range(21))


# --- after an exec, or from a dead manager's child


def test_a_listener_taken_back_owns_its_file_again(path: str) -> None:
    before = open_unix(path, backlog=8)
    fd = os.dup(before.fileno())
    after = take_back(fd, name="unix:again", path=path)
    assert (after.inode, after.name) == (before.inode, "unix:again")
    held = sockets(os.getpid())
    assert held is not None
    assert sorted(number for number, inode in held.items() if inode == after.inode) == [before.fileno(), after.fileno()]
    assert not os.get_inheritable(after.fileno())
    after.set_mode(0o600)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    after.close()
    assert not os.path.exists(path)
    before.close()


def test_a_listener_taken_back_leaves_a_strangers_file_alone(path: str, stack: ExitStack) -> None:
    before = stack.enter_context(open_unix(path, backlog=8))
    os.unlink(path)
    stranger = stack.enter_context(open_unix(path, backlog=8))
    take_back(os.dup(before.fileno()), name="unix:again", path=path).close()
    assert answered_by(path, stranger)


def test_a_renamed_listener_is_found_under_its_new_path(path: str, stack: ExitStack) -> None:
    old = stack.enter_context(open_unix(path, backlog=8))
    new = stack.enter_context(old.beside(backlog=8))
    new.take_over(old)
    take_back(os.dup(new.fileno()), name="unix:again", path=path).close()
    assert not os.path.exists(path)


def test_what_does_not_listen_is_not_taken_back() -> None:
    with pytest.raises(LinuxError, match=r"unix:again: fd 999: bad file descriptor"):
        take_back(999, name="unix:again")
    one, two = socket.socketpair()
    with two, pytest.raises(LinuxError, match="does not listen any more"):
        take_back(one.detach(), name="unix:again")
    with pytest.raises(LinuxError, match="socket operation on non-socket"):
        take_back(os.open("/dev/null", os.O_RDONLY), name="unix:again")
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LinuxError):
        take_back(os.open("/dev/null", os.O_RDONLY), name="unix:again")
    assert len(os.listdir("/proc/self/fd")) == fds
