"""Processes by descriptor: children, and what is not our child."""

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
from fcgimgr.linux.pidfd import PidFd
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
