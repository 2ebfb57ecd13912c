"""A directory that every user can enter, of root's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.scenes import open_directory


@pytest.fixture
def place() -> Iterator[Path]:
    with open_directory() as directory:
        yield directory
