"""What a dead process leaves behind: the rest of its process group, and descendants that slipped out of it.

php-cgi's parent ends at once on TERM while its children still answer; fcgiwrap's children live on for ever. Both keep
the socket open, so that the pool could not bind its port again. So when a leader has died what remains of it is asked
to end too, and killed when the stop's deadline is over; and a stop is not over before all of it has gone. A leader
that died by itself is not waited for: its pool is to serve.

What SIGKILL does not end is abandoned (abandoned.py). Of a process that is being stopped core says when; of one that
died by itself it is so ABANDONED_AFTER seconds after the first SIGKILL.

The manager is a subreaper: each orphan's death is reported to it, which is the moment to look again; no timer polls.
A descendant with a session of its own comes back to us when its parent dies, and is known by its environment. One that
is dying shows none any more (its memory goes before its children are given to us, exit(2)), and has children that
nobody has seen yet: so it is waited for, whosever it was. Of a leader that died by itself, and is started again, only
those are its own that were there before the next one in its place.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable, Collection, Container, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from fcgimgr.core.process import ABANDONED_AFTER, SIGKILL, Exited, Stopping
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.helper import is_helper
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.procfs import children, is_dying, pids, session, tracer
from fcgimgr.linux.procfs import state as state_of
from fcgimgr.manager.children.environments import Environments, Here, Mark, marked

if TYPE_CHECKING:
    from fcgimgr.manager.pools.generation import Generation

# Killed processes die within this many seconds, unless the kernel holds them in uninterruptible sleep.
STRAYS_DIE_WITHIN: Final = 1.0

#: Tells of what is not waited for any more: of which process, that one's pid, and the pids.
Abandon = Callable[[Mark, int, list[int]], None]


class Remains:
    """What is left of one process. `gone`: to be called when nothing is; None when nobody waits for that."""

    __slots__ = (
        "asked", "deadline", "empty", "gone", "group", "killed", "leader", "looked", "mark", "sessions", "stopsignal",
        "there", "timer", "told",
    )  # fmt: skip

    def __init__(
        self, group: int, leader: PidFd | None, mark: Mark, stopsignal: int, *, told: bool, deadline: float,
        gone: Callable[[], None] | None,
    ) -> None:  # fmt: skip
        self.group = group
        # By it the group is signalled, whoever has its number by now. None: it was another manager's child, and what it
        # has left is not ours to reap either.
        self.leader = leader
        self.mark = mark
        self.stopsignal = stopsignal
        self.told = told  # the whole group got the stopsignal together with its leader
        self.deadline = deadline
        self.gone = gone
        self.asked: set[int] = set()  # the strays that got it
        self.sessions: set[int | None] = set()  # of the strays that were there when its leader died
        self.there: set[int] | None = None  # who may be one of them; None: nobody has looked
        self.looked = False  # these are known; or are not to be
        self.timer: asyncio.TimerHandle | None = None
        self.killed: float | None = None  # when it got its first SIGKILL
        self.empty = False

    def has(self, pid: int, session: int | None) -> bool:
        """Whether one that bears its mark in this session is its own, and not its successor's."""
        if self.gone is not None or session in self.sessions:
            return True
        return not self.looked and (self.there is None or pid in self.there)

    def signal_group(self, number: int) -> bool:
        """Signal what is left of the group; False if there is nobody, and then never again."""
        if self.leader is None:  # its members are told one by one: all of them have to be known anyway
            return True
        self.empty = self.empty or not signalled(self.leader, number)
        return not self.empty


class Leftovers:
    """All that is left of dead processes. False when there is nothing. `ours`: the pids of the processes themselves."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ours: Container[int],
        is_our_notify_socket: Callable[[str], bool],
        abandon: Abandon = lambda mark, leader, pids: None,
        environments: Environments | Here | None = None,
        abandoned: Container[int] = (),
    ) -> None:
        self._abandoned = abandoned
        self._environments = environments or Here()
        self._is_our_notify_socket = is_our_notify_socket
        self._abandon = abandon
        self._loop = loop
        self._ours = ours
        self._new: list[Remains] = []
        self._remains: list[Remains] = []
        self._when_gone: Callable[[], None] | None = None
        self._watched: dict[int, PidFd] = {}
        self._dying: dict[int, float] = {}  # children that show no environment any more, and since when
        self._again: asyncio.TimerHandle | None = None  # for when the last of them is waited for no longer
        self._buried: asyncio.Future[None] | None = None  # done at the next burial

    def __bool__(self) -> bool:
        return bool(self._remains or self._new)

    def leader_died(
        self, pid: int, leader: PidFd | None, generation: Generation, index: int, told_of: Callable[[], None]
    ) -> None:
        """The leader of group `pid` is dead, and not reaped yet; None: it was adopted. Takes `leader` over.

        `told_of` is called when its death is to be told: now, but of one that was to stop when all of it has gone.
        """
        state = generation.core.processes[index]
        settings = generation.settings
        told, deadline, gone = False, self._loop.time() + settings.stopwaitsecs, None
        if isinstance(state, Stopping):
            told, gone = settings.stopasgroup, told_of
            deadline = self._loop.time() if state.killed else state.due
        mark = mark_of(generation, index)
        remains = Remains(pid, leader, mark, settings.stopsignal, told=told, deadline=deadline, gone=gone)
        if leader is not None:
            if deadline <= self._loop.time():
                signalled(leader, SIGKILL)
            elif not told:
                signalled(leader, settings.stopsignal)
        self._new.append(remains)
        if gone is None:
            told_of()
            # One that has done what it was for, and is not started again, may have started what is to live on.
            after = generation.core.processes[index : index + 1]  # none, if that was the last of its slot
            remains.looked = any(isinstance(state, Exited) for state in after)

    def look(self) -> None:
        """After a round of reaping: of whom is anybody left?"""
        self._remains += self._new
        self._new = []
        strays, dying = self._strays()
        members, known = self._members()
        for remains in tuple(self._remains):
            if remains not in self._remains:  # what was told of another has ended the wait for this one
                continue
            if remains.leader is None:
                left = members[remains.group]
                if not left and known:
                    self._bury(remains)
                    continue
                if remains.told:
                    remains.asked.update(left)
                    remains.told = False
            else:
                left = strays.get(remains, [])
                if not remains.signal_group(0) and not left and not dying:
                    self._bury(remains)
                    continue
            for pid in set(left) - remains.asked:
                remains.asked.add(pid)
                number = remains.stopsignal if remains.deadline > self._loop.time() else SIGKILL
                self._signal(remains, pid, number)
            if remains.timer is None:
                remains.timer = self._loop.call_at(remains.deadline, self._kill, remains)
        self._tell_if_gone()

    def _tell_if_gone(self) -> None:
        if not self._remains and self._when_gone is not None:
            when_gone, self._when_gone = self._when_gone, None
            when_gone()

    def _strays(self) -> tuple[dict[Remains, list[int]], bool]:
        """The pids of descendants that left the group of a process that is no more; whether others may still come.

        Its group is told as a whole, and nobody is to be told twice.
        """
        found: dict[Remains, list[int]] = {}
        here = [remains for remains in self._remains if remains.leader is not None]
        sessions: dict[Remains, set[int | None]] = {remains: set() for remains in here}
        dying: dict[int, float] = {}
        asked = children(os.getpid()) or () if here or self._dying else ()
        strays = [pid for pid in asked if pid not in self._ours and not is_helper(pid)]
        unknown: set[int] = set()
        for pid in strays:
            of_session, mark = session(pid), None
            if is_dying(pid):
                dying[pid] = self._dying.get(pid, self._loop.time())
            elif not here:
                continue
            elif (environment := self._environments.of(pid)) is None:
                unknown.add(pid)
            else:
                mark = environment.mark
            for remains in here:
                if mark is None and pid in dying and (not remains.looked or of_session in remains.sessions):
                    sessions[remains].add(of_session)  # that of its children, if it has any
                elif pid in unknown and of_session in remains.sessions:
                    sessions[remains].add(of_session)
                elif mark == remains.mark and group_of(pid) != remains.group and remains.has(pid, of_session):
                    sessions[remains].add(of_session)
                    found.setdefault(remains, []).append(pid)
                    break
        for remains in here:
            if remains.there is None:
                remains.there = set(strays)
            if remains.looked or unknown.isdisjoint(remains.there):
                remains.looked, remains.sessions = True, sessions[remains]
            else:
                remains.sessions |= sessions[remains]
        if unknown:
            self._environments.learn(unknown, self.look)
        self._dying = dying
        return found, bool(unknown) or self._is_held_up(dying)

    def _is_held_up(self, dying: Mapping[int, float]) -> bool:
        """Whether children of these may still come: not for long, as one may never be reaped, and then it looks again.

        Who is dead and traced, or was abandoned, has none: they have been given away.
        """
        until = (
            max(
                (since for pid, since in dying.items() if pid not in self._abandoned and not is_shown_to_another(pid)),
                default=0.0,
            )
            + STRAYS_DIE_WITHIN
        )
        if until <= self._loop.time():
            return False
        if self._again is None:
            self._again = self._loop.call_at(until, self._look_again)
        return True

    def _look_again(self) -> None:
        self._again = None
        self.look()

    def _members(self) -> tuple[dict[int, list[int]], bool]:
        """What adopted processes have left, by their groups: all of the group, and who left it if that is waited for;
        whether all of it is known.

        They are no children of ours, so all of /proc is searched, once for all of them. The number of a group is not
        given to another process while the group has members; so if there is such a process again, it has none.
        """
        adopted = [remains for remains in self._remains if remains.leader is None]
        found: dict[int, list[int]] = {remains.group: [] for remains in adopted}
        whole = {group for group in found if not is_alive(group)}
        anywhere = {remains.mark: remains.group for remains in adopted if remains.gone is not None}
        unknown: set[int] = set()
        for pid in pids() if adopted else ():
            if self._is_of(pid, whole, anywhere, unknown) is not None:
                self._watch(pid)
                # Once more: what is true now is true of what is watched.
                group = self._is_of(pid, whole, anywhere, unknown)
                if group is not None:
                    found[group].append(pid)
        if unknown:
            self._environments.learn(unknown, self.look)
        return found, not unknown

    def _is_of(self, pid: int, whole: Container[int], anywhere: Mapping[Mark, int], unknown: set[int]) -> int | None:
        """Of which of these groups a process is, or was: `whole`, and those that it may have left, by their mark.

        unknown: gets it if that cannot be told yet.
        """
        if pid in self._ours:
            return None
        group = group_of(pid)
        if group in whole:
            return group if pid != group and is_alive(pid) else None  # else it is the number again, taken since
        if anywhere and session(pid) not in self._ours and may_signal(pid):
            environment = self._environments.of(pid)
            if environment is None:
                unknown.add(pid)
            # Another manager on this machine may have a process of the same name; its notify socket is another.
            elif environment.mark in anywhere and self._is_our_notify_socket(environment.notify):
                assert environment.mark is not None
                return anywhere[environment.mark]
        return None

    def _watch(self, pid: int) -> None:
        """Look again when it ends, and signal it by its descriptor."""
        if pid not in self._watched:
            with suppress(LinuxError):  # it has ended since; or no descriptor is left, and then it has to wait
                self._watched[pid] = PidFd(pid)
                self._loop.add_reader(self._watched[pid], self._watched_ended, pid)

    def _signal(self, remains: Remains, pid: int, number: int) -> None:
        """Signal a child of ours, or one that is watched, if it may be signalled (a setuid program may not)."""
        if remains.leader is not None:
            signal_stray(pid, number)
        elif pid in self._watched:
            with suppress(LinuxError):
                self._watched[pid].signal(number)

    def _watched_ended(self, pid: int) -> None:
        pidfd = self._watched.pop(pid)
        self._loop.remove_reader(pidfd)
        pidfd.close()
        self.look()

    def _bury(self, remains: Remains) -> None:
        self._remove(remains)
        if remains.gone is not None:
            remains.gone()

    def _remove(self, remains: Remains) -> None:
        self._remains.remove(remains)
        if remains.leader is not None:
            remains.leader.close()
        if remains.timer is not None:
            remains.timer.cancel()
        if self._buried is not None:
            self._buried.set_result(None)
            self._buried = None

    async def none_left_of(self, marks: Collection[Mark]) -> None:
        """Wait until nothing is left of these processes."""
        while any(remains.mark in marks for remains in (*self._remains, *self._new)):
            if self._buried is None:
                self._buried = self._loop.create_future()
            await asyncio.shield(self._buried)

    def _kill(self, remains: Remains) -> None:
        now = self._loop.time()
        if remains.killed is None:
            remains.killed = now
        elif remains.gone is None and now >= remains.killed + ABANDONED_AFTER:
            self._abandon(remains.mark, remains.group, self._drop(remains))
            self._tell_if_gone()
            return
        remains.signal_group(SIGKILL)
        for pid in self._members()[0][remains.group] if remains.leader is None else self._strays()[0].get(remains, ()):
            self._signal(remains, pid, SIGKILL)
        remains.timer = self._loop.call_later(STRAYS_DIE_WITHIN, self._kill, remains)
        self.look()

    def abandon(self, leader: int) -> list[int]:
        """Wait no more for what this process has left, whoever waits for that: the pids of it."""
        return [pid for remains in tuple(self._remains) if remains.group == leader for pid in self._drop(remains)]

    def _drop(self, remains: Remains) -> list[int]:
        strays = () if remains.leader is None else self._strays()[0].get(remains, ())
        self._remove(remains)
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
        while strays := marked(children(os.getpid()) or (), STRAYS_DIE_WITHIN):
            for pid in strays:
                signal_stray(pid, SIGKILL)
            for pid in strays:
                with suppress(LinuxError), PidFd(pid) as process:
                    select.select([process], [], [], max(0.0, until - time.monotonic()))
                os.waitpid(pid, os.WNOHANG)
            if time.monotonic() >= until:
                return


def mark_of(generation: Generation, index: int) -> Mark:
    """What is in the environment of this process and its descendants."""
    return generation.settings.name, str(generation.number), generation.slots[index].name


def signalled(leader: PidFd, number: int) -> bool:
    """Signal what is left of a group; False if there is nobody, or nobody whom we may signal (a setuid program)."""
    try:
        return leader.signal_group(number)
    except LinuxError:
        return False


def is_alive(pid: int) -> bool:
    return state_of(pid) not in (None, "Z", "X")


def is_shown_to_another(pid: int) -> bool:
    """Whether its death is for its tracer to see, and for us only after that."""
    return state_of(pid) == "Z" and bool(tracer(pid))


def may_signal(pid: int) -> bool:
    """Whether it may be signalled: another user's process is no concern of an ordinary user's manager."""
    try:
        with PidFd(pid) as process:
            return pid > 1 and process.signal(0)
    except LinuxError:
        return False


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def signal_stray(pid: int, number: int) -> None:
    """Signal a child of ours, if it may be signalled (a setuid program may not)."""
    with suppress(LinuxError), PidFd(pid) as process:  # the number is its own until we reap it
        process.signal(number)
