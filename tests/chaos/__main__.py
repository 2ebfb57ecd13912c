"""`python -m tests.chaos --seconds 300 --seed 7`: a storm, and what it came to."""

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from tests.chaos.acts import ACTS
from tests.chaos.storm import Storm


def main() -> int:
    """Exit 1 when a request is lost that nothing explains, or the house is not in order after an act."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="how long (default: 1800)")
    length.add_argument("--minutes", type=float, help="the same in minutes")
    parser.add_argument("--seed", type=int, default=None, help="of the acts and their order (default: a new one)")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    seconds = arguments.seconds or 60 * (arguments.minutes or 30)
    print(f"seed {seed}, {seconds:g} seconds", flush=True)
    with tempfile.TemporaryDirectory(prefix="fcgimgr-chaos-") as directory:
        outcome = Storm(Path(directory), seed, ACTS).rage(seconds)
    print(outcome)
    return 1 if outcome.trouble or outcome.unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
