"""`update`: from the configuration that runs to the one that is in the file."""

import click

from .failure import USAGE, Failure
from .options import Command
from .processes import verbose_option


@click.command("update", cls=Command, short_help="Apply what has changed in the configuration.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@verbose_option
@click.pass_context
def update_(context: click.Context, dry_run: bool, verbose: bool) -> None:
    """Read the configuration again and apply what has changed, by the least that it takes."""
    import sys

    from fcgimgr.control.messages import Updated, UpdateParams, Verdict

    from .ask import ask_and_wait, show_verdict

    updated = ask_and_wait(context, "update", UpdateParams(dry_run=dry_run), Updated)
    for warning in updated.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if updated.problems:
        raise Failure("\n".join((*updated.problems, "nothing was applied")), code=USAGE)
    for key in updated.restart:
        print(f"manager.{key}: changed; it takes a restart of the manager")
    for key in updated.manager:
        print(f"manager.{key}: {'changed' if dry_run else 'updated'}")
    if not updated.changes:
        print("no pool or program has changed")
    elif dry_run:
        print("\n".join(updated.changes))
    show_verdict(Verdict(ok=updated.ok, processes=updated.processes), verbose=verbose)
