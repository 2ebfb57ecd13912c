"""`status`: what runs, for a person or as JSON."""

import sys

import click

from .failure import NOT_RUNNING, Failure
from .names import names_argument
from .options import Command


@click.command("status", cls=Command)
@names_argument(required=False)
@click.option("--json", "as_json", is_flag=True, help="The manager's answer as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Every process, and the requests it has in hand.")
@click.pass_context
def status_(context: click.Context, names: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """Show what runs. Exit 3 when something is not running. What is amiss otherwise is for `probe ready --strict`.

    BUSY and REQUESTS are "-" where they are not known. RESTARTS: 2c 5r 1h is twice after a crash, five times recycled,
    once by hand. Of a pool with more than 50 processes those that just run are one line, unless -v. On a terminal what
    does not fit behind a process goes on below it; elsewhere there is one line a process. Which requests are in hand is
    known of the workers of wsgi pools.
    """
    import msgspec

    from fcgimgr.control.messages import Status, StatusParams

    from .ask import ask

    answer = ask(context, "status", StatusParams(names=names or None), msgspec.Raw)
    status = msgspec.json.decode(answer, type=Status)
    if as_json:
        from .terminal import safe_json

        print(safe_json(bytes(answer).decode()))
    else:
        from .status_table import render
        from .terminal import Paint, columns_of, fitting, has_colour

        columns = columns_of(sys.stdout)
        lines = render(status, Paint(has_colour(sys.stdout)), verbose=verbose, columns=columns)
        print("\n".join(fitting(line, None if verbose else columns) for line in lines))
    from .status_table import all_running

    if not all(all_running(pool) for pool in status.pools):
        raise Failure(code=NOT_RUNNING)
