"""What has a name that anybody may take is not trusted for it: abstract sockets, directories in /tmp, pidfiles."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.locks import LockFile
from fcgimgr.manager.succession.own_files import ensure_directory
from tests.hostile.users import BANK, MALLORY, directory_of, need_root, run_as, words_as
from tests.integration.commands import fcgimgr, words
from tests.integration.scenes import Child, managing, scene


@pytest.fixture(autouse=True)
def _root() -> None:
    need_root()


# -- abstract notify sockets ------------------------------------------------------------------------------------------

# Binds what the notify sockets of the next thousands of processes would be called if it could be guessed.
SQUAT = """
import os, socket, sys
own = []
for pid in range(os.getpid(), os.getpid() + 4000):
    squatter = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    squatter.bind(f"\\0fcgimgr-{pid}-{sys.argv[1]}")
    own.append(squatter)
print(flush=True)
sys.stdin.read()
"""
# Says READY=1 from within its chroot, and takes what is to be said from a FIFO there.
NOTIFIER = """
import os, socket
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
address = os.environ["NOTIFY_SOCKET"]
notify.sendto(b"READY=1", "\\0" + address[1:] if address[0] == "@" else address)
with open(os.environ["SAY"]) as fifo:
    for line in fifo:
        notify.sendto(line.encode(), "\\0" + address[1:] if address[0] == "@" else address)
"""


@pytest.fixture
def jailed(place: Path) -> Path:
    """The configuration of a pool whose notify socket is abstract."""
    os.mkfifo(place / "say")
    os.chmod(place / "say", 0o666)
    (place / "notifier.py").write_text(NOTIFIER)
    return scene(
        place,
        f"""
        [program.jailed]
        command = "{sys.executable} -S -E {place}/notifier.py"
        environment = {{ SAY = "{place}/say" }}
        chroot = "/"
        user = "{BANK}:{BANK}"
        ready = "notify"
        ready_timeout = 10
        """,
    )


def test_nobody_can_have_bound_an_abstract_notify_socket_before(jailed: Path) -> None:
    command = [*words_as(MALLORY), sys.executable, "-S", "-E", "-c", SQUAT, str(BANK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == b"\n"
        with managing(jailed) as manager:
            (pid,) = manager.pids("jailed")
            assert Child(pid).environ["NOTIFY_SOCKET"].startswith(f"@fcgimgr-{manager.pid}-{BANK}-")
        squatter.kill()


def test_two_pools_of_a_user_share_one(jailed: Path) -> None:
    text = jailed.read_text()
    os.mkfifo(jailed.parent / "say2")
    os.chmod(jailed.parent / "say2", 0o666)
    second = text[text.index("[program.jailed]") :].replace("jailed", "second").replace("/say", "/say2")
    jailed.write_text(text + second)
    with managing(jailed) as manager:
        names = {Child(*manager.pids(name)).environ["NOTIFY_SOCKET"] for name in ("jailed", "second")}
        assert len(names) == 1


# Sends from the process whose number it is, and ends without having been heard: see below.
AS_ANOTHER = """
import os, socket, struct, sys
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
credentials = struct.pack("iII", int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[3]))
notify.sendmsg([b"X_REQUESTS=" + sys.argv[4].encode()], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)], 0,
               "\\0" + sys.argv[1][1:])
"""


def test_another_user_does_not_speak_for_a_process_whatever_its_number(jailed: Path) -> None:
    """The kernel lets root say whose message it is, which makes certain what else takes a pid that is used again."""
    with managing(jailed) as manager:
        (pid,) = manager.pids("jailed")
        address = Child(pid).environ["NOTIFY_SOCKET"]

        def say(uid: int, count: int) -> int | None:
            send = [sys.executable, "-S", "-E", "-c", AS_ANOTHER, address, str(pid), str(uid), str(count)]
            subprocess.run(send, check=True, timeout=30)
            return manager.pool("jailed").processes[0].requests  # asked after it was sent, answered after it was read

        assert say(MALLORY, 666) is None
        assert say(BANK, 7) == 7


# -- the directory of the control socket ------------------------------------------------------------------------------


@pytest.fixture
def victim() -> Iterator[int]:
    """A user without XDG_RUNTIME_DIR, whose directory in /tmp is Mallory's."""
    uid = 64100 + os.getpid() % 900
    directory = Path(tempfile.gettempdir()) / f"fcgimgr-{uid}"
    directory.mkdir()
    os.chown(directory, MALLORY, MALLORY)
    yield uid
    shutil.rmtree(directory)


def test_the_commands_do_not_ask_who_has_taken_the_directory_of_the_control_socket(place: Path, victim: int) -> None:
    own = directory_of(victim, place / "victim")
    (own / "pool.toml").write_text('[program.app]\ncommand = "sleep 1000"\n')
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/tmp/fcgimgr-{victim}/pool.sock")
    listener.listen()
    with listener:
        for command in ("stop", "status"):
            order = words("-c", own / "pool.toml", command, *(("app",) if command == "stop" else ()))
            done = subprocess.run(
                [*words_as(victim), *order], capture_output=True, text=True, timeout=30, env=environment, cwd=own
            )
            assert done.returncode == 1, done
            assert f"belongs to uid {MALLORY}: whoever answers there is not your manager" in done.stderr


def test_no_directory_is_taken_that_another_could_exchange_later(place: Path) -> None:
    own = directory_of(MALLORY, place / "mallory")
    (own / "state").mkdir()  # root's, in hers
    for path in (own / "state", own / "state/deeper"):
        with pytest.raises(LinuxError, match=rf"manager.state_dir: on the way to .*belongs to uid {MALLORY}"):
            ensure_directory(str(path), 0o711, "state_dir")


# -- pidfiles ---------------------------------------------------------------------------------------------------------


def test_a_pidfile_in_a_directory_of_others_is_refused(place: Path) -> None:
    own = directory_of(MALLORY, place / "run")
    config = scene(place, '[program.app]\ncommand = "sleep 1000"\n', manager=f'pidfile = "{own}/app.pid"')
    refused = fcgimgr("-c", config).fails(1)
    assert f"{own}/app.pid: its directory belongs to uid {MALLORY}, who could put another in its place" in refused
    assert list(own.iterdir()) == []


def test_a_pidfile_that_anybody_may_replace_is_refused(place: Path) -> None:
    place.chmod(0o777)
    with pytest.raises(LinuxError, match="its directory may be written to by everybody"):
        LockFile(f"{place}/app.pid")


def test_a_pidfile_made_before_by_another_is_refused(place: Path) -> None:
    place.chmod(0o1777)
    run_as(MALLORY, "sh", "-c", f"umask 0; echo 4711 > {place}/app.pid")
    with pytest.raises(LinuxError, match=f"belongs to uid {MALLORY}, who could hold it"):
        LockFile(f"{place}/app.pid")
    assert (place / "app.pid").read_text() == "4711\n"


def test_a_pidfile_with_another_name_is_not_overwritten(place: Path) -> None:
    (place / "precious").write_text("precious")
    os.link(place / "precious", place / "app.pid")
    with pytest.raises(LinuxError, match="has another name"):
        LockFile(f"{place}/app.pid")
    assert (place / "precious").read_text() == "precious"


def test_a_pidfile_of_roots_that_was_left_behind_is_used(place: Path) -> None:
    (place / "app.pid").write_text("4711\n")
    lock = LockFile(f"{place}/app.pid")
    try:
        assert (place / "app.pid").read_text() == f"{os.getpid()}\n"
        with open(place / "app.pid") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        lock.remove()
    assert list(place.iterdir()) == []
