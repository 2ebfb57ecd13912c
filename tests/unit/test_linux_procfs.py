"""What /proc says, of processes in a known state."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgimgr.linux import procfs
from tests.waiting import eventually


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A shell with a child of its own, in a session of its own."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", "sleep 1000 & echo $!; wait"],
        stdout=subprocess.PIPE,
        env={"FIRST": "1", "MIDDLE": "2", "LAST": ""},
        start_new_session=True,
    )
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    process.stdout.close()
    process.wait()


@pytest.fixture
def gone() -> int:
    """The pid of a process that is no more."""
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def test_pid_and_start_time_are_an_identity(sleeper: subprocess.Popen[bytes]) -> None:
    started = procfs.start_time(sleeper.pid)
    assert started is not None
    assert started == procfs.start_time(sleeper.pid)
    age = procfs.age(sleeper.pid, time.clock_gettime(time.CLOCK_BOOTTIME))
    assert age is not None
    assert 0 <= age < 60


def test_a_name_with_brackets_and_spaces_does_not_confuse() -> None:
    script = "open('/proc/self/comm', 'w').write(') Z 1 (x'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert procfs.parent(process.pid) == os.getpid()
        assert procfs.command(process.pid) == ") Z 1 (x"
        process.communicate(b"\n")


def test_state_parent_session_and_children(sleeper: subprocess.Popen[bytes]) -> None:
    assert sleeper.stdout is not None
    grandchild = int(sleeper.stdout.readline())
    assert procfs.children(sleeper.pid) == [grandchild]
    assert procfs.parent(grandchild) == sleeper.pid
    assert procfs.session(grandchild) == sleeper.pid
    os.kill(sleeper.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(sleeper.pid) == "T")
    os.kill(sleeper.pid, signal.SIGCONT)


def test_a_thousand_children_are_all_read() -> None:
    # More than one page of text, which the kernel hands out in pieces.
    script = """
import os, signal, sys
for _ in range(1000):
    if os.fork() == 0:
        signal.pause()
sys.stdout.write("up"); sys.stdout.flush()
sys.stdin.read(1)
os.killpg(0, signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        found = procfs.children(process.pid)
        assert found is not None
        assert len(set(found)) == 1000
        process.communicate(b"x")


def test_rss_is_in_bytes() -> None:
    before = procfs.rss(os.getpid())
    ballast = bytearray(os.urandom(1)) * (32 * 1024 * 1024)
    after = procfs.rss(os.getpid())
    assert before is not None
    assert after is not None
    assert after - before > 16 * 1024 * 1024
    del ballast


def test_the_environment_it_was_started_with(sleeper: subprocess.Popen[bytes]) -> None:
    # Until it executes its program it shows none.
    environment = eventually(lambda: procfs.environment_of(sleeper.pid))
    assert set(environment) >= {"FIRST", "MIDDLE", "LAST"}


def test_sockets_are_told_by_inode(tmp_path: Path) -> None:
    with socket.socket() as one, open(tmp_path / "file", "w"):
        inode = os.fstat(one.fileno()).st_ino
        held = procfs.socket_inodes(os.getpid())
        assert held is not None
        assert inode in held
        assert f"pid {os.getpid()} (" in procfs.holders({inode})
    assert procfs.holders({inode}) == procfs.holders(set()) == procfs.holders(None) == ""


def test_of_a_process_that_is_gone_nothing_is_known(gone: int) -> None:
    assert procfs.start_time(gone) is None
    assert procfs.age(gone, 0.0) is None
    assert procfs.state(gone) is None
    assert procfs.parent(gone) is None
    assert procfs.rss(gone) is None
    assert procfs.session(gone) is None
    assert procfs.children(gone) is None
    assert procfs.environment_of(gone) is None
    assert procfs.command(gone) is None
    assert procfs.socket_inodes(gone) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_of_another_users_sockets_nothing_is_known() -> None:
    assert procfs.socket_inodes(1) is None
    assert procfs.environment_of(1) is None
    assert procfs.start_time(1) is not None
