"""A configuration with faults: all of them are said at once, nothing is started, and what runs can still be asked."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.integration.commands import configuration, fcgimgr, running

FAULTY = """\
umsk = 22
[pool.app]
socket = "127.0.0.1:99999"
comand = "sleep 1"
numprocs = "many"
socket_mode = 0o99

[program.idle]
command = "sleep 1000"
stopsignal = "TREM"
depends_on = ["nobody"]
"""

PROBLEMS = [
    "manager.umsk",
    "pool.app.socket",
    "pool.app.comand",
    "pool.app.numprocs",
    "program.idle.stopsignal",
    "program.idle.depends_on",
]

IDLE = '[program.idle]\ncommand = "sleep 1000"\nstartsecs = 0\n'


@pytest.mark.parametrize("how", [["check"], [], ["run"], ["run", "--daemon"]])
def test_all_problems_are_said_at_once(how: list[str], tmp_path: Path) -> None:
    config = configuration(tmp_path, FAULTY.replace("socket_mode = 0o99\n", ""))
    done = fcgimgr("-c", config, *how)
    assert done.code == 2
    lines = done.err.splitlines()
    for problem in PROBLEMS:
        assert any(line.startswith(f"{config}: {problem}: ") for line in lines), (problem, lines)
    assert "umask" in done.err  # what umsk was meant to be
    assert "command" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "fcgimgr.sock").exists()


@pytest.mark.parametrize("how", [["check"], [], ["update"]])
def test_warnings_are_said_beside_problems(how: list[str], tmp_path: Path) -> None:
    config = configuration(tmp_path, IDLE)
    with running(tmp_path, IDLE) if how == ["update"] else nullcontext():
        config.write_text('include = "none.d/*.toml"\n' + config.read_text() + "numproc = 2\n")
        warning, problem, *_ = fcgimgr("-c", config, *how).fails(2).splitlines()
    assert warning == f"warning: {config}: include: no file matches {tmp_path}/none.d/*.toml"
    assert f"{config}: program.idle.numproc: unknown key" in problem


@pytest.mark.parametrize("how", [["check"], [], ["run", "--daemon"]])
@pytest.mark.parametrize(
    "text", ["[pool.app\n", "[pool.app]\nsocket_mode = 0o99\n", "a = 1\na = 2\n", "\x00", "[a]\n[a]\n"]
)
def test_a_file_that_is_not_toml_names_the_line(text: str, how: list[str], tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text(text)
    complaint = fcgimgr("-c", config, *how).fails(2)
    assert complaint.startswith(f"{config}:")
    assert "line" in complaint or any(f":{number}:" in complaint for number in (1, 2))
    assert "Traceback" not in complaint


@pytest.mark.parametrize("how", [["check"], [], ["run", "--daemon"], ["status"]])
def test_a_file_that_is_not_there_is_said_to_be_so(how: list[str], tmp_path: Path) -> None:
    complaint = fcgimgr("-c", tmp_path / "absent.toml", *how).fails(2)
    assert str(tmp_path / "absent.toml") in complaint
    assert "No such file" in complaint or "no such file" in complaint or "does not exist" in complaint


def test_check_finds_nothing_wrong_with_a_good_file(tmp_path: Path) -> None:
    assert "ok: 1 program" in fcgimgr("-c", configuration(tmp_path, IDLE), "check").succeeds()


@pytest.mark.parametrize("broken", [FAULTY, "[program.idle\n", FAULTY.replace("socket_mode = 0o99\n", ""), "\x00"])
def test_a_broken_file_does_not_keep_anyone_from_the_manager_that_runs(broken: str, tmp_path: Path) -> None:
    with running(tmp_path, IDLE) as manager:
        configuration(tmp_path, broken)
        assert json.loads(manager("status", "--json").succeeds())["manager"]["pid"] == manager.pid
        manager("restart", "idle").succeeds()
        manager("check").fails(2)
        manager("shutdown").succeeds()


def test_the_schema_is_json(tmp_path: Path) -> None:
    assert json.loads(fcgimgr("schema", cwd=tmp_path).succeeds())["properties"].keys() >= {"manager", "pool", "program"}
