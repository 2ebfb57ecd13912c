"""A manager that runs as root, a pool whose worker attacks it, and another pool, which is to notice nothing of that."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from fcgimgr.control.client import Client
from fcgimgr.control.messages import NoParams, Pong
from tests.integration.ports import free_port
from tests.integration.running import RunningManager
from tests.integration.scenes import NOBODY, managing, open_directory, scene
from tests.integration.servers import need
from tests.older_kernel import OLDER_KERNEL
from tests.waiting import eventually

ATTACKS = Path(__file__).parent / "attacks"

GOOD_ONES = 20
"""Workers of the other pool: the oldest one is killed each time, and none so young that this would be a crash loop."""

GOOD = """\
import socket
listener = socket.socket(fileno=0)
while True:
    listener.accept()[0].close()
"""


@dataclass(frozen=True)
class Attack:
    """words: the command of the worker, whose files are in `attacks`; what ends in .c is compiled. keys: more of the
    pool's table. fuse: it is given the path of a file that nobody can read; closed: nor close. unix: its pool has a
    Unix socket. older: the kernel is an older one (tests/older_kernel.py)."""

    name: str
    words: Sequence[str]
    keys: str = ""
    fuse: bool = False
    unix: bool = False
    older: bool = False
    closed: bool = False


class Stage:
    """Both pools, at work; what the other one and whoever commands the manager notice of the attack."""

    def __init__(self, manager: RunningManager) -> None:
        self.manager = manager
        self.fuse: Fuse | None = None

    def evil(self) -> list[int]:
        """The pids of the workers that attack."""
        return [process.pid for process in self.manager.pool("evil").processes if process.pid is not None]

    def ping(self) -> float:
        """Seconds until the manager has answered."""
        begun = time.monotonic()
        with Client(str(self.manager.control)) as client:
            client.call("ping", NoParams(), answer=Pong)
        return time.monotonic() - begun

    def respawn(self) -> float:
        """Kill the oldest worker of the other pool; the seconds until there is another in its place."""
        before = list(children(self.manager.pid, "good.py"))
        begun = time.monotonic()
        os.kill(before[0], signal.SIGKILL)
        while not set(children(self.manager.pid, "good.py")) - set(before):
            assert time.monotonic() - begun < 10, "the killed worker of the other pool is not replaced"
            time.sleep(0.0005)
        return time.monotonic() - begun

    def cpu(self) -> float:
        """Seconds of the processor that the manager itself has used."""
        fields = Path(f"/proc/{self.manager.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int, script: str) -> Iterator[int]:
    """The children of a process that execute this script, the oldest first."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            # Some of those that attack show nothing of their memory; and their names are others.
            name = Path(f"/proc/{child}/comm").read_text()
            if name.startswith("python") and script in Path(f"/proc/{child}/cmdline").read_text():
                yield int(child)
        except OSError:
            continue


@contextmanager
def staged(attack: Attack) -> Iterator[Stage]:
    """The stage of this attack."""
    if os.geteuid() != 0:
        pytest.skip("only root runs workers as another user")
    need("gcc")
    with (
        open_directory() as directory,
        Fuse(directory, closed=attack.closed) if attack.fuse else open_directory() as extra,
    ):
        (directory / "good.py").write_text(GOOD)
        shutil.copy(ATTACKS / "lingering.py", directory)  # of some of them
        words = [command(word, directory) for word in attack.words]
        if isinstance(extra, Fuse):
            words.insert(1, str(extra.file))
        address = str(directory / "evil.sock") if attack.unix else f"127.0.0.1:{free_port()}"
        config = scene(
            directory,
            f'[defaults]\nuser = "nobody"\ndirectory = "%(here)s"\n'
            f"[pool.evil]\nsocket = '{address}'\ncommand = {words}\n{attack.keys}\n"
            f"[pool.good]\nsocket = '127.0.0.1:{free_port()}'\ncommand = ['{sys.executable}', '-S', '-E', 'good.py']\n"
            f"numprocs = {GOOD_ONES}\n",
        )
        manager = managing(config, ready=False, prefix=OLDER_KERNEL if attack.older else ())
        manager.begin()
        try:
            eventually(lambda: manager.is_up() and len(manager.pids("good")) == GOOD_ONES)
            stage = Stage(manager)
            stage.fuse = extra if isinstance(extra, Fuse) else None
            yield stage
        except BaseException:
            print(manager.output())
            raise
        finally:
            if isinstance(extra, Fuse):
                extra.end()  # before that, who waits for it cannot be killed
            manager.end_by_force()


def command(word: str, directory: Path) -> str:
    """What a word of an attack's command is in this directory."""
    if word == "python":
        return sys.executable
    if word.endswith(".py"):
        (directory / word).write_text((ATTACKS / word).read_text())
        return str(directory / word)
    if word.endswith(".c"):
        program = str(directory / word.removesuffix(".c"))
        subprocess.run(["gcc", "-O1", "-pthread", "-o", program, str(ATTACKS / word)], check=True)
        return program
    return word


class Fuse:
    """A file system of the user `nobody`, with one file in it that nobody can read: as fusermount3 would mount it."""

    def __init__(self, directory: Path, *, closed: bool = False) -> None:
        self._words = ["closed"] if closed else []
        if not os.path.exists("/dev/fuse"):
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("this kernel has no FUSE: no /dev/fuse")
        self._at = directory / "fuse"
        self._at.mkdir()
        os.chown(self._at, NOBODY, NOBODY)
        self.file = self._at / "page"

    def __enter__(self) -> Self:
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id={NOBODY},group_id={NOBODY}"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"hostile", bytes(self._at), b"fuse", 2 | 4, options.encode()):  # nosuid, nodev
            raise OSError(ctypes.get_errno(), "mount")
        server = [sys.executable, str(ATTACKS / "fuse_server.py"), *self._words]
        self._server = subprocess.Popen(server, stdin=device, user=NOBODY, group=NOBODY, extra_groups=[])
        os.close(device)
        return self

    def end(self) -> None:
        """Whoever waits for its server goes on, with an error."""
        self._server.kill()
        self._server.wait()

    def __exit__(self, *_: object) -> None:
        self.end()
        ctypes.CDLL(None).umount2(bytes(self._at), 2)  # MNT_DETACH


RECYCLED = 'ready = "startsecs"\nstartsecs = 0.2\nstopwaitsecs = 2\nautorestart = false'
PRINTS = 'ready = "startsecs"\nstartsecs = 0.2\nstopwaitsecs = 0.2'
CLOSES = 'ready = "startsecs"\nstartsecs = 0.2\nstopwaitsecs = 1\nautorestart = false\nstdout_logfile = "-"'
ATTACKS_KNOWN = [
    Attack("none", ["sleep", "1000"], RECYCLED),
    Attack("exec that waits", ["exec_that_waits.c"], RECYCLED),
    Attack("exec race", ["exec_race.c"], RECYCLED),
    Attack("vfork", ["vfork_threads.c"], f"{RECYCLED}\nnumprocs = 20"),
    Attack("page, polled", ["fuse_page.c", "poll"], fuse=True),
    Attack("page, sent", ["fuse_page.c", "send"], RECYCLED, fuse=True),
    Attack("page, printed", ["fuse_page.c", "print"], PRINTS, fuse=True),
    Attack("memory, locked", ["fuse_page.c", "lock"], RECYCLED, fuse=True),
    Attack("exec, closing", ["exec_that_closes.c", "itself", "connected"], CLOSES, fuse=True, closed=True),
    Attack("exec, left", ["exec_that_closes.c", "child"], CLOSES, fuse=True, closed=True),
    Attack("descriptors", ["python", "many_descriptors.py"], RECYCLED),
    Attack("notify flood", ["python", "notify_flood.py"], "startsecs = 0"),
    Attack("lingering rights", ["python", "lingering_rights.py"], "startsecs = 0"),
    Attack("lingering answers", ["python", "lingering_answers.py"], 'ready = "ping"', unix=True, older=True),
]
