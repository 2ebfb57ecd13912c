"""`python -m bench`: measure, and print the table."""

import argparse
import functools
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench import asking, idle, logs, preload, reload, resident, respawn, startstop, wsgi
from bench.busy import busy
from bench.figure import Figure, Setting, say
from bench.peers import find_peers, versions
from bench.proc import end_descendants, precise_sleeps
from bench.programs import build
from bench.table import as_json, load, machine, markdown, revision

FIGURES: Final[dict[str, Callable[[Setting], list[Figure]]]] = {
    "respawn": respawn.measure,
    "startstop": startstop.measure,
    "idle": idle.measure,
    "memory": resident.measure,
    "status": asking.measure,
    "logs": logs.measure,
    "reload": reload.measure,
    "preload": preload.measure,
    "wsgi": wsgi.measure,
}
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> int:
    options = arguments()
    peers, missing = find_peers()
    peers = [peer for peer in peers if options.only is None or peer.name in options.only]
    for line in missing:
        say(line)
    raise_limits()
    precise_sleeps()
    before, code = load(), revision()
    say(f"{machine()}; load averages {before}")
    figures: list[Figure] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as directory, ExitStack() as stack:
        place = Path(directory)
        for number in STOP_SIGNALS:
            signal.signal(number, functools.partial(end_all, place))
        stack.enter_context(busy(options.busy))

        @functools.cache
        def compiled(source: str, name: str) -> str:
            return build(source, place, name)

        setting = Setting(peers, place, compiled, options.runs, options.quick, options.only)
        for name in options.names or FIGURES:
            try:
                figures += FIGURES[name](setting)
            except RuntimeError as error:
                say(f"{name} could not be measured: {error}")
                failed = True
    # The managers import from the checkout: a table of two revisions is a table of neither.
    changed = "" if revision() == code else f" (CHANGED during the run, to {revision()})"
    beside = f" {options.busy} endless loops ran beside it." if options.busy else ""
    under = (
        f"fcgimgr {code}{changed}; {versions()}. {machine()}.{beside} Load averages before: {before}; after: {load()}."
    )
    print(f"{markdown(figures, [peer.name for peer in peers])}\n\n{under}")
    for failure in setting.failures:
        say(f"could not be measured: {failure}")
    if options.json:
        Path(options.json).write_text(as_json(figures, under) + "\n")
    return 1 if failed or setting.failures else 0


def end_all(place: Path, number: int, _: object) -> None:
    """A graceful end of every server, one after the other, would take minutes, and a second signal cut it short.

    Nothing is unwound: what was interrupted may hold a lock, that of a Popen say, which those who clean up wait for.
    """
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    end_descendants()
    shutil.rmtree(place, ignore_errors=True)
    os._exit(128 + number)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures: {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--runs", type=int, metavar="N", help="how often each is measured (respawn: kills each)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs: to see that it works")
    parser.add_argument(
        "--only",
        action="append",
        metavar="MANAGER",
        help="this one only: fcgimgr, supervisor, php-fpm; of reload also gunicorn, uwsgi; of wsgi these and flup, "
        "granian, bjoern",
    )
    parser.add_argument(
        "--busy",
        type=int,
        nargs="?",
        const=2,
        default=0,
        metavar="N",
        help="with N endless loops beside it (2 when N is left out)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write all samples there")
    parser.add_argument(
        "--directory", metavar="DIR", help="where the temporary directory is made (logs are written there)"
    )
    options = parser.parse_args()
    for name in options.names:
        if name not in FIGURES:
            parser.error(f"there is no figure {name!r}; there are {', '.join(FIGURES)}")
    if options.runs is not None and options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def raise_limits() -> None:
    """A thousand children take three thousand descriptors in Supervisor; what it may not raise itself, we raise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 8192 and os.geteuid() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 8192))


if __name__ == "__main__":
    sys.exit(main())
