"""The pipes that a new process writes to: the ends that we read, and those that it is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fcgimgr.config.settings import ProcessSettings
from fcgimgr.linux.accounts import Account
from fcgimgr.linux.pipes import log_pipe
from fcgimgr.linux.recipes import is_us


class Pipes:
    """`stdout`, `stderr`: for the process, the same where redirect_stderr says so; `from_stderr` is then None.

    OSError: no descriptors are left. Whoever reads from them takes `from_stdout` and `from_stderr` over. close: closes
    what a process may have (reading.py says why that is not always close(2)).
    """

    def __init__(self, settings: ProcessSettings, close: Callable[[int], None] = os.close) -> None:
        self._close = close
        self.from_stdout, self.stdout = log_pipe()
        self.from_stderr: int | None = None
        self.stderr = self.stdout
        if not settings.redirect_stderr:
            try:
                self.from_stderr, self.stderr = log_pipe()
            except OSError:
                self.close()
                raise

    def give_to(self, account: Account | None) -> None:
        """Let a process of this account open them too, as /dev/stderr: that asks for the owner."""
        if account is not None and not is_us(account):
            for fd in {self.stdout, self.stderr}:
                os.fchown(fd, account.uid, account.gid)

    def close_theirs(self) -> None:
        """The process has them."""
        for fd in {self.stdout, self.stderr} - {-1}:
            self._close(fd)
        self.stdout = self.stderr = -1

    def close(self) -> None:
        """There is no process."""
        self.close_theirs()
        for fd in (self.from_stdout, self.from_stderr):
            if fd is not None:
                self._close(fd)


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """A descriptor that is closed in the end."""
    try:
        yield fd
    finally:
        os.close(fd)
