"""On an overlay of two file systems (Docker's) stat(2) tells another device of a socket's file than the kernel."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fcgimgr.linux import sockdiag
from fcgimgr.linux.listeners import open_unix
from tests.integration.commands import Manager
from tests.integration.running import end_strays
from tests.integration.scenes import ask, open_directory, scene
from tests.integration.servers import need
from tests.integration.succession import reload
from tests.rights import as_root
from tests.waiting import eventually

# In a mount namespace of its own; it goes, mounts and all, with whoever waits there.
MOUNT = """\
cd "$1"
mkdir lower top
mount -t tmpfs tmpfs top
mkdir top/upper top/work
mount -t overlay overlay -o xino=off,lowerdir=lower,upperdir=top/upper,workdir=top/work on
echo mounted
exec cat
"""


@pytest.fixture
def overlay() -> Iterator[tuple[Path, int]]:
    """Where it is mounted, and the process in whose mount namespace."""
    need("unshare", "mount", "nsenter")
    with open_directory() as directory:
        (directory / "on").mkdir()
        words = ["unshare", "--mount", "sh", "-ec", MOUNT, "sh", str(directory)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            if holder.stdout.readline() != b"mounted\n":
                (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("an overlay cannot be mounted here")
            yield directory / "on", holder.pid
            assert holder.stdin is not None
            holder.stdin.close()


def seen(overlay: tuple[Path, int]) -> Path:
    """It, from outside."""
    return Path(f"/proc/{overlay[1]}/root{overlay[0]}")


def inside(overlay: tuple[Path, int], **more: Any) -> Manager:
    words = ["nsenter", f"--mount=/proc/{overlay[1]}/ns/mnt"]
    return Manager(overlay[0] / "pool.toml", seen(overlay) / "pool.control", prefix=words, **more)


@as_root
def test_a_manager_lives_on_an_overlay(overlay: tuple[Path, int]) -> None:
    there = seen(overlay)
    where = f"unix:{there}/app.sock"
    keys = [f'command = "{sys.executable} %(here)s/answer.py"', 'socket = "%(here)s/app.sock"', "startsecs = 0.1"]
    scene(there, "\n".join(["[pool.app]", *keys]))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{there}/app.sock")
    assert (there / "app.sock").stat().st_dev != there.stat().st_dev, "this overlay hides nothing"
    first = inside(overlay)
    first.__enter__()
    try:
        assert reload(first).ok
        (there / "app.sock").unlink()
        eventually((there / "app.sock").is_socket)
        serving = ask(where)
        assert serving["environ"]["FCGIMGR_GENERATION"] == "2"
        first.kill()
        (there / "app.sock").unlink()
        with inside(overlay, mark=first.mark) as second:
            assert second.pids("app") == [serving["pid"]], "it was taken over"
            assert ask(where)["pid"] == serving["pid"], "by its hidden name the file was put back"
    finally:
        end_strays(first.mark)
    assert not list(there.glob(".fcgimgr-*"))
    assert not (there / "app.sock").exists()


def test_the_file_of_a_socket_is_known_among_others(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with open_unix(str(tmp_path / "sock"), backlog=1) as listener:
        for name in ("sock", "other"):
            file = os.open(tmp_path / name, os.O_PATH)
            assert sockdiag.unix_is_bound_to(listener.inode, file) is (name == "sock")
            os.close(file)
