"""The manager's own directories: it takes none that others could change."""

import os
from pathlib import Path

import pytest

from fcgimgr.linux.errors import LinuxError
from fcgimgr.manager.places import ensure_directory


@pytest.mark.parametrize(("mode", "advice"), [(0o757, "chmod o-w"), (0o775, "chmod g-w")])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another group")
def test_a_directory_that_others_may_write_to_is_refused(mode: int, advice: str, tmp_path: Path) -> None:
    os.chown(tmp_path, 0, 4242)
    tmp_path.chmod(mode)
    with pytest.raises(LinuxError, match=advice):
        ensure_directory(str(tmp_path), 0o700, "state_dir")
    tmp_path.chmod(mode | 0o1000)  # sticky: what is ours there stays ours
    assert not ensure_directory(str(tmp_path), 0o700, "state_dir")


def test_a_link_to_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(LinuxError, match="is not a directory"):
        ensure_directory(str(tmp_path / "link"), 0o700, "state_dir")
