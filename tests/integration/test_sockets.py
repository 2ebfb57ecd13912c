"""A pool's sockets are what its configuration says, and one that cannot be had costs only its own pool."""

import grp
import os
import pwd
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.ports import connect, free_port
from tests.integration.running import RunningManager
from tests.integration.scenes import NOBODY, ask, fails, heard, managing, ordinary_user, scene
from tests.rights import as_root
from tests.waiting import eventually

PYTHON = f"{sys.executable} -S -E"

POOL = """
[pool.{name}]
socket = {sockets}
command = "{python} %(here)s/answer.py {fds}"
startsecs = 0
{more}
"""


def pool(name: str, *sockets: str, fds: str = "", more: str = "") -> str:
    """The table of a pool of one process that answers on these sockets."""
    return POOL.format(name=name, sockets=list(sockets), fds=fds, more=more, python=PYTHON)


# -- what they are ----------------------------------------------------------------------------------------------------


def test_a_pool_listens_on_tcp_of_both_families_and_on_unix_sockets(tmp_path: Path) -> None:
    four, six, both = free_port(), free_port(), free_port()
    abstract = f"@fcgimgr-test-{os.getpid()}"
    tables = [
        pool("four", f"127.0.0.1:{four}"),
        pool("six", f"[::1]:{six}"),
        pool("both", f"*:{both}"),
        pool("file", f"unix:{tmp_path}/file.sock"),
        pool("abstract", f"unix:{abstract}"),
    ]
    with managing(scene(tmp_path, "".join(tables))):
        assert ask(f"127.0.0.1:{four}")["environ"]["FCGIMGR_POOL"] == "four"
        with socket.create_connection(("::1", six)) as connection:
            assert heard(connection)["environ"]["FCGIMGR_POOL"] == "six"
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, both)) as connection:
                assert heard(connection)["environ"]["FCGIMGR_POOL"] == "both"
        assert ask(f"unix:{tmp_path}/file.sock")["environ"]["FCGIMGR_POOL"] == "file"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect("\0" + abstract[1:])
            assert heard(connection)["environ"]["FCGIMGR_POOL"] == "abstract"


def test_the_backlog_is_the_one_asked_for(tmp_path: Path) -> None:
    more = "socket_backlog = 7"
    tables = pool("tcp", f"127.0.0.1:{free_port()}", more=more) + pool("unix", f"unix:{tmp_path}/s", more=more)
    with managing(scene(tmp_path, tables)) as manager:
        backlogs = [each.sockets[0].backlog for each in manager.status(detail=True).pools]
        assert backlogs == [7, 7]  # As the kernel tells it, not as the configuration does.


@as_root
def test_owner_and_mode_of_a_unix_socket(tmp_path: Path) -> None:
    daemon, group = pwd.getpwnam("daemon"), grp.getgrnam("daemon")
    owners = {
        "user": ("nobody", NOBODY, NOBODY),
        "both": ("nobody:daemon", NOBODY, group.gr_gid),
        "group": (":daemon", 0, group.gr_gid),
        "number": (f"{daemon.pw_uid}", daemon.pw_uid, daemon.pw_gid),
    }
    tables = [
        pool(name, f"unix:{tmp_path}/{name}.s", more=f'socket_owner = "{owner}"\nsocket_mode = "0640"')
        for name, (owner, _, _) in owners.items()
    ]
    with managing(scene(tmp_path, "".join(tables))):
        for name, (_, uid, gid) in owners.items():
            made = (tmp_path / f"{name}.s").stat()
            assert (made.st_uid, made.st_gid, made.st_mode & 0o7777) == (uid, gid, 0o640), name


def test_a_unix_socket_has_its_mode_from_birth(tmp_path: Path) -> None:
    # Pools that come and go as fast as they can, and an eye that is kept on the path of their socket all the while.
    path = tmp_path / "s"
    seen: set[int] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            try:
                seen.add(os.stat(path).st_mode & 0o777)
            except FileNotFoundError:
                continue

    config = scene(tmp_path, pool("app", f"unix:{path}", more='socket_mode = "0600"'), manager='umask = "000"')
    with managing(config) as manager:
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for _ in range(20):
                assert manager.halt("app").ok
                assert manager.start("app").ok
        finally:
            ended.set()
            watcher.join()
    assert seen == {0o600}


# -- how a child gets them --------------------------------------------------------------------------------------------


def test_several_sockets_are_passed_by_number_in_the_environment(tmp_path: Path) -> None:
    port, path = free_port(), f"unix:{tmp_path}/s"
    more = 'socket_pass = "env"\nsocket_env = "MY_SOCKETS"'
    with managing(scene(tmp_path, pool("app", f"127.0.0.1:{port}", path, fds="3 4", more=more))):
        by_tcp, by_unix = ask(f"127.0.0.1:{port}"), ask(path)
        assert (by_tcp["fd"], by_unix["fd"]) == (3, 4)
        assert by_tcp["pid"] == by_unix["pid"]
        assert by_tcp["environ"]["MY_SOCKETS"] == "3,4"
        assert "LISTEN_FDS" not in by_tcp["environ"]


def test_several_sockets_are_passed_as_systemd_does(tmp_path: Path) -> None:
    port, path = free_port(), f"unix:{tmp_path}/s"
    more = 'socket_pass = "systemd"'
    with managing(scene(tmp_path, pool("app", f"127.0.0.1:{port}", path, fds="3 4", more=more))):
        by_tcp, by_unix = ask(f"127.0.0.1:{port}"), ask(path)
        assert (by_tcp["fd"], by_unix["fd"]) == (3, 4)
        environ = by_tcp["environ"]
        assert (environ["LISTEN_FDS"], environ["LISTEN_PID"]) == ("2", str(by_tcp["pid"]))
        # sd_listen_fds_with_names(3) splits at colons, and every address holds one.
        assert environ["LISTEN_FDNAMES"] == "app:app"


def test_the_first_socket_is_the_childs_stdin(tmp_path: Path) -> None:
    port = free_port()
    with managing(scene(tmp_path, pool("app", f"127.0.0.1:{port}"))):
        assert ask(f"127.0.0.1:{port}")["fd"] == 0


# -- taken over -------------------------------------------------------------------------------------------------------

# Stands for systemd: moves the fds it is given to 3, 4, … and says so to the program it becomes.
PASS_FDS = """
import os, sys
fds, names, command = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
for target, fd in enumerate(fds, 3):
    os.dup2(int(fd), target)
os.execvp(command[0], command)
"""


class Passing(RunningManager):
    """A manager that is started with these sockets as its fds 3, 4, …, of these names."""

    def __init__(self, config: Path, sockets: dict[str, socket.socket]) -> None:
        # Far from the fds that they are to have, so that no dup2 overwrites one before its turn.
        high = [os.dup2(one.fileno(), 100 + number, inheritable=True) for number, one in enumerate(sockets.values())]
        prefix = [sys.executable, "-c", PASS_FDS, ",".join(map(str, high)), ":".join(sockets)]
        super().__init__(config, config.with_suffix(".control"), prefix=prefix, inherit=high)


def test_sockets_of_systemd_and_inherited_ones_are_taken_over_and_left_to_their_owner(tmp_path: Path) -> None:
    with ExitStack() as stack:
        tcp, unix, bare = (
            stack.enter_context(socket.socket(family)) for family in (socket.AF_INET, *[socket.AF_UNIX] * 2)
        )
        tcp.bind(("127.0.0.1", 0))
        unix.bind(str(tmp_path / "unix.s"))
        bare.bind(str(tmp_path / "bare.s"))
        for listener in (tcp, unix, bare):
            listener.listen()
        address = f"127.0.0.1:{tcp.getsockname()[1]}"

        tables = pool("web", "systemd:web") + pool("php", "systemd:php") + pool("bare", "fd:5")
        config = scene(tmp_path, tables)
        with Passing(config, {"web": tcp, "php": unix, "bare": bare}) as manager:
            web = ask(address)
            assert web["environ"]["FCGIMGR_POOL"] == "web"
            assert not {name for name in web["environ"] if name.startswith("LISTEN_")}
            assert ask(f"unix:{tmp_path}/unix.s")["environ"]["FCGIMGR_POOL"] == "php"
            assert ask(f"unix:{tmp_path}/bare.s")["environ"]["FCGIMGR_POOL"] == "bare"

            # A stopped pool gives its socket back, and can have it again.
            assert manager.halt("web").ok
            assert manager.start("web").ok
            assert ask(address)["environ"]["FCGIMGR_POOL"] == "web"
        for listener in (unix, bare):
            assert os.path.exists(listener.getsockname())
        connect(address).close()  # It listens still, in our hands.


# -- what cannot be had -----------------------------------------------------------------------------------------------


def test_each_socket_that_cannot_be_had_costs_only_its_own_pool_and_says_why(tmp_path: Path) -> None:
    good, taken = free_port(), free_port()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with socket.socket(socket.AF_UNIX) as living, socket.socket() as holder:
        living.bind(str(tmp_path / "living"))
        living.listen()
        holder.bind(("127.0.0.1", taken))
        holder.listen()
        me = f"pid {os.getpid()}"
        refusals = {
            "taken": (pool("taken", f"127.0.0.1:{taken}"), ["port is in use", me, str(taken)]),
            "foreign": (pool("foreign", f"192.0.2.1:{free_port()}"), ["192.0.2.1", "not an address of this machine"]),
            "living": (pool("living", f"unix:{tmp_path}/living"), ["live process", me]),
            "file": (pool("file", f"unix:{tmp_path}/file"), ["regular file", "not a socket"]),
            "link": (pool("link", f"unix:{tmp_path}/link"), ["symbolic link", "not a socket"]),
            "nowhere": (pool("nowhere", f"unix:{tmp_path}/no/s"), [f"directory {tmp_path}/no does not exist"]),
            "owner": (
                pool("owner", f"unix:{tmp_path}/s", more='socket_owner = "no-such-user"'),
                ["no-such-user", "no such user"],
            ),
            "user": (
                pool("user", f"unix:{tmp_path}/t", more='user = "no-such-user"'),
                ["no-such-user", "no such user"],
            ),
            "fd": (pool("fd", "fd:77"), ["fd:77", "nothing was passed"]),
            "systemd": (pool("systemd", "systemd:web"), ["systemd:web", "FileDescriptorName=web"]),
        }
        tables = "".join(table for table, _ in refusals.values())
        config = scene(tmp_path, tables + pool("good", f"127.0.0.1:{good}"))
        with managing(config, ready=False) as manager:
            eventually(lambda: manager.status().manager.state == "RUNNING")
            for name, (_, words) in refusals.items():
                refused = manager.pool(name)
                assert refused.state == "FATAL", name
                for word in words:
                    assert word in (refused.reason or ""), f"{name}: {word!r} is not in {refused.reason!r}"
                    assert word in manager.output(), f"{name}: {word!r} is not in the log"
            assert manager.pool("good").state == "RUNNING"
            assert ask(f"127.0.0.1:{good}")["environ"]["FCGIMGR_POOL"] == "good"
            assert not (tmp_path / "t").exists()

            # The way out is to mend the cause and to start the pool.
            (tmp_path / "no").mkdir()
            assert manager.start("nowhere").ok
            assert ask(f"unix:{tmp_path}/no/s")["environ"]["FCGIMGR_POOL"] == "nowhere"
        connect(f"unix:{tmp_path}/living").close()  # It serves as before.
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "link").is_symlink()


def test_a_dead_socket_in_the_way_is_removed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
        dead.listen()
    with managing(scene(tmp_path, pool("app", f"unix:{tmp_path}/s"))):
        assert ask(f"unix:{tmp_path}/s")["environ"]["FCGIMGR_POOL"] == "app"


def test_what_an_ordinary_user_may_not_have_costs_only_its_own_pool() -> None:
    port = free_port()
    with ordinary_user() as (directory, prefix):
        (directory / "theirs").mkdir(mode=0o555)
        tables = [
            pool("low", "127.0.0.1:81"),
            pool("theirs", f"unix:{directory}/theirs/s"),
            pool("given", f"unix:{directory}/given.s", more='socket_owner = "root"'),
            pool("other", f"unix:{directory}/other.s", more='user = "root"'),
            pool("good", f"127.0.0.1:{port}"),
        ]
        with managing(scene(directory, "".join(tables)), prefix=prefix, ready=False) as manager:
            eventually(lambda: manager.status().manager.state == "RUNNING")
            for name, words in {
                "low": ["no permission", "port 81"],
                "theirs": ["no permission", f"{directory}/theirs"],
                "given": ["cannot give it to 0", "only root"],
                "other": ["user root", "only root"],
            }.items():
                refused = manager.pool(name)
                assert refused.state == "FATAL", name
                reason = refused.reason or refused.processes[0].reason or ""
                for word in words:
                    assert word in reason, f"{name}: {word!r} is not in {reason!r}"
            assert ask(f"127.0.0.1:{port}")["environ"]["FCGIMGR_POOL"] == "good"


def test_a_path_that_is_too_long_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    code, said = fails(scene(tmp_path, pool("app", f"unix:/{'x' * 107}")))
    assert code == 2
    assert "pool.app.socket: " in said
    assert "108 bytes" in said


@pytest.mark.parametrize("pools", [1, 2])
def test_a_manager_that_can_start_nothing_at_all_ends_with_1(pools: int, tmp_path: Path) -> None:
    tables = [pool(f"app{number}", f"unix:{tmp_path}/no{number}/s") for number in range(pools)]
    code, said = fails(scene(tmp_path, "".join(tables)))
    assert code == 1
    for number in range(pools):
        assert f"app{number}: unix:{tmp_path}/no{number}/s: the directory {tmp_path}/no{number} does not exist" in said
    assert not (tmp_path / "pool.control").exists()
