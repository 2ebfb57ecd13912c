"""An idle manager sleeps: not a single system call, however long one looks."""

import subprocess
import sys
import time
from pathlib import Path

from tests.integration.ports import free_port
from tests.integration.scenes import Child, managing, scene
from tests.integration.servers import need
from tests.waiting import eventually

LOOK = 5.0
"""Seconds. A time and not a condition, for once: that nothing happens is what is promised."""


def test_an_idle_manager_makes_no_system_call(tmp_path: Path) -> None:
    need("strace")
    tables = f"""
        [pool.tcp]
        socket = "127.0.0.1:{free_port()}"
        command = "{sys.executable} -S -E %(here)s/answer.py"
        numprocs = 3
        [pool.unix]
        socket = "%(here)s/unix"
        command = "sleep 1000"
        ready = "startsecs"
        [pool.wsgi]
        socket = "%(here)s/wsgi"
        wsgi = "worker_app:application"
        pythonpath = ["{Path(__file__).parent}"]
        ready = "notify"
        [program.app]
        command = "sleep 1000"
        stdout_logfile = "%(here)s/app.log"
        log_timestamps = "iso"
        [program.done]
        command = "true"
        startsecs = 0
        autorestart = false
        [program.bad]
        command = "false"
        startretries = 0
    """
    with managing(scene(tmp_path, tables), ready=False) as manager:
        eventually(lambda: manager.status().manager.state == "RUNNING")
        eventually(lambda: manager.pool("done").processes[0].state == "EXITED")
        itself = Child(manager.pid)
        assert [int(path.name) for path in Path(f"/proc/{manager.pid}/task").iterdir()] == [manager.pid]

        # Our last question's connection has to be gone before it is idle, and nobody may be young any more.
        eventually(lambda: rests(itself, 1.0), within=30)
        assert rests(itself, LOOK)

        assert trace(manager.pid, tmp_path / "trace", LOOK) == ""


def rests(process: Child, seconds: float) -> bool:
    """Whether it sleeps all that time."""
    before = switches(process)
    time.sleep(seconds)
    return process.stat[0] == "S" and switches(process) == before


def switches(process: Child) -> tuple[str, str]:
    """How often it has gone to sleep, and how often it was made to."""
    status = process.status
    return status["voluntary_ctxt_switches"], status["nonvoluntary_ctxt_switches"]


def trace(pid: int, path: Path, seconds: float) -> str:
    """The system calls of a process and its threads that begin or end within some seconds."""
    strace = subprocess.Popen(
        ["strace", "-f", "-o", str(path), "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert strace.stderr is not None
    try:
        assert b"attached" in strace.stderr.readline()
        # The first line is the call in which it sleeps, begun before we came and shown as soon as we have.
        eventually(lambda: path.read_text().count("epoll_") == 1)
        time.sleep(seconds)
    finally:
        strace.terminate()
        strace.wait()
        strace.stderr.close()
    calls = path.read_text().splitlines()
    return "\n".join(calls[1:] if "<detached ...>" in calls[0] else calls)
