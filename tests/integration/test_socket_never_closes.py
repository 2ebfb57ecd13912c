"""The socket never closes while its pool is meant to serve: not while its processes die, back off and come back.

A prober connects every 5 ms, from before the first death until after the last, and must be let in every single time.
"""

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.ports import connect, free_address
from tests.integration.running import RunningManager
from tests.waiting import eventually

PROBE_EVERY = 0.005  # seconds
DEATHS = 16  # More than the pool may have at once: the last ones find it in its back-off.

# Answers each connection with its pid. No imports beyond these: it must come back quickly after each death.
WORKER = """\
import os, socket
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    try:
        connection.sendall(b"%d" % os.getpid())
    except OSError:
        pass  # The prober did not wait for the answer.
    connection.close()
"""

CONFIG = """\
[manager]
control = "%(here)s/fcgimgr.sock"

[pool.app]
socket = "{address}"
command = "python -S -E worker.py"
directory = "%(here)s"
numprocs = 4
startsecs = 0
startretries = -1
backoff_initial = 0.05
backoff_max = 0.5
"""


@dataclass
class Prober:
    """Connects to `address` every PROBE_EVERY seconds until it is told to end."""

    address: str
    probes: int = 0
    refused: list[str] = field(default_factory=list)

    def __enter__(self) -> "Prober":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._probe)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._ended.set()
        self._thread.join()

    def _probe(self) -> None:
        while not self._ended.wait(PROBE_EVERY):
            self.probes += 1
            try:
                connect(self.address).close()
            except OSError as error:
                self.refused.append(f"probe {self.probes}: {error!r}")


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_no_connect_is_refused_while_all_processes_are_killed_again_and_again(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    (tmp_path / "worker.py").write_text(WORKER)
    config = tmp_path / "pool.toml"
    config.write_text(CONFIG.format(address=address))

    with RunningManager(config, tmp_path / "fcgimgr.sock") as manager:
        killed: set[int] = set()

        def enough_were_killed() -> bool:
            for pid in manager.pids("app"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            return len(killed) >= DEATHS

        with Prober(address) as prober:
            eventually(enough_were_killed, within=60)
            eventually(manager.all_running, within=30)
        assert prober.refused == []
        assert prober.probes > DEATHS

        with connect(address) as connection:
            assert int(connection.recv(64)) in manager.pids("app")
