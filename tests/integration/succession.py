"""Scenes for the tests of managers that follow one another: a pool that serves, clients that never stop asking."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from fcgimgr.control.client import Client
from fcgimgr.control.messages import ReloadParams, Verdict
from tests.integration.ports import connect
from tests.integration.running import RunningManager, end_strays
from tests.integration.scenes import managing, scene
from tests.waiting import eventually

PYTHON = f"{sys.executable} -S -E"

# Answers each connection with its pid, and dies of SIGTERM at once. `undumpable`: it shows nothing to its own user.
SERVE = """
import os, socket, sys, time
words = sys.argv[1:]
if "undumpable" in words:
    import ctypes
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
listener = socket.socket(fileno=0)
print("serving", os.getpid(), flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"%d" % os.getpid())
"""


def pool(address: str, *more: str, words: str = "") -> str:
    """The table of a pool `app` that runs SERVE."""
    keys = [f'socket = "{address}"', f'command = "{PYTHON} %(here)s/serve.py {words}"', "startsecs = 0.1"]
    return "\n".join(["[pool.app]", *keys, *more]) + "\n"


def write(directory: Path, tables: str, *, manager: str = "") -> Path:
    """A scene with SERVE beside it."""
    (directory / "serve.py").write_text(SERVE)
    return scene(directory, tables, manager=manager)


def speaking(directory: Path, program: str) -> Path:
    """A scene with this Python program, which is to write to out.log what is written to the FIFO `say`."""
    (directory / "speak.py").write_text(program)
    os.mkfifo(directory / "say")
    tables = f"""
        [program.app]
        command = "{PYTHON} speak.py"
        directory = "%(here)s"
        stdout_logfile = "%(here)s/out.log"
        startsecs = 0
    """
    return scene(directory, tables)


@contextlib.contextmanager
def killed(config: Path, **more: Any) -> Iterator[RunningManager]:
    """The manager of a `scene`, to be killed by the test."""
    with to_be_killed(managing(config, **more)) as manager:
        yield manager


@contextlib.contextmanager
def to_be_killed(manager: RunningManager) -> Iterator[RunningManager]:
    """It is running on entry; nothing of it is left on exit."""
    manager.__enter__()
    try:
        yield manager
    finally:
        manager.kill()
        end_strays(manager.mark)


def next_one(before: RunningManager, **more: Any) -> RunningManager:
    """The manager that follows one that was killed."""
    return managing(before.config, mark=before.mark, **more)


def reload(manager: RunningManager, **more: Any) -> Verdict:
    with Client(str(manager.control)) as client:
        return client.call("reload", ReloadParams(names=("app",), **more), answer=Verdict, patient=True)


def served_by(address: str) -> int:
    """The pid of the process that answers."""
    with connect(address) as connection:
        return int(connection.recv(100))


class Load:
    """Clients that ask without pause, each after its answer; every request that got none is counted."""

    def __init__(self, address: str, clients: int = 2) -> None:
        self.answers: list[int] = []
        self.failures: list[str] = []
        self._address = address
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self._end.is_set():
            try:
                self.answers.append(served_by(self._address))
            except (OSError, ValueError) as error:
                self.failures.append(repr(error))

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        eventually(lambda: self.answers)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
