"""`dev`: an application while it is being written: an HTTP server on loopback that takes each change at once.

Each version of the code is a pool as any other (dev_versions.py), of a manager in a private directory that goes when it
ends: the new one beside the old, and a switch when it has imported the new code. So a syntax error leaves the last code
that worked serving, and no request fails because a file was saved. When changes are taken is in dev_taking.py.

Whoever writes software kills what does not listen, so nothing relies on an orderly end: a manager whose dev was killed
ends by a signal of the kernel's, and what a killed manager leaves behind is ended by dev, whose children they become.
"""

import os
import signal
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Final

import click

from .demo import end_by_signal, front_before, manager_on, tell
from .dev_pool import DevPool, of_application, of_configuration
from .dev_taking import Taking
from .dev_versions import Versions
from .failure import FAILED, Failure
from .locate import find_config, given_config
from .options import Command
from .private import private_directory

if TYPE_CHECKING:
    from fcgimgr.linux.watching import SourceTree

WATCHED: Final = (
    ".py", ".html", ".htm", ".jinja", ".jinja2", ".j2", ".mako", ".tpl", ".tmpl", ".txt", ".xml",
)  # fmt: skip
"""How the names of files end that an application reads once: modules, and templates, which Django keeps also with
DEBUG, and Jinja2 where it is not told otherwise."""
_PATIENCE: Final = 1.0
"""Seconds for which a request waits for a pool that is just being started, or has just been left for another."""


@click.command("dev", cls=Command, short_help="Run an application while it is being written.")
@click.argument("what", metavar="[MODULE:CALLABLE|POOL]", required=False)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="The port on 127.0.0.1; 0: any free one.",
)
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False),
    help="Where the application is; its sources are watched. Default: the pool's; of an application: here.",
)
@click.option(
    "--python", type=click.Path(), help="Its Python; without it the pool's, else that of the virtualenv in use."
)
@click.option(
    "--threads", type=click.IntRange(1, 1000), help="Requests at once. Default: the pool's; of an application: 4."
)
@click.pass_context
def dev_(
    context: click.Context,
    what: str | None,
    port: int,
    directory: str | None,
    python: str | None,
    threads: int | None,
) -> None:
    """Run a WSGI application on http://127.0.0.1:8000 and take each change of its sources at once.

    New code that cannot be imported is shown, and what served before it serves on. Without MODULE:CALLABLE it is the
    `wsgi` pool of the configuration (-c, else ./pool.toml), by its name where there are several.
    """
    if what is not None and ":" in what:
        if given_config(context) is not None:
            raise click.UsageError("give an application, or -c and a pool of it, not both")
        pool = of_application(what, directory, python, threads)
    elif (config := find_config(context)) is not None:
        pool = of_configuration(config, what, directory, python, threads)
    else:
        raise click.UsageError("which application? Give module:callable, as in app:app, or -c FILE")
    _run(pool, port)


def _run(pool: DevPool, port: int) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal must not leave the manager behind
        signal.signal(number, end_by_signal)
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        private = stack.enter_context(private_directory("fcgimgr-dev-"))
        config, control = f"{private}/pool.toml", f"{private}/control.sock"
        sockets = {name: f"unix:{private}/{number}.sock" for number, name in enumerate(pool.names(), 1)}
        # Its variables may be secrets; the directory lets nobody else in.
        with open(config, "w", encoding="utf-8") as file:
            file.write(pool.toml(control, sockets))
        pool.refuse_unless_fit(config)
        front = stack.enter_context(front_before(sockets[pool.name], port, "dev"))
        front.patience, front.pool_timeout = _PATIENCE, None  # a debugger must be let wait
        tree = stack.enter_context(closing(_watched(pool)))
        manager = stack.enter_context(manager_on(config, control, "--no-advice"))
        pidfd = os.pidfd_open(manager.pid)
        stack.callback(os.close, pidfd)
        tell(f"http://127.0.0.1:{front.server_port}/ serves {pool.application} of {pool.directory}; Ctrl-C ends it.")
        taking = Taking(Versions(sockets, control, front), tree, pidfd, front)
        stack.callback(taking.end)
        taking.begin()
        front.serve_forever()
        code = manager.wait()
        raise Failure("the manager has ended; see what it wrote above", code=code if code > 0 else FAILED)


def _watched(pool: DevPool) -> "SourceTree":
    """The directories of its sources, and none of libraries."""
    from fcgimgr.linux.errors import LinuxError
    from fcgimgr.linux.watching import SourceTree, is_skipped

    # On the module path there may be more: archives, and what is not there.
    more = (path for path in pool.more_sources if os.path.isdir(path) and not is_skipped(path))
    try:
        return SourceTree((pool.directory, *more), lambda path: path.endswith(WATCHED))
    except LinuxError as error:
        raise Failure(str(error)) from error
