"""Scenes for the tests of the manager itself: a directory with a pool.toml, small children, and a look at them.

What a child has got is read from /proc, where the kernel tells it: no report of the child's own can be as true.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.integration.ports import connect
from tests.integration.running import RunningManager
from tests.integration.servers import need
from tests.waiting import eventually

NOBODY = 65534
"""The uid and gid of the user `nobody` on every Linux."""

# Answers each connection with what it is and has: one line of JSON. The fds of its listeners are its arguments.
ANSWER = """\
import json, os, select, socket, sys
listeners = [socket.socket(fileno=int(fd)) for fd in sys.argv[1:] or ["0"]]
for listener in listeners:
    listener.setblocking(False)
while True:
    for listener in select.select(listeners, [], [])[0]:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        answer = {"pid": os.getpid(), "fd": listener.fileno(), "environ": dict(os.environ)}
        with connection:
            connection.sendall(json.dumps(answer).encode())
"""


def scene(directory: Path, tables: str, *, manager: str = "", name: str = "pool") -> Path:
    """A pool.toml in `directory` with these tables, and with the scripts beside it; its path.

    `manager`: more keys for [manager], whose control socket is beside the file.
    """
    config = directory / f"{name}.toml"
    config.write_text(f'[manager]\ncontrol = "%(here)s/{name}.control"\n{manager}\n{tables}')
    (directory / "answer.py").write_text(ANSWER)
    return config


def managing(config: Path, **more: Any) -> RunningManager:
    """The manager of a `scene`."""
    return RunningManager(config, config.with_suffix(".control"), **more)


def fails(config: Path, *, prefix: Sequence[str] = (), environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Start a manager that is to end by itself: its exit code, and all that it said."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "fcgimgr", "-c", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | (environment or {}),
        timeout=30,
    )
    return done.returncode, done.stdout.decode()


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that other users can enter; pytest's own are for one user alone."""
    directory = Path(tempfile.mkdtemp(prefix="fcgimgr-"))
    try:
        directory.chmod(0o755)
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def ordinary_user() -> Iterator[tuple[Path, list[str]]]:
    """A directory of an ordinary user, and the words before a command that make it run as that user.

    Root becomes `nobody`; an ordinary user is one already.
    """
    with open_directory() as directory:
        if os.geteuid() != 0:
            yield directory, []
            return
        need("setpriv")
        os.chown(directory, NOBODY, NOBODY)
        yield directory, ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def ask(address: str) -> Any:
    """What a child that runs answer.py says on a connection to this address."""
    with connect(address) as connection:
        return heard(connection)


def heard(connection: socket.socket) -> Any:
    """What a child that runs answer.py says on this connection."""
    said = b""
    while received := connection.recv(65536):
        said += received
    return json.loads(said)


def kill(*pids: int) -> None:
    """SIGKILL, to processes that may be gone already."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # That is what we wanted.


def is_alive(pid: int) -> bool:
    """Whether there is such a process that is not a zombie."""
    try:
        return Child(pid).stat[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def are_gone(*pids: int, within: float = 10.0) -> bool:
    """Wait until none of these processes is alive."""
    return eventually(lambda: not any(map(is_alive, pids)), within=within)


def _is_helper_at_work(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
        return command == "fcgimgr-helper" and Child(pid).stat[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Child:
    """A process as the kernel shows it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._proc = Path(f"/proc/{pid}")

    @property
    def fds(self) -> dict[int, str]:
        """Where each leads. Of a process that is at work some may be closed while we look."""
        found = {}
        for path in (self._proc / "fd").iterdir():
            with suppress(FileNotFoundError):
                found[int(path.name)] = os.readlink(path)
        return found

    def fd_flags(self, fd: int) -> int:
        """The flags of the open description, O_RDWR and so on."""
        fields = dict(line.split(":\t") for line in (self._proc / f"fdinfo/{fd}").read_text().splitlines()[:3])
        return int(fields["flags"], 8)

    @property
    def environ(self) -> dict[str, str]:
        words = (self._proc / "environ").read_bytes().decode().split("\0")
        return dict(word.partition("=")[::2] for word in words if word)

    @property
    def status(self) -> dict[str, str]:
        lines = (self._proc / "status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    @property
    def stat(self) -> list[str]:
        """The words of /proc/PID/stat from the state on: proc(5) counts it as the third."""
        return (self._proc / "stat").read_text().rpartition(")")[2].split()

    @property
    def parent(self) -> int:
        return int(self.stat[1])

    @property
    def group(self) -> int:
        return int(self.stat[2])

    @property
    def session(self) -> int:
        return int(self.stat[3])

    @property
    def nice(self) -> int:
        return int(self.stat[16])

    @property
    def memory(self) -> int:
        """Resident, in bytes."""
        return int(self.status["VmRSS"].split()[0]) * 1024

    @property
    def uids(self) -> set[int]:
        """Real, effective, saved and that for files."""
        return set(map(int, self.status["Uid"].split()))

    @property
    def gids(self) -> set[int]:
        return set(map(int, self.status["Gid"].split()))

    @property
    def groups(self) -> set[int]:
        return set(map(int, self.status["Groups"].split()))

    @property
    def directory(self) -> str:
        return os.readlink(self._proc / "cwd")

    @property
    def root(self) -> str:
        return os.readlink(self._proc / "root")

    @property
    def oom_score_adj(self) -> int:
        return int((self._proc / "oom_score_adj").read_text())

    @property
    def limits(self) -> dict[str, tuple[str, str]]:
        """Soft and hard, by the kernel's name: "Max open files"."""
        lines = (self._proc / "limits").read_text().splitlines()[1:]
        return {line[:26].strip(): (line[26:47].strip(), line[47:68].strip()) for line in lines}

    @property
    def children(self) -> list[int]:
        """But for a manager's helpers at work, which come and go (and have no name of their own for a moment)."""
        pids = map(int, (self._proc / f"task/{self.pid}/children").read_text().split())
        return [pid for pid in pids if not _is_helper_at_work(pid)]
