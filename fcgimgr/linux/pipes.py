"""The pipe a child's output comes through, made so that a dead manager never kills the child.

The child's end is open for reading *and* writing: it is its own reader, so a write gives neither SIGPIPE nor EPIPE when
the manager is gone, and a later manager finds what was written meanwhile behind /proc/PID/fd/1. The price: the manager
sees no end of file before the last holder of that end closes it, which is what it sees of any pipe.
"""

import fcntl
import os
import stat
from typing import Final

from fcgimgr.linux import procfs

DEFAULT_SIZE: Final = 64 * 1024
_SMALLEST: Final = 4096


def log_pipe(size: int = DEFAULT_SIZE) -> tuple[int, int]:
    """A new pipe: (read_fd: non-blocking, write_fd: blocking and O_RDWR), both close-on-exec. OSError when fds run out.

    size: bytes wanted. What the kernel grants may be less: above /proc/sys/fs/pipe-user-pages-soft an ordinary user is
    refused (EPERM), as is everybody above pipe-max-size without CAP_SYS_RESOURCE; then half of it is tried, and so on.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # O_NONBLOCK sits on the open description: the one made here is a new one, and so the child's end blocks.
        both = os.open(f"/proc/self/fd/{writer}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    if size != DEFAULT_SIZE:
        _resize(both, size)
    return reader, both


def open_pipe(pid: int, fd: int, inode: int) -> int | None:
    """A non-blocking descriptor to read from the pipe of this inode that a process has as `fd`; None: it has not.

    Its description is our own: the process's end stays as it is. OSError: it may not be looked at.
    """

    def is_it(there: os.stat_result) -> bool:
        return stat.S_ISFIFO(there.st_mode) and there.st_ino == inode

    return procfs.open_fd(pid, fd, os.O_RDONLY | os.O_NONBLOCK, "pipe:[", is_it)


def _resize(fd: int, size: int) -> None:
    while size >= _SMALLEST:
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
        except (PermissionError, OverflowError):
            size //= 2
        else:
            return
