"""Logs: every line arrives exactly once, and no trouble with a log stops the manager or a child."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.integration.commands import (
    Echo,
    Manager,
    comes,
    configuration,
    fcgimgr,
    lines_of,
    rotated,
    running,
    words,
)
from tests.waiting import eventually

NOTHING = '[program.idle]\ncommand = "sleep 1000"\nstartsecs = 0\n'
ISO = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def echo_program(echo: Echo, *keys: str) -> str:
    return "\n".join(["[program.echo]", echo.command, "startsecs = 0", *keys, ""])


# -- the manager's own log --------------------------------------------------------------------------------------------


def test_the_managers_own_log_is_a_line_an_event(tmp_path: Path) -> None:
    with running(tmp_path, f'logfile = "%(here)s/own.log"\n{NOTHING}') as manager:
        assert manager.output() == ""  # all of it is in the file
    lines = lines_of(tmp_path / "own.log")
    assert all(re.match(rf"{ISO} (debug|info|warning|error) \S", line) for line in lines), lines
    assert "starting" in lines[0]
    assert "ended" in lines[-1]


def test_the_managers_own_log_may_be_json(tmp_path: Path) -> None:
    with running(tmp_path, f'logfile = "%(here)s/own.log"\nlog_format = "json"\n{NOTHING}') as manager:
        pid = manager.pid
    entries = [json.loads(line) for line in lines_of(tmp_path / "own.log")]
    assert all({"time", "level", "message"} <= entry.keys() for entry in entries)
    assert entries[0]["pid"] == pid
    assert any(entry.get("name") == "idle:idle_00" for entry in entries)


def test_the_managers_own_log_rotates_and_keeps_every_line(tmp_path: Path) -> None:
    own = tmp_path / "own.log"
    keys = f'logfile = "{own}"\nlogfile_maxbytes = 500\nlogfile_backups = 1000\n'
    echo = Echo(tmp_path)
    said = [f"line {number}" for number in range(300)]
    with running(tmp_path, keys + echo_program(echo)):
        echo.say(*said)
        eventually(lambda: f"echo:echo_00| {said[-1]}" in lines_of(*rotated(own)))
    labelled = [line for line in lines_of(*rotated(own)) if line.startswith("echo:echo_00| ")]
    assert labelled == [f"echo:echo_00| {line}" for line in said]
    assert len(rotated(own)) > 2
    assert all(path.stat().st_size <= 500 for path in rotated(own))


def test_a_log_of_the_manager_that_cannot_be_opened_is_refused_with_its_reason(tmp_path: Path) -> None:
    config = configuration(tmp_path, f'logfile = "%(here)s/absent/own.log"\n{NOTHING}')
    for how in ([], ["run", "--daemon"]):
        complaint = fcgimgr("-c", config, *how).fails(1)
        assert f"{tmp_path}/absent/own.log" in complaint
        assert f"its directory does not exist; make it: install -d {tmp_path}/absent" in complaint
        assert "Traceback" not in complaint


# -- where children's lines go ----------------------------------------------------------------------------------------


def test_children_write_to_their_files(tmp_path: Path) -> None:
    echo = Echo(tmp_path)
    keys = 'stdout_logfile = "%(here)s/%(program_name)s.out"', 'stderr_logfile = "echo.err"'
    with running(tmp_path, echo_program(echo, *keys)) as manager:
        echo.say("to stdout", "err to stderr")
        comes(tmp_path / "echo.err", "to stderr")
        assert lines_of(tmp_path / "echo.out") == ["to stdout"]
        assert lines_of(tmp_path / "echo.err") == ["to stderr"]
        assert "to std" not in manager.output()
    assert (tmp_path / "echo.out").stat().st_mode & 0o777 == 0o640


def test_a_dash_is_the_managers_own_output_and_none_is_nowhere(tmp_path: Path) -> None:
    echo = Echo(tmp_path)
    keys = 'stdout_logfile = "-"', 'stderr_logfile = "none"'
    with running(tmp_path, echo_program(echo, *keys)) as manager:
        echo.say("err dropped", "kept")
        eventually(lambda: "echo:echo_00| kept" in manager.output().splitlines())
        assert "dropped" not in manager.output()
        assert manager("tail", "echo", "--stderr").succeeds() == "dropped\n"  # to no file, but not unseen


def test_stderr_may_be_merged_into_stdout(tmp_path: Path) -> None:
    echo = Echo(tmp_path)
    keys = 'stdout_logfile = "both.log"', 'stderr_logfile = "unused.log"', "redirect_stderr = true"
    with running(tmp_path, echo_program(echo, *keys)):
        said = [f"{'err ' * (number % 2)}{number}" for number in range(100)]
        echo.say(*said)
        comes(tmp_path / "both.log", "99")
    assert lines_of(tmp_path / "both.log") == [str(number) for number in range(100)]  # in the order of writing
    assert lines_of(tmp_path / "unused.log") == []


@pytest.mark.parametrize(
    ("timestamps", "pattern"), [("iso", rf"{ISO} a line"), ("tai64n", r"@[0-9a-f]{24} a line"), ("none", "a line")]
)
def test_lines_get_the_timestamp_that_is_asked_for(timestamps: str, pattern: str, tmp_path: Path) -> None:
    echo = Echo(tmp_path)
    keys = 'stdout_logfile = "echo.log"', f'log_timestamps = "{timestamps}"'
    with running(tmp_path, echo_program(echo, *keys)):
        echo.say("a line", "a line")
        eventually(lambda: len(lines_of(tmp_path / "echo.log")) == 2)
    first, second = lines_of(tmp_path / "echo.log")
    assert re.fullmatch(pattern, first)
    assert re.fullmatch(pattern, second)


def test_lines_may_be_json_objects(tmp_path: Path) -> None:
    echo = Echo(tmp_path)
    with running(tmp_path, echo_program(echo, 'stdout_logfile = "echo.log"', 'log_format = "json"')):
        echo.say('say "hello"')
        (line,) = eventually(lambda: lines_of(tmp_path / "echo.log"))
    entry = json.loads(line)
    assert re.fullmatch(ISO, entry.pop("time"))
    assert entry == {"process": "echo:echo_00", "stream": "stdout", "message": 'say "hello"'}


def test_the_last_words_of_a_child_are_kept(tmp_path: Path) -> None:
    program = """\
[program.short]
command = ['/bin/sh', '-c', 'seq 1 2000; printf "no newline"']
autorestart = false
stdout_logfile = "short.log"
"""
    with running(tmp_path, program, ready=False):
        eventually(lambda: lines_of(tmp_path / "short.log")[-1:] == ["no newline"])
        assert lines_of(tmp_path / "short.log") == [*map(str, range(1, 2001)), "no newline"]


# -- rotation ---------------------------------------------------------------------------------------------------------


def test_rotation_loses_and_cuts_no_line(tmp_path: Path) -> None:
    log = tmp_path / "count.log"
    program = f"""\
[program.count]
command = ['/bin/sh', '-c', 'seq -f "line %%08.0f of a log that rotates" 1 20000; exec sleep 1000']
startsecs = 0
stdout_logfile = "{log}"
stdout_logfile_maxbytes = "50KB"
stdout_logfile_backups = 1000
"""
    last = "line 00020000 of a log that rotates"
    with running(tmp_path, program):
        eventually(lambda: last in lines_of(*rotated(log)))
    files = rotated(log)
    assert lines_of(*files) == [f"line {number:08} of a log that rotates" for number in range(1, 20001)]
    assert len(files) > 10
    assert all(path.stat().st_size <= 50 * 1024 for path in files)


def test_only_so_many_backups_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "echo.log"
    echo = Echo(tmp_path)
    keys = f'stdout_logfile = "{log}"', "stdout_logfile_maxbytes = 100", "stdout_logfile_backups = 2"
    with running(tmp_path, echo_program(echo, *keys)):
        echo.say(*(f"line {number:04}" for number in range(100)))
        comes(log, "line 0099")
    assert [path.name for path in rotated(log)] == ["echo.log.2", "echo.log.1", "echo.log"]
    kept = lines_of(*rotated(log))
    assert kept == [f"line {number:04}" for number in range(100 - len(kept), 100)]


@pytest.mark.parametrize("how", ["USR1", "reopen"])
def test_logrotate_renames_and_no_line_is_lost(how: str, tmp_path: Path) -> None:
    log = tmp_path / "count.log"
    own = tmp_path / "own.log"
    # It writes all the time, until it finds the file that the test makes.
    program = f"""\
logfile = "{own}"
[program.count]
command = ['/bin/sh', '-c', 'n=0; until test -e done; do n=$((n + 1)); echo line $n; done; echo last; exec sleep 1000']
directory = "%(here)s"
startsecs = 0
stdout_logfile = "{log}"
"""
    with running(tmp_path, program) as manager:
        for number in range(5, 0, -1):
            eventually(lambda: log.stat().st_size > 100)
            log.rename(f"{log}.{number}")
            own.rename(f"{own}.{number}")
            if how == "USR1":
                os.kill(manager.pid, signal.SIGUSR1)
            else:
                assert manager("reopen").succeeds() == "reopened 2 log files\n"
            eventually(lambda: log.exists() and own.exists())
        (tmp_path / "done").touch()
        comes(log, "last")
    lines = lines_of(*rotated(log))
    assert lines[-1] == "last"
    assert lines[:-1] == [f"line {number}" for number in range(1, len(lines))]
    assert all("reopened 2 log files" in path.read_text() for path in rotated(own)[1:])
    assert "ended" in lines_of(own)[-1]


def test_reopen_tells_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    echo = Echo(tmp_path)
    with running(tmp_path, echo_program(echo, 'stdout_logfile = "logs/echo.log"')) as manager:
        echo.say("before")
        comes(tmp_path / "logs" / "echo.log", "before")
        (tmp_path / "logs").rename(tmp_path / "old")
        assert f"{tmp_path}/logs/echo.log: cannot open: its directory does not exist" in manager("reopen").fails(1)
        echo.say("after")
        comes(tmp_path / "old" / "echo.log", "after")  # the old one is kept


# -- trouble ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, check=False)
    if mount.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mount.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_told_once_and_survived(small_disk: Path, tmp_path: Path) -> None:
    log = small_disk / "echo.log"
    echo = Echo(tmp_path)
    with running(tmp_path, echo_program(echo, f'stdout_logfile = "{log}"')) as manager:
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        line = "x" * 1000
        echo.say(*[line] * 50)  # up to 4 KiB may still fit into the page that the log has already
        eventually(lambda: "No space left on device" in manager.output())
        echo.say(*[line] * 50)
        eventually(lambda: line in manager("tail", "echo").succeeds())
        assert manager.output().count("No space left on device") == 1
        filler.unlink()

        def written_again() -> bool:
            echo.say("again")
            return "again" in lines_of(log)

        eventually(written_again)
        told = [told for told in manager.output().splitlines() if str(log) in told]
        assert len(told) == 2, told
        assert re.search(r"is written again; \d+ lines? w", told[1])
        assert set(lines_of(log)) <= {line, "again"}  # whole lines only


def test_a_device_that_takes_nothing_is_told_once(tmp_path: Path) -> None:
    echo = Echo(tmp_path)
    with running(tmp_path, echo_program(echo, 'stdout_logfile = "/dev/full"')) as manager:
        echo.say(*map(str, range(1000)), "err last")
        eventually(lambda: "echo:echo_00| last" in manager.output().splitlines())
        eventually(lambda: "/dev/full" in manager.output())
        assert manager.output().count("/dev/full") == 1
        assert len(manager.pids("echo")) == 1


def test_a_removed_directory_is_told_once_and_made_again(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    log = logs / "echo.log"
    echo = Echo(tmp_path)
    with running(tmp_path, echo_program(echo, f'stdout_logfile = "{log}"')) as manager:
        echo.say("before")
        comes(log, "before")
        log.unlink()
        logs.rmdir()

        def written_again() -> bool:
            echo.say("after")
            return "after" in lines_of(log)

        eventually(written_again)
        assert manager.output().count("its directory was removed; made again") == 1
        assert len(manager.pids("echo")) == 1


def test_a_reader_of_the_managers_output_that_stops_reading_stops_nobody(tmp_path: Path) -> None:
    flood = """\
[program.flood]
command = "yes the same line for ever"
startsecs = 0

[program.other]
command = "sleep 1000"
startsecs = 0
"""
    manager = Manager(configuration(tmp_path, flood), tmp_path / "fcgimgr.sock")
    process = subprocess.Popen(words("-c", manager.config), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        eventually(lambda: (tmp_path / "fcgimgr.sock").exists() and manager("ping").code == 0)
        # Nobody reads: the pipe is full as soon as the flood has come to a halt.
        (flooding,) = eventually(lambda: manager.pids("flood"))
        eventually(lambda: waits_in_write(flooding))
        (victim,) = manager.pids("other")
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: manager.pids("other") not in ([victim], []))
        manager("restart", "all").succeeds()
        # And when it reads again, lines come again.
        reader = threading.Thread(target=drain, args=(process.stderr.fileno(),))
        reader.start()
        (flooding,) = manager.pids("flood")
        written = written_by(flooding)
        eventually(lambda: written_by(flooding) > written + 1_000_000)
        manager("shutdown").succeeds()
        reader.join(30)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def drain(fd: int) -> None:
    while os.read(fd, 1 << 20):
        pass


def waits_in_write(pid: int) -> bool:
    """Whether the process sleeps, having used no more time since the last look: it waits for its pipe."""
    before = Path(f"/proc/{pid}/stat").read_text().split()
    after = Path(f"/proc/{pid}/stat").read_text().split()
    return before[2] == after[2] == "S" and before[13:15] == after[13:15]


def written_by(pid: int) -> int:
    """Bytes that the process has written so far."""
    (line,) = (line for line in Path(f"/proc/{pid}/io").read_text().splitlines() if line.startswith("wchar:"))
    return int(line.split()[1])


def replaced(manager: Manager, victim: int) -> bool:
    pids = manager.pids("other")
    return len(pids) == 2 and victim not in pids


def test_a_child_that_writes_as_fast_as_it_can_does_not_hold_up_the_others(tmp_path: Path) -> None:
    log = tmp_path / "flood.log"
    # 100 MB, most of which falls out at the end of two backups of 1 MB.
    program = f"""\
[program.flood]
command = ['/bin/sh', '-c', 'yes 123456789012345678901234567890123456789 | head -n 2500000; echo over; exec sleep 1000']
startsecs = 0
stdout_logfile = "{log}"
stdout_logfile_maxbytes = "1MB"
stdout_logfile_backups = 2

[program.other]
command = "sleep 1000"
numprocs = 2
startsecs = 0
startretries = -1
"""
    with running(tmp_path, program) as manager:
        respawned = 0
        while "over" not in lines_of(log)[-1:]:
            victim = eventually(lambda: manager.pids("other"))[0]
            os.kill(victim, signal.SIGKILL)
            eventually(partial(replaced, manager, victim))
            respawned += 1
        assert respawned > 0
        assert lines_of(log)[-1] == "over"
        assert all(path.stat().st_size <= 1024 * 1024 for path in rotated(log))
