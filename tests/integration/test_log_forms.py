"""Whose log files are, and what is in them where log_format is json: an object a record, with what is in it."""

import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

from tests.integration.commands import Echo, Manager, fcgimgr, lines_of, running
from tests.integration.scenes import NOBODY, managing, open_directory, scene
from tests.integration.test_scoreboard import Pool, servers
from tests.rights import as_root
from tests.waiting import eventually

ADM = 4
IN_JSON = 'log_format = "json"', 'stdout_logfile = "%(here)s/out"', "redirect_stderr = true"


def permissions(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(path)]


def message(path: Path, beginning: str) -> str:
    """The message that begins so, when it has come."""

    def found() -> list[str]:
        return [text for line in objects(path) if (text := line.get("message", "")).startswith(beginning)]

    return eventually(found)[0]


@as_root
def test_logs_have_the_owner_and_mode_that_the_configuration_says() -> None:
    with open_directory() as directory:
        logs = directory / "log"
        logs.mkdir(mode=0o755)
        keys = [
            'user = "nobody"', 'logfile_owner = ":4"', 'logfile_mode = "0660"', f'stdout_logfile = "{logs}/out"',
            "redirect_stderr = true", f'access_log = "{logs}/access"',
        ]  # fmt: skip
        pool = Pool(directory, *keys)
        (directory / "worker_app.py").chmod(0o644)
        own = f'[manager]\nlogfile = "{logs}/own"\nlogfile_owner = "{NOBODY}:4"\nlogfile_mode = "0600"\n'
        pool.config.write_text(pool.config.read_text().replace("[manager]\n", own))
        wanted = {"own": (NOBODY, ADM, 0o600), "out": (0, ADM, 0o660), "access": (NOBODY, ADM, 0o660)}
        with Manager(pool.config, pool.config.with_suffix(".control")) as manager:
            assert {path.name: permissions(path) for path in logs.iterdir()} == wanted
            for path in tuple(logs.iterdir()):  # as logrotate does
                path.rename(path.with_suffix(".1"))
            manager("reopen").succeeds()
            assert {path.name: permissions(path) for path in logs.iterdir() if not path.suffix} == wanted


@as_root
def test_a_daemon_makes_its_log_as_the_configuration_says(tmp_path: Path) -> None:
    keys = f'logfile = "{tmp_path}/own"\nlogfile_owner = ":4"\nlogfile_mode = "0660"'
    config = scene(tmp_path, '[program.a]\ncommand = "sleep 1000"\nstartsecs = 0\n', manager=keys)
    fcgimgr("-c", config, "run", "--daemon").succeeds()
    fcgimgr("-c", config, "shutdown").succeeds()
    assert permissions(tmp_path / "own") == (0, ADM, 0o660)


def test_an_owner_that_does_not_exist_is_said_with_the_key(tmp_path: Path) -> None:
    program = '[program.app]\ncommand = "sleep 1000"\nlogfile_owner = ":no-such-group"\n'
    both = f'{program}[program.other]\ncommand = "sleep 1000"\nstartsecs = 0\n'
    with managing(scene(tmp_path, both), ready=False) as manager:
        eventually(lambda: manager.pool("app").state == "FATAL")
        assert "logfile_owner: group no-such-group: there is no such group" in manager.output()
    config = scene(tmp_path, both, manager=f'logfile = "{tmp_path}/own"\nlogfile_owner = "no-such-user"')
    assert "logfile_owner: user no-such-user: there is no such user" in fcgimgr("-c", config).fails(1)


def test_two_who_write_to_one_file_are_told_to_make_it_alike(tmp_path: Path) -> None:
    log = f'command = "true"\nstdout_logfile = "{tmp_path}/out"\n'
    config = scene(tmp_path, f'[program.a]\n{log}[program.b]\n{log}logfile_mode = "0660"\n')
    assert "give them the same logfile_owner and logfile_mode" in fcgimgr("-c", config, "check").err


def test_what_a_program_writes_as_json_is_an_object_in_the_object(tmp_path: Path) -> None:
    echo = Echo(tmp_path)
    keys = 'stdout_logfile = "echo.log"', 'log_format = "json"', "startsecs = 0"
    with running(tmp_path, "\n".join(["[program.echo]", echo.command, *keys, ""])):
        echo.say('{"event": "paid", "process": "another"}', "{no object}")
        first, second = eventually(lambda: len(lines_of(tmp_path / "echo.log")) == 2 and objects(tmp_path / "echo.log"))
    assert first["json"] == {"event": "paid", "process": "another"}
    assert first["process"] == second["process"] == "echo:echo_00"
    assert (second["message"], "message" in first, "json" in second) == ("{no object}", False, False)


@servers
def test_an_access_log_in_json_and_a_traceback_are_an_object_each(server: str, tmp_path: Path) -> None:
    keys = f'server = "{server}"', 'access_log = "-"', 'access_format = "json"', "slow_after = 0.1"
    pool = Pool(tmp_path, *IN_JSON, *keys)
    out = tmp_path / "out"
    with managing(pool.config):
        assert pool.ask("/fail", REQUEST_URI="/fail?one").result().status == 500
        told = message(out, "fcgimgr worker: the application failed at GET /fail")
        assert told.split("\n")[1] == "Traceback (most recent call last):"
        assert told.endswith("\nLookupError: the cupboard is bare")
        with pool.holding("/held"):
            slow = eventually(lambda: [line for line in objects(out) if " has taken " in line.get("message", "")])
        assert "worker_app.py" in slow[0]["message"]
        logged = eventually(
            lambda: len(found := [line["json"] for line in objects(out) if "json" in line]) == 2 and found
        )
        assert [(line["uri"], line["status"]) for line in logged] == [("/fail?one", 500), ("/held", 200)]
        assert len(objects(out)) == 4


def test_a_request_that_takes_too_long_is_one_object(tmp_path: Path) -> None:
    pool = Pool(tmp_path, *IN_JSON, "request_timeout = 0.2", "stopwaitsecs = 0.2")
    with managing(pool.config):
        stuck = pool.ask("/stuck")
        (told,) = eventually(lambda: [line["message"] for line in objects(tmp_path / "out")])
        assert "(most recent call first):\n  File " in told
        assert "in answer_stuck\n" in told
        assert stuck.exception() is not None
    assert len(objects(tmp_path / "out")) == 1


def test_a_crash_is_one_object(tmp_path: Path) -> None:
    pool = Pool(tmp_path, *IN_JSON)
    with managing(pool.config) as manager:
        (pid,) = manager.pids("app")
        os.kill(pid, signal.SIGSEGV)
        told = message(tmp_path / "out", "Fatal Python error: Segmentation fault\n")
        assert "(most recent call first):\n  File " in told
        eventually(lambda: manager.pids("app") not in ([], [pid]))
    assert len(objects(tmp_path / "out")) == 1
