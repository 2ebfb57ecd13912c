"""A tree of source files, watched: which of them were changed. By inotify: until something happens, nothing is done.

A file counts as changed when it was written and closed, or came or went by a rename, as editors and git do it. Of new
directories all files count: some may have been there before the watch was.
"""

import os
import struct
from collections.abc import Callable
from typing import Final

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.libc import inotify_add_watch, inotify_init

# linux/inotify.h
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_ISDIR, _ONLYDIR, _DONT_FOLLOW = 0x40000000, 0x01000000, 0x02000000
_MASK: Final = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR | _DONT_FOLLOW
_EVENT: Final = struct.Struct("iIII")

#: Directories in which no source of the application is: other people's code, and what tools leave behind.
_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages"})


class SourceTree:
    """The files below `root` whose path `wanted` likes; not below hidden directories, nor in a virtualenv.

    LinuxError when it cannot be watched.
    """

    def __init__(self, root: str, wanted: Callable[[str], bool]) -> None:
        self._wanted = wanted
        self._directories: dict[int, str] = {}  # by the number of the watch
        try:
            self._fd = inotify_init()
        except OSError as error:
            raise LinuxError(
                f"cannot watch files: {error.strerror}; raise fs.inotify.max_user_instances (sysctl)"
            ) from error
        self._root = root
        try:
            self._watch(root)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable when there may be changes."""
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def changes(self) -> set[str]:
        """The paths that were changed since the last call; does not wait. When there were too many, just the root."""
        try:
            events = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return set()
        changed: set[str] = set()
        at = 0
        while at < len(events):
            number, mask, _, length = _EVENT.unpack_from(events, at)
            at += _EVENT.size + length
            if number < 0:  # IN_Q_OVERFLOW
                changed.add(self._root)
            directory = self._directories.get(number)
            if directory is None or not length:
                continue
            path = os.path.join(directory, os.fsdecode(events[at - length : at].rstrip(b"\0")))
            if mask & _ISDIR:
                if mask & (_CREATE | _MOVED_TO):
                    changed |= self._watch(path)
            elif mask & ~_CREATE and self._wanted(path):
                changed.add(path)
        return changed

    def _watch(self, top: str) -> set[str]:
        """Watch a directory and all below it; the files that are in them."""
        found: set[str] = set()
        if top != self._root and is_skipped(top):
            return found
        try:
            self._directories[inotify_add_watch(self._fd, top, _MASK)] = top
            with os.scandir(top) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        found |= self._watch(entry.path)
                    elif self._wanted(entry.path):
                        found.add(entry.path)
        except FileNotFoundError:
            pass  # It has gone again.
        except OSError as error:
            if top != self._root and isinstance(error, (PermissionError, NotADirectoryError)):
                return found
            raise LinuxError(
                f"cannot watch {top}: {error.strerror}; "
                "if it says that no space is left, raise fs.inotify.max_user_watches (sysctl)"
            ) from error
        return found


def is_skipped(directory: str) -> bool:
    """Whether what lies in it is no source of the application, by its name or as a virtualenv."""
    name = os.path.basename(directory)
    return name.startswith(".") or name in _SKIPPED or os.path.exists(os.path.join(directory, "pyvenv.cfg"))
