"""No act of an operator loses a request, and a killed process loses those in its hands alone: a short storm of all.

`scripts/chaos` lets it rage for longer.
"""

from pathlib import Path

from tests.chaos.storm import Storm
from tests.integration.servers import need

SECONDS = 20.0


def test_a_storm_of_acts_loses_only_what_was_in_the_hands_of_the_killed(tmp_path: Path) -> None:
    need("nginx", "go", "php-cgi")
    outcome = Storm(tmp_path, seed=1).rage(SECONDS)
    print(outcome)
    assert outcome.requests > 500
    assert outcome.unexplained == []
