"""Why a process has ended, or was told to, and by whom: in `status`, as an event, in the log."""

import os
import re
import sys
import venv
from pathlib import Path

import msgspec
import pytest

from fcgimgr.control.client import Client
from fcgimgr.control.messages import Event, Events, EventsParams, Exit, NamesParams, RestartParams, ScaleParams, Verdict
from fcgimgr.core import process
from fcgimgr.manager.pools.telling import exit_as_told
from tests.integration.commands import running
from tests.integration.running import RunningManager
from tests.integration.scenes import fails, kill, managing, scene
from tests.integration.succession import killed, next_one
from tests.integration.test_upgrade import upgrade
from tests.waiting import eventually

PYTHON = f"{sys.executable} -S -E"

SLEEPERS = """
[program.app]
command = "sleep 1000"
numprocs = 2
startsecs = 0
[program.other]
command = "sleep 1000"
startsecs = 0
"""


def events(manager: RunningManager, *names: str) -> list[Event]:
    with Client(str(manager.control)) as client:
        told = client.call("events", EventsParams(names=names or None, n=1000), answer=Events).events
    return [event for event in told if event.kind == "process_state"]


FAILING = f"""
[program.bad]
command = "{PYTHON} %(here)s/fail.py"
startsecs = 30
startretries = 0
[program.good]
command = "sleep 1000"
"""


def ended(manager: RunningManager, name: str) -> Event:
    """The last event in which a process of this name has left RUNNING."""
    return [event for event in events(manager, name) if event.from_state == "RUNNING"][-1]


def test_what_a_process_said_of_its_end_is_told_with_it(tmp_path: Path) -> None:
    (tmp_path / "fail.py").write_text("raise RuntimeError('no database at db.example:5432')\n")
    with running(tmp_path, FAILING, ready=False) as manager:
        eventually(lambda: manager.pool("bad").state == "FATAL")
        why = r"exited with code 1 [\d.]+ m?s after its start, before it was ready: RuntimeError: no database at db.ex"
        process = manager.pool("bad").processes[0]
        assert re.match(why, process.reason or "")
        assert process.state_for is not None
        assert manager.pool("bad").state_for is not None
        assert re.search(f"error bad:bad_00: FATAL: {why}", manager.output())
        *_, last = events(manager, "bad")
        assert (last.to_state, last.cause, last.exit) == ("FATAL", "crash", Exit(code=1))
        assert re.match(why, last.detail or "")
        assert "; FATAL for " in manager("status").out


def test_who_crashes_in_c_is_told_with_the_line_that_says_so_and_not_with_a_thread(tmp_path: Path) -> None:
    tables = f"""
        [program.bad]
        command = "{PYTHON} -X faulthandler -c 'import ctypes; ctypes.string_at(0)'"
        rlimit_core = 0
        startsecs = 30
        startretries = 0
        [program.good]
        command = "sleep 1000"
    """
    with running(tmp_path, tables, ready=False) as manager:
        eventually(lambda: manager.pool("bad").state == "FATAL")
        why = (
            r"killed by SIGSEGV [\d.]+ m?s after its start, before it was ready: Fatal Python error: Segmentation fault"
        )
        assert re.fullmatch(why, manager.pool("bad").processes[0].reason or "")
        assert re.fullmatch(why, events(manager, "bad")[-1].detail or "")


def test_a_death_says_why_and_an_order_by_whom(tmp_path: Path) -> None:
    with managing(scene(tmp_path, SLEEPERS)) as manager:
        kill(manager.pids("app")[0])
        eventually(lambda: manager.pool("app").processes[0].restarts == 1 and manager.all_running())
        death = ended(manager, "app:app_00")
        assert re.fullmatch(r"killed by SIGKILL after \d+\.\d s", death.detail or "")
        assert (death.cause, death.exit, death.by) == ("crash", Exit(signal="SIGKILL"), None)

        assert manager.restart("app").ok
        order = ended(manager, "app:app_01")
        by = f"pid {os.getpid()}, uid {os.geteuid()}"
        assert (order.cause, order.by, order.detail) == ("by_hand", by, f"restart, by {by}")
        assert manager.halt("other").ok
        assert ended(manager, "other").detail == f"stop, by {by}"
        assert manager.scale("app", "1").ok
        assert ended(manager, "app:app_01").detail == f"scale to 1, by {by}"
        # What is no order's is nobody's, though it comes after one.
        kill(manager.pids("app")[0])
        eventually(lambda: ended(manager, "app:app_00").cause == "crash")
        assert ended(manager, "app:app_00").by is None


@pytest.mark.parametrize("server", ["native", "flup"])
def test_the_same_traceback_is_logged_once_and_is_not_lost_from_sight(server: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import sys\n\n\ndef f(:\n")
    tables = f"""
        [pool.web]
        socket = "%(here)s/web.sock"
        wsgi = "broken:application"
        server = "{server}"
        directory = "%(here)s"
        numprocs = 3
        startretries = 1
        backoff_initial = 0.1
    """
    code, said = fails(scene(tmp_path, tables))
    assert code == 1
    assert said.count('File "') == 1
    why = r"cannot load 'broken:application': SyntaxError: .* \(broken\.py, line 4\)"
    assert re.search(rf"nothing at all could be started: giving up: web: exited with code 1 .*: {why}\n", said)


@pytest.mark.parametrize("preload", [False, True])
def test_starts_that_fail_by_the_same_are_logged_once_and_then_counted(preload: bool, tmp_path: Path) -> None:
    """And who gives up says what to do, where that is known. Events have each of them."""
    (tmp_path / "app.py").write_text("import absent_library\n")
    venv.create(tmp_path / "venv")
    tables = f"""
        [pool.web]
        socket = "%(here)s/web.sock"
        wsgi = "app:application"
        directory = "%(here)s"
        numprocs = 3
        preload = {str(preload).lower()}
        startretries = 2
        backoff_initial = 0.1
        [program.good]
        command = "sleep 1000"
    """
    with running(tmp_path, tables, ready=False) as manager:
        eventually(lambda: manager.pool("web").state == "FATAL")
        told, log = events(manager, "web"), manager.output()
        hint = f'there is a virtualenv in {tmp_path}/venv: python = "{tmp_path}/venv/bin/python" in [pool.web]'
        assert hint in manager.pool("web").processes[0].reason
    assert log.count("Traceback") == 1
    assert log.count(" warning web:") == 1
    workers = [event for event in told if event.name != "web:zygote"]
    assert sum(event.to_state == "BACKOFF" for event in workers) == 3 * 2
    failed = sum(event.to_state == "BACKOFF" for event in told)
    logged = log.count(": BACKOFF: ")
    assert logged == (2 if preload else 1)
    assert f"{failed - logged} more starts have failed as logged before; each is in: fcgimgr events web\n" in log
    fatal = re.findall(r" error web:(\w+): FATAL: (.*)", log)
    assert len(fatal) == len({name for name, _ in fatal}) == 3 + preload
    assert all(hint in why for _, why in fatal)
    assert log.count(" web:web_00: spawned") <= 2


def test_who_gives_up_says_which_virtualenv_may_have_what_lacks(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import absent_library\n")
    venv.create(tmp_path / "venv")
    pool = (
        '[pool.web]\nsocket = "%(here)s/web.sock"\nwsgi = "app:application"\ndirectory = "%(here)s"\nstartretries = 0\n'
    )
    code, said = fails(scene(tmp_path, pool))
    assert code == 1
    (last,) = [line for line in said.splitlines() if "giving up" in line]
    assert last.endswith(f'in {tmp_path}/venv: python = "{tmp_path}/venv/bin/python" in [pool.web]')


def test_one_that_starts_at_last_is_logged_with_its_pid_and_how_many_had_failed(tmp_path: Path) -> None:
    tables = """
        [program.app]
        command = ["sh", "-c", "test -e ready || { echo not yet >&2; exit 1; }; exec sleep 1000"]
        directory = "%(here)s"
        startsecs = 0.3
        startretries = -1
        backoff_initial = 0.05
        backoff_max = 0.05
    """
    with managing(scene(tmp_path, tables), ready=False) as manager:
        eventually(lambda: (manager.pool("app").processes[0].restarts or 0) > 4)
        (tmp_path / "ready").touch()
        eventually(lambda: manager.all_running())
        (pid,) = manager.pids("app")
        eventually(lambda: f"app:app_00: RUNNING pid={pid}\n" in manager.output())
        assert re.search(r"app: \d more starts have failed as logged before; ", manager.output())
        assert manager.output().count("| not yet") == 1
        kill(pid)  # what then happens to one that has started is told in full
        eventually(lambda: manager.pids("app") not in ([], [pid]))
        assert re.search(r"warning app:app_00: killed by SIGKILL .*\n.*app:app_00: spawned pid", manager.output())


def test_who_said_the_same_before_another_end_is_told_whose_words_those_were(tmp_path: Path) -> None:
    tables = f"""
        [program.app]
        command = "{PYTHON} -c 'import sys; print(1, file=sys.stderr); sys.exit(int(sys.argv[1]))' %(process_num)d"
        numprocs = 2
        numprocs_start = 1
        startsecs = 30
        startretries = 0
    """
    code, said = fails(scene(tmp_path, tables))
    assert code == 1
    assert len(re.findall(r"exited with code [12] after .*: 1 pid=", said)) == 1
    assert (
        len(re.findall(r"exited with code [12] after .*: 1; what it said before is what app_0[12] said pid=", said))
        == 1
    )


def test_what_differs_or_goes_to_a_file_is_logged_every_time(tmp_path: Path) -> None:
    program = f"{PYTHON} -c 'import sys; [print(sys.argv[1:], i, file=sys.stderr) for i in range(3)]; sys.exit(1)'"
    tables = f"""
        [program.same]
        command = "{program}"
        startsecs = 30
        startretries = 1
        backoff_initial = 0.1
        stderr_logfile = "%(here)s/same.log"
        [program.other]
        command = "{program} %(process_num)d"
        numprocs = 2
        startsecs = 30
        startretries = 0
    """
    code, said = fails(scene(tmp_path, tables))
    assert code == 1
    assert (tmp_path / "same.log").read_text().splitlines() == ["[] 0", "[] 1", "[] 2"] * 2
    assert sorted(re.findall(r"\| (\[.*)", said)) == [f"['{number}'] {i}" for number in (0, 1) for i in range(3)]


def test_who_ends_well_has_its_words_in_the_log_every_time(tmp_path: Path) -> None:
    """Though that is before it is ready, so that it is started in vain, and counted as a crash."""
    tables = """
        [program.job]
        command = ["sh", "-c", "echo one >&2; echo two >&2; echo three >&2"]
        startsecs = 30
        startretries = 2
        backoff_initial = 0.1
        [program.good]
        command = "sleep 1000"
    """
    with running(tmp_path, tables, ready=False) as manager:
        eventually(lambda: manager.pool("job").state == "FATAL")
        assert re.findall(r"\| (\w+)", manager.output()) == ["one", "two", "three"] * 3
        assert _restarts(manager, "job") == (2, 0, 0)


@pytest.mark.parametrize("order", ["start", "restart"])
def test_who_orders_a_start_sees_again_why_it_fails(order: str, tmp_path: Path) -> None:
    (tmp_path / "fail.py").write_text("raise RuntimeError('no database')\n")
    with running(tmp_path, FAILING, ready=False) as manager:
        for times in (1, 2, 3):
            eventually(lambda: manager.pool("bad").state == "FATAL")
            assert manager.output().count('fail.py", line 1') == times
            manager(order, "bad").fails(1)


def test_what_one_says_that_starts_for_long_is_heard_meanwhile(tmp_path: Path) -> None:
    command = '["sh", "-c", "echo I am at it >&2; exec sleep 1000"]'
    tables = f"[program.app]\ncommand = {command}\nstartsecs = 1000\n"
    with managing(scene(tmp_path, tables), ready=False) as manager:
        eventually(lambda: "I am at it\n" in manager.output())
        assert manager.pool("app").processes[0].state == "STARTING"


def test_events_are_those_of_the_names_that_are_given(tmp_path: Path) -> None:
    with running(tmp_path, SLEEPERS) as manager:
        assert {event.name for event in events(manager, "app")} == {"app:app_00", "app:app_01"}
        assert {event.name for event in events(manager, "app:app_01", "other")} == {"app:app_01", "other:other_00"}
        shown = manager("events", "other", "--json", "-n", "2").succeeds().splitlines()
        assert [msgspec.json.decode(line, type=Event).name.partition(":")[0] for line in shown] == ["other"] * 2
        assert "there is no pool, program or group 'othr'; did you mean other?" in manager("events", "othr").err


def test_restarts_are_told_apart_and_known_to_the_next_manager(tmp_path: Path) -> None:
    tables = f"""
        {SLEEPERS}
        [program.young]
        command = "sleep 1000"
        startsecs = 0
        max_lifetime = 0.5
    """
    with killed(scene(tmp_path, tables)) as first:
        kill(first.pids("app")[0])
        eventually(lambda: _restarts(first, "app") == (1, 0, 0))
        assert first.restart("app:app_00").ok
        assert _restarts(first, "app") == (1, 0, 1)
        eventually(lambda: (_restarts(first, "young")[1] or 0) >= 1)
        young = ended(first, "young")
        assert (young.cause, young.detail) == ("recycled", "recycling: max_lifetime (0.5 s) is over")
        first.kill()
        with next_one(first) as second:
            assert _restarts(second, "app") == (1, 0, 1)
            assert second.pool("app").processes[0].restarts == 2
            crashes, recycled, by_hand = _restarts(second, "young")
            assert (crashes, by_hand) == (0, 0)
            assert recycled


def _restarts(manager: RunningManager, name: str) -> tuple[int | None, ...]:
    process = manager.pool(name).processes[0]
    return process.crashes, process.recycled, process.by_hand


def test_an_end_of_which_nobody_knows_how_is_said_to_be_so() -> None:
    assert msgspec.json.encode(exit_as_told(process.Exit())) == b'{"unknown":true}'
    assert msgspec.json.encode(exit_as_told(process.Exit(code=0))) == b'{"code":0}'


def of_pool(manager: RunningManager, name: str, *states: str) -> Event:
    """The last event in which the pool or program of this name came into one of these states."""
    with Client(str(manager.control)) as client:
        told = client.call("events", EventsParams(names=(name,), n=1000), answer=Events).events
    return [event for event in told if event.kind == "pool_state" and event.to_state in states][-1]


def test_a_program_that_ends_by_itself_was_ended_by_no_order(tmp_path: Path) -> None:
    """By nobody, that is, who has only started it; whoever stops it is told, also if another order comes later."""
    tables = """
        [program.quiet]
        command = "sh -c 'sleep 0.1; exit 3'"
        startsecs = 0
        autorestart = false
        autostart = false
        [program.done]
        command = "sh -c 'sleep 0.1'"
        startsecs = 0
        autorestart = false
        autostart = false
        [program.app]
        command = ["sh", "-c", "trap '' TERM; sleep 1000"]
        startsecs = 0.3
        stopwaitsecs = 0.5
    """
    with managing(scene(tmp_path, tables), ready=False) as manager:
        eventually(lambda: manager.pool("app").state == "RUNNING")
        for name, how in (("quiet", "exited with code 3"), ("done", "exited with code 0")):
            manager.start(name)
            eventually(lambda name=name: manager.pool(name).processes[0].state == "EXITED")  # type: ignore[misc]
            event = of_pool(manager, name, "STOPPED", "EXITED")
            assert (event.detail or "").startswith(f"{name}:{name}_00: {how}")
            assert event.by is None

        with Client(str(manager.control)) as client:
            client.call("stop", NamesParams(names=("app",), wait=False), answer=Verdict)
            client.call("scale", ScaleParams(name="app", numprocs="2", wait=False), answer=Verdict)
        eventually(lambda: manager.pool("app").state == "STOPPED")
        assert of_pool(manager, "app", "STOPPED").detail == f"stop, by pid {os.getpid()}, uid {os.geteuid()}"


def test_who_has_ordered_a_stop_is_known_to_who_takes_over_from_a_manager_that_was_killed(tmp_path: Path) -> None:
    until_free = "trap told=1 TERM; until test $told -a -e free; do sleep 0.02; done"
    tables = f"""
        [program.app]
        command = ["sh", "-c", "{until_free}"]
        directory = "%(here)s"
        startsecs = 0.3
        stopwaitsecs = 20
        [program.other]
        command = "sleep 1000"
    """
    with killed(scene(tmp_path, tables)) as first:
        with Client(str(first.control)) as client:
            client.call("stop", NamesParams(names=("app",), wait=False), answer=Verdict)
        eventually(lambda: first.pool("app").state == "STOPPING")  # it is written down by then
        first.kill()
        with next_one(first, ready=False) as second:
            eventually(lambda: second.pool("app").state == "STOPPING")
            (tmp_path / "free").touch()
            eventually(lambda: second.pool("app").state == "STOPPED")
            event = of_pool(second, "app", "STOPPED")
            by = f"pid {os.getpid()}, uid {os.geteuid()}"
            assert (event.detail, event.by) == (f"stop, by {by}", by)


def test_what_was_ordered_before_an_upgrade_is_told_with_who_it_was_and_nothing_is_made_up(tmp_path: Path) -> None:
    until_free = "trap told=1 TERM; until test $told -a -e free; do sleep 0.02; done"
    tables = f"""
        [program.app]
        command = ["sh", "-c", "{until_free}"]
        directory = "%(here)s"
        numprocs = 2
        startsecs = 0.3
        stopwaitsecs = 10
        [program.other]
        command = "sleep 1000"
        startsecs = 0
    """
    with managing(scene(tmp_path, tables)) as manager:
        before = manager.pids("app")
        eventually(lambda: (manager.pool("other").state_for or 0) > 0.5)
        with Client(str(manager.control)) as client:
            client.call("restart", RestartParams(names=("app",), wait=False), answer=Verdict)
        upgrade(manager).succeeds()
        assert (manager.pool("other").state_for or 0) > 0.5
        (tmp_path / "free").touch()
        eventually(lambda: manager.all_running() and not set(before) & set(manager.pids("app")))
        with Client(str(manager.control)) as client:
            told = client.call("events", EventsParams(n=1000), answer=Events).events
        assert ("STOPPED", "STARTING") not in {(event.from_state, event.to_state) for event in told}
        assert not any("not started yet" in (event.detail or "") for event in told)
        told_to = [event for event in told if event.name == "app:app_01" and event.to_state == "STOPPING"]
        by = f"pid {os.getpid()}, uid {os.geteuid()}"
        assert [(event.by, event.detail) for event in told_to] == [(by, f"restart, by {by}")]
