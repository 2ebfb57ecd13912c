"""A WSGI worker's command line: `PYTHON …/fcgimgr/worker/start.py --server flup [--threads N] module:callable`.

Run by the path of start.py, in the application's interpreter. What the application can import must not depend on how
fcgimgr is installed, so exactly two of our packages are lent to it, each under its own name and neither through
sys.path: `fcgimgr`, from beside this file (start.py), and `flup`, where the application has none. An application's own
flup is for the application alone: it may be flup6, another package of that name, on which our engine cannot stand.

Exit status: 0 after a graceful stop; 1 when the application or the sockets are not fit to serve, with the reason on
stderr; 2 for a wrong command line. Importing this module does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Final, NoReturn

#: Threads of one process when nothing is said. flup: as many requests at once as one interpreter lock can usefully
#: juggle. native: PHP-FPM's model, where a process is what can be counted, limited and killed.
DEFAULT_THREADS: Final = {"flup": 16, "native": 1}

_HERE: Final = os.path.dirname(os.path.abspath(__file__))
_PACKAGE: Final = os.path.dirname(_HERE)


def main(arguments: Sequence[str], first: str | None) -> int:
    """Serve until told to stop. `arguments` without the program's name; `first`: what is to be first on sys.path."""
    options = _parse(arguments)
    from fcgimgr.fastcgi.scoreboard import TRACEBACK_SIGNAL

    # Now, with all that it needs of the standard library (start.py).
    from fcgimgr.worker import FLUP_VARIABLE, accepting  # noqa: F401
    from fcgimgr.worker.leaving import let_go_of_streams, name_what_stays
    from fcgimgr.worker.listening import ListenError, inherited_listeners, peer_filter
    from fcgimgr.worker.loading import LoadError, load_application, told_when_late
    from fcgimgr.worker.notify import notify
    from fcgimgr.worker.patched import PatchedError, refuse_patches
    from fcgimgr.worker.watching import watch_over

    serve: Callable[..., None] | None = None
    if options.server == "native":
        from fcgimgr.worker import native_engine

        serve = native_engine.serve
    zygote = None
    if options.zygote is not None:
        from fcgimgr.worker.zygote import Zygote, nothing

        zygote = Zygote(options.zygote)
        rehearse = native_engine.rehearse if options.server == "native" else nothing
    # A crash in C, of an extension that is being imported above all, shows where; in C as well, and for good.
    faulthandler.enable(file=2)
    # From here on everything that is imported may be the application's own.
    if first is not None:
        sys.path.insert(0, first)
    flup_home = os.environ.pop(FLUP_VARIABLE, None)
    if serve is None:
        serve = _flup_serve(flup_home)
    # Behind a pipe print() would keep its lines until 8 KB are full, and lose them in a crash.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    # The options are ours: an application that reads sys.argv while it is imported must not trip over them.
    del sys.argv[1:]
    try:
        listeners = [] if zygote is not None else inherited_listeners(os.environ)
        with told_when_late(options.application, options.ready_timeout):
            application = load_application(options.application)
        threads = options.threads or DEFAULT_THREADS[options.server]
        refuse_patches(options.server, threads, zygote is not None)
        if zygote is not None:
            zygote.fork_workers(rehearse)
            # This is a worker by now, and all that follows is as in any other.
            listeners = inherited_listeners(os.environ)
        allowed = peer_filter(os.environ.get("FCGI_WEB_SERVER_ADDRS"))
        watch = watch_over(options, os.environ)
        # In C, so that it also works while the interpreter is stuck in an extension (manager/looking/limits.py).
        faulthandler.register(TRACEBACK_SIGNAL, file=2)
        if zygote is not None:
            zygote.wait_for_go()
        serve(application, listeners, threads, allowed, lambda: notify("READY=1"), watch)
        name_what_stays()
        let_go_of_streams()
    except LoadError as error:
        _give_up(str(error), error.mend)
    except (ListenError, PatchedError) as error:
        _give_up(str(error))
    return 0


def _flup_serve(home: str | None) -> Callable[..., None]:
    """`home`: the directory that holds the flup that is lent; None: beside fcgimgr."""
    lent = _FlupFinder(home if home is not None else os.path.dirname(_PACKAGE))
    sys.meta_path.insert(0, lent)
    try:
        from fcgimgr.worker import flup_engine
    except ImportError as error:
        _give_up(f"server = flup: {sys.executable} cannot import flup, and none was found beside fcgimgr: {error}")
    sys.meta_path.remove(lent)
    if not flup_engine.knows_its_flup():
        from fcgimgr.worker.interpreter import has_options

        where = os.path.dirname(sys.modules["flup"].__file__ or "")
        _give_up(
            f"server = flup: {where} is not flup 1.0.3 (flup6 has the same name), and none was found beside fcgimgr: "
            "install flup there" + ("" if has_options() else ', or set server = "native"')
        )
    own = importlib.machinery.PathFinder.find_spec("flup")
    if own is not None and own.origin is not None:  # a directory of that name is none
        for name in [name for name in sys.modules if name.partition(".")[0] == "flup"]:
            del sys.modules[name]
    sys.meta_path.append(lent)
    return flup_engine.serve


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fcgimgr-worker", description="Serve a WSGI application on the FastCGI socket that is file descriptor 0."
    )
    parser.add_argument("--server", choices=sorted(DEFAULT_THREADS), default="flup", help="the engine (default: flup)")
    parser.add_argument(
        "--threads",
        type=_threads,
        help="requests at once (default: " + ", ".join(f"{n} with {s}" for s, n in DEFAULT_THREADS.items()) + ")",
    )
    parser.add_argument(
        "--max-requests", metavar="N+JITTER", type=_count_and_jitter, help="ask to be replaced after so many"
    )
    parser.add_argument(
        "--access-format", metavar="FORMAT", default="json", help="of the lines in the file $FCGIMGR_ACCESS_LOG"
    )
    parser.add_argument(
        "--slow-after", metavar="SECONDS", type=float, help="write slower requests to the file $FCGIMGR_SLOWLOG"
    )
    parser.add_argument("--ready-timeout", metavar="SECONDS", type=float, help="that it has, in all, until its READY=1")
    parser.add_argument(
        "--zygote", type=int, metavar="FD", help="import it, and fork workers when asked on this socket to the manager"
    )
    parser.add_argument("application", metavar="module:callable", help="the WSGI application")
    return parser.parse_args(arguments)


def _threads(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _count_and_jitter(text: str) -> tuple[int, int]:
    most, _, jitter = text.partition("+")
    if not (most.isdecimal() and jitter.isdecimal() and int(most)):
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers, as in 1000+100")
    return int(most), int(jitter)


def _give_up(reason: str, mend: str = "") -> NoReturn:
    """Exit 1 with `reason`, at once: a thread that the application left running must not keep a failed worker alive.

    mend: what is to be done, where that is known. It is said last, and so it is told as why the process has ended
    (manager/pools/causes.py).
    """
    from fcgimgr.worker.saying import say

    say(reason)
    if mend:
        say(mend)
    with contextlib.suppress(BaseException):  # None, closed, or whatever the application has made of it
        sys.stdout.flush()
    os._exit(1)


class _FlupFinder:
    """Finds the package `flup` in one directory and nothing else. Stands first for our engine, which it was made for,
    and last, after the application's own path, for the application."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.PathFinder.find_spec(name, [self._directory]) if name == "flup" else None
