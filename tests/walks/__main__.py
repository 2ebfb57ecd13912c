"""`python -m tests.walks --steps 10000 --seed 7`: random walks, and how many steps of which kind they came to."""

import argparse
import secrets
import sys
import time

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.walks.walk import Stumbled, Walk

EACH = 50
"""Steps of one walk, at most."""


def walk(steps: int, number: int) -> None:
    """So many steps in all, in walks from this seed. It ends with the first that fails, which tells its steps."""
    shape = settings(
        max_examples=max(2, steps // EACH),
        stateful_step_count=EACH,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
        deadline=None,
    )
    try:
        run_state_machine_as_test(seed(number)(Walk), settings=shape)
    except Stumbled as stumbled:
        raise AssertionError(str(stumbled)) from stumbled


def main() -> int:
    """Exit 1 when after a step the house was not in order, or a shutdown did not come to its end."""
    parser = argparse.ArgumentParser(prog="scripts/walks", description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="how many in all (default: 10000)")
    parser.add_argument("--seed", type=int, default=None, help="of the steps and their order (default: a new one)")
    arguments = parser.parse_args()
    number = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    print(f"seed {number}, {arguments.steps} steps", flush=True)
    begun = time.monotonic()
    try:
        walk(arguments.steps, number)
    finally:
        print(f"{Walk.steps} steps in {time.monotonic() - begun:.0f} s")
        for act, times in Walk.acts.most_common():
            print(f"  {times:6} {act}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
