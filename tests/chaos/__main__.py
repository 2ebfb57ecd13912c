"""`python -m tests.chaos --minutes 30 --seed 7`: storms until the time is over, and what they came to."""

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from tests.chaos.storm import Outcome, Storm


def main() -> int:
    """Exit 1 as soon as a request is lost that nothing explains, or the house is not in order after an act."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=None, help="of the acts and their order (default: a new one)")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, {arguments.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="fcgimgr-chaos-") as directory:
        outcome: Outcome = Storm(Path(directory), seed).rage(arguments.minutes * 60)
    print(outcome)
    return 1 if outcome.unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
