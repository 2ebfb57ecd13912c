"""Users who are up to no good, without being anybody in /etc/passwd: what they do, they do with their own rights.

These tests are of a manager that is root. Where they cannot be run they fail in CI, and are skipped elsewhere.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.servers import need

MALLORY = 64001
"""The attacker's uid and gid."""
BANK = 64002
"""Somebody else's, who has done nothing."""


def need_root() -> None:
    """Skip the test unless it runs as root; in CI (CI=true) that is a failure, never a skip."""
    need("setpriv")
    if os.geteuid() != 0:
        message = "only root can be attacked by an ordinary user"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


def words_as(uid: int) -> list[str]:
    """The words before a command that make it run as this user."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


def run_as(uid: int, *command: str | Path, may_fail: bool = False) -> str:
    """What this user's command prints; it must end well, unless it `may_fail`."""
    words: Sequence[str] = [*words_as(uid), *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert may_fail or done.returncode == 0, done
    return done.stdout


def directory_of(uid: int, path: Path) -> Path:
    """A directory that is this user's."""
    path.mkdir(parents=True)
    os.chown(path, uid, uid)
    return path
