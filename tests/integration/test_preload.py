"""`preload = true`: the application is imported once, by a zygote, and every worker is a fork of that."""

import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fcgimgr.control.messages import ProcessStatus
from fcgimgr.fastcgi.client import fetch
from tests.integration.commands import fcgimgr, lines_of
from tests.integration.ports import free_address
from tests.integration.pythons import other_pythons
from tests.integration.running import RunningManager
from tests.integration.scenes import Child, are_gone, is_alive, kill, managing, open_directory, scene
from tests.integration.succession import killed, next_one, reload
from tests.integration.test_supervision import replaced, states
from tests.rights import as_root
from tests.waiting import eventually

# What it is and has, as JSON. `imported` has a line for each import, `hooks` for each run of a hook of fork.
APP = """\
import json, os, random, ssl, sys, threading, uuid

with open("imported", "a") as file:
    print(os.getpid(), file=file)

def forked():
    with open("hooks", "a") as file:
        print(os.getpid(), os.environ["FCGIMGR_PROCESS"], os.getsid(0), file=file)

os.register_at_fork(after_in_child=forked)
opened = open(os.devnull)

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    answer = {
        "pid": os.getpid(),
        "code": VERSION,
        "environ": dict(os.environ),
        "chance": [random.random(), str(uuid.uuid4()), ssl.RAND_bytes(8).hex()],
        "opened": opened.fileno(),
        "threads": [thread.name for thread in threading.enumerate()],
    }
    print("asked", os.environ["FCGIMGR_PROCESS"])
    print("asked on stderr", os.environ["FCGIMGR_PROCESS"], file=sys.stderr, flush=True)
    return [json.dumps(answer).encode()]
"""

PARAMETERS = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_NAME": "test",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "CONTENT_LENGTH": "0",
}


def ask(address: str) -> Any:
    return json.loads(fetch(address, PARAMETERS, b"", timeout=20).body)


def write(directory: Path, text: str, version: int = 1) -> None:
    (directory / "app.py").write_text(text.replace("VERSION", str(version)))
    # Else Python may take the compiled one of the same second and size for this.
    for compiled in directory.glob("__pycache__/app.*"):
        compiled.unlink()


def pool(directory: Path, address: str, *more: str, app: str = APP) -> Path:
    """A pool `app` of two workers that are preloaded, serving `app`."""
    write(directory, app)
    keys = {
        "socket": f'"{address}"',
        "wsgi": '"app:app"',
        "directory": '"%(here)s"',
        "numprocs": "2",
        "preload": "true",
    }
    keys |= {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in more)}
    lines = [f"{key} = {value}" for key, value in keys.items()]
    return scene(directory, "\n".join(["[pool.app]", *lines, ""]))


def zygote(manager: RunningManager) -> ProcessStatus:
    (found,) = manager.pool("app").zygotes
    return found


def zygote_pid(manager: RunningManager) -> int:
    """The pid of the one that is ready."""

    def running() -> int | None:
        found = zygote(manager)
        return found.pid if found.state == "RUNNING" else None

    return eventually(running, within=30) or 0


def spare(manager: RunningManager) -> int | None:
    """The pid of the process that is to be the next worker, when it is there."""
    workers = manager.pids("app")
    found = [pid for pid in Child(manager.pid).children if pid not in (zygote_pid(manager), *workers)]
    return found[0] if found else None


def both(address: str) -> dict[str, Any]:
    """What each of two workers answers, by its name."""
    found: dict[str, Any] = {}

    def all_have_answered() -> bool:
        answer = ask(address)
        found[answer["environ"]["FCGIMGR_PROCESS"]] = answer
        return len(found) == 2

    eventually(all_have_answered)
    return found


# -- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["flup", "native"])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_the_application_is_imported_once_and_each_worker_is_a_child_of_the_manager(
    transport: str, server: str, tmp_path: Path
) -> None:
    address = free_address(transport, tmp_path)
    own = 'environment = { WHO = "number %(process_num)d" }', f'server = "{server}"'
    with managing(pool(tmp_path, address, *own)) as manager:
        answers = both(address)
        itself = zygote_pid(manager)
        assert lines_of(tmp_path / "imported") == [str(itself)]
        workers = manager.pids("app")
        assert sorted(answer["pid"] for answer in answers.values()) == sorted(workers)
        eventually(lambda: spare(manager))
        assert sorted(Child(manager.pid).children) == sorted([itself, spare(manager), *workers])
        for name, answer in answers.items():
            child = Child(answer["pid"])
            assert child.session == child.group == child.pid
            assert child.environ["FCGIMGR_PROCESS"] == name  # As seen from outside.
            assert answer["environ"]["SUPERVISOR_PROCESS_NAME"] == name
            assert child.fds[1] != child.fds[2] != Child(itself).fds[2]
            assert child.fds[answer["opened"]] == "/dev/null"  # What the application has opened stays where it was.
            assert "FCGI_LISTEN_FD" not in answer["environ"]
        assert {answer["environ"]["WHO"] for answer in answers.values()} == {"number 0", "number 1"}

        def held() -> set[str]:
            return {fd for fd in Child(itself).fds.values() if fd.startswith("socket:")}

        # To the manager and to the spare: a zygote has no listener, nor anything of a worker's.
        eventually(lambda: len(held()) == 2)
        assert held().isdisjoint(fd for pid in workers for fd in Child(pid).fds.values())


# A library's thread, and one that the application starts in each worker, as the log advises.
THREADS = """\
import os, threading, time

def start_ticking():
    threading.Thread(target=time.sleep, args=[1e6], name=os.environ["FCGIMGR_PROCESS"], daemon=True).start()

start_ticking()
os.register_at_fork(after_in_child=start_ticking)
"""


@pytest.mark.parametrize("threads", ["", THREADS], ids=["alone", "with a thread"])
def test_hooks_of_a_fork_run_once_a_worker_and_chance_is_its_own(threads: str, tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address, app=threads + APP)) as manager:
        answers = both(address)
        eventually(lambda: spare(manager))  # For which no hook runs.
        if threads:
            for name, answer in answers.items():
                assert name in answer["threads"]
        seen = [line.split() for line in lines_of(tmp_path / "hooks")]
        assert seen == [[str(pid), f"app_0{number}", str(pid)] for number, pid in enumerate(manager.pids("app"))]
        for one, other in zip(*(answer["chance"] for answer in answers.values()), strict=True):
            assert one != other


@pytest.mark.parametrize("python", other_pythons())
def test_other_pythons_fork_as_well(python: str, tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    more = f'python = "{python}"', 'environment = { PYTHONWARNINGS = "error" }'
    with managing(pool(tmp_path, address, *more)) as manager:
        both(address)
        assert len(lines_of(tmp_path / "hooks")) == 2
        dead = manager.pids("app")[0]
        kill(dead)
        replaced(manager, "app", dead, number=2)
        both(address)
        assert len(lines_of(tmp_path / "imported")) == 1
        assert Child(manager.pids("app")[0]).environ["FCGIMGR_PROCESS"] == "app_00"


@pytest.mark.parametrize("server", ["flup", "native"])
def test_signals_and_masks_are_as_without_preload(server: str, tmp_path: Path) -> None:
    shown = {}
    for word in ("true", "false"):
        directory = tmp_path / word
        directory.mkdir()
        config = pool(directory, free_address("unix", directory), f"preload = {word}", f'server = "{server}"')
        with managing(config) as manager:
            status = Child(manager.pids("app")[0]).status
            shown[word] = {key: status[key] for key in ("SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "Seccomp")}
    assert shown["true"] == shown["false"]


def test_what_a_worker_prints_is_its_own_and_what_the_import_prints_is_the_zygotes(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    logs = ['stdout_logfile = "%(here)s/%(process_num)d.out"', 'stderr_logfile = "%(here)s/%(process_num)d.err"']
    said = "import sys\nprint('imported')\nsys.stdout.write('half a line')\n"
    with managing(pool(tmp_path, address, *logs, app=said + APP)) as manager:
        both(address)
        for number in (0, 1):
            eventually(lambda number=number: f"asked app_0{number}" in lines_of(tmp_path / f"{number}.out"))  # type: ignore[misc]
            eventually(lambda number=number: f"asked on stderr app_0{number}" in lines_of(tmp_path / f"{number}.err"))  # type: ignore[misc]
        kill(zygote_pid(manager))
        eventually(lambda: "half a line" in lines_of(tmp_path / "0.out"))
        assert "half a line" not in "".join(lines_of(tmp_path / "1.out"))
        assert lines_of(tmp_path / "0.out")[0] == "imported"


def test_threads_that_the_import_has_started_are_told_of_once(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    threads = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=[1e6], name='Ticker', daemon=True).start()\n"
    )
    with managing(pool(tmp_path, address, app=threads + APP)) as manager:
        both(address)
        kill(manager.pids("app")[0])
        eventually(lambda: len(manager.pids("app")) == 2)
        assert manager.output().count("has started threads while it was imported (Ticker)") == 1
        assert "DeprecationWarning" not in manager.output()


def test_several_sockets_are_passed_on_in_any_way(tmp_path: Path) -> None:
    for way in ("env", "systemd"):
        directory = tmp_path / way
        directory.mkdir()
        addresses = [free_address("tcp", directory), free_address("unix", directory)]
        sockets = ", ".join(f'"{address}"' for address in addresses)
        config = pool(directory, "", f"socket = [{sockets}]", f'socket_pass = "{way}"')
        with managing(config) as manager:
            for address in addresses:
                answer = ask(address)
                assert answer["pid"] in manager.pids("app")
                assert not {"LISTEN_FDS", "LISTEN_PID", "FCGI_LISTEN_FD"} & answer["environ"].keys()


@as_root
def test_the_zygote_drops_privileges_and_its_workers_have_what_the_table_says(tmp_path: Path) -> None:
    more = (
        'user = "www-data"',
        "nice = 5",
        "oom_score_adj = 300",
        "rlimit_core = 0",
        "no_new_privs = true",
        'umask = "027"',
        'directory = "%(here)s/app"',
        'pythonpath = "%(here)s"',
    )
    with open_directory() as directory:
        (directory / "app").mkdir()
        os.chown(directory / "app", 33, 33)
        address = free_address("unix", directory)
        with managing(pool(directory, address, *more)) as manager:
            answers = both(address)
            for pid in (zygote_pid(manager), *manager.pids("app")):
                child = Child(pid)
                assert child.uids == {33}
                assert child.gids == {33}
                assert child.nice == 5
                assert child.oom_score_adj == 300
                assert child.limits["Max core file size"] == ("0", "0")
                assert child.status["NoNewPrivs"] == "1"
                assert child.status["Umask"] == "0027"
                # Its pipes are its own, so that it can open /dev/stderr.
                assert os.stat(f"/proc/{pid}/fd/2").st_uid == 33
            assert {answer["environ"]["USER"] for answer in answers.values()} == {"www-data"}


# -- deaths -----------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_forked_again_without_another_import(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address)) as manager:
        before = zygote_pid(manager)
        dead = manager.pids("app")[0]
        kill(dead)
        replaced(manager, "app", dead, number=2)
        both(address)
        assert zygote_pid(manager) == before
        assert len(lines_of(tmp_path / "imported")) == 1


def test_a_zygote_that_dies_is_replaced_and_its_workers_live_on(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address, "backoff_initial = 0.05")) as manager:
        first, workers = zygote_pid(manager), manager.pids("app")
        kill(first)
        eventually(lambda: zygote_pid(manager) != first)
        assert manager.pids("app") == workers
        kill(workers[0])
        replaced(manager, "app", workers[0], number=2)
        assert both(address)
        assert len(lines_of(tmp_path / "imported")) == 2
        assert zygote(manager).restarts == 1


def test_a_spare_that_is_killed_costs_no_worker(tmp_path: Path) -> None:
    with managing(pool(tmp_path, free_address("unix", tmp_path))) as manager:
        workers = manager.pids("app")
        for _ in range(3):
            pid = eventually(lambda: spare(manager)) or 0
            kill(pid)
            eventually(lambda pid=pid: pid not in Child(manager.pid).children)  # type: ignore[misc]
        eventually(lambda: spare(manager), within=30)
        assert manager.pids("app") == workers
        kill(workers[0])
        replaced(manager, "app", workers[0], number=2)


def test_a_zygote_that_is_killed_again_and_again_is_tried_ever_later(tmp_path: Path) -> None:
    more = ("backoff_initial = 0.05", "backoff_max = 600", "startretries = 2")
    with managing(pool(tmp_path, free_address("unix", tmp_path), *more)) as manager:
        workers = manager.pids("app")
        while zygote(manager).state != "FATAL":
            if (pid := zygote(manager).pid) is not None and zygote(manager).state == "RUNNING":
                kill(pid)
        assert manager.pids("app") == workers
        assert "FATAL" in fcgimgr("-s", manager.control, "status").out
        # One that has been running is worth another try.
        kill(workers[0])
        replaced(manager, "app", workers[0], number=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_signals_that_stop_workers_do_not_stop_the_zygote(number: signal.Signals, tmp_path: Path) -> None:
    with managing(pool(tmp_path, free_address("unix", tmp_path))) as manager:
        itself = zygote_pid(manager)
        os.kill(itself, number)
        dead = manager.pids("app")[0]
        os.kill(dead, signal.SIGTERM)  # This is for the worker what it always was.
        replaced(manager, "app", dead, number=2)
        assert zygote_pid(manager) == itself


def test_a_worker_that_its_hook_holds_is_given_up_with_no_stray(tmp_path: Path) -> None:
    """A stop overtakes a fork whose hook sleeps: the worker ends as soon as it is past it, or is killed."""
    hook = "import os, time\nos.register_at_fork(after_in_child=lambda: time.sleep(0.5))\n"
    config = pool(tmp_path, free_address("unix", tmp_path), app=hook + APP)
    with managing(config, ready=False) as manager:
        eventually(lambda: zygote_pid(manager))
        assert manager.halt("app").ok
        eventually(lambda: Child(manager.pid).children == [])


def test_a_worker_that_has_served_enough_is_replaced_by_a_fork(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address, "max_requests = 3", "numprocs = 1")) as manager:
        first = manager.pids("app")[0]
        eventually(lambda: ask(address)["pid"] != first and len(manager.pids("app")) == 1, every=0.05)
        assert len(lines_of(tmp_path / "imported")) == 1


# -- what a zygote may say --------------------------------------------------------------------------------------------

LIAR = """\
import os, socket, struct, sys
channel = socket.socket(fileno=os.dup(3))
if not os.path.exists("honest"):
    channel.send({message})
"""


@pytest.mark.parametrize(
    "message",
    [
        "b'born 1'",
        "b'failed 1 nothing'",
        "b'nonsense'",
        "b'x' * 5000",
        "bytes(range(256))",
        "b'ready\\n'",
    ],
)
def test_a_zygote_that_says_what_it_should_not_is_ended_and_its_pool_backs_off(message: str, tmp_path: Path) -> None:
    config = pool(
        tmp_path,
        free_address("unix", tmp_path),
        "backoff_initial = 0.05",
        "startretries = -1",
        app=LIAR.format(message=message) + APP,
    )
    with managing(config, ready=False) as manager:
        eventually(lambda: "said what it should not" in manager.output())
        eventually(lambda: manager.pool("app").processes[0].state == "BACKOFF")
        (tmp_path / "honest").touch()
        eventually(manager.all_running, within=30)


@pytest.mark.parametrize(
    ("who", "refusal"),
    [
        ("True", "said what it should not"),  # The zygote itself.
        ("os.fork() == 0", "the worker died before it was known"),  # A child of its own, not of the manager's.
    ],
)
def test_nobody_but_a_child_of_the_manager_is_taken_for_a_worker(who: str, refusal: str, tmp_path: Path) -> None:
    lie = f"""\
import os, fcgimgr.worker.zygote as zygote
def lie(self):
    number, _, fds = self._hear()
    if not number:
        os._exit(0)
    itself = os.getpid()
    if {who}:
        self._say(b"born " + number)
    if os.getpid() != itself:
        os._exit(0)
    for fd in fds:
        os.close(fd)
honest = zygote.Zygote._fork
zygote.Zygote._fork = lambda *words: (honest if os.path.exists("honest") else lie)(*words)
"""
    more = ("backoff_initial = 0.05", "backoff_max = 0.1", "startretries = -1")
    with managing(pool(tmp_path, free_address("unix", tmp_path), *more, app=lie + APP), ready=False) as manager:
        eventually(lambda: refusal in manager.output())
        assert all(process.pid is None for process in manager.pool("app").processes)
        (tmp_path / "honest").touch()
        eventually(manager.all_running, within=30)


# -- reloads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["flup", "native"])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_reload_forks_from_a_new_zygote_and_the_old_one_goes(transport: str, server: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with managing(pool(tmp_path, address, f'server = "{server}"')) as manager:
        before = [zygote_pid(manager), *manager.pids("app")]
        write(tmp_path, APP, version=2)
        assert reload(manager).ok
        assert ask(address)["code"] == 2
        assert are_gone(*before)
        assert len(lines_of(tmp_path / "imported")) == 2


@pytest.mark.parametrize("server", ["flup", "native"])
def test_reloads_and_scaling_under_load_lose_no_request(server: str, tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    over = threading.Event()

    def asked_on_and_on() -> int:
        count = 0
        while not over.is_set():
            ask(address)  # Or it raises.
            count += 1
        return count

    config = pool(tmp_path, address, f'server = "{server}"')
    with managing(config) as manager, ThreadPoolExecutor(2) as clients:
        asked = [clients.submit(asked_on_and_on) for _ in range(2)]
        try:
            for _ in range(3):
                assert reload(manager).ok
                assert manager.scale("app", "4").ok
                assert manager.scale("app", "2").ok
        finally:
            over.set()
        assert all(count.result() > 0 for count in asked)


def test_an_import_error_is_the_verdict_of_a_reload_and_the_old_code_serves_on(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address)) as manager:
        before = zygote_pid(manager), manager.pids("app")
        write(tmp_path, "import nothing_of_this_name\n")
        verdict = reload(manager)
        assert not verdict.ok
        shown = "\n".join(verdict.processes[0].lines)
        assert "app.py" in shown
        assert "nothing_of_this_name" in shown
        assert "zygote" in (verdict.processes[0].detail or "")
        assert (zygote_pid(manager), manager.pids("app")) == before
        assert ask(address)["code"] == 1
        write(tmp_path, APP, version=2)
        assert reload(manager).ok
        assert ask(address)["code"] == 2


def test_an_import_error_is_the_verdict_of_a_start(tmp_path: Path) -> None:
    more = ("autostart = false", "startretries = 1", "backoff_initial = 0.05")
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address, *more, app="1 / 0\n" + APP), ready=False) as manager:
        verdict = manager.start("app")
        assert not verdict.ok
        assert all("ZeroDivisionError" in "\n".join(process.lines) for process in verdict.processes)
        assert manager.pool("app").state == "FATAL"
        assert zygote(manager).pid is None
        write(tmp_path, APP)
        assert manager.start("app").ok
        assert both(address)


def test_an_interpreter_that_is_gone_is_the_verdict_too(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    with managing(pool(tmp_path, address, 'python = "%(here)s/python"')) as manager:
        python.unlink()
        verdict = reload(manager)
        assert not verdict.ok
        assert str(python) in (verdict.processes[0].detail or "")
        assert both(address)
        assert "internal error" not in manager.output()


def test_an_import_that_hangs_is_ended_after_ready_timeout(tmp_path: Path) -> None:
    more = ("ready_timeout = 0.5", "startretries = 0", "autostart = false")
    app = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {15})\nsignal.sigwait([10])\n"
    with managing(pool(tmp_path, free_address("unix", tmp_path), *more, app=app), ready=False) as manager:
        verdict = manager.start("app")
        assert not verdict.ok
        assert "not ready within ready_timeout" in (verdict.processes[0].detail or "")


def test_a_restart_runs_the_code_that_is_there_now(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address)) as manager:
        first = zygote_pid(manager)
        write(tmp_path, APP, version=2)
        assert manager.restart("app:app_00").ok
        assert {name: answer["code"] for name, answer in both(address).items()} == {"app_00": 2, "app_01": 1}
        assert zygote_pid(manager) != first


# -- scale and stop ---------------------------------------------------------------------------------------------------


def test_two_hundred_forks_leave_no_descriptor_behind(tmp_path: Path) -> None:
    with managing(pool(tmp_path, free_address("unix", tmp_path))) as manager:
        eventually(lambda: spare(manager))
        itself, its = Child(manager.pid), Child(zygote_pid(manager))
        before, its_before = len(itself.fds), its.fds
        for _ in range(10):
            assert manager.scale("app", "22").ok
            assert manager.scale("app", "2").ok
        eventually(lambda: its.fds.keys() == its_before.keys())
        eventually(lambda: len(itself.fds) <= before)
        assert zygote_pid(manager) == its.pid
        eventually(lambda: spare(manager))
        assert its.children == []


def test_a_stop_ends_the_zygote_too_and_a_start_makes_another(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address)) as manager:
        first = zygote_pid(manager)
        assert manager.halt("app").ok
        eventually(lambda: zygote(manager).state == "STOPPED")
        assert not is_alive(first)
        write(tmp_path, APP, version=2)
        assert manager.start("app").ok
        assert ask(address)["code"] == 2


def test_a_stop_during_the_import_ends_it_at_once(tmp_path: Path) -> None:
    app = "open('importing', 'w').close()\nimport signal\nsignal.sigwait([10])\n"
    with managing(pool(tmp_path, free_address("unix", tmp_path), app=app), ready=False) as manager:
        eventually((tmp_path / "importing").exists)
        assert manager.halt("app").ok
        eventually(lambda: Child(manager.pid).children == [])


# -- the manager ------------------------------------------------------------------------------------------------------


def test_after_kill_9_of_the_manager_the_workers_serve_on_and_the_next_has_a_zygote_of_its_own(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with killed(pool(tmp_path, address)) as first:
        before, workers = zygote_pid(first), first.pids("app")
        both(address)
        first.kill()
        assert are_gone(before)  # By itself.
        assert ask(address)["pid"] in workers
        with next_one(first) as second:
            assert second.pids("app") == workers
            processes = second.status(detail=True).pools[0].processes
            assert sum(process.requests or 0 for process in processes) >= 3  # Their scoreboards are read on.
            assert zygote_pid(second) != before
            kill(workers[0])
            replaced(second, "app", workers[0], number=2)
            assert both(address)
            assert reload(second).ok
            assert are_gone(*workers)


def test_an_upgrade_keeps_the_workers(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address)) as manager:
        workers = manager.pids("app")
        fcgimgr("-s", manager.control, "upgrade").succeeds()
        eventually(lambda: "goes on for" in manager.output())
        zygote_pid(manager)
        assert manager.pids("app") == workers
        assert manager.scale("app", "+1").ok
        kill(workers[0])
        replaced(manager, "app", workers[0], number=3)
        workers = manager.pids("app")
        # A helper of the manager's, which lives for one look at a process that has ended, may still be among them.
        eventually(lambda: [pid for pid in Child(manager.pid).children if pid not in workers] == [zygote_pid(manager)])


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_status_shows_the_zygote_to_those_who_ask_and_counts_it_nowhere(tmp_path: Path) -> None:
    with managing(pool(tmp_path, free_address("unix", tmp_path))) as manager:
        pid = zygote_pid(manager)
        plain = fcgimgr("-s", manager.control, "status").succeeds()
        assert "app:zygote" not in plain
        assert "2 of 2 running" in plain
        verbose = fcgimgr("-s", manager.control, "status", "-v").succeeds()
        (line,) = (line for line in verbose.splitlines() if "app:zygote" in line)
        assert line.split()[1:3] == ["RUNNING", str(pid)]
        shown = json.loads(fcgimgr("-s", manager.control, "status", "--json").succeeds())["pools"][0]
        assert [found["pid"] for found in shown["zygotes"]] == [pid]
        assert len(shown["processes"]) == shown["numprocs"] == 2
        assert states(manager, "app:zygote") == ["STARTING", "RUNNING"]


# -- chance -----------------------------------------------------------------------------------------------------------

GENERATORS = """\
import json, os, random

plain, seeded = random.Random(), random.Random()
os.register_at_fork(after_in_child=seeded.seed)
drawn = None

def app(environ, start_response):
    global drawn
    drawn = drawn or [plain.random(), seeded.random()]
    start_response("200 OK", [])
    return [json.dumps({"drawn": drawn, "environ": dict(os.environ)}).encode()]
"""


def test_a_generator_that_the_import_has_made_goes_on_alike_in_all_workers_unless_a_hook_seeds_it(
    tmp_path: Path,
) -> None:
    """As docs/preload.md says."""
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address, app=GENERATORS)):
        one, other = (answer["drawn"] for answer in both(address).values())
        assert one[0] == other[0]
        assert one[1] != other[1]


# -- memory -----------------------------------------------------------------------------------------------------------

LARGE = """\
import gc

made = [[number] for number in range(350_000)]  # about 30 MB of objects that the collector looks at

def app(environ, start_response):
    gc.collect()  # in place of the one that comes by itself when enough was allocated
    start_response("200 OK", [])
    return [environ["PATH_INFO"].encode()]
"""


def test_what_the_import_has_made_is_shared_also_when_the_collector_has_run(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with managing(pool(tmp_path, address, 'server = "native"', app=LARGE)) as manager:

        def both_have_served() -> bool:
            fetch(address, PARAMETERS, b"", timeout=20)
            return all(process.requests for process in manager.status(detail=True).pools[0].processes)

        eventually(both_have_served)
        for pid in manager.pids("app"):
            rss, pss = (kilobytes(pid, what) for what in ("Rss", "Pss"))
            assert rss > 30_000
            assert pss < 0.4 * rss, f"of {rss} KB only {rss - pss} KB are another's as well"


def kilobytes(pid: int, what: str) -> int:
    """Of the memory of a process: a line of /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))
