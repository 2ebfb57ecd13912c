"""Files that the manager stands on are removed while it runs: told once, put back, and nobody who waits is lost."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from fcgimgr.linux.procfs import socket_inodes
from tests.integration.commands import fcgimgr
from tests.integration.ports import connect, free_address
from tests.integration.running import RunningManager
from tests.integration.scenes import NOBODY, Child, heard, managing, open_directory, scene
from tests.integration.servers import need
from tests.integration.succession import PYTHON, killed, next_one, pool, reload, served_by, write
from tests.integration.test_adoption import state_of
from tests.integration.test_idle import rests
from tests.rights import as_root
from tests.waiting import eventually

IDLE = """
[program.idle]
command = "sleep 1000"
startsecs = 0
"""

# Says READY=1 on $NOTIFY_SOCKET, once.
READY = """
[program.says]
command = ["python3", "-S", "-E", "-c", '''
import os, socket, time
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
time.sleep(1000)
''']
ready = "notify"
ready_timeout = 10
"""


def unix(directory: Path) -> tuple[str, Path]:
    """The address of a Unix socket in a directory of its own, and its path."""
    (directory / "run").mkdir()
    path = directory / "run" / "app.sock"
    return f"unix:{path}", path


def serve_slowly(address: str) -> str:
    """The table of a pool that takes nobody before it is told so, by a file."""
    script = (
        "import os, socket, time\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
        "listener = socket.socket(fileno=0)\n"
        "while True: listener.accept()[0].sendall(b'{}')\n"
    )
    return f"""
        [pool.app]
        socket = "{address}"
        command = ["{PYTHON.split()[0]}", "-S", "-E", "-c", '''{script}''']
        directory = "%(here)s"
        ready = "startsecs"
        startsecs = 0
    """


def test_a_pools_socket_that_was_removed_is_put_back_and_who_waits_is_served(tmp_path: Path) -> None:
    address, path = unix(tmp_path)
    with managing(scene(tmp_path, serve_slowly(address))) as manager:
        pids = manager.pids("app")
        with connect(address) as waiting:
            for _ in range(3):
                path.unlink()
                eventually(path.is_socket)
            with connect(address) as later:
                (tmp_path / "go").touch()
                assert (heard(waiting), heard(later)) == ({}, {})
        assert manager.pids("app") == pids
    assert manager.output().count("its file was removed") == 1
    assert list(path.parent.iterdir()) == [], "and nothing is left at the end"


def test_a_socket_that_is_removed_before_it_is_watched_is_put_back(tmp_path: Path) -> None:
    """Its manager stands still when it is about to begin to watch it."""
    need("strace")
    address, path = unix(tmp_path)
    slowly = ["strace", "-D", "-qq", "-e", "inject=inotify_add_watch:delay_enter=300000", "-o", "/dev/null"]
    with managing(scene(tmp_path, serve_slowly(address)), prefix=slowly, ready=False) as manager:
        eventually(path.is_socket, every=0.001)
        path.unlink()
        eventually(path.is_socket)
        eventually(lambda: "its file was removed" in manager.output())


def test_a_server_that_removes_its_socket_at_its_end_takes_it_from_nobody(tmp_path: Path) -> None:
    """As gunicorn, and asyncio from Python 3.13 on, do."""
    address, _ = unix(tmp_path)
    (tmp_path / "tidy.py").write_text(
        "import os, signal, socket, sys\n"
        "listener = socket.socket(fileno=0)\n"
        "def end(*_):\n"
        "    os.unlink(listener.getsockname())\n"
        "    os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "while True: listener.accept()[0].sendall(b'%d' % os.getpid())\n"
    )
    table = pool(address, "numprocs = 2").replace("serve.py", "tidy.py")
    with managing(scene(tmp_path, table)) as manager:
        for act in (lambda: reload(manager), lambda: manager.restart("app:app_01"), lambda: manager.scale("app", "1")):
            assert act().ok
            assert eventually(lambda: served_by(address)) in manager.pids("app")
        assert reload(manager).ok
        assert eventually(lambda: served_by(address)) in manager.pids("app")


def test_a_socket_of_which_no_name_is_left_is_made_again_by_a_reload(tmp_path: Path) -> None:
    address, path = unix(tmp_path)
    with managing(write(tmp_path, pool(address))) as manager:
        before = manager.pids("app")
        remove_all_in(path.parent)
        assert eventually(lambda: served_by(address)) not in before
        eventually(lambda: manager.all_running())
        remove_all_in(path.parent)
        eventually(lambda: "once more; find out who removes it" in manager.output())
        assert not path.exists(), "whoever removes it would have it reloaded for ever"
        assert reload(manager).ok
        assert served_by(address) in manager.pids("app")


def test_a_directory_that_comes_back_gets_its_socket_by_a_reload(tmp_path: Path) -> None:
    address, path = unix(tmp_path)
    with managing(write(tmp_path, pool(address))) as manager:
        eventually(lambda: shutil.rmtree(path.parent) is None)  # what is put back meanwhile makes it fail
        eventually(lambda: "create it" in manager.output())
        refused = reload(manager)
        assert not refused.ok
        assert f"the directory {path.parent} does not exist" in str(refused.processes[0].detail)
        path.parent.mkdir()
        assert reload(manager).ok
        eventually(lambda: served_by(address) in manager.pids("app"))


def test_what_somebody_else_has_put_at_the_path_stays_there(tmp_path: Path) -> None:
    address, path = unix(tmp_path)
    with managing(write(tmp_path, pool(address))) as manager:
        (tmp_path / "other").write_text("other")
        (tmp_path / "other").rename(path)
        eventually(lambda: "is not ours any more" in manager.output())
        refused = reload(manager)
        assert "move that away" in str(refused.processes[0].detail)
        path.unlink()
        assert eventually(lambda: served_by(address)) in manager.pids("app")
    assert manager.output().count("no client can come in: ") == 1


def test_a_socket_that_was_removed_while_there_was_no_manager_is_put_back(tmp_path: Path) -> None:
    address, path = unix(tmp_path)
    with killed(write(tmp_path, pool(address))) as first:
        pids = first.pids("app")
        first.kill()
        path.unlink()
        with next_one(first) as second:
            assert served_by(address) in pids
            assert second.pids("app") == pids
        assert list(path.parent.iterdir()) == []


def test_the_control_socket_is_made_again_and_who_speaks_is_heard_to_the_end(tmp_path: Path) -> None:
    with managing(scene(tmp_path, IDLE)) as manager:
        with connect(f"unix:{manager.control}") as speaking:
            for _ in range(2):
                remove_all_in(tmp_path)
                eventually(manager.control.is_socket)
            speaking.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
            assert b'"pong":true' in speaking.recv(1000)
        pids = manager.pids("idle")
        assert manager.restart("idle").ok
        assert manager.pids("idle") != pids
        # Those that were closed are, when the last who came to them has had his time.
        eventually(lambda: listening(manager) == 1)


def test_a_command_tells_a_manager_without_its_socket_from_none(tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text(f'[manager]\ncontrol = "%(here)s/c.sock"\n{IDLE}')
    with RunningManager(config, tmp_path / "c.sock") as manager:
        os.kill(manager.pid, signal.SIGSTOP)
        try:
            remove_all_in(tmp_path)
            said = fcgimgr("-c", config, "status").fails(4)
            assert f"pid {manager.pid} runs without it, as somebody has removed it" in said
        finally:
            os.kill(manager.pid, signal.SIGCONT)
        eventually(manager.control.is_socket)
    assert "start one with" in fcgimgr("-c", config, "status").fails(4)


def listening(manager: RunningManager) -> int:
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    bound = {int(line.split()[6]) for line in lines if int(line.split()[3], 16) & 0x10000}
    return len(bound & (socket_inodes(manager.pid) or set()))


def test_the_state_that_was_removed_is_written_again(tmp_path: Path) -> None:
    with killed(write(tmp_path, pool(free_address("tcp", tmp_path)) + READY)) as first:
        for gone in (state_of(first.config).unlink, lambda: shutil.rmtree(state_of(first.config).parent)):
            gone()
            eventually(state_of(first.config).exists)
        assert "made again" in first.output()
        # Whoever is ready now says so to a socket that was made again, too.
        assert first.restart("says").ok
        pids = first.pids("app") + first.pids("says")
        refused = managing(first.config, mark=first.mark)
        refused.begin()
        assert refused.wait() == 1, "the lock is held again"
        first.kill()
        with next_one(first) as second:
            assert second.pids("app") + second.pids("says") == pids


def test_what_cannot_be_made_again_is_told_once_and_made_by_a_hangup_signal(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    config = tmp_path / "pool.toml"
    config.write_text(f'[manager]\ncontrol = "{run}/sub/c.sock"\n{IDLE}')
    (run / "sub").mkdir(mode=0o700)
    manager = RunningManager(config, run / "sub" / "c.sock")
    manager.log = tmp_path / "log"
    with manager:
        shutil.rmtree(run)
        eventually(lambda: "removed, and cannot be made again" in manager.output())
        run.mkdir()
        os.kill(manager.pid, signal.SIGHUP)
        eventually(manager.control.is_socket)
        assert manager.pids("idle")
        assert manager.output().count("cannot be made again") == 1


@as_root
def test_a_directory_that_is_of_another_file_system_by_now_gets_a_new_control_socket(tmp_path: Path) -> None:
    """As $XDG_RUNTIME_DIR is when its user has logged out and in again."""
    (run := tmp_path / "run").mkdir()
    config = tmp_path / "pool.toml"
    config.write_text(f'[manager]\ncontrol = "{run}/c.sock"\n{IDLE}')
    mount = ["mount", "-t", "tmpfs", "-o", "mode=0700", "none", run]
    subprocess.run(mount, check=True)
    try:
        manager = RunningManager(config, run / "c.sock")
        manager.log = tmp_path / "log"
        with manager:
            pids = manager.pids("idle")
            subprocess.run(["umount", "--lazy", run], check=True)
            subprocess.run(mount, check=True)
            os.kill(manager.pid, signal.SIGHUP)
            eventually(manager.control.is_socket)
            assert manager.pids("idle") == pids
            assert "cannot be made again" not in manager.output()
    finally:
        subprocess.run(["umount", "--lazy", run], check=True)


@as_root
def test_a_directory_that_was_given_to_another_user_is_told_of_and_nothing_is_said_to_be_removed() -> None:
    with open_directory() as directory, managing(scene(directory, IDLE)) as manager:
        os.chown(directory, NOBODY, NOBODY)
        os.kill(manager.pid, signal.SIGHUP)  # nobody is woken by that
        eventually(lambda: "not safe any more where they are" in manager.output())
        assert f"manager.control: the directory {directory} belongs to" in manager.output()
        assert "removed" not in manager.output()
        shutil.rmtree(state_of(manager.config).parent)
        eventually(lambda: "removed, and cannot be made again" in manager.output())
        os.chown(directory, 0, 0)
        os.kill(manager.pid, signal.SIGHUP)
        eventually(state_of(manager.config).exists)
        assert manager.restart("idle").ok


def test_files_that_come_and_go_beside_a_socket_wake_nobody(tmp_path: Path) -> None:
    address, path = unix(tmp_path)
    with managing(write(tmp_path, pool(address) + IDLE)) as manager:
        itself = Child(manager.pid)
        eventually(lambda: rests(itself, 1.0), within=30)
        before = itself.status["voluntary_ctxt_switches"]
        for number in range(100):
            (path.parent / f"{number}").touch()
            (path.parent / f"{number}").unlink()
            (manager.control.parent / f"{number}").touch()
            (manager.control.parent / f"{number}").unlink()
        assert rests(itself, 0.2)
        assert itself.status["voluntary_ctxt_switches"] == before


@pytest.mark.parametrize("length", [103, 104, 107])
def test_a_socket_with_the_longest_path_is_reloaded_and_taken_over(tmp_path: Path, length: int) -> None:
    path = Path("/tmp") / f"fcgimgr-{os.getpid()}-{length}-".ljust(length - len("/tmp/") - len("/s"), "x") / "s"
    path.parent.mkdir()
    try:
        assert len(str(path)) == length
        address = f"unix:{path}"
        ready = 'ready = "accepts"'
        with killed(write(tmp_path, pool(address, ready))) as first:
            for _ in range(2):
                assert reload(first).ok
                assert served_by(address) in first.pids("app")
            pids = first.pids("app")
            first.kill()
            with next_one(first) as second:
                assert second.pids("app") == pids
                assert reload(second).ok
                assert served_by(address) in second.pids("app")
    finally:
        shutil.rmtree(path.parent)


def remove_all_in(directory: Path) -> None:
    """Remove every socket in it, under all of its names: the hidden ones first, by which it would be put back."""
    for path in sorted(directory.iterdir()):
        if path.is_socket():
            path.unlink()
