"""Children that are dead and shown to somebody else: to who traces them (ptrace(2)), for as long as that one likes.

No SIGCHLD tells their parent, and waitid(2) finds nothing. But the descriptor that holds a process is readable as soon
as it has ended, whoever is to reap it. So that is watched, and one that is not reaped shortly after its end is taken
for dead. What traces a process for good reasons (strace, a debugger that goes on) lets go of it within a moment.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from fcgimgr.linux import procfs
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.manager.children.adopted import exit_of

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon

#: Seconds that a tracer has to let go of a process that has ended.
PATIENCE: Final = 0.5


class Unreaped:
    """Watches the processes that the manager holds."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def watch(self, process: PidFd) -> None:
        self._daemon.loop.add_reader(process, self._ended, process)

    def forget(self, process: PidFd) -> None:
        """Its death is known."""
        self._daemon.loop.remove_reader(process)

    def _ended(self, process: PidFd) -> None:
        self._daemon.loop.remove_reader(process)
        self._daemon.reap_children()  # as a rule only SIGCHLD has not been heard of yet
        self._look_later(process)

    def _look_later(self, process: PidFd) -> None:
        if self._daemon.signalling.of(process.pid) is process:
            self._daemon.loop.call_later(PATIENCE, self._look, process)

    def _look(self, process: PidFd) -> None:
        if self._daemon.signalling.of(process.pid) is not process:  # reaped meanwhile
            return
        tracer = procfs.tracer(process.pid)
        if not tracer or tracer == os.getpid() or self._daemon.helpers.has(tracer):  # it is shown to us in a moment
            self._look_later(process)
            return
        self._daemon.journal.warning(
            f"dead, but pid {tracer} ({procfs.command(tracer) or 'gone'}) traces it and does not let go of it: it goes "
            "on without it",
            name=self._daemon.name_of(process.pid),
            pid=process.pid,
        )
        self._daemon.take_for_dead(process.pid, exit_of(procfs.wait_status(process.pid)))
