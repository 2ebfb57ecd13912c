"""State through an exec: written, sealed, read by what we became."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.memfd import exec_keeping, memfd, read_memfd

# Becomes another program twice; each adds a line to the state, and looks whether the pid and its child stayed.
BECOMING = """
import os, subprocess, sys
from fcgimgr.linux.memfd import exec_keeping, memfd, read_memfd
if len(sys.argv) == 1:
    child, state = subprocess.Popen(["sleep", "1000"]).pid, b""
else:
    child, fd = int(sys.argv[1]), int(sys.argv[2])
    state = read_memfd(fd)
    os.close(fd)
state += b"%d %r %d\\n" % (os.getpid(), os.waitpid(child, os.WNOHANG), len(os.listdir("/proc/self/fd")))
if state.count(b"\\n") == 3:
    os.kill(child, 9)
    os.waitpid(child, 0)
    sys.stdout.write(state.decode())
else:
    fd = memfd("state", state)
    exec_keeping(sys.executable, [sys.executable, __file__, str(child), str(fd)], os.environ, [fd])
"""


def test_the_content_is_read_as_it_was_written_and_as_often_as_one_likes() -> None:
    content = os.urandom(300_000)
    fd = memfd("state", content)
    try:
        assert not os.get_inheritable(fd)
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:state")
        assert read_memfd(fd) == content
        assert read_memfd(fd) == content
    finally:
        os.close(fd)


def test_nothing_is_content_too() -> None:
    fd = memfd("state", b"")
    assert read_memfd(fd) == b""
    os.close(fd)


def test_nobody_can_change_it() -> None:
    fd = memfd("state", b"sealed")
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0)
    os.close(fd)


def test_what_is_not_a_sealed_memfd_is_not_believed() -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(LinuxError, match="is not a sealed memfd"):
        read_memfd(file.fileno())
    with pytest.raises(LinuxError, match="fd 999: is not a sealed memfd: bad file descriptor"):
        read_memfd(999)
    fd = os.memfd_create("unsealed")
    with pytest.raises(LinuxError, match="is not a sealed memfd"):
        read_memfd(fd)
    os.close(fd)


def test_pid_child_and_state_live_through_two_execs(tmp_path: "os.PathLike[str]") -> None:
    program = os.path.join(tmp_path, "becoming.py")
    with open(program, "w") as file:
        file.write(BECOMING)
    process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=30)
    lines = [line.split(maxsplit=1) for line in output.splitlines()]
    assert [int(pid) for pid, _ in lines] == [process.pid] * 3
    assert len({rest for _, rest in lines}) == 1, "a child waited for in vain and the same fds each time"
    assert lines[0][1].startswith("(0, 0)")


def test_an_exec_that_fails_changes_nothing() -> None:
    fd = memfd("state", b"x")
    with pytest.raises(LinuxError, match="cannot execute /nowhere: no such file"):
        exec_keeping("/nowhere", ["/nowhere"], {}, [fd])
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_too_long_an_environment_is_found_out() -> None:
    with pytest.raises(LinuxError, match="argument list too long"):
        exec_keeping(sys.executable, [sys.executable], {"A": "x" * 3_000_000}, [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
