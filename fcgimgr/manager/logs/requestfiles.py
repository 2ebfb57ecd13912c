"""The files that workers write to themselves (requestlogs.py): made for them, and put back when somebody removes them.

A worker runs as the pool's user, who as a rule may not create a file in /var/log. So the manager creates it before the
worker is started, and again when log files are opened anew or it was removed, with that user as its owner, who is to
write to it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from fcgimgr.linux.accounts import Account
from fcgimgr.linux.directories import directory_of
from fcgimgr.manager.logs.file import stat_in
from fcgimgr.manager.logs.opening import FILE_MODE, make_directory, open_in, open_reason


class Rights(NamedTuple):
    """account: of the pool's user, None: ours. owner (uid, gid; -1: any), mode: as the logs of the pool are to have."""

    account: Account | None
    owner: tuple[int, int] | None
    mode: int | None

    def of_file(self) -> tuple[tuple[int, int], int]:
        """The owner, who is the one that is to write to it, and the mode."""
        uid, gid = self.owner or (-1, -1)
        if self.account is not None:
            uid, gid = self.account.uid, gid if gid != -1 else self.account.gid
        return (uid, gid), FILE_MODE if self.mode is None else self.mode | stat.S_IWUSR


class RequestFiles:
    """The files, and the directories that they were made in. `watch`: is told of each that is to be looked after."""

    def __init__(self, watch: Callable[[int], None]) -> None:
        self._watch = watch
        self._homes: dict[str, os.stat_result] = {}  # by path, its directory as it was

    def create(self, path: str, rights: Rights) -> str:
        """Let there be this file, for that user to write to; what is wrong, in words, or ""."""
        problems: list[str] = []
        try:
            with directory_of(path) as (directory, name):
                self._create(path, directory, name, rights, problems.append)
        except OSError as error:
            problems.append(f"cannot be opened: {open_reason(error)}")
        return "; ".join(problems)

    def _create(self, path: str, directory: int, name: str, rights: Rights, note: Callable[[str], None]) -> None:
        owner, mode = rights.of_file()
        fd = open_in(directory, name, owner=owner, mode=mode, note=note)
        try:
            self._homes[path] = os.fstat(directory)
            self._watch(fd)
        finally:
            os.close(fd)

    def put_back(self, path: str, rights: Rights) -> str | None:
        """Make the file again, and its directory, if they were there and have been removed: what was done. OSError."""
        if path not in self._homes:
            return None
        made = "the file was removed; a new one is begun"
        try:
            with directory_of(path) as (directory, name):
                if stat_in(directory, name) is not None:
                    return None
        except FileNotFoundError:
            make_directory(path, self._homes[path])
            made = "its directory was removed; made again"
        with directory_of(path) as (directory, name):
            self._create(path, directory, name, rights, lambda note: None)
        return made
