"""Processes that a manager before us started: they are not our children, so no SIGCHLD tells of them.

Each is held by a pidfd, which the loop watches: readable means ended. How it ended is known on Linux 6.15 and later,
once whoever adopted it (pid 1 as a rule) has reaped it, which may take a moment; else it stays unknown.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from fcgimgr.core.process import Exit
from fcgimgr.linux.pidfd import PidFd

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation

# Seconds between two questions for an exit status, and how often it is asked. A replacement waits for the answer.
ASK_AGAIN: Final = 0.005
QUESTIONS: Final = 6


class Adopted:
    """The adopted processes that live. `in`: by pid."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._processes: dict[int, tuple[PidFd, tuple[Generation, int]]] = {}
        self._looking = False

    def __contains__(self, pid: int) -> bool:
        return pid in self._processes

    def watch(self, pidfd: PidFd, generation: Generation, index: int) -> None:
        """Tell of its end as of a child's. Takes the pidfd over."""
        place = (generation, index)
        self._processes[pidfd.pid] = pidfd, place
        self._daemon.children[pidfd.pid] = place
        self._daemon.signalling.hold(pidfd)
        self._daemon.loop.add_reader(pidfd, self._ended, pidfd)

    def forget(self, pidfd: PidFd, place: tuple[Generation, int]) -> None:
        """It has turned out to be our child, by whoever was its parent before: its death is told as a child's."""
        if pidfd.pid in self._processes and self._processes[pidfd.pid] == (pidfd, place):
            del self._processes[pidfd.pid]
            self._daemon.loop.remove_reader(pidfd)

    def _ended(self, pidfd: PidFd) -> None:
        self._daemon.loop.remove_reader(pidfd)
        self._ask(pidfd.pid, QUESTIONS)

    def _ask(self, pid: int, questions: int) -> None:
        if pid not in self._processes:  # forgotten meanwhile
            return
        pidfd, place = self._processes[pid]
        status = pidfd.wait_status()
        if status is None and questions > 1:
            self._daemon.loop.call_later(ASK_AGAIN, self._ask, pid, questions - 1)
            return
        del self._processes[pid]
        if self._daemon.children.get(pid) is place:  # else the number is a new child's by now
            del self._daemon.children[pid]
        exit = exit_of(status)
        generation, index = place
        if status is None and generation.core.processes[index].name != "STOPPING":
            name = generation.process_name(index)
            self._daemon.journal.warning("it ended; how, only its parent was told", name=name, pid=pid)
        self._daemon.signalling.release(pidfd)
        pidfd.close()
        self._daemon.died(*place, pid, exit)
        if not self._looking:
            self._looking = True
            self._daemon.loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        self._daemon.leftovers.look()
        self._daemon.go_on_stopping()

    def close(self) -> None:
        """Let go of those that live on."""
        for pidfd, _ in self._processes.values():
            self._daemon.loop.remove_reader(pidfd)
            self._daemon.signalling.release(pidfd)
            pidfd.close()
        self._processes.clear()


def exit_of(status: int | None) -> Exit:
    """A wait status (waitpid(2)) as core knows it."""
    if status is None:
        return Exit()
    if os.WIFSIGNALED(status):
        return Exit(signal=os.WTERMSIG(status))
    return Exit(code=os.WEXITSTATUS(status))
