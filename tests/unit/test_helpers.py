"""What may block is done by a helper; one that does not get on is given up, and another one does what is left."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fcgimgr.linux import helper, procfs, ptrace
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.helper import Progress, fork_helper
from fcgimgr.manager.ground import helping
from fcgimgr.manager.ground.helpers import ASLEEP, CHECK, MOST, TRIES, FaultError, Helpers, InlineJob, StuckError
from fcgimgr.manager.ground.helping import Ground, Tell
from fcgimgr.manager.looking import draining
from fcgimgr.manager.looking.sights import Request, Sights, Wanted
from fcgimgr.manager.looking.traffic import IdleOnes
from tests.older_kernel import AVAILABLE, OLDER_KERNEL
from tests.waiting import eventually

ITSELF = os.getpid()

# A helper, and what descriptors it has: its end of a socket, and those of the directory and three standard ones.
LONE_HELPER = """\
import os, socket
from fcgimgr.linux.helper import fork_helper
os.dup2(1, 900)
pid, ours = fork_helper("lone", lambda its: its.sendall(" ".join(os.listdir("/proc/self/fd")).encode()))
ours.settimeout(5)
try:
    print(ours.recv(10000).decode())
finally:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""

# Gives back what it is sent.
ECHO = "import socket; s = socket.socket(fileno=0)\nwhile said := s.recv(100): s.send(said)"


class Work:
    """A job that does what it is asked."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._sticks_to = 0

    def answer(self, request: Any, tell: Tell) -> Any:
        what, number = request
        return getattr(self, what)(number, tell)

    def end(self) -> None:
        if self._sticks_to:
            self.hangs(self._sticks_to, lambda told: None)

    def double(self, number: int, tell: Tell) -> int:
        return 2 * number

    def tells(self, number: int, tell: Tell) -> list[Any]:
        return [tell(each) for each in range(number)]

    def hangs(self, pid: int, tell: Tell) -> int:
        if pid in self._ground.given_up:
            return 0
        self._ground.at(pid)
        os.read(os.pipe()[0], 1)
        return 1

    def is_slow(self, pid: int, tell: Tell) -> str:
        for _ in range(15):
            self._ground.at(pid)
            time.sleep(ASLEEP * CHECK / 10)
        return "done"

    def fails(self, number: int, tell: Tell) -> float:
        return number / 0

    def misses(self, number: int, tell: Tell) -> None:
        os.stat(f"/proc/{number}/there is none")

    def may_not(self, number: int, tell: Tell) -> None:
        raise LinuxError("not permitted")

    def dies(self, number: int, tell: Tell) -> int:
        if os.getpid() != ITSELF:
            os._exit(1)
        return number

    def holds_and_tells(self, pid: int, tell: Tell) -> Any:
        with self._holding(pid):
            return tell(pid)

    def holds_as_an_orphan(self, pid: int, tell: Tell) -> None:
        parent = os.getppid()
        with self._holding(pid):
            try:
                tell(pid)
            finally:
                eventually(lambda: os.getppid() != parent)

    def holds_and_hangs(self, pids: tuple[int, int], tell: Tell) -> int:
        with self._holding(pids[0]):
            return self.hangs(pids[1], tell)

    def holds_again_and_again(self, pid: int, tell: Tell) -> None:
        self._ground.progress.will_hold(pid)
        tell(pid)
        while True:
            os.kill(pid, signal.SIGSTOP)

    @contextmanager
    def _holding(self, pid: int) -> Iterator[None]:
        self._ground.at(pid)
        assert self._ground.progress.will_hold(pid)
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: procfs.state(pid) == "T")
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
            self._ground.progress.has_let_go(pid)

    def sticks_at_the_end(self, pid: int, tell: Tell) -> int:
        self._sticks_to = pid
        return os.getpid()

    def watches(self, pid: int, tell: Tell) -> int:
        self._ground.gates.close(pid, (), blocking=True, observer=Faulty())
        return os.getpid()

    def has_open(self, number: int, tell: Tell) -> list[str]:
        return [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)] + os.listdir("/proc/self/fd")

    def is_called(self, number: int, tell: Tell) -> str:
        return f"{os.getpid()} {procfs.command(os.getpid())}"


class Thing(SimpleNamespace):
    """One that can be the key of a dictionary."""

    __hash__ = object.__hash__


class Faulty:
    """An observer with a fault."""

    def before(self, thread: int, sends: Any) -> None:
        raise KeyError("before")

    def after(self, thread: int, moved: Any, count: int) -> None:
        raise KeyError("after")

    def gone(self, thread: int) -> None:
        pass

    def close(self) -> None:
        pass


class Scene:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.children: dict[int, tuple[Any, int]] = {}
        self.helpers: Helpers

    def run(self, work: Callable[[Helpers], Coroutine[Any, Any, None]]) -> None:
        async def begin() -> None:
            daemon = SimpleNamespace(
                loop=asyncio.get_running_loop(),
                children=self.children,
                config=SimpleNamespace(manager=SimpleNamespace(identifier="fcgimgr")),
                journal=SimpleNamespace(warning=self._say, error=self._say),
                gates=None,
            )
            helpers = Helpers(cast(Any, daemon), {"work": Work})
            try:
                await work(helpers)
            finally:
                helpers.kill()

        asyncio.run(begin())

    def _say(self, text: str, *, name: str, pid: int = 0) -> None:
        self.said.append(f"{name} {pid}: {text}")


@pytest.fixture
def scene() -> Scene:
    return Scene()


@contextmanager
def stopped_process() -> Iterator[int]:
    with subprocess.Popen(["sleep", "100"]) as process:
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: procfs.state(process.pid) == "T")
        try:
            yield process.pid
        finally:
            process.kill()


def nothing(told: Any) -> None:
    """There is nothing to be said to that."""


def test_it_answers_and_hears_what_is_said_to_what_it_tells(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        job, other = helpers.job("work"), helpers.job("work")
        answers = await asyncio.gather(
            job.ask(("double", 4), nothing), other.ask(("tells", 3), lambda told: told + 1), other_kind(helpers)
        )
        assert answers == [8, [1, 2, 3], 2_000_000]

    async def other_kind(helpers: Helpers) -> int:
        return len(await helpers.job("work").ask(("tells", 1), lambda told: "x" * 2_000_000)) * 2_000_000

    scene.run(work)


def test_it_is_another_process_with_no_descriptor_of_ours(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        job = helpers.job("work")
        found = await job.ask(("has_open", 0), nothing)
        assert found[:3] == ["/dev/null"] * 3
        assert len(found) - 3 <= 3 + 4, "standard ones; its end of the socket, two for signals, the directory"
        assert await job.ask(("is_called", 0), nothing) != f"{os.getpid()} {procfs.command(os.getpid())}"

    scene.run(work)


def test_one_that_does_not_get_on_is_given_up_and_whom_it_was_at(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        job, other = helpers.job("work"), helpers.job("work")
        asked = (one.ask(("hangs", pid), nothing) for one in (job, other))
        assert [type(answer) for answer in await asyncio.gather(*asked, return_exceptions=True)] == [StuckError] * 2
        for one in (job, other):
            assert await one.ask(("hangs", pid), nothing) == 0, "the next one knows"
        assert len(scene.said) == 1
        assert f"app:app_00 {pid}: a look at it does not end" in scene.said[0]

    with stopped_process() as pid:
        generation = SimpleNamespace(process_name=lambda index: f"app:app_{index:02}")
        scene.children[pid] = (generation, 0)
        scene.run(work)


def test_one_that_is_slow_but_gets_on_is_waited_for(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        assert await helpers.job("work").ask(("is_slow", os.getpid()), nothing) == "done"

    scene.run(work)


def test_a_fault_of_ours_is_told(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        job = helpers.job("work")
        with pytest.raises(FaultError, match="ZeroDivisionError"):
            await job.ask(("fails", 1), nothing)
        with pytest.raises(ZeroDivisionError):
            await job.ask(("tells", 1), lambda told: 1 / told)
        assert await job.ask(("double", 1), nothing) == 2

    scene.run(work)


def test_one_that_has_ended_takes_no_descriptor(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        before = os.listdir("/proc/self/fd")
        job = helpers.job("work")
        await job.ask(("double", 1), nothing)
        job.drop()
        async with asyncio.timeout(10):
            while len(os.listdir("/proc/self/fd")) > len(before):
                await asyncio.sleep(0.001)

    scene.run(work)


def test_there_is_none_without_a_job(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        jobs = [helpers.job("work") for _ in range(3)]
        pids = [int((await job.ask(("is_called", 0), nothing)).split()[0]) for job in jobs]
        for job in jobs[:2]:
            await job.end()
        jobs[2].drop()
        await helpers.end()
        for pid in pids:
            assert procfs.state(pid) in ("Z", None)

    scene.run(work)


# Whom it holds


@contextmanager
def processes(count: int) -> Iterator[list[int]]:
    with ExitStack() as stack:
        pids = []
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(["sleep", "100"]))
            stack.callback(process.kill)
            eventually(lambda process=process: procfs.command(process.pid) == "sleep")
            pids.append(process.pid)
        yield pids


async def until(probe: Callable[[], Any]) -> None:
    """As `eventually`, in the loop."""
    async with asyncio.timeout(10):
        while not probe():
            await asyncio.sleep(0.01)


def runs(pid: int) -> bool:
    return procfs.state(pid) == "S"


def test_whoever_a_killed_one_held_goes_on_before_another_one_looks(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        job = helpers.job("work")
        with pytest.raises(StuckError):
            await job.ask(("holds_and_hangs", (held, stuck)), nothing)
        await until(lambda: runs(held))
        assert await job.ask(("holds_and_tells", held), lambda told: procfs.state(told)) == "T"
        await until(lambda: runs(held))

    with processes(2) as (held, stuck):
        scene.run(work)


@pytest.mark.parametrize("how", ["end", "kill"])
def test_whoever_is_held_when_all_are_to_end_goes_on(how: str, scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(helpers.job("work").ask(("holds_again_and_again", pid), lambda told: begun.set()))
        await begun.wait()
        await until(lambda: procfs.state(pid) == "T")
        if how == "end":
            await helpers.end()
        else:
            helpers.kill()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], StuckError)
        await until(lambda: runs(pid))

    with processes(1) as (pid,):
        scene.run(work)


def test_whoever_is_held_goes_on_when_the_manager_is_killed(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        await helpers.job("work").ask(("holds_as_an_orphan", pid), lambda told: os.kill(os.getpid(), signal.SIGKILL))

    with processes(1) as (pid,):
        manager = os.fork()
        if manager == 0:
            try:
                scene.run(work)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(manager, 0)[1]) == -signal.SIGKILL
        eventually(lambda: runs(pid))


def test_one_that_is_stuck_when_nobody_is_there_any_more_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "OVERDUE", 0.2)
    pid, ours = fork_helper("stuck", lambda its: helping.serve({"work": Work}, Progress(), its))
    with ours:
        ours.setblocking(True)
        for said in ((1, "make", ("work", ())), (1, "ask", ("hangs", os.getpid()))):
            ours.sendall(helping.frame(said))
    try:
        eventually(lambda: procfs.state(pid) == "Z")
    finally:
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGALRM


def test_one_that_cannot_end_when_it_has_nothing_left_to_do_is_given_up(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        job = helpers.job("work")
        its = await job.ask(("sticks_at_the_end", pid), nothing)
        job.drop()
        await until(lambda: procfs.state(its) in ("Z", None))
        await until(lambda: scene.said)
        assert f"{pid}: a look at it does not end" in scene.said[0]

    with processes(1) as (pid,):
        scene.run(work)


# Who has asked


def test_one_whose_asker_has_gone_does_not_wait_for_him(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        jobs = [helpers.job("work") for _ in range(MOST + 1)]
        await asyncio.gather(*(job.ask(("double", 1), nothing) for job in jobs[:MOST]))
        (its,) = {await job.ask(("is_called", 0), nothing) for job in jobs[:1]}
        shared = jobs[MOST]
        assert await shared.ask(("is_called", 0), nothing) == its
        task = asyncio.create_task(shared.ask(("holds_and_tells", pid), nothing))
        await asyncio.sleep(0)  # asked it has then, and what is told comes after
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        shared.drop()
        assert await jobs[0].ask(("is_called", 0), nothing) == its, "it goes on for the others"
        await until(lambda: runs(pid))
        assert not scene.said

    with processes(1) as (pid,):
        scene.run(work)


# What goes wrong


def test_what_goes_wrong_with_one_process_does_not_end_it(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        job = helpers.job("work")
        its = await job.ask(("is_called", 0), nothing)
        with pytest.raises(FaultError, match="FileNotFoundError"):
            await job.ask(("misses", os.getpid()), nothing)
        with pytest.raises(LinuxError, match="not permitted"):
            await job.ask(("may_not", 0), nothing)
        assert await job.ask(("is_called", 0), nothing) == its

    scene.run(work)


def test_what_goes_wrong_is_told_alike_where_the_manager_itself_looks() -> None:
    job = InlineJob(Work(Ground(cast(Any, None), lambda pid: None, Progress(), ())))
    with pytest.raises(FaultError, match="FileNotFoundError"):
        asyncio.run(job.ask(("misses", os.getpid()), nothing))
    with pytest.raises(LinuxError, match="not permitted"):
        asyncio.run(job.ask(("may_not", 0), nothing))


@pytest.mark.skipif(not ptrace.AVAILABLE, reason="system calls can be seen on x86-64 only")
def test_a_fault_at_a_stop_is_told_and_who_has_stopped_goes_on(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        job = helpers.job("work")
        its = await job.ask(("watches", process.pid), nothing)
        ours.send(b"once")
        await until(lambda: any("KeyError" in text for text in scene.said))
        assert await job.ask(("is_called", 0), nothing) == f"{its} fcgimgr-helper"
        assert ours.recv(100) == b"once"
        ours.send(b"again")
        assert ours.recv(100) == b"again"

    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs, subprocess.Popen([sys.executable, "-S", "-E", "-c", ECHO], stdin=theirs) as process:
        theirs.close()
        scene.run(work)
        ours.shutdown(socket.SHUT_RDWR)


def test_a_generation_is_looked_at_again_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def ask(request: Any, heed: Tell) -> tuple[bool, bool, float]:
        asked.append(request)
        if len(asked) < 3:
            raise FaultError("a traceback")
        return False, False, 0.0

    async def end() -> None:
        generation.core.draining = None

    async def look() -> None:
        looks = draining.Draining(cast(Any, SimpleNamespace(loop=asyncio.get_running_loop(), helpers=helpers)))
        looks.watch(cast(Any, generation))
        await until(lambda: len(asked) == 3)

    said: list[str] = []
    job = SimpleNamespace(ask=ask, end=end, drop=lambda: None)
    one = SimpleNamespace(journal=SimpleNamespace(error=lambda text, name: said.append(text)))
    helpers = SimpleNamespace(
        job=lambda kind: job,
        say_once=lambda name, fault, before: Helpers.say_once(
            cast(Any, SimpleNamespace(_daemon=one)), name, fault, before
        ),
    )
    generation = Thing(
        name="app",
        core=SimpleNamespace(draining=1.0, left=False, processes=()),
        settings=SimpleNamespace(stopwaitsecs=1),
    )
    monkeypatch.setattr(draining, "view", lambda generation: ())
    asyncio.run(look())
    assert said == ["a fault in a helper: a traceback"]


# Where there can be none


@pytest.mark.skipif(not AVAILABLE, reason="system calls have other numbers here")
def test_there_is_one_where_descriptors_can_be_closed_one_by_one_only() -> None:
    done = subprocess.run(
        [*OLDER_KERNEL, sys.executable, "-c", LONE_HELPER], capture_output=True, text=True, timeout=60, check=True
    )
    assert len(done.stdout.split()) == 5, "standard ones, its end of the socket, the directory"


def test_where_none_ever_answers_the_manager_looks_itself(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        job = helpers.job("work")
        for _ in range(TRIES):
            with pytest.raises(StuckError):
                await job.ask(("dies", 7), nothing)
        assert await job.ask(("dies", 7), nothing) == 7
        assert await helpers.job("work").ask(("dies", 8), nothing) == 8
        assert ["a helper has ended" in scene.said[0], "no helper has ever answered" in scene.said[1]] == [True, True]
        assert len(scene.said) == 2
        await job.end()

    scene.run(work)


def test_where_one_has_answered_others_are_tried_again_and_again(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        job = helpers.job("work")
        assert await job.ask(("double", 1), nothing) == 2
        for _ in range(TRIES + 1):
            with pytest.raises(StuckError):
                await job.ask(("dies", 7), nothing)
        assert len(scene.said) == 1

    scene.run(work)


# Who makes one after the other that cannot be looked at


def test_who_has_another_one_below_it_each_time_is_given_up_itself(scene: Scene) -> None:
    async def work(helpers: Helpers) -> None:
        jobs = [helpers.job("work"), helpers.job("work")]
        below = procfs.children(pid) or []
        asked = (job.ask(("hangs", each), nothing) for job, each in zip(jobs, below, strict=True))
        await asyncio.gather(*asked, return_exceptions=True)
        assert set(helpers.given_up) == {pid, *below}
        assert len(scene.said) == 3

    with subprocess.Popen(["sh", "-c", "sleep 100 & sleep 100 & wait"]) as process:
        pid = process.pid
        eventually(lambda: len(procfs.children(pid) or []) == 2)
        scene.children[pid] = (SimpleNamespace(process_name=lambda index: f"app:app_{index:02}"), 0)
        try:
            scene.run(work)
        finally:
            for each in procfs.children(pid) or []:
                os.kill(each, signal.SIGKILL)


def test_nobody_below_who_was_given_up_is_looked_at() -> None:
    looked_at: list[int] = []
    with (
        subprocess.Popen(["sh", "-c", "sleep 100 & wait"]) as process,
        closing(socket.create_server(("127.0.0.1", 0))) as its,
    ):
        (below,) = eventually(lambda: procfs.children(process.pid))
        ground = Ground(cast(Any, None), looked_at.append, Progress(), (process.pid,))
        wanted = Wanted(process.pid, takes=True, elsewhere=True, enough=False)
        Sights(ground).answer(Request(True, (its.getsockname(),), (1,), (), (tuple(wanted),)), nothing)
        IdleOnes(ground).answer(((its.getsockname(),), (process.pid,)), nothing)
        os.kill(below, signal.SIGKILL)
    assert looked_at == []
