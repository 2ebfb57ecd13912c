"""The log files that workers write to themselves (fcgimgr/worker/appending.py): access_log and slowlog.

What is wrong with one is known from its making (requestfiles.py), and from the workers, who tell it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from fcgimgr.config.processes import ProcessPlan
from fcgimgr.manager.logs.target import Trouble

#: The variables that tell a worker their paths.
ACCESS_LOG: Final = "FCGIMGR_ACCESS_LOG"
SLOWLOG: Final = "FCGIMGR_SLOWLOG"


class Ended(NamedTuple):
    """Those workers of `owner` that have ended."""

    owner: object


class RequestLogs:
    """What is wrong with them just now: told once of each, and once more when it is over."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._problems: dict[str, dict[object, str]] = {}  # by path, and by who says so

    def note(self, path: str, source: object, problem: str) -> None:
        """`source` says of this file what is wrong with it; "" is nothing."""
        self._set(path, problem, {source}, source)

    def hear(self, path: str, worker: object, problem: str) -> None:
        """So does a worker, who writes to it: that holds also for what those have found who have ended."""
        ended = {source for source in self._problems.get(path, ()) if isinstance(source, Ended)}
        self._set(path, problem, {worker, *ended}, worker)

    def ended(self, worker: object, owner: object) -> None:
        """It has, and what it had found is as it is: the next one of this owner's says what has become of it."""
        for told in self._problems.values():
            if (problem := told.pop(worker, None)) is not None:
                told[Ended(owner)] = problem

    def forget(self, owner: object) -> None:
        """Nothing of it is left, so that nobody will say more."""
        for path, told in tuple(self._problems.items()):
            told.pop(owner, None)
            told.pop(Ended(owner), None)
            if not told:
                del self._problems[path]

    def _set(self, path: str, problem: str, outdated: set[object], source: object) -> None:
        before = self._problems.pop(path, {})
        now = {each: what for each, what in before.items() if each not in outdated}
        if problem:
            now[source] = problem
        if now:
            self._problems[path] = now
        if now and not before:
            self._tell(f"{path}: {problem}")
        elif before and not now:
            self._tell(f"{path}: is written again")

    @property
    def troubles(self) -> list[Trouble]:
        return [Trouble(path, next(iter(told.values())), None) for path, told in self._problems.items()]


def environment(plan: ProcessPlan) -> dict[str, str]:
    """What tells the worker of this plan where it is to write."""
    paths = {ACCESS_LOG: plan.access_log, SLOWLOG: plan.slowlog}
    return {name: path for name, path in paths.items() if path is not None}


def files(plan: ProcessPlan) -> list[str]:
    """The paths of the files among them."""
    return [path for path in dict.fromkeys(environment(plan).values()) if path != "-"]
