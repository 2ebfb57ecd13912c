"""`fcgimgr run --daemon`: its exit code means what it says, and what runs then is a daemon in every respect."""

import os
import re
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.commands import Done, Manager, comes, configuration, fcgimgr, lines_of, running, words
from tests.integration.ports import free_port
from tests.integration.running import MARK, end_strays, strays
from tests.waiting import eventually

LOG = 'logfile = "%(here)s/own.log"\n'
IDLE = '[program.idle]\ncommand = "sleep 1000"\nnumprocs = 2\nstartsecs = 0\n'


def silent(port: int) -> str:
    """A pool of which nobody accepts."""
    return f'[pool.app]\nsocket = "127.0.0.1:{port}"\ncommand = "sleep 1000"\nready = "startsecs"\n'


class Daemon:
    """`fcgimgr run --daemon` on a configuration in `directory`, and the commands about it."""

    def __init__(self, directory: Path, mark: str) -> None:
        self.directory = directory
        self._environment = os.environ | {MARK: mark}

    def configure(self, text: str) -> None:
        configuration(self.directory, LOG + text)

    def start(self, umask: int = -1, cwd: Path | None = None) -> Done:
        # Not through pipes: whoever kept one of them open would keep the test waiting for its end.
        out, err = self.directory / "starter.out", self.directory / "starter.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            code = subprocess.call(
                words("-c", self.directory / "pool.toml", "run", "--daemon"),
                stdout=stdout,
                stderr=stderr,
                env=self._environment,
                umask=umask,
                cwd=cwd,
                timeout=60,
            )
        return Done(code, out.read_text(), err.read_text())

    def __call__(self, *arguments: str) -> Done:
        return fcgimgr("-c", self.directory / "pool.toml", *arguments)

    @property
    def pid(self) -> int:
        return int(self("ping").succeeds().rsplit(maxsplit=1)[1])

    def children(self) -> list[int]:
        pid = self.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def log(self) -> str:
        return "\n".join(lines_of(self.directory / "own.log"))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon to be started; it and all its processes are gone afterwards, by the test's doing or by force."""
    mark = uuid.uuid4().hex
    daemon = Daemon(tmp_path, mark)
    yield daemon
    try:
        daemon("shutdown", "--now")
        eventually(lambda: not strays(mark))
    finally:
        end_strays(mark)


def status_file(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# -- the starter's word -----------------------------------------------------------------------------------------------


def test_the_starter_ends_with_0_once_all_is_up(daemon: Daemon) -> None:
    daemon.configure(IDLE)
    started = daemon.start()
    assert started == Done(0, "", "")
    assert "2 of 2 running" in daemon("status").succeeds()


def test_the_starter_waits_for_readiness(daemon: Daemon) -> None:
    daemon.configure('[program.slow]\ncommand = "sleep 1000"\nstartsecs = 0.3\n')
    daemon.start().succeeds()
    assert "1 of 1 running" in daemon("status").succeeds()


def test_the_starter_names_what_is_found_from_where_it_was_started_alone(daemon: Daemon) -> None:
    (daemon.directory / "work").write_text("#!/bin/sh\nexec sleep 1000\n")
    (daemon.directory / "work").chmod(0o755)
    (daemon.directory / "app.py").touch()
    daemon.configure(
        IDLE + '[program.lost]\ncommand = "./work"\n[pool.lost_too]\nsocket = "%(here)s/s"\nwsgi = "app:app"\n'
        'pythonpath = ["%(here)s"]\nstartretries = 0\n[program.there]\ncommand = "./work"\ndirectory = "%(here)s"\n'
    )
    said = daemon.start(cwd=daemon.directory).err
    found = re.findall(r"warning: (\S+): in the background it runs in /, and (\S+) is in (\S+); write directory", said)
    assert found == [
        ("pool.lost_too", "app.py", str(daemon.directory)),
        ("program.lost", "./work", str(daemon.directory)),
    ]


def test_the_starter_names_what_is_wrong_with_the_configuration(daemon: Daemon) -> None:
    daemon.configure('[program.idle]\ncomand = "sleep 1000"\nnumprocs = 0\n')
    complaint = daemon.start().fails(2)
    assert "program.idle.comand" in complaint
    assert "program.idle.numprocs" in complaint
    assert daemon("ping").code == 4


def test_the_starter_fails_when_nothing_can_be_started(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon.configure(silent(port))
        complaint = daemon.start().fails(1)
    assert f"127.0.0.1:{port}" in complaint
    assert "in use" in complaint
    assert daemon("ping").code == 4


def test_the_starter_succeeds_with_what_can_be_started_and_names_the_rest(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon.configure(IDLE + silent(port))
        started = daemon.start()
    assert started.code == 0
    assert f"127.0.0.1:{port}" in started.err
    assert "FATAL" in daemon("status", "app").out


def test_the_starter_says_why_a_program_would_not_start(daemon: Daemon) -> None:
    daemon.configure(
        "[program.broken]\ncommand = ['/bin/sh', '-c', 'echo no database >&2; exit 7']\n"
        "startretries = 1\nbackoff_initial = 0.01\n"
    )
    complaint = daemon.start().fails(1)
    assert "broken: exited with code 7" in complaint
    assert "    no database\n" in complaint


def test_the_starter_does_not_wait_for_what_is_tried_for_ever(daemon: Daemon) -> None:
    broken = "[program.broken]\ncommand = ['/bin/sh', '-c', 'exit 7']\nstartretries = -1\nbackoff_initial = 1000\n"
    daemon.configure(f"{IDLE}{broken}backoff_max = 1000\n")
    daemon.start().succeeds()
    assert "up, without broken" in daemon.log()
    assert "BACKOFF" in daemon("status", "broken").out


def test_the_starter_fails_when_all_waits_for_what_does_not_start(daemon: Daemon) -> None:
    broken = "[program.broken]\ncommand = ['/bin/sh', '-c', 'exit 7']\nstartretries = 0\n"
    daemon.configure(f'{IDLE}depends_on = ["broken"]\n{broken}')
    assert "broken: exited with code 7" in daemon.start().fails(1)


def test_the_starter_says_that_a_lock_cannot_be_had(daemon: Daemon) -> None:
    daemon.configure(f'pidfile = "%(here)s/absent/pid"\n{IDLE}')
    assert f"{daemon.directory}/absent/pid" in daemon.start().fails(1)


def test_a_second_start_is_refused_and_names_the_first(daemon: Daemon) -> None:
    daemon.configure(IDLE)
    daemon.start().succeeds()
    pid = daemon.pid
    assert f"pid {pid}" in daemon.start().fails(1)
    assert f"pid {pid}" in daemon("run").fails(1)  # in the foreground too
    assert daemon.pid == pid
    assert "2 of 2 running" in daemon("status").succeeds()


def test_a_manager_that_is_stopped_before_it_is_up_is_a_failure(daemon: Daemon) -> None:
    daemon.configure('[program.never]\ncommand = "sleep 1000"\nready = "notify"\nready_timeout = 1000\n')
    command = words("-c", daemon.directory / "pool.toml", "run", "--daemon")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as starter:
        eventually(lambda: daemon("shutdown").code == 0)
        assert starter.stderr is not None
        assert "told to stop before it was up" in starter.stderr.read()
    assert starter.returncode == 1


def test_a_manager_that_dies_before_it_is_up_is_a_failure(daemon: Daemon) -> None:
    daemon.configure('[program.never]\ncommand = "sleep 1000"\nready = "notify"\nready_timeout = 1000\n')
    starter = subprocess.Popen(
        words("-c", daemon.directory / "pool.toml", "run", "--daemon"), stderr=subprocess.PIPE, text=True
    )
    assert starter.stderr is not None
    try:
        pid = eventually(lambda: daemon.pid)
        os.kill(pid, signal.SIGKILL)
        assert starter.wait(30) == 1
        assert "without saying why" in starter.stderr.read()
    finally:
        starter.kill()
        starter.wait()
        starter.stderr.close()
        for line in lines_of(daemon.directory / "own.log"):
            if "spawned" in line:  # an orphan now
                os.kill(int(line.rpartition("pid=")[2]), signal.SIGKILL)


# -- the pidfile ------------------------------------------------------------------------------------------------------


def test_the_pidfile_holds_the_pid_and_goes_with_the_manager(daemon: Daemon) -> None:
    daemon.configure(f'pidfile = "%(here)s/pid"\n{IDLE}')
    pidfile = daemon.directory / "pid"
    pidfile.write_text("4194303\n")  # left by one that was killed
    daemon.start().succeeds()
    assert pidfile.read_text() == f"{daemon.pid}\n"
    daemon("shutdown").succeeds()
    assert not pidfile.exists()
    assert not (daemon.directory / "fcgimgr.sock").exists()


def test_a_pidfile_that_is_held_refuses_another_manager(daemon: Daemon) -> None:
    daemon.configure(f'pidfile = "%(here)s/pid"\n{IDLE}')
    daemon.start().succeeds()
    other = daemon.directory / "other.toml"
    other.write_text((daemon.directory / "pool.toml").read_text().replace("fcgimgr.sock", "other.sock"))
    complaint = fcgimgr("-c", other, "run", "--daemon").fails(1)
    assert f"{daemon.directory}/pid" in complaint
    assert f"pid {daemon.pid}" in complaint


def test_a_killed_manager_is_no_obstacle_to_the_next(daemon: Daemon) -> None:
    daemon.configure(f'pidfile = "%(here)s/pid"\n{IDLE}')
    daemon.start().succeeds()
    killed, children = daemon.pid, daemon.children()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: daemon("ping").code == 4)
    assert (daemon.directory / "pid").exists()
    daemon.start().succeeds()
    assert daemon.pid != killed
    for child in children:
        os.kill(child, signal.SIGKILL)


# -- a daemon in every respect ----------------------------------------------------------------------------------------


def test_it_has_no_terminal_no_directory_and_no_file_of_the_starter(daemon: Daemon) -> None:
    daemon.configure(f"umask = 0o027\n{IDLE}")
    daemon.start(umask=0).succeeds()
    pid = daemon.pid
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    session = os.getsid(pid)
    assert session not in (os.getsid(0), pid)  # a session of its own, whose leader, the first fork, is gone
    assert not Path(f"/proc/{session}").exists()
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"  # no controlling terminal
    assert status_file(pid)["Umask"] == "0027"
    assert status_file(pid)["Name"] == "fcgimgr"
    open_files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert not [path for path in open_files if "starter" in path]


def test_it_goes_where_the_configuration_says(daemon: Daemon) -> None:
    daemon.configure(f'directory = "%(here)s"\n{IDLE}')
    daemon.start().succeeds()
    assert os.readlink(f"/proc/{daemon.pid}/cwd") == str(daemon.directory)


def test_it_starts_with_closed_descriptors(daemon: Daemon) -> None:
    daemon.configure(IDLE)
    starter = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words("-c", daemon.directory / "pool.toml", "run", "--daemon")],
        check=False,
        timeout=60,
    )
    assert starter.returncode == 0
    pid = daemon.pid
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null"
    assert "2 of 2 running" in daemon("status").succeeds()


def test_signals_that_the_starter_ignores_are_not_ignored_by_it_or_its_children(daemon: Daemon) -> None:
    daemon.configure(IDLE)
    wrapped = ["/bin/sh", "-c", "trap '' HUP INT QUIT TERM USR1 USR2 CHLD; exec \"$@\"", "sh"]
    command = [*wrapped, *words("-c", daemon.directory / "pool.toml", "run", "--daemon")]
    assert subprocess.call(command, timeout=60) == 0
    pid = daemon.pid
    lost = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    assert not any(int(status_file(pid)["SigIgn"], 16) >> (number - 1) & 1 for number in lost)
    for child in daemon.children():
        # But for 32 and 33, which are glibc's own: its posix_spawn leaves them ignored.
        assert int(status_file(child)["SigIgn"], 16) & ~(3 << 31) == 0
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: "ended code=0" in daemon.log())


def test_it_warns_that_its_log_would_be_lost(tmp_path: Path, daemon: Daemon) -> None:
    configuration(tmp_path, IDLE)
    assert 'manager.logfile is "-"' in daemon.start().err


# -- signals ----------------------------------------------------------------------------------------------------------


def test_hup_applies_what_has_changed_and_refuses_what_is_broken(daemon: Daemon) -> None:
    daemon.configure(IDLE)
    daemon.start().succeeds()
    pid = daemon.pid
    os.kill(pid, signal.SIGHUP)
    eventually(lambda: "HUP: no change for any pool or program" in daemon.log())
    daemon.configure(IDLE.replace("numprocs = 2", "numprocs = 3"))
    os.kill(pid, signal.SIGHUP)
    eventually(lambda: "3 of 3 running" in daemon("status").succeeds())
    daemon.configure(IDLE.replace("numprocs = 2", "numprocs = -3\nbogus = 1"))
    os.kill(pid, signal.SIGHUP)
    eventually(lambda: "HUP: the configuration is broken; nothing of it was applied" in daemon.log())
    assert "program.idle.numprocs" in daemon.log()
    assert "program.idle.bogus" in daemon.log()
    assert "3 of 3 running" in daemon("status").succeeds()
    assert daemon.pid == pid


def test_usr2_restarts_every_process(tmp_path: Path) -> None:
    with running(tmp_path, IDLE) as manager:
        before = manager.pids("idle")
        os.kill(manager.pid, signal.SIGUSR2)
        eventually(lambda: len(now := manager.pids("idle")) == 2 and not set(now) & set(before))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_it_stops_gracefully_on(number: signal.Signals, tmp_path: Path) -> None:
    # The program ends a little later than it is told to, with a word: when the test lets it.
    program = """\
[program.careful]
command = ['/bin/sh', '-c', '''
trap "echo told; read -r line <bye; echo bye; exit" TERM
echo up
while :; do read -r line <never; done
''']
directory = "%(here)s"
stdout_logfile = "careful.log"
startsecs = 0
"""
    for fifo in ("bye", "never"):
        os.mkfifo(tmp_path / fifo)
    log = tmp_path / "careful.log"
    manager = Manager(configuration(tmp_path, program), tmp_path / "fcgimgr.sock")
    process = subprocess.Popen(words("-c", manager.config), stderr=subprocess.DEVNULL)
    try:
        comes(log, "up")
        os.kill(process.pid, number)
        comes(log, "told")
        assert '"state":"STOPPING"' in manager("status", "--json").out
        assert "is stopping" in manager("start", "careful").fails(1)
        (tmp_path / "bye").write_text("now\n")
        assert process.wait(30) == 0
        assert lines_of(log) == ["up", "told", "bye"]
    finally:
        process.kill()
        process.wait()


def test_a_second_term_is_at_once(tmp_path: Path) -> None:
    program = """\
[program.stubborn]
command = ['/bin/sh', '-c', 'trap "echo told" TERM; echo up; while :; do read -r line <never; done']
directory = "%(here)s"
stdout_logfile = "stubborn.log"
stopwaitsecs = 1000
startsecs = 0
"""
    os.mkfifo(tmp_path / "never")
    with running(tmp_path, f"shutdown_timeout = 1000\n{program}") as manager:
        comes(tmp_path / "stubborn.log", "up")
        os.kill(manager.pid, signal.SIGTERM)
        comes(tmp_path / "stubborn.log", "told")
        # On leaving, the manager is sent another TERM and must end with 0, and leave nothing behind.


def test_the_manager_is_there_for_others_when_a_port_is_taken(tmp_path: Path) -> None:
    """A failed bind is that pool's affair: the others go on, and it can be started once the port is free."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        manager = running(tmp_path, IDLE + silent(port), ready=False)
        with manager:
            eventually(lambda: len(manager.pids("idle")) == 2)
            assert f"127.0.0.1:{port}" in manager("start", "app").out
    with running(tmp_path, silent(port) + "startsecs = 0\n"):
        pass
