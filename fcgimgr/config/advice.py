"""What to say about a key or a table that is not known. Imported only on the way to an error.

People bring keys from Supervisor, PHP-FPM, uWSGI and systemd (foreign.py); where the thing exists here under another
name, the message says so, and nobody is sent to a key that the table at hand cannot have. Keys of the design that a
later version will have are named as such, so that nobody hunts for a typo.
"""

import difflib
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from fcgimgr.config.foreign import FOREIGN, INSTEAD
from fcgimgr.config.foreign_rows import Row, message, named, plain_key
from fcgimgr.config.keys import keys
from fcgimgr.config.settings import GroupSettings, ManagerSettings, PoolSettings, ProgramSettings

LATER: Final = frozenset([
    "policy", "numprocs_max", "min_spare", "max_spare",
    "idle_timeout", "cgroup",
])  # fmt: skip

_TABLES: Final = ("manager", "defaults", "pool", "program", "group", "include")


def unknown_table(name: str, value: Any) -> str:
    """The message for something at the top level of a file that is not known."""
    plain = name.lower()
    kind, colon, rest = plain.partition(":")
    if colon and kind in ("program", "group", "fcgi-program"):
        return f"unknown table; in TOML it is [{'pool' if kind == 'fcgi-program' else kind}.{rest.strip() or 'NAME'}]"
    if row := next((row for table in FOREIGN.values() for row in table if plain_key(kind) in row.tables), None):
        return f"unknown table; {message(row.here)}"
    if not isinstance(value, dict):
        return _stray_key(name)
    if plain in _TABLES[:-1]:
        return f"unknown table; did you mean [{plain}]?"
    close = difflib.get_close_matches(plain[:40], _TABLES, 1, 0.7)
    if close:
        name_too = ".NAME" if close[0] in ("pool", "program", "group") else ""
        return f"unknown table; did you mean [{close[0]}{name_too}]?"
    if "socket" in value or "listen" in value:
        return f"unknown table; did you mean [pool.{name}]?"
    if "command" in value:
        return f"unknown table; did you mean [program.{name}]?"
    return "unknown table; the tables are [manager], [defaults], [pool.NAME], [program.NAME] and [group.NAME]"


class At(Struct, frozen=True):
    """Where an unknown key stands: in a `table` ("manager", "defaults", "pool", "program" or "group") that may have the
    keys `allowed` and `runs` a "command" or "wsgi" (or "": not known)."""

    table: str
    runs: str
    allowed: tuple[str, ...]


def unknown_keys(at: At, key: str, value: object) -> Iterator[tuple[str, str]]:
    """Each key that is not known, with the message: `key`, or PHP-FPM's keys with a dot, which are tables in TOML."""
    dotted = [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else []
    if any(_rows(name) or _undotted(name) in at.allowed for name in dotted):
        for name in dotted:
            yield name, unknown_key(at, name)
    else:
        yield key, unknown_key(at, key, value)


def unknown_key(at: At, key: str, value: object = None) -> str:
    """The message for one key."""
    plain = plain_key(key)
    if plain in LATER:
        return "it is not in this version of fcgimgr"
    if plain in INSTEAD and (at.runs == "command" or at.table == "program"):
        return of_wsgi_alone(plain)
    if plain in at.allowed:
        return f"unknown key; did you mean {plain}?"
    told = _elsewhere(at.table, plain) or _foreign(at, plain, value)
    if told:
        return told
    undotted = _undotted(plain)
    if undotted in at.allowed and not (undotted in INSTEAD and at.runs == "command"):
        return f"unknown key; did you mean {undotted}?"
    if plain.startswith("rlimit_"):
        return "unknown key; the limits are " + ", ".join(name for name in at.allowed if name.startswith("rlimit_"))
    close = difflib.get_close_matches(plain[:60], [*at.allowed, *LATER], 1, 0.7)
    if close and close[0] in LATER:
        return f"unknown key; {close[0]} is not in this version of fcgimgr"
    if close and not (close[0] in INSTEAD and at.runs == "command"):
        return f"unknown key; did you mean {close[0]}?"
    return "unknown key; `fcgimgr help configuration` has them all, `fcgimgr schema` for an editor"


def of_wsgi_alone(key: str) -> str:
    """The message for a key of `wsgi` pools where a command runs."""
    return f"is for a wsgi application only; {message(INSTEAD[key])}"


def _undotted(key: str) -> str:
    return key.replace(".", "_")


def _elsewhere(table: str, key: str) -> str | None:
    if table == "program" and key in keys(PoolSettings):
        return "only a pool has this key: make the table a [pool.NAME], or leave the key out"
    if table != "manager" and key in keys(ManagerSettings):
        return "this key belongs in [manager]"
    if table in ("manager", "group") and key in keys(PoolSettings):
        return "this key belongs in a [pool.NAME] or [program.NAME], or in [defaults] for all of them"
    if table in ("pool", "program", "defaults") and key in keys(GroupSettings):
        return "this key belongs in [group.NAME]"
    return None


def _rows(key: str, value: object = None) -> dict[str, Row]:
    """The row of each foreign table that has `key`, by whose table it is: the one for its value, or else the first."""
    plain, said = plain_key(key), str(value).lower()
    found = {}
    for whose, table in FOREIGN.items():
        rows = [(row, row.keys[plain]) for row in table if plain in row.keys]
        if rows:
            found[whose] = next((row for row, of in rows if of in ("", said)), rows[0][0])
    return found


def _foreign(at: At, key: str, value: object) -> str | None:
    """What a key of others is here; where it means several things, each with whose it is."""
    told: dict[str, str] = {}
    for whose, row in _rows(key, value).items():
        told.setdefault(_here(at, row), whose)
    if len(told) > 1:
        return "unknown key; " + "; ".join(
            f"as {whose} has it, {text}" if whose else text for text, whose in told.items()
        )
    return f"unknown key; {next(iter(told))}" if told else None


def _here(at: At, row: Row) -> str:
    """What the row says to the table at hand: never to write a key that it cannot have."""
    cell = row.wsgi if row.wsgi and at.runs == "wsgi" else row.here
    advised = named(cell) if cell.startswith("`") else []
    if at.runs == "command" or at.table == "program":
        for name in advised:
            if name in INSTEAD:
                return message(INSTEAD[name])
    if not advised or advised[0] not in keys(PoolSettings) or advised[0] in at.allowed:
        return message(cell)
    only_pools = advised[0] not in keys(ProgramSettings)
    return f"{message(cell)}, which only a {'[pool.NAME]' if only_pools else '[pool.NAME] or [program.NAME]'} has"


def foreign_key(key: str) -> Iterator[str]:
    """What a key of others is here, or a value of one, for one who asks for it by name; each with whose it is."""
    plain = plain_key(key)
    for whose, table in FOREIGN.items():
        for row in table:
            of = row.keys.get(plain)
            valued = next((f"{name} = {value}" for name, value in row.keys.items() if value == plain), None)
            if of is not None or valued:
                what = valued or (f"{key} = {of}" if of else key)
                yield f"{what} of {whose}: {message(row.here)}" if whose else f"{what}: {message(row.here)}"


def _stray_key(name: str) -> str:
    if name in keys(ManagerSettings) and name not in keys(PoolSettings):
        return "it stands above the first table; it belongs in [manager]"
    told = {message(row.here) for row in _rows(name).values()}
    if name in keys(PoolSettings) or told:
        mend = f" ({'; '.join(sorted(told))})" if told and name not in keys(PoolSettings) else ""
        return f"it stands above the first table; it belongs in [pool.NAME] or [program.NAME]{mend}"
    close = difflib.get_close_matches(name.lower()[:40], _TABLES, 1, 0.7)
    return "unknown key above the first table" + (
        f"; did you mean {close[0]}?" if close else "; only include stands there"
    )
