"""The directories and locks that a manager needs for itself: its control socket's, its state's.

A directory that others may write to would let them replace the control socket or read what is not theirs, so what is
found there already must belong to root or to us, be no link, and be writable by nobody else (but for a sticky one like
/tmp, in which what we make ourselves is safe). Root asks the same of all directories above it: whoever may rename one
of them may put another tree in its place.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import Self

from fcgimgr.config.settings import ManagerSettings
from fcgimgr.linux.accounts import resolve_owner
from fcgimgr.linux.directories import others_who_may_change
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import Listener, open_unix, take_back
from fcgimgr.linux.locks import LockFile


class Places:
    """What is held while the manager runs. LinuxError when another manager holds it, or it cannot be had."""

    def __init__(self, settings: ManagerSettings) -> None:
        own = 0o755 if os.geteuid() == 0 else 0o700
        ensure_directory(os.path.dirname(settings.control), own, "control")
        # Others may pass through (0711), to reach the notify socket that is theirs; they cannot list it.
        self.made_state_dir = ensure_directory(settings.state_dir, 0o711, "state_dir")
        self._state_dir = settings.state_dir
        self.locks: list[LockFile] = []
        self._opened = ExitStack()
        try:
            self.locks.append(self._lock(settings))
            if settings.pidfile is not None:
                self.locks.append(LockFile(settings.pidfile))
            owner = resolve_owner(settings.control_owner) if settings.control_owner else None
            self.control: Listener = open_unix(
                settings.control, backlog=64, owner=owner, mode=settings.control_mode, name=settings.control
            )
            self._opened.callback(self.control.close)
        except LinuxError:
            self.release()
            raise

    @classmethod
    def kept(cls, settings: ManagerSettings, locks: dict[str, int], control: int, *, made_state_dir: bool) -> Self:
        """What was held before an exec, by its descriptors. LinuxError: one of them is not what it should be."""
        places = cls.__new__(cls)
        places.made_state_dir = made_state_dir
        places._state_dir = settings.state_dir
        places.locks = [LockFile.kept(path, fd) for path, fd in locks.items()]
        places.control = take_back(control, name=settings.control, path=settings.control)
        places._opened = ExitStack()
        places._opened.callback(places.control.close)
        return places

    def _lock(self, settings: ManagerSettings) -> LockFile:
        try:
            return LockFile(os.path.join(settings.state_dir, "lock"))
        except LinuxError as error:
            if not isinstance(error.__cause__, BlockingIOError):  # not held by another: a full disk, say
                raise
            raise LinuxError(f"is a manager running already on {settings.control}? {error}") from error

    def release(self) -> None:
        """Leave nothing behind but what others have put there, and the state that a next manager is to find."""
        self._opened.close()
        for lock in self.locks:
            lock.remove()
        if self.made_state_dir:
            try:
                os.rmdir(self._state_dir)
            except OSError:
                return  # somebody has put a file there: it is theirs to remove


def ensure_directory(path: str, mode: int, key: str) -> bool:
    """Let there be a directory at `path` that is safe to use; its parent must exist. True if it had to be made."""
    if os.geteuid() == 0:
        refuse_ways_of_others(os.path.dirname(path), path, key)
    made = True
    try:
        os.mkdir(path, mode)
        os.chmod(path, mode)  # mkdir's mode went through the umask
    except FileExistsError:
        made = False
    except FileNotFoundError as error:
        parent = os.path.dirname(path)
        raise LinuxError(
            f"manager.{key}: the directory {parent} does not exist; create it or choose another"
        ) from error
    except OSError as error:
        raise LinuxError(
            f"manager.{key}: cannot create the directory {path}: {error.strerror}; "
            f"create it for this user, or choose another place"
        ) from error
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise LinuxError(f"manager.{key}: {path} is not a directory; move it away or choose another place")
    if found.st_uid not in (0, os.geteuid()):
        raise LinuxError(f"manager.{key}: the directory {path} belongs to uid {found.st_uid}; choose one of our own")
    if not found.st_mode & stat.S_ISVTX:
        if found.st_mode & stat.S_IWOTH:
            raise LinuxError(
                f"manager.{key}: everybody may write to the directory {path}; chmod o-w it, or choose another"
            )
        if found.st_mode & stat.S_IWGRP and found.st_gid != 0:  # whoever is in root's group is as good as root
            raise LinuxError(
                f"manager.{key}: the group {found.st_gid} may write to the directory {path}; chmod g-w it, or choose "
                f"another"
            )
    return made


def refuse_ways_of_others(above: str, path: str, key: str) -> None:
    """LinuxError where somebody else could lead the way to `path` elsewhere, later."""
    try:
        other = others_who_may_change(above)
    except OSError:
        return  # it is not there, or no directory, which is said in other words
    if other is not None:
        raise LinuxError(
            f"manager.{key}: on the way to {path}, {other}, who could put another in its place; choose a place below "
            "directories of root's, such as /run"
        )
