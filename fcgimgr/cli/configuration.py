"""`check` and `schema`: the configuration without a manager."""

import json
import os
import sys
from collections.abc import Iterable

import click

from .locate import config_file
from .options import Command
from .terminal import safe


@click.command("check", cls=Command)
@click.pass_context
def check_(context: click.Context) -> None:
    """Check the configuration: every problem at once, exit 2. Directories that are missing or unsafe are warned of."""
    from fcgimgr.config.logplaces import unwritable
    from fcgimgr.config.read import ConfigError, read

    from . import ownplaces, reach
    from .locate import short_path

    path = config_file(context)
    try:
        config = read(path, os.environ)
    except ConfigError as error:
        _warn(error.warnings)
        raise
    found = (*config.warnings, *ownplaces.warnings(config), *unwritable(config).values(), *reach.warnings(config))
    _warn(dict.fromkeys(found))
    what = _count(len(config.pools), "pool"), _count(len(config.programs), "program")
    print(f"{short_path(path)}: ok: {', '.join(part for part in what if part) or 'nothing to run'}")


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {safe(warning)}", file=sys.stderr)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}" if number else ""


@click.command("schema", cls=Command)
def schema_() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from fcgimgr.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
