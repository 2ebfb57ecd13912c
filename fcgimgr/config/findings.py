"""What the checks have to go on, and where they say what they found."""

import msgspec

from fcgimgr.config.problems import Problem
from fcgimgr.config.settings import PoolSettings, ProgramSettings
from fcgimgr.config.tables import Table


class TableRead(msgspec.Struct, frozen=True):
    """A pool's or program's table and what was read from it.

    settings: None when a required key is missing or wrong; a key that could not be read has its default there, for the
    problem is known already. given: the table that says each key, its own or [defaults].
    """

    table: Table
    settings: PoolSettings | ProgramSettings | None
    given: dict[str, Table]

    def own(self, key: str) -> bool:
        """Whether the table itself says `key`, not only [defaults]."""
        return key in self.table.entries


class Findings:
    """The problems and warnings so far, each once. What cannot even be read gets no second problem from the checks."""

    def __init__(self, problems: list[Problem], warnings: list[Problem], unseen: frozenset[str] = frozenset()) -> None:
        """unseen: the kinds of tables of which there may be one in a file that could not be read."""
        self.problems = dict.fromkeys(problems)
        self.warnings = dict.fromkeys(warnings)
        self.unseen = unseen
        self._unread: set[tuple[str, str]] = set()

    def unread(self, table: Table, key: str, message: str) -> None:
        """The value of `key` is wrong in itself."""
        self.problem(table, key, message)
        self._unread.add((table.file.shown, f"{table.key}.{key}"))

    def problem(self, at: Table | TableRead, key: str, message: str) -> None:
        problem = _found(at, key, message)
        if (problem.file, problem.key) not in self._unread:
            self.problems[problem] = None

    def absent(self, kind: str, at: Table | TableRead, key: str, message: str) -> None:
        """A problem, unless what is not there may be in a table of this kind that nobody has seen."""
        if kind not in self.unseen:
            self.problem(at, key, message)

    def warning(self, at: Table | TableRead, key: str, message: str) -> None:
        self.warnings[_found(at, key, message)] = None


def _found(at: Table | TableRead, key: str, message: str) -> Problem:
    table = at.given.get(key, at.table) if isinstance(at, TableRead) else at
    return Problem(table.file.shown, f"{table.key}.{key}" if key else table.key, message)
