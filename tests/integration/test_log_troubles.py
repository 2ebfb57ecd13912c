"""Logs that cannot be written are seen: by `check`, by `run --daemon`, in `status` and as an event."""

from pathlib import Path

import msgspec

from fcgimgr.control.client import Client
from fcgimgr.control.messages import Events, EventsParams, LogStatus, Status
from tests.integration.commands import configuration, fcgimgr, running
from tests.integration.running import RunningManager
from tests.integration.scenes import kill, managing
from tests.integration.test_scoreboard import Pool
from tests.waiting import eventually

TICKING = "while :; do echo tick; sleep 0.05; done"


def logs(manager: RunningManager) -> dict[str, LogStatus]:
    return {log.path: log for log in manager.status().logs}


def told(manager: RunningManager, path: str) -> list[str]:
    """What events say of this log."""
    with Client(str(manager.control)) as client:
        happened = client.call("events", EventsParams(n=1000), answer=Events).events
    return [event.detail or "" for event in happened if event.kind == "log" and path in (event.detail or "")]


def test_check_warns_once_of_a_directory_that_is_missing(tmp_path: Path) -> None:
    tables = f"""
        logfile = "%(here)s/own/manager.log"
        [program.app]
        command = "sleep 1000"
        numprocs = 3
        stdout_logfile = "{tmp_path}/var/%(process_num)d.log"
        stderr_logfile = "%(here)s/is_there.log"
    """
    config = configuration(tmp_path, tables)
    assert fcgimgr("-c", config, "check").err.splitlines() == [
        f"warning: manager.logfile: the directory {tmp_path}/own does not exist; its lines would be lost: "
        f"install -d {tmp_path}/own",
        f"warning: program.app.stdout_logfile: the directory {tmp_path}/var does not exist; its lines would be lost: "
        f"install -d {tmp_path}/var",
    ]
    (tmp_path / "own").mkdir()
    (tmp_path / "var").mkdir()
    assert fcgimgr("-c", config, "check").err == ""


def test_update_warns_as_check_does_and_of_what_could_not_be_opened(tmp_path: Path) -> None:
    table = '[pool.app]\nsocket = "%(here)s/app.sock"\ncommand = "sleep 1000"\nready = "startsecs"\nstartsecs = 0\n'
    with running(tmp_path, table) as manager:
        (tmp_path / "taken.log").mkdir()
        with manager.config.open("a") as config:
            config.write('stdout_logfile = "%(here)s/var/app.log"\nstderr_logfile = "%(here)s/taken.log"\n')
        missing = f"the directory {tmp_path}/var does not exist; its lines would be lost: install -d {tmp_path}/var"
        warned = f"warning: pool.app.stdout_logfile: {missing}"
        assert manager("check").err.splitlines() == [warned]
        assert manager("update", "--dry-run").err.splitlines() == [warned]
        done = manager("update")
        assert done.code == 0
        taken = f"warning: {tmp_path}/taken.log: cannot open: it is a directory; name a file in it"
        assert done.err.splitlines() == [warned, taken]
        assert f"warning {tmp_path}/var/app.log: cannot open: its directory does not exist" in manager.output()
        assert manager("update").err.splitlines() == [warned], "which is so still"


def test_a_log_without_a_directory_is_shown_until_it_has_one(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "app.log"
    tables = f"""
        [program.app]
        command = ["sh", "-c", "{TICKING}"]
        stdout_logfile = "{path}"
        numprocs = 3
    """
    with running(tmp_path, tables) as manager:
        assert told(manager, str(path)) == [
            f"{path}: cannot open: its directory does not exist; its lines are lost until this is mended"
        ]
        eventually(lambda: logs(manager)[str(path)].lost)
        assert f"log {path}: cannot open: its directory does not exist" in manager("status").succeeds()
        shown = msgspec.json.decode(manager("status", "--json").succeeds(), type=Status)
        assert shown.logs[0].path == str(path)
        path.parent.mkdir()
        eventually(lambda: not logs(manager))
        assert told(manager, str(path))[-1].startswith(f"{path}: is written again; ")


def test_run_daemon_says_which_logs_are_lost(tmp_path: Path) -> None:
    tables = """
        logfile = "%(here)s/own.log"
        [program.app]
        command = "sleep 1000"
        startsecs = 0
        stdout_logfile = "%(here)s/missing/app.log"
    """
    config = configuration(tmp_path, tables)
    begun = fcgimgr("-c", config, "run", "--daemon")
    try:
        assert begun.code == 0
        assert f"{tmp_path}/missing/app.log: cannot open: its directory does not exist" in begun.err
    finally:
        fcgimgr("-c", config, "shutdown").succeeds()


def test_the_next_process_does_not_tell_it_anew(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 'access_log = "/dev/full"', "numprocs = 1", "threads = 1")
    with managing(pool.config) as manager:
        for number in range(3):
            before = manager.pids("app")
            assert pool.ask("/").result().status == 200
            eventually(lambda: logs(manager).keys() == {"/dev/full"})
            assert len(told(manager, "/dev/full: ")) == 1, number
            kill(before[0])
            eventually(lambda before=before: manager.pids("app") not in ([], before))
            assert logs(manager).keys() == {"/dev/full"}


def test_a_strict_probe_says_no_until_the_log_can_be_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "app.log"
    table = f'[program.app]\ncommand = "sleep 1000"\nstartsecs = 0\nstdout_logfile = "{path}"'
    with running(tmp_path, table) as manager:
        said = manager("probe", "ready", "--strict")
        assert (said.code, said.out) == (1, f"log {path}: cannot open: its directory does not exist\n")
        assert manager("probe", "ready").succeeds() == "app is RUNNING\n"
        assert manager("status").code == 0, "which tells what runs"
        path.parent.mkdir()
        manager("reopen").succeeds()
        assert manager("probe", "ready", "--strict").code == 0
        assert told(manager, str(path))[-1] == f"{path}: is open again"


def test_what_workers_cannot_write_is_shown_as_well(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "slow.log"
    access = tmp_path / "full.log"
    keys = [f'access_log = "{access}"', f'slowlog = "{missing}"', "slow_after = 10", "numprocs = 3", "threads = 1"]
    pool = Pool(tmp_path, *keys, 'access_format = "%r"')
    with managing(pool.config) as manager:
        assert logs(manager).keys() == {str(missing)}
        assert len(told(manager, str(missing))) == 1
        assert pool.ask("/").result().status == 200
        access.unlink()
        access.mkdir()  # as good as a disk that is full: it cannot be written
        eventually(lambda: pool.ask("/").result().status == 200 and str(access) in logs(manager))
        assert logs(manager)[str(access)].problem.startswith("cannot be opened: ")
        access.rmdir()
        eventually(lambda: pool.ask("/").result().status == 200 and str(access) not in logs(manager))
        assert told(manager, str(access))[-1] == f"{access}: is written again"
