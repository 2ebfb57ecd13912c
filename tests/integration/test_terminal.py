"""A manager in the foreground of a terminal ends with it; SIGHUP from anybody else is an update."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fcgimgr.linux.terminal import SOON, Terminal
from tests.integration.commands import configuration, fcgimgr, words
from tests.integration.running import MARK, end_strays, strays
from tests.waiting import eventually

SLEEPER = '[program.sleeper]\ncommand = "sleep 1000"\nstartsecs = 0\n'
#: Makes standard input the controlling terminal of a new session, and executes the rest of its words.
SESSION = """\
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class InTerminal:
    """A manager in the foreground of a terminal of its own."""

    def __init__(self, directory: Path, *prefix: str) -> None:
        self.log = directory / "own.log"
        config = configuration(directory, f'logfile = "{self.log}"\n{SLEEPER}')
        self.mark = str(directory)
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SESSION, *prefix, *words("-c", config)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=directory,  # nohup writes its nohup.out there
            env=os.environ | {MARK: self.mark},
        )
        os.close(slave)
        eventually(lambda: "up\n" in self.output())

    def output(self) -> str:
        return self.log.read_text()

    def close(self) -> None:
        """Close the terminal."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def end(self) -> None:
        self.close()
        self.process.kill()
        self.process.wait()
        end_strays(self.mark)


@contextmanager
def in_terminal(directory: Path, *prefix: str) -> Iterator[InTerminal]:
    manager = InTerminal(directory, *prefix)
    try:
        yield manager
    finally:
        manager.end()


def test_it_ends_when_its_terminal_hangs_up(tmp_path: Path) -> None:
    with in_terminal(tmp_path) as manager:
        os.kill(manager.process.pid, signal.SIGHUP)
        eventually(lambda: "HUP: no change" in manager.output())
        manager.close()
        assert manager.process.wait(30) == 0
        assert "stopping: SIGHUP: the terminal has hung up" in manager.output()
        assert not strays(manager.mark)


@pytest.mark.parametrize("upgraded", [False, True])
def test_with_nohup_it_goes_on_and_hup_is_an_update(upgraded: bool, tmp_path: Path) -> None:
    with in_terminal(tmp_path, "nohup") as manager:
        if upgraded:
            fcgimgr("-c", tmp_path / "pool.toml", "upgrade").succeeds()
        manager.close()  # which sends the first
        eventually(lambda: manager.output().count("HUP: no change") == 1)
        os.kill(manager.process.pid, signal.SIGHUP)
        eventually(lambda: manager.output().count("HUP: no change") == 2)
        manager.process.terminate()
        assert manager.process.wait(30) == 0


@pytest.fixture
def terminal() -> Iterator[tuple[Terminal, int]]:
    master, slave = pty.openpty()
    terminal = Terminal(slave)
    yield terminal, master
    terminal.close()


def test_a_signal_long_after_the_terminals_end_is_somebodys(terminal: tuple[Terminal, int]) -> None:
    own, master = terminal
    os.write(master, b"a line\n")
    assert not own.ended_lately(100.0)
    os.close(master)
    assert own.ended_lately(101.0)
    assert own.ended_lately(101.0 + SOON - 0.1)
    assert not own.ended_lately(101.0 + SOON)
