"""A directory found by descriptors, one name after the other, so that nobody can lead the way elsewhere meanwhile.

A symbolic link on the way is followed only where nobody else can have put it: it sits in a directory of root's or our
own that neither its group nor others may write to. So `/var/log/app -> /data/log` is followed, and a link that an
application has put in its own directory is not.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LINKS: Final = 40  # as many as the kernel follows, path_resolution(7)
_REFUSED: Final = (
    "on its path {} is a symbolic link that another user may have put there, which is not followed; "
    "name the directory itself"
)
_WAY: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class LinkRefusedError(OSError):
    """A link that another user may have put there (`filename`)."""


@contextmanager
def directory_of(path: str) -> Iterator[tuple[int, str]]:
    """The directory that a path lies in, as a descriptor for `dir_fd`, and the file's name there. OSError."""
    way, _, name = path.rstrip("/").rpartition("/")
    directory = _walk(f"{way}/" if path.startswith("/") else way)
    try:
        yield directory, name
    finally:
        os.close(directory)


def _walk(path: str) -> int:
    names = path.split("/")
    links = 0
    here = _root(path)
    try:
        while names:
            name = names.pop(0)
            if name in ("", "."):
                continue
            there = os.open(name, _WAY, dir_fd=here)
            try:
                kind = os.fstat(there).st_mode
                if stat.S_ISLNK(kind):
                    links += 1
                    if links > LINKS or not _is_ours_alone(here):
                        raise LinkRefusedError(errno.ELOOP, _REFUSED.format(name), name)
                    target = os.readlink("", dir_fd=there)
                    names[:0] = target.split("/")
                    if not target.startswith("/"):
                        continue
                    from_root = _root(target)
                    os.close(here)
                    here = from_root
                elif stat.S_ISDIR(kind):
                    here, there = there, here
                else:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
            finally:
                os.close(there)
    except BaseException:
        os.close(here)
        raise
    return here


def _root(path: str) -> int:
    return os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _is_ours_alone(directory: int) -> bool:
    found = os.fstat(directory)
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
