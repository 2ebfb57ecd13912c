"""The helpers of the manager (linux/helper.py), and the jobs that they do for it: each asked here, and done there.

There are none while nothing is to be looked at. One that does not get on is given up: it is killed and forgotten, and
whom it was at is said once in the log and not looked at again. What else it had to do another one does.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.helper import Progress, fork_helper, frame, may_look_at_siblings, messages
from fcgimgr.linux.holding import let_go
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.manager import helping
from fcgimgr.manager.helping import Ground, Makers, Tell

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon

#: Seconds between two looks at a helper that was asked something, and how many of them in a row must find it no further
#: for it to be given up: asleep, and computing or in want of the processor.
CHECK: Final = 0.1
ASLEEP: Final = 10
AT_WORK: Final = 50
#: So many helpers there are at most; more jobs share them.
MOST: Final = 8
#: Seconds for which the end of helpers is waited for where nothing is to be left of them.
LAST: Final = 0.2


class StuckError(Exception):
    """The helper did not get on, or has ended; what it was asked is to be asked again."""


class FaultError(Exception):
    """A fault of ours, in a helper; its traceback."""


class Helpers:
    """All that there are."""

    def __init__(self, daemon: Daemon, makers: Makers) -> None:
        self._daemon = daemon
        self._makers = makers
        self._helpers: list[Helper] = []
        self._leaving: list[Helper] = []  # those that have nothing left to do
        self._jobs = 0
        self._given_up: dict[int, int | None] = {}  # by pid, when it was born
        self._inline = not may_look_at_siblings()

    def job(self, kind: str) -> Job | InlineJob:
        """One of this kind."""
        if self._inline:
            return InlineJob(self._makers[kind](Ground(self._daemon.gates, lambda pid: None, ())))
        self._jobs += 1
        return Job(self, kind, self._jobs)

    @property
    def given_up(self) -> tuple[int, ...]:
        """The pids of those that are not to be looked at."""
        self._given_up = {pid: born for pid, born in self._given_up.items() if procfs.start_time(pid) == born}
        return tuple(self._given_up)

    def has(self, pid: int) -> bool:
        """Whether this is one of them."""
        return any(helper.pid == pid for helper in (*self._helpers, *self._leaving))

    def one_more(self) -> Helper:
        """A helper for one more job. LinuxError: there can be none."""
        least = min(self._helpers, key=lambda helper: helper.jobs, default=None)
        if least is None or len(self._helpers) < MOST:
            least = Helper(self._daemon, self._makers, self._lost)
            self._helpers.append(least)
        least.jobs += 1
        return least

    def one_less(self, helper: Helper) -> None:
        """A job of this helper is done."""
        helper.jobs -= 1
        if not helper.jobs and helper in self._helpers:
            helper.hang_up()
            self._helpers.remove(helper)
            self._leaving.append(helper)
            helper.tell_when_ended(self._forget)

    def _forget(self, helper: Helper) -> None:
        helper.close()
        self._leaving.remove(helper)

    def _lost(self, helper: Helper, at: int, is_stuck: bool) -> None:
        """It was killed, or has ended. at: whom it was at; 0 is nobody."""
        self._helpers.remove(helper)
        if not at:
            return
        leader = at
        while leader > 1 and leader not in self._daemon.children:
            leader = procfs.parent(leader) or 0
        family = (leader, *procfs.descendants(leader, procfs.MOST_PROCESSES)) if leader > 1 else (at,)
        for member in family:
            let_go_if_possible(member)
        if not is_stuck or at in self._given_up:
            return
        self._given_up[at] = procfs.start_time(at)
        child = self._daemon.children.get(leader)
        self._daemon.journal.warning(
            "a look at it does not end: it is taken for busy from now on; what it has in hand cannot be seen",
            name=child[0].process_name(child[1]) if child is not None else self._daemon.config.manager.identifier,
            pid=at,
        )

    async def end(self) -> None:
        """Let all end by themselves, so that whoever was held goes on, and no gate is closed any more."""
        for helper in self._helpers:
            helper.hang_up()
        deadline = self._daemon.loop.time() + LAST
        everyone = (*self._helpers, *self._leaving)
        while not all(helper.has_ended for helper in everyone) and self._daemon.loop.time() < deadline:
            await asyncio.sleep(0.001)
        self.kill()

    def kill(self) -> None:
        """End all at once; waits for that, but not for long."""
        everyone = (*self._helpers, *self._leaving)
        self._helpers, self._leaving = [], []
        for helper in everyone:
            helper.kill()
        for helper in everyone:
            helper.wait(LAST)
            helper.close()


class Job:
    """What a helper is to do (helping.py), and another one after it if it does not get on."""

    def __init__(self, helpers: Helpers, kind: str, number: int) -> None:
        self._helpers = helpers
        self._kind = kind
        self._number = number
        self._helper: Helper | None = None

    async def ask(self, request: Any, heed: Tell) -> Any:
        """The answer. heed: is told what is told before that. StuckError. LinuxError: there can be no helper."""
        if self._helper is None or self._helper.lost:
            self._helper = self._helpers.one_more()
            self._helper.send(self._number, "make", (self._kind, self._helpers.given_up))
        return await self._helper.ask(self._number, "ask", request, heed)

    async def end(self) -> None:
        """It is over, and has left nothing behind. It can be asked again."""
        if self._helper is not None and not self._helper.lost:
            try:
                await self._helper.ask(self._number, "end", None, lambda told: None)
            except StuckError:
                pass  # then what it held is let go
        self.drop()

    def drop(self) -> None:
        """It is over, and that is not waited for."""
        helper, self._helper = self._helper, None
        if helper is not None and not helper.lost:
            helper.send(self._number, "drop", None)
            self._helpers.one_less(helper)


class InlineJob:
    """The same, done here."""

    def __init__(self, job: helping.Job) -> None:
        self._job = job

    async def ask(self, request: Any, heed: Tell) -> Any:
        return self._job.answer(request, heed)

    async def end(self) -> None:
        self._job.end()

    def drop(self) -> None:
        self._job.end()


class Helper:
    """One process, and what it is asked."""

    def __init__(self, daemon: Daemon, makers: Makers, tell_lost: Callable[[Helper, int, bool], None]) -> None:
        """LinuxError: it cannot be had."""
        self.jobs = 0
        self.lost = False
        self._loop = daemon.loop
        self._tell_lost = tell_lost
        self._progress = Progress()
        self._asked: dict[int, tuple[asyncio.Future[Any], Tell]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._seen = self._progress.seen()
        self._asleep = self._at_work = 0
        self._received, self._outgoing = bytearray(), bytearray()
        pid, self._socket = fork_helper("fcgimgr-helper", partial(helping.serve, makers, self._progress))
        self._process = PidFd(pid)
        self._loop.add_reader(self._socket, self._read)

    async def ask(self, number: int, what: str, content: Any, heed: Tell) -> Any:
        """What the job with this number answers. StuckError, FaultError."""
        if self.lost:
            raise StuckError
        answer = self._loop.create_future()
        self._asked[number] = answer, heed
        try:
            self.send(number, what, content)
            if self._timer is None:
                self._seen, self._asleep, self._at_work = self._progress.seen(), 0, 0
                self._watch()
            return await answer
        finally:
            self._asked.pop(number, None)

    def send(self, number: int, what: str, content: Any) -> None:
        """Say something that needs no answer."""
        if not self.lost:
            self._outgoing += frame((number, what, content))
            self._write()

    def _write(self) -> None:
        try:
            del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:  # it has ended; that is heard in a moment
            self._outgoing.clear()
        if self._outgoing:
            self._loop.add_writer(self._socket, self._write)
        else:
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            some = self._socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            some = b""
        if not some:
            self._lose(stuck=False)
            return
        self._received += some
        for number, what, content in messages(self._received):
            self._hear(number, what, content)

    def _hear(self, number: int, what: str, content: Any) -> None:
        answer, heed = self._asked.get(number, (None, None))
        if answer is None or heed is None or answer.done():
            return
        if what == "answer":
            answer.set_result(content)
        elif what == "fault":
            answer.set_exception(FaultError(content))
        else:
            try:
                self.send(number, "said", heed(content))
            except Exception as error:  # noqa: BLE001 - it is the fault of whoever asked, and ends what they do
                answer.set_exception(error)
                self._lose(stuck=False)  # it waits for what was to be said

    # Whether it gets on

    def _watch(self) -> None:
        self._timer = self._loop.call_later(CHECK, self._check)

    def _check(self) -> None:
        self._timer = None
        if not self._asked:
            return
        seen = self._progress.seen()
        if seen != self._seen:
            self._seen, self._asleep, self._at_work = seen, 0, 0
        elif procfs.state(self._process.pid) == "R":
            self._at_work += 1
        else:
            self._asleep += 1
        if self._asleep >= ASLEEP or self._at_work >= AT_WORK:
            self._lose(stuck=True)
        else:
            self._watch()

    def _lose(self, *, stuck: bool) -> None:
        if not self.lost:
            self.kill()
            self.close()
            self._tell_lost(self, self._progress.seen()[1], stuck)

    @property
    def pid(self) -> int:
        return self._process.pid

    # Its end

    @property
    def has_ended(self) -> bool:
        return self._process.fileno() < 0 or self._process.has_ended()

    def tell_when_ended(self, ended: Callable[[Helper], None]) -> None:
        """Once; not if it is closed before."""
        self._loop.add_reader(self._process, ended, self)

    def hang_up(self) -> None:
        """Let it end by itself, and let go of whom it holds."""
        if not self.lost:
            self.lost = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            if self._timer is not None:
                self._timer.cancel()
            for answer, _ in self._asked.values():
                if not answer.done():
                    answer.set_exception(StuckError())

    def kill(self) -> None:
        """One that is in the midst of something that does not end may live on all the same."""
        self.hang_up()
        self._process.signal(signal.SIGKILL)

    def wait(self, patience: float) -> None:
        """Until it has ended. Blocks, for so many seconds."""
        self._process.wait(patience)

    def close(self) -> None:
        """Nothing more is to be known of its end."""
        if self._process.fileno() >= 0:
            self._loop.remove_reader(self._process)
            self._process.close()


def let_go_if_possible(pid: int) -> None:
    """Let it run on, whether or not it was held."""
    try:
        with PidFd(pid) as process:
            let_go(process)
    except LinuxError:
        return  # it has gone; or who may not be signalled was not held
