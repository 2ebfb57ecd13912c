"""Who can wake the manager at will is heard for a share of the time only."""

import asyncio
import socket
from types import SimpleNamespace

import pytest

from fcgimgr.manager.ground import budget
from fcgimgr.manager.ground.budget import SAVED, Budgeted
from tests.unit.logs_bench import run_once, run_until


def test_who_takes_too_much_is_not_heard_for_a_while(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    reader, writer = socket.socketpair()
    heard: list[float] = []

    def hear() -> None:  # and what is there stays there
        clock[0] += SAVED / 4
        heard.append(clock[0])

    try:
        writer.send(b"x")
        budgeted = Budgeted(loop, reader, hear)
        for _ in range(20):
            run_once(loop)
        assert 4 <= len(heard) <= 5  # what was saved up, and its share meanwhile
        before = len(heard)
        run_until(loop, lambda: len(heard) > before)  # it is listened to again
        budgeted.end()
        before = len(heard)
        for _ in range(20):
            run_once(loop)
        assert len(heard) == before
    finally:
        reader.close()
        writer.close()


def test_one_that_is_let_go_of_while_it_is_heard_is_not_heard_again(loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = socket.socketpair()
    heard: list[Budgeted] = []

    def hear() -> None:
        heard.append(budgeted)
        budgeted.end()

    budgeted = Budgeted(loop, reader, hear)
    writer.send(b"x")
    run_once(loop)
    reader.close()
    writer.close()
    run_once(loop)
    assert heard == [budgeted]
