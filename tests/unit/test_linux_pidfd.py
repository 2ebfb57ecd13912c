"""Processes by descriptor: children, and what is not our child."""

import errno
import os
import platform
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fcgimgr.linux import libc, procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import open_tcp
from fcgimgr.linux.pidfd import PidFd, which
from tests.waiting import eventually

KERNEL = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
tells_exit = pytest.mark.skipif(KERNEL < (6, 15), reason="the kernel tells it from 6.15 on")

# Starts a grandchild, tells its pid, and reaps it.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-E", "-c", "import sys; sys.exit(int(sys.stdin.readline()))"])
print(child.pid, flush=True)
child.wait()
sys.stdin.read()
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def sleeper(stack: ExitStack) -> subprocess.Popen[bytes]:
    process = stack.enter_context(subprocess.Popen(["sleep", "1000"]))
    stack.callback(process.kill)
    return process


def test_it_is_readable_when_the_process_has_ended(sleeper: subprocess.Popen[bytes]) -> None:
    with PidFd(sleeper.pid) as process:
        assert not process.has_ended()
        assert not os.get_inheritable(process.fileno())
        assert process.signal(signal.SIGKILL)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        assert poll.poll(10_000)
        assert process.has_ended()
        assert process.signal(signal.SIGKILL), "a zombie is still there"
        sleeper.wait()
        assert process.has_ended()
        assert not process.signal(signal.SIGKILL)


def test_nobody_is_an_error_with_the_pid() -> None:
    with pytest.raises(LinuxError, match=f"pid {2**22 - 1}: no such process"):
        PidFd(2**22 - 1)


def test_closing_twice_is_harmless(sleeper: subprocess.Popen[bytes]) -> None:
    process = PidFd(sleeper.pid)
    process.close()
    process.close()


@tells_exit
@pytest.mark.parametrize(("answer", "status"), [("0", 0), ("23", 23 << 8)])
def test_how_a_grandchild_exited(answer: str, status: int, stack: ExitStack) -> None:
    parent = stack.enter_context(
        subprocess.Popen([sys.executable, "-S", "-E", "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    )
    assert parent.stdin
    assert parent.stdout
    with PidFd(int(parent.stdout.readline())) as grandchild:
        assert grandchild.wait_status() is None
        parent.stdin.write(f"{answer}\n".encode())
        parent.stdin.close()
        assert eventually(lambda: grandchild.wait_status() is not None)
        assert grandchild.wait_status() == status
        assert grandchild.has_ended()


@tells_exit
def test_which_signal_ended_it_is_told_after_the_reaping(sleeper: subprocess.Popen[bytes]) -> None:
    with PidFd(sleeper.pid) as process:
        sleeper.kill()
        eventually(process.has_ended)
        assert process.wait_status() is None, "not reaped yet"
        sleeper.wait()
        assert process.wait_status() == signal.SIGKILL


def test_an_older_kernel_knows_nothing_of_an_end(sleeper: subprocess.Popen[bytes]) -> None:
    # A pidfd of an older kernel answers ENOTTY, as any other descriptor does.
    with PidFd(sleeper.pid) as process, open(os.devnull) as stranger:
        os.dup2(stranger.fileno(), process.fileno(), inheritable=False)
        assert process.wait_status() is None


# --- identity


def test_the_same_process_is_found_again(sleeper: subprocess.Popen[bytes]) -> None:
    started = procfs.start_time(sleeper.pid)
    assert started is not None
    fds = len(os.listdir("/proc/self/fd"))
    assert PidFd.of(sleeper.pid, started + 1, procfs.boot_id()) is None, "the pid is another process's by now"
    assert PidFd.of(sleeper.pid, started, "another boot") is None
    assert PidFd.of(2**22 - 1, started, procfs.boot_id()) is None
    assert len(os.listdir("/proc/self/fd")) == fds
    found = PidFd.of(sleeper.pid, started, procfs.boot_id())
    assert found is not None
    with found:
        assert found.pid == sleeper.pid
    sleeper.kill()
    eventually(lambda: procfs.state(sleeper.pid) == "Z")
    assert PidFd.of(sleeper.pid, started, procfs.boot_id()) is None, "a zombie is no process to go on with"


def test_a_process_is_known_by_what_needs_not_be_asked_of_it(sleeper: subprocess.Popen[bytes]) -> None:
    with PidFd(sleeper.pid) as one, PidFd(sleeper.pid) as same, PidFd(os.getpid()) as other:
        if one.identity is None:
            pytest.skip("a kernel before 6.9: pidfds have no inodes of their own")
        assert one.identity == same.identity == which(sleeper.pid) != other.identity
        assert one.was_known_as(None, same.identity)
        assert not one.was_known_as(procfs.start_time(sleeper.pid), other.identity), "another has the number by now"
        assert one.was_known_as(procfs.start_time(sleeper.pid), None), "as an older release has written it down"
        found = PidFd.of(sleeper.pid, None, procfs.boot_id(), one.identity)
        assert found is not None
        found.close()
        sleeper.kill()
        eventually(one.has_ended)
        assert one.is_there, "not reaped yet"
        sleeper.wait()
        assert not one.is_there


# --- its descriptors


def test_a_listener_comes_back_from_the_process_that_has_it(stack: ExitStack) -> None:
    listener = open_tcp("127.0.0.1", 0, backlog=8)
    name = listener.sock.getsockname()
    child = stack.enter_context(subprocess.Popen(["sleep", "1000"], stdin=listener.sock))
    stack.callback(child.kill)
    listener.close()
    with PidFd(child.pid) as process:
        fd = process.get_fd(0)
        assert not os.get_inheritable(fd)
        with socket.socket(fileno=fd) as again, socket.create_connection(name):
            assert again.getsockname() == name
            again.accept()[0].close()
        with pytest.raises(LinuxError, match=f"pid {child.pid}: cannot take over its fd 999: bad file descriptor"):
            process.get_fd(999)


def test_a_descriptor_that_may_not_be_had_says_what_it_takes(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Yama or a container's seccomp refuses; the kernel at hand may do neither.
    def refuse(_pidfd: int, _number: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("fcgimgr.linux.pidfd.pidfd_getfd", refuse)
    with PidFd(sleeper.pid) as process, pytest.raises(LinuxError, match=r"right to ptrace it: .*ptrace_scope"):
        process.get_fd(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_users_descriptors_are_refused_by_the_kernel(sleeper: subprocess.Popen[bytes]) -> None:
    report, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            libc.pidfd_getfd(os.pidfd_open(sleeper.pid), 0)
            os.write(say, b"0")
        except OSError as error:
            os.write(say, str(error.errno).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(say)
    with os.fdopen(report) as answer:
        assert answer.read() == "1"  # EPERM


# --- groups

LEADER = """
import os, sys, time
os.setsid()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(1000)
sys.stdin.readline()
os._exit(0)
"""


@pytest.fixture(params=["kernel", "by number"])
def group(request: pytest.FixtureRequest, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> tuple[PidFd, int]:
    """A leader that has ended and was reaped, and the member of its group that lives on. Once as before Linux 6.9."""
    if request.param == "by number":
        send = signal.pidfd_send_signal

        def older(pidfd: int, number: int, info: None = None, flags: int = 0) -> None:
            if flags:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            send(pidfd, number)

        monkeypatch.setattr(signal, "pidfd_send_signal", older)
    elif KERNEL < (6, 9):
        pytest.skip("the kernel signals a group by its leader's descriptor from 6.9 on")
    process = stack.enter_context(
        subprocess.Popen([sys.executable, "-S", "-E", "-c", LEADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    )
    assert process.stdout
    member = int(process.stdout.readline())
    leader = stack.enter_context(PidFd(process.pid))
    assert process.stdin
    process.stdin.write(b"\n")
    process.stdin.close()
    process.wait()
    return leader, member


def test_a_group_is_signalled_when_its_leader_is_gone(group: tuple[PidFd, int]) -> None:
    leader, member = group
    with PidFd(member) as process:
        assert not leader.signal(signal.SIGKILL)
        assert leader.signal_group(0)
        assert leader.signal_group(signal.SIGKILL)
        eventually(process.has_ended)
    eventually(lambda: not leader.signal_group(0))


def test_a_group_of_the_same_number_is_not_that_group(stack: ExitStack) -> None:
    """Its leader's descriptor knows the number's first owner only."""
    if KERNEL < (6, 9):
        pytest.skip("the kernel signals a group by its leader's descriptor from 6.9 on")
    with subprocess.Popen(["true"], process_group=0) as process:
        leader = stack.enter_context(PidFd(process.pid))
    with subprocess.Popen(["sleep", "1000"], process_group=0) as other:
        leader.pid = other.pid  # as if the number had come round
        assert not leader.signal_group(signal.SIGKILL)
        assert other.poll() is None
        other.kill()


def test_before_linux_6_9_a_process_of_the_leaders_number_is_another(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["true"], process_group=0) as process:
        leader = stack.enter_context(PidFd(process.pid))
    with subprocess.Popen(["sleep", "1000"], process_group=0) as other:
        leader.pid = other.pid  # as if the number had come round
        assert not leader._signal_group_by_number(signal.SIGKILL)
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("pid", [1, 0])
def test_everybody_is_never_signalled(pid: int, sleeper: subprocess.Popen[bytes]) -> None:
    with PidFd(sleeper.pid) as process:
        process.pid = pid
        for send in (process.signal, process.signal_group):
            with pytest.raises(ValueError, match="not to be signalled"):
                send(0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may signal anybody")
def test_another_users_process_is_named() -> None:
    theirs = next(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid > 1 and not_ours(pid))
    with PidFd(theirs) as process, pytest.raises(LinuxError, match=rf"pid {theirs}: not permitted to send signal 0"):
        process.signal(0)


def not_ours(pid: int) -> bool:
    return os.stat(f"/proc/{pid}").st_uid != os.geteuid()


def test_only_what_descends_from_it_is_found_below_it(stack: ExitStack, sleeper: subprocess.Popen[bytes]) -> None:
    parent = stack.enter_context(
        subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    )
    stack.callback(parent.kill)
    assert parent.stdout
    grandchild = int(parent.stdout.readline())
    for ancestor in (parent.pid, os.getpid()):
        found = PidFd.below(grandchild, ancestor)
        assert found is not None
        found.close()
    assert PidFd.below(sleeper.pid, parent.pid) is None
    assert PidFd.below(parent.pid, parent.pid) is None
    os.kill(grandchild, signal.SIGKILL)
    eventually(lambda: procfs.state(grandchild) is None)
    assert PidFd.below(grandchild, parent.pid) is None
