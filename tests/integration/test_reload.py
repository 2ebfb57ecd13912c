"""A reload loses nothing, whatever the program: the new generation serves when it is ready, the old one finishes."""

from pathlib import Path
from time import monotonic

import pytest

from tests.integration.backends import front, pool
from tests.integration.commands import Manager, running
from tests.integration.load import Load
from tests.integration.ports import free_address, free_port
from tests.integration.scenes import are_gone


def reload_again_and_again(manager: Manager, load: Load, *, first: int = 2, times: int = 2) -> None:
    """Reload under load; after each verdict the new generation alone answers, and nothing is left of the old."""
    for generation in range(first, first + times):
        load.goes_on()
        old = manager.pids("app")
        said = manager("reload", "app").succeeds()
        verdict = monotonic()
        assert said == f"app: reloaded: generation {generation} serves\n"
        are_gone(*old, within=0.5)
        load.goes_on()
        assert load.generations_since(verdict) == {generation}


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("backend", ["go", "c", "php", "flup", "wsgi", "uvicorn"])
def test_a_reload_under_load_loses_no_request(backend: str, transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with (
        running(tmp_path, pool(tmp_path, backend, address)) as manager,
        front(tmp_path, backend, address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        reload_again_and_again(manager, load)
    assert load.failures == []
