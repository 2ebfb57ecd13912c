"""A stop gives everybody the time promised and leaves nobody behind; what is not the manager's it does not touch."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.ports import free_port
from tests.integration.running import MARK, RunningManager, end_strays
from tests.integration.scenes import Child, are_gone, is_alive, kill, managing, ordinary_user, scene
from tests.integration.servers import need
from tests.rights import as_root
from tests.waiting import eventually

PYTHON = f"{sys.executable} -S -E"

# A command that does not accept, and is ready all the same.
SILENT = 'command = "sleep 1000"\nready = "startsecs"\nstartsecs = 0\n'

# Small programs by name; each says READY=1 when it can be signalled. What they want known they write into files.
PROGRAMS = """
import os, signal, socket, sys

def pid_into(name):
    with open(name, "w") as file:
        file.write(str(os.getpid()))

def ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    while True:
        signal.pause()

def ignore_term():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

def told():
    "Writes which signal it got, and ends."
    def end(number, frame):
        with open("signal", "a") as file:
            file.write(signal.Signals(number).name)
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGQUIT):
        signal.signal(number, end)
    ready()

def stubborn():
    ignore_term()
    if os.fork() == 0:
        pid_into("child")
        while True:
            signal.pause()
    while not os.path.exists("child"):
        pass
    ready()

def patient():
    "Ends, once told to, when a line comes."
    def end(number, frame):
        with open("let-go") as line:
            line.readline()
        os._exit(0)
    signal.signal(signal.SIGTERM, end)
    ready()

def family():
    "Dies of TERM at once, and has a stubborn child in its group and a stubborn grandchild in a session of its own."
    read, write = os.pipe()
    if os.fork() == 0:
        ignore_term()
        pid_into("child")
        os.write(write, b".")
        while True:
            signal.pause()
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            ignore_term()
            pid_into("escaped")
            os.write(write, b".")
            while True:
                signal.pause()
        os._exit(0)
    os.wait()
    for _ in range(2):
        os.read(read, 1)
    ready()

def master():
    "As php-cgi: dies of TERM at once, and its child, told as well, finishes what it has in hand."
    read, write = os.pipe()
    if os.fork() == 0:
        def finish(number, frame):
            with open("let-go") as line:
                line.readline()
            with open("finished", "w"):
                pass
            os._exit(0)
        signal.signal(signal.SIGTERM, finish)
        pid_into("child")
        os.write(write, b".")
        while True:
            signal.pause()
    os.read(read, 1)
    ready()

globals()[sys.argv[1]]()
"""


def program(name: str, play: str, *more: str, socket: str = "") -> str:
    """The table of a program, or with a socket a pool, that runs one of PROGRAMS."""
    keys = [f"[{'pool' if socket else 'program'}.{name}]", f'command = "{PYTHON} programs.py {play}"']
    keys += ['directory = "%(here)s"', 'ready = "notify"', *more]
    return "\n".join(keys + ([f'socket = "{socket}"'] if socket else [])) + "\n"


def stopping(directory: Path, *tables: str, manager: str = "") -> RunningManager:
    (directory / "programs.py").write_text(PROGRAMS)
    return managing(scene(directory, "".join(tables), manager=manager))


def pid_in(path: Path) -> int:
    return int(eventually(path.read_text))


# -- one process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1", "QUIT"])
def test_a_process_is_told_by_its_stopsignal(name: str, tmp_path: Path) -> None:
    with stopping(tmp_path, program("app", "told", f'stopsignal = "{name}"')) as manager:
        assert manager.halt("app").ok
        assert manager.pool("app").state == "STOPPED"
    assert (tmp_path / "signal").read_text() == f"SIG{name}"


def test_who_does_not_go_in_stopwaitsecs_is_killed_with_all_its_group(tmp_path: Path) -> None:
    with stopping(tmp_path, program("app", "stubborn", "stopwaitsecs = 0.3")) as manager:
        (pid,) = manager.pids("app")
        child = pid_in(tmp_path / "child")
        assert manager.halt("app").ok
        assert not is_alive(pid)
        assert not is_alive(child)
        exit = manager.pool("app").processes[0].exit
        assert exit is not None
        assert exit.signal == "SIGKILL"


def test_with_stopasgroup_the_whole_group_is_told_and_only_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "let-go")
    with stopping(tmp_path, program("app", "master", "stopasgroup = true", "stopwaitsecs = 60")) as manager:
        child = pid_in(tmp_path / "child")
        # Kept open, so that the child gets one line, and would wait for another if it were told again.
        with ThreadPoolExecutor(1) as threads, open(tmp_path / "let-go", "rb+", buffering=0) as let_go:
            let_go.write(b"go\n")
            assert threads.submit(manager.halt, "app").result(20).ok
        assert not is_alive(child)
    assert (tmp_path / "finished").exists()


# -- what a process leaves behind -------------------------------------------------------------------------------------


def test_a_stop_leaves_no_grandchild_not_even_one_that_left_the_session(tmp_path: Path) -> None:
    with stopping(tmp_path, program("app", "family", "stopwaitsecs = 0.3")) as manager:
        child, escaped = (pid_in(tmp_path / name) for name in ("child", "escaped"))
        assert Child(escaped).session == escaped
        assert Child(escaped).parent == manager.pid
        assert manager.halt("app").ok
        assert not is_alive(child)
        assert not is_alive(escaped)
        eventually(lambda: Child(manager.pid).children == [])


def test_a_shutdown_leaves_no_grandchild_not_even_one_that_left_the_session(tmp_path: Path) -> None:
    with stopping(tmp_path, program("app", "family", "stopwaitsecs = 0.3")) as manager:
        pids = [*manager.pids("app"), *(pid_in(tmp_path / name) for name in ("child", "escaped"))]
        manager.stop()
        assert not any(is_alive(pid) for pid in pids)


def test_a_restart_leaves_no_grandchild_of_the_process_before(tmp_path: Path) -> None:
    with stopping(tmp_path, program("app", "family", "stopwaitsecs = 0.3")) as manager:
        child, escaped = (pid_in(tmp_path / name) for name in ("child", "escaped"))
        assert manager.restart("app").ok
        assert not is_alive(child)
        assert not is_alive(escaped)
        assert is_alive(pid_in(tmp_path / "child"))
        assert is_alive(pid_in(tmp_path / "escaped"))


def test_the_group_of_a_process_that_died_by_itself_is_ended_too(tmp_path: Path) -> None:
    with stopping(tmp_path, program("app", "family", "stopwaitsecs = 0.3")) as manager:
        (pid,) = manager.pids("app")
        child = pid_in(tmp_path / "child")
        kill(pid)
        eventually(lambda: manager.pids("app") not in ([], [pid]))  # It is not waited for: the pool is to serve.
        are_gone(child)


def test_children_that_outlive_their_parent_get_their_time_and_hold_up_the_stop(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "let-go")
    address = f"127.0.0.1:{free_port()}"
    with stopping(tmp_path, program("app", "master", "stopwaitsecs = 60", socket=address)) as manager:
        (pid,) = manager.pids("app")
        child = pid_in(tmp_path / "child")
        with ThreadPoolExecutor(1) as threads:
            stop = threads.submit(manager.halt, "app")
            with open(tmp_path / "let-go", "w") as let_go:  # Opened when the child, told to end, has opened its end.
                eventually(lambda: not is_alive(pid))
                assert is_alive(child)
                assert manager.pool("app").state == "STOPPING"
                let_go.write("go\n")
            assert stop.result().ok
        assert (tmp_path / "finished").exists()
        assert not is_alive(child)
        # Had the child been left, it would hold the address still.
        assert manager.start("app").ok
        (tmp_path / "let-go").unlink()
        (tmp_path / "let-go").write_text("go\n")


# -- the manager ------------------------------------------------------------------------------------------------------


def test_a_shutdown_goes_in_reverse_and_waits_for_each_before_the_next(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "let-go")
    sleeper = 'command = "sleep 1000"\nstartsecs = 0\n'
    tables = [
        f"[program.database]\n{sleeper}",
        f"[program.proxy]\n{sleeper}\ndepends_on = ['database']\npriority = 5\n",
        program("consumer", "patient", "depends_on = ['proxy']", "stopwaitsecs = 60", "priority = 1"),
        f"[program.last]\n{sleeper}\npriority = 2000\n",
    ]
    with stopping(tmp_path, *tables) as manager:
        os.kill(manager.pid, signal.SIGTERM)
        with open(tmp_path / "let-go", "w") as let_go:  # Opened when the consumer has been told.
            states = {pool.name: pool.state for pool in manager.status().pools}
            expected = {"database": "RUNNING", "proxy": "RUNNING", "consumer": "STOPPING", "last": "STOPPED"}
            assert states == expected
            let_go.write("go\n")
        assert manager.wait() == 0
        stopped = [line.split()[2] for line in manager.output().splitlines() if ": STOPPED" in line]
        assert [name.partition(":")[0] for name in stopped] == ["last", "consumer", "proxy", "database"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_ends_all_at_once(second: signal.Signals, tmp_path: Path) -> None:
    with stopping(tmp_path, program("app", "stubborn", "stopwaitsecs = 1000")) as manager:
        os.kill(manager.pid, signal.SIGTERM)
        eventually(lambda: manager.status().manager.state == "STOPPING")
        eventually(lambda: manager.pool("app").processes[0].state == "STOPPING")
        os.kill(manager.pid, second)
        assert manager.wait() == 0


def test_shutdown_timeout_is_the_longest_that_a_shutdown_takes(tmp_path: Path) -> None:
    tables = [program("app", "stubborn", "stopwaitsecs = 1000"), program("family", "family", "stopwaitsecs = 1000")]
    for name in ("app", "family"):
        (tmp_path / name).mkdir()
    tables = [table.replace("programs.py", "../programs.py") for table in tables]
    tables = [table.replace("%(here)s", "%(here)s/%(program_name)s") for table in tables]
    with stopping(tmp_path, *tables, manager="shutdown_timeout = 0.3") as manager:
        os.kill(manager.pid, signal.SIGTERM)
        assert manager.wait() == 0
        assert "shutdown_timeout (0.3 s) is over" in manager.output()


def test_a_process_that_backs_off_does_not_hold_up_a_shutdown(tmp_path: Path) -> None:
    tables = '[program.app]\ncommand = "false"\nbackoff_initial = 1000\nbackoff_max = 1000\n'
    with managing(scene(tmp_path, tables), ready=False) as manager:
        eventually(lambda: manager.pool("app").processes[0].state == "BACKOFF")
        manager.stop(within=10)


def test_a_socket_file_is_removed_with_its_pool_but_never_another_in_its_place(tmp_path: Path) -> None:
    pools = "".join(
        f'[pool.{name}]\nsocket = "%(here)s/{name}"\n{SILENT}' for name in ("stopped", "ours", "theirs", "file", "gone")
    )
    with managing(scene(tmp_path, pools)) as manager, socket.socket(socket.AF_UNIX) as theirs:
        assert manager.halt("stopped").ok
        assert not (tmp_path / "stopped").exists()
        (tmp_path / "theirs").unlink()
        theirs.bind(str(tmp_path / "theirs"))
        (tmp_path / "file").unlink()
        (tmp_path / "file").write_text("precious")
        (tmp_path / "gone").unlink()
        manager.stop()
        left = {name for name in ("ours", "theirs", "file", "gone") if (tmp_path / name).exists()}
        assert left == {"theirs", "file"}
        assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "pool.control").exists()


def test_a_socket_file_that_cannot_be_removed_any_more_does_not_hold_up_the_stop() -> None:
    with ordinary_user() as (directory, prefix):
        sockets = directory / "sockets"
        sockets.mkdir()
        os.chown(sockets, directory.stat().st_uid, directory.stat().st_gid)
        listens = [f"{sockets}/one", f"{sockets}/other"]
        table = f'[pool.app]\nsocket = {listens}\nsocket_pass = "env"\n{SILENT}'
        with managing(scene(directory, table), prefix=prefix) as manager:
            if os.geteuid() == 0:
                os.chown(sockets, 0, 0)
            sockets.chmod(0o555)
            try:
                assert manager.halt("app").ok
                assert manager.pool("app").state == "STOPPED"
                assert "cannot remove" in manager.output()
                for path in listens:
                    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
                        client.connect(path)
                manager.stop()
            finally:
                sockets.chmod(0o755)


# -- as PID 1 ---------------------------------------------------------------------------------------------------------

# Starts a stranger that outlives its parent: it becomes a child of PID 1. Then a line comes, and the stranger dies.
STRANGER = """
import os, sys
read, write = os.pipe()
if os.fork():
    os.read(read, 1)  # Until the stranger has left the group, which is ended with its leader.
    os._exit(0)
os.setsid()
os.environ.clear()
with open("stranger", "w") as file:
    file.write("here")
os.write(write, b".")
with open("let-go") as line:
    line.readline()
"""

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@as_root
def test_as_pid_1_the_manager_reaps_strangers_and_its_end_is_the_end_of_all(tmp_path: Path) -> None:
    need("unshare")
    os.mkfifo(tmp_path / "let-go")
    (tmp_path / "stranger.py").write_text(STRANGER)
    (tmp_path / "programs.py").write_text(PROGRAMS)
    tables = program("app", "told") + program("family", "family", "stopwaitsecs = 0.3")
    tables += f"""
        [program.once]
        command = "{PYTHON} stranger.py"
        directory = "%(here)s"
        autorestart = false
        startsecs = 0
    """
    config = scene(tmp_path, tables, manager='loglevel = "debug"')
    log = tmp_path / "log"
    with log.open("wb") as output:
        unshare = subprocess.Popen(
            [
                *UNSHARE,
                sys.executable,
                "-m",
                "fcgimgr",
                "-c",
                str(config),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {MARK: tmp_path.name},
        )
    try:
        (pid,) = eventually(lambda: Child(unshare.pid).children)
        itself = Child(pid)
        assert itself.status["NSpid"].split()[-1] == "1"
        eventually(lambda: (tmp_path / "stranger").exists() and "app:app_00: RUNNING" in log.read_text())
        eventually(lambda: "family:family_00: RUNNING" in log.read_text())
        before = set(itself.children)
        with open(tmp_path / "let-go", "w") as let_go:
            let_go.write("go\n")
        eventually(lambda: "reaped a stranger" in log.read_text())
        assert not [child for child in itself.children if Child(child).stat[0] == "Z"]
        assert len(before) > len(itself.children)
        # The kernel drops a signal that PID 1 has no handler for: TERM must have one.
        os.kill(pid, signal.SIGTERM)
        assert unshare.wait(30) == 0, log.read_text()
        assert (tmp_path / "signal").read_text() == "SIGTERM"
    finally:
        unshare.kill()
        unshare.wait()
        end_strays(tmp_path.name)
        print(log.read_text())
