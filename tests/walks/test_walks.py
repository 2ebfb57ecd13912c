"""No order, configuration or death leads to where `status` is wrong, a process is unknown, or a shutdown does not end.

Some short walks; `scripts/walks` goes further.
"""

import pytest

from tests.walks.__main__ import walk


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_random_walk_leads_nowhere_that_is_not_in_order(seed: int) -> None:
    walk(100, seed)
