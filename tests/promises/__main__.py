"""`scripts/promises --program uvicorn --socket tcp`: POSTs under reload, restart and scaling, and what was lost."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.outcome import table
from tests.promises.programs import PROGRAMS, SOCKETS
from tests.promises.trial import HEADS, Acts, Outcome, Trial


def main() -> int:
    """Exit 1 when anything was lost, or carried out twice, or an act failed."""
    options = arguments()
    acts = Acts(options.posts, options.reloads, options.restarts, options.scales)
    outcomes: list[Outcome] = []
    for name in options.program or PROGRAMS:
        for socket in options.socket or SOCKETS:
            if socket not in PROGRAMS[name].keys:
                continue
            with place(options.directory, f"{name}-{socket}") as directory:
                outcome = Trial(PROGRAMS[name], socket, directory, options.set).run(acts, options.seed)
            outcomes.append(outcome)
            print(" ".join(outcome.row()), *outcome.losses(), sep="\n  ", file=sys.stderr, flush=True)
    print("\n".join(table(HEADS, [outcome.row() for outcome in outcomes])))
    for outcome in outcomes:
        for line in outcome.losses():
            print(line)
    return 0 if all(outcome.kept for outcome in outcomes) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/promises", description=__doc__)
    parser.add_argument("--program", action="append", choices=PROGRAMS, help="this one (default: all)")
    parser.add_argument("--socket", action="append", choices=SOCKETS, help="on this kind (default: both)")
    parser.add_argument("--posts", type=int, default=20000, help="at least so many (default: 20000)")
    parser.add_argument("--reloads", type=int, default=20, help="of the pool (default: 20)")
    parser.add_argument("--restarts", type=int, default=20, help="of one process (default: 20)")
    parser.add_argument("--scales", type=int, default=20, help="one process less and one more (default: 20)")
    parser.add_argument("--set", action="append", default=[], metavar="LINE", help="one more line for the pool's table")
    parser.add_argument("--seed", type=int, default=1, help="of the clients' waits and pauses (default: 1)")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="keep all files and logs below this")
    return parser.parse_args()


@contextmanager
def place(kept: Path | None, name: str) -> Iterator[Path]:
    """A directory that is empty."""
    if kept is not None:
        directory = kept.absolute() / name
        directory.mkdir(parents=True)
        yield directory
    else:
        with tempfile.TemporaryDirectory(prefix="fcgimgr-promises-") as made:
            yield Path(made)


if __name__ == "__main__":
    sys.exit(main())
