"""`dev`: an application while it is being written: an HTTP server on loopback that takes each change at once.

It is a pool as any other, in a private directory that goes when it ends, and a change is a reload as any other: new
processes beside the old ones, and a switch when they have imported the new code. So a syntax error leaves the last code
that worked serving, and no request fails because a file was saved.
"""

import json
import os
import select
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from .demo import end_by_signal, front_before, manager_on
from .failure import Failure
from .options import Command

if TYPE_CHECKING:
    from fcgimgr.linux.watching import SourceTree

_QUIET: Final = 0.1
"""Seconds without a change before it is taken: an editor or git writes several files at once."""

_POOL = """\
# Made by `fcgimgr dev`, and gone when it ends.
[manager]
control = {control}
loglevel = "error"

[pool.dev]
socket = {socket}
wsgi = {application}
python = {python}
directory = {directory}
threads = {threads}
autostart = false
startretries = 0
stopwaitsecs = 3
"""


@click.command("dev", cls=Command, short_help="Run an application while it is being written.")
@click.argument("application", metavar="MODULE:CALLABLE")
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
    default=".",
    help="Where the application is; its Python files are watched. Default: here.",
)
@click.option("--python", type=click.Path(), help="Its Python; without it that of the virtualenv that is activated.")
@click.option("--threads", type=click.IntRange(1, 1000), default=4, show_default=True, help="Requests at once.")
def dev_(application: str, port: int, directory: str, python: str | None, threads: int) -> None:
    """Run a WSGI application on http://127.0.0.1:8000 and take each change of its Python files at once.

    New code that cannot be imported is shown, and what served before it serves on.
    """
    from fcgimgr.config.expansions import escape
    from fcgimgr.linux.errors import LinuxError
    from fcgimgr.linux.watching import SourceTree

    root = os.path.abspath(directory)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal must not leave the manager behind
        signal.signal(number, end_by_signal)
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        private = stack.enter_context(tempfile.TemporaryDirectory(prefix="fcgimgr-dev-"))
        texts = {
            "control": f"{private}/control.sock",
            "socket": f"{private}/dev.sock",
            "application": application,
            "python": os.path.abspath(python) if python else _python(),
            "directory": root,
        }
        config = f"{private}/pool.toml"
        with open(config, "w", encoding="utf-8") as file:
            # A JSON text is a basic string of TOML.
            quoted = {key: json.dumps(escape(text), ensure_ascii=False) for key, text in texts.items()}
            file.write(_POOL.format(threads=threads, **quoted))
        front = stack.enter_context(front_before(f"unix:{texts['socket']}", port, "dev"))
        try:
            tree = SourceTree(root, lambda path: path.endswith(".py"))
        except LinuxError as error:
            raise Failure(str(error)) from error
        manager = stack.enter_context(manager_on(config, texts["control"]))
        print(f"http://127.0.0.1:{front.server_port}/ serves {application} of {root}; Ctrl-C ends it.", flush=True)
        taking = _Taking(tree, texts["control"], manager.poll)
        thread = threading.Thread(target=taking.run, daemon=True)
        thread.start()
        stack.callback(taking.end)
        front.serve_forever()


def _python() -> str:
    """That of the activated virtualenv, else ours: `fcgimgr` need not be installed where the application is."""
    activated = os.environ.get("VIRTUAL_ENV")
    return os.path.join(activated, "bin", "python") if activated else sys.executable


class _Taking:
    """Starts the pool, then reloads it at each change, until `end`. In a thread of its own."""

    def __init__(self, tree: "SourceTree", control: str, manager_has_ended: Any) -> None:
        self._tree = tree
        self._control = control
        self._manager_has_ended = manager_has_ended
        self._ending, self._end = os.pipe()
        self._serving = False

    def end(self) -> None:
        os.write(self._end, b"x")

    def run(self) -> None:
        while not self._take():  # its control socket comes a moment after it
            if self._manager_has_ended() is not None:
                print("fcgimgr: the manager has ended; see what it wrote above. Ctrl-C ends this.", file=sys.stderr)
                return
            if select.select([self._ending], [], [], 0.02)[0]:
                return
        while changed := self._changes_or_none():
            names = sorted(os.path.basename(path) for path in changed)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            print(f"changed: {', '.join(names[:3])}{more}", flush=True)
            self._take()

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
        changed: set[str] = set()
        while True:
            watched: list[Any] = [self._tree, self._ending]
            readable = select.select(watched, [], [], _QUIET if changed else None)[0]
            if self._ending in readable:
                return set()
            if not readable:
                return changed
            changed |= self._tree.changes()

    def _take(self) -> bool:
        """Bring the code that is there now into service, and say what came of it; False: the manager does not answer.

        Why it failed is on the terminal already: it is where the processes write.
        """
        from fcgimgr.control.client import Client
        from fcgimgr.control.messages import ControlError, NamesParams, ReloadParams, Verdict

        try:
            with Client(self._control) as client:
                if self._serving:
                    verdict = client.call("reload", ReloadParams(names=("dev",)), answer=Verdict, patient=True)
                else:
                    verdict = client.call("start", NamesParams(names=("dev",)), answer=Verdict, patient=True)
        except (ControlError, OSError):
            return False
        if verdict.ok:
            print("serving" if not self._serving else "serving the new code", flush=True)
        elif self._serving:
            print("the new code does not come up: what served before serves on", flush=True)
        else:
            print("it does not come up: mend it, and save", flush=True)
        self._serving = self._serving or verdict.ok
        return True
