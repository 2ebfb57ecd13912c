"""Private directories of commands: gone with their owners, however those end."""

import os
import tempfile
from pathlib import Path

import pytest

from fcgimgr.cli.private import private_directory


@pytest.fixture(autouse=True)
def _temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def abandoned(path: Path) -> Path:
    """As one that was killed has left it: with nobody who holds its lock."""
    path.mkdir(mode=0o700)
    (path / "owned").touch()
    (path / "pool.toml").touch()
    return path


def test_it_lets_nobody_else_in_and_goes_with_its_owner(tmp_path: Path) -> None:
    with private_directory("dev-") as path:
        assert os.stat(path).st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_those_whose_owners_are_gone_are_removed_and_no_others(tmp_path: Path) -> None:
    gone = abandoned(tmp_path / "dev-gone")
    other = abandoned(tmp_path / "demo-other")
    open_to_others = abandoned(tmp_path / "dev-open")
    open_to_others.chmod(0o755)
    begun = tmp_path / "dev-begun"  # its owner is about to take the lock
    begun.mkdir(mode=0o700)
    with private_directory("dev-") as first, private_directory("dev-") as second:
        assert not gone.exists()
        assert all(Path(path).exists() for path in (first, second, other, open_to_others, begun))


def test_no_link_is_followed(tmp_path: Path) -> None:
    elsewhere = abandoned(tmp_path / "elsewhere")
    (tmp_path / "dev-link").symlink_to(elsewhere)
    (abandoned(tmp_path / "dev-gone") / "link").symlink_to(elsewhere)
    with private_directory("dev-"):
        assert sorted(path.name for path in elsewhere.iterdir()) == ["owned", "pool.toml"]
