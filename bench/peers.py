"""The managers that are compared: how each is configured for a fleet of like children, started, asked and ended.

All get the same: the children share a Unix socket, the manager runs in the foreground and logs to a file. Each has the
children's output as its own default would have it, but for "to nowhere" instead of to the disk, where a figure does not
ask for a log file. PHP-FPM cannot run our programs; its children are its own workers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final, Protocol

from bench.proc import children, kill_quietly, wait_until

STARTSECS: Final = 1.0  # the default of both fcgimgr and supervisor: a child this old counts as started
SETTLED: Final = STARTSECS + 1.5  # seconds after which nothing of the start is still going on in any of them
START_WITHIN: Final = 60.0
STOP_WITHIN: Final = 60.0

SHOWN: Final = {
    "summary": "pools with a line for all processes that just run",
    "list": "a line a process",
    "json": "all that is known, as JSON",
}


@dataclass(frozen=True)
class Fleet:
    """`count` children running `command`; `logfile` takes what they write to stdout."""

    count: int
    command: str
    logfile: Path | None = None


class Peer(Protocol):
    """One manager. `own_children`: it can only run workers of its own."""

    name: str
    own_children: bool

    def configure(self, directory: Path, fleet: Fleet) -> list[str]:
        """Write its configuration into `directory`; the words that start it in the foreground."""

    def status_commands(self, directory: Path) -> dict[str, list[str]]:
        """Its ways of showing all processes, by what they show (a key of SHOWN): the words of the command."""


class Fcgimgr:
    name = "fcgimgr"
    own_children = False

    def __init__(self) -> None:
        self.program = str(Path(sys.executable).with_name("fcgimgr"))

    def configure(self, directory: Path, fleet: Fleet) -> list[str]:
        (directory / "fcgimgr.toml").write_text(f"""
[manager]
control = "{directory}/control.sock"
logfile = "{directory}/manager.log"
minfds = 8192

[pool.app]
socket = "unix:{directory}/app.sock"
command = "{fleet.command}"
numprocs = {fleet.count}
process_name = "%(program_name)s_%(process_num)04d"
startsecs = {STARTSECS}
stdout_logfile = "{fleet.logfile or "none"}"
stdout_logfile_maxbytes = 0
stderr_logfile = "none"
""")
        return [self.program, "-c", str(directory / "fcgimgr.toml")]

    def status_commands(self, directory: Path) -> dict[str, list[str]]:
        ask = [self.program, "-s", f"{directory}/control.sock", "status"]
        return {"summary": ask, "list": [*ask, "--verbose"], "json": [*ask, "--json"]}


class Supervisor:
    name = "supervisor"
    own_children = False

    def __init__(self, bin_directory: Path) -> None:
        self._bin = bin_directory

    def configure(self, directory: Path, fleet: Fleet) -> list[str]:
        (directory / "supervisord.conf").write_text(f"""
[supervisord]
nodaemon = true
silent = true
logfile = {directory}/manager.log
pidfile = {directory}/supervisord.pid
childlogdir = {directory}
minfds = 8192

[unix_http_server]
file = {directory}/control.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl = unix://{directory}/control.sock

[fcgi-program:app]
socket = unix://{directory}/app.sock
command = {fleet.command}
numprocs = {fleet.count}
process_name = %(program_name)s_%(process_num)04d
startsecs = {STARTSECS:g}
stdout_logfile = {fleet.logfile or "NONE"}
stdout_logfile_maxbytes = 0
stderr_logfile = NONE
""")
        return [str(self._bin / "supervisord"), "-c", str(directory / "supervisord.conf")]

    def status_commands(self, directory: Path) -> dict[str, list[str]]:
        return {"list": [str(self._bin / "supervisorctl"), "-c", str(directory / "supervisord.conf"), "status"]}


class PhpFpm:
    name = "php-fpm"
    own_children = True

    def __init__(self, program: str) -> None:
        self._program = program

    def configure(self, directory: Path, fleet: Fleet) -> list[str]:
        as_root = os.geteuid() == 0
        (directory / "php-fpm.conf").write_text(f"""
[global]
daemonize = no
error_log = {directory}/manager.log
rlimit_files = 8192

[app]
{"user = root" if as_root else ""}
listen = {directory}/app.sock
pm = static
pm.max_children = {fleet.count}
""")
        # --allow-to-run-as-root: the other managers' children run as whoever started them, too.
        return [self._program, "-F", "-y", str(directory / "php-fpm.conf"), *(["-R"] if as_root else [])]

    def status_commands(self, directory: Path) -> dict[str, list[str]]:
        return {}


def own_program(name: str) -> Path:
    """Where a program of the peers' virtualenv is, if scripts/bench has installed it."""
    return Path(sys.prefix, "peers", "bin", name)


def own_module(name: str) -> bool:
    """Whether the peers' virtualenv has this module."""
    python = own_program("python")
    return python.exists() and subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode == 0


def versions() -> str:
    """Of all that is installed there, but for what installs it and what others need."""
    python = own_program("python")
    if not python.exists():
        return ""
    words = [str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    named = (f"{each['name']} {each['version']}" for each in json.loads(found))
    return ", ".join(name for name in named if name.split()[0] not in ("pip", "setuptools", "click", "packaging"))


def find_peers() -> tuple[list[Peer], list[str]]:
    """fcgimgr and the others that are installed, and a line for each one that is not."""
    peers: list[Peer] = [Fcgimgr()]
    missing = []
    found = shutil.which("supervisord")
    own = own_program("supervisord")
    if own.exists():
        peers.append(Supervisor(own.parent))
    elif found is not None:
        peers.append(Supervisor(Path(found).parent))
    else:
        missing.append("supervisor is left out: it is not installed (scripts/bench installs it)")
    programs = sorted(Path("/usr/sbin").glob("php-fpm*"))
    if programs:
        peers.append(PhpFpm(str(programs[-1])))
    else:
        missing.append("php-fpm is left out: it is not installed (scripts/bench installs it)")
    return peers, missing


class Process:
    """A manager's process, whose files are in `directory`. `begun`: monotonic seconds just before its exec."""

    def __init__(self, name: str, directory: Path, process: subprocess.Popen[bytes], begun: float) -> None:
        self.name = name
        self.directory = directory
        self.begun = begun
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for_children(self, count: int, every: float = 0.002) -> float:
        """Wait until it has that many; the monotonic time at which it had."""

        def reached() -> bool:
            self.lives()
            return len(children(self.pid)) >= count

        return wait_until(reached, START_WITHIN, every, f"{count} children of {self.name}")

    def lives(self) -> None:
        """RuntimeError with the end of its log when it does not."""
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"{self.name} ended with {code}:\n{self._said()}")

    def stop(self) -> None:
        """Send TERM and wait for the end."""
        self._process.terminate()
        self._process.wait(STOP_WITHIN)

    def end(self) -> None:
        """Whatever its state: it and its children are gone afterwards."""
        if self._process.poll() is not None:
            return
        family = children(self.pid)
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            # Not one by one: with each death the manager would start another child.
            family |= children(self.pid)
            self._process.kill()
            self._process.wait()
            for pid in family:
                kill_quietly(pid, signal.SIGKILL)

    def _said(self) -> str:
        logs = (self.directory / "output", self.directory / "manager.log")
        return "".join(log.read_text(errors="replace")[-2000:] for log in logs if log.exists())


class Running(Process):
    """A manager that runs."""

    def __init__(self, peer: Peer, directory: Path, process: subprocess.Popen[bytes], begun: float) -> None:
        super().__init__(peer.name, directory, process, begun)
        self.peer = peer


@contextmanager
def running(peer: Peer, directory: Path, fleet: Fleet) -> Iterator[Running]:
    """The manager on this fleet, with files in `directory`; on leaving it is ended, however that goes."""
    directory.mkdir(parents=True, exist_ok=True)
    manager = Running(peer, directory, *start(peer.configure(directory, fleet), directory))
    try:
        yield manager
    finally:
        manager.end()


def start(words: list[str], directory: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Run a command in `directory`, what it says into the file `output`; with the monotonic time before its exec."""
    with (directory / "output").open("wb") as output:
        begun = monotonic()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=directory)
    return process, begun
