"""The processes that the manager has started or taken over, each by the descriptor that holds it, to be signalled by.

A process is held from the moment that it is known until its death has been heard. Who is not held is not signalled: the
number of one that has been reaped may be another's by now, and the manager is root as a rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcgimgr.linux.pidfd import PidFd

if TYPE_CHECKING:
    from fcgimgr.manager.children.unreaped import Unreaped


class Signalling:
    """`in`: by pid. What is held is watched for an end that nobody tells of."""

    def __init__(self, unreaped: Unreaped) -> None:
        self._unreaped = unreaped
        self._held: dict[int, PidFd] = {}

    def __contains__(self, pid: object) -> bool:
        return pid in self._held

    def hold(self, process: PidFd) -> None:
        """It is ours to signal from now on."""
        self._held[process.pid] = process
        self._unreaped.watch(process)

    def of(self, pid: int) -> PidFd | None:
        return self._held.get(pid)

    def release(self, process: PidFd) -> None:
        """Its death is known. It stays open, for whoever goes on with what it has left."""
        self._unreaped.forget(process)
        if self._held.get(process.pid) is process:  # else the number is a new process's by now
            del self._held[process.pid]

    def send(self, pid: int, number: int, *, group: bool = False) -> bool:
        """Send a signal to a process, or to its group; False: there is no such one. LinuxError: not permitted."""
        process = self._held.get(pid)
        if process is None:
            return False
        # A child that was forked a moment ago may not lead its group yet.
        return (group and process.signal_group(number)) or process.signal(number)

    def close(self) -> None:
        """Let go of those that live on."""
        for process in self._held.values():
            self._unreaped.forget(process)
            process.close()
        self._held.clear()
