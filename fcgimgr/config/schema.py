"""The configuration as JSON Schema, for editors: completion, descriptions on hover, and errors while typing.

It describes one file, at the level of TOML's keys. What depends on more than one key, and every text's own form, is
left to `fcgimgr check`: an editor must not mark as wrong what is right.
"""

from typing import Any

import msgspec

from fcgimgr.config.keys import Key, keys
from fcgimgr.config.settings import GroupSettings, ManagerSettings, PoolSettings, ProgramSettings

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12), made of plain lists and dicts, ready for JSON."""
    return {
        "$schema": DIALECT,
        "title": "fcgimgr",
        "description": "Configuration of fcgimgr, a process manager for FastCGI and other socket-sharing servers.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "include": {
                "description": 'Further files or patterns, relative to this file. Example: ["conf.d/*.toml"].',
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
                "default": [],
            },
            "manager": {"$ref": "#/$defs/manager"},
            "defaults": {"$ref": "#/$defs/defaults"},
            "pool": _named("pool", "Processes that share listening sockets, by name."),
            "program": _named("program", "Processes without a socket, by name."),
            "group": _named("group", "Several pools and programs under one name for commands."),
        },
        "$defs": {
            "expansion": {
                "description": "Text with an expansion, as in %(ENV_NAME)s, in place of a plain value.",
                "type": "string",
                "pattern": r"%\(",
            },
            "manager": _table(ManagerSettings, "The manager itself."),
            "defaults": _table(
                PoolSettings, "Keys for every pool and program that does not say them itself.", complete=False
            ),
            "pool": _table(PoolSettings, "Processes that share listening sockets."),
            "program": _table(ProgramSettings, "Processes without a socket."),
            "group": _table(GroupSettings, "Several pools and programs under one name for commands."),
        },
    }


def _named(table: str, description: str) -> dict[str, Any]:
    return {"description": description, "type": "object", "additionalProperties": {"$ref": f"#/$defs/{table}"}}


def _table(struct: type[msgspec.Struct], description: str, *, complete: bool = True) -> dict[str, Any]:
    """complete: the required keys are required; not so where the table only completes others."""
    known = keys(struct)
    table: dict[str, Any] = {
        "description": description,
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _key(key) for name, key in known.items()},
    }
    required = [name for name, key in known.items() if key.required]
    if complete and required:
        table["required"] = required
    return table


def _key(key: Key) -> dict[str, Any]:
    # The descriptions are Markdown for the documentation; most editors show a description as it is.
    described = {"description": key.description.replace("`", ""), **key.kind.schema()}
    if key.default is not None:
        described["default"] = key.default
    return described
