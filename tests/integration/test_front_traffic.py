"""No request is lost or executed twice behind any front, while processes are recycled and reloaded.

Brief here; `scripts/fronts` is the same with 20,000 requests, 100 recyclings and 10 reloads each.
"""

import pytest

from tests.integration.front_traffic import Plan, run
from tests.integration.fronts import FRONTS, offers


@pytest.mark.parametrize("server", ["native", "flup"])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("front", FRONTS)
def test_no_request_is_lost_or_doubled_behind(front: str, transport: str, server: str) -> None:
    outcome = run(front, transport, server, Plan(requests=400, recyclings=3, reloads=2))
    assert outcome.failures == {}, outcome
    assert outcome.doubled == [], outcome
    assert sum(outcome.executed.values()) == outcome.requests >= 400
    assert outcome.recyclings >= 3


@pytest.mark.parametrize("front", [name for name in FRONTS if offers(name, "Not kept")])
def test_no_request_is_lost_where_no_connection_is_kept_behind(front: str) -> None:
    outcome = run(front, "unix", "native", Plan(requests=200, recyclings=2, reloads=1), variants=["Not kept"])
    assert (outcome.failures, outcome.doubled) == ({}, []), outcome
