"""The log pipe: survives its reader, and is as big as it may be."""

import fcntl
import os
import subprocess
import threading
from pathlib import Path

import pytest

from fcgimgr.linux.pipes import log_pipe, open_pipe
from tests.waiting import eventually


def test_a_write_survives_the_death_of_the_reader() -> None:
    reader, writer = log_pipe()
    os.close(reader)
    assert os.write(writer, b"still here\n") == 11  # no SIGPIPE, no EPIPE
    adopter = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(adopter, 100) == b"still here\n"
    os.close(adopter)
    os.close(writer)


def test_our_end_never_blocks_and_the_childs_does() -> None:
    reader, writer = log_pipe()
    assert not os.get_blocking(reader)
    assert os.get_blocking(writer)
    assert not os.get_inheritable(reader)
    assert not os.get_inheritable(writer)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(writer)
    assert os.read(reader, 1) == b"", "end of file when the last holder is gone"
    os.close(reader)


@pytest.mark.parametrize(("asked", "granted"), [(64 * 1024, 64 * 1024), (256 * 1024, 256 * 1024), (8192, 8192)])
def test_the_size_is_as_asked(asked: int, granted: int) -> None:
    reader, writer = log_pipe(asked)
    assert fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ) == granted
    os.close(reader)
    os.close(writer)


def test_a_size_beyond_what_is_allowed_becomes_a_smaller_one() -> None:
    for asked in (1 << 31, 1 << 40):
        reader, writer = log_pipe(asked)
        assert fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ) >= 4096
        os.close(reader)
        os.close(writer)


def test_no_fd_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    for fd in log_pipe():
        os.close(fd)
    assert os.listdir("/proc/self/fd") == before


# -- of another process -----------------------------------------------------------------------------------------------


def test_the_pipe_of_another_process_is_read_on() -> None:
    reader, writer = log_pipe()
    with subprocess.Popen(["sh", "-c", "echo one; read _; echo two"], stdin=subprocess.PIPE, stdout=writer) as child:
        assert child.stdin is not None
        eventually(lambda: os.read(reader, 100) == b"one\n")
        inode = os.fstat(reader).st_ino
        os.close(reader)
        again = open_pipe(child.pid, 1, inode)
        assert again is not None
        assert not os.get_inheritable(again)
        assert not os.get_blocking(again)
        child.communicate(b"\n")
        assert os.read(again, 100) == b"two\n"
    os.close(again)
    os.close(writer)


def test_what_else_a_process_has_there_is_not_even_opened(tmp_path: Path) -> None:
    """Opening can be an act: here it would let go who waits in open(2) for a reader."""
    os.mkfifo(tmp_path / "fifo")
    waiting = threading.Thread(target=lambda: os.close(os.open(tmp_path / "fifo", os.O_WRONLY)))
    waiting.start()
    fd = os.open(tmp_path / "fifo", os.O_PATH)
    try:
        assert open_pipe(os.getpid(), fd, os.fstat(fd).st_ino + 1) is None
        waiting.join(0.2)
        assert waiting.is_alive()
    finally:
        os.close(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK))
        waiting.join()
        os.close(fd)
    with (tmp_path / "file").open("w") as file:
        assert open_pipe(os.getpid(), file.fileno(), os.fstat(file.fileno()).st_ino) is None
    assert open_pipe(os.getpid(), 9999, 1) is None
    assert open_pipe(2**22 - 1, 1, 1) is None
