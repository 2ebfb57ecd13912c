"""`tail` and `log`: what the processes write, and what the manager does, to a client that may want to go on reading.

A client that reads more slowly than lines come is not waited for, neither by a process nor with the manager's memory:
lines are left out, and how many is said once it has caught up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fcgimgr.control import messages
from fcgimgr.control.messages import NO_SUCH_NAME, ControlError
from fcgimgr.manager.commands.following import Following
from fcgimgr.manager.commands.names import choose, indexes_of
from fcgimgr.manager.pools.tail import end_of_file, last_lines

if TYPE_CHECKING:
    from fcgimgr.manager.commands.table import Caller
    from fcgimgr.manager.daemon import Daemon


async def tail(daemon: Daemon, params: messages.TailParams, caller: Caller) -> messages.Tail:
    chosen = choose(daemon, (params.name,))
    found = [(generation, index) for generation, indexes in chosen.items() for index in indexes_of(generation, indexes)]
    several = len(found) != 1
    last = {
        generation.process_name(index): last_lines(generation, index, params.stream, params.lines)
        for generation, index in found
    }
    if not params.follow:
        lines = tuple(line for each in last.values() for line in text(each))
        processes = tuple(name for name, each in last.items() for _ in each) if several else ()
        return messages.Tail(lines=lines, processes=processes)

    told = Told(caller, params.stream, params.name, several=several)
    for name, each in last.items():
        told(name, each)
    places = {generation.pool: None if indexes is None else indexes[0] for generation, indexes in chosen.items()}
    following = Following(daemon, places, params.stream, told)
    gone = daemon.loop.create_task(caller.gone())
    try:
        await asyncio.wait((gone, following.over), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        following.end()
    if following.over.done():
        name = params.name if several else next(iter(last))
        raise ControlError(f"{name} is no more: an update has removed it", code=NO_SUCH_NAME)
    return messages.Tail(lines=())


async def log(daemon: Daemon, params: messages.LogParams, caller: Caller) -> messages.Tail:
    path = daemon.config.manager.logfile
    lines = end_of_file(daemon.logs, path, params.lines) if path != "-" else []
    lines = lines or daemon.journal.last(params.lines)
    if not params.follow:
        return messages.Tail(lines=text(lines))
    told = Told(caller, "log", "")
    told("", lines)
    stop = daemon.journal.follow(lambda lines: told("", lines))
    try:
        await caller.gone()
    finally:
        stop()
    return messages.Tail(lines=())


class Told:
    """Lines to a client, as `line` notifications. `name`: of what lines are said to be left out; `several`: of more
    than one process, which is known of a pool of one when the second has written.
    """

    def __init__(self, caller: Caller, stream: str, name: str, *, several: bool = False) -> None:
        self._caller = caller
        self._stream = stream
        self._name = name
        self._several = several
        self._first: str | None = None
        self._skipped = 0

    def __call__(self, process: str, lines: list[bytes]) -> None:
        self._first = process if self._first is None else self._first
        self._several |= process != self._first
        if self._caller.behind:
            if not self._skipped:
                self._caller.when_caught_up(self._confess)
            self._skipped += len(lines)
            return
        for line in text(lines):
            self._notify(process, line)

    def _confess(self) -> None:
        count, self._skipped = self._skipped, 0
        self._notify(self._name, "", count)

    def _notify(self, process: str, line: str, skipped: int = 0) -> None:
        told = messages.Line(process=process, stream=self._stream, text=line, skipped=skipped, several=self._several)
        self._caller.notify("line", told)


def text(lines: list[bytes]) -> tuple[str, ...]:
    return tuple(line.decode("utf-8", "backslashreplace") for line in lines)
