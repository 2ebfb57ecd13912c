"""The commands against a scripted manager: what they ask, what they print, and with which code they end."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fcgimgr import __version__
from fcgimgr.control.codec import encode_request
from fcgimgr.control.messages import (
    INVALID_PARAMS,
    NO_SUCH_NAME,
    ControlError,
    Drained,
    DrainParams,
    Event,
    Events,
    NamesParams,
    NoParams,
    Ok,
    Pong,
    Probed,
    ProbeParams,
    ProcessVerdict,
    Progress,
    ReloadParams,
    Reopened,
    RestartParams,
    ScaleParams,
    ShutdownParams,
    SignalParams,
    StatusParams,
    Verdict,
)
from tests.unit.conftest import Run
from tests.unit.scripted_manager import Connection, ScriptedManager

STATUS: dict[str, Any] = {
    "manager": {
        "pid": 1,
        "version": "0.1.0",
        "uptime": 1.5,
        "config": "/x.toml",
        "state": "RUNNING",
        "mood": "new key",
    },
    "pools": [
        {
            "name": "app",
            "kind": "pool",
            "state": "RUNNING",
            "generation": 1,
            "numprocs": 1,
            "policy": "static",
            "sockets": [],
            "processes": [{"name": "app_00", "pid": 7, "state": "RUNNING"}],
        }
    ],
}


def verdict(*processes: tuple[str, str], ok: bool = True, **facts: Any) -> Verdict:
    return Verdict(ok=ok, processes=tuple(ProcessVerdict(name=n, ok=ok, result=r) for n, r in processes), **facts)


@pytest.mark.parametrize(
    ("command", "params"), [("start", NamesParams), ("stop", NamesParams), ("restart", RestartParams)]
)
def test_a_command_waits_and_reports_each_process(run: Run, manager: ScriptedManager, command: str, params: Any):
    manager.answers[command] = verdict(("app:app_00", "started"), ("app:app_01", "already running"))
    assert run("-s", "m.sock", command, "app", "mail:mail_00") == (
        0,
        "app:app_00: started\napp:app_01: already running\n",
        "",
    )
    assert manager.asked == [(command, params(names=("app", "mail:mail_00"), wait=True))]


@pytest.mark.parametrize(
    ("words", "params"),
    [
        (("reload", "app"), ReloadParams(names=("app",))),
        (("reload", "app", "--canary", "5%"), ReloadParams(names=("app",), canary=5.0)),
        (("reload", "app", "--promote"), ReloadParams(names=("app",), action="promote")),
        (("reload", "--abort", "all"), ReloadParams(names=("all",), action="abort")),
        (("restart", "--hard", "app"), RestartParams(names=("app",), hard=True)),
    ],
)
def test_reload_and_restart_ask_for_what_was_typed(
    run: Run, manager: ScriptedManager, words: tuple[str, ...], params: Any
):
    manager.answers[words[0]] = verdict(("app", "reloaded"))
    assert run("-s", "m.sock", *words)[0] == 0
    assert manager.asked == [(words[0], params)]


@pytest.mark.parametrize(
    "words", [("--canary", "5", "--promote"), ("--canary", "0"), ("--canary", "x%"), ("--canary=100",)]
)
def test_a_canary_that_makes_no_sense_is_refused(run: Run, manager: ScriptedManager, words: tuple[str, ...]):
    assert run("-s", "m.sock", "reload", "app", *words)[0] == 2
    assert manager.asked == []


def test_a_failure_shows_its_reason_and_last_lines(run: Run, manager: ScriptedManager):
    failed = ProcessVerdict(
        name="app:app_01", ok=False, result="failed", detail="exited too quickly", lines=("Traceback", "\x1b[2Joops")
    )
    manager.answers["start"] = Verdict(ok=False, processes=(*verdict(("app:app_00", "started")).processes, failed))
    assert run("start", "-s", "m.sock", "app") == (
        1,
        "app:app_00: started\napp:app_01: failed: exited too quickly\n    Traceback\n    \\x1b[2Joops\n",
        "",
    )


def test_a_thousand_alike_are_one_line_unless_asked(run: Run, manager: ScriptedManager):
    manager.answers["stop"] = verdict(*((f"app:app_{n:03}", "stopped") for n in range(1000)))
    assert run("-s", "m.sock", "stop", "app")[1] == "app: 1000 processes stopped (-v lists them)\n"
    assert len(run("-s", "m.sock", "stop", "-v", "app")[1].splitlines()) == 1000


def test_no_wait_is_asked_for(run: Run, manager: ScriptedManager):
    manager.answers["stop"] = verdict(("app:app_00", "stopping"))
    assert run("-s", "m.sock", "stop", "--no-wait", "all")[0] == 0
    assert manager.asked == [("stop", NamesParams(names=("all",), wait=False))]


def test_progress_stays_off_a_pipe(run: Run, manager: ScriptedManager):
    def start(connection: Connection, request: object) -> Verdict:
        connection.notify("progress", Progress(name="app:app_00", state="STARTING"))
        return verdict(("app:app_00", "started"))

    manager.answers["start"] = start
    assert run("-s", "m.sock", "start", "app") == (0, "app:app_00: started\n", "")


@pytest.mark.parametrize("numprocs", ["4", "+2", "-1", "-12"])
def test_scale_takes_a_number_or_a_difference(run: Run, manager: ScriptedManager, numprocs: str):
    manager.answers["scale"] = verdict(("app:app_04", "started"), numprocs=5)
    assert run("-s", "m.sock", "scale", "app", numprocs, "--no-wait") == (0, "app:app_04: started\n", "")
    assert manager.asked == [("scale", ScaleParams(name="app", numprocs=numprocs, wait=False))]


def test_scale_to_what_is_says_so(run: Run, manager: ScriptedManager):
    manager.answers["scale"] = verdict(numprocs=4)
    assert run("-s", "m.sock", "scale", "app", "4")[1] == "app: 4 processes already\n"


@pytest.mark.parametrize(
    "arguments", [("app", "many"), ("app", "--nowait"), ("app",), ("app", "1", "2"), ("app", "1.5")]
)
def test_scale_to_no_number_is_a_usage_error(run: Run, manager: ScriptedManager, arguments: tuple[str, ...]):
    code, out, err = run("-s", "m.sock", "scale", *arguments)
    assert (code, out, manager.asked) == (2, "", [])
    assert err


def test_signal(run: Run, manager: ScriptedManager):
    manager.answers["signal"] = verdict(("app:app_00", "signalled"))
    assert run("-s", "m.sock", "signal", "HUP", "app")[:2] == (0, "app:app_00: signalled\n")
    assert manager.asked == [("signal", SignalParams(names=("app",), signal="HUP"))]


def test_status_json_is_the_managers_answer_word_for_word(run: Run, manager: ScriptedManager):
    manager.answers["status"] = STATUS
    code, out, err = run("-s", "m.sock", "status", "--json", "app")
    assert (code, json.loads(out), err) == (0, STATUS, "")
    assert manager.asked == [("status", StatusParams(names=("app",), detail=True))]


@pytest.mark.parametrize("command", ["status", "events"])
def test_json_cannot_repaint_the_terminal_and_says_the_same(run: Run, manager: ScriptedManager, command: str):
    hostile = "\x1b[2J \x7f \x80 \x9b2J \x9f é"
    manager.answers["status"] = STATUS | {"pools": [STATUS["pools"][0] | {"reason": hostile}]}
    manager.answers["events"] = Events(events=(Event(time=0.0, kind="log", name="app", detail=hostile),))
    _, out, _ = run("-s", "m.sock", command, "--json")
    said = json.loads(out)
    assert (said["pools"][0]["reason"] if command == "status" else said["detail"]) == hostile
    assert out[:-1].isprintable()


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_status_ends_with_3_when_something_is_not_running(run: Run, manager: ScriptedManager, json_too: list[str]):
    manager.answers["status"] = STATUS | {"pools": [STATUS["pools"][0] | {"state": "DEGRADED"}]}
    code, out, err = run("-s", "m.sock", "status", *json_too)
    assert code == 3
    assert "DEGRADED" in out
    assert err == ""


def test_reopen(run: Run, manager: ScriptedManager):
    manager.answers["reopen"] = Reopened(reopened=1)
    assert run("-s", "m.sock", "reopen") == (0, "reopened 1 log file\n", "")
    manager.answers["reopen"] = Reopened(reopened=2, problems=("/var/log/x: no space",))
    assert run("-s", "m.sock", "reopen") == (1, "reopened 2 log files\n", "fcgimgr: /var/log/x: no space\n")


def test_shutdown_waits_for_the_end(run: Run, manager: ScriptedManager):
    def shutdown(connection: Connection, request: Any) -> None:
        connection.notify("progress", Progress(name="app:app_00", state="STOPPING"))
        connection.send(b'{"jsonrpc":"2.0","id":1,"result":{"ok":true}}\n')
        connection.hang_up()

    manager.answers["shutdown"] = shutdown
    assert run("-s", "m.sock", "shutdown", "--now") == (0, "shut down\n", "")
    manager.answers["shutdown"] = Ok()
    assert run("-s", "m.sock", "shutdown", "--no-wait") == (0, "shutting down\n", "")
    assert [params for _, params in manager.asked] == [ShutdownParams(now=True), ShutdownParams(wait=False)]


def test_ping_and_probe(run: Run, manager: ScriptedManager):
    manager.answers |= {"ping": Pong(pid=9, version="0.1.0"), "probe": Probed(ok=False, reason="app: DEGRADED")}
    assert run("-s", "m.sock", "ping") == (0, "pong: fcgimgr 0.1.0, pid 9\n", "")
    assert run("-s", "m.sock", "probe", "ready") == (1, "app: DEGRADED\n", "")
    assert run("-s", "m.sock", "probe", "ready", "--strict")[0] == 1
    strict = ("probe", ProbeParams(kind="ready", strict=True))
    assert manager.asked == [("ping", NoParams()), ("probe", ProbeParams(kind="ready")), strict]
    assert run("-s", "m.sock", "probe", "live", "--strict")[0] == 2


def test_a_manager_that_does_not_know_strict_is_asked_only_what_it_knows():
    assert b"strict" not in encode_request(1, "probe", ProbeParams(kind="ready"))


def test_drain_tells_how_it_stands(run: Run, manager: ScriptedManager):
    manager.answers["drain"] = Drained(ok=True, draining=True, reason="draining; no connection is in use")
    assert run("-s", "m.sock", "drain") == (0, "draining; no connection is in use\n", "")
    manager.answers["drain"] = Drained(ok=False, draining=True, reason="draining; after 2 s still app: 1")
    assert run("-s", "m.sock", "drain", "--timeout", "2") == (1, "draining; after 2 s still app: 1\n", "")
    manager.answers["drain"] = Drained(ok=True, draining=False, reason="not draining")
    assert run("-s", "m.sock", "drain", "--undo") == (0, "not draining\n", "")
    assert run("-s", "m.sock", "drain", "--no-wait")[0] == 0
    asked = [DrainParams(), DrainParams(timeout=2.0), DrainParams(undo=True), DrainParams(wait=False)]
    assert [params for _, params in manager.asked] == asked
    assert run("-s", "m.sock", "drain", "--undo", "--timeout", "2")[0] == 2


# -- how it fails -----------------------------------------------------------------------------------------------------


def test_a_name_that_is_not_there(run: Run, manager: ScriptedManager):
    manager.answers["start"] = ControlError("no 'ap'; did you mean 'app'?", code=NO_SUCH_NAME)
    assert run("-s", "m.sock", "start", "ap") == (1, "", "fcgimgr: no 'ap'; did you mean 'app'?\n")


def test_parameters_that_the_manager_refuses_are_a_usage_error(run: Run, manager: ScriptedManager):
    manager.answers["signal"] = ControlError("no signal HOP", code=INVALID_PARAMS)
    assert run("-s", "m.sock", "signal", "HOP", "app") == (2, "", "fcgimgr: no signal HOP\n")


def test_no_manager_is_4_with_the_socket_tried_and_the_way_to_start_one(run: Run, tmp_path: Path):
    (tmp_path / "pool.toml").write_text('[manager]\ncontrol = "/nowhere/x.sock"\n')
    assert run("status") == (
        4,
        "",
        "fcgimgr: no manager at /nowhere/x.sock: there is no such socket\nstart one with: fcgimgr -c pool.toml\n",
    )


def test_without_a_config_or_a_socket_a_command_asks_for_one(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fcgimgr.cli.locate.SEARCHED", ("pool.toml", "/nowhere/pool.toml"))
    code, out, err = run("status")
    assert (code, out) == (2, "")
    assert "give -c FILE or -s SOCKET" in err.replace("Give", "give")


def test_a_shutdown_that_is_quicker_than_its_answer_is_done(run: Run, manager: ScriptedManager):
    manager.answers["shutdown"] = lambda connection, request: connection.hang_up()
    assert run("-s", "m.sock", "shutdown") == (0, "shut down\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["statu"], "did you mean status?"),
        (["frobnicate"], "`fcgimgr help` lists what there is"),
        (["status", "--jsn"], "--json"),
        (["-s"], "requires an argument"),
        (["signal"], "Missing argument"),
        (["probe", "dead"], "live"),
        (["tail", "-n", "-3", "app"], "-n"),
        (["-s", "m.sock"], "say what to ask"),
        (["-s", "m.sock", "run"], "asking a manager"),
    ],
)
def test_a_wrong_command_line_is_2(run: Run, arguments: list[str], words: str):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            "stop",
            [
                "fcgimgr -s m.sock stop app   RUNNING",
                "fcgimgr -s m.sock stop mail  FATAL",
                "fcgimgr -s m.sock stop all",
            ],
        ),
        ("reload --promote", ["fcgimgr -s m.sock reload --promote all"]),
        ("signal HUP", ["fcgimgr -s m.sock signal HUP app   RUNNING"]),
        ("scale --no-wait", ["fcgimgr -s m.sock scale --no-wait app +1   RUNNING"]),
        ("tail -f", ["fcgimgr -s m.sock tail -f mail  FATAL"]),
    ],
)
def test_a_command_without_a_name_does_nothing_and_says_what_there_is(
    run: Run, manager: ScriptedManager, words: str, lines: list[str]
):
    other = {"name": "mail", "kind": "program", "state": "FATAL", "numprocs": 1, "processes": []}
    manager.answers["status"] = {**STATUS, "pools": [*STATUS["pools"], other]}
    code, out, err = run("-s", "m.sock", *words.split())
    assert (code, out) == (2, "")
    command, *shown = err.splitlines()
    assert command == f"fcgimgr: {words.split()[0]} what? There are:"
    assert set(lines) <= {line.strip() for line in shown}
    assert not any(line.startswith("  fcgimgr -s m.sock scale") and "all" in line for line in shown)
    assert manager.asked == [("status", StatusParams(detail=False))]


def test_where_the_manager_was_named_behind_the_command_it_stays_there(run: Run, manager: ScriptedManager):
    manager.answers["status"] = STATUS
    assert "  fcgimgr restart -s m.sock app  RUNNING\n" in run("restart", "-s", "m.sock")[2]
    manager.answers["status"] = {**STATUS, "pools": []}
    assert run("restart", "-s", "m.sock") == (2, "", "fcgimgr: restart what? There are no pools and no programs\n")


def test_a_command_without_a_name_says_as_any_other_that_no_manager_is_there(run: Run):
    assert run("-s", "m.sock", "stop") == run("-s", "m.sock", "status")
    assert run("-s", "m.sock", "stop")[0] == 4


def test_an_unexpected_error_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("fcgimgr.cli.ask.ask", broken)
    line = "fcgimgr: internal error: ZeroDivisionError: by zero; set FCGIMGR_DEBUG=1 to see where\n"
    assert run("-s", "m.sock", "ping") == (1, "", line)
    monkeypatch.setenv("FCGIMGR_DEBUG", "1")
    assert "in broken" in run("-s", "m.sock", "ping")[2]


# -- without a manager ------------------------------------------------------------------------------------------------


def test_check_counts_what_is_there(run: Run, tmp_path: Path):
    pool = '[pool.{0}]\nsocket = "127.0.0.1:900{0}"\ncommand = "true"\n'
    (tmp_path / "pool.toml").write_text(pool.format(1) + pool.format(2) + '[program.mail]\ncommand = "true"\n')
    assert run("check") == (0, "pool.toml: ok: 2 pools, 1 program\n", "")


def test_check_tells_every_problem_at_once(run: Run, tmp_path: Path):
    (tmp_path / "bad.toml").write_text(
        '[pool.a]\nnumproc = 3\n[pool.b]\nsocket = "/x.sock"\numask = "no"\ncommand = "x"\n'
    )
    code, out, err = run("-c", "bad.toml", "check")
    assert (code, out) == (2, "")
    assert "pool.a.numproc" in err
    assert "pool.b.umask" in err
    assert all("bad.toml: " in line for line in err.splitlines())


def test_check_of_a_missing_file(run: Run):
    code, out, err = run("check", "-c", "missing.toml")
    assert (code, out) == (2, "")
    assert "missing.toml" in err


def test_schema_is_json(run: Run):
    code, out, _ = run("schema")
    assert code == 0
    assert json.loads(out)["$schema"].endswith("2020-12/schema")


def test_help_and_version_before_and_after_a_command(run: Run):
    version = (0, f"fcgimgr {__version__}\n", "")
    assert run("--version") == run("status", "--version") == version
    assert run("-h")[1].startswith("Usage: fcgimgr [OPTIONS]")
    assert run("status", "-h")[1].startswith("Usage: fcgimgr status")


def test_help_shows_which_names_may_be_left_out(run: Run) -> None:
    assert "Usage: fcgimgr status [OPTIONS] [NAME...]\n" in run("status", "--help")[1]
    assert "Usage: fcgimgr stop [OPTIONS] NAME...\n" in run("stop", "--help")[1]


def test_nothing_given_and_nothing_found_shows_ways_to_begin(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fcgimgr.cli.locate.SEARCHED", ("pool.toml", "/nowhere/pool.toml"))
    code, out, err = run()
    assert code == 2
    assert out == ""
    assert "there is no pool.toml" in err
    for way in ("fcgimgr demo", "fcgimgr dev app:app", "fcgimgr --help"):
        assert way in err


@pytest.mark.parametrize(
    ("arguments", "rest"),
    [
        (["-c", "other.toml"], ["other.toml"]),
        ([], ["pool.toml"]),
        (["run"], ["pool.toml"]),
        (["-c", "x.toml", "run", "-c", "other.toml", "--daemon"], ["other.toml", "--daemon"]),
    ],
)
def test_without_a_command_the_manager_takes_the_place_of_the_process(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], rest: list[str]
):
    (tmp_path / "pool.toml").write_text("")
    became: list[list[str]] = []

    def execv(path: str, words: list[str]) -> None:
        assert path == words[0]
        became.append(words)
        raise KeyboardInterrupt  # as exec, it does not come back

    monkeypatch.setattr(os, "execv", execv)
    run(*arguments)
    (words,) = became
    expected = ["-m", "fcgimgr.manager", "--config", str(tmp_path / rest[0]), *rest[1:]]
    assert words[-len(expected) :] == expected
