"""What a helper sees at a glance comes back as if it had been seen here, and it keeps nobody waiting."""

import os
import socket
import time
from pathlib import Path

import pytest

from fcgimgr.linux import glance as module
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.glance import NoGlanceError, glance, glance_fd, holders
from fcgimgr.linux.helper import was_helper
from fcgimgr.linux.processes import reap
from tests.waiting import eventually


def refuse(error: Exception) -> None:
    raise error


def test_an_answer_comes_back_and_so_do_errors() -> None:
    assert glance(lambda at: [1, {"a": None}]) == [1, {"a": None}]
    with pytest.raises(FileNotFoundError):
        glance(lambda at: os.stat("/no/such"))
    with pytest.raises(LinuxError, match="no such luck"):
        glance(lambda at: refuse(LinuxError("no such luck")))
    with pytest.raises(NoGlanceError):
        glance(lambda at: refuse(RuntimeError()))


def test_a_descriptor_comes_back_that_no_program_inherits(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    fd = glance_fd(lambda: os.open(tmp_path / "file", os.O_RDONLY))
    assert fd is not None
    with open(fd) as file:
        assert not os.get_inheritable(fd)
        assert file.read() == "content"
    assert glance_fd(lambda: None) is None


def test_one_that_does_not_get_on_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    fds = len(os.listdir("/proc/self/fd"))
    begun = time.monotonic()
    with pytest.raises(NoGlanceError, match="does not end"):
        glance(lambda at: time.sleep(1000))
    assert time.monotonic() - begun < 5
    assert len(os.listdir("/proc/self/fd")) == fds
    # It is gone, and known for what it was to whoever reaps it.
    gone = eventually(lambda: [death.pid for death in reap()])
    assert any(map(was_helper, gone))


def test_who_listens_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        inode = os.fstat(listener.fileno()).st_ino
        assert f"by pid {os.getpid()} (" in holders({inode})
    assert holders({inode}) == holders(None) == ""
