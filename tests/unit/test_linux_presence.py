"""What is told of files that were removed, and what is not."""

import os
from pathlib import Path

import pytest

from fcgimgr.linux.presence import Presence


def test_nothing_is_told_of_a_file_that_comes_and_goes(tmp_path: Path) -> None:
    presence = Presence()
    presence.watch_directory(str(tmp_path), files=True)
    for _ in range(2):
        (tmp_path / "file.new").touch()
        (tmp_path / "file.new").rename(tmp_path / "file")
    assert not presence.hear(passing="file.new")
    (tmp_path / "file.new").touch()
    (tmp_path / "file.new").unlink()
    (tmp_path / "file").unlink()
    assert presence.hear(passing="file.new")
    assert not presence.hear()
    presence.close()


@pytest.mark.parametrize("files", [True, False])
def test_the_going_of_the_directory_is_told(files: bool, tmp_path: Path) -> None:
    presence = Presence()
    (tmp_path / "run").mkdir()
    presence.watch_directory(str(tmp_path / "run"), files=files)
    (tmp_path / "run").rename(tmp_path / "gone")
    assert presence.hear(passing="file.new")
    presence.close()


def test_the_going_of_a_name_is_told_of_the_file_itself(tmp_path: Path) -> None:
    presence = Presence()
    (tmp_path / "file").touch()
    os.link(tmp_path / "file", tmp_path / "second")
    presence.watch_file(str(tmp_path / "file"))
    (tmp_path / "other").touch()
    (tmp_path / "other").unlink()
    assert not presence.hear()
    (tmp_path / "file").unlink()
    assert presence.hear()
    presence.close()
