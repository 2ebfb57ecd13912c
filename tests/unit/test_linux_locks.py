"""Lock files: one holder, whatever happens to the file or to the holder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.locks import LockFile

HOLDER = """
import sys
from fcgimgr.linux.locks import LockFile
lock = LockFile(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "manager.pid")


def test_it_holds_our_pid_and_goes_away(path: str) -> None:
    lock = LockFile(path)
    assert Path(path).read_text() == f"{os.getpid()}\n"
    lock.remove()
    assert not os.path.exists(path)
    lock.remove()


def test_a_second_one_is_refused_by_the_name_of_the_first(path: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        before = os.listdir("/proc/self/fd")
        with pytest.raises(LinuxError, match=rf"already held by pid {holder.pid} \(.+\); stop that one first"):
            LockFile(path)
        assert os.listdir("/proc/self/fd") == before
        holder.kill()
        holder.wait()
    LockFile(path).remove()  # its file was left behind, its lock was not


def test_a_longer_text_is_overwritten_whole(path: str) -> None:
    Path(path).write_text("123456789\nand more\n")
    lock = LockFile(path)
    assert Path(path).read_text() == f"{os.getpid()}\n"
    lock.remove()


def test_a_holder_without_a_pid_is_still_a_holder(path: str) -> None:
    lock = LockFile(path)
    os.truncate(path, 0)
    with pytest.raises(LinuxError, match="held by another process"):
        LockFile(path)
    lock.remove()


def test_a_file_that_is_not_ours_stays(path: str) -> None:
    lock = LockFile(path)
    os.unlink(path)
    other = LockFile(path)  # the old lock is on an inode nobody can reach
    lock.remove()
    assert os.path.exists(path)
    other.remove()
    assert not os.path.exists(path)


def test_release_leaves_the_file(path: str) -> None:
    lock = LockFile(path)
    lock.release()
    assert os.path.exists(path)
    LockFile(path).remove()


def test_links_and_other_things_are_not_touched(path: str, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    os.symlink(target, path)
    with pytest.raises(LinuxError, match="symbolic link"):
        LockFile(path)
    assert target.read_text() == "precious"
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(LinuxError, match="not a regular file"):
        LockFile(path)


def test_where_it_cannot_be_made(path: str, tmp_path: Path) -> None:
    with pytest.raises(LinuxError, match=rf"create the directory {tmp_path}/run"):
        LockFile(f"{tmp_path}/run/manager.pid")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(LinuxError, match="permission denied; choose a path"):
            LockFile(path)
        tmp_path.chmod(0o700)
