"""A running fcgimgr: what the integration tests talk to, and the shipped examples on top of it.

Started as a user starts it, ready on entry, ended on exit by pid however the test goes; then it must have left nothing
behind. The logs are printed when something went wrong. Nothing here waits on a clock.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from fcgimgr.control.client import Client
from fcgimgr.control.messages import (
    ControlError,
    NamesParams,
    Params,
    PoolStatus,
    ScaleParams,
    Status,
    StatusParams,
    Verdict,
)
from tests.integration.servers import CHECKOUT
from tests.waiting import eventually

MARK = "FCGIMGR_TEST_RUN"
"""Environment variable that every process of a test's manager inherits, by which strays are found."""


class RunningManager:
    """fcgimgr in the foreground on a configuration file, as a user starts it.

    Ready on entry: every process of every pool is RUNNING (with `ready=False`: the control socket answers). On exit it
    is told to stop, must end with code 0 and leave no process behind. `prefix`: words before the command, of a program
    that executes the rest of its words in its own place (setpriv, say). `inherit`: fds that it gets.
    `mark`: of a manager before it, whose processes it is to answer for.
    """

    def __init__(
        self,
        config: Path,
        control: Path,
        *,
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        inherit: Sequence[int] = (),
        mark: str | None = None,
        ready: bool = True,
        within: float = 30.0,
    ) -> None:
        self.config = config
        self.control = control
        self.log = control.parent / f"{config.parent.name}-{config.stem}.log"
        self.mark = mark or uuid.uuid4().hex
        # The virtualenv's own commands (python, uvicorn) first, as in a shell where it is activated.
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        self._prefix = prefix
        self._inherit = inherit
        self._environment = os.environ | {"PATH": path, MARK: self.mark} | (environment or {})
        self._ready = ready
        self._within = within
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.begin()
        try:
            eventually(self.is_up, within=self._within)
        except BaseException:
            self.end_by_force()
            self._show_log()
            raise
        return self

    def begin(self) -> None:
        """Start it, and no more: whether it comes up is not waited for."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "fcgimgr", "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                pass_fds=self._inherit,
            )

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            self.stop()
        except BaseException:
            self.end_by_force()
            self._show_log()
            raise
        if error is not None:
            self._show_log()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def status(self, *, detail: bool = False) -> Status:
        """What `fcgimgr status --json` shows."""
        with Client(str(self.control)) as client:
            return client.call("status", StatusParams(detail=detail), answer=Status)

    def start(self, *names: str) -> Verdict:
        """What `fcgimgr start` does."""
        return self.command("start", NamesParams(names=names))

    def halt(self, *names: str) -> Verdict:
        """What `fcgimgr stop` does; `stop` ends the manager."""
        return self.command("stop", NamesParams(names=names))

    def restart(self, *names: str) -> Verdict:
        """What `fcgimgr restart` does."""
        return self.command("restart", NamesParams(names=names))

    def scale(self, name: str, numprocs: str) -> Verdict:
        """What `fcgimgr scale` does."""
        return self.command("scale", ScaleParams(name=name, numprocs=numprocs))

    def command(self, method: str, params: Params) -> Verdict:
        """A command that waits until it is over."""
        with Client(str(self.control)) as client:
            return client.call(method, params, answer=Verdict, patient=True)

    def pool(self, name: str) -> PoolStatus:
        """What the status shows of one pool or program."""
        (found,) = (each for each in self.status().pools if each.name == name)
        return found

    def pids(self, pool: str) -> list[int]:
        """The pids of the running processes of a pool or program."""
        processes = self.pool(pool).processes
        return [process.pid for process in processes if process.state == "RUNNING" and process.pid is not None]

    def all_running(self) -> Status | None:
        """The status if every process of every pool is RUNNING, else None."""
        status = self.status()
        states = {process.state for pool in status.pools for process in pool.processes}
        return status if states == {"RUNNING"} else None

    def output(self) -> str:
        """All that the manager and its processes have written so far."""
        return self.log.read_text(errors="replace")

    def stop(self, within: float = 30.0) -> None:
        """SIGTERM; the manager must end with code 0 and nothing that it started may be left."""
        process = self._process
        assert process is not None
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(within) == 0, f"the manager ended with {process.returncode}"
        assert not strays(self.mark), f"left running: {strays(self.mark)}"

    def wait(self, within: float = 30.0) -> int:
        """Wait until it has ended by itself; its exit code."""
        assert self._process is not None
        return self._process.wait(within)

    @property
    def ended(self) -> bool:
        """Whether the manager has ended, by itself or by force."""
        assert self._process is not None
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL, to the manager alone; its processes live on. Not to be used within a `with`."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            # Not an AssertionError: there is nothing left to wait for.
            raise RuntimeError(f"the manager ended with {self._process.returncode} before it was ready")
        try:
            return (self.all_running() if self._ready else self.status()) is not None
        except ControlError:
            return False

    def end_by_force(self) -> None:
        """SIGKILL, to the manager and all its processes: of one that is not expected to end well."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        end_strays(self.mark)

    def _show_log(self) -> None:
        print(f"-- {self.log}\n{self.output()}--")


#: Another test's (tests/hostile/attacks/exec_that_closes.c): whoever reads its environment waits until that is over.
UNREADABLE = "exec_that_close\n"


def strays(mark: str) -> list[str]:
    """The processes, as "PID command line", that run with `mark` in their environment; a zombie is not one."""
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            if (directory / "comm").read_text() == UNREADABLE:
                continue
            if f"{MARK}={mark}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{directory.name} {command}")
        except OSError:
            continue  # Gone meanwhile, or not ours.
    return found


def end_strays(mark: str) -> None:
    """Kill what `strays` finds, until it finds nothing."""

    def none_left() -> bool:
        left = strays(mark)
        for stray in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(stray.split()[0]), signal.SIGKILL)
        return not left

    eventually(none_left)


# -- examples ---------------------------------------------------------------------------------------------------------


def copy_example(name: str, directory: Path, address: str | None = None) -> Path:
    """A copy of the shipped examples below `directory`, the one called `name` listening on `address`; its pool.toml.

    All of them are copied, the first time, because one may use another's files, as it may in the checkout.
    """
    copied = directory / "examples"
    if not copied.exists():
        leftovers = shutil.ignore_patterns("__pycache__", "answer", "fcgimgr.*", "*.sqlite*", "static-root")
        shutil.copytree(CHECKOUT / "examples", copied, ignore=leftovers)
    config = copied / name / "pool.toml"
    if address is not None:
        lines = config.read_text().splitlines(keepends=True)
        (number,) = (number for number, line in enumerate(lines) if line.startswith("socket = "))
        lines[number] = f'socket = "{address}"\n'
        config.write_text("".join(lines))
    return config


def example_manager(config: Path) -> RunningManager:
    """fcgimgr on an example's pool.toml, which keeps its control socket beside it."""
    return RunningManager(config, config.with_name("fcgimgr.sock"))


def running_example(name: str, directory: Path, address: str | None = None) -> RunningManager:
    """A shipped example, copied below `directory`, to be started by fcgimgr as its README says."""
    return example_manager(copy_example(name, directory, address))
