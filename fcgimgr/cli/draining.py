"""`drain`: out of the load balancer's sight, and wait until nobody is being served any more."""

import click

from .failure import FAILED, Failure
from .options import Command


@click.command("drain", cls=Command, short_help="Let `probe ready` say no, and wait until nobody is being served.")
@click.option("--undo", is_flag=True, help="Take it back.")
@click.option("--wait/--no-wait", default=True, help="Wait until no connection is in use (the default).")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait no longer than this; then exit 1.")
@click.pass_context
def drain_(context: click.Context, undo: bool, wait: bool, timeout: float | None) -> None:
    """Let `probe ready` say no from now on, and wait until no connection is in use. Everything goes on serving."""
    if undo and timeout is not None:
        raise click.UsageError("--undo does not wait: leave --timeout out")
    from fcgimgr.control.messages import Drained, DrainParams

    from .ask import ask_and_wait

    answer = ask_and_wait(context, "drain", DrainParams(undo=undo, wait=wait, timeout=timeout), Drained)
    print(answer.reason)
    if not answer.ok:
        raise Failure(code=FAILED)
