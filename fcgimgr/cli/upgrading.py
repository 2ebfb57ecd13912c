"""`upgrade`: the manager goes on as the code that is installed now."""

import time

import click

from .failure import Failure
from .options import Command
from .processes import verbose_option

_COMES_BACK_WITHIN = 15.0
"""Seconds: it takes Python's start, and a moment for each process."""
_EVERY = 0.02


@click.command("upgrade", cls=Command, short_help="Go over to the code that is installed now.")
@verbose_option
@click.pass_context
def upgrade_(context: click.Context, verbose: bool) -> None:
    """Execute the installed code in the manager's place: same pid, processes and sockets."""
    from fcgimgr.control.messages import ControlError, NoManager, Pong, UpgradeParams, Verdict

    from .ask import ask, ask_and_wait, show_verdict

    before = ask(context, "ping", None, Pong)
    verdict = ask_and_wait(context, "upgrade", UpgradeParams(), Verdict)
    if not verdict.ok:
        show_verdict(verdict, verbose=verbose)
        return
    until = time.monotonic() + _COMES_BACK_WITHIN
    problem = "it does not answer"
    while time.monotonic() < until:
        try:
            now = ask(context, "ping", None, Pong)
        except (ControlError, Failure, NoManager, OSError) as error:
            problem = str(error)
        else:
            if now.upgrades != before.upgrades or now.pid != before.pid:
                break
            problem = "the code from before still runs; its log says why"
        time.sleep(_EVERY)
    else:
        raise Failure(f"the manager (pid {before.pid}) did not come back as the new code: {problem}")
    if now.pid != before.pid:
        raise Failure(f"pid {before.pid} has ended, and another manager runs as pid {now.pid}; its log says why")
    print(f"upgraded: fcgimgr {before.version} -> {now.version}, pid {now.pid}")
