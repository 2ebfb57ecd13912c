"""The log files that workers write to themselves (fcgimgr/worker/appending.py): access_log and slowlog.

What is wrong with one is known from its making (requestfiles.py), and from the workers, who tell it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fcgimgr.config.processes import ProcessPlan
from fcgimgr.manager.target import Trouble

#: The variables that tell a worker their paths.
ACCESS_LOG: Final = "FCGIMGR_ACCESS_LOG"
SLOWLOG: Final = "FCGIMGR_SLOWLOG"


class RequestLogs:
    """What is wrong with them just now: told once of each, and once more when it is over."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._problems: dict[str, dict[object, str]] = {}  # by path, and by who says so

    def note(self, path: str, source: object, problem: str) -> None:
        """`source` says of this file what is wrong with it; "" is nothing."""
        told = self._problems.setdefault(path, {})
        if problem and not told:
            self._tell(f"{path}: {problem}")
        elif not problem and told.keys() == {source}:
            self._tell(f"{path}: is written again")
        self._set(path, source, problem)

    def forget(self, source: object) -> None:
        """It has ended, and what it had found may be found by another."""
        for path in tuple(self._problems):
            self._set(path, source, "")

    def _set(self, path: str, source: object, problem: str) -> None:
        told = self._problems[path]
        if problem:
            told[source] = problem
        else:
            told.pop(source, None)
        if not told:
            del self._problems[path]

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
