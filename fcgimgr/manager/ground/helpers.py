"""The helpers of the manager (linux/helper.py), and the jobs that they do for it: each asked here, and done there.

There are none while nothing is to be looked at. One that does not get on is given up: it is killed, whoever it holds is
let go when it is dead, and whom it was at is said once in the log and not looked at again. What else it had to do
another one does, after that: before it, both might hold the same process, and one let it go under the other's eyes.

Who makes one child after another that cannot be looked at is not looked at either. And where no helper ever answers,
as whatever it needs is not to be had there, the manager looks itself.
"""

from __future__ import annotations

import asyncio
import enum
import signal
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.helper import Progress, fork_helper, frame, may_look_at_siblings, messages
from fcgimgr.linux.holding import let_go
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.manager.ground import helping
from fcgimgr.manager.ground.helping import Ground, Makers, Tell

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon

#: Seconds between two looks at a helper that was asked something, and how many of them in a row must find it no further
#: for it to be given up: asleep, and computing or in want of the processor.
CHECK: Final = 0.1
ASLEEP: Final = 10
AT_WORK: Final = 50
#: So many helpers there are at most; more jobs share them.
MOST: Final = 8
#: Seconds for which the end of a helper is waited for that was told to end, or killed, where others wait for it.
LAST: Final = 0.2
#: So many helpers that have done nothing at all are enough to believe in none.
TRIES: Final = 3
#: So many looks below one process that do not end are enough to look at nothing of it any more.
STUCK_BELOW: Final = 2


class StuckError(Exception):
    """The helper did not get on, or has ended; what it was asked is to be asked again."""


class FaultError(Exception):
    """A fault of ours, in a helper; its traceback."""


class Loss(enum.Enum):
    """Why a helper was lost: it did not get on; it has ended by itself."""

    STUCK = "does not get on"
    ENDED = "has ended"


class Helpers:
    """All that there are."""

    def __init__(self, daemon: Daemon, makers: Makers) -> None:
        self._daemon = daemon
        self._makers = makers
        self._helpers: list[Helper] = []
        self._leaving: list[Helper] = []  # those that have nothing left to do
        self._jobs = 0
        self._given_up: dict[int, PidFd] = {}  # by pid
        self._stuck_below: dict[int, int] = {}  # by the pid of a child of ours, looks at others below it
        self.inline = not may_look_at_siblings()  # whether jobs are done here
        self._has_answered = False
        self._in_vain = 0  # how many in a row have done nothing

    def job(self, kind: str) -> Job | InlineJob:
        """One of this kind."""
        if self.inline:
            return self.inline_job(kind)
        self._jobs += 1
        return Job(self, kind, self._jobs)

    def inline_job(self, kind: str) -> InlineJob:
        """One that is done here."""
        return InlineJob(self._makers[kind](Ground(self._daemon.gates, lambda pid: None, Progress(), ())))

    @property
    def given_up(self) -> tuple[int, ...]:
        """The pids of those that are not to be looked at."""
        for pid, process in tuple(self._given_up.items()):
            if process.has_ended():
                del self._given_up[pid]
                process.close()
        return tuple(self._given_up)

    def has(self, pid: int) -> bool:
        """Whether this is one of them."""
        return any(helper.pid == pid for helper in (*self._helpers, *self._leaving))

    def one_more(self) -> Helper:
        """A helper for one more job. LinuxError: there can be none."""
        least = min(self._helpers, key=lambda helper: helper.jobs, default=None)
        if least is None or len(self._helpers) < MOST:
            least = Helper(self._daemon, self._makers, self)
            self._helpers.append(least)
        least.jobs += 1
        return least

    def one_less(self, helper: Helper) -> None:
        """A job of this helper is done."""
        helper.jobs -= 1
        if not helper.jobs and helper in self._helpers:
            self._helpers.remove(helper)
            self._leaving.append(helper)
            helper.hang_up()

    # What a helper tells of itself

    def has_answered(self) -> None:
        self._has_answered, self._in_vain = True, 0

    def has_fault(self, fault: str) -> None:
        """There is nobody who waits for that."""
        self.say_once(self._daemon.config.manager.identifier, fault)

    def say_once(self, name: str, fault: str, before: str = "") -> str:
        """Log a fault, unless it is the one before; it is the one before of the next."""
        if fault != before:
            self._daemon.journal.error(f"a fault in a helper: {fault}", name=name)
        return fault

    def is_over(self, helper: Helper, at: int, loss: Loss | None) -> None:
        """It has ended, or will do nothing any more. at: whom it was at; 0 is nobody. loss: None, it was to end."""
        for those in (self._helpers, self._leaving):
            if helper in those:
                those.remove(helper)
        if loss is None:
            return
        if at and loss is Loss.STUCK:
            self._give_up(at)
            return
        self._in_vain += 1
        if self._in_vain == 1:
            text = f"a helper {loss.value}; another one does what it had to do"
            self._daemon.journal.warning(text, name=self._daemon.config.manager.identifier, pid=helper.pid)
        if self._in_vain >= TRIES and not self._has_answered:
            self.inline = True
            text = "no helper has ever answered; the manager itself looks at processes, and may have to wait for them"
            self._daemon.journal.warning(text, name=self._daemon.config.manager.identifier)

    def _give_up(self, at: int) -> None:
        """What is read of it here waits for nobody (linux/procfs.py): it would keep us as it has kept the helper."""
        if at in self.given_up:
            return
        leader = at
        while leader > 1 and leader not in self._daemon.children:
            leader = procfs.parent(leader) or 0
        try:
            self._given_up[at] = PidFd(at)
        except LinuxError:
            return  # it has gone
        child = self._daemon.children.get(leader)
        self._daemon.journal.warning(
            "a look at it does not end: it is taken for busy from now on; what it has in hand cannot be seen",
            name=child[0].process_name(child[1]) if child is not None else self._daemon.config.manager.identifier,
            pid=at,
        )
        if child is not None and leader != at:
            self._stuck_below = {pid: count for pid, count in self._stuck_below.items() if pid in self._daemon.children}
            self._stuck_below[leader] = self._stuck_below.get(leader, 0) + 1
            if self._stuck_below[leader] >= STUCK_BELOW:
                self._give_up(leader)

    # The end

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
        """End all at once, and let go of whom they hold; waits for that, but not for long."""
        everyone = (*self._helpers, *self._leaving)
        deadline = self._daemon.loop.time() + LAST
        for helper in everyone:
            helper.kill()
        for helper in everyone:
            helper.wait(max(0.0, deadline - self._daemon.loop.time()))
            helper.be_over()


class Job:
    """What a helper is to do (helping.py), and another one after it if it does not get on."""

    def __init__(self, helpers: Helpers, kind: str, number: int) -> None:
        self._helpers = helpers
        self._kind = kind
        self._number = number
        self._helper: Helper | None = None
        self._inline: InlineJob | None = None

    async def ask(self, request: Any, heed: Tell) -> Any:
        """The answer. heed: is told what is told before that. StuckError, FaultError. LinuxError: there can be no
        helper, or what is asked cannot be."""
        if self._helper is not None and self._helper.lost:
            await self._helper.until_over()
            self._helper = None
        if self._helper is None and self._helpers.inline and self._inline is None:
            self._inline = self._helpers.inline_job(self._kind)
        if self._inline is not None:
            return await self._inline.ask(request, heed)
        if self._helper is None:
            self._helper = self._helpers.one_more()
            self._helper.send(self._number, "make", (self._kind, self._helpers.given_up))
        return await self._helper.ask(self._number, "ask", request, heed)

    async def end(self) -> None:
        """It is over, and has left nothing behind. It can be asked again."""
        if self._helper is not None:
            try:
                await self._helper.ask(self._number, "end", None, lambda told: None)
            except StuckError:
                await self._helper.until_over()  # then what it held is let go
            except (FaultError, LinuxError) as fault:
                self._helpers.has_fault(str(fault))
        self.drop()

    def drop(self) -> None:
        """It is over, and that is not waited for."""
        if self._inline is not None:
            self._inline.drop()
        helper, self._helper = self._helper, None
        if helper is not None and not helper.lost:
            helper.send(self._number, "drop", None)
            self._helpers.one_less(helper)


class InlineJob:
    """The same, done here."""

    def __init__(self, job: helping.Job) -> None:
        self._job = job

    async def ask(self, request: Any, heed: Tell) -> Any:
        """As `Job.ask`."""
        try:
            return self._job.answer(request, heed)
        except LinuxError:
            raise
        except Exception as error:
            raise FaultError("".join(traceback.format_exception(error))) from error

    async def end(self) -> None:
        self._job.end()

    def drop(self) -> None:
        self._job.end()


class Helper:
    """One process, and what it is asked.

    lost: nothing can be asked of it any more. That is before it is over: it may have to end by itself, or to be killed,
    and only then whoever waits for an answer hears that there is none.
    """

    def __init__(self, daemon: Daemon, makers: Makers, helpers: Helpers) -> None:
        """LinuxError: it cannot be had."""
        self.jobs = 0
        self.lost = False
        self._loop = daemon.loop
        self._helpers = helpers
        self._loss: Loss | None = None
        self._over = asyncio.Event()
        self._progress = Progress()
        self._asked: dict[int, tuple[asyncio.Future[Any], Tell]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._received, self._outgoing = bytearray(), bytearray()
        serve = partial(helping.serve, makers, self._progress)
        self.pid, self._socket = fork_helper("fcgimgr-helper", serve, in_order=True)
        self._process = PidFd(self.pid)
        self._loop.add_reader(self._socket, self._read)

    async def ask(self, number: int, what: str, content: Any, heed: Tell) -> Any:
        """What the job with this number answers. StuckError, FaultError, LinuxError."""
        if self.lost:
            raise StuckError
        answer = self._loop.create_future()
        self._asked[number] = answer, heed
        try:
            self.send(number, what, content)
            if self._timer is None:
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
            self._lose(Loss.ENDED)
            return
        self._received += some
        for number, what, content in messages(self._received):
            self._hear(number, what, content)

    def _hear(self, number: int, what: str, content: Any) -> None:
        answer, heed = self._asked.get(number, (None, None))
        if answer is None or heed is None or answer.done():
            if what == "tell":  # it waits for what is said to that, with somebody held perhaps
                self.send(number, "over", None)
            elif what == "fault":
                self._helpers.has_fault(content)
            return
        self._helpers.has_answered()
        match what:
            case "answer":
                answer.set_result(content)
            case "fault":
                answer.set_exception(FaultError(content))
            case "refused":
                answer.set_exception(LinuxError(content))
            case _:
                try:
                    said = heed(content)
                except Exception as error:  # noqa: BLE001 - it is the fault of whoever asked, and ends what they do
                    answer.set_exception(error)
                    self.send(number, "over", None)
                else:
                    self.send(number, "said", said)

    # Whether it gets on

    def _watch(self) -> None:
        """From now on, as long as it has anything to do."""
        self._seen, self._asleep, self._at_work = self._progress.seen(), 0, 0
        self._timer = self._loop.call_later(CHECK, self._check)

    def _check(self) -> None:
        self._timer = None
        if not self._asked and not self.lost:
            return
        seen = self._progress.seen()
        if seen != self._seen:
            self._seen, self._asleep, self._at_work = seen, 0, 0
        elif procfs.state(self.pid) == "R":
            self._at_work += 1
        else:
            self._asleep += 1
        if self._asleep >= ASLEEP or self._at_work >= AT_WORK:
            self._lose(Loss.STUCK)
        else:
            self._timer = self._loop.call_later(CHECK, self._check)

    def _lose(self, loss: Loss) -> None:
        self._loss = loss
        self.kill()
        if self._timer is not None:
            self._timer.cancel()
        # One that is in the midst of something that does not end may live on all the same, but does nothing any more.
        self._timer = self._loop.call_later(LAST, self.be_over)

    # Its end

    @property
    def has_ended(self) -> bool:
        return self._over.is_set() or self._process.has_ended()

    async def until_over(self) -> None:
        """Of one that is lost: until it is over."""
        await self._over.wait()

    def hang_up(self) -> None:
        """Let it end by itself, and let go of whom it holds."""
        if not self.lost:
            self.lost = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._loop.add_reader(self._process, self.be_over)
            if self._timer is not None:
                self._timer.cancel()
            self._watch()

    def kill(self) -> None:
        if not self._over.is_set():
            self.hang_up()
            self._process.signal(signal.SIGKILL)

    def wait(self, patience: float) -> None:
        """Until it has ended. Blocks, for so many seconds."""
        if not self._over.is_set():
            self._process.wait(patience)

    def be_over(self) -> None:
        """It has ended, or been killed: let go of those that it still holds, and tell whoever waits for an answer."""
        if self._over.is_set():
            return
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._process)
        self._process.close()
        for pid in self._progress.held:
            let_go_if_possible(pid)
        for answer, _ in self._asked.values():
            if not answer.done():
                answer.set_exception(StuckError())
        self._helpers.is_over(self, self._progress.seen()[1], self._loss)


def let_go_if_possible(pid: int) -> None:
    """Let it run on, whether or not it was held."""
    try:
        with PidFd(pid) as process:
            let_go(process)
    except LinuxError:
        return  # it has gone; or who may not be signalled was not held
