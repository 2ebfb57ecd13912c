"""What may block is done by a helper; one that does not get on is given up, and another one does what is left."""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fcgimgr.linux import procfs
from fcgimgr.manager.helpers import ASLEEP, CHECK, FaultError, Helpers, StuckError
from fcgimgr.manager.helping import Ground, Tell
from tests.waiting import eventually


class Work:
    """A job that does what it is asked."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def answer(self, request: Any, tell: Tell) -> Any:
        what, number = request
        return getattr(self, what)(number, tell)

    def end(self) -> None:
        pass

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

    def has_open(self, number: int, tell: Tell) -> list[str]:
        return [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)] + os.listdir("/proc/self/fd")

    def is_called(self, number: int, tell: Tell) -> str:
        return f"{os.getpid()} {procfs.command(os.getpid())}"


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
                journal=SimpleNamespace(warning=lambda text, name, pid: self.said.append(f"{name} {pid}: {text}")),
            )
            helpers = Helpers(cast(Any, daemon), {"work": Work})
            try:
                await work(helpers)
            finally:
                helpers.kill()

        asyncio.run(begin())


@pytest.fixture
def scene() -> Scene:
    return Scene()


@contextmanager
def stopped_process() -> Iterator[int]:
    with subprocess.Popen(["sleep", "100"]) as process:
        process.send_signal(19)
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
        eventually(lambda: procfs.state(pid) == "S")  # it may have been held

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
