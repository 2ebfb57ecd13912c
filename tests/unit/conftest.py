"""What several unit tests stand on."""

import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs only when the test lets it."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()
