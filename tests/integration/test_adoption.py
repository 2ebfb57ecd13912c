"""After `kill -9` of the manager its processes serve on, and the next manager takes them over: nothing is lost."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fcgimgr.control.messages import NoManager
from tests.integration.commands import lines_of
from tests.integration.ports import free_address
from tests.integration.running import MARK, RunningManager
from tests.integration.scenes import Child, are_gone, is_alive, kill, managing, ordinary_user, scene
from tests.integration.succession import PYTHON, SERVE, Load, killed, next_one, pool, reload, served_by, speaking, write
from tests.integration.test_supervision import replaced
from tests.integration.test_upgrade import upgrade
from tests.rights import as_root
from tests.waiting import eventually

TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "unix"])


def state_of(config: Path) -> Path:
    return config.with_name(f"{config.stem}.control.state") / "state.jsonl"


def edit_state(config: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Have each record of the state file changed."""
    records = [json.loads(line) for line in state_of(config).read_text().splitlines()]
    for record in records:
        change(record)
    state_of(config).write_text("".join(json.dumps(record) + "\n" for record in records))


# -- the promise ------------------------------------------------------------------------------------------------------


@TRANSPORTS
@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_the_next_manager_takes_over_the_same_processes_and_socket(user: str, transport: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as scope:
        directory, prefix = tmp_path, list[str]()
        if user == "ordinary":
            directory, prefix = scope.enter_context(ordinary_user())
        address = free_address(transport, directory)
        first = scope.enter_context(killed(write(directory, pool(address, "numprocs = 3")), prefix=prefix))
        kill(first.pids("app")[1])
        eventually(lambda: first.pool("app").processes[1].restarts == 1 and first.all_running())
        before = first.pool("app").processes
        with Load(address) as load:
            first.kill()
            number = len(load.answers)
            eventually(lambda: len(load.answers) > number + 100)
            with next_one(first, prefix=prefix) as second:
                after = second.pool("app").processes
                assert [process.pid for process in after] == [process.pid for process in before]
                assert [process.restarts for process in after] == [0, 1, 0]
                assert all(
                    was.uptime is not None and now.uptime is not None and now.uptime > was.uptime
                    for was, now in zip(before, after, strict=True)
                )
                assert second.scale("app", "+1").ok  # On the very socket.
                newcomer = second.pool("app").processes[3].pid
                eventually(lambda: newcomer in load.answers[-100:])
                # And a reload is what it was.
                assert reload(second).ok
                assert not {process.pid for process in before} & set(second.pids("app"))
                eventually(lambda: set(load.answers[-10:]) <= set(second.pids("app")))
                load.stop()
        assert load.failures == []
        assert "taking over 3 processes" in second.output()
        assert not (directory / "pool.sock").exists()
        assert not state_of(first.config).parent.exists()


def test_what_was_written_while_there_was_no_manager_is_in_the_log(tmp_path: Path) -> None:
    speaker = "import os, sys\nfor line in open('say'):\n    print(line.strip(), flush=True)\n"
    with killed(speaking(tmp_path, speaker)) as first, (tmp_path / "say").open("w", buffering=1) as say:
        say.write("one\n")
        eventually(lambda: lines_of(tmp_path / "out.log") == ["one"])
        first.kill()
        say.write("two\nthree\n")
        with next_one(first):
            say.write("four\n")
            eventually(lambda: lines_of(tmp_path / "out.log") == ["one", "two", "three", "four"])


def test_it_is_supervised_as_its_own_children_are(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with killed(write(tmp_path, pool(address, "numprocs = 2"))) as first:
        dying, other = first.pids("app")
        first.kill()
        with next_one(first) as second:
            kill(dying)
            replaced(second, "app", dying, number=2)
            process = second.pool("app").processes[0]
            assert process.restarts == 1
            # Linux tells it from 6.15 on, if whoever adopted the process reaps it.
            assert process.exit is None or (process.exit.code, process.exit.signal) in ((None, "SIGKILL"), (None, None))
            assert other in second.pids("app")
            assert second.halt("app").ok
            assert not is_alive(other)
            assert second.start("app").ok


def test_it_sleeps_as_before(tmp_path: Path) -> None:
    with killed(write(tmp_path, pool(free_address("tcp", tmp_path), "numprocs = 3"))) as first:
        first.kill()
        with next_one(first) as second:
            eventually(lambda: Child(second.pid).stat[0] == "S")
            time.sleep(0.5)  # Our last question's connection has to be gone.
            switches = Child(second.pid).status["voluntary_ctxt_switches"]
            time.sleep(2)  # That nothing happens is what is promised.
            assert Child(second.pid).status["voluntary_ctxt_switches"] == switches


def test_a_process_that_the_dead_manager_held_is_let_go(tmp_path: Path) -> None:
    with killed(write(tmp_path, pool(free_address("tcp", tmp_path)))) as first:
        (pid,) = first.pids("app")
        first.kill()
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: Child(pid).stat[0] == "T")
        with next_one(first) as second:
            assert second.pids("app") == [pid]
            assert Child(pid).stat[0] != "T"


def test_its_leftovers_end_with_it(tmp_path: Path) -> None:
    """A group member and a grandchild in a session of its own, of a leader that is not our child."""
    family = """
        import os, signal
        def wait(name):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            open(name + ".new", "w").write(str(os.getpid()))
            os.rename(name + ".new", name)
            while True:
                signal.pause()
        if os.fork() == 0:
            wait("member")
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                wait("escaped")
            os._exit(0)
        while True:
            signal.pause()
    """
    (tmp_path / "family.py").write_text("\n".join(line[8:] for line in family.splitlines()))
    keys = f'command = "{PYTHON} family.py"\ndirectory = "%(here)s"\nstartsecs = 0\nstopwaitsecs = 0.3\n'
    with killed(scene(tmp_path, f"[program.app]\n{keys}")) as first:
        pids = [int(eventually((tmp_path / name).read_text)) for name in ("member", "escaped")]
        first.kill()
        with next_one(first) as second:
            assert second.halt("app").ok
            assert not any(map(is_alive, pids))


# -- what has changed meanwhile ---------------------------------------------------------------------------------------


def test_who_became_ready_while_nobody_listened_is_taken_for_ready(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "say")
    (tmp_path / "unheard.py").write_text(
        "import os, socket, time\n"
        "open('say').read()\n"
        "try:\n"
        "    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\n"
        "except ConnectionRefusedError:\n"
        "    open('unheard', 'w').close()\n"
        "time.sleep(1000)\n"
    )
    keys = ['ready = "notify"', "ready_timeout = 600", "startsecs = 0.1", 'directory = "%(here)s"']
    tables = "\n".join(["[program.app]", f'command = "{PYTHON} unheard.py"', *keys, ""])
    with killed(scene(tmp_path, tables), ready=False) as first:
        eventually(lambda: first.pool("app").processes[0].pid)
        pid = first.pool("app").processes[0].pid
        first.kill()
        (tmp_path / "say").write_text("now")
        eventually((tmp_path / "unheard").exists)
        with next_one(first) as second:
            assert second.pids("app") == [pid]


def test_the_time_without_a_manager_does_not_count_as_time_to_become_ready(tmp_path: Path) -> None:
    keys = ['ready = "ping"', "ready_timeout = 600", 'directory = "%(here)s"']
    (tmp_path / "deaf.py").write_text("import time\nopen('up', 'w').close()\ntime.sleep(1000)\n")
    socket = free_address("unix", tmp_path)
    tables = "\n".join(["[pool.app]", f'socket = "{socket}"', f'command = "{PYTHON} deaf.py"', *keys, ""])
    config = scene(tmp_path, tables)
    with killed(config, ready=False) as first:
        eventually((tmp_path / "up").exists)
        pid = first.pool("app").processes[0].pid
        first.kill()

        def long_ago(record: dict[str, object]) -> None:
            if isinstance(state := record.get("state"), dict):
                state["due"] = time.monotonic() - 100

        edit_state(config, long_ago)
        with next_one(first, ready=False) as second:
            process = second.pool("app").processes[0]
            assert (process.pid, process.state) == (pid, "STARTING")


@TRANSPORTS
def test_who_died_meanwhile_is_replaced_and_nobody_else(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with killed(write(tmp_path, pool(address, "numprocs = 3"))) as first:
        one, dead, three = first.pids("app")
        first.kill()
        kill(dead)
        with next_one(first) as second:
            pids = second.pids("app")
            assert (pids[0], pids[2]) == (one, three)
            assert pids[1] != dead
            assert second.pool("app").processes[1].restarts == 1
        assert "app:app_01: it ended while there was no manager" in second.output()


@TRANSPORTS
def test_a_pool_of_which_nobody_lives_is_started(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    tables = pool(address) + '[program.other]\ncommand = "sleep 1000"\nstartsecs = 0\n'
    with killed(write(tmp_path, tables)) as first:
        (dead,), (other,) = first.pids("app"), first.pids("other")
        first.kill()
        kill(dead)
        are_gone(dead)
        with next_one(first) as second:
            assert second.pids("other") == [other]
            assert served_by(address) == second.pids("app")[0] != dead


def test_when_nobody_lives_at_all_it_is_a_start_like_any_other(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with killed(write(tmp_path, pool(address))) as first:
        pids = first.pids("app")
        first.kill()
        kill(*pids)
        are_gone(*pids)
        with next_one(first) as second:
            assert served_by(address) in second.pids("app")
            assert second.pool("app").processes[0].restarts == 0


def test_a_changed_configuration_is_an_update(tmp_path: Path) -> None:
    address, added = free_address("tcp", tmp_path), free_address("unix", tmp_path)
    tables = pool(address, "numprocs = 2") + '[program.gone]\ncommand = "sleep 1000"\nstartsecs = 0\n'
    with killed(write(tmp_path, tables)) as first:
        kept = first.pids("app")
        (gone,) = first.pids("gone")
        first.kill()
        write(tmp_path, pool(address, "numprocs = 3") + pool(added).replace("pool.app", "pool.new"))
        with next_one(first, ready=False) as second:
            eventually(lambda: len(second.pids("app")) == 3 and len(second.pids("new")) == 1)
            assert second.pids("app")[:2] == kept
            are_gone(gone)
            assert {one.name for one in second.status().pools} == {"app", "new"}
            second.halt("new")


@TRANSPORTS
def test_a_changed_command_is_a_reload_that_loses_nothing(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with killed(write(tmp_path, pool(address, "numprocs = 2"))) as first:
        old = first.pids("app")
        with Load(address) as load:
            first.kill()
            write(tmp_path, pool(address, "numprocs = 2", words="other"))
            with next_one(first) as second:
                eventually(lambda: second.pool("app").generation == 2 and are_gone(*old), within=30)
                assert len(second.pids("app")) == 2
                load.stop()
        assert load.failures == []


# -- a reload under way -----------------------------------------------------------------------------------------------


@TRANSPORTS
@pytest.mark.parametrize("moment", ["coming", "canary", "leaving"])
def test_a_reload_that_was_under_way(moment: str, transport: str, tmp_path: Path) -> None:
    """What was coming is given up, what was leaving goes on leaving, and whoever served serves."""
    if moment == "canary" and transport == "unix":
        pytest.skip("a canary takes TCP")
    address = free_address(transport, tmp_path)
    config = write(tmp_path, pool(address, "numprocs = 2", "stopwaitsecs = 3"))
    with killed(config) as first:
        old = first.pids("app")
        if moment == "coming":
            (tmp_path / "serve.py").write_text(SERVE.replace("words = sys.argv[1:]", "time.sleep(1000)"))
        if moment == "canary":
            assert reload(first, canary=50.0).ok
        else:
            assert reload(first, wait=False).ok
        eventually(lambda: len(first.pool("app").processes) == 4 or moment == "leaving")
        eventually(lambda: len(all_pids(first)) == 4 or moment == "leaving")
        serving = old if moment != "leaving" else []
        with Load(address) as load:
            first.kill()
            (tmp_path / "serve.py").write_text(SERVE)
            with next_one(first, ready=False) as second:
                eventually(lambda: len(all_pids(second)) == 2 and len(second.pids("app")) == 2, within=30)
                if serving:
                    assert second.pids("app") == serving
                assert reload(second).ok
                load.stop()
        assert load.failures == []
        assert not (tmp_path / "pool.sock.new").exists()


def test_a_process_that_was_spawned_and_not_written_down_does_not_end_the_steering(tmp_path: Path) -> None:
    """It stands beside the pool, on the socket of a generation that nobody knows of, until it is ended."""
    config = write(tmp_path, pool(free_address("tcp", tmp_path), "numprocs = 2"))
    with killed(config) as first:
        old = first.pids("app")
        assert reload(first, canary=50.0).ok
        unknown = set(all_pids(first)) - set(old)
        first.kill()
        lines = [json.loads(line) for line in state_of(config).read_text().splitlines()]
        known = [line for line in lines if 2 not in (line.get("generation"), line.get("number"))]
        state_of(config).write_text("".join(json.dumps(line) + "\n" for line in known))
        with next_one(first) as second:
            assert second.pids("app") == old
            are_gone(*unknown)
            assert reload(second, canary=50.0).ok  # which takes steering
            assert reload(second, action="promote").ok
            assert "somebody else listens" not in second.output()


def all_pids(manager: RunningManager) -> list[int]:
    return [process.pid for process in manager.pool("app").processes if process.pid is not None]


# -- what cannot be had -----------------------------------------------------------------------------------------------


@TRANSPORTS
def test_what_may_not_be_taken_back_is_replaced_beside_it_and_nothing_is_lost(transport: str, tmp_path: Path) -> None:
    """A process that is not dumpable shows nothing to its own user: no fd can be taken, as where Yama refuses."""
    with ordinary_user() as (directory, prefix):
        address = free_address(transport, directory)
        config = write(directory, pool(address, "numprocs = 2", words="undumpable"))
        with killed(config, prefix=prefix) as first:
            old = first.pids("app")
            with Load(address) as load:
                first.kill()
                with next_one(first, prefix=prefix, ready=False) as second:
                    eventually(lambda: second.pool("app").generation == 2, within=30)
                    eventually(lambda: second.all_running() and are_gone(*old), within=30)
                    eventually(lambda: len(all_pids(second)) == 2)
                    eventually(lambda: set(load.answers[-20:]) <= set(second.pids("app")))
                    # What has come of it is a pool like any other.
                    assert reload(second).ok
                    load.stop()
            assert load.failures == []
            assert "cannot be taken back" in second.output()
            assert not (directory / "pool.sock").exists()


# -- a state that is of no use ----------------------------------------------------------------------------------------


def test_a_half_written_last_line_is_no_loss(tmp_path: Path) -> None:
    with killed(write(tmp_path, pool(free_address("tcp", tmp_path), "numprocs = 2"))) as first:
        pids = first.pids("app")
        first.kill()
        with state_of(first.config).open("a") as file:
            file.write('{"type":"process","pool":"app","gener')
        with next_one(first) as second:
            assert second.pids("app") == pids


def another_boot(record: dict[str, object]) -> None:
    if record["type"] == "manager":
        record["boot"] = "00000000-0000-0000-0000-000000000000"


def later_release(record: dict[str, object]) -> None:
    if record["type"] == "manager":
        record.update(version=1000, release="99.0")


def reused_pids(record: dict[str, object]) -> None:
    if record["type"] == "process":
        record.update(born=1, identity=1)


@TRANSPORTS
@pytest.mark.parametrize("change", [another_boot, later_release, reused_pids, "garbage", "empty", "gone", "mode"])
def test_with_a_state_of_no_use_its_processes_are_ended_and_others_started(
    change: Callable[[dict[str, object]], None] | str, transport: str, tmp_path: Path
) -> None:
    """Never fatal, and never two that answer at one address."""
    address = free_address(transport, tmp_path)
    with killed(write(tmp_path, pool(address, "numprocs = 2"))) as first:
        old = first.pids("app")
        first.kill()
        path = state_of(first.config)
        if callable(change):
            edit_state(first.config, change)
        elif change == "mode":
            path.chmod(0o666)
        elif change == "gone":
            path.unlink()
        else:
            path.write_text("" if change == "empty" else "garbage\n")
        with next_one(first, ready=False) as second:
            eventually(lambda: len(second.pids("app")) == 2)
            assert not any(map(is_alive, old))
            assert served_by(address) in second.pids("app")
        assert "pid " + ", ".join(map(str, sorted(old))) in second.output()


@as_root
def test_the_state_of_another_user_is_not_believed(tmp_path: Path) -> None:
    with killed(write(tmp_path, pool(free_address("tcp", tmp_path)))) as first:
        (old,) = first.pids("app")
        first.kill()
        os.chown(state_of(first.config), 65534, 65534)
        with next_one(first, ready=False) as second:
            eventually(lambda: second.pids("app") not in ([], [old]))
        assert "it belongs to uid 65534" in second.output()


def test_of_two_starters_one_takes_over_and_the_other_is_refused(tmp_path: Path) -> None:
    with killed(write(tmp_path, pool(free_address("tcp", tmp_path), "numprocs = 2"))) as first:
        pids = first.pids("app")
        first.kill()
        starters = [
            subprocess.Popen(
                [sys.executable, "-m", "fcgimgr", "-c", str(first.config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | {MARK: first.mark},
            )
            for _ in range(2)
        ]
        try:
            refused = eventually(lambda: next((one for one in starters if one.poll() is not None), None))
            assert refused is not None
            assert refused.returncode == 1
            assert refused.stdout is not None
            # By its pid, if the one that won has written it yet.
            assert b"already held by " in refused.stdout.read()
            second = managing(first.config, mark=first.mark)

            def is_taken_over() -> bool:
                try:
                    return second.pids("app") == pids
                except NoManager:  # it has the lock, and listens in a moment
                    return False

            eventually(is_taken_over)
        finally:
            for starter in starters:
                starter.terminate()
                starter.communicate()


def test_orphans_kill_ends_them_first(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with killed(write(tmp_path, pool(address, "numprocs = 2"), manager='orphans = "kill"')) as first:
        old = first.pids("app")
        first.kill()
        with next_one(first, ready=False) as second:
            eventually(lambda: len(set(second.pids("app")) - set(old)) == 2)
            assert not any(map(is_alive, old))
            assert served_by(address) in second.pids("app")
            process = second.pool("app").processes[0]
            assert (process.restarts, second.pool("app").generation) == (0, 1)


def test_what_was_stopped_stays_so_and_a_back_off_goes_on(tmp_path: Path) -> None:
    tables = """
        [program.stopped]
        command = "sleep 1000"
        startsecs = 0
        [program.running]
        command = "sleep 1000"
        startsecs = 0
        [program.bad]
        command = "false"
        backoff_initial = 600
        backoff_max = 600
        [program.done]
        command = "true"
        startsecs = 0
        autorestart = false
    """
    with killed(scene(tmp_path, tables), ready=False) as first:
        assert first.halt("stopped").ok
        eventually(lambda: first.pool("bad").processes[0].state == "BACKOFF")
        eventually(lambda: first.pool("done").processes[0].state == "EXITED")
        first.kill()
        with next_one(first, ready=False) as second:
            eventually(lambda: second.status().manager.state in ("STARTING", "RUNNING"))
            states = {one.name: one.processes[0].state for one in second.status().pools}
            assert states == {"stopped": "STOPPED", "running": "RUNNING", "bad": "BACKOFF", "done": "EXITED"}
            retry = second.pool("bad").processes[0].retry_in
            assert retry is not None
            assert retry < 600


def test_what_was_scaled_down_can_be_scaled_on(tmp_path: Path) -> None:
    with killed(write(tmp_path, pool(free_address("tcp", tmp_path), "numprocs = 4"))) as first:
        assert first.scale("app", "3").ok
        first.kill()
        with next_one(first) as second:
            fds = len(Child(second.pid).fds)
            assert second.scale("app", "2").ok
            # Of the one that went: two log pipes and a pidfd.
            eventually(lambda: len(Child(second.pid).fds) <= fds - 3)
            upgrade(second).succeeds()
            assert second.scale("app", "1").ok
            assert second.scale("app", "5").ok
            assert len(second.pids("app")) == 5


def test_several_managers_in_a_row(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    with killed(write(tmp_path, pool(address, "numprocs = 2"))) as first:
        manager, pids = first, first.pids("app")
        for _ in range(4):
            manager.kill()
            manager = next_one(manager).__enter__()
            assert manager.pids("app") == pids
            kill(pids[0])
            pids = replaced(manager, "app", pids[0], number=2)
        assert manager.pool("app").processes[0].restarts == 4
        manager.stop()


def test_the_state_file_does_not_grow_with_what_happens(tmp_path: Path) -> None:
    tables = '[program.app]\ncommand = "sleep 1000"\nnumprocs = 20\nstartsecs = 0\n'
    with managing(scene(tmp_path, tables)) as manager:
        path = state_of(manager.config)
        assert path.stat().st_mode & 0o777 == 0o600
        for _ in range(10):
            eventually(lambda: all((process.uptime or 0) > 1 for process in manager.pool("app").processes))
            dead = manager.pids("app")
            kill(*dead)
            replaced(manager, "app", *dead, number=20)
        # 200 deaths of three lines each. 23 things: the manager, the pool, its generation, and the processes.
        assert len(path.read_text().splitlines()) <= 4 * 23 + 256
        assert not path.with_name("state.jsonl.new").exists()
