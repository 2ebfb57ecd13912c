"""Letting go without losing anything: when is a queue empty, and when has a process nothing in hand?

There is no event for either, so they are looked at, every few milliseconds and only while somebody waits for it. The
looks are made by a helper (looks.py), which a process may make stand still; what they find is decided on here, and at
once, since a process is held meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fcgimgr.config.settings import PoolSettings
from fcgimgr.core.generation import Happened, QueueEmpty
from fcgimgr.core.process import Idle, Retiring
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.idle import QUIET
from fcgimgr.manager.ground.helpers import FaultError, InlineJob, Job, StuckError
from fcgimgr.manager.looking.looks import View

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation

# Seconds between two looks, growing from the first to the second.
SHORTEST: Final = 0.002
LONGEST: Final = 0.05
# Seconds after which a queue that is still not empty is passed on (passing.py).
LATE: Final = 0.5
# Seconds between two looks at one that goes from connection to connection.
BETWEEN_ROWS: Final = 0.003


class Draining:
    """Looks at the generations that drain or have processes that retire."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._tasks: dict[Generation, asyncio.Task[None]] = {}

    def watch(self, generation: Generation) -> None:
        """Something in this generation is to be let go."""
        if generation not in self._tasks:
            self._tasks[generation] = self._daemon.loop.create_task(self._look_again_and_again(generation))

    def watch_all(self) -> None:
        """As `watch`, of those generations where there is something."""
        for pool in self._daemon.pools.values():
            for generation in pool.generations.values():
                if is_waited_for(generation):
                    self.watch(generation)

    async def pause(self) -> None:
        """Look at nothing until `watch_all`."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_again_and_again(self, generation: Generation) -> None:
        job = self._daemon.helpers.job("looks")
        try:
            # Only after a turn of the loop: whoever began this is still in the midst of carrying out what core said.
            await asyncio.sleep(0)
            while True:
                await self._look_until_done(generation, job)
                await job.end()
                if not is_waited_for(generation):
                    return
        finally:
            del self._tasks[generation]
            job.drop()

    async def _look_until_done(self, generation: Generation, job: Job | InlineJob) -> None:
        pause, fault = SHORTEST, ""
        while True:
            try:
                go_on, hurried, spent = await job.ask(view(generation), partial(self._heed, generation))
            except StuckError:
                go_on, hurried, spent = True, False, LONGEST
            except LinuxError as error:
                self._daemon.journal.debug(str(error), name=generation.name)
                go_on, hurried, spent = True, False, LONGEST
            except FaultError as error:  # whatever it was, it may be over, and somebody waits
                fault = self._daemon.helpers.say_once(generation.name, str(error), fault)
                go_on, hurried, spent = True, False, LONGEST
            if not go_on:
                return
            self._pass_on_if_late(generation)
            pause = BETWEEN_ROWS if hurried else min(LONGEST, pause * 1.5)
            # Whoever has much to be looked at does not have us look all the time.
            await asyncio.sleep(max(pause, spent))

    def _pass_on_if_late(self, generation: Generation) -> None:
        """Where they do not come to their queue, those that serve now shall."""
        core, within = generation.core, generation.settings.stopwaitsecs
        if core.draining is None or not core.left:
            return
        if self._daemon.loop.time() >= core.draining - within + min(LATE, within / 2):
            generation.pool.pass_on(generation.number)

    def _heed(self, generation: Generation, told: Any) -> tuple[Any, ...]:
        """What a look has found; the process it concerns may have become another since."""
        match told:
            case ("queue",):
                listening = generation.listening
                if generation.core.draining is not None and (listening is None or listening.queue_is_empty()):
                    generation.feed(QueueEmpty())
            case ("idle", *idle):
                for index, pid in idle:
                    processes = generation.core.processes
                    state = processes[index] if index < len(processes) else None
                    if isinstance(state, Retiring) and state.pid == pid:
                        generation.feed(Happened(index, Idle()))
            case ("say", level, text):
                say = self._daemon.journal.info if level == "info" else self._daemon.journal.debug
                say(text, name=generation.name)
        return view(generation)


def is_waited_for(generation: Generation) -> bool:
    """Whether there is something to be let go."""
    core = generation.core
    return core.draining is not None or any(isinstance(state, Retiring) for state in core.processes)


def view(generation: Generation) -> tuple[Any, ...]:
    """What there is to know for a look: a `View`, as it goes to a helper."""
    core, listening, settings = generation.core, generation.listening, generation.settings
    blocking = None
    if listening is not None and not listening.lost:
        blocking = all(map(os.get_blocking, listening.fds))
    seen = View(
        draining=core.draining is not None,
        shared=listening is not None and not (core.left or listening.refuses),
        names=tuple(listening.names) if listening is not None else (),
        inodes=tuple(listener.inode for listener in listening.listeners) if listening is not None else (),
        blocking=blocking,
        is_ours=isinstance(settings, PoolSettings) and settings.wsgi is not None,
        drains_itself=isinstance(settings, PoolSettings) and settings.drain == "self",
        quiet=min(QUIET, settings.stopwaitsecs / 2),
        processes=tuple(
            (
                type(state).__name__,
                state.pid if state.pid is not None and generation.is_there(index, state.pid) else None,
            )
            for index, state in enumerate(core.processes)
        ),
    )
    return tuple(seen)
