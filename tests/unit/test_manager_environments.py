"""Whose a process is, where there is no loop any more."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fcgimgr.linux import glance
from fcgimgr.manager.children import environments
from fcgimgr.manager.children.environments import marked


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def child(stack: ExitStack, **environment: str) -> int:
    process = stack.enter_context(subprocess.Popen(["sleep", "1000"], env=environment))
    stack.callback(process.kill)
    return process.pid


def test_those_that_bear_a_mark_are_found(stack: ExitStack) -> None:
    ours, strange = child(stack, FCGIMGR_PROCESS="app_00"), child(stack)
    assert marked([ours, strange], 10.0) == [ours]


def test_one_that_cannot_be_looked_at_hides_nobody_else(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = sorted(child(stack, FCGIMGR_PROCESS="app_00") for _ in range(4))
    really = environments.look_at

    def look_at(pid: int) -> tuple[object, object, str]:
        if pid in pids[1:3]:
            signal.pause()
        return really(pid)

    monkeypatch.setattr(environments, "look_at", look_at)
    monkeypatch.setattr(glance, "PATIENCE", 0.3)
    assert marked(pids, 10.0) == [pids[0], pids[3]]
