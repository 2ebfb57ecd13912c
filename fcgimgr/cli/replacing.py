"""`reload` and `restart`: new processes for old."""

from typing import Literal

import click

from .names import names_argument
from .options import Command, FloatType
from .processes import verbose_option, wait_option


class Percent(FloatType):
    """`5` or `5%`, more than 0 and less than 100."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            percent = float(str(value).removesuffix("%"))
        except ValueError:
            self.fail(f"{value!r} is not a percentage: give 5% or 0.5%", param, ctx)
        if not 0 < percent < 100:
            self.fail(f"{value!r} is not between 0% and 100%", param, ctx)
        return percent


@click.command("reload", cls=Command, short_help="New processes for old, without losing a request.")
@names_argument(required=True)
@click.option("--canary", type=Percent(), metavar="PERCENT", help="Give the new processes a share of the connections.")
@click.option("--no-canary", "whole", is_flag=True, help="No canary, though the pool has a reload_canary.")
@click.option("--promote", "action", flag_value="promote", help="Give the canary everything.")
@click.option("--abort", "action", flag_value="abort", help="Discard the canary, or what is starting.")
@wait_option
@verbose_option
@click.pass_context
def reload_(
    context: click.Context,
    names: tuple[str, ...],
    canary: float | None,
    whole: bool,
    action: Literal["promote", "abort"] | None,
    wait: bool,
    verbose: bool,
) -> None:
    """Replace the processes by new ones, which serve only once all of them are ready."""
    if canary is not None and action is not None:
        raise click.UsageError(f"--canary begins a canary and --{action} ends one: give one of the two")
    if whole and (canary is not None or action is not None):
        raise click.UsageError("--no-canary goes neither with --canary nor with --promote or --abort")
    from fcgimgr.control.messages import ReloadParams, Verdict

    from .ask import ask_and_wait, show_verdict

    params = ReloadParams(names=names, canary=canary, whole=whole, action=action or "reload", wait=wait)
    show_verdict(ask_and_wait(context, "reload", params, Verdict), verbose=verbose)


@click.command("restart", cls=Command, short_help="Restart a pool, a program or one process.")
@names_argument(required=True)
@click.option("--hard", is_flag=True, help="One after the other, without regard to what each has in hand.")
@wait_option
@verbose_option
@click.pass_context
def restart_(context: click.Context, names: tuple[str, ...], hard: bool, wait: bool, verbose: bool) -> None:
    """Restart: a whole pool by a reload where that can be, processes one after the other."""
    from fcgimgr.control.messages import RestartParams, Verdict

    from .ask import ask_and_wait, show_verdict

    params = RestartParams(names=names, hard=hard, wait=wait)
    show_verdict(ask_and_wait(context, "restart", params, Verdict), verbose=verbose)
