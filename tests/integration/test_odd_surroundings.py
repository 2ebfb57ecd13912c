"""What the manager is started in may be odd: it goes on, or it names what is missing and what to do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.ports import free_port
from tests.integration.scenes import Child, fails, managing, scene
from tests.integration.servers import need
from tests.rights import as_root
from tests.waiting import eventually

IDLE = """
[program.idle]
command = "sleep 1000"
startsecs = 0
"""

# Executes its words in an environment that holds a variable without a name, which no shell can set.
NAMELESS = """
import ctypes, os, sys
words = [os.fsencode(word) for word in sys.argv[1:]]
pairs = [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in os.environ.items()] + [b"=C:=x"]
array = lambda items: (ctypes.c_char_p * (len(items) + 1))(*items, None)
ctypes.CDLL(None).execve(words[0], array(words), array(pairs))
"""


def test_a_variable_without_a_name_keeps_nothing_from_starting_and_no_upgrade(tmp_path: Path) -> None:
    prefix = [sys.executable, "-S", "-E", "-c", NAMELESS]
    with managing(scene(tmp_path, IDLE), prefix=prefix) as manager:
        assert b"=C:=x" in Path(f"/proc/{manager.pid}/environ").read_bytes().split(b"\0")
        pids = manager.pids("idle")
        assert manager.command("upgrade", _nothing()).ok
        eventually(lambda: "goes on for" in manager.output())
        assert eventually(lambda: manager.pids("idle")) == pids


def _nothing() -> object:
    from fcgimgr.control.messages import UpgradeParams

    return UpgradeParams()


@as_root
def test_without_proc_sys_the_start_is_refused_with_its_name(tmp_path: Path) -> None:
    need("unshare")
    hide = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc/sys && exec "$@"', "sh"]
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    code, said = fails(scene(tmp_path, IDLE), prefix=hide)
    assert code == 1
    assert "/proc/sys/kernel/random/boot_id: no such file or directory" in said
    assert "ProcSubset=pid" in said


def test_who_runs_out_of_descriptors_is_told_which_limit_to_raise(tmp_path: Path) -> None:
    need("prlimit")
    tables = IDLE + "numprocs = 90\nstartretries = 0\n"
    config = scene(tmp_path, tables, manager="minfds = 128")
    with managing(config, prefix=["prlimit", "--nofile=128"], ready=False) as manager:
        eventually(lambda: manager.status().manager.state == "RUNNING")
        reasons = {process.reason for process in manager.pool("idle").processes if process.state == "FATAL"}
        assert reasons == {"the manager has no file descriptor left of 128; raise LimitNOFILE= (systemd) or ulimit -Hn"}


def test_a_socket_of_systemd_that_is_missing_is_told_with_those_that_came(tmp_path: Path) -> None:
    need("systemd-socket-activate")
    table = '[pool.app]\nsocket = "systemd:app"\ncommand = "sleep 1000"\n'
    activate = ["systemd-socket-activate", "--fdname=other", f"--listen=127.0.0.1:{free_port()}"]
    config = scene(tmp_path, table)
    started = subprocess.Popen(
        [*activate, sys.executable, "-m", "fcgimgr", "-c", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with started:
        import socket

        port = int(activate[-1].rpartition(":")[2])
        with eventually(lambda: socket.create_connection(("127.0.0.1", port))):
            assert started.stdout is not None
            assert (
                b"systemd:app: no socket of this name was passed to the manager (passed: other)"
                in started.stdout.read()
            )


@pytest.mark.parametrize("kind", ["program", "pool"])
def test_a_stopped_process_is_told_to_end_and_let_go_on(tmp_path: Path, kind: str) -> None:
    """As systemd does; it need not wait for SIGKILL."""
    script = "trap 'exit 0' TERM; echo waits; while :; do sleep 0.1; done"
    table = f'[{kind}.app]\ncommand = ["sh", "-c", "{script}"]\nstartsecs = 0\nstopwaitsecs = 60\n'
    table += f'socket = "127.0.0.1:{free_port()}"\nready = "startsecs"\n' if kind == "pool" else ""
    with managing(scene(tmp_path, table)) as manager:
        eventually(lambda: "waits" in manager.output())
        (pid,) = manager.pids("app")
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: Child(pid).stat[0] == "T")
        assert manager.halt("app").ok
        exit = manager.pool("app").processes[0].exit
        assert exit is not None
        assert exit.code == 0


def test_tail_begins_with_a_whole_character(tmp_path: Path) -> None:
    line = "가" * 3001
    command = f'command = ["sh", "-c", "printf {line}; exec sleep 1000"]'
    with managing(scene(tmp_path, f"[program.app]\n{command}\nstartsecs = 0\n")) as manager:
        from fcgimgr.control.client import Client
        from fcgimgr.control.messages import Tail, TailParams

        def tail() -> str:
            with Client(str(manager.control)) as client:
                return "".join(client.call("tail", TailParams(name="app", lines=1), answer=Tail).lines)

        assert set(eventually(tail)) == {"가"}
