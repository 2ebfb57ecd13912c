"""What the threads of a process are doing, as /proc tells it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fcgimgr.linux import procfs
from tests.waiting import eventually

PROGRAM = """
import os, threading
def spin():
    while True: pass
threading.Thread(target=spin, daemon=True).start()
os.read(0, 1)
"""


@pytest.fixture
def program() -> Iterator[int]:
    """One thread reads fd 0, the other computes."""
    with subprocess.Popen([sys.executable, "-S", "-E", "-c", PROGRAM], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def test_each_thread_tells_its_state(program: int) -> None:
    assert eventually(lambda: sorted(procfs.thread_states(program) or ()) == ["R", "S"])


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="read(2) has another number there")
def test_a_thread_that_waits_tells_in_what_and_one_that_computes_does_not(program: int) -> None:
    assert eventually(lambda: sorted(procfs.system_calls(program) or ()) == [(-1, 0), (0, 0)])


def test_the_gone_tell_nothing() -> None:
    assert procfs.thread_states(2**22 - 1) is procfs.system_calls(2**22 - 1) is procfs.sockets(2**22 - 1) is None


def test_a_boot_has_an_id() -> None:
    assert len(procfs.boot_id()) == 36
