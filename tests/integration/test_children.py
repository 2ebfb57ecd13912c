"""What a child gets is what its configuration says, and nothing else of the manager's.

Looked at from outside, in /proc, and told by a child that reports what it finds itself with. As root the manager drops
privileges for its children; as an ordinary user it has none to drop.
"""

import grp
import json
import os
import pwd
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ports import free_port
from tests.integration.running import RunningManager, end_strays
from tests.integration.scenes import NOBODY, Child, managing, open_directory, ordinary_user, scene
from tests.rights import as_root
from tests.waiting import eventually

PYTHON = f"{sys.executable} -S -E"

# Reports what it finds itself with into the file of its process's name, then says READY=1 and sleeps.
REPORT = """\
import json, os, signal, socket, sys
report = {
    "environ": dict(os.environ), "argv": sys.argv[1:], "directory": os.getcwd(),
    "umask": os.umask(0), "stdin": os.read(0, 1).decode(),
}
path = os.path.join(os.path.dirname(sys.argv[0]), os.environ["FCGIMGR_PROCESS"] + ".json")
with open(path, "w") as file:
    json.dump(report, file)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""


def reporting(directory: Path, tables: str, **more: str) -> Path:
    (directory / "report.py").write_text(REPORT)
    return scene(directory, tables.replace("REPORT", f"{PYTHON} {directory}/report.py"), **more)


def reported(directory: Path, process: str) -> Any:
    return json.loads((directory / f"{process}.json").read_text())


def child_of(manager: RunningManager, name: str) -> Child:
    """The only process of a pool or program."""
    (pid,) = manager.pids(name)
    return Child(pid)


@pytest.fixture(params=[pytest.param("root", marks=as_root), "ordinary user"])
def whoever(request: pytest.FixtureRequest) -> Iterator[tuple[Path, list[str]]]:
    """As whom the manager runs: a directory of that user, and the words before its command that make it so."""
    if request.param == "root":
        with open_directory() as directory:
            yield directory, []
    else:
        with ordinary_user() as (directory, prefix):
            yield directory, prefix


# -- for everybody ----------------------------------------------------------------------------------------------------

# Starts the manager as nobody should: signals ignored and blocked, an fd too many, a limit lowered.
CARELESS = """
import os, resource, signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2, signal.SIGCHLD])
os.dup2(os.open("/dev/zero", os.O_RDONLY), 50, inheritable=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_child_has_three_fds_a_session_and_signals_as_if_nobody_had_touched_them(
    whoever: tuple[Path, list[str]],
) -> None:
    directory, prefix = whoever
    tables = f"""
        [pool.stdin]
        socket = "127.0.0.1:{free_port()}"
        command = "sleep 1000"
        ready = "startsecs"
        startsecs = 0
        numprocs = 3
        [pool.env]
        socket = ["127.0.0.1:{free_port()}", "unix:{directory}/env.s"]
        socket_pass = "env"
        command = "sleep 1000"
        ready = "startsecs"
        startsecs = 0
        [pool.systemd]
        socket = ["127.0.0.1:{free_port()}", "unix:{directory}/systemd.s"]
        socket_pass = "systemd"
        command = "sleep 1000"
        ready = "startsecs"
        startsecs = 0
        [program.vfork]
        command = "sleep 1000"
        startsecs = 0
        [program.fork]
        command = "sleep 1000"
        startsecs = 0
        no_new_privs = true
        [program.merged]
        command = "sleep 1000"
        startsecs = 0
        redirect_stderr = true
    """
    prefix = [*prefix, sys.executable, "-c", CARELESS]
    with managing(scene(directory, tables), prefix=prefix) as manager:
        pids = {pool.name: manager.pids(pool.name) for pool in manager.status().pools}
        for name, extra in {"stdin": 0, "env": 2, "systemd": 2, "vfork": 0, "fork": 0, "merged": 0}.items():
            for pid in pids[name]:
                child = Child(pid)
                assert child.parent == manager.pid
                assert child.group == child.session == pid
                assert_untouched_signals(child)
                assert child.limits["Max open files"][0] == "200", name  # That of whoever started the manager.
                assert child.status["NoNewPrivs"] == ("1" if name == "fork" else "0")
                fds = child.fds
                assert sorted(fds) == list(range(3 + extra)), f"{name}: {fds}"
                assert fds[0].startswith("socket:") if name == "stdin" else fds[0] == "/dev/null"
                assert all(fds[fd].startswith("pipe:") for fd in (1, 2))
                assert (fds[1] == fds[2]) == (name == "merged")
                assert all(fds[fd].startswith("socket:") for fd in range(3, 3 + extra))
                # Whoever holds the read end too never gets SIGPIPE, whatever becomes of the manager.
                assert all(child.fd_flags(fd) & os.O_ACCMODE == os.O_RDWR for fd in (1, 2)), name
        assert len({Child(pid).fds[0] for pid in pids["stdin"]}) == 1


def assert_untouched_signals(child: Child) -> None:
    """Every signal has its default disposition, none is blocked."""
    # glibc ignores the two that it keeps for itself, 32 and 33, in whatever posix_spawn starts; programs cannot.
    programs = ~(0b11 << 31)
    status = child.status
    assert {key: int(status[key], 16) & programs for key in ("SigBlk", "SigIgn", "SigCgt")} == {
        "SigBlk": 0,
        "SigIgn": 0,
        "SigCgt": 0,
    }


def test_the_environment_of_a_child(whoever: tuple[Path, list[str]]) -> None:
    directory, prefix = whoever
    (directory / "app.env").write_text("FROM_FILE=file\nBOTH=file\nALL='file'\n")
    tables = f"""
        [pool.app]
        socket = "127.0.0.1:{free_port()}"
        socket_pass = "env"
        socket_allowed = ["127.0.0.1", "10.0.0.1"]
        command = "REPORT one 'two words' %(process_num)d"
        numprocs = 2
        ready = "notify"
        environment = {{ BOTH = "table", ALL = "table %(process_num)d", OUTSIDE_TOO = "table" }}
        environment_file = "%(here)s/app.env"
        [program.clear]
        command = "REPORT"
        ready = "notify"
        clear_env = true
        environment = {{ OWN = "%(ENV_OUTSIDE)s" }}
    """
    manager_keys = 'environment = { ALL = "manager", FROM_MANAGER = "manager", BOTH = "manager" }'
    config = reporting(directory, tables, manager=manager_keys)
    outside = {"OUTSIDE": "outside", "OUTSIDE_TOO": "outside", "NOTIFY_SOCKET": "/nowhere", "LISTEN_FDS": "0"}
    with managing(config, prefix=prefix, environment=outside):  # Ready at all: NOTIFY_SOCKET is of use.
        for number in (0, 1):
            report = reported(directory, f"app_0{number}")
            assert report["argv"] == ["one", "two words", str(number)]
            environ = report["environ"]
            expected = {
                "OUTSIDE": "outside",
                "FROM_MANAGER": "manager",
                "FROM_FILE": "file",
                "BOTH": "table",
                "ALL": f"table {number}",
                "OUTSIDE_TOO": "table",
                "FCGIMGR_POOL": "app",
                "FCGIMGR_PROCESS": f"app_0{number}",
                "FCGIMGR_GENERATION": "1",
                "FCGI_LISTEN_FD": "3",
                "FCGI_WEB_SERVER_ADDRS": "127.0.0.1,10.0.0.1",
                "SUPERVISOR_ENABLED": "1",
                "SUPERVISOR_PROCESS_NAME": f"app_0{number}",
                "SUPERVISOR_GROUP_NAME": "app",
            }
            assert {name: environ.get(name) for name in expected} == expected
            assert not {name for name in environ if name.startswith(("LISTEN_", "WATCHDOG_"))}
            assert environ["NOTIFY_SOCKET"] != "/nowhere"

        environ = reported(directory, "clear_00")["environ"]
        assert {name for name in environ if not name.startswith(("FCGIMGR_", "SUPERVISOR_"))} <= {
            "PATH",
            "NOTIFY_SOCKET",
            "OWN",
            "FROM_MANAGER",
            "BOTH",
            "ALL",
            "LC_CTYPE",  # Python's own, which sets it in itself (PEP 538).
        }
        assert environ["OWN"] == "outside"


def test_directory_umask_nice_and_limits(whoever: tuple[Path, list[str]]) -> None:
    directory, prefix = whoever
    (directory / "elsewhere").mkdir()
    hard_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    tables = f"""
        [program.plain]
        command = "REPORT"
        ready = "notify"
        [program.set]
        command = "REPORT"
        ready = "notify"
        directory = "%(here)s/elsewhere"
        umask = "027"
        nice = 5
        oom_score_adj = 500
        rlimit_nofile = "128:256"
        rlimit_core = 0
        rlimit_as = "8GB"
        rlimit_cpu = "1000:2000"
        [program.soft]
        command = "REPORT"
        ready = "notify"
        directory = "%(here)s/elsewhere"
        umask = "077"
        rlimit_nofile = "300:{hard_files}"
    """
    with managing(reporting(directory, tables, manager='umask = "002"'), prefix=prefix) as manager:
        own = Child(os.getpid())
        plain, chosen, soft = (child_of(manager, name) for name in ("plain", "set", "soft"))
        report = reported(directory, "plain_00")
        assert report["umask"] == 0o002
        assert report["stdin"] == ""
        assert report["directory"] == os.getcwd()
        assert (plain.nice, plain.oom_score_adj) == (own.nice, own.oom_score_adj)
        assert plain.limits == own.limits

        report = reported(directory, "set_00")
        assert report["umask"] == 0o027
        assert report["directory"] == str(directory / "elsewhere")
        assert (chosen.nice, chosen.oom_score_adj) == (own.nice + 5, 500)
        limits = chosen.limits
        assert limits["Max open files"] == ("128", "256")
        assert limits["Max core file size"] == ("0", "0")
        assert limits["Max address space"] == (str(8 * 2**30),) * 2
        assert limits["Max cpu time"] == ("1000", "2000")

        assert soft.limits["Max open files"] == ("300", str(hard_files))
        report = reported(directory, "soft_00")
        assert (report["umask"], report["directory"]) == (0o077, str(directory / "elsewhere"))

        # What was set for a child must not stick to the manager.
        itself = Child(manager.pid)
        assert (itself.status["Umask"], itself.nice) == ("0002", own.nice)
        assert itself.directory == os.getcwd()
        assert int(itself.limits["Max open files"][0]) > 1000


def test_a_child_that_cannot_be_had_says_which_step_failed(whoever: tuple[Path, list[str]]) -> None:
    directory, prefix = whoever
    (directory / "script").write_text("#!/no/such/interpreter\n")
    (directory / "script").chmod(0o755)
    (directory / "text").write_text("not executable")
    refusals = {
        "absent": ('command = "no-such-command"', ["command not found: no-such-command", "PATH"]),
        "text": ('command = "%(here)s/text"', ["text is not executable", "chmod +x"]),
        "script": ('command = "%(here)s/script"', ["interpreter /no/such/interpreter does not exist"]),
        "directory": ('command = "true"\ndirectory = "/no/such"', ["directory /no/such", "no such file"]),
        "chroot": ('command = "true"\nchroot = "/no/such"', ["chroot", "/no/such"]),
    }
    tables = "".join(f"[program.{name}]\n{keys}\nstartretries = 0\n" for name, (keys, _) in refusals.items())
    tables += '[program.good]\ncommand = "sleep 1000"\nstartsecs = 0\n'
    with managing(scene(directory, tables), prefix=prefix, ready=False) as manager:
        eventually(lambda: manager.status().manager.state == "RUNNING")
        for name, (_, words) in refusals.items():
            (process,) = manager.pool(name).processes
            assert process.state == "FATAL", name
            for word in words:
                assert word in (process.reason or ""), f"{name}: {word!r} is not in {process.reason!r}"
                assert word in manager.output()
        assert manager.pool("good").state == "RUNNING"
        assert Child(manager.pid).children == manager.pids("good")


# -- as another user --------------------------------------------------------------------------------------------------


@as_root
def test_a_child_of_another_user_has_its_ids_its_home_and_its_pipes() -> None:
    daemon = pwd.getpwnam("daemon")
    own_groups = set(os.getgrouplist("daemon", daemon.pw_gid))
    group = grp.getgrnam("mail").gr_gid
    with open_directory() as directory:
        # Sticky, as /tmp: the manager refuses to keep its socket where others could replace it.
        directory.chmod(0o1777)
        tables = """
            [program.name]
            command = "REPORT"
            ready = "notify"
            user = "daemon"
            no_new_privs = true
            [program.group]
            command = "REPORT"
            ready = "notify"
            user = "daemon:mail"
            environment = { HOME = "/elsewhere" }
            [program.number]
            command = "REPORT"
            ready = "notify"
            user = "4242:4343"
            [program.echo]
            command = ["sh", "-c", "echo hello > /dev/stderr && exec sleep 1000"]
            startsecs = 0
            user = "daemon"
            [program.root]
            command = "REPORT"
            ready = "notify"
        """
        environment = {"HOME": "/root", "USER": "root", "LOGNAME": "root"}
        with managing(reporting(directory, tables), environment=environment) as manager:
            child = child_of(manager, "name")
            assert (child.uids, child.gids) == ({daemon.pw_uid}, {daemon.pw_gid})
            assert child.groups == own_groups
            assert child.status["NoNewPrivs"] == "1"
            assert int(child.status["CapEff"], 16) == 0
            environ = reported(directory, "name_00")["environ"]
            assert (environ["HOME"], environ["USER"], environ["LOGNAME"]) == (daemon.pw_dir, "daemon", "daemon")

            child = child_of(manager, "group")
            assert (child.uids, child.gids) == ({daemon.pw_uid}, {group})
            assert group in child.groups
            environ = reported(directory, "group_00")["environ"]
            assert (environ["HOME"], environ["USER"]) == ("/elsewhere", "daemon")

            child = child_of(manager, "number")
            assert (child.uids, child.gids, child.groups) == ({4242}, {4343}, {4343})
            assert reported(directory, "number_00")["environ"]["HOME"] == "/"

            eventually(lambda: "hello\n" in manager.output())  # It may open its pipe anew, which root made.

            assert child_of(manager, "root").uids == {0}
            assert reported(directory, "root_00")["environ"]["HOME"] == "/root"


@as_root
def test_a_child_in_a_chroot() -> None:
    with open_directory() as directory:
        (directory / "inner").mkdir()
        # The whole system is inside as well, so that any program can be found there.
        tables = f"""
            [program.whole]
            command = "sleep 1000"
            startsecs = 0
            chroot = "/"
            [program.part]
            command = "/lib64/ld-linux-x86-64.so.2 --help"
            startretries = 0
            chroot = "{directory}"
            directory = "/inner"
        """
        with managing(scene(directory, tables), ready=False) as manager:
            eventually(lambda: manager.status().manager.state == "RUNNING")
            assert child_of(manager, "whole").root == "/"
            (process,) = manager.pool("part").processes
            assert "/lib64/ld-linux-x86-64.so.2" in (process.reason or "")


def test_a_manager_of_an_ordinary_user_may_name_that_user() -> None:
    with ordinary_user() as (directory, prefix):
        name = "nobody" if prefix else pwd.getpwuid(os.getuid()).pw_name
        tables = f'[program.app]\ncommand = "REPORT"\nready = "notify"\nuser = "{name}"\n'
        with managing(reporting(directory, tables), prefix=prefix) as manager:
            child = child_of(manager, "app")
            assert child.uids == {NOBODY if prefix else os.getuid()}
            assert reported(directory, "app_00")["environ"]["USER"] == name


# -- without the manager ----------------------------------------------------------------------------------------------

# For each line that it is given it writes some to both its outputs, and then makes a file.
WRITE = """
import os, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
while sys.stdin.readline():
    for number in range(100):
        os.write(1, b"a line on standard output\\n")
        os.write(2, b"and one on standard error\\n")
    open("written", "w").close()
"""


def test_a_child_writes_on_when_its_manager_has_been_killed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ask")
    (tmp_path / "write.py").write_text(WRITE)
    tables = f"""
        [program.app]
        command = ["sh", "-c", "exec {PYTHON} write.py <>ask"]
        directory = "%(here)s"
        startsecs = 0
    """
    manager = managing(scene(tmp_path, tables))
    manager.__enter__()
    try:
        (pid,) = manager.pids("app")
        manager.kill()
        with open(tmp_path / "ask", "w") as ask:
            ask.write("write\n")
            ask.flush()
            eventually((tmp_path / "written").exists)
            assert Child(pid).stat[0] in "RS"  # And it goes on.
    finally:
        end_strays(manager.mark)
