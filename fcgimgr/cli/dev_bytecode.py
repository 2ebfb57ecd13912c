"""Compiled files of sources that have changed: Python is not to take one for the other.

It compares the time in whole seconds and the size (PEP 3147, importlib's _validate_timestamp_pyc): of two saves of the
same length in the same second the second would never be seen, if somebody has compiled the first one in between.
"""

import os
from collections.abc import Iterable
from contextlib import suppress


def remove_compiled(sources: Iterable[str]) -> None:
    """Remove what was compiled of these files. A link in the place of `__pycache__` is not followed."""
    for path in sources:
        directory, name = os.path.split(path)
        module, extension = os.path.splitext(name)
        if extension == ".py":
            with suppress(OSError):  # there is none; or it cannot be written to, and then nobody has compiled it as we
                _remove(os.path.join(directory, "__pycache__"), f"{module}.")


def _remove(cache: str, beginning: str) -> None:
    directory = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in os.listdir(directory):
            if name.startswith(beginning) and name.endswith(".pyc"):
                os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)
