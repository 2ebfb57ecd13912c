"""A sound configuration becomes the settings it says."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fcgimgr.config.address import TcpAddress, UnixAddress
from fcgimgr.config.pools import default_backlog
from fcgimgr.config.read import ConfigError, read
from fcgimgr.config.settings import Config, PoolSettings, ProgramSettings

POOL = '[pool.app]\nsocket = "127.0.0.1:9001"\ncommand = "serve"\n'


def configured(directory: Path, text: str, environ: Mapping[str, str] | None = None) -> Config:
    (directory / "pool.toml").write_text(text)
    return read(str(directory / "pool.toml"), environ or {})


def app(directory: Path, keys: str, environ: Mapping[str, str] | None = None) -> PoolSettings:
    return configured(directory, POOL + keys, environ).pools["app"]


def program(directory: Path, keys: str, environ: Mapping[str, str] | None = None) -> ProgramSettings:
    return configured(directory, f"[program.job]\n{keys}", environ).programs["job"]


def test_the_least_there_can_be(tmp_path: Path):
    config = configured(tmp_path, POOL)
    settings = config.pools["app"]
    sockets = (TcpAddress("127.0.0.1", 9001),)
    assert settings == PoolSettings(name="app", sockets=sockets, command=("serve",), ready="accepts")
    assert settings.socket_backlog == default_backlog() <= 4096
    assert config.path == str(tmp_path / "pool.toml")
    assert config.programs == config.groups == {}
    assert config.warnings == ()


def test_the_control_socket_is_found_by_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert configured(tmp_path, POOL).manager.control == "/run/fcgimgr/pool.sock"
    assert configured(tmp_path, POOL).manager.state_dir == "/run/fcgimgr/pool.state"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    runtime = {"XDG_RUNTIME_DIR": "/run/user/1000"}
    assert configured(tmp_path, POOL, runtime).manager.control == "/run/user/1000/fcgimgr/pool.sock"
    assert configured(tmp_path, POOL, {"XDG_RUNTIME_DIR": "run"}).manager.control == "/tmp/fcgimgr-1000/pool.sock"


def test_relative_paths_start_at_the_file_that_says_them(tmp_path: Path):
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.toml").write_text(POOL + 'directory = "../srv"\nstderr_logfile = "err.%(process_num)d"')
    config = configured(
        tmp_path, 'include = "conf.d/*.toml"\n[manager]\ncontrol = "c.sock"\n[defaults]\nstdout_logfile = "log/out"\n'
    )
    assert config.manager.control == f"{tmp_path}/c.sock"
    assert config.manager.state_dir == f"{tmp_path}/c.state"
    settings = config.pools["app"]
    assert settings.stdout_logfile == f"{tmp_path}/log/out"
    assert settings.stderr_logfile == f"{tmp_path}/conf.d/err.%(process_num)d"
    assert settings.directory == f"{tmp_path}/srv"


def test_a_percent_sign_in_the_directory_of_the_file_is_no_expansion(tmp_path: Path):
    odd = tmp_path / "50%(here)s"
    odd.mkdir()
    config = configured(odd, POOL + 'directory = "x"\nstdout_logfile = "%(here)s/y"\n')
    assert config.pools["app"].directory == f"{tmp_path}/50%%(here)s/x"
    assert config.pools["app"].stdout_logfile == f"{tmp_path}/50%%(here)s/y"


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ('"0600"', 0o600),
        ('"600"', 0o600),
        ('"0o600"', 0o600),
        ("0o600", 0o600),
        ("0o0600", 0o600),
    ],
)
def test_modes_are_octal(tmp_path: Path, written: str, read_as: int):
    text = f'[pool.app]\nsocket = "/run/a.sock"\ncommand = "x"\nsocket_mode = {written}\n'
    settings = configured(tmp_path, text).pools["app"]
    assert settings.socket_mode == read_as


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [("0", 0), ("1000", 1000), ('"50MB"', 50 * 2**20), ('"1 kb"', 1024), ('"2G"', 2**31), ('"3MiB"', 3 * 2**20)],
)
def test_sizes_are_bytes_or_have_a_unit(tmp_path: Path, written: str, bytes_: int):
    assert app(tmp_path, f"stdout_logfile_maxbytes = {written}").stdout_logfile_maxbytes == bytes_


@pytest.mark.parametrize("written", ['"QUIT"', '"SIGQUIT"', '"sigquit"', "3", '"3"'])
def test_signals_are_names_or_numbers(tmp_path: Path, written: str):
    assert app(tmp_path, f"stopsignal = {written}").stopsignal == signal.SIGQUIT


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ('"""serve --title=\'two words\' a\\\\ b"""', ("serve", "--title=two words", "a b")),
        ('["serve", "two words", ""]', ("serve", "two words", "")),
    ],
)
def test_a_command_is_split_as_a_shell_would(tmp_path: Path, written: str, words: tuple[str, ...]):
    assert program(tmp_path, f"command = {written}").command == words


def test_every_resource_limit_of_the_kernel_is_a_key(tmp_path: Path):
    names = {name.removeprefix("RLIMIT_").lower() for name in dir(resource) if name.startswith("RLIMIT_")} - {"ofile"}
    keys = "".join(f"rlimit_{name} = 5\n" for name in names)
    assert program(tmp_path, f'command = "x"\n{keys}').rlimits == dict.fromkeys(names, (5, 5))


def test_a_resource_limit_is_soft_and_hard(tmp_path: Path):
    limits = program(
        tmp_path,
        'command = "x"\nrlimit_nofile = "1024:4096"\nrlimit_core = "unlimited"\nrlimit_as = "1GB"\n'
        'rlimit_stack = "8MB:unlimited"\n',
    ).rlimits
    assert limits == {"nofile": (1024, 4096), "core": (-1, -1), "as": (2**30, 2**30), "stack": (8 * 2**20, -1)}


def test_defaults_are_for_every_table_that_does_not_say_the_key_itself(tmp_path: Path):
    config = configured(
        tmp_path,
        '[defaults]\nuser = "www-data"\nnumprocs = 3\nsocket_mode = "0600"\nwsgi = "shop:app"\n'
        'environment = { A = "1", B = "%(program_name)s" }\n'
        + POOL
        + 'user = 7\nenvironment = { A = "2" }\n[program.job]\ncommand = "x"\n',
    )
    pool, job = config.pools["app"], config.programs["job"]
    assert (pool.user, pool.numprocs, pool.socket_mode, pool.wsgi) == ("7", 3, 0o600, None)
    assert pool.environment == {"A": "2", "B": "app"}
    assert (job.user, job.numprocs, job.environment) == ("www-data", 3, {"A": "1", "B": "job"})


def test_expansions_are_known_where_supervisor_knows_them(tmp_path: Path):
    config = configured(
        tmp_path,
        '[manager]\nenvironment = { STAGE = "test" }\n[group.all-of-it]\nprograms = "app"\n'
        '[pool.app]\nsocket = "%(here)s/%(program_name)s.sock"\nnumprocs = "%(ENV_WORKERS)s"\n'
        'autostart = "%(ENV_START)s"\nstopwaitsecs = "%(ENV_WAIT)s"\numask = "%(ENV_UMASK)s"\n'
        'command = "run --%(group_name)s-%(ENV_STAGE)s %(ENV_OWN)s %(process_num)d %%"\n'
        'environment = { OWN = "own", HOST = "%(host_node_name)s" }\n',
        {"WORKERS": "4", "START": "false", "WAIT": "1.5", "UMASK": "027", "OWN": "not this"},
    )
    settings = config.pools["app"]
    assert settings.sockets == (UnixAddress(f"{tmp_path}/app.sock"),)
    assert (settings.numprocs, settings.autostart, settings.stopwaitsecs, settings.umask) == (4, False, 1.5, 0o27)
    assert settings.command == ("run", "--all-of-it-test", "%(ENV_OWN)s", "%(process_num)d", "%%")
    assert settings.environment == {"OWN": "own", "HOST": os.uname().nodename.replace("%", "%%")}


def test_an_environment_file_is_read_with_the_configuration(tmp_path: Path):
    (tmp_path / "secrets.env").write_bytes(
        b"# a comment\n\nexport A=1\nB = 'two words'\nC=\"%(here)s $A\"\nD=\nE=caf\xe9\r\n; another\nF=a=b # c\n"
    )
    settings = app(tmp_path, 'environment_file = "secrets.env"\nuser = "%(ENV_A)s"\n')
    assert settings.environment_file == f"{tmp_path}/secrets.env"
    assert settings.file_environment == {
        "A": "1",
        "B": "two words",
        "C": "%(here)s $A",
        "D": "",
        "E": "caf\udce9",
        "F": "a=b # c",
    }
    assert settings.user == "1"


def test_included_files_are_read_once_and_in_order(tmp_path: Path):
    (tmp_path / "b.toml").write_text('include = ["*.toml"]\n[program.b]\ncommand = "x"\n')
    (tmp_path / "a.toml").write_text('[program.a]\ncommand = "x"\n')
    config = configured(tmp_path, f'include = ["b.toml", "%(here)s/[ab].toml"]\n{POOL}')
    assert list(config.programs) == ["b", "a"]
    assert list(config.pools) == ["app"]


def test_a_wsgi_pool_serves_all_its_sockets_by_our_own_worker(tmp_path: Path):
    settings = configured(
        tmp_path, '[pool.app]\nsocket = ["*:9001", "/run/a.sock"]\nwsgi = "shop.web:app.wsgi"\npythonpath = "src"\n'
    ).pools["app"]
    assert (settings.socket_pass, settings.socket_blocking) == ("systemd", False)
    assert settings.pythonpath == (f"{tmp_path}/src",)


@pytest.mark.parametrize(
    ("keys", "ready"),
    [
        ('command = "x"', "accepts"),
        ('command = "x"\nstartsecs = 0', "accepts"),
        ('command = "x"\nready = "startsecs"', "startsecs"),
        ('wsgi = "m:app"', "notify"),
        ('wsgi = "m:app"\nready = "ping"', "ping"),
    ],
)
def test_what_runs_says_when_a_process_is_ready(tmp_path: Path, keys: str, ready: str):
    config = configured(tmp_path, f'[pool.app]\nsocket = "*:1"\n{keys}\n[program.job]\ncommand = "x"\n')
    assert config.pools["app"].ready == ready
    assert config.programs["job"].ready == "startsecs", "a program has no socket to be seen at"


@pytest.mark.parametrize(
    ("ready", "path"),
    [("http", "/"), ("http:/", "/"), ("http:/healthz?full=1", "/healthz?full=1"), ("ping", None), ("accepts", None)],
)
def test_an_http_request_may_name_its_path(tmp_path: Path, ready: str, path: str | None):
    settings = app(tmp_path, f'ready = "{ready}"')
    assert (settings.ready, settings.ready_path) == (ready, path)
    assert settings.is_pinged == (ready != "accepts")


def test_equal_files_give_equal_settings(tmp_path: Path):
    text = POOL + 'environment = { A = "b" }\nrlimit_core = 0\n'
    assert configured(tmp_path, text) == configured(tmp_path, text)
    assert configured(tmp_path, text) != configured(tmp_path, text + "numprocs = 2\n")


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        ("socket_backlog = 2147483647", "pool.app.socket_backlog: the kernel caps"),
        (
            '[program.job]\ncommand = "x"\nexitcodes = [0, 2]',
            'program.job.exitcodes: has no effect without autorestart = "unexpected"',
        ),
        ('redirect_stderr = true\nstderr_logfile = "/x"', "pool.app.stderr_logfile: has no effect"),
        ('socket_env = "FD"', "pool.app.socket_env: has no effect"),
        (
            'depends_on = "job"\n[program.job]\nautostart = false\ncommand = "x"',
            'pool.app.depends_on: "job" has autostart = false',
        ),
        ("stopwaitsecs = 60", "pool.app.stopwaitsecs: a shutdown kills sooner, after shutdown_timeout (30 s): set"),
        ("[defaults]\nstopwaitsecs = 30.5", "defaults.stopwaitsecs: a shutdown kills sooner"),
        ('[program.job]\ncommand = "a && b"', 'program.job.command: there is no shell, "&&"'),
        ('[program.job]\ncommand = "a $HOME/x"', "write %(ENV_HOME)s"),
        ('[program.job]\ncommand = "~/bin/a"', "write %(ENV_HOME)s/bin/a"),
    ],
)
def test_what_is_strange_but_possible_is_a_warning(tmp_path: Path, keys: str, warning: str):
    (found,) = configured(tmp_path, POOL + keys).warnings
    assert warning in found


@pytest.mark.parametrize(
    "text",
    [
        f"[manager]\nshutdown_timeout = 60\n{POOL}stopwaitsecs = 60\n",
        f"{POOL}stopwaitsecs = 30\n",
        f"[manager]\nshutdown_timeout = 5\n{POOL}",  # which did not ask for more
    ],
)
def test_a_shutdown_that_waits_as_long_as_its_processes_may_take_is_no_warning(tmp_path: Path, text: str):
    assert configured(tmp_path, text).warnings == ()


def test_an_include_that_matches_nothing_is_a_warning(tmp_path: Path):
    (warning,) = configured(tmp_path, f'include = ["none.d/*.toml"]\n{POOL}').warnings
    assert warning == f"{tmp_path}/pool.toml: include: no file matches {tmp_path}/none.d/*.toml"


def test_the_files_of_a_thousand_pools_are_read_together(tmp_path: Path):
    pools = "".join(f'[pool.p{n}]\nsocket = "/run/p{n}.sock"\ncommand = "x"\n' for n in range(1000))
    assert len(configured(tmp_path, pools).pools) == 1000


def test_reading_loads_nothing_that_the_idle_manager_does_not_need(tmp_path: Path):
    (tmp_path / "pool.toml").write_text(POOL)
    heavy = "['difflib', 'glob', 'ssl', 'click', 'argparse', 'ipaddress', 'fcgimgr.config.schema',"
    heavy += " 'fcgimgr.config.reference', 'fcgimgr.config.advice']"
    code = (
        "import sys; from fcgimgr.config.read import read; read(sys.argv[1], {});"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "pool.toml")], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_broken_file_is_an_error_with_its_problems(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, POOL + "numproc = 1\n")
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == (str(tmp_path / "pool.toml"), "pool.app.numproc")
    assert str(caught.value) == f"{tmp_path}/pool.toml: pool.app.numproc: unknown key; did you mean numprocs?"


def test_a_number_may_come_from_the_environment(tmp_path: Path):
    """As docs/from-uwsgi-and-gunicorn.md does with that of gunicorn."""
    config = configured(tmp_path, f'{POOL}numprocs = "%(ENV_WEB_CONCURRENCY)s"\n', {"WEB_CONCURRENCY": "3"})
    assert config.pools["app"].numprocs == 3
