"""What a dead process leaves behind: the rest of its process group, and children that slipped out of it.

php-cgi's parent ends at once on TERM while its children still answer; fcgiwrap's children live on for ever. Both keep
the socket open. So when a leader has died, what is left of its group is asked to end too, and killed when the stop's
deadline is over. The manager is a subreaper: each orphan's death is reported to it, which is the moment to look again;
no timer polls.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fcgimgr.core.process import SIGKILL, Stopping
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.processes import signal_group, signal_process
from fcgimgr.linux.procfs import children, environ_has

if TYPE_CHECKING:
    from fcgimgr.manager.generation import Generation

# Killed processes die within this many seconds, unless the kernel holds them in uninterruptible sleep.
STRAYS_DIE_WITHIN: Final = 1.0


class Leftovers:
    """Process groups whose leader is dead. False when there are none."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._new: list[tuple[int, int, float]] = []
        self._groups: dict[int, asyncio.TimerHandle] = {}
        self._when_gone: Callable[[], None] | None = None

    def __bool__(self) -> bool:
        return bool(self._groups or self._new)

    def leader_died(self, pid: int, generation: Generation, index: int) -> None:
        """The leader of group `pid` is dead but not reaped yet, so its number is still its own."""
        state = generation.core.processes[index]
        now = self._loop.time()
        if not isinstance(state, Stopping):
            deadline = now + generation.settings.stopwaitsecs
        elif state.killed:
            deadline = now
        else:
            deadline = state.due
        self._new.append((pid, generation.settings.stopsignal, deadline))

    def look(self) -> None:
        """After a round of reaping: which groups still have somebody in them?"""
        new, self._new = self._new, []
        for group, stopsignal, deadline in new:
            if deadline <= self._loop.time():
                signalled(group, SIGKILL)
            elif signalled(group, stopsignal):
                self._groups[group] = self._loop.call_at(deadline, self._kill, group)
        for group in [group for group in self._groups if not signalled(group, 0)]:
            self._groups.pop(group).cancel()
        if not self._groups and self._when_gone is not None:
            when_gone, self._when_gone = self._when_gone, None
            when_gone()

    def _kill(self, group: int) -> None:
        if signalled(group, SIGKILL):
            self._groups[group] = self._loop.call_later(STRAYS_DIE_WITHIN, self._kill, group)
        else:
            self._groups.pop(group, None)
            self.look()

    def kill_all(self) -> None:
        """No more patience."""
        for group in self._groups:
            signalled(group, SIGKILL)

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call once when there is nothing left."""
        self._when_gone = callback

    def kill_strays(self) -> None:
        """At the very end: kill what left its process group and came back to us as an orphan. Waits for it, briefly.

        Only what carries the mark of a pool in its environment: as PID 1, or after a shell's exec, the manager may
        have children that it never started.
        """
        until = time.monotonic() + STRAYS_DIE_WITHIN
        while time.monotonic() < until:
            strays = [pid for pid in children(os.getpid()) or () if environ_has(pid, "FCGIMGR_PROCESS")]
            if not strays:
                return
            for pid in strays:
                signal_process(pid, SIGKILL)
                pidfd = os.pidfd_open(pid)
                try:
                    select.select([pidfd], [], [], STRAYS_DIE_WITHIN)
                finally:
                    os.close(pidfd)
                os.waitpid(pid, os.WNOHANG)


def signalled(group: int, number: int) -> bool:
    """Signal what is left of a group; False if there is nobody, or nobody whom we may signal (a setuid program)."""
    try:
        return signal_group(group, number)
    except LinuxError:
        return False
