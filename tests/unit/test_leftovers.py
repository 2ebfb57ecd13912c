"""What a dead process leaves is told to end while its group's number is still its own, and nobody else ever is."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fcgimgr.core.process import Rest, Running, Stopping
from fcgimgr.linux import procfs
from fcgimgr.linux.libc import PR_SET_CHILD_SUBREAPER, prctl
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.processes import reap, set_subreaper
from fcgimgr.manager.children import leftovers as module
from fcgimgr.manager.children.leftovers import Leftovers
from tests.waiting import eventually


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    set_subreaper()
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()
    prctl(PR_SET_CHILD_SUBREAPER, 0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str | None]]:
    """(group, signal, state of its leader) of every signal that is sent, in their order."""
    sent: list[tuple[int, int, str | None]] = []
    send = PidFd.signal_group

    def note(leader: PidFd, number: int) -> bool:
        if number:
            sent.append((leader.pid, number, procfs.state(leader.pid)))
        return send(leader, number)

    monkeypatch.setattr(PidFd, "signal_group", note)
    return sent


def family(*, member: bool) -> int:
    """A leader that has died, with or without a member of its group that lives on; its pid."""
    leader = os.fork()
    if leader == 0:
        os.setsid()
        if member and os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    eventually(lambda: procfs.state(leader) == "Z")
    return leader


def generation(state: Any) -> Any:
    settings = SimpleNamespace(name="app", stopwaitsecs=0.2, stopsignal=int(signal.SIGTERM), stopasgroup=False)
    core = SimpleNamespace(processes=(state,))
    return SimpleNamespace(settings=settings, core=core, number=1, slots=[SimpleNamespace(name="app_00")])


def bury(leftovers: Leftovers, leader: int, state: Any, gone: Callable[[], None]) -> None:
    for death in reap():
        if death.pid == leader:
            leftovers.leader_died(leader, PidFd(leader), generation(state), 0, gone)
    leftovers.look()


@pytest.mark.parametrize("asked", ["died", "stopped", "killed"])
def test_the_group_is_told_before_its_leader_is_reaped(
    asked: str, loop: asyncio.AbstractEventLoop, told: list[tuple[int, int, str | None]]
) -> None:
    leftovers = Leftovers(loop, set(), lambda path: False)
    leader = family(member=True)
    state = {
        "died": Running(pid=leader, since=0.0),
        "stopped": Stopping(pid=leader, due=loop.time() + 10, after=Rest()),
        "killed": Stopping(pid=leader, due=loop.time() + 10, after=Rest(), killed=True),
    }[asked]
    buried: list[bool] = []
    bury(leftovers, leader, state, lambda: buried.append(True))
    assert told == [(leader, signal.SIGKILL if asked == "killed" else signal.SIGTERM, "Z")]

    async def until_gone() -> None:
        while leftovers:
            for _ in reap():
                pass
            leftovers.look()
            await asyncio.sleep(0.005)

    loop.run_until_complete(asyncio.wait_for(until_gone(), 10))
    assert buried == [True]


def test_a_group_without_members_is_left_alone(
    loop: asyncio.AbstractEventLoop, told: list[tuple[int, int, str | None]]
) -> None:
    leftovers = Leftovers(loop, set(), lambda path: False)
    leader = family(member=False)
    bury(leftovers, leader, Running(pid=leader, since=0.0), lambda: None)
    assert not leftovers
    assert [state for *_, state in told] == ["Z"]


def test_a_number_that_is_another_process_by_now_is_not_signalled(loop: asyncio.AbstractEventLoop) -> None:
    """As if the leader's number had been given to a process that leads a group of its own."""
    first = os.fork()
    if first == 0:
        os._exit(0)
    leader = PidFd(first)
    os.waitpid(first, 0)
    stranger = os.fork()
    if stranger == 0:
        os.setsid()
        time.sleep(1000)
    try:
        eventually(lambda: os.getpgid(stranger) == stranger)
        leader.pid = stranger
        remains = module.Remains(
            stranger, leader, ("app", "1", "app_00"), signal.SIGTERM, told=False, deadline=0.0, gone=None
        )
        assert not remains.signal_group(signal.SIGKILL)
        assert procfs.state(stranger) != "Z"
    finally:
        leader.close()
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)


def test_a_process_may_be_the_last_of_its_slot(loop: asyncio.AbstractEventLoop) -> None:
    """It was told of its retirement, for there are to be fewer, and died before it was told to stop."""
    leftovers = Leftovers(loop, set(), lambda path: False)
    leader = family(member=False)
    of = generation(Running(pid=leader, since=0.0))

    def told_of() -> None:
        of.core.processes = ()

    for death in reap():
        if death.pid == leader:
            leftovers.leader_died(leader, PidFd(leader), of, 0, told_of)
    leftovers.look()
    assert not leftovers


def unreaped() -> int:
    """A child that is dead and not reaped: as a stranger's, that came to us as an orphan; its pid."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    eventually(lambda: procfs.state(child) == "Z")
    return child


def seconds_until_buried(leftovers: Leftovers, loop: asyncio.AbstractEventLoop) -> float:
    """With nobody else to look."""

    async def until_gone() -> None:
        while leftovers:
            await asyncio.sleep(0.005)

    begun = time.monotonic()
    loop.run_until_complete(asyncio.wait_for(until_gone(), 10))
    return time.monotonic() - begun


def test_one_that_is_never_reaped_holds_up_a_burial_for_a_moment_and_no_second_one(
    loop: asyncio.AbstractEventLoop,
) -> None:
    leftovers = Leftovers(loop, set(), lambda path: False)
    orphan = unreaped()
    try:
        for within in (module.STRAYS_DIE_WITHIN + 1, 0.5):
            leader = family(member=False)
            stopping = Stopping(pid=leader, due=loop.time() + 60, after=Rest())
            leftovers.leader_died(leader, PidFd(leader), generation(stopping), 0, lambda: None)
            os.waitpid(leader, 0)
            leftovers.look()
            assert seconds_until_buried(leftovers, loop) < within
            leftovers.look()
    finally:
        os.waitpid(orphan, 0)


def test_what_is_abandoned_holds_up_no_burial(loop: asyncio.AbstractEventLoop) -> None:
    orphan = unreaped()
    leftovers = Leftovers(loop, set(), lambda path: False, abandoned={orphan})
    try:
        leader = family(member=False)
        stopping = Stopping(pid=leader, due=loop.time() + 60, after=Rest())
        leftovers.leader_died(leader, PidFd(leader), generation(stopping), 0, lambda: None)
        os.waitpid(leader, 0)
        leftovers.look()
        assert not leftovers
    finally:
        os.waitpid(orphan, 0)
