"""The command as a process of its own: terminals, signals, pipes, completion, and what it imports."""

import fcntl
import os
import pty
import queue
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fcgimgr.cli.words import WORDS
from fcgimgr.control.messages import (
    ManagerStatus,
    PoolStatus,
    ProcessStatus,
    ProcessVerdict,
    Progress,
    Status,
    Tail,
    Verdict,
)
from tests.integration.servers import need
from tests.unit.scripted_manager import Connection, ScriptedManager
from tests.unit.test_cli_commands import STATUS
from tests.waiting import eventually

FCGIMGR = [sys.executable, "-m", "fcgimgr"]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ScriptedManager]:
    with ScriptedManager(tmp_path / "m.sock", status=STATUS) as manager:
        yield manager


def environment(**changed: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "FCGIMGR_DEBUG")
    }
    return kept | {"TERM": "xterm", "PYTHONPATH": os.getcwd()} | changed


def on_a_terminal(*arguments: str, **environ: str) -> tuple[int, str]:
    """The exit code, and all that a terminal of 60 columns got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen([*FCGIMGR, *arguments], stdout=theirs, stderr=theirs, env=environment(**environ))
    os.close(theirs)
    said = b""
    try:
        while received := os.read(ours, 65536):
            said += received
    except OSError:
        pass  # EIO: the last holder of the other side is gone.
    os.close(ours)
    return process.wait(10), said.decode()


def test_a_terminal_gets_colour_unless_it_says_no(manager: ScriptedManager):
    assert "\x1b[32mRUNNING" in on_a_terminal("-s", manager.path, "status")[1]
    assert "\x1b" not in on_a_terminal("-s", manager.path, "status", NO_COLOR="1")[1]
    assert "\x1b" not in on_a_terminal("-s", manager.path, "status", TERM="dumb")[1]


def test_on_a_terminal_a_reason_is_never_cut_and_in_a_pipe_it_is_on_the_line_of_its_process(tmp_path: Path):
    reason = "exited with code 1 0.2 s after its start, before it was ready: there is no module 'flask'"
    failed = ProcessStatus(name="app_00", pid=None, state="FATAL", reason=reason)
    manager = ManagerStatus(pid=1, version="0.1.0", uptime=1.5, config="/x.toml", state="RUNNING")
    pool = PoolStatus(name="app", kind="pool", state="FATAL", numprocs=1, processes=(failed,))
    with ScriptedManager(tmp_path / "m.sock", status=Status(manager=manager, pools=(pool,))) as asked:
        for arguments in (["status"], ["status", "-v"]):
            code, said = on_a_terminal("-s", asked.path, *arguments, NO_COLOR="1")
            assert code == 3
            below = said.partition("app:app_00")[2].splitlines()[1:]
            assert below[:2] == [
                "      exited with code 1 0.2 s after its start, before it",
                "      was ready: there is no module 'flask'",
            ]
        command = [*FCGIMGR, "-s", asked.path, "status"]
        piped = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False).stdout
        (line,) = [line for line in piped.splitlines() if "app:app_00" in line]
        assert line.endswith(reason)


def test_a_pipe_gets_colour_where_it_is_asked_for(manager: ScriptedManager):
    def piped(**environ: str) -> str:
        command = [*FCGIMGR, "-s", manager.path, "status"]
        return subprocess.run(command, env=environment(**environ), capture_output=True, text=True, check=True).stdout

    assert "\x1b" not in piped()
    assert "\x1b[32mRUNNING" in piped(FORCE_COLOR="1")
    assert "\x1b" not in piped(FORCE_COLOR="1", NO_COLOR="1")


def test_what_is_told_to_those_who_ask_for_top_looks_again_and_again_in_colour(
    manager: ScriptedManager, tmp_path: Path
):
    need("watch")
    told = re.findall(r"`([^`]* watch [^`]*)`", WORDS["top"])
    assert len(told) == 1
    command = tmp_path / "fcgimgr"
    command.write_text(f'#!/bin/sh\nexec {shlex.join([*FCGIMGR, "-s", str(manager.path)])} "$@"\n')
    command.chmod(0o755)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    path = f"{tmp_path}:{os.environ['PATH']}"
    watch = subprocess.Popen(
        ["sh", "-c", f"exec env {told[0]}"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(PATH=path)
    )
    os.close(theirs)
    try:
        seen = b""
        while b"RUNNING" not in seen:
            seen += os.read(ours, 65536)
        assert b"\x1b[32mRUNNING" in seen
        eventually(lambda: len(manager.requests) > 1)
    finally:
        watch.terminate()
        watch.wait(10)
        os.close(ours)


def test_a_terminal_sees_one_line_of_progress_and_then_the_verdict(manager: ScriptedManager):
    def start(connection: Connection, request: object) -> Verdict:
        connection.notify("progress", Progress(name="app:app_00", state="STARTING"))
        connection.notify("progress", Progress(name="app:app_00", state="BACKOFF", detail="exited too quickly " * 9))
        return Verdict(ok=True, processes=(ProcessVerdict(name="app:app_00", ok=True, result="started"),))

    manager.answers["start"] = start
    code, said = on_a_terminal("-s", manager.path, "start", "app")
    assert code == 0
    first, second, end = said.split("\r\x1b[K")[1:]
    assert first.startswith("app:app_00: STARTING   [1 STARTING; 0 s]")
    assert second.startswith("app:app_00: BACKOFF (exited too quickly")
    assert len(second) < 60
    assert end == "app:app_00: \x1b[32mstarted\x1b[0m\r\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["stop", "app"], b"fcgimgr: the stop goes on; fcgimgr status shows how far it is\n"),
        (["reload", "app"], b"fcgimgr: the reload goes on; fcgimgr status shows how far it is\n"),
        (["tail", "-f", "app"], b""),
        (["shutdown"], b"fcgimgr: the shutdown goes on; fcgimgr status shows how far it is\n"),
    ],
)
def test_ctrl_c_ends_a_waiting_command_and_says_what_goes_on(manager: ScriptedManager, command: list[str], said: bytes):
    started = queue.SimpleQueue[Any]()

    def waits(connection: Connection, request: Any) -> None:
        if request.method == "tail":
            connection.send(b'{"jsonrpc":"2.0","id":1,"result":{"lines":[]}}\n')
        started.get().send_signal(signal.SIGINT)
        connection.until_the_client_hangs_up()

    manager.answers |= dict.fromkeys(("stop", "reload", "tail", "shutdown"), waits)
    process = subprocess.Popen(
        [*FCGIMGR, "-s", manager.path, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    started.put(process)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, b"", said)


def test_a_reader_that_goes_away_is_no_error(manager: ScriptedManager):
    manager.answers["tail"] = Tail(lines=("x" * 100,) * 5000)
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [*FCGIMGR, "-s", manager.path, "tail", "app"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(),
        check=False,
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (141, b"")


def test_a_full_disk_under_stdout_is_said(manager: ScriptedManager):
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [*FCGIMGR, "-s", manager.path, "status"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
        )
    assert process.returncode == 1
    assert process.stderr == b"fcgimgr: input or output failed: No space left on device\n"


def test_status_imports_no_more_than_it_needs(manager: ScriptedManager):
    """The whole command has 0.2 s; what is imported is what decides."""
    script = (
        "import sys; from fcgimgr.cli.main import main; main(sys.argv[1:]);print(*sorted(sys.modules), file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, "-s", manager.path, "status"],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    imported = set(process.stderr.split())
    assert "fcgimgr.control.client" in imported
    heavy = {"asyncio", "ssl", "rich", "tomli", "subprocess", "tempfile", "http.client", "email", "logging"}
    # click and typing bring some of the standard library of their own; what is ours to keep away is what counts.
    ours = {"fcgimgr.config.read", "fcgimgr.fastcgi.client", "fcgimgr.linux.spawn", "fcgimgr.manager"}
    assert imported & (heavy | ours) == set()


# -- completion -------------------------------------------------------------------------------------------------------


def completed(line: str, *, within: Path) -> list[str]:
    """What bash offers at the end of `line`, by the script that `completion bash` prints."""
    script = """
        eval "$("$PYTHON" -m fcgimgr completion bash)"
        fcgimgr() { "$PYTHON" -m fcgimgr "$@"; }
        COMP_LINE=$LINE COMP_POINT=${#LINE}
        _fcgimgr_completion fcgimgr
        (( ${#COMPREPLY[@]} )) && printf '%s\\n' "${COMPREPLY[@]}"
        exit 0
    """
    process = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        cwd=within,
        env=environment(LINE=line, PYTHON=sys.executable),
        check=True,
    )
    assert process.stderr == ""
    return process.stdout.split()


def test_bash_completes_commands_and_names(manager: ScriptedManager, tmp_path: Path):
    assert completed("fcgimgr re", within=tmp_path) == ["reload", "restart", "reopen", "request"]
    assert completed("fcgimgr -s m.sock stop ", within=tmp_path) == ["app", "all"]
    assert completed("fcgimgr stop -s m.sock mail ap", within=tmp_path) == ["app"]


def test_bash_completes_what_follows_the_colon(manager: ScriptedManager, tmp_path: Path):
    assert completed("fcgimgr -s m.sock stop app:", within=tmp_path) == ["*", "app_00"]
    assert completed("fcgimgr -s m.sock stop app:app_", within=tmp_path) == ["app_00"]


def test_completion_without_a_manager_is_silent(tmp_path: Path):
    assert completed("fcgimgr -s nowhere.sock stop ", within=tmp_path) == ["all"]
    assert completed("fcgimgr scale ", within=tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str):
    process = subprocess.run(
        [*FCGIMGR, "completion", shell], capture_output=True, text=True, env=environment(), check=True
    )
    assert f"_FCGIMGR_COMPLETE={shell}_complete" in process.stdout
