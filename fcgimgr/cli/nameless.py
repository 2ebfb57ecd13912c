"""What is said to who gives no NAME to a command that needs one: what there is, each as the line to type.

Nothing is done without a NAME. `reload` alone might mean all of it, and `stop` alone must not.
"""

from shlex import join
from typing import Final

import click

from .failure import USAGE, Failure
from .locate import given_config, given_socket

#: More pools and programs than this are not listed.
MOST: Final = 20

#: Commands that do not take `all`, and what stands behind their NAME.
_OF_ONE: Final = {"scale": "+1"}


def nameless(context: click.Context, arguments: list[str]) -> Failure:
    """The failure of a command that was given these arguments, and no NAME. Failure (exit 4): no manager is there."""
    from fcgimgr.control.messages import Status, StatusParams

    from .ask import ask

    status = ask(context, "status", StatusParams(detail=False), Status)
    command = context.info_name or ""
    if not status.pools:
        return Failure(f"{command} what? There are no pools and no programs", code=USAGE)
    typed = join(["fcgimgr", *_before(context, arguments), command, *arguments])
    rows = [(f"{typed} {pool.name} {_OF_ONE.get(command, '')}".rstrip(), pool.state) for pool in status.pools[:MOST]]
    if command not in _OF_ONE:
        rows.append((f"{typed} all", ""))
    width = max(len(line) for line, _ in rows)
    lines = [f"  {line:<{width}}  {state}".rstrip() for line, state in rows]
    if (more := len(status.pools) - MOST) > 0:
        lines.append(f"  and {more} more: fcgimgr status")
    return Failure("\n".join([f"{command} what? There are:", *lines]), code=USAGE)


def _before(context: click.Context, arguments: list[str]) -> list[str]:
    """What was said before the command's name of the manager that is meant."""
    if any(argument.startswith(("-s", "-c", "--socket", "--config")) for argument in arguments):
        return []
    if socket := given_socket(context):
        return ["-s", socket]
    return ["-c", config] if (config := given_config(context)) else []
