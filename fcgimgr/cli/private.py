"""A private directory of a command: it goes when the command ends, and if that was killed, when the next one begins.

As long as its owner lives it holds a lock (flock(2)) on the directory itself, which the kernel drops however it dies.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_MINE: Final = "owned"
"""A file that is made in it once the lock is held: without it, its owner may just be about to take the lock."""


@contextmanager
def private_directory(prefix: str) -> Iterator[str]:
    """A new directory whose name begins with `prefix`, after removing those whose owners are gone."""
    _remove_abandoned(tempfile.gettempdir(), prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as path:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.close(os.open(_MINE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=lock))
            yield path
        finally:
            os.close(lock)


def _remove_abandoned(parent: str, prefix: str) -> None:
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                with suppress(OSError):  # another one has removed it, or it is not ours
                    _remove_if_abandoned(entry.path)


def _remove_if_abandoned(path: str) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(directory)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
            return
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(_MINE, dir_fd=directory, follow_symlinks=False)
        shutil.rmtree(path)  # which follows no link, whatever lies there by now
    finally:
        os.close(directory)
