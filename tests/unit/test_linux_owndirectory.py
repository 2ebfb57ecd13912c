"""The manager's own directories: it takes none that others could change."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.owndirectory import ensure_directory, look_at_directory
from tests.rights import as_root

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize(("mode", "advice"), [(0o757, "chmod o-w"), (0o775, "chmod g-w")])
@as_root
def test_a_directory_that_others_may_write_to_is_refused(mode: int, advice: str, tmp_path: Path) -> None:
    os.chown(tmp_path, 0, 4242)
    tmp_path.chmod(mode)
    with pytest.raises(LinuxError, match=advice):
        ensure_directory(str(tmp_path), 0o700, "state_dir")
    tmp_path.chmod(mode | 0o1000)  # sticky: what is ours there stays ours
    assert not ensure_directory(str(tmp_path), 0o700, "state_dir")


@pytest.fixture
def link(tmp_path: Path) -> Path:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    return tmp_path / "link"


def test_a_link_that_is_nobody_elses_is_followed(link: Path) -> None:
    assert look_at_directory(str(link), "state_dir")
    assert not ensure_directory(str(link), 0o700, "state_dir")


def test_a_link_that_another_user_may_have_put_there_is_refused(link: Path) -> None:
    link.parent.chmod(0o1777)
    for path in (link, link / "below"):
        for refused in (
            lambda path: ensure_directory(path, 0o700, "control"),
            lambda path: look_at_directory(path, "control"),
        ):
            with pytest.raises(LinuxError, match="a symbolic link that another user may have put there"):
                refused(str(path))
    assert not list((link.parent / "real").iterdir())


@as_root
def test_root_follows_no_link_into_a_directory_of_others(tmp_path: Path) -> None:
    (tmp_path / "theirs/own").mkdir(parents=True)
    os.chown(tmp_path / "theirs", 4242, 4242)
    (tmp_path / "link").symlink_to("theirs/own")
    with pytest.raises(LinuxError, match="belongs to uid 4242, who could put another in its place"):
        ensure_directory(str(tmp_path / "link"), 0o700, "control")


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(LinuxError, match="is a symbolic link to gone, which does not exist; create that"):
        ensure_directory(str(tmp_path / "link"), 0o700, "control")


def test_what_a_look_passes_is_made_by_the_start(tmp_path: Path) -> None:
    assert not look_at_directory(str(tmp_path / "new"), "control")
    assert not (tmp_path / "new").exists()
    assert ensure_directory(str(tmp_path / "new"), 0o711, "control")
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o711


@pytest.mark.parametrize(
    ("members", "more", "is_private"),
    [("", "", True), ("ann", "", True), ("ann,bob", "", False), ("", "bob:x:4344:4343::/:/bin/sh\n", False)],
)
@as_root
def test_the_group_of_one_user_alone_is_nobody_else(members: str, more: str, is_private: bool, tmp_path: Path) -> None:
    """So are the directories of users where the umask is 002."""
    users = {"passwd": f"ann:x:4343:4343::/:/bin/sh\n{more}", "group": f"ann:x:4343:{members}\n"}
    script = ["mount --make-rprivate /"]
    for name, content in users.items():
        (tmp_path / name).write_text(content)
        script.append(f"mount --bind {tmp_path}/{name} /etc/{name}")
    with tempfile.TemporaryDirectory() as own:
        os.chown(own, 4343, 4343)
        os.chmod(own, 0o775)
        look = f"from fcgimgr.linux.owndirectory import *; print(ensure_directory({own!r}, 0o700, 'state_dir'))"
        script.append(f'exec setpriv --reuid=4343 --regid=4343 --clear-groups {sys.executable} -c "{look}"')
        command = ["unshare", "-m", "sh", "-ec", "\n".join(script)]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    if is_private:
        assert (ran.returncode, ran.stdout) == (0, "False\n"), ran.stderr
    else:
        assert "may be written to by the group 4343; chmod g-w it" in ran.stderr
