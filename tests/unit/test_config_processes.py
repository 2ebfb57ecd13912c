"""A plan holds what the configuration says for one process, and nothing of any other."""

import os
import sys
from pathlib import Path

from fcgimgr.config.processes import WORKER_MAIN, ProcessPlan, process_plan
from fcgimgr.config.read import read
from fcgimgr.config.settings import Config, ManagerSettings, ProgramSettings
from fcgimgr.worker.main import _parse

#: What is said to a worker that is waited for.
READY = ("--ready-timeout", "30")


def plans(directory: Path, table: str, *indexes: int) -> list[ProcessPlan]:
    (directory / "pool.toml").write_text(table)
    config = read(directory / "pool.toml", {"HOME": "/root", "PYTHONPATH": "/elsewhere"})
    (settings,) = [*config.pools.values(), *config.programs.values()]
    return [process_plan(settings, config, index) for index in indexes]


def test_each_process_has_its_own_name_words_variables_and_files(tmp_path: Path):
    first, tenth = plans(
        tmp_path,
        '[manager]\nenvironment = { A = "manager", STAGE = "test" }\n'
        "[program.job]\nnumprocs = 4\nnumprocs_start = 1\n"
        'command = "run --port=80%(process_num)02d --of %(numprocs)d %(ENV_NAME)s 100%%"\n'
        'environment = { A = "own", NAME = "%(program_name)s-%(process_num)d" }\n'
        'directory = "%(process_num)d"\nstdout_logfile = "%(here)s/%(ENV_NAME)s.log"\nstderr_logfile = "none"\n',
        0,
        9,
    )
    assert first == ProcessPlan(
        name="job_01",
        argv=("run", "--port=8001", "--of", "4", "job-1", "100%"),
        environment={"A": "own", "STAGE": "test", "NAME": "job-1"},
        directory=f"{tmp_path}/1",
        stdout_logfile=f"{tmp_path}/job-1.log",
        stderr_logfile="none",
    )
    assert (tenth.name, tenth.argv[1], tenth.environment["NAME"]) == ("job_10", "--port=8010", "job-10")


def test_the_environments_come_on_top_of_each_other(tmp_path: Path):
    (tmp_path / "a.env").write_text("A=file\nB=file\nC=file\n")
    (plan,) = plans(
        tmp_path,
        '[manager]\nenvironment = { A = "manager", D = "manager" }\n[program.job]\ncommand = "%(ENV_A)s %(ENV_B)s"\n'
        'environment = { B = "own", E = "%(ENV_B)s" }\nenvironment_file = "a.env"\n',
        0,
    )
    assert plan.environment == {"A": "file", "B": "own", "C": "file", "D": "manager", "E": "file"}
    assert plan.argv == ("file", "own")


def test_a_wsgi_pool_runs_our_worker_by_its_path(tmp_path: Path):
    (plan,) = plans(tmp_path, '[pool.web]\nsocket = "*:1"\nwsgi = "shop:app"\n', 0)
    assert plan.argv == (sys.executable, WORKER_MAIN, "--server", "flup", *READY, "shop:app")
    assert os.path.isfile(WORKER_MAIN)
    assert plan.environment == {}


def test_a_wsgi_pool_has_its_own_python_and_modules(tmp_path: Path):
    (plan,) = plans(
        tmp_path,
        '[pool.web]\nsocket = "*:1"\nwsgi = "shop:app"\nthreads = 3\npython = "venv/bin/python"\n'
        'pythonpath = ["src", "/lib"]\nenvironment = { PYTHONPATH = "/own" }\n',
        0,
    )
    words = ("--server", "flup", "--threads", "3", *READY, "shop:app")
    assert plan.argv == (f"{tmp_path}/venv/bin/python", WORKER_MAIN, *words)
    assert plan.environment == {"PYTHONPATH": f"{tmp_path}/src:/lib:/own"}


def test_a_worker_that_is_not_waited_for_is_told_no_time(tmp_path: Path):
    (plan,) = plans(tmp_path, '[pool.web]\nsocket = "*:1"\nwsgi = "shop:app"\nready = "startsecs"\n', 0)
    assert plan.argv == (sys.executable, WORKER_MAIN, "--server", "flup", "shop:app")


def test_with_preload_the_command_line_is_the_zygotes(tmp_path: Path):
    (plan,) = plans(tmp_path, '[pool.web]\nsocket = "*:1"\nwsgi = "shop:app"\npreload = true\n', 0)
    assert plan.argv == (sys.executable, WORKER_MAIN, "--server", "flup", "--zygote", "3", *READY, "shop:app")


def test_every_word_of_the_worker_is_taken_for_what_it_is(tmp_path: Path):
    """Also an access_format that looks like an option."""
    form = "--zygote=7%s"
    (plan,) = plans(
        tmp_path,
        f'[pool.web]\nsocket = "*:1"\nwsgi = "shop:app"\naccess_log = "-"\naccess_format = "{form}"\nthreads = 2\n'
        "max_requests = 10\nmax_requests_jitter = 5\nslow_after = 1e-5\nserver = 'native'\npreload = true\n",
        0,
    )
    options = _parse(plan.argv[2:])
    assert vars(options) == {
        "server": "native", "threads": 2, "max_requests": (10, 5), "access_format": form, "slow_after": 1e-5,
        "ready_timeout": 30.0, "zygote": 3, "application": "shop:app",
    }  # fmt: skip


def test_settings_made_by_hand_have_plans_too():
    settings = ProgramSettings(name="job", command=("true",))
    manager = ManagerSettings(control="/run/x.sock", state_dir="/run/x.state")
    plan = process_plan(settings, Config(path="/x.toml", manager=manager), 0)
    assert plan == ProcessPlan("job_00", ("true",), {}, None, "-", "-")
