"""What a dead process leaves behind: the rest of its process group, and descendants that slipped out of it.

php-cgi's parent ends at once on TERM while its children still answer; fcgiwrap's children live on for ever. Both keep
the socket open, so that the pool could not bind its port again. So when a leader has died what remains of it is asked
to end too, and killed when the stop's deadline is over; and a stop is not over before all of it has gone. A leader
that died by itself is not waited for: its pool is to serve.

What SIGKILL does not end is abandoned (abandoned.py). Of a process that is being stopped core says when; of one that
died by itself it is so ABANDONED_AFTER seconds after the first SIGKILL.

The manager is a subreaper: each orphan's death is reported to it, which is the moment to look again; no timer polls.
A descendant with a session of its own comes back to us when its parent dies, and is known by its environment.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING, Final

from fcgimgr.core.process import ABANDONED_AFTER, SIGKILL, Stopping
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.processes import signal_group, signal_process
from fcgimgr.linux.procfs import children, environ_has, environment_of, pids, session
from fcgimgr.linux.procfs import state as state_of

if TYPE_CHECKING:
    from fcgimgr.manager.generation import Generation

# Killed processes die within this many seconds, unless the kernel holds them in uninterruptible sleep.
STRAYS_DIE_WITHIN: Final = 1.0

#: Tells of what is not waited for any more: of which pool and process, its leader's pid, and the pids.
Abandon = Callable[[tuple[str, str], int, list[int]], None]


class Remains:
    """What is left of one process. `gone`: to be called when nothing is; None when nobody waits for that."""

    __slots__ = (
        "adopted", "asked", "deadline", "empty", "gone", "group", "killed", "mark", "stopsignal", "timer", "told",
    )  # fmt: skip

    def __init__(
        self, group: int, mark: tuple[str, str], stopsignal: int, *, told: bool, deadline: float,
        gone: Callable[[], None] | None, adopted: bool,
    ) -> None:  # fmt: skip
        self.group = group
        self.adopted = adopted  # another manager's child: what it has left is not ours to reap either
        self.mark = mark
        self.stopsignal = stopsignal
        self.told = told  # the whole group got the stopsignal together with its leader
        self.deadline = deadline
        self.gone = gone
        self.asked: set[int] = set()  # the strays that got it
        self.timer: asyncio.TimerHandle | None = None
        self.killed: float | None = None  # when it got its first SIGKILL
        self.empty = False

    def signal_group(self, number: int) -> bool:
        """Signal what is left of the group; False if there is nobody, and then never again: its number is free."""
        if self.adopted:  # it was reaped by others: the number of its group may be anybody's by now
            return True
        # Its leader was reaped. If there is a process of that number, it is another: it came when the group was empty.
        self.empty = self.empty or state_of(self.group) is not None or not signalled(self.group, number)
        return not self.empty


class Leftovers:
    """All that is left of dead processes. False when there is nothing. `ours`: the pids of the processes themselves."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ours: Container[int],
        is_our_notify_socket: Callable[[str], bool],
        abandon: Abandon = lambda mark, leader, pids: None,
    ) -> None:
        self._is_our_notify_socket = is_our_notify_socket
        self._abandon = abandon
        self._loop = loop
        self._ours = ours
        self._new: list[Remains] = []
        self._remains: list[Remains] = []
        self._when_gone: Callable[[], None] | None = None
        self._watched: dict[int, PidFd] = {}

    def __bool__(self) -> bool:
        return bool(self._remains or self._new)

    def leader_died(
        self, pid: int, generation: Generation, index: int, told_of: Callable[[], None], *, adopted: bool = False
    ) -> None:
        """The leader of group `pid` is dead but not reaped yet, so its number is still its own; or it was `adopted`.

        `told_of` is called when its death is to be told: now, but of one that was to stop when all of it has gone.
        """
        state = generation.core.processes[index]
        settings = generation.settings
        told, deadline, gone = False, self._loop.time() + settings.stopwaitsecs, None
        if isinstance(state, Stopping):
            told, gone = settings.stopasgroup, told_of
            deadline = self._loop.time() if state.killed else state.due
        mark = (settings.name, generation.slots[index].name)
        remains = Remains(pid, mark, settings.stopsignal, told=told, deadline=deadline, gone=gone, adopted=adopted)
        if not adopted:
            # Now, and not when it is reaped: its number is the group's for certain only as long as it is a zombie.
            if deadline <= self._loop.time():
                signalled(pid, SIGKILL)
            elif not told:
                signalled(pid, settings.stopsignal)
        self._new.append(remains)
        if gone is None:
            told_of()

    def look(self) -> None:
        """After a round of reaping: of whom is anybody left?"""
        self._remains += self._new
        self._new = []
        strays = self._strays(self._remains)
        members = self._members()
        for remains in tuple(self._remains):
            if remains not in self._remains:  # what was told of another has ended the wait for this one
                continue
            if remains.adopted:
                left = members[remains.group]
                self._watch(left)
                if not left:
                    self._bury(remains)
                    continue
                if remains.told:
                    remains.asked.update(left)
                    remains.told = False
            else:
                left = strays.get(remains.mark, []) if remains.gone is not None else []
                if not remains.signal_group(0) and not left:
                    self._bury(remains)
                    continue
            for pid in set(left) - remains.asked:
                remains.asked.add(pid)
                signal_stray(pid, remains.stopsignal if remains.deadline > self._loop.time() else SIGKILL)
            if remains.timer is None:
                remains.timer = self._loop.call_at(remains.deadline, self._kill, remains)
        self._tell_if_gone()

    def _tell_if_gone(self) -> None:
        if not self._remains and self._when_gone is not None:
            when_gone, self._when_gone = self._when_gone, None
            when_gone()

    def _strays(self, of: Iterable[Remains]) -> dict[tuple[str, str], list[int]]:
        """Descendants that left the group of a process that is being stopped: pids, by the mark of that process."""
        found: dict[tuple[str, str], list[int]] = {}
        waited_for = [remains for remains in of if remains.gone is not None]
        if not waited_for:
            return found
        for pid in children(os.getpid()) or ():
            if pid in self._ours:
                continue
            for remains in waited_for:
                pool, process = remains.mark
                if not environ_has(pid, "FCGIMGR_POOL", pool) or not environ_has(pid, "FCGIMGR_PROCESS", process):
                    continue
                if group_of(pid) != remains.group:  # its group is told as a whole, and nobody is to be told twice
                    found.setdefault(remains.mark, []).append(pid)
        return found

    def _members(self) -> dict[int, list[int]]:
        """What adopted processes have left, by their groups: all of the group, and who left it if that is waited for.

        They are no children of ours, so all of /proc is searched, once for all of them. The number of a group is not
        given to another process while the group has members; so if there is such a process again, it has none.
        """
        adopted = [remains for remains in self._remains if remains.adopted]
        found: dict[int, list[int]] = {remains.group: [] for remains in adopted}
        whole = {group for group in found if not is_alive(group)}
        anywhere = {remains.mark: remains.group for remains in adopted if remains.gone is not None}
        for pid in pids() if adopted else ():
            if pid in self._ours:
                continue
            group = group_of(pid)
            if group in whole:
                if pid != group and is_alive(pid):  # else it is the number again, taken since
                    found[group].append(pid)
            elif anywhere and session(pid) not in self._ours and may_signal(pid):
                environment = environment_of(pid) or {}
                mark = (environment.get("FCGIMGR_POOL", ""), environment.get("FCGIMGR_PROCESS", ""))
                # Another manager on this machine may have a process of the same name; its notify socket is another.
                if mark in anywhere and self._is_our_notify_socket(environment.get("NOTIFY_SOCKET", "")):
                    found[anywhere[mark]].append(pid)
        return found

    def _watch(self, pids: Iterable[int]) -> None:
        """Look again when one of these ends."""
        for pid in set(pids) - self._watched.keys():
            try:
                self._watched[pid] = PidFd(pid)
            except LinuxError:  # it has ended since
                self._loop.call_soon(self.look)
            else:
                self._loop.add_reader(self._watched[pid], self._watched_ended, pid)

    def _watched_ended(self, pid: int) -> None:
        pidfd = self._watched.pop(pid)
        self._loop.remove_reader(pidfd)
        pidfd.close()
        self.look()

    def _bury(self, remains: Remains) -> None:
        self._remains.remove(remains)
        if remains.timer is not None:
            remains.timer.cancel()
        if remains.gone is not None:
            remains.gone()

    def _kill(self, remains: Remains) -> None:
        now = self._loop.time()
        if remains.killed is None:
            remains.killed = now
        elif remains.gone is None and now >= remains.killed + ABANDONED_AFTER:
            self._abandon(remains.mark, remains.group, self._drop(remains))
            self._tell_if_gone()
            return
        remains.signal_group(SIGKILL)
        for pid in self._members()[remains.group] if remains.adopted else self._strays([remains]).get(remains.mark, ()):
            signal_stray(pid, SIGKILL)
        remains.timer = self._loop.call_later(STRAYS_DIE_WITHIN, self._kill, remains)
        self.look()

    def abandon(self, leader: int) -> list[int]:
        """Wait no more for what this process has left, whoever waits for that: the pids of it."""
        return [pid for remains in tuple(self._remains) if remains.group == leader for pid in self._drop(remains)]

    def _drop(self, remains: Remains) -> list[int]:
        self._remains.remove(remains)
        if remains.timer is not None:
            remains.timer.cancel()
        strays = () if remains.adopted else self._strays([remains]).get(remains.mark, ())
        return [pid for pid in pids() if group_of(pid) == remains.group] + list(strays)

    def kill_all(self) -> None:
        """No more patience."""
        for remains in tuple(self._remains):
            self._kill_now(remains)

    def kill(self, pid: int) -> None:
        """No more patience with what the process with this pid has left."""
        for remains in tuple(self._remains):
            if remains.group == pid:
                self._kill_now(remains)

    def _kill_now(self, remains: Remains) -> None:
        if remains.timer is not None:
            remains.timer.cancel()
        if remains in self._remains:  # and not buried by a look since
            self._kill(remains)

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call once when there is nothing left."""
        self._when_gone = callback

    def kill_strays(self) -> None:
        """At the very end: kill what left its process group and came back to us as an orphan. Waits for it, briefly.

        Only what carries the mark of a pool in its environment: as PID 1, or after a shell's exec, the manager may
        have children that it never started.
        """
        until = time.monotonic() + STRAYS_DIE_WITHIN
        while strays := [pid for pid in children(os.getpid()) or () if environ_has(pid, "FCGIMGR_PROCESS")]:
            for pid in strays:
                signal_stray(pid, SIGKILL)
            for pid in strays:
                pidfd = os.pidfd_open(pid)
                try:
                    select.select([pidfd], [], [], max(0.0, until - time.monotonic()))
                finally:
                    os.close(pidfd)
                os.waitpid(pid, os.WNOHANG)
            if time.monotonic() >= until:
                return


def signalled(group: int, number: int) -> bool:
    """Signal what is left of a group; False if there is nobody, or nobody whom we may signal (a setuid program)."""
    try:
        return signal_group(group, number)
    except LinuxError:
        return False


def is_alive(pid: int) -> bool:
    return state_of(pid) not in (None, "Z", "X")


def may_signal(pid: int) -> bool:
    """Whether it may be signalled: another user's process is no concern of an ordinary user's manager."""
    try:
        return signal_process(pid, 0) if pid > 1 else False
    except LinuxError:
        return False


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def signal_stray(pid: int, number: int) -> None:
    """Signal a child of ours, if it may be signalled (a setuid program may not)."""
    try:
        signal_process(pid, number)
    except LinuxError:
        return
