"""The table of `status`: aligned, short with a thousand processes, and true about what is not known."""

import re

import pytest

from fcgimgr.cli.status_table import all_running, duration, render, size
from fcgimgr.cli.terminal import Paint
from fcgimgr.control.messages import (
    Exit,
    GenerationStatus,
    LogStatus,
    ManagerStatus,
    PoolStatus,
    ProcessStatus,
    RequestStatus,
    SocketStatus,
    Status,
)

MANAGER = ManagerStatus(pid=4711, version="0.1.0", uptime=754, config="/etc/fcgimgr/pool.toml", state="RUNNING")


def running(number: int, **changed: object) -> ProcessStatus:
    facts = {"pid": 5000 + number, "state": "RUNNING", "uptime": 754.0, "restarts": 0} | changed
    return ProcessStatus(name=f"app_{number:02}", **facts)


def pool(*processes: ProcessStatus, state: str = "RUNNING", **facts: object) -> PoolStatus:
    wanted = {"name": "app", "kind": "pool", "numprocs": len(processes)} | facts
    return PoolStatus(state=state, processes=processes, **wanted)


def table(*pools: PoolStatus, verbose: bool = False, colour: bool = False) -> list[str]:
    return list(render(Status(manager=MANAGER, pools=pools), Paint(colour), verbose=verbose))


def test_the_table_is_aligned_and_says_all():
    backoff = running(
        1, pid=None, state="BACKOFF", uptime=None, restarts=12, reason="exited too quickly (code 1)", retry_in=3.6
    )
    sockets = (
        SocketStatus(address="127.0.0.1:9001", backlog=4096, queued=3),
        SocketStatus(address="unix:/run/app.sock", backlog=128, queued=None),
    )
    mail = pool(running(0), name="mail", kind="program")
    served = running(0, busy=True, requests=1234, rss=22 * 1024 * 1024)
    assert table(pool(served, backoff, state="DEGRADED", sockets=sockets), mail) == [
        "fcgimgr 0.1.0  pid 4711  up 12m34s  /etc/fcgimgr/pool.toml",
        "",
        "NAME           STATE      PID  UPTIME  RESTARTS  BUSY  REQUESTS    RSS",
        "app            DEGRADED  1 of 2 running  127.0.0.1:9001 queue 3/4096  unix:/run/app.sock",
        "  app:app_00   RUNNING   5000  12m34s         0   yes      1234  22.0M",
        "  app:app_01   BACKOFF      -       -        12     -         -      -  "
        "exited too quickly (code 1); next try in 4 s",
        "mail           RUNNING   1 of 1 running",
        "  mail:app_00  RUNNING   5000  12m34s         0     -         -      -",
    ]


def test_restarts_are_told_apart_and_fit_into_80_columns():
    lines = table(
        pool(
            running(0, restarts=19, crashes=2, recycled=12, by_hand=5, busy=True, requests=123456, rss=128 << 20),
            running(1, restarts=3, crashes=1, recycled=0, by_hand=0),  # two of them counted by an older manager
            running(2, restarts=4),
        )
    )
    assert [line[38:47].strip() for line in lines[4:7]] == ["2c 12r 5h", "2 1c", "4"]
    assert lines[7] == "RESTARTS: c after a crash, r recycled, h by hand"
    assert max(map(len, lines)) <= 80


def test_what_is_fatal_shows_since_when():
    fatal = running(0, pid=None, state="FATAL", uptime=None, reason="exited with code 1", state_for=200.0)
    lines = table(pool(fatal, running(1), state="DEGRADED"))
    assert lines[4].endswith("exited with code 1; FATAL for 3m20s; once it is mended: fcgimgr start app:app_00")
    assert "FATAL for 3m20s" in table(pool(fatal, state="FATAL", state_for=200.0))[3]


def test_a_generation_beside_the_one_that_serves_has_rows_of_its_own():
    old = GenerationStatus(
        number=2,
        state="DRAINING",
        processes=1,
        queued=2,
        doing="1 process finishes (app_00: GET /hang 22 s)",
        killed_in=8.2,
    )
    socket = SocketStatus(address="127.0.0.1:9001", backlog=4096, queued=0)
    shown = pool(
        running(1, generation=3),
        running(0, generation=2, state="STOPPING"),
        numprocs=1,
        generation=3,
        generations=(old,),
        sockets=(socket,),
    )
    assert [line.rstrip() for line in table(shown)[3:]] == [
        "app             RUNNING   1 of 1 running  127.0.0.1:9001 queue 0/4096",
        "  app:app_01    RUNNING   5001  12m34s         0     -         -    -",
        "  generation 2  DRAINING  1 process finishes (app_00: GET /hang 22 s)  queue 2  killed in 8 s",
        "  app:app_00    STOPPING  5000  12m34s         0     -         -    -",
    ]


def test_a_saturated_pool_is_called_so():
    assert "3 of 3 running  saturated for 31s" in table(pool(*map(running, range(3)), saturated_for=31.4))[3]


def test_logs_that_cannot_be_written_stand_below_the_table():
    logs = (
        LogStatus(path="/var/log/app/app.log", problem="cannot write: No space left on device", lost=57),
        LogStatus(path="/var/log/app/access.log", problem="cannot be opened: its directory does not exist"),
    )
    shown = list(render(Status(manager=MANAGER, pools=(), logs=logs), Paint(False)))
    assert shown[-2:] == [
        "log /var/log/app/app.log: cannot write: No space left on device, 57 lines lost",
        "log /var/log/app/access.log: cannot be opened: its directory does not exist",
    ]


def test_how_nobody_knows_it_ended_is_said():
    assert table(pool(running(0, state="EXITED", exit=Exit(unknown=True))))[4].endswith("ended, nobody knows how")


def test_an_address_that_cannot_be_had_is_said_once():
    sockets = tuple(SocketStatus(address=address, backlog=None, queued=None) for address in ("*:80", "*:8080"))
    refused = pool(state="FATAL", sockets=sockets, reason="*:8080: the port is in use by pid 7 (nginx)", numprocs=1)
    (line,) = [line for line in table(refused) if line.startswith("app ")]
    assert "0 of 1 running  *:80  *:8080: the port is in use by pid 7 (nginx)" in line


def test_colour_changes_no_column():
    def plain(lines: list[str]) -> list[str]:
        import re

        return [re.sub(r"\x1b\[\d+m", "", line) for line in lines]

    pools = pool(running(0), running(1, state="FATAL", pid=None), state="DEGRADED")
    painted = table(pools, colour=True)
    assert plain(painted) == table(pools)
    assert "\x1b[31mFATAL   \x1b[0m" in "\n".join(painted)


def test_a_thousand_running_processes_are_one_line():
    processes = [running(number, busy=number < 3, rss=1024 * 1024 * (1 + (number == 7))) for number in range(1000)]
    lines = table(pool(*processes))
    assert lines[4:] == ["  1000 RUNNING, 3 busy, RSS 1001.0M together, 2.0M at most (-v lists them)"]
    assert len(table(pool(*processes), verbose=True)) == 1004


def test_of_a_thousand_those_with_something_to_say_are_shown():
    odd = [
        running(996, state="FATAL", pid=None, exit=Exit(code=3)),
        running(997, state="EXITED", pid=None, exit=Exit(signal="SIGSEGV")),
        running(998, restarts=1, uptime=2.0),
        running(999, restarts=9, uptime=86400.0 * 2),
    ]
    lines = table(pool(*map(running, range(996)), *odd, state="DEGRADED"))
    assert [line.split()[0] for line in lines[4:]] == ["app:app_996", "app:app_997", "app:app_998", "997"]
    assert lines[4].endswith("exit code 3; once it is mended: fcgimgr start app:app_996")
    assert lines[5].endswith("killed by SIGSEGV")
    assert lines[7] == "  997 more RUNNING (-v lists them)"


def test_a_thousand_that_failed_are_not_a_thousand_lines():
    lines = table(pool(*(running(number, state="FATAL", pid=None) for number in range(1000)), state="FATAL"))
    assert len(lines) == 4 + 20 + 1
    assert lines[-1] == "  980 more FATAL (-v lists them)"


def test_nothing_to_run_is_said():
    assert table()[-1] == "no pools and no programs"


def test_a_program_cannot_repaint_the_terminal():
    assert "\x1b" not in "".join(table(pool(running(0, reason="\x1b]0;owned\x07"))))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (pool(running(0)), True),
        (pool(running(0), state="DEGRADED"), False),
        (pool(running(0), numprocs=4, state="DEGRADED"), True),  # asked for app:app_00 only
        (pool(running(0, state="STARTING"), numprocs=4), False),
        (pool(running(0), running(1, state="STOPPING"), numprocs=1), True),  # one too many, on its way out
        (pool(state="FATAL"), False),
        (pool(state="RUNNING"), True),  # scaled to 0
    ],
)
def test_what_counts_as_running(shown: PoolStatus, expected: bool):
    assert all_running(shown) is expected


@pytest.mark.parametrize("seconds", [1e300, float("inf"), float("nan"), 10_000 * 86400.0])
def test_a_time_that_cannot_be_is_no_longer_than_any_other(seconds: float):
    current = (RequestStatus(method="GET", uri="/", seconds=seconds),)
    *_, process, request = table(pool(running(0, last_duration=seconds, current=current)), verbose=True)
    assert process.endswith("last request took >9999d")
    assert request == "      GET /  for >9999d"


def test_durations_and_sizes_have_two_figures_at_most():
    assert [duration(s) for s in (0.4, 59, 200, 3600, 18720, 273600)] == ["0s", "59s", "3m20s", "1h0m", "5h12m", "3d4h"]
    assert [size(n) for n in (0, 512, 1536, 22 << 20, 3 << 30, 5 << 40)] == [
        "0B",
        "512B",
        "1.5K",
        "22.0M",
        "3.0G",
        "5.0T",
    ]


SOCKET = SocketStatus(address="unix:/run/app.sock", backlog=128, queued=0)
REASON = (
    "exited with code 1 0.5 s after its start, before it was ready: cannot load 'shop:app': there is no module "
    "'requests_oauthlib'; is it in another virtualenv?"
)


def narrow(*pools: PoolStatus, columns: int, colour: bool = False, verbose: bool = False) -> list[str]:
    status = Status(manager=MANAGER, pools=pools)
    return list(render(status, Paint(colour), verbose=verbose, columns=columns))


def test_on_a_terminal_a_reason_that_does_not_fit_stands_below_its_row():
    fatal = running(0, pid=None, state="FATAL", uptime=None, reason=REASON, state_for=200.0)
    shown = pool(fatal, running(1), state="DEGRADED", sockets=(SOCKET,))
    assert [line.rstrip() for line in narrow(shown, columns=80)[3:]] == [
        "app           DEGRADED  1 of 2 running  unix:/run/app.sock queue 0/128",
        "  app:app_00  FATAL        -       -         0     -         -    -",
        "      exited with code 1 0.5 s after its start, before it was ready: cannot load",
        "      'shop:app': there is no module 'requests_oauthlib'; is it in another",
        "      virtualenv?; FATAL for 3m20s; once it is mended: fcgimgr start app:app_00",
        "  app:app_01  RUNNING   5001  12m34s         0     -         -    -",
    ]
    assert narrow(shown, columns=1000) == table(shown)
    short = running(0, pid=None, state="EXITED", uptime=None, exit=Exit(code=3))
    assert narrow(pool(short), columns=90) == table(pool(short))


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 120])
@pytest.mark.parametrize("colour", [False, True])
def test_nothing_of_a_reason_is_lost_on_any_terminal(columns: int, colour: bool):
    path = "/srv/" + "very-long-name/" * 20
    fatal = running(0, pid=None, state="FATAL", uptime=None, reason=f"{REASON} {path}", state_for=2.0)
    shown = pool(fatal, state="FATAL", reason=REASON, discarded=f"generation 2 was discarded: {REASON}")
    log = LogStatus(path="/var/log/app.log", problem="cannot write: No space left on device", lost=57)
    status = Status(manager=MANAGER, pools=(shown,), logs=(log,))
    lines = [re.sub(r"\x1b\[\d+m", "", line) for line in render(status, Paint(colour), columns=columns)]
    text = "".join("".join(lines).split())
    for told in (
        f"{REASON} {path}; FATAL for 2s",
        f"was discarded: {REASON}",
        "No space left on device, 57 lines lost",
    ):
        assert told.replace(" ", "") in text
    assert [line for line in lines if line.startswith("    ") and len(line) > columns] == []


def test_who_was_not_asked_for_is_not_missed():
    (line,) = [line for line in table(pool(running(1), numprocs=4)) if line.startswith("app ")]
    assert line.endswith("  1 of 1 running, 3 not asked for")
    ended = running(2, pid=None, state="BACKOFF", uptime=None)
    (line,) = [line for line in table(pool(running(1), ended, numprocs=4)) if line.startswith("app ")]
    assert line.endswith("  1 of 2 running, 2 not asked for")
