"""Keys and files of Supervisor, PHP-FPM, uWSGI and gunicorn: each is known, and none leads to what cannot be had."""

import re
from pathlib import Path

import pytest

from fcgimgr.config.checks import WSGI_KEYS
from fcgimgr.config.foreign import FOREIGN, INSTEAD
from fcgimgr.config.keys import keys
from fcgimgr.config.read import ConfigError, read
from fcgimgr.config.settings import GroupSettings, ManagerSettings, PoolSettings, ProgramSettings

TABLES = {
    "wsgi": '[pool.x]\nsocket = "127.0.0.1:9001"\nwsgi = "a:b"\n',
    "command": '[pool.x]\nsocket = "127.0.0.1:9001"\ncommand = "serve"\n',
    "program": '[program.x]\ncommand = "work"\n',
}
OURS = {name for settings in (ManagerSettings, PoolSettings, ProgramSettings, GroupSettings) for name in keys(settings)}
THEIRS = sorted({key for table in FOREIGN.values() for row in table for key in row.keys} - OURS)


def told(directory: Path, text: str) -> dict[str, str]:
    """What is said of each key, by its name without the table's."""
    (directory / "pool.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(directory / "pool.toml", {})
    return {re.sub(r"^(pool|program)\.x\.", "", problem.key): problem.message for problem in caught.value.problems}


@pytest.mark.parametrize("table", TABLES)
def test_every_key_of_the_tables_in_the_docs_is_known(tmp_path: Path, table: str) -> None:
    said = told(tmp_path, TABLES[table] + "".join(f'"{key}" = "x"\n' for key in THEIRS))
    assert [key for key in THEIRS if "did you mean" in said[key] or "help configuration" in said[key]] == []
    assert len(said) == len(THEIRS) > 200


def test_what_a_command_does_instead_is_told_for_each_key_of_wsgi_pools() -> None:
    assert set(WSGI_KEYS) == INSTEAD.keys()
    assert INSTEAD.keys() <= keys(PoolSettings).keys()


@pytest.mark.parametrize("table", ["command", "program"])
def test_a_command_is_never_sent_to_a_key_of_wsgi_pools(tmp_path: Path, table: str) -> None:
    near = [name[:-1] for name in WSGI_KEYS] + [name.replace("_", "-") for name in WSGI_KEYS]
    written = sorted(({*THEIRS, *near, *WSGI_KEYS}) - keys(PoolSettings).keys() | set(WSGI_KEYS))
    said = told(tmp_path, TABLES[table] + "".join(f'"{key}" = "x"\n' for key in written))
    advised = re.compile(rf"(?:here it is|did you mean|as in|write) (?:{'|'.join(WSGI_KEYS)})\b")
    assert {key: message for key, message in said.items() if advised.search(message)} == {}
    assert len(said) >= len(written) - len(WSGI_KEYS)


def test_a_table_is_told_which_keys_only_others_have(tmp_path: Path) -> None:
    assert told(tmp_path, TABLES["program"] + 'bind = "x"\n')["bind"].endswith("which only a [pool.NAME] has")
    said = told(tmp_path, TABLES["program"] + "[manager]\nworkers = 3\n")
    assert said["manager.workers"].endswith("numprocs, which only a [pool.NAME] or [program.NAME] has")


@pytest.mark.parametrize(
    ("table", "key", "message"),
    [
        ("wsgi", "graceful_timeout", "here it is stopwaitsecs"),
        ("wsgi", "stats", "here it is `fcgimgr status --json`"),
        ("wsgi", "cheaper", "here it is `fcgimgr scale`"),
        ("wsgi", "lazy-apps", "each process imports the application by itself"),
        ("wsgi", "worker_class", "gunicorn as a command"),
        ("wsgi", "harakiri", "here it is request_timeout"),
        ("command", "harakiri", "leave it out: nginx gives up after fastcgi_read_timeout"),
        ("wsgi", "pm.max_requests", "here it is max_requests"),
        ("command", "pm.max_requests", "PHP_FCGI_MAX_REQUESTS"),
        ("command", "php_admin_value.memory_limit", "php-cgi -d memory_limit=128M"),
        ("command", "listen", "as PHP-FPM has it, here it is socket; as uWSGI or gunicorn has it, here it is socket_b"),
        ("program", "finish", "leave it out"),
        ("program", "down", "here it is autostart"),
        ("program", "setuidgid", "here it is user"),
        ("program", "chpst", "a key for each option"),
        ("program", "softlimit", "here it is rlimit_as"),
        ("program", "svlogd", "here it is stdout_logfile"),
        ("wsgi", "keep_alive", "leave it out: nginx"),
        ("wsgi", "max-requests-delta", "max_requests_jitter"),
        ("program", "envdir", "here it is environment_file"),
    ],
)
def test_a_hint_says_what_works_for_the_table_at_hand(tmp_path: Path, table: str, key: str, message: str) -> None:
    said = told(tmp_path, f'{TABLES[table]}{key} = "x"\n')
    assert message in " ".join(said.values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("preload_app = true", "here it is preload = true"),
        ("preload_app = false", "each process imports the application by itself"),
        ("lazy-apps = false", "here it is preload = true"),
        ('worker_class = "gevent"', "monkey.patch_all()"),
        ('worker_class = "uvicorn.workers.UvicornWorker"', "gunicorn as a command"),
        ('worker_class = "eventlet"', "such as uvicorn"),
        ('worker_class = "gthread"', "here it is threads"),
        ('worker_class = "sync"', "leave it out: so it is"),
    ],
)
def test_a_hint_heeds_the_value(tmp_path: Path, line: str, message: str) -> None:
    (said,) = told(tmp_path, f"{TABLES['wsgi']}{line}\n").values()
    assert message in said


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("supervisord", "here it is [manager]"),
        ("unix_http_server", "here it is [manager]: control"),
        ('"fcgi-program:app"', "in TOML it is [pool.app]"),
        ('"rpcinterface:supervisor"', "over HTTP are not in this version"),
        ('"eventlistener:mail"', "`fcgimgr events -f --json`"),
        ("global", "here it is [manager]"),
        ("uwsgi", "here it is [pool.NAME]"),
        ("service", "here it is [program.NAME]"),
    ],
)
def test_a_table_of_others_is_known(tmp_path: Path, table: str, message: str) -> None:
    said = told(tmp_path, f"{TABLES['program']}[{table}]\nx = 1\n")
    assert message in said[table.strip('"')]


def test_spawn_fcgi_is_no_command_of_a_pool(tmp_path: Path) -> None:
    text = TABLES["command"].replace("serve", "/usr/bin/spawn-fcgi -n -p 9001 -- php-cgi")
    (tmp_path / "pool.toml").write_text(text)
    (warning,) = read(tmp_path / "pool.toml", {}).warnings
    assert "write what stands behind its --" in str(warning)


def test_every_key_of_php_fpm_with_a_dot_is_told(tmp_path: Path) -> None:
    said = told(tmp_path, TABLES["command"] + 'pm.max_children = 5\npm.start_servers = 2\naccess.log = "x"\n')
    assert said.keys() == {"pm.max_children", "pm.start_servers", "access.log"}


@pytest.mark.parametrize(
    ("text", "whose", "page"),
    [
        ("[supervisord]\nnodaemon=true\n[program:x]\ncommand=/bin/cat\n", "supervisord.conf", "from-supervisor"),
        ("[www]\nlisten = /run/php.sock\npm = dynamic\n", "PHP-FPM", "from-php-fpm"),
        ("; pools\n[www]\nphp_admin_value[memory_limit] = 32M\n", "PHP-FPM", "from-php-fpm"),
        ("[uwsgi]\nmodule = shop.wsgi:application\nmaster = true\n", "uWSGI", "from-uwsgi-and-gunicorn"),
        ("[uwsgi]\nprocesses = 4\n", "uWSGI", "from-uwsgi-and-gunicorn"),
        ("import multiprocessing\nbind = '0:80'\n", "gunicorn.conf.py", "from-uwsgi-and-gunicorn"),
        ("bind = '127.0.0.1:8000'\nworkers = 4\n", "gunicorn.conf.py", "from-uwsgi-and-gunicorn"),
        ("#!/bin/sh\nexec 2>&1\nexec mailer\n", "runit", "from-runit-and-daemontools"),
    ],
)
def test_a_file_of_others_is_known_and_the_page_named(tmp_path: Path, text: str, whose: str, page: str) -> None:
    (said,) = told(tmp_path, text).values()
    assert whose in said
    assert f"`fcgimgr help {page}`" in said
    assert (Path(__file__).parents[2] / "docs" / f"{page}.md").exists()


def test_a_file_of_ours_is_not_taken_for_one_of_others(tmp_path: Path) -> None:
    said = told(tmp_path, TABLES["command"] + "workers = 4\nbind = x\n")
    assert "looks like" not in " ".join(said.values())


def test_a_log_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    said = told(tmp_path, TABLES["program"] + 'stdout_logfile = "|multilog t ./main"\n')
    assert "no program is fed with it" in said["stdout_logfile"]
