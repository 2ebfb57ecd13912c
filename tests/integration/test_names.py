"""Processes by the names that people give them, and what one sees of several at once."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.commands import WITHIN, Echo, Manager, running, words
from tests.waiting import eventually

CONFIGURATION = """\
[program.web]
{web}
numprocs = 2
startsecs = 0

[program.queue]
{queue}
numprocs_start = 7
process_name = "job_%(process_num)d"
startsecs = 0

[program.twin]
command = "sleep 1000"
process_name = "job_7"
startsecs = 0

[group.shop]
programs = ["web", "queue"]

[group.twins]
programs = ["queue", "twin"]
"""


@pytest.fixture
def echoes(tmp_path: Path) -> dict[str, Echo]:
    return {name: Echo(tmp_path, name) for name in ("queue", "web0", "web1", "web2")}


@pytest.fixture
def manager(tmp_path: Path, echoes: dict[str, Echo]) -> Iterator[Manager]:
    web = echoes["web0"].command.replace("web0.fifo", "web%(process_num)d.fifo")
    with running(tmp_path, CONFIGURATION.format(web=web, queue=echoes["queue"].command)) as manager:
        yield manager


def processes(manager: Manager, name: str) -> list[str]:
    """The processes that a name means."""
    done = manager("signal", "-v", "CONT", name)
    return [line.partition(": signalled")[0] for line in done.succeeds().splitlines()]


def test_a_process_may_be_named_as_others_do_where_it_can_mean_one_thing(manager: Manager) -> None:
    meant = {
        "web_01": ["web:web_01"],
        "web:1": ["web:web_01"],
        "web:01": ["web:web_01"],
        "queue:7": ["queue:job_7"],
        "shop:web_00": ["web:web_00"],
        "shop:job_7": ["queue:job_7"],
        "shop:web": ["web:web_00", "web:web_01"],
        "shop:*": ["web:web_00", "web:web_01", "queue:job_7"],
        "web:*": ["web:web_00", "web:web_01"],
    }
    assert {name: processes(manager, name) for name in meant} == meant
    refused = {
        "job_7": "job_7 is the name of several: say queue:job_7 or twin:job_7",
        "twins:job_7": "twins:job_7 is the name of several: say queue:job_7 or twin:job_7",
        "web:2": "no process 'web:2'; there are web:web_00, web:web_01",
        "web:-1": "no process 'web:-1'",
        "queue:0": "queue:job_7",
        "shop:web_02": "no process in that group 'shop:web_02'; there are web:web_00",
        "shpo": "did you mean shop?",
    }
    for name, told in refused.items():
        assert told in manager("stop", name).fails(1)


def test_tail_of_a_whole_pool_is_that_of_each_process(manager: Manager, echoes: dict[str, Echo]) -> None:
    echoes["queue"].say("one", "two", "three")
    eventually(lambda: "three" in manager("tail", "queue").out)
    assert manager("tail", "-n", "2", "queue").succeeds() == "two\nthree\n"  # one process: as it is

    echoes["web0"].say("of the first")
    echoes["web1"].say("of the second")
    told = ["web:web_00| of the first", "web:web_01| of the second", "queue:job_7| three"]
    eventually(lambda: manager("tail", "-n", "1", "shop").succeeds().splitlines() == told)


def test_tail_follows_a_whole_pool_also_with_what_is_new_in_it(manager: Manager, echoes: dict[str, Echo]) -> None:
    echoes["queue"].say("before")
    eventually(lambda: "before" in manager("tail", "queue").out)
    follower = subprocess.Popen(
        words("-c", manager.config, "tail", "-f", "-n", "1", "shop"), stdout=subprocess.PIPE, text=True
    )
    try:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "queue:job_7| before\n"
        manager("scale", "web", "3").succeeds()
        echoes["web2"].say("of the third")
        assert follower.stdout.readline() == "web:web_02| of the third\n"
    finally:
        follower.kill()
        follower.communicate(timeout=WITHIN)


def test_log_is_the_managers_own_and_may_be_followed(manager: Manager, tmp_path: Path) -> None:
    assert manager("log").succeeds().splitlines()[-1].endswith(" info up")
    out = tmp_path / "out"
    with out.open("wb") as file:
        follower = subprocess.Popen(words("-c", manager.config, "log", "-f", "-n", "0"), stdout=file)
    try:
        eventually(lambda: manager("reopen").code == 0 and "reopened" in out.read_text())
    finally:
        follower.kill()
        follower.wait()


def test_log_reads_the_logfile_where_there_is_one(tmp_path: Path) -> None:
    log = tmp_path / "manager.log"
    log.write_text("of a manager before\n")
    with running(tmp_path, 'logfile = "manager.log"\n[program.a]\ncommand = "sleep 1000"\nstartsecs = 0\n') as manager:
        shown = manager("log", "-n", "1000").succeeds()
        assert shown.startswith("of a manager before\n")
        assert shown == log.read_text()
