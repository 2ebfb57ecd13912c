"""`dev`: an application while it is being written: an HTTP server on loopback that takes each change at once.

It is a pool as any other, in a private directory that goes when it ends, and a change is a reload as any other: new
processes beside the old ones, and a switch when they have imported the new code. So a syntax error leaves the last code
that worked serving, and no request fails because a file was saved.
"""

import os
import select
import signal
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from .demo import end_by_signal, front_before, manager_on
from .dev_bytecode import remove_compiled
from .dev_pool import DevPool, of_application, of_configuration
from .failure import Failure
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
_QUIET: Final = 0.1
"""Seconds without a change before it is taken: an editor or git writes several files at once."""


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
        config, control, socket = (f"{private}/{name}" for name in ("pool.toml", "control.sock", "dev.sock"))
        # Its variables may be secrets; the directory lets nobody else in.
        with open(config, "w", encoding="utf-8") as file:
            file.write(pool.toml(control, socket))
        front = stack.enter_context(front_before(f"unix:{socket}", port, "dev"))
        tree = _watched(pool)
        manager = stack.enter_context(manager_on(config, control))
        print(
            f"http://127.0.0.1:{front.server_port}/ serves {pool.application} of {pool.directory}; Ctrl-C ends it.",
            flush=True,
        )
        taking = _Taking(pool.name, tree, control, manager.poll)
        thread = threading.Thread(target=taking.run, daemon=True)
        thread.start()
        stack.callback(taking.end)
        front.serve_forever()


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


class _Taking:
    """Starts the pool, then reloads it at each change, until `end`. In a thread of its own."""

    def __init__(self, name: str, tree: "SourceTree", control: str, manager_has_ended: Any) -> None:
        self._name = name
        self._tree = tree
        self._control = control
        self._manager_has_ended = manager_has_ended
        self._ending, self._end = os.pipe()
        self._serving = False

    def end(self) -> None:
        os.write(self._end, b"x")

    def run(self) -> None:
        from fcgimgr.control.messages import ControlError

        while True:
            try:
                self._take()
                break
            except (ControlError, OSError):  # its control socket comes a moment after it
                if self._has_lost_the_manager() or select.select([self._ending], [], [], 0.02)[0]:
                    return
        while changed := self._changes_or_none():
            remove_compiled(changed)
            names = sorted(os.path.basename(path) for path in changed)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            print(f"changed: {', '.join(names[:3])}{more}", flush=True)
            try:
                self._take()
            except (ControlError, OSError) as error:
                if self._has_lost_the_manager():
                    return
                print(f"fcgimgr: the change was not taken: {error}; save again", file=sys.stderr)

    def _has_lost_the_manager(self) -> bool:
        ended = self._manager_has_ended() is not None
        if ended:
            print("fcgimgr: the manager has ended; see what it wrote above. Ctrl-C ends this.", file=sys.stderr)
        return ended

    def _changes_or_none(self) -> set[str]:
        """As `_changes`; empty too when files cannot be watched any more, which is said."""
        from fcgimgr.linux.errors import LinuxError

        try:
            return self._changes()
        except LinuxError as error:
            print(f"fcgimgr: {error}; what is there serves on, and changes are not taken any more", file=sys.stderr)
            return set()

    def _changes(self) -> set[str]:
        """Wait for the next ones, and until there are no more; empty at the end."""
        heard = False
        while True:
            watched: list[Any] = [self._tree, self._ending]
            readable = select.select(watched, [], [], _QUIET if heard else None)[0]
            if self._ending in readable:
                return set()
            if readable:
                heard = self._tree.hear()
            elif changed := self._tree.changes():
                return changed
            else:
                heard = False

    def _take(self) -> None:
        """Bring the code that is there now into service, and say what came of it. ControlError, OSError: the manager
        does not answer, or refuses.

        Why it failed is on the terminal already: it is where the processes write.
        """
        from fcgimgr.control.client import Client
        from fcgimgr.control.messages import NamesParams, ReloadParams, Verdict

        with Client(self._control) as client:
            if self._serving:
                verdict = client.call("reload", ReloadParams(names=(self._name,)), answer=Verdict, patient=True)
            else:
                verdict = client.call("start", NamesParams(names=(self._name,)), answer=Verdict, patient=True)
        if verdict.ok:
            print("serving" if not self._serving else "serving the new code", flush=True)
        elif self._serving:
            print("the new code does not come up: what served before serves on", flush=True)
        else:
            print("it does not come up: mend it, and save", flush=True)
        self._serving = self._serving or verdict.ok
