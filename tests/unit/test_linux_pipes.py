"""The log pipe: survives its reader, and is as big as it may be."""

import fcntl
import os

import pytest

from fcgimgr.linux.pipes import log_pipe


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
