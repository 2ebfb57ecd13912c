"""A program that cannot be executed for a while, as one on a file system that does not answer.

A write lease does it (fcntl(2), F_SETLEASE): whoever opens the file, execve too, waits until its holder gives it up, or
for /proc/sys/fs/lease-break-time (45 s). Where no lease is to be had (tmpfs on old kernels), the test says so.
"""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stuck(path: str) -> Iterator[str]:
    """Nobody can execute `path` while this lasts."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # which tells the holder that somebody wants the file
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield path
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)
