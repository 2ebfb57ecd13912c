"""`start`, `stop`, `scale`, `signal`: commands to processes that come back with a verdict."""

import re
from collections.abc import Callable
from typing import Any

import click

from .names import Name, complete_pools, names_argument
from .options import Command

wait_option = click.option("--wait/--no-wait", default=True, help="Wait until it is over (the default).")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="A line for every process, however many there are.")


def _to_processes(method: str) -> Callable[..., None]:
    def command(context: click.Context, names: tuple[str, ...], wait: bool, verbose: bool) -> None:
        from fcgimgr.control.messages import NamesParams, Verdict

        from .ask import ask_and_wait, show_verdict

        verdict = ask_and_wait(context, method, NamesParams(names=names, wait=wait), Verdict)
        show_verdict(verdict, verbose=verbose)

    return command


def _command(method: str, help: str) -> click.Command:
    callback: Any = click.pass_context(_to_processes(method))
    for decorate in (verbose_option, wait_option, names_argument(required=True)):
        callback = decorate(callback)
    return click.command(method, cls=Command, help=help)(callback)


start_ = _command("start", "Start what is stopped, and wait until it runs or has failed.")
stop_ = _command("stop", "Stop, and wait until it has stopped.")


@click.command("scale", cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("name", cls=Name, metavar="NAME", shell_complete=complete_pools)
@click.argument("numprocs", metavar="N|+N|-N")
@wait_option
@verbose_option
@click.pass_context
def scale_(context: click.Context, name: str, numprocs: str, wait: bool, verbose: bool) -> None:
    """Change how many processes NAME has: to N, by +N, or by -N."""
    # -N reaches an argument only because unknown options are let through; so a misspelt option arrives here.
    if not re.fullmatch(r"[+-]?[0-9]{1,6}", numprocs):
        raise click.UsageError(f"{numprocs!r} is not a number of processes: give 4, +2 or -1")
    from fcgimgr.control.messages import ScaleParams, Verdict

    from .ask import ask_and_wait, show_verdict

    verdict = ask_and_wait(context, "scale", ScaleParams(name=name, numprocs=numprocs, wait=wait), Verdict)
    if verdict.ok and not verdict.processes:
        print(f"{name}: {verdict.numprocs} processes already")
    show_verdict(verdict, verbose=verbose)


@click.command("signal", cls=Command)
@click.argument("signal", metavar="SIG")
@names_argument(required=True)
@verbose_option
@click.pass_context
def signal_(context: click.Context, signal: str, names: tuple[str, ...], verbose: bool) -> None:
    """Send SIG (HUP, SIGUSR1, 10) to processes."""
    from fcgimgr.control.messages import SignalParams, Verdict

    from .ask import ask, show_verdict

    show_verdict(ask(context, "signal", SignalParams(names=names, signal=signal), Verdict), verbose=verbose)
