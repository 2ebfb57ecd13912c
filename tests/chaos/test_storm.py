"""No act of an operator loses a request, nor does the manager's death; a killed process loses those in its hands alone.

A short storm of all acts; `scripts/chaos` lets it rage for longer.
"""

from pathlib import Path

from tests.chaos.acts import ACTS
from tests.chaos.storm import Storm
from tests.integration.servers import need

SECONDS = 25.0


def test_a_storm_of_acts_loses_only_what_was_in_the_hands_of_the_killed(tmp_path: Path) -> None:
    need("nginx", "go", "php-cgi")
    outcome = Storm(tmp_path, 1, ACTS).rage(SECONDS)
    print(outcome)
    assert outcome.trouble == ""
    assert outcome.requests.total() > 500
    assert outcome.unexplained == []
