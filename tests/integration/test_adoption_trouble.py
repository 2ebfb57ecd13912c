"""A manager that follows a killed one where not all is as it was left: each is right, none is fatal."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands import lines_of
from tests.integration.ports import connect, free_address, free_port
from tests.integration.running import MARK, end_strays
from tests.integration.scenes import Child, are_gone, fails, is_alive, kill, managing, open_directory, scene
from tests.integration.servers import need
from tests.integration.succession import PYTHON, SERVE, Load, killed, next_one, pool, reload, served_by, write
from tests.integration.test_adoption import state_of
from tests.rights import as_root
from tests.waiting import eventually

# As SERVE, on all the listeners that it is given by number.
SERVE_ALL = """
import os, select, socket
listeners = [socket.socket(fileno=3 + number) for number in range(int(os.environ["LISTEN_FDS"]))]
for listener in listeners:
    listener.setblocking(False)
while True:
    for listener in select.select(listeners, [], [])[0]:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        with connection:
            connection.sendall(b"%d" % os.getpid())
"""


# -- kinds of sockets -------------------------------------------------------------------------------------------------


def test_a_pool_with_several_sockets_is_taken_over_whole(tmp_path: Path) -> None:
    (tmp_path / "all.py").write_text(SERVE_ALL)
    addresses = [free_address(kind, tmp_path / name) for kind, name in (("unix", "1"), ("tcp", ""), ("unix", "2"))]
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    tables = pool("', '".join(addresses), 'socket_pass = "systemd"').replace("serve.py", "all.py")
    tables = tables.replace('socket = "', "socket = ['").replace('"\ncommand', "']\ncommand")
    with killed(write(tmp_path, tables)) as first:
        (pid,) = first.pids("app")
        first.kill()
        assert [served_by(address) for address in addresses] == [pid] * 3
        with next_one(first) as second:
            assert second.pids("app") == [pid]
            assert [served_by(address) for address in addresses] == [pid] * 3
            assert reload(second).ok
            are_gone(pid)
            assert [served_by(address) for address in addresses] == second.pids("app") * 3
        for name in ("1", "2"):
            assert list((tmp_path / name).iterdir()) == []


def test_an_abstract_socket_is_taken_over(tmp_path: Path) -> None:
    name = f"fcgimgr-test-{os.getpid()}-{free_port()}"
    with killed(write(tmp_path, pool(f"unix:@{name}", "numprocs = 2"))) as first:
        pids = first.pids("app")
        first.kill()
        with next_one(first) as second:
            assert second.pids("app") == pids
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"\0{name}")
                assert int(client.recv(100)) in pids


@pytest.mark.parametrize("again", [True, False])
def test_a_socket_that_was_passed_is_taken_over_whether_it_is_passed_again_or_not(again: bool, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        address, fd = f"127.0.0.1:{given.getsockname()[1]}", given.fileno()
        with killed(write(tmp_path, pool(f"fd:{fd}")), inherit=[fd]) as first:
            pids = first.pids("app")
            first.kill()
            with next_one(first, inherit=[fd] if again else []) as second:
                assert second.pids("app") == pids
                assert served_by(address) in pids
                kill(*pids)
                eventually(lambda: second.pids("app") not in ([], pids))
                assert served_by(address) in second.pids("app")
                assert second.halt("app").ok
                assert second.start("app").ok == again  # To open it anew takes that it was passed.


# -- listeners and processes that are gone ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_a_listener_that_went_from_amid_its_group_leaves_the_others_serving(which: int, tmp_path: Path) -> None:
    """Two generations on one address, and all of one die without a manager: the kernel moves the other's place."""
    address = free_address("tcp", tmp_path)
    with killed(write(tmp_path, pool(address))) as first:
        (old,) = first.pids("app")
        assert reload(first, canary=50.0).ok
        eventually(lambda: len(first.pids("app")) == 2)
        (new,) = set(first.pids("app")) - {old}
        first.kill()
        dead = (old, new)[which]
        kill(dead)
        are_gone(dead)
        with next_one(first, ready=False) as second:
            eventually(lambda: second.all_running() and len(second.pids("app")) == 1)
            assert {served_by(address) for _ in range(50)} == set(second.pids("app"))
            assert reload(second).ok
            eventually(lambda: len(second.pids("app")) == 1)
            assert {served_by(address) for _ in range(50)} == set(second.pids("app"))


def test_who_dies_right_after_the_manager_does_not_confuse_the_next(tmp_path: Path) -> None:
    """Each start meets its process at another moment of its death."""
    address = free_address("tcp", tmp_path)
    with killed(write(tmp_path, pool(address))) as first:
        manager = first
        for moment in range(6):
            (pid,) = manager.pids("app")
            manager.kill()
            # In the midst of the start, give or take: it takes about 0.2 s.
            delayed = subprocess.Popen(["sh", "-c", f"sleep 0.{moment}; kill -9 {pid}"], env={})
            manager = next_one(manager, ready=False).__enter__()
            delayed.wait()
            eventually(lambda manager=manager, pid=pid: manager.pids("app") not in ([], [pid]))
            assert served_by(address) in manager.pids("app")
        manager.stop()


def test_a_process_that_is_a_child_by_now_dies_once(tmp_path: Path) -> None:
    """The next manager is executed by whoever was the parent of the dead one, and adopted its children."""
    config = write(tmp_path, pool(free_address("tcp", tmp_path), "numprocs = 2", "stopwaitsecs = 1"))
    parent = f"""
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
words = [sys.executable, "-m", "fcgimgr", "-c", {str(config)!r}]
first = subprocess.Popen(words)
with open("go-on") as line:
    line.readline()
first.kill()
first.wait()
os.execv(words[0], words)
"""
    (tmp_path / "parent.py").write_text(parent)
    os.mkfifo(tmp_path / "go-on")
    prefix = ["env", "-C", str(tmp_path), sys.executable, "parent.py"]
    with managing(config, prefix=prefix) as manager:
        pids = manager.pids("app")
        (tmp_path / "go-on").write_text("now\n")
        eventually(lambda: manager.output().count(" info up\n") == 2)
        assert manager.pids("app") == pids
        assert set(pids) <= set(Child(manager.pid).children)
        assert manager.halt("app:app_00").ok
        assert manager.start("app:app_00").ok
        kill(pids[1])
        eventually(lambda: len(set(manager.pids("app")) - set(pids)) == 2)
        assert [process.restarts for process in manager.pool("app").processes] == [1, 1]
        assert "internal error" not in manager.output()
        assert "only its parent was told" not in manager.output()
        eventually(lambda: sorted(manager.pids("app")) == sorted(Child(manager.pid).children))


# -- what may not be looked at ----------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_root_without_the_right_to_trace_loses_nothing_either(transport: str, tmp_path: Path) -> None:
    """A container's root (no CAP_SYS_PTRACE), and processes of another user."""
    need("setpriv")
    prefix = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    with open_directory() as directory:
        address = free_address(transport, directory)
        config = write(directory, pool(address, "numprocs = 2", 'user = "nobody"'))
        config.write_text(config.read_text().replace(PYTHON, "/usr/bin/python3 -S -E"))
        with killed(config, prefix=prefix) as first:
            old = first.pids("app")
            with Load(address) as load:
                first.kill()
                with next_one(first, prefix=prefix, ready=False) as second:
                    eventually(lambda: second.pool("app").generation == 2, within=30)
                    eventually(lambda: second.all_running() and are_gone(*old), within=30)
                    load.stop()
            assert load.failures == []


# -- logs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", ["lines", "blocks"])
def test_every_line_arrives_once_and_whole_through_many_managers(tmp_path: Path, writes: str) -> None:
    """Also what filled the pipe while there was none, and made the process wait, and what a manager had in its hands
    when it was killed: of lines, and of blocks that end amid a line, as C's and Python's own buffers write them."""
    block = 1 if writes == "lines" else 8192
    (tmp_path / "count.py").write_text(
        "import os\nnumber, buffer = 0, b''\nwhile not os.path.exists('enough'):\n"
        "    buffer += b'%d %s\\n' % (number, b'x' * (number % 200))\n    number += 1\n"
        f"    while len(buffer) >= {block}:\n"
        f"        size = max({block}, len(buffer)) if {block} == 1 else {block}\n"
        "        os.write(1, buffer[:size])\n        buffer = buffer[size:]\n"
        "os.write(1, buffer)\n"
        "open('counted', 'w').write(str(number))\n"
    )
    tables = f"""
        [program.app]
        command = "{PYTHON} count.py"
        directory = "%(here)s"
        stdout_logfile = "%(here)s/out.log"
        stdout_logfile_maxbytes = 0
        startsecs = 0
        autorestart = false
    """
    log = tmp_path / "out.log"
    with killed(scene(tmp_path, tables)) as first:
        manager = first
        for _ in range(6):
            size = log.stat().st_size if log.exists() else 0
            eventually(lambda size=size: log.stat().st_size > size + 1_000_000)
            (pid,) = manager.pids("app")
            manager.kill()
            eventually(lambda pid=pid: "pipe_write" in Path(f"/proc/{pid}/wchan").read_text() or waits(pid))
            manager = next_one(manager).__enter__()
        (tmp_path / "enough").touch()
        count = int(eventually((tmp_path / "counted").read_text))
        eventually(lambda: manager.pool("app").processes[0].state == "EXITED")
        manager.stop()
    assert lines_of(log) == [f"{number} {'x' * (number % 200)}" for number in range(count)]


def waits(pid: int) -> bool:
    """Whether a process sleeps: where the kernel does not tell in what."""
    return Child(pid).stat[0] == "S"


# -- a state directory in which others could write -----------------------------------------------------------------


@pytest.mark.parametrize("what", ["fifo", "link", "open file"])
def test_what_lies_where_the_state_is_written_is_not_written_to(what: str, tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    beside = directory / "state.jsonl.new"
    if what == "fifo":
        os.mkfifo(beside)
    elif what == "link":
        beside.symlink_to(precious)
    else:
        beside.write_text("")
        beside.chmod(0o666)
    config = write(tmp_path, pool(free_address("tcp", tmp_path)), manager='state_dir = "%(here)s/state"')
    with killed(config) as first:
        pids = first.pids("app")
        assert (directory / "state.jsonl").stat().st_mode & 0o777 == 0o600
        first.kill()
        with next_one(first) as second:
            assert second.pids("app") == pids
    assert precious.read_text() == "precious"
    assert list(directory.iterdir()) == []


@as_root
def test_root_does_not_believe_what_an_ordinary_user_has_written(tmp_path: Path) -> None:
    """An ordinary user's manager was killed; root starts one on the same configuration."""
    with open_directory() as place:
        directory = place / "theirs"  # not in /tmp itself, where anybody might have made it
        directory.mkdir()
        os.chown(directory, 65534, 65534)
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        config = write(directory, pool(free_address("unix", directory)))
        with killed(config, prefix=prefix) as first:
            pids = first.pids("app")
            first.kill()
            code, said = fails(config)
            assert code == 1
            assert "belongs to uid 65534" in said
            assert all(map(is_alive, pids))
            end_strays(first.mark)


def test_one_that_was_started_and_not_written_down_ends_though_another_has_its_place_at_once(tmp_path: Path) -> None:
    config = write(tmp_path, pool(free_address("tcp", tmp_path), "numprocs = 2"))
    with killed(config) as first:
        pid, _ = first.pids("app")
        environment = Child(pid).environ
        first.kill()
        with subprocess.Popen(["sleep", "1000"], env=environment, start_new_session=True) as unwritten:
            try:
                kill(pid)
                with next_one(first) as second:
                    assert unwritten.wait(20) == -signal.SIGTERM
                    assert f"pid {unwritten.pid}" in second.output()
                    assert len(second.pids("app")) == 2
            finally:
                unwritten.kill()


# -- a configuration that has changed ---------------------------------------------------------------------------------


def test_fewer_processes_another_name_and_another_address(tmp_path: Path) -> None:
    addresses = [free_address("tcp", tmp_path) for _ in range(4)]
    fewer, before, elsewhere, later = addresses
    tables = [pool(fewer, "numprocs = 3"), pool(before), pool(elsewhere)]
    named = ["app", "old_name", "moved"]
    config = write(tmp_path, "".join(t.replace("pool.app", f"pool.{n}") for t, n in zip(tables, named, strict=True)))
    with killed(config) as first:
        kept, renamed, moved = first.pids("app"), first.pids("old_name"), first.pids("moved")
        with Load(fewer) as load, Load(before) as other:
            first.kill()
            tables = [pool(fewer, "numprocs = 1"), pool(before), pool(later)]
            named[1] = "new_name"
            write(tmp_path, "".join(t.replace("pool.app", f"pool.{n}") for t, n in zip(tables, named, strict=True)))
            with next_one(first, ready=False) as second:
                eventually(lambda: {one.name for one in second.status().pools} == set(named), within=30)
                eventually(lambda: second.pids("app") == kept[:1], within=30)
                # A process is told its pool's name when it is started.
                eventually(lambda: second.pids("new_name") not in ([], renamed) and are_gone(*renamed), within=30)
                eventually(lambda: second.pids("moved") not in ([], moved) and are_gone(*moved), within=30)
                assert served_by(later) in second.pids("moved")
                with pytest.raises(ConnectionRefusedError):
                    connect(elsewhere)
                load.stop()
                other.stop()
        assert load.failures == other.failures == []


def test_a_pool_that_has_a_new_name_and_whose_old_processes_take_long_is_one_pool(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    table = pool(address, "numprocs = 1", "stopwaitsecs = 60")
    config = write(tmp_path, table.replace("pool.app", "pool.old_name"))
    (tmp_path / "serve.py").write_text(f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SERVE}")
    with killed(config) as first:
        (old,) = first.pids("old_name")
        write(tmp_path, table.replace("pool.app", "pool.new_name"))
        (tmp_path / "serve.py").write_text(SERVE)
        os.kill(first.pid, signal.SIGHUP)
        eventually(lambda: "STOPPING" in first.output())
        assert is_alive(old)
        first.kill()
        with next_one(first, ready=False) as second:
            eventually(lambda: len(second.pids("new_name")) == 1)
            assert {one.name for one in second.status().pools} == {"new_name"}
            assert served_by(address) in second.pids("new_name")
            kill(old)
            eventually(lambda: "a generation has left" in second.output())
            assert "internal error" not in second.output()


def test_a_broken_configuration_leaves_the_processes_serving(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    config = write(tmp_path, pool(address))
    good = config.read_text()
    with killed(config) as first:
        pids = first.pids("app")
        first.kill()
        config.write_text(good + "numproc = 1\n")
        assert fails(config)[0] == 2
        assert served_by(address) in pids
        config.write_text(good)
        with next_one(first) as second:
            assert second.pids("app") == pids


# -- in the background ------------------------------------------------------------------------------------------------


def test_one_in_the_background_follows_and_is_upgraded_too(tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text(SERVE)
    keys = 'pidfile = "%(here)s/pid"\nlogfile = "%(here)s/manager.log"'
    config = scene(tmp_path, pool(free_address("unix", tmp_path)), manager=keys)
    manager = managing(config)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fcgimgr", "-c", str(config), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {MARK: manager.mark},
        )

    try:
        assert run("run", "--daemon").returncode == 0
        pids, pid = manager.pids("app"), int((tmp_path / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        are_gone(pid)
        started = run("run", "--daemon")
        assert (started.returncode, started.stderr) == (0, "")
        assert manager.pids("app") == pids
        pid = int((tmp_path / "pid").read_text())
        assert run("upgrade").returncode == 0
        assert (manager.pids("app"), int((tmp_path / "pid").read_text())) == (pids, pid)
        assert manager.status().manager.pid == pid
        assert os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
        refused = run("run", "--daemon")
        assert refused.returncode == 1
        assert "already held by" in refused.stderr
        assert run("shutdown").returncode == 0
        assert not (tmp_path / "pid").exists()
    finally:
        end_strays(manager.mark)


def test_what_kept_its_socket_is_kept_when_the_file_is_another_by_now(tmp_path: Path) -> None:
    """Somebody has put another file in the place of the socket's: it is not ours to remove, and nobody is lost."""
    address = free_address("unix", tmp_path)
    path = Path(address.removeprefix("unix:"))
    with killed(write(tmp_path, pool(address))) as first:
        pids = first.pids("app")
        first.kill()
        path.unlink()
        path.write_text("precious")
        with next_one(first) as second:
            assert second.pids("app") == pids
            assert reload(second).ok is False
            assert second.pids("app") == pids
        assert path.read_text() == "precious"
    assert not state_of(first.config).exists()
