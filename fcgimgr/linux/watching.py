"""Trees of source files, watched: which of them were changed. By inotify: until something happens, nothing is done.

A file counts as changed when its content is another than it was, or it came or went: not when it was only touched, or
saved as it was. So the events say where to look, and what is found there is compared with what was there before.
Directories that a link leads to are watched as well, under their own path, wherever they are.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterable
from typing import Final

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.libc import inotify_add_watch, inotify_init, inotify_rm_watch

# linux/inotify.h
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_ISDIR, _ONLYDIR, _DONT_FOLLOW = 0x40000000, 0x01000000, 0x02000000
_MASK: Final = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR | _DONT_FOLLOW
_EVENT: Final = struct.Struct("iIII")

#: Directories in which no source of the application is: other people's code, and what tools leave behind.
_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})

#: Bytes. What is larger was not written by hand, and is not read: its size and time stand for its content.
_LARGE: Final = 1 << 20


class SourceTree:
    """The files below `roots` whose path `wanted` likes; not below hidden directories, nor in a virtualenv.

    LinuxError when they cannot be watched.
    """

    def __init__(self, roots: Iterable[str], wanted: Callable[[str], bool]) -> None:
        self._roots = {os.path.realpath(root) for root in roots}
        self._wanted = wanted
        self._directories: dict[int, str] = {}  # by the number of the watch
        self._files: dict[str, bytes] = {}  # what stands for the content of each
        self._to_look_at: set[str] = set()
        try:
            self._fd = inotify_init()
        except OSError as error:
            raise LinuxError(
                f"cannot watch files: {error.strerror}; raise fs.inotify.max_user_instances (sysctl)"
            ) from error
        try:
            self._watch_all()
        except BaseException:
            self.close()
            raise
        self.changes()

    def fileno(self) -> int:
        """Readable when there may be changes."""
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def hear(self) -> bool:
        """Take in what has happened; whether there is anything for `changes` to look at. Does not wait."""
        while events := self._read():
            at = 0
            while at < len(events):
                number, mask, _, length = _EVENT.unpack_from(events, at)
                at += _EVENT.size + length
                self._happened(number, mask, os.fsdecode(events[at - length : at].rstrip(b"\0")))
        return bool(self._to_look_at)

    def changes(self) -> set[str]:
        """The paths of the files that are others than at the last call; does not wait."""
        self.hear()
        paths, self._to_look_at = self._to_look_at, set()
        changed: set[str] = set()
        for path in paths:
            content = _content(path)
            if content == self._files.get(path):
                continue
            changed.add(path)
            if content is None:
                del self._files[path]
            else:
                self._files[path] = content
        return changed

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return b""

    def _happened(self, number: int, mask: int, name: str) -> None:
        if number < 0:  # IN_Q_OVERFLOW: some events are lost, of directories too
            self._to_look_at.update(self._files)
            self._watch_all()
            return
        directory = self._directories.get(number)
        if directory is None or not name:
            return
        path = os.path.join(directory, name)
        if mask & _ISDIR:
            if mask & (_MOVED_FROM | _DELETE):
                self._forget(path)
            elif mask & (_CREATE | _MOVED_TO):
                self._watch(path, set())
        elif not mask & _CREATE:
            self._note(path)
        elif _is_whole(path):
            self._enter(path, set())

    def _note(self, path: str) -> None:
        if self._wanted(path):
            self._to_look_at.add(path)

    def _enter(self, path: str, seen: set[int]) -> None:
        """A link or a file that is there: to be looked at, or as a directory to be watched."""
        if not os.path.isdir(path):
            self._note(path)
        elif not _is_skipped_by_name(path):
            target = os.path.realpath(path)
            # Of a link to where we come from all is watched already, and what is beside that was not meant.
            if not any(_is_within(root, target) for root in self._roots):
                self._watch(target, seen)

    def _watch_all(self) -> None:
        seen: set[int] = set()
        for root in sorted(self._roots):
            self._watch(root, seen)

    def _watch(self, top: str, seen: set[int]) -> None:
        """Watch a directory and all below it, and look at the files in them. `seen`: watched on this walk already."""
        if top not in self._roots and is_skipped(top):
            return
        try:
            number = inotify_add_watch(self._fd, top, _MASK)  # of a directory that is watched, the same as before
            self._directories[number] = top
            if number in seen:
                return
            seen.add(number)
            with os.scandir(top) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        self._enter(entry.path, seen)
                    elif entry.is_dir():
                        self._watch(entry.path, seen)
                    else:
                        self._note(entry.path)
        except FileNotFoundError:
            pass  # It has gone again.
        except OSError as error:
            if top not in self._roots and isinstance(error, (PermissionError, NotADirectoryError)):
                return
            raise LinuxError(
                f"cannot watch {top}: {error.strerror}; "
                "if it says that no space is left, raise fs.inotify.max_user_watches (sysctl)"
            ) from error

    def _forget(self, top: str) -> None:
        """A directory is not there any more: its files have gone, wherever it is now."""
        for number in [number for number, path in self._directories.items() if _is_within(path, top)]:
            del self._directories[number]
            try:
                inotify_rm_watch(self._fd, number)
            except OSError:
                pass  # The kernel has let go of it already, because it was deleted.
        self._to_look_at.update(path for path in self._files if _is_within(path, top))


def is_skipped(directory: str) -> bool:
    """Whether what lies in it is no source of the application, by its name or as a virtualenv."""
    return _is_skipped_by_name(directory) or os.path.exists(os.path.join(directory, "pyvenv.cfg"))


def _is_skipped_by_name(directory: str) -> bool:
    name = os.path.basename(directory)
    return name.startswith(".") or name in _SKIPPED


def _is_within(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _is_whole(path: str) -> bool:
    """Whether nothing more will be heard of a file that was created: a link of either kind. All others are written."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISLNK(found.st_mode) or found.st_nlink > 1


def _content(path: str) -> bytes | None:
    """What stands for the content of a file; None where there is none that can be read."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # a FIFO is not waited for
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                return None
            if found.st_size > _LARGE:
                return b"%d %d" % (found.st_size, found.st_mtime_ns)
            return hashlib.blake2b(file.read(), digest_size=16).digest()
    except OSError:
        return None
