"""Signals that are held off come later, each of them, and to whoever this process is by then."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fcgimgr.manager.ground.signals import Signals

NUMBERS = (signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with ExitStack() as stack:
        before = {number: signal.getsignal(number) for number in NUMBERS}
        stack.callback(lambda: [signal.signal(number, handler) for number, handler in before.items()])
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, signal.pthread_sigmask(signal.SIG_BLOCK, []))
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        yield loop


@pytest.mark.parametrize("turns", [0, 1])
def test_what_came_before_and_what_comes_while_they_are_held_off_waits(
    turns: int, loop: asyncio.AbstractEventLoop
) -> None:
    """Whether the loop has seen it already or not: nothing is heeded half, nothing is lost, nothing is heeded twice."""
    heeded: list[int] = []
    signals = Signals(loop)
    for number in NUMBERS:
        signals.handle(number, lambda number=number: heeded.append(number))

    async def scene() -> None:
        # To this thread. The manager has no other; a process that runs tests may, which would take it.
        signal.raise_signal(signal.SIGUSR1)
        for _ in range(turns):
            signals._wake()  # The loop has noticed, and is to call the handler next.
        signals.hold()
        signal.raise_signal(signal.SIGUSR2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert heeded == []
        assert set(NUMBERS) <= signal.sigpending()  # Which an exec keeps.
        signals.let_come()
        while len(heeded) < 2:
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(scene(), 10))
    assert sorted(heeded) == sorted(NUMBERS)
    signals.close()
