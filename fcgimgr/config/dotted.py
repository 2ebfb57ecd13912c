"""Keys with a dot, as PHP-FPM has them: TOML takes what stands before the dot for a table.

So `listen.group = "www-data"` beside `listen = "…"` is no TOML at all, and the parser's message does not say why.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from fcgimgr.config.advice import At, unknown_key
from fcgimgr.config.keys import keys
from fcgimgr.config.settings import ManagerSettings, PoolSettings, ProgramSettings

_KEY: Final = re.compile(r"\s*(([\w-]+)(?:\.([\w.-]+))?)\s*=\s*(\{?)")
_TABLE: Final = re.compile(r"\s*\[\s*(\w+)")
_SETTINGS: Final = {"manager": ManagerSettings, "program": ProgramSettings}


class _Said(NamedTuple):
    """line: counted from 1; key: all of it, as in "listen.group"; before, behind: its first dot."""

    line: int
    key: str
    before: str
    behind: str | None
    is_inline_table: bool


def explained(lines: Sequence[str], number: int) -> tuple[int, str, str] | None:
    """(line, why it is no TOML, what to write) where the key in line `number` cannot be with one above it, for the dot
    in either; else None.
    """
    table, said = _table_until(lines, number)
    if not said or said[-1].line != number:
        return None
    last = said[-1]
    same = [one for one in said if one.before == last.before]
    if last.behind and any(one.is_inline_table for one in same):
        return number, f"{last.before} ends with its }}", f"write {last.behind} within"
    dotted = {one.key: one.line for one in reversed(same) if one.behind}
    if not dotted or all(one.behind for one in same):
        return None
    runs = next((one.key for one in said if one.key in ("command", "wsgi")), "")
    at = At(table, runs, tuple(keys(_SETTINGS.get(table, PoolSettings))))
    told = [f"{key}: {unknown_key(at, key).removeprefix('unknown key; ')}" for key in reversed(dotted)]
    why = f"{last.before} has a value, so that it cannot have keys with a dot"
    return min(dotted.values()), why, "; ".join(told)


def _table_until(lines: Sequence[str], number: int) -> tuple[str, list[_Said]]:
    """The kind of table that line `number` is in, and the keys there, up to that line."""
    said: list[_Said] = []
    for line in range(number, 0, -1):
        if header := _TABLE.match(lines[line - 1]):
            return header[1], said[::-1]
        if key := _KEY.match(lines[line - 1]):
            said.append(_Said(line, key[1], key[2], key[3], bool(key[4])))
    return "pool", said[::-1]
