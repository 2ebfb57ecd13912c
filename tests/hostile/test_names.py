"""A connection to somebody else that calls itself by the name of the pool's socket is not taken for one of the pool's.

What the manager sends on a connection in a process's place goes out with the manager's rights (SCM_CREDENTIALS).
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fcgimgr.manager.looking.kept import Kept
from tests.integration.servers import need
from tests.rights import as_root

# A connection of the pool, accepted; or one to a service, with the pool's path for its name.
ACCEPTS = "held, _ = socket.socket(fileno=0).accept()"
FORGES = "held = socket.socket(socket.AF_UNIX); held.bind(sys.argv[1]); held.connect(sys.argv[2])"
HOLDS = """
import os, signal, socket, sys
{}
print(held.fileno(), os.fstat(held.fileno()).st_ino, flush=True)
signal.pause()
"""


def is_ours(words: Sequence[str | Path], listener: socket.socket) -> bool:
    """Whether the connection that this process holds is taken for one of the listener."""
    with subprocess.Popen(words, stdin=listener, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        fd, inode = map(int, process.stdout.readline().split())
        listeners = [os.fstat(listener.fileno()).st_ino]
        kept = Kept(process.pid, [listener.getsockname()], listeners, lambda: 0.0)
        found = kept._is_ours(fd, inode)
        kept.close()
        process.kill()
    return found


@as_root
@pytest.mark.parametrize("where", ["path", "abstract"])
def test_a_connection_that_bears_the_name_of_the_pools_socket_is_not_the_pools(where: str, tmp_path: Path) -> None:
    need("unshare")
    (tmp_path / "pool").mkdir()
    path = str(tmp_path / "pool" / "app.sock") if where == "path" else f"\0{tmp_path}"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as service:
        listener.bind(path)
        listener.listen()
        service.bind(str(tmp_path / "service"))
        service.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            assert is_ours([sys.executable, "-c", HOLDS.format(ACCEPTS)], listener)
        forge = FORGES if where == "path" else FORGES.replace("sys.argv[1]", "chr(0) + sys.argv[1]")
        inside = f'mount -t tmpfs none {tmp_path}/pool && exec "$@"'
        words = ["unshare", "--mount", "--net", "sh", "-c", inside, "sh", sys.executable, "-c", HOLDS.format(forge)]
        assert not is_ours([*words, path.lstrip("\0"), tmp_path / "service"], listener)
