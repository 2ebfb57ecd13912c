"""The top level of a configuration: which tables there are, each in one file only."""

from typing import Any, Final

import msgspec

from fcgimgr.config.files import SourceFile
from fcgimgr.config.problems import Problem
from fcgimgr.config.values import show

SINGLE: Final = ("manager", "defaults")
NAMED: Final = ("pool", "program", "group")


class Table(msgspec.Struct, frozen=True):
    """One table: `key` is "pool.app" or "manager"; name is "app", or "" for a table that has none."""

    key: str
    name: str
    file: SourceFile
    entries: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.key.partition(".")[0]


class Tables(msgspec.Struct, frozen=True):
    """Every table of a configuration, in the order in which the files say them."""

    manager: Table | None
    defaults: Table | None
    pools: list[Table]
    programs: list[Table]
    groups: list[Table]
    problems: list[Problem]

    def unseen(self) -> frozenset[str]:
        """The kinds of tables of which there may be one (more) in a file that could not be read."""
        single = {"manager": self.manager, "defaults": self.defaults}
        return frozenset((*NAMED, *(kind for kind, table in single.items() if table is None)))


def sort_tables(files: list[SourceFile]) -> Tables:
    """The tables of all files by their kind; a table in two files, and anything else at the top, is a problem."""
    found: dict[str, Table] = {}
    problems: list[Problem] = []
    for file in files:
        for top, value in file.tables.items():
            if top in SINGLE:
                _add(Table(top, "", file, value), found, problems)
            elif top in NAMED:
                _add_named(top, value, file, found, problems)
            else:
                from fcgimgr.config.advice import unknown_table

                problems.append(Problem(file.shown, top, unknown_table(top, value)))
    kinds = {kind: [table for table in found.values() if table.key.startswith(f"{kind}.")] for kind in NAMED}
    return Tables(
        found.get("manager"), found.get("defaults"), kinds["pool"], kinds["program"], kinds["group"], problems
    )


def _add(table: Table, found: dict[str, Table], problems: list[Problem]) -> None:
    first = found.get(table.key)
    if not isinstance(table.entries, dict):
        problems.append(Problem(table.file.shown, table.key, f"expected a table, got {show(table.entries)}"))
    elif first is not None:
        message = f"this table is in {first.file.shown} too; it must be in one file only"
        problems.append(Problem(table.file.shown, table.key, message))
    else:
        found[table.key] = table


def _add_named(top: str, value: object, file: SourceFile, found: dict[str, Table], problems: list[Problem]) -> None:
    if not isinstance(value, dict):
        problems.append(Problem(file.shown, top, f"expected tables with a name, as in [{top}.app]"))
        return
    for name, entries in value.items():
        if isinstance(entries, dict):
            _add(Table(f"{top}.{name}", name, file, entries), found, problems)
        else:
            message = f"a {top} needs a name: write [{top}.app] above its keys, with a name of your choice"
            problems.append(Problem(file.shown, f"{top}.{name}", message))
