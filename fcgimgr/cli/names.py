"""NAME on the command line, and its completion by asking the manager."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .options import ARGUMENTS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_PATIENCE = 0.3
"""Seconds that a person waits for a completion without noticing."""


def names_argument(*, required: bool) -> Callable[[Any], Any]:
    """NAME…: pools, programs, processes, groups, or all."""
    metavar = "NAME..." if required else "[NAME...]"
    return click.argument(
        "names", cls=Name, metavar=metavar, nargs=-1, required=required, shell_complete=complete_names
    )


class Name(click.Argument):
    """An argument in whose place, where it must be given and is not, it is said what there is."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter:
            if ctx.resilient_parsing:  # TAB waits for nobody
                raise
            from .nameless import nameless

            raise nameless(ctx, ctx.meta[ARGUMENTS]) from None


def complete_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    """Names that begin with `incomplete`; none when no manager runs. Processes only once their pool is written."""
    from click.shell_completion import CompletionItem

    pool, colon, _ = incomplete.partition(":")
    names = []
    for name, processes in _known(context):
        names.append(name)
        if colon and name == pool:
            names += [f"{name}:*", *(f"{name}:{process}" for process in processes)]
    return [CompletionItem(name) for name in [*names, "all"] if name.startswith(incomplete)]


def complete_pools(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    """Names of pools and programs that begin with `incomplete`."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name, _ in _known(context) if name.startswith(incomplete)]


def _known(context: click.Context) -> list[tuple[str, list[str]]]:
    from fcgimgr.control.client import Client
    from fcgimgr.control.messages import ControlError, Status, StatusParams

    from .failure import Failure
    from .locate import control_socket

    try:
        with Client(control_socket(context), _PATIENCE) as client:
            status = client.call("status", StatusParams(detail=False), answer=Status)
    except (Failure, ControlError, OSError):
        return []  # A person in the middle of a line is not to be talked to.
    return [(pool.name, [process.name for process in pool.processes]) for pool in status.pools]
