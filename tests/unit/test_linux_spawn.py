"""Spawning: real children that report what they got, by both ways (posix_spawn and fork)."""

import json
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fcgimgr.linux import spawn as spawning
from fcgimgr.linux.accounts import Account, resolve_user
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.pipes import log_pipe
from fcgimgr.linux.spawn import Forked, Order, Recipe, find_executable, start
from tests.rights import as_root

from ..stuck import stuck
from .spawned import pid_of, spawn

as_ordinary_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may do that")

# What a child says of itself, on its stdout. -I -S: nothing but the interpreter.
REPORT = """
import json, os, resource, sys
opened = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
fds = {int(os.path.basename(path)): os.readlink(path) for path in opened if os.path.lexists(path)}
json.dump({
    "fds": fds, "argv": sys.argv, "environ": dict(os.environ), "cwd": os.getcwd(),
    "pid": os.getpid(), "sid": os.getsid(0), "pgid": os.getpgid(0), "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "uids": os.getresuid(), "gids": os.getresgid(), "groups": sorted(os.getgroups()),
    "limits": {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")},
    "oom_score_adj": int(open("/proc/self/oom_score_adj").read()),
    "blocking": [os.get_blocking(fd) for fd in (0, 1, 2)],
}, sys.stdout)
"""

# Everything that sends a recipe by the fork path, changing as little as may be.
BY_FORK: dict[str, Any] = {"oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text())}


@pytest.fixture(autouse=True, scope="module")
def nothing_inheritable() -> None:
    """As the manager makes it at its start: whoever runs the tests may have left fds open."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and os.path.lexists(f"/proc/self/fd/{name}"):
            os.set_inheritable(int(name), False)


@pytest.fixture(params=["vfork", "fork"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What to add to a recipe to go this way; the other way is barred."""

    def wrong_way(*_: object) -> int:
        raise AssertionError("took the other way")

    by_fork = request.param == "fork"
    monkeypatch.setattr(spawning, "_spawn_alike" if by_fork else "_fork", wrong_way)
    return BY_FORK if by_fork else {}


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def recipe(*argv: str, **more: Any) -> Recipe:
    more.setdefault("environment", {"PATH": "/usr/bin:/bin"})
    return Recipe(argv=argv, executable=argv[0], **more)


def reporter(*words: str, **more: Any) -> Recipe:
    # argv[0] stays sys.executable, or a virtualenv's interpreter would not find its home.
    return recipe(sys.executable, "-I", "-S", "-c", REPORT, *words, **more)


def said(it: Recipe, *, stdin: int | None = None, **more: Any) -> str:
    """What the child writes on stdout and stderr, when it is over and was a success."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pid = spawn(it, stdin=nothing if stdin is None else stdin, stdout=writer, stderr=writer, **more)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
        os.close(nothing)
    with open(reader) as output:
        text = output.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, text
    return text


def reported(it: Recipe, **more: Any) -> Any:
    return json.loads(said(it, **more))


def status_of(it: Recipe, **more: Any) -> dict[str, str]:
    """/proc/self/status of a child that is cat: Python itself changes signal dispositions."""
    cat = msgspec.structs.replace(it, argv=("cat", "/proc/self/status"), executable="/bin/cat")
    return dict(line.split(":\t", 1) for line in said(cat, **more).splitlines() if ":\t" in line)


# --- what every child gets


def test_a_child_leads_its_own_session(way: dict[str, Any]) -> None:
    child = reported(reporter(**way))
    assert child["sid"] == child["pgid"] == child["pid"] != os.getsid(0)


def test_a_child_has_the_words_and_the_environment_of_its_recipe_and_no_other(way: dict[str, Any]) -> None:
    environment = {"GREETING": "grüß Gott", "EMPTY": ""}
    child = reported(reporter("one", "two words", environment=environment, **way))
    assert child["argv"][1:] == ["one", "two words"]
    child["environ"].pop("LC_CTYPE", None)  # Python sets it in itself where no locale is given
    assert child["environ"] == environment


def test_a_child_has_its_three_fds_and_no_other(way: dict[str, Any], tmp_path: Path) -> None:
    leaks = [os.open(tmp_path, os.O_RDONLY) for _ in range(20)]  # close-on-exec, as all that Python opens
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        child = reported(reporter(**way), stdin=listener.fileno())
        inode = os.fstat(listener.fileno()).st_ino
    for fd in leaks:
        os.close(fd)
    # listdir's own is gone by the time its link is read.
    assert sorted(child["fds"]) == ["0", "1", "2"]
    assert child["fds"]["0"] == f"socket:[{inode}]"
    assert child["fds"]["1"] == child["fds"]["2"]


def test_fork_closes_even_what_is_not_close_on_exec(null: int) -> None:
    leak = fcntl_dup_inheritable(null)
    child = reported(reporter(**BY_FORK))
    os.close(leak)
    assert sorted(child["fds"]) == ["0", "1", "2"]


def fcntl_dup_inheritable(fd: int) -> int:
    leak = os.dup(fd)
    os.set_inheritable(leak, True)
    return leak


def test_listeners_come_as_3_4_5(way: dict[str, Any]) -> None:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    child = reported(reporter(**way), stdin=listeners[0].fileno(), listeners=[each.fileno() for each in listeners])
    links = [f"socket:[{os.fstat(each.fileno()).st_ino}]" for each in listeners]
    for each in listeners:
        each.close()
    assert [child["fds"][str(fd)] for fd in (0, 3, 4, 5)] == [links[0], *links]
    assert len(child["fds"]) == 6


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (1, 2, 0, 4, 3), (2, 2, 1, 1, 3)])
def test_fds_never_overwrite_each_other_on_their_way(way: dict[str, Any], order: tuple[int, ...]) -> None:
    # In a process of our own making, where 0-4 are five different files.
    script = f"""
import os, sys
from fcgimgr.linux.spawn import Recipe
from tests.unit.spawned import spawn
files = [os.open(f"/proc/self/{{name}}", os.O_RDONLY) for name in ("stat", "statm", "maps", "limits", "io")]
high = [os.dup2(fd, 100 + at, inheritable=False) for at, fd in enumerate(files)]
report = os.dup2(1, 200, inheritable=False)
for at, fd in enumerate(high):
    os.dup2(fd, at, inheritable=False)
lister = "import os\\nfor fd in range(5): print(os.readlink(f'/proc/self/fd/{{fd}}').rpartition('/')[2], file=out)"
lister = "import os, sys; out = open('/dev/fd/' + sys.argv[1], 'w')\\n" + lister
order = {order!r}
pid = spawn(
    Recipe(
        argv=(sys.executable, "-I", "-S", "-c", lister, str(len(order))),
        executable=sys.executable, environment={{}}, **{way!r},
    ),
    stdin=order[0], stdout=order[1], stderr=order[2], listeners=[*order[3:], report],
)
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    names = ["stat", "statm", "maps", "limits", "io"]
    outer = recipe(sys.executable, "-c", script, environment={"PYTHONPATH": os.getcwd()})
    # The outer one may take any way; only the inner one is looked at.
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.posix_spawn(
        outer.executable,
        outer.argv,
        outer.environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)],
    )
    os.close(writer)
    with open(reader) as output:
        assert output.read().split() == [names[fd] for fd in order]
    assert os.waitpid(pid, 0)[1] == 0


def test_fds_beyond_the_childs_soft_limit_reach_it(null: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    before = set(os.listdir("/proc/self/fd"))
    high = os.dup2(null, 2000, inheritable=False)
    try:
        child = reported(reporter(soft_nofile=1024), stdin=high, listeners=[high])
        assert child["limits"]["RLIMIT_NOFILE"][0] == 1024
        assert (child["fds"]["0"], child["fds"]["3"], len(child["fds"])) == (os.devnull, os.devnull, 4)
        higher = [os.dup2(null, 2001 + number, inheritable=False) for number in range(9)]
        child = reported(reporter(soft_nofile=1024), stdin=high, listeners=higher)
        assert len(child["fds"]) == 12
    finally:
        os.closerange(2000, 2020)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_manager_holds_no_pipe_of_a_childs_after_its_start(null: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    said(recipe("/bin/true"), stdin=null)
    reader, low = os.pipe2(os.O_CLOEXEC)
    try:
        writer = os.dup2(low, 2000, inheritable=False)
        os.close(low)
        pid = spawn(recipe("/bin/true", soft_nofile=1024), stdin=null, stdout=writer, stderr=writer)
        os.close(writer)
        os.waitpid(pid, 0)
        assert os.read(reader, 1) == b"", "end of file: nobody holds the other end"
    finally:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_signals_are_default_and_unblocked(way: dict[str, Any]) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGRTMIN})
    try:
        status = status_of(recipe("cat", **way))
    finally:
        assert signal.pthread_sigmask(signal.SIG_SETMASK, ()) == {signal.SIGTERM, signal.SIGRTMIN}
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN, "the test means something: we ignore it ourselves"
    # 32 and 33 are glibc's own: its posix_spawn leaves them ignored, and a child's glibc sets them when it needs them.
    internal = 1 << 31 | 1 << 32
    assert [int(status[key], 16) & ~internal for key in ("SigBlk", "SigIgn", "SigCgt")] == [0, 0, 0]


# --- what a recipe can ask for, and that we ourselves stay as we are


@pytest.fixture
def unchanged() -> Iterator[None]:
    def ourselves() -> tuple[object, ...]:
        umask = os.umask(0)
        os.umask(umask)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return os.getcwd(), umask, limits, mask, len(os.listdir("/proc/self/fd"))

    before = ourselves()
    yield
    assert ourselves() == before


def test_directory_umask_and_soft_limit(way: dict[str, Any], unchanged: None, tmp_path: Path) -> None:
    status = status_of(recipe("cat", directory=str(tmp_path), umask=0o137, soft_nofile=333, **way))
    child = reported(reporter(directory=str(tmp_path), umask=0o137, soft_nofile=333, **way))
    assert child["cwd"] == str(tmp_path)
    assert status["Umask"] == "0137"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert child["limits"]["RLIMIT_NOFILE"] == [333, hard]


def test_none_means_as_the_manager_has_it(way: dict[str, Any], unchanged: None) -> None:
    child = reported(reporter(**way))
    assert child["cwd"] == os.getcwd()
    assert child["uids"] == list(os.getresuid())
    assert child["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
    for name, limits in child["limits"].items():
        assert tuple(limits) == resource.getrlimit(getattr(resource, name)), name


def test_rlimits(unchanged: None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    child = reported(reporter(rlimits={"nofile": (100, 200), "core": (0, 0), "fsize": (4096, 8192)}, soft_nofile=50))
    assert child["limits"]["RLIMIT_NOFILE"] == [100, 200]
    assert child["limits"]["RLIMIT_CORE"] == [0, 0]
    assert child["limits"]["RLIMIT_FSIZE"] == [4096, 8192]
    child = reported(reporter(rlimits={"nofile": (100, hard)}))
    assert child["limits"]["RLIMIT_NOFILE"] == [100, hard]
    assert set(spawning.RLIMITS) >= {"nofile", "core", "as", "nproc", "memlock", "stack", "cpu", "fsize", "data"}


def test_nice_is_absolute(unchanged: None) -> None:
    wanted = os.getpriority(os.PRIO_PROCESS, 0) + 3
    assert reported(reporter(nice=wanted))["nice"] == wanted


def test_oom_score_adj(unchanged: None) -> None:
    assert reported(reporter(oom_score_adj=777))["oom_score_adj"] == 777


def test_no_new_privs(unchanged: None) -> None:
    assert status_of(recipe("cat", no_new_privs=True))["NoNewPrivs"] == "1"
    assert status_of(recipe("cat"))["NoNewPrivs"] == "0"


def test_systemds_way_of_passing_listeners(unchanged: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        child = reported(
            reporter(), listeners=[one.fileno(), other.fileno()], listen_names=["app", "app"], listen_pid=True
        )
        links = [f"socket:[{os.fstat(each.fileno()).st_ino}]" for each in (one, other)]
    environ = child["environ"]
    assert (environ["LISTEN_FDS"], environ["LISTEN_FDNAMES"]) == ("2", "app:app")
    assert environ["LISTEN_PID"] == str(child["pid"])
    assert [child["fds"]["3"], child["fds"]["4"]] == links


def test_ones_own_account_needs_no_privilege(way: dict[str, Any]) -> None:
    ourselves = Account(
        uid=os.getuid(),
        gid=os.getgid(),
        groups=(os.getgid(), *os.getgroups()) if os.getuid() == 0 else (),
        name="me",
        home="/",
        shell="/bin/sh",
    )
    assert reported(reporter(account=ourselves, **way))["uids"] == [os.getuid()] * 3


@as_root
def test_another_user(unchanged: None) -> None:
    account = Account(uid=12345, gid=23456, groups=(23456, 4, 5), name="somebody", home="/", shell="/bin/sh")
    it = recipe("cat", account=account, directory="/", no_new_privs=True, rlimits={"nofile": (64, 64)})
    status = status_of(it)
    assert status["Uid"].split() == ["12345"] * 4
    assert status["Gid"].split() == ["23456"] * 4
    assert sorted(map(int, status["Groups"].split())) == [4, 5, 23456]
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"


@as_root
def test_another_user_can_open_its_stderr_again(null: int) -> None:
    reader, writer = log_pipe()
    account = resolve_user("nobody")
    it = recipe("/bin/sh", "-c", "echo through the door > /dev/stderr", account=account, directory="/")
    pid = spawn(it, stdin=null, stdout=writer, stderr=writer)
    _, status = os.waitpid(pid, 0)
    os.close(writer)
    text = os.read(reader, 100)
    os.close(reader)
    assert (status, text) == (0, b"through the door\n")


@as_root
def test_chroot(tmp_path: Path, null: int, unchanged: None) -> None:
    # /proc does inside what a program's own files would do: it needs no library.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "link").symlink_to("/bin/nowhere")
    found = find_executable("link", "/usr/bin:/bin", chroot=str(tmp_path))
    assert found == "/bin/link"
    with pytest.raises(LinuxError, match=r"/bin/nothing: does not exist"):
        spawn(recipe("/bin/nothing", chroot=str(tmp_path)), stdin=null, stdout=null, stderr=null)
    child = reported(reporter(chroot="/", directory="/usr"))
    assert child["cwd"] == "/usr"


# --- when it fails


def refused(it: Recipe, null: int) -> str:
    with pytest.raises(LinuxError) as refusal:
        spawn(it, stdin=null, stdout=null, stderr=null)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no child is left, not even a dead one
    return str(refusal.value)


def script(tmp_path: Path, text: str, mode: int = 0o755) -> str:
    path = tmp_path / "script"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_failures_name_the_cause_and_the_mend(way: dict[str, Any], unchanged: None, null: int, tmp_path: Path) -> None:
    assert refused(recipe("/nowhere", **way), null) == "/nowhere: does not exist"
    path = script(tmp_path, "#!/no/such/python\n")
    assert refused(recipe(path, **way), null).startswith(f"{path}: its interpreter /no/such/python does not exist;")
    path = script(tmp_path, "just text\n")
    assert "is neither a binary for this machine nor a script with a #! line" in refused(recipe(path, **way), null)
    path = script(tmp_path, "#!/bin/sh\n", 0o644)
    assert f"{path}: uid {os.geteuid()} has no permission to execute it" in refused(recipe(path, **way), null)
    missing = refused(recipe("/bin/true", directory="/no/such/place", **way), null)
    assert missing == "directory /no/such/place: no such file or directory; create it, or name another"
    assert "too long" in refused(recipe("/bin/true", "x" * 200_000, **way), null)
    assert "invalid argument" in refused(recipe("/bin/true", "nul\0byte", **way), null)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert "rlimit_nofile" in refused(recipe("/bin/true", soft_nofile=hard + 1, **way), null)


def test_an_fd_that_is_not_open_is_refused(way: dict[str, Any], unchanged: None, null: int) -> None:
    with pytest.raises(LinuxError, match="bad file descriptor"):
        spawn(recipe("/bin/true", **way), stdin=999, stdout=null, stderr=null)


@as_ordinary_user
def test_what_only_root_may_is_refused_by_name(unchanged: None, null: int) -> None:
    root = resolve_user("root")
    assert "user root: operation not permitted; only root may start" in refused(recipe("/bin/true", account=root), null)
    assert "nice -5: permission denied; only root" in refused(recipe("/bin/true", nice=-5), null)
    assert "chroot /tmp: operation not permitted; only root" in refused(recipe("/bin/true", chroot="/tmp"), null)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refusal = refused(recipe("/bin/true", rlimits={"nofile": (soft, hard + 1)}), null)
    assert (
        f"rlimit_nofile ({soft}, {hard + 1}): operation not permitted; only root (CAP_SYS_RESOURCE) may raise"
        in refusal
    )


def test_starts_and_failures_leave_no_fd(way: dict[str, Any], unchanged: None, null: int) -> None:
    for _ in range(50):
        os.waitpid(spawn(recipe("/bin/true", **way), stdin=null, stdout=null, stderr=null), 0)
        with pytest.raises(LinuxError):
            spawn(recipe("/nowhere", **way), stdin=null, stdout=null, stderr=null)


# --- many at once


def test_each_of_many_gets_its_own_answer_in_its_own_place(null: int, unchanged: None, tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {}, {"directory": str(tmp_path), "umask": 0o027}, BY_FORK, {"soft_nofile": 512}, {"directory": "/no/such/place"}
    ]  # fmt: skip
    orders = []
    for number in range(40):
        program = "/nowhere" if number % 8 == 7 else "/bin/sh"
        it = recipe("/bin/sh", "-c", f"exit {number}", **kinds[number % 5])
        orders.append(Order(msgspec.structs.replace(it, executable=program), null, null, null))
    for number, child in enumerate(start(orders)):
        if number % 5 == 4:
            assert "directory /no/such/place" in str(child)
        elif number % 8 == 7:
            with pytest.raises(LinuxError, match="/nowhere: does not exist"):
                pid_of(child)
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(pid_of(child), 0)[1]) == number
    assert threading.active_count() == 1


def test_a_start_by_fork_does_not_wait_for_the_program(null: int, unchanged: None, tmp_path: Path) -> None:
    with stuck(script(tmp_path, "#!/bin/true\n")) as path:
        [child] = start([Order(recipe(path, **BY_FORK), null, null, null)])
        assert isinstance(child, Forked)
        assert select.select([child], [], [], 0) == ([], [], [])
    assert pid_of(child) == child.pid
    assert os.waitpid(child.pid, 0) == (child.pid, 0)


# --- finding the program


def test_a_program_is_found_in_the_childs_path(tmp_path: Path) -> None:
    path = script(tmp_path, "#!/bin/sh\n")
    assert find_executable("script", f"/nowhere:{tmp_path}:/bin") == path
    assert find_executable("script", "/nowhere:.", str(tmp_path)) == path
    assert find_executable("./script", "", str(tmp_path)) == path
    assert find_executable(path, "") == path


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("absent", lambda path: None, r"command not found: absent; it is in no directory of PATH \(.*\)"),
        ("python", lambda path: None, r"no directory of PATH \(.*\); give its absolute path"),
        ("python", lambda path: path.with_name("python3").touch(0o755), "python3 is: write that, or give its absolute"),
        ("./absent", lambda path: None, "absent does not exist"),
        ("./here", lambda path: path.mkdir(), "here is a directory"),
        ("./here", lambda path: path.touch(0o644), "here is not executable; chmod"),
        ("here", lambda path: path.touch(0o644), "here is not executable; chmod"),
    ],
)
def test_a_program_that_cannot_be_run_is_named(
    tmp_path: Path, name: str, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "here")
    with pytest.raises(LinuxError, match=words):
        find_executable(name, str(tmp_path), str(tmp_path))
