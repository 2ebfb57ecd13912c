"""What several unit tests stand on."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fcgimgr.cli.main import main
from tests.unit.scripted_manager import ScriptedManager

#: A command line to its exit code and what it said, on standard output and error.
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs only when the test lets it."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FCGIMGR_DEBUG", raising=False)
    # The scripted manager is this very process, which does not end when it hangs up.
    monkeypatch.setattr("fcgimgr.cli.running._END_WITHIN", 0.01)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ScriptedManager]:
    with ScriptedManager(tmp_path / "m.sock") as manager:
        yield manager
