"""Who is to end is looked at by a helper of the manager, or by itself where only it may; and afterwards by nobody."""

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from fcgimgr.control.messages import NamesParams
from fcgimgr.linux import procfs, ptrace
from tests.integration.ports import connect, free_port
from tests.integration.running import RunningManager
from tests.integration.scenes import managing, ordinary_user, scene
from tests.integration.servers import need
from tests.rights import as_root
from tests.waiting import eventually

# Answers each connection when a word has come.
PATIENT = """\
import socket
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.recv(10)
        connection.sendall(b"here you are")
"""

# A machine on which nobody may trace a process but who has started it, and root.
YAMA = """\
mkdir "$0/kernel" && cp -r /proc/sys/kernel/random "$0/kernel" && mkdir "$0/kernel/yama"
echo 1 >"$0/kernel/yama/ptrace_scope" && mount --bind "$0/kernel" /proc/sys/kernel && exec "$@"
"""


def helpers(manager: RunningManager) -> list[int]:
    return [pid for pid in procfs.children(manager.pid) or () if procfs.command(pid) == "fcgimgr-helper"]


def is_looked_at(directory: Path, prefix: Sequence[str], *, by_itself: bool) -> None:
    (directory / "patient.py").write_text(PATIENT)
    address = f"127.0.0.1:{free_port()}"
    config = scene(
        directory, f'[pool.app]\nsocket = "{address}"\ncommand = "python patient.py"\ndirectory = "%(here)s"'
    )
    with managing(config, prefix=prefix) as manager, closing(connect(address)) as client:
        (pid,) = manager.pids("app")
        eventually(lambda: len(procfs.sockets(pid) or ()) > 1)
        manager.command("stop", NamesParams(names=("app",), wait=False))
        who = eventually(lambda: procfs.tracer(pid))
        assert (who == manager.pid) is by_itself
        assert (who in helpers(manager)) is not by_itself
        client.sendall(b"go")
        assert client.recv(100) == b"here you are"
        eventually(lambda: not os.path.exists(f"/proc/{pid}"))
        eventually(lambda: not helpers(manager))


@pytest.mark.skipif(not ptrace.AVAILABLE, reason="system calls can be seen on x86-64 only")
def test_a_helper_looks_and_is_there_only_while_it_does(tmp_path: Path) -> None:
    is_looked_at(tmp_path, [], by_itself=False)


@as_root
@pytest.mark.skipif(not ptrace.AVAILABLE, reason="system calls can be seen on x86-64 only")
def test_the_manager_itself_looks_where_nobody_else_may() -> None:
    need("unshare", "mount", "setpriv")
    with ordinary_user() as (directory, become):
        prefix = ["unshare", "--mount", "sh", "-ec", YAMA, str(directory), *become]
        is_looked_at(directory, prefix, by_itself=True)
