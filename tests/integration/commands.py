"""The `fcgimgr` command as a user types it, a configuration to type it for, and small programs that obey.

Every program here is driven by the test through a FIFO, so that nothing is written, and nobody dies, before the test
says so. Nothing here waits on a clock.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.running import RunningManager
from tests.waiting import eventually

WITHIN = 60.0
"""Seconds that a command may take: a bound on a broken program."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def succeeds(self) -> str:
        """What it printed; it must have ended with 0."""
        assert self.code == 0, self
        return self.out

    def fails(self, code: int) -> str:
        """What it complained; it must have ended with `code`."""
        assert self.code == code, self
        return self.err


def words(*arguments: str | Path) -> list[str]:
    """The command line of `fcgimgr ARGUMENTS`, as the installed script runs it."""
    return [sys.executable, "-m", "fcgimgr", *map(str, arguments)]


def fcgimgr(*arguments: str | Path, within: float = WITHIN, **popen: Any) -> Done:
    """Run `fcgimgr ARGUMENTS` to its end."""
    done = subprocess.run(
        words(*arguments), stdin=subprocess.DEVNULL, capture_output=True, timeout=within, check=False, **popen
    )
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


class Manager(RunningManager):
    """A running manager, with the commands of `fcgimgr` about it."""

    def __call__(self, *arguments: str, **popen: Any) -> Done:
        """`fcgimgr -c CONFIG ARGUMENTS`"""
        return fcgimgr("-c", self.config, *arguments, **popen)


def running(directory: Path, text: str, *, ready: bool = True) -> Manager:
    """A manager to be started on `configuration(directory, text)`."""
    return Manager(configuration(directory, text), directory / "fcgimgr.sock", ready=ready)


def configuration(directory: Path, text: str) -> Path:
    """pool.toml in `directory`: `text`, whose first lines go into [manager], with the control socket beside it."""
    config = directory / "pool.toml"
    config.write_text(f'[manager]\ncontrol = "%(here)s/fcgimgr.sock"\n{text}')
    return config


ECHO = """\
exec 3<>"$1"
while read -r line <&3; do
    case $line in
        exit*) exit "${line#exit }" ;;
        err*) echo "${line#err }" >&2 ;;
        *) echo "$line" ;;
    esac
done
"""


class Echo:
    """A program that prints what it is told, a line at a time: `command` for pool.toml, `say` to tell it.

    "err WORDS" goes to its standard error, "exit N" ends it.
    """

    def __init__(self, directory: Path, name: str = "echo") -> None:
        self._fifo = directory / f"{name}.fifo"
        os.mkfifo(self._fifo)
        # Both ways, so that neither opening nor writing waits for the program.
        self._fd = os.open(self._fifo, os.O_RDWR)
        self.command = f"command = ['/bin/sh', '-c', '''{ECHO}''', 'sh', '{self._fifo}']"

    def say(self, *lines: str) -> None:
        os.write(self._fd, "".join(f"{line}\n" for line in lines).encode())

    def __del__(self) -> None:
        os.close(self._fd)


def lines_of(*paths: Path) -> list[str]:
    """The lines of these files, one file after the other; a file that is not there has none."""
    return [line for path in paths if path.exists() for line in path.read_text().splitlines()]


def rotated(path: Path) -> list[Path]:
    """A log and its backups, oldest first."""
    backups = path.parent.glob(f"{path.name}.*")
    return [*sorted(backups, key=lambda backup: -int(backup.suffix[1:])), path]


def comes(path: Path, line: str, within: float = 10.0) -> None:
    """Wait until `line` is a line of the file."""
    eventually(lambda: line in lines_of(path), within=within)
