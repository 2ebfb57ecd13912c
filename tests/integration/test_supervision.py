"""Processes are kept alive: replaced at once, in the end given up, started in order, restarted one by one."""

import json
import os
import socket
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from fcgimgr.control.client import Client
from fcgimgr.control.messages import Event, Events, EventsParams, NamesParams, Progress, Verdict
from tests.integration.ports import connect, free_address, free_port
from tests.integration.running import RunningManager, copy_example, example_manager
from tests.integration.scenes import Child, ask, fails, is_alive, kill, managing, scene
from tests.integration.servers import need, run
from tests.waiting import eventually

PYTHON = f"{sys.executable} -S -E"

SLEEPER = """
[program.app]
command = "sleep 1000"
startsecs = 0
"""


def changes(manager: RunningManager, name: str = "") -> list[Event]:
    """How the states of a process, or of all, have changed, oldest first."""
    with Client(str(manager.control)) as client:
        happened = client.call("events", EventsParams(n=10_000), answer=Events).events
    return [event for event in happened if event.kind == "process_state" and name in ("", event.name)]


def states(manager: RunningManager, name: str) -> list[str | None]:
    """The states that a process has come into, oldest first."""
    return [change.to_state for change in changes(manager, name)]


def replaced(manager: RunningManager, name: str, *dead: int, number: int) -> list[int]:
    """Wait until so many processes run and none of them is one of the dead; their pids."""

    def living() -> list[int] | None:
        pids = manager.pids(name)  # Once, for it may die between two looks.
        return pids if len(pids) == number and not set(dead) & set(pids) else None

    return eventually(living, within=30) or []


# -- deaths and replacements ------------------------------------------------------------------------------------------


def test_a_process_that_dies_while_running_is_replaced_at_once(tmp_path: Path) -> None:
    # With any back-off at all it would be a minute.
    more = "numprocs = 2\nbackoff_initial = 60\nbackoff_max = 60\n"
    with managing(scene(tmp_path, SLEEPER + more)) as manager:
        first, second = manager.pids("app")
        kill(first)
        replaced(manager, "app", first, number=2)
        assert second in manager.pids("app")
        assert states(manager, "app:app_00") == ["STARTING", "RUNNING", "STARTING", "RUNNING"]
        process = manager.pool("app").processes[0]
        assert process.restarts == 1
        assert process.exit is not None
        assert process.exit.signal == "SIGKILL"


def test_failed_starts_back_off_longer_and_longer_and_end_in_fatal(tmp_path: Path) -> None:
    tables = """
        [program.bad]
        command = ["sh", "-c", "echo it is the wrong colour >&2; exit 3"]
        startsecs = 1
        startretries = 3
        backoff_initial = 0.1
        backoff_max = 0.3
        [program.good]
        command = "sleep 1000"
        startsecs = 0
    """
    with managing(scene(tmp_path, tables), ready=False) as manager:
        eventually(lambda: manager.pool("bad").state == "FATAL")
        assert states(manager, "bad:bad_00") == [*["STARTING", "BACKOFF"] * 3, "STARTING", "FATAL"]
        waits = [
            after.time - before.time
            for before, after in pairwise(changes(manager, "bad:bad_00"))
            if before.to_state == "BACKOFF"
        ]
        # The last fifth of each is jitter; how late the machine is has no bound.
        assert all(wait >= 0.8 * asked for wait, asked in zip(waits, [0.1, 0.2, 0.3], strict=True)), waits
        (process,) = manager.pool("bad").processes
        assert process.exit is not None
        assert process.exit.code == 3
        assert "exited with code 3" in (process.reason or "")
        assert manager.pool("good").state == "RUNNING"


def test_fatal_is_left_by_start(tmp_path: Path) -> None:
    tables = f"""
        [pool.app]
        socket = "127.0.0.1:{free_port()}"
        command = ["sh", "-c", "test -e cured && exec sleep 1000; echo not cured >&2; exit 1"]
        ready = "startsecs"
        directory = "%(here)s"
        startsecs = 0.2
        startretries = 0
    """
    with managing(scene(tmp_path, SLEEPER.replace("app", "other") + tables), ready=False) as manager:
        eventually(lambda: manager.pool("app").state == "FATAL")
        verdict = manager.start("app")
        assert not verdict.ok
        assert verdict.processes[0].lines == ("not cured",)
        (tmp_path / "cured").touch()
        assert manager.start("app").ok
        assert manager.pool("app").state == "RUNNING"


def test_a_pool_whose_every_process_is_fatal_refuses_clients_unless_it_is_to_keep_its_socket(tmp_path: Path) -> None:
    closed, kept = free_address("tcp", tmp_path), free_address("unix", tmp_path)
    tables = SLEEPER + "".join(
        f"""
        [pool.{on_fatal}]
        socket = "{address}"
        command = "false"
        startretries = 0
        on_fatal = "{on_fatal}"
        numprocs = 2
        """
        for on_fatal, address in (("close", closed), ("keep", kept))
    )
    with managing(scene(tmp_path, tables), ready=False) as manager:
        eventually(lambda: {manager.pool(name).state for name in ("close", "keep")} == {"FATAL"})
        with pytest.raises(ConnectionRefusedError):
            connect(closed)
        connect(kept).close()


@pytest.mark.parametrize(
    ("autorestart", "code", "comes_again"),
    [
        ("true", 0, True),
        ("true", 1, True),
        ("false", 0, False),
        ("false", 1, False),
        ('"unexpected"', 0, False),
        ('"unexpected"', 7, False),
        ('"unexpected"', 1, True),
    ],
)
def test_autorestart_and_exitcodes(autorestart: str, code: int, comes_again: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "end")
    tables = f"""
        [program.app]
        command = ["sh", "-c", "read line <end; exit {code}"]
        directory = "%(here)s"
        startsecs = 0
        autorestart = {autorestart}
        exitcodes = [0, 7]
    """
    with managing(scene(tmp_path, tables)) as manager:
        (pid,) = manager.pids("app")
        (tmp_path / "end").write_text("now\n")
        if comes_again:
            replaced(manager, "app", pid, number=1)
        else:
            eventually(lambda: manager.pool("app").processes[0].state == "EXITED")
            assert states(manager, "app:app_00") == ["STARTING", "RUNNING", "EXITED"]
            assert manager.start("app").ok  # EXITED is left by start as well.
            assert manager.pids("app") not in ([], [pid])


def test_exit_on_fatal_ends_the_manager_with_1_and_all_that_it_runs(tmp_path: Path) -> None:
    tables = """
        [program.bad]
        command = ["sh", "-c", "until [ -s pid ]; do sleep 0.01; done; exit 1"]
        directory = "%(here)s"
        startsecs = 60
        startretries = 0
        depends_on = ["good"]
        [program.good]
        command = ["sh", "-c", "echo $$ >pid; exec sleep 1000"]
        directory = "%(here)s"
        startsecs = 0
    """
    code, said = fails(scene(tmp_path, tables, manager="exit_on_fatal = true"))
    assert code == 1
    assert "bad: FATAL, and exit_on_fatal is set" in said
    assert not is_alive(int((tmp_path / "pid").read_text()))


# -- ready ------------------------------------------------------------------------------------------------------------


def test_a_process_that_never_says_ready_is_stopped_and_counts_as_a_failed_start(tmp_path: Path) -> None:
    tables = (
        SLEEPER
        + """
        [program.mute]
        command = "sleep 1000"
        ready = "notify"
        ready_timeout = 0.2
        startretries = 1
        backoff_initial = 0.1
    """
    )
    with managing(scene(tmp_path, tables), ready=False) as manager:
        eventually(lambda: manager.pool("mute").state == "FATAL")
        seen = states(manager, "mute:mute_00")
        assert seen == ["STARTING", "STOPPING", "BACKOFF", "STARTING", "STOPPING", "FATAL"]
        (process,) = manager.pool("mute").processes
        assert process.reason == "not ready within ready_timeout (0.2 s)"


# Says READY=1, by a child of its own, when a line comes.
NOTIFY = """
import os, signal, socket, sys
sys.stdin = open("ready")
sys.stdin.readline()
if os.fork() == 0:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"STATUS=warm\\nREADY=1\\nX_REQUESTS=42", os.environ["NOTIFY_SOCKET"])
    # It must live until it has been heard, or nobody could tell whose it was; systemd-notify(1) waits likewise.
signal.pause()
"""


def test_a_process_is_ready_when_it_says_so_and_what_depends_on_it_waits_until_then(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ready")
    (tmp_path / "notify.py").write_text(NOTIFY)
    tables = f"""
        [program.late]
        command = "{PYTHON} notify.py"
        directory = "%(here)s"
        ready = "notify"
        [program.app]
        command = "sleep 1000"
        startsecs = 0
        depends_on = ["late"]
        [program.last]
        command = "sleep 1000"
        startsecs = 0
        depends_on = ["app", "late"]
    """
    with managing(scene(tmp_path, tables), ready=False) as manager:
        with open(tmp_path / "ready", "w") as ready:  # Opened when the child has opened its end.
            assert [pool.state for pool in manager.status().pools] == ["STARTING"] * 3
            assert manager.status().manager.state == "STARTING"
            ready.write("now\n")
        eventually(manager.all_running)
        assert manager.pool("late").processes[0].requests == 42
        order = [change.name.split(":")[0] for change in changes(manager) if change.to_state == "RUNNING"]
        assert order == ["late", "app", "last"]


def test_a_stranger_cannot_say_that_a_process_is_ready(tmp_path: Path) -> None:
    tables = '[program.mute]\ncommand = "sleep 1000"\nready = "notify"\n'
    with managing(scene(tmp_path, tables), ready=False) as manager:
        process = eventually(lambda: manager.pool("mute").processes[0])
        assert process.pid is not None
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", Child(process.pid).environ["NOTIFY_SOCKET"])
            for _ in range(3):  # Each answer comes after a turn of the loop in which it could have been heeded.
                assert manager.pool("mute").processes[0].state == "STARTING"


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("example", ["flup", "c", "go"])
def test_ping_finds_every_process_ready_by_its_own_answer(example: str, transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    config = copy_example(example, tmp_path, address)
    if example == "go":
        need("go")
        run(["go", "build"], config.parent)
    elif example == "c":
        need("cc", "make")
        run(["make"], config.parent)
    # Nothing but an answer of its own makes a process ready within the time of this test.
    config.write_text(config.read_text() + 'ready = "ping"\nready_timeout = 120\nstartsecs = 60\n')
    with example_manager(config) as manager:
        (pid, *others) = manager.pids(example)
        kill(pid)
        # The new one has to be found among its siblings, who answer pings as well.
        assert set(others) < set(replaced(manager, example, pid, number=len(others) + 1))


def test_ping_does_not_take_a_process_for_ready_that_answers_nothing(tmp_path: Path) -> None:
    tables = (
        SLEEPER
        + f"""
        [pool.deaf]
        socket = "127.0.0.1:{free_port()}"
        command = "sleep 1000"
        ready = "ping"
        ready_timeout = 0.3
        startretries = 0
        startsecs = 0
    """
    )
    with managing(scene(tmp_path, tables), ready=False) as manager:
        eventually(lambda: manager.pool("deaf").state == "FATAL")
        assert states(manager, "deaf:deaf_00") == ["STARTING", "STOPPING", "FATAL"]


HELPED = """\
import os, signal, socket
with open("ready") as line:
    line.readline()
manager = int(open(f"/proc/{os.getpid()}/stat").read().rpartition(")")[2].split()[1])
os.kill(manager, signal.SIGSTOP)  # so that the helper has been reaped when its word is heard
try:
    if os.fork() == 0:
        os.setsid()
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
        os._exit(0)
    os.wait()
finally:
    os.kill(manager, signal.SIGCONT)
signal.pause()
"""


def test_a_helper_that_has_ended_may_say_that_a_process_is_ready(tmp_path: Path) -> None:
    (tmp_path / "helped.py").write_text(HELPED)
    os.mkfifo(tmp_path / "ready")
    tables = f"""
        [program.helped]
        command = "{sys.executable} -S -E helped.py"
        directory = "%(here)s"
        ready = "notify"
        ready_timeout = 600
    """
    with managing(scene(tmp_path, tables), ready=False) as manager:
        with open(tmp_path / "ready", "w") as ready:
            ready.write("now\n")
        eventually(manager.all_running)


def test_a_web_of_dependencies_is_looked_through_once(tmp_path: Path) -> None:
    layers = 40
    tables = ['[program.first]\ncommand = "sleep 1000"\nstartsecs = 3600\n']
    for layer in range(layers):
        below = [f"a{layer - 1}", f"b{layer - 1}"] if layer else ["first"]
        tables += [
            f'[program.{side}{layer}]\ncommand = "sleep 1000"\ndepends_on = {json.dumps(below)}\n' for side in "ab"
        ]
    with managing(scene(tmp_path, "".join(tables)), ready=False) as manager:
        states = {pool.name: pool.state for pool in manager.status().pools}
        assert states == dict.fromkeys(states, "STARTING")
        assert len(states) == 2 * layers + 1


# -- order ------------------------------------------------------------------------------------------------------------


def test_priority_is_the_order_in_which_they_start(tmp_path: Path) -> None:
    priorities = {"third": 30, "first": 0, "second": 20, "fourth": 30}
    tables = "".join(
        f'[program.{name}]\ncommand = "sleep 1000"\nstartsecs = 0\npriority = {priority}\n'
        for name, priority in priorities.items()
    )
    with managing(scene(tmp_path, tables)) as manager:
        order = [change.name.split(":")[0] for change in changes(manager) if change.to_state == "STARTING"]
        assert order == ["first", "second", "third", "fourth"]


def test_what_autostart_does_not_start_waits_for_an_operator(tmp_path: Path) -> None:
    with managing(scene(tmp_path, SLEEPER + "autostart = false\n"), ready=False) as manager:
        eventually(lambda: manager.status().manager.state == "RUNNING")
        assert manager.pool("app").state == "STOPPED"
        assert manager.start("app").ok
        assert manager.pool("app").state == "RUNNING"


# -- commands ---------------------------------------------------------------------------------------------------------


def test_a_restart_takes_the_next_process_only_when_the_last_is_replaced(tmp_path: Path) -> None:
    more = "numprocs = 4\n"
    with managing(scene(tmp_path, SLEEPER.replace("startsecs = 0", "startsecs = 0.05") + more)) as manager:
        before = manager.pids("app")
        current = {f"app:app_0{number}": "RUNNING" for number in range(4)}
        fewest = 4

        def heed(notice: object) -> None:
            nonlocal fewest
            assert isinstance(notice, Progress)
            current[notice.name] = notice.state
            fewest = min(fewest, list(current.values()).count("RUNNING"))

        with Client(str(manager.control)) as client:
            params = NamesParams(names=("app",))
            verdict = client.call("restart", params, answer=Verdict, on_event=heed, patient=True)
        assert verdict.ok
        assert fewest == 3
        assert not set(before) & set(manager.pids("app"))


def test_a_restart_stops_at_the_first_that_does_not_come_back(tmp_path: Path) -> None:
    (tmp_path / "good").touch()
    tables = """
        [program.app]
        command = ["sh", "-c", "test -e good && exec sleep 1000"]
        directory = "%(here)s"
        startsecs = 0.2
        numprocs = 3
        backoff_initial = 60
        backoff_max = 60
    """
    with managing(scene(tmp_path, tables)) as manager:
        first, *others = manager.pids("app")
        (tmp_path / "good").unlink()
        verdict = manager.restart("app")
        assert [process.ok for process in verdict.processes] == [False, False, False]
        assert manager.pids("app") == others
        assert not is_alive(first)


def test_scale_starts_and_stops_only_the_difference(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    tables = f"""
        [pool.app]
        socket = "{address}"
        command = "{PYTHON} %(here)s/answer.py"
        startsecs = 0
        numprocs = 2
    """
    with managing(scene(tmp_path, tables)) as manager:
        two = manager.pids("app")
        assert manager.scale("app", "+3").numprocs == 5
        five = manager.pids("app")
        assert five[:2] == two
        assert len(set(five)) == 5
        assert manager.scale("app", "1").ok
        assert manager.pids("app") == two[:1]
        assert not any(is_alive(pid) for pid in five[1:])
        assert ask(address)["pid"] == two[0]
        kill(two[0])
        replaced(manager, "app", two[0], number=1)
        assert len(manager.pool("app").processes) == 1


# -- for ever ---------------------------------------------------------------------------------------------------------

RESPAWNS = 10_000
AT_ONCE = 250
# What a pool's budget for crashes lets pass before its processes must live for a second: core/crashes.py.
KILLED_IN_A_ROW = 3


def test_no_fd_and_no_zombie_is_left_of_many_respawns(tmp_path: Path) -> None:
    tables = f"""
        [pool.app]
        socket = "127.0.0.1:{free_port()}"
        command = "sleep 1000"
        ready = "startsecs"
        startsecs = 0
        numprocs = {AT_ONCE}
    """
    with managing(scene(tmp_path, tables, manager='loglevel = "error"')) as manager:
        itself = Child(manager.pid)

        def are_old() -> bool:
            return all((process.uptime or 0) > 1.0 for process in manager.pool("app").processes)

        fds = len(itself.fds)
        memory = itself.memory
        for round in range(RESPAWNS // AT_ONCE):
            if round % KILLED_IN_A_ROW == 0:
                eventually(are_old, every=0.05)
            dead = manager.pids("app")
            kill(*dead)
            replaced(manager, "app", *dead, number=AT_ONCE)

        assert sum(process.restarts or 0 for process in manager.pool("app").processes) == RESPAWNS
        eventually(lambda: len(itself.fds) <= fds)  # There is one more while a question of ours is being hung up on.
        eventually(lambda: sorted(itself.children) == sorted(manager.pids("app")))
        assert itself.memory < memory + 4_000_000
        assert sorted(Child(manager.pids("app")[-1]).fds) == [0, 1, 2]
