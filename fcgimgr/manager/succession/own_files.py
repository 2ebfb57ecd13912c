"""The directories and locks that a manager needs for itself: its control socket's, its state's."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Self

from fcgimgr.config.settings import ManagerSettings
from fcgimgr.linux.accounts import resolve_owner
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import Listener, open_unix, take_back
from fcgimgr.linux.locks import LockFile
from fcgimgr.linux.owndirectory import ensure_directory
from fcgimgr.linux.procfs import boot_id
from fcgimgr.manager.succession.state import NAME, StateError, read


class UnsafeError(LinuxError):
    """All is there, and others may put something else in its place by now."""


class Places:
    """What is held while the manager runs. LinuxError when another manager holds it, or it cannot be had."""

    def __init__(self, settings: ManagerSettings, config: str = "") -> None:
        """config: the path of the configuration, for the words in which a second one is refused."""
        self._settings = settings
        self.made_state_dir = ensure_directories(settings)
        self.locks: list[LockFile] = []
        self._opened = ExitStack()
        try:
            self.locks.append(self._lock(settings, config))
            if settings.pidfile is not None:
                self.locks.append(LockFile(settings.pidfile))
            self.control = open_control(settings)
            self._opened.callback(lambda: self.control.close())
        except LinuxError:
            self.release()
            raise

    @classmethod
    def kept(cls, settings: ManagerSettings, locks: dict[str, int], control: int, *, made_state_dir: bool) -> Self:
        """What was held before an exec, by its descriptors. LinuxError: one of them is not what it should be."""
        places = cls.__new__(cls)
        places.made_state_dir = made_state_dir
        places._settings = settings
        places.locks = [LockFile.kept(path, fd) for path, fd in locks.items()]
        places.control = take_back(control, name=settings.control, path=settings.control)
        places._opened = ExitStack()
        places._opened.callback(lambda: places.control.close())
        return places

    def open_to(self, settings: ManagerSettings) -> None:
        """Have the control socket for those whom these settings let in. LinuxError: it cannot be; all is as it was."""
        before = self.control.file.attributes() if self.control.file is not None else None
        owner = control_owner(settings)
        try:
            if before is not None:
                self.control.set_mode(before[2] & settings.control_mode)  # nobody is let in who is to be neither way
            self.control.set_owner(*owner)
            self.control.set_mode(settings.control_mode)
        except LinuxError:
            if before is not None:
                self.control.set_mode(before[2])
            raise
        self._settings = settings

    def put_back(self) -> list[str]:
        """Have all of it again, where somebody has removed it: the paths that had gone.

        LinuxError: it cannot be. UnsafeError: nothing has gone, but a manager that starts would not have it there.
        """
        settings = self._settings
        gone = []
        if not os.path.isdir(settings.state_dir):
            gone.append(settings.state_dir)
        try:
            ensure_directories(settings)
        except LinuxError as error:
            if self._are_in_place():
                raise UnsafeError(str(error)) from error
            raise
        gone += self._lock_again(0)
        file = self.control.file
        if file is None or not file.is_in_place():
            gone.append(settings.control)
            if file is None or not file.put_back():
                self.control = open_control(settings)  # whoever waits at the one before is served by its server
        for number in range(1, len(self.locks)):
            gone += self._lock_again(number)
        return gone

    def _are_in_place(self) -> bool:
        file = self.control.file
        return file is not None and file.is_in_place() and all(lock.is_in_place() for lock in self.locks)

    def _lock_again(self, number: int) -> list[str]:
        lock = self.locks[number]
        if lock.is_in_place():
            return []
        self.locks[number] = LockFile(lock.path)
        lock.release()
        return [lock.path]

    def _lock(self, settings: ManagerSettings, config: str) -> LockFile:
        try:
            return LockFile(os.path.join(settings.state_dir, "lock"))
        except LinuxError as error:
            if not isinstance(error.__cause__, BlockingIOError):  # not held by another: a full disk, say
                raise
            refuse_another(settings, config, _runs(settings))
            raise LinuxError(f"is a manager running already on {settings.control}? {error}") from error

    def release(self) -> None:
        """Leave nothing behind but what others have put there, and the state that a next manager is to find."""
        self._opened.close()
        for lock in self.locks:
            lock.remove()
        if self.made_state_dir:
            try:
                os.rmdir(self._settings.state_dir)
            except OSError:
                return  # somebody has put a file there: it is theirs to remove


def refuse_another(settings: ManagerSettings, config: str, runs: str | None) -> None:
    """LinuxError if the manager that is here, or has left its processes here, `runs` another configuration."""
    if runs is None or runs == config or not os.path.exists(runs) or os.path.samefile(runs, config):
        return
    directory, project = os.path.dirname(settings.control), os.path.basename(os.path.dirname(config))
    own = os.path.join(directory, f"{project or 'other'}.sock")
    raise LinuxError(
        f"{settings.control} is the control socket of {runs}; {config} needs one of its own: "
        f'[manager] control = "{own}"'
    )


def _runs(settings: ManagerSettings) -> str | None:
    """The configuration that the manager with this state runs; None: it is not known."""
    try:
        saved = read(os.path.join(settings.state_dir, NAME), boot_id())
    except (StateError, LinuxError):
        return None
    return saved.manager.path if saved is not None else None


def control_owner(settings: ManagerSettings) -> tuple[int, int]:
    """(uid, gid) of the control socket. LinuxError: there is no such user or group."""
    uid, gid = resolve_owner(settings.control_owner) if settings.control_owner else (-1, -1)
    return os.geteuid() if uid == -1 else uid, os.getegid() if gid == -1 else gid


def open_control(settings: ManagerSettings) -> Listener:
    """The control socket. LinuxError."""
    owner = resolve_owner(settings.control_owner) if settings.control_owner else None
    return open_unix(settings.control, backlog=64, owner=owner, mode=settings.control_mode, name=settings.control)


def ensure_directories(settings: ManagerSettings) -> bool:
    """Let there be the directories that the manager needs. True if the one of its state had to be made. LinuxError."""
    ensure_directory(os.path.dirname(settings.control), 0o755 if os.geteuid() == 0 else 0o700, "control")
    # Others may pass through (0711), to reach the notify socket that is theirs; they cannot list it.
    return ensure_directory(settings.state_dir, 0o711, "state_dir")
