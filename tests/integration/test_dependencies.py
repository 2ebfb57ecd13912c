"""Who waits for others: for those that the configuration names now, and for jobs until they are done."""

from pathlib import Path

import pytest

from tests.integration.commands import Manager, configuration, running
from tests.waiting import eventually

WAITS = """
[program.x]
command = "sleep 1000"
startsecs = 0
depends_on = [{}]
"""
NEVER = """
[program.b]
command = "/no/such"
startretries = {}
backoff_initial = 600
backoff_max = 600
"""
BASE = """
[program.base]
command = "sleep 1000"
startsecs = 0
"""


def state(manager: Manager, name: str) -> str:
    return manager.pool(name).state


@pytest.mark.parametrize("retries", [0, 5, -1])
def test_what_waits_for_one_that_has_left_the_configuration_starts(retries: int, tmp_path: Path) -> None:
    with running(tmp_path, BASE + NEVER.format(retries) + WAITS.format('"b"'), ready=False) as manager:
        eventually(lambda: state(manager, "b") in ("FATAL", "STARTING") and state(manager, "x") == "STARTING")
        configuration(tmp_path, BASE + WAITS.format(""))
        manager("update").succeeds()
        eventually(lambda: state(manager, "x") == "RUNNING")
        assert "internal error" not in manager.output()
        manager("probe", "ready").succeeds()


def test_what_waits_for_another_than_before_waits_for_that_one(tmp_path: Path) -> None:
    text = BASE + NEVER.format(-1) + WAITS.format('"b"')
    with running(tmp_path, text, ready=False) as manager:
        eventually(lambda: state(manager, "x") == "STARTING")
        other = BASE.replace("base", "other") + "autostart = false\n"
        configuration(tmp_path, BASE + other + WAITS.format('"other"'))
        manager("update").succeeds()
        assert manager.pool("x").reason == "waits for other"
        manager("start", "other").succeeds()
        eventually(lambda: state(manager, "x") == "RUNNING")


@pytest.mark.parametrize("retries", [0, -1])
def test_a_start_does_not_wait_for_what_does_not_come_up_by_itself(retries: int, tmp_path: Path) -> None:
    soon = NEVER.replace('"/no/such"', '["sh", "-c", "sleep 0.2; exit 3"]').replace(
        "[program.b]", "[program.b]\nstartsecs = 1"
    )
    never = soon.format(retries) + "autostart = false\n"
    with running(tmp_path, BASE + never + WAITS.format('"b"') + "autostart = false\n", ready=False) as manager:
        manager("start", "--no-wait", "b").succeeds()
        done = manager("start", "x")
        state = "FATAL" if retries == 0 else "STARTING"
        assert (done.code, done.out) == (1, f"x:x_00: failed: it waits for b, which is {state}\n")


# -- jobs -------------------------------------------------------------------------------------------------------------

JOB = """
[program.job]
command = ["sh", "-c", '''{}''']
directory = "%(here)s"
ready = "exit"
startsecs = 0
startretries = 1
backoff_initial = 0.01
"""
WORKS = "echo begun >> begun; while ! test -e over; do sleep 0.01; done; exit $(cat over)"


def test_what_depends_on_a_job_starts_when_it_is_done_and_the_manager_is_ready_with_it(tmp_path: Path) -> None:
    with running(tmp_path, JOB.format(WORKS) + WAITS.format('"job"'), ready=False) as manager:
        eventually((tmp_path / "begun").exists)
        assert state(manager, "job") == "STARTING"
        assert manager.pool("x").reason == "waits for job"
        assert manager("probe", "ready").code == 1
        (tmp_path / "over").write_text("0")
        eventually(lambda: state(manager, "x") == "RUNNING")
        assert state(manager, "job") == "EXITED"
        assert manager("probe", "ready").succeeds() == "job is EXITED, x is RUNNING\n"
        assert manager("status").code == 0
        # It is done again when somebody asks for it, and then this waits for its end.
        assert manager("start", "job").succeeds() == "job:job_00: done: exited with code 0\n"
        assert (tmp_path / "begun").read_text() == "begun\nbegun\n"
        # Its process is stopped like any other: then it is not done.
        manager("stop", "job").succeeds()
        assert manager("probe", "ready").succeeds() == "x is RUNNING\n"


def test_a_job_that_is_quick_is_done_as_well(tmp_path: Path) -> None:
    with running(tmp_path, JOB.format("exit 0") + WAITS.format('"job"'), ready=False) as manager:
        eventually(lambda: state(manager, "x") == "RUNNING")
        assert state(manager, "job") == "EXITED"


def test_a_job_that_fails_is_tried_again_and_what_depends_on_it_does_not_start(tmp_path: Path) -> None:
    with running(tmp_path, BASE + JOB.format(WORKS) + WAITS.format('"job"'), ready=False) as manager:
        (tmp_path / "over").write_text("3")
        eventually(lambda: state(manager, "job") == "FATAL")
        assert (tmp_path / "begun").read_text() == "begun\nbegun\n"
        assert state(manager, "x") == "STARTING"
        assert "job is FATAL" in manager("probe", "ready").out
        assert "job:job_00: failed: exited with code 3" in manager("start", "job").out
        (tmp_path / "over").write_text("0")
        manager("start", "job").succeeds()
        eventually(lambda: state(manager, "x") == "RUNNING")
        manager("probe", "ready").succeeds()


def test_a_job_that_was_done_is_not_done_again_by_the_next_manager(tmp_path: Path) -> None:
    config = configuration(tmp_path, JOB.format(WORKS) + WAITS.format('"job"'))
    (tmp_path / "over").write_text("0")
    first = Manager(config, tmp_path / "fcgimgr.sock", ready=False)
    first.begin()
    try:
        eventually(first.is_up)
        eventually(lambda: state(first, "x") == "RUNNING")
        first.kill()
        with Manager(config, tmp_path / "fcgimgr.sock", mark=first.mark, ready=False) as second:
            eventually(lambda: state(second, "job") == "EXITED")
            second("probe", "ready").succeeds()
            assert (tmp_path / "begun").read_text() == "begun\n"
    finally:
        first.end_by_force()


def test_a_pool_is_no_job(tmp_path: Path) -> None:
    config = configuration(tmp_path, '[pool.app]\nsocket = "127.0.0.1:1"\ncommand = "true"\nready = "exit"\n')
    done = Manager(config, tmp_path / "fcgimgr.sock")("check")
    assert 'pool.app.ready: "exit" is for programs that do one thing and end: a pool is to serve' in done.err
