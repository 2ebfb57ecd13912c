"""`run`, `shutdown`, `ping`, `probe`: the manager itself."""

import os
import select
import sys
from contextlib import suppress
from typing import NoReturn

import click

import fcgimgr

from .failure import FAILED, Failure
from .locate import config_file, given_socket
from .options import Command

_END_WITHIN = 5.0
"""Seconds between the manager's hanging up and its end: no more than Python's own tidying."""


def manager_command(config: str) -> list[str]:
    """The words that run a manager with the file `config`.

    -P keeps the working directory off the manager's module path, so that an application's own `logging.py` is not
    taken for Python's; left out where that directory is where fcgimgr itself was found.
    """
    home = os.path.dirname(os.path.dirname(os.path.abspath(fcgimgr.__file__)))
    safe_path = [] if _is_our_directory(home) else ["-P"]
    return [sys.executable, *safe_path, "-m", "fcgimgr.manager", "--config", config]


def _is_our_directory(path: str) -> bool:
    try:
        return path == os.getcwd()
    except FileNotFoundError:  # it has been removed
        return False


def run_manager(config: str, *, daemon: bool = False) -> NoReturn:
    """Become the manager: a process without the command line's modules in its memory."""
    sys.stdout.flush()
    words = manager_command(config) + (["--daemon"] if daemon else [])
    os.execv(words[0], words)


@click.command("run", cls=Command)
@click.option("--daemon", is_flag=True, help="In the background; returns when it is up, or says why not.")
@click.pass_context
def run_(context: click.Context, daemon: bool) -> None:
    """Run the manager."""
    if given_socket(context) is not None:
        raise click.UsageError("-s is for asking a manager that runs; the new one's socket is [manager] control")
    run_manager(config_file(context), daemon=daemon)


@click.command("shutdown", cls=Command)
@click.option("--now", is_flag=True, help="Kill what does not stop at once.")
@click.option("--wait/--no-wait", default=True, help="Wait until it has ended (the default).")
@click.pass_context
def shutdown_(context: click.Context, now: bool, wait: bool) -> None:
    """Stop everything, and the manager last."""
    from fcgimgr.control.messages import ManagerGone, Ok, ShutdownParams

    from .ask import WaitProgress, connect, told_that_it_goes_on

    with connect(context) as client:
        process = client.process()
        # It may be quicker than its answer.
        with suppress(ManagerGone), told_that_it_goes_on("shutdown"), WaitProgress() as progress:
            params = ShutdownParams(now=now, wait=wait)
            client.call("shutdown", params, answer=Ok, on_event=progress.heard, patient=True)
            if wait:
                # It answers just before its end: wait for that, so that another one may be started at once.
                for notice in client.notices():
                    progress.heard(notice)
    if wait and process is not None:
        select.select([process], [], [], _END_WITHIN)
    print("shut down" if wait else "shutting down")


@click.command("ping", cls=Command)
@click.pass_context
def ping_(context: click.Context) -> None:
    """Ask whether the manager answers."""
    from fcgimgr.control.messages import Pong

    from .ask import ask

    pong = ask(context, "ping", None, Pong)
    print(f"pong: fcgimgr {pong.version}, pid {pong.pid}")


@click.command("probe", cls=Command, short_help="Health check: live or ready, by exit code.")
@click.argument("kind", type=click.Choice(["live", "ready"]))
@click.option(
    "--strict",
    is_flag=True,
    help="ready: nothing is amiss. Not while a pool is DEGRADED or saturated, or a log cannot be written.",
)
@click.pass_context
def probe_(context: click.Context, kind: str, strict: bool) -> None:
    """For health checks: exit 0 when it is so. live: the manager answers; ready: each started pool serves.

    Else exit 1, with the reason; 4 where there is no manager.
    """
    if strict and kind != "ready":
        raise click.UsageError("--strict is of `probe ready`")
    from fcgimgr.control.messages import Probed, ProbeParams

    from .ask import ask

    answer = ask(context, "probe", ProbeParams(kind="ready" if kind == "ready" else "live", strict=strict), Probed)
    print(answer.reason)
    if not answer.ok:
        raise Failure(code=FAILED)
