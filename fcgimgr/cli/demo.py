"""`demo`: a pool that answers a browser within seconds, with nothing to install or write first.

Everything it makes is in one private directory that goes when it ends: the configuration, the pool's socket, the
control socket. The HTTP in front is for development; in production that is nginx.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from .failure import Failure
from .options import Command

if TYPE_CHECKING:
    from fcgimgr.demo.front import Front

_HOST = "127.0.0.1"
_START_WITHIN = 20.0
"""Seconds until a demo that is not ready has failed."""
_STOP_WITHIN = 15.0

_POOL = """\
# Made by `fcgimgr demo`, and gone when it ends.
[manager]
control = "{directory}/control.sock"

[pool.demo]
socket = "{directory}/demo.sock"
wsgi = "fcgimgr.demo.app:app"
server = "flup"
numprocs = 4
ready = "ping"
"""

_WELCOME = """\
The demo runs: 4 processes share one FastCGI socket. This HTTP front is for development only; nginx takes its place.

  look:     http://{host}:{port}/
            curl http://{host}:{port}/
  status:   {program} -s {control} status
  kill one: kill -9 {pid}
            and look again: another has taken its place, and no request was refused
  reload:   {program} -s {control} reload demo
            new processes beside the old ones, one switch, and no request lost

Ctrl-C ends it.
"""


@click.command("demo", cls=Command, short_help="See it work at once, in a browser.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="The port on 127.0.0.1; 0: any free one.",
)
def demo_(port: int) -> None:
    """Show it at once: a pool of the packaged application and an HTTP front for development."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal must not leave the manager behind
        signal.signal(number, end_by_signal)
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="fcgimgr-demo-") as directory:
        config, control = f"{directory}/pool.toml", f"{directory}/control.sock"
        with open(config, "w", encoding="utf-8") as file:
            file.write(_POOL.format(directory=directory))
        with front_before(f"unix:{directory}/demo.sock", port) as front, manager_on(config, control) as manager:
            pid = _wait_until_ready(manager, control)
            welcome = _WELCOME.format(host=_HOST, port=front.server_port, program=_program(), control=control, pid=pid)
            tell(welcome)
            front.serve_forever()


def tell(text: str) -> None:
    """Print it. A reader that has seen enough (`| head`) is no reason to end: what runs is there for a browser."""
    try:
        print(text, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # what is still in the buffer is written at the end
        os.close(nowhere)


def end_by_signal(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt  # Ends the front from wherever it is, as Ctrl-C does.


def _program() -> str:
    """What to type for this command: scripts/demo runs it from a virtualenv that is not in PATH."""
    ours = os.path.abspath(sys.argv[0])
    found = shutil.which("fcgimgr")
    if os.path.basename(ours) != "fcgimgr" or (found is not None and os.path.realpath(found) == os.path.realpath(ours)):
        return "fcgimgr"
    return shlex.quote(ours)


def front_before(address: str, port: int, command: str = "demo") -> "Front":
    """The HTTP server, bound before anything is started, so that a port in use costs nothing."""
    from fcgimgr.demo.front import serve

    try:
        return serve(address, _HOST, port)
    except OSError as error:
        other = port % 65535 + 1
        raise Failure(
            f"port {port} on {_HOST}: {error.strerror or error}; give another one: fcgimgr {command} --port {other}"
        ) from error


@contextmanager
def manager_on(config: str, control: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A manager of our own, stopped cleanly at the end; to be called in the main thread. Nothing of it stays, not even
    when it was killed; and when we are killed, it stops by itself.

    It gets a process group of its own: Ctrl-C is to reach only this process, which then asks it to shut down.
    """
    from fcgimgr.linux.processes import set_subreaper
    from fcgimgr.linux.procfs import children

    from .running import manager_command

    set_subreaper()  # what it leaves behind becomes ours
    others = set(children(os.getpid()) or ())
    words = [*manager_command(config), *options, "--die-with", str(os.getpid())]
    manager = subprocess.Popen(words, stdin=subprocess.DEVNULL, process_group=0)
    try:
        yield manager
    finally:
        # A second Ctrl-C must not leave processes behind: stopping is bounded anyway.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _stop(manager, control)
        _kill_children(others)
        set_subreaper(on=False)


def _kill_children(others: set[int]) -> None:
    """All but these, and theirs, which become ours: of a manager that was killed."""
    from fcgimgr.linux.pidfd import PidFd
    from fcgimgr.linux.procfs import children

    while orphans := set(children(os.getpid()) or ()) - others:
        for pid in orphans:
            with PidFd(pid) as orphan:  # a child of ours, so it is there until it is reaped
                orphan.signal(signal.SIGKILL)
            os.waitpid(pid, 0)


def _stop(manager: subprocess.Popen[bytes], control: str) -> None:
    from fcgimgr.control.client import Client
    from fcgimgr.control.messages import ControlError, Ok, ShutdownParams

    if manager.poll() is not None:
        return
    try:
        with Client(control) as client:
            client.call("shutdown", ShutdownParams(wait=False), answer=Ok)
    except (ControlError, OSError):
        manager.terminate()  # It does not listen yet, or any more.
    try:
        manager.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        print(f"fcgimgr: the manager has not stopped within {_STOP_WITHIN:.0f} s: killed", file=sys.stderr)
        manager.kill()
        manager.wait()


def _wait_until_ready(manager: subprocess.Popen[bytes], control: str) -> int:
    """The pid of one of the processes, once all run. Failure with the reason when they do not."""
    from fcgimgr.control.client import Client
    from fcgimgr.control.messages import ControlError, Probed, ProbeParams, Status, StatusParams

    deadline = time.monotonic() + _START_WITHIN
    reason = "it does not answer on its control socket"
    while time.monotonic() < deadline:
        if manager.poll() is not None:
            raise Failure(f"the manager ended with exit code {manager.returncode}: see what it wrote above")
        try:
            with Client(control) as client:
                probed = client.call("probe", ProbeParams(kind="ready"), answer=Probed)
                if probed.ok:
                    status = client.call("status", StatusParams(detail=False), answer=Status)
                    return next(process.pid for process in status.pools[0].processes if process.pid is not None)
                reason = probed.reason
        except (ControlError, OSError):
            pass  # Not yet: its control socket comes a moment after it.
        time.sleep(0.02)
    raise Failure(f"the demo is not ready within {_START_WITHIN:.0f} s: {reason}")
