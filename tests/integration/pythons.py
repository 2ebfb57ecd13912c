"""The Pythons of this machine that an application may run in, besides the one that runs the tests."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path


@functools.cache
def other_pythons() -> tuple[str, ...]:
    """Paths, one a version: `python3.9` and later in PATH, pyenv's, and what FCGIMGR_TEST_PYTHONS names between colons.

    Debian packages one version; the others are for a developer who has them.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [
        *(shutil.which(f"python3.{minor}") for minor in range(9, 30)),
        *map(str, pyenv.glob("versions/*/bin/python3")),
        *os.environ.get("FCGIMGR_TEST_PYTHONS", "").split(":"),
    ]
    versions = {python: version for python in filter(None, found) if (version := _version(python)) >= (3, 9)}
    by_version = {version: python for python, version in reversed(versions.items())}
    return tuple(python for version, python in sorted(by_version.items()) if version != sys.version_info[:2])


@functools.cache
def old_pythons() -> tuple[str, ...]:
    """Paths, one a version: those of pyenv that a worker cannot run in."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = {_version(str(python)): str(python) for python in pyenv.glob("versions/*/bin/python")}
    return tuple(python for version, python in sorted(found.items()) if (0, 0) < version < (3, 9))


def _version(python: str) -> tuple[int, int]:
    """(0, 0) for what does not run, as pyenv's command of a version that is not chosen."""
    told = subprocess.run(
        [python, "-c", "import sys; sys.stdout.write('%d %d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode != 0:
        return 0, 0
    major, minor = map(int, told.stdout.split())
    return major, minor
