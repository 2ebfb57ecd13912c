"""What a process prints into the manager's own log cannot pass for the manager's, nor steer a terminal."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.commands import Echo, Manager, words
from tests.integration.scenes import managing, scene
from tests.waiting import eventually

FORGED = '2026-11-28T05:13:31.124Z info asked to shutdown by="pid 4711, uid 0"'
STEERING = "\x1b[2J\x1b]0;owned\x07\u009b31mred\x7f\r"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\x9b31mred\x7f\x0d"
TAB = "a\ttab, and \u00fcml\u00e4uts"
OWN_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|warning|error) ")


@pytest.fixture
def echo(tmp_path: Path) -> Echo:
    return Echo(tmp_path)


@pytest.mark.parametrize("stream", ["", "err "])
def test_every_line_of_a_process_is_labelled(stream: str, tmp_path: Path, echo: Echo) -> None:
    with managing(scene(tmp_path, f"[program.app]\n{echo.command}\n")) as manager:
        echo.say(f"{stream}{FORGED}", f"{stream}the last one")
        eventually(lambda: "app:app_00| the last one" in manager.output().splitlines())
        assert f"app:app_00| {FORGED}" in manager.output().splitlines()
        assert FORGED not in manager.output().splitlines()


def test_where_it_is_said_so_lines_are_as_written(tmp_path: Path, echo: Echo) -> None:
    with managing(scene(tmp_path, f"[program.app]\n{echo.command}\nlog_label = false\n")) as manager:
        echo.say('{"level": "info"}')
        eventually(lambda: '{"level": "info"}' in manager.output().splitlines())


# Says so much that it is handed on in pieces, and goes on when the manager has written a line of its own.
IN_PIECES = """
import os, sys
os.write(1, b"x" * 300_000)
open(sys.argv[1]).read()
os.write(1, b"2026-11-28T05:13:31.124Z info forged\\nthe last one\\n")
sys.stdin.read()
"""


def test_no_piece_of_an_overlong_line_begins_one_of_the_managers(tmp_path: Path) -> None:
    (tmp_path / "pieces.py").write_text(IN_PIECES)
    os.mkfifo(tmp_path / "go")
    table = f"""
    [pool.app]
    socket = "{tmp_path}/app.sock"
    command = "{sys.executable} -S -E {tmp_path}/pieces.py {tmp_path}/go"
    ready = "startsecs"
    startsecs = 0
    socket_pass = "env"
    """
    config = scene(tmp_path, table)
    with Manager(config, config.with_suffix(".control")) as manager:
        eventually(lambda: "app:app_00| xxx" in manager.output())
        manager("reopen").succeeds()
        (tmp_path / "go").write_text("go")
        eventually(lambda: "app:app_00| the last one" in manager.output().splitlines())
        lines = manager.output().splitlines()
        assert all(OWN_LINE.match(line) or line.startswith("app:app_00| ") for line in lines)
        assert not any(OWN_LINE.match(line) and "forged" in line for line in lines)


def shown_on_a_terminal(command: list[str], until: str, end: Callable[[subprocess.Popen[bytes]], None]) -> str:
    """All that a command writes to its terminal, read until it has shown this, and then ended."""
    leader, follower = pty.openpty()
    said = b""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower) as process:
        os.close(follower)
        try:
            while until.encode() not in said:
                said += os.read(leader, 65536)
        finally:
            end(process)
            os.close(leader)
    return said.decode(errors="replace")


def terminate(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def test_the_managers_own_terminal_is_not_steered(tmp_path: Path, echo: Echo) -> None:
    config = scene(tmp_path, f"[program.app]\n{echo.command}\n")
    echo.say(STEERING, TAB, "the last one")
    said = shown_on_a_terminal(words("-c", config), "the last one", terminate)
    assert f"app:app_00| {SHOWN}\r\n" in said
    assert f"app:app_00| {TAB}\r\n" in said
    assert "\x1b[2J" not in said


@pytest.mark.parametrize("more", [(), ("-f",)])
def test_nor_is_the_terminal_of_tail(more: tuple[str, ...], tmp_path: Path, echo: Echo) -> None:
    config = scene(tmp_path, f"[program.app]\n{echo.command}\nstdout_logfile = 'none'\n")
    with Manager(config, config.with_suffix(".control")) as manager:
        echo.say(STEERING, TAB, "the last one")
        eventually(lambda: manager("tail", "app").out == f"{STEERING}\n{TAB}\nthe last one\n")  # a pipe gets all
        said = shown_on_a_terminal(words("-c", config, "tail", *more, "app"), "the last one", terminate)
        assert SHOWN in said
        assert TAB in said
        assert "\x1b" not in said
