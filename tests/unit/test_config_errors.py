"""What people write wrongly, and what they are told: the key, what is wrong, and the mend."""

import os
from pathlib import Path

import pytest

from fcgimgr.config.read import ConfigError, read

POOL = '[pool.app]\nsocket = "127.0.0.1:9001"\ncommand = "serve"\n'
PROGRAM = '[program.job]\ncommand = "x"\n'


def errors(directory: Path, text: str | bytes, name: str = "pool.toml") -> str:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read(str(path), {"HOME": "/root"})
    lines = str(caught.value)
    assert len(lines.splitlines()) == len(caught.value.problems)
    assert all(line.startswith(str(directory)) for line in lines.splitlines())
    return lines.replace(f"{directory}/", "")


@pytest.mark.parametrize(
    ("line", "mend"),
    [
        ("user = www-data", 'text goes in quotes: user = "www-data"'),
        ("command = python app.py", 'text goes in quotes: command = "python app.py"'),
        ('command = python -c "print(1)"', "text goes in quotes: command = 'python -c \"print(1)\"'"),
        ("listen = 127.0.0.1:9001", 'text goes in quotes: listen = "127.0.0.1:9001"'),
        ("autostart = yes", "write autostart = true"),
        ("autostart = True  # sure", "write autostart = true"),
        ("autostart = off", "write autostart = false"),
        ("umask = 022", 'an octal number goes in quotes: umask = "022"'),
        ("stopwaitsecs = 10s", "times are plain numbers of seconds: stopwaitsecs = 10"),
        ("stdout_logfile_maxbytes = 50MB ; big", 'a size with a unit goes in quotes: stdout_logfile_maxbytes = "50MB"'),
        ('environment = A="1",B="2"', 'write environment = { NAME = "value", OTHER = "value" }'),
        ("env[PATH] = /bin", 'write environment = { PATH = "value" }'),
        ("; a comment", "a comment begins with #"),
        ('user = "x" ; a comment', "a comment begins with #"),
        ("[program:job]", "in TOML this table is [program.job]"),
        ("[fcgi-program:job]", "in TOML this table is [pool.job]"),
        ("[pool.b", "the closing ] is missing"),
        ("user =", "the value is missing"),
        ('user = "x', "the closing quote is missing"),
        ('command = "grep \\d"', "a backslash is written \\\\"),
        ("user: x", "TOML has key = value"),
        ("user", "a line is a [table] or key = value"),
    ],
)
def test_a_habit_of_another_format_is_told_how_toml_has_it(tmp_path: Path, line: str, mend: str):
    lines = errors(tmp_path, f"{POOL}{line}\nnumprocs = 1\n" if line[-2:] != '"x' else f"{POOL}{line}")
    assert lines.startswith("pool.toml: line 4: not TOML: ")
    assert mend in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (POOL + 'command = "y"\n', "not TOML: a key is given twice"),
        (POOL + "[pool.app]\n", "pool.toml: line 4: not TOML: the table 'pool', 'app' is given twice"),
        ("[supervisord]\nnodaemon=true\n[program:x]\ncommand=/bin/cat\n", "looks like a supervisord.conf"),
        ("[www]\nlisten = /run/php.sock\npm = dynamic\n", "looks like a pool file of PHP-FPM"),
        (b"# caf\xe9\n", "pool.toml: line 1: the file is not UTF-8 text"),
        ("a = " + "[" * 2000, "nested too deeply"),
        ("a = " + "1" * 5000, "a number is too long"),
        ("\0", "not TOML"),
    ],
)
def test_a_file_that_is_no_toml(tmp_path: Path, text: str | bytes, message: str):
    assert message in errors(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[pool.a]\nlisten = "/s"\nlisten.group = "g"\n', 3, 'listen.group: here it is socket_owner = "user:group"'),
        ('[pool.a]\nlisten.group = "g"\nlisten.mode = 1\nlisten = "/s"\n', 2, "listen.mode: here it is socket_mode"),
        ('[pool.a]\nsocket = "/s"\nsocket.mode = "0660"\n', 3, "socket.mode: did you mean socket_mode?"),
        ('[pool.a]\npm = "dynamic"\npm.max_children = 5\n', 3, "pm.max_children: here it is numprocs"),
        ('[manager]\nlogfile = "/l"\nlogfile.mode = "0640"\n', 3, "logfile.mode: did you mean logfile_mode?"),
        ('[pool.a]\nenvironment = { A = "1" }\nenvironment.B = "2"\n', 3, "environment ends with its }"),
    ],
)
def test_a_key_with_a_dot_beside_its_first_part_is_told_what_it_is_here(
    tmp_path: Path, text: str, line: int, message: str
):
    told = errors(tmp_path, text)
    assert told.startswith(f"pool.toml: line {line}: not TOML: ")
    assert message in told
    assert "given twice" not in told


def test_a_key_with_a_dot_that_is_given_twice_is_told_to_be(tmp_path: Path):
    assert "line 3: not TOML: a key is given twice" in errors(tmp_path, "[pool.a]\nlisten.a = 1\nlisten.a = 2\n")


def test_a_dot_in_the_place_of_an_underscore(tmp_path: Path):
    lines = errors(tmp_path, f'{PROGRAM}rlimit.nofile = 3\n[pool.b]\ncommand = "x"\nsocket.mode = "0660"\n')
    assert "program.job.rlimit.nofile: unknown key; did you mean rlimit_nofile?" in lines
    assert "pool.b.socket: socket.mode: did you mean socket_mode?" in lines


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path):
    (tmp_path / "pool.toml").write_bytes(b"\xef\xbb\xbf" + POOL.replace("\n", "\r\n").encode())
    assert read(tmp_path / "pool.toml", {}).pools["app"].command == ("serve",)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("numproc = 2", "numproc: unknown key; did you mean numprocs?"),
        ("socket-mode = 2", "socket-mode: unknown key; did you mean socket_mode?"),
        ("NumProcs = 2", "NumProcs: unknown key; did you mean numprocs?"),
        ("workers = 2", "workers: unknown key; here it is numprocs"),
        ("listen.mode = '0660'", "listen.mode: unknown key; here it is socket_mode"),
        ("pm.max_children = 5", "pm.max_children: unknown key; here it is numprocs"),
        ("group = 'x'", 'group: unknown key; here it is user = "user:group"'),
        ("loglevel = 'info'", "loglevel: this key belongs in [manager]"),
        ("programs = 'x'", "programs: this key belongs in [group.NAME]"),
        ("min_spare = 5", "min_spare: it is not in this version of fcgimgr"),
        ("min_spares = 5", "min_spares: unknown key; min_spare is not in this version of fcgimgr"),
        ("max_request = 5", "max_request: unknown key; `fcgimgr help configuration`"),
        ("max_requests = 5", "max_requests: is for a wsgi application only; here it is environment = { PHP_FCGI_MAX"),
        ("request_timeout = 5", "request_timeout: is for a wsgi application only; leave it out: nginx gives up"),
        ("max_rss = 512", 'max_rss: 512 bytes are less than any process uses; as in "512MB"'),
        ("slow_after = 1", "slow_after: is for a wsgi application only; leave it out: of a command there is"),
        ('access_format = "%R %z"', "access_format: at character 4: %z is not known; there are %%, %b, %d"),
        ('access_format = "%{kilo}M"', "at character 1: %{kilo}M of PHP-FPM is not known here; leave it out"),
        ('access_format = "50%"', "access_format: at character 3: it ends in a %; write %% for the sign itself"),
        ('access_format = "%m %e"', "at character 4: %e needs the name of a parameter, as in %{HTTP_USER_AGENT}e"),
        ('access_format = "%{weeks}d"', "%{weeks}d is not known; write %{UNIT}d with one of seconds, milliseconds"),
        ('access_format = "%{x}R"', "access_format: at character 1: %{x}R: %R takes nothing in braces; write %R"),
        ('access_format = "%s %d{milli}"', "character 4: %d{milli}: braces stand before the letter; write %{milli}d"),
        ('access_format = "%e{HOST}"', "at character 1: %e{HOST}: braces stand before the letter; write %{HOST}e"),
        ('access_format = "%{milli}"', "at character 1: %{milli} lacks its letter, as in %{milliseconds}d"),
        ('access_format = "%{milli d"', "at character 1: the brace is not closed, as it is in %{milliseconds}d"),
        ('access_format = "a\\nb"', 'access_format: expected "json", or a line with %R, %m, %s and so on'),
        ('"access.log" = "/x"', "access.log: unknown key; leave it out: the web server logs each request"),
        ("max_lifetime = 0", "max_lifetime: expected a number of seconds above 0"),
        ("rlimit_files = 5", "rlimit_files: unknown key; here it is rlimit_nofile"),
        ("rlimit_files_ = 5", "rlimit_files_: unknown key; the limits are rlimit_as"),
        ("qqq = 5", "qqq: unknown key; `fcgimgr help configuration`"),
        ("name = 'x'", "name: unknown key"),
        ("file_environment = {}", "file_environment: unknown key"),
        ("rlimits = {}", "rlimits: unknown key"),
        ("sockets = []", "sockets: unknown key; did you mean socket?"),
        ("numprocs = '4'", 'numprocs: expected a whole number from 1 to 10000, got "4"; write 4, without quotes'),
        ("numprocs = 0", "numprocs: expected a whole number from 1 to 10000, got 0"),
        ("numprocs = 4.0", "numprocs: expected a whole number from 1 to 10000, got 4.0"),
        ("numprocs = true", "numprocs: expected a whole number from 1 to 10000, got true"),
        ("numprocs = 0x" + "f" * 5000, "got a huge number"),
        ("numprocs = 1979-05-27", "got a date or time"),
        ("nice = 20", "nice: expected a whole number from -20 to 19, got 20"),
        ("numprocs = '%(ENV_HOME)s'", 'numprocs: expected a whole number from 1 to 10000, got "/root"'),
        ("numprocs = '%(ENV_X)s'", "numprocs: %(ENV_X): the environment variable X is not set"),
        ("autostart = 'yes'", 'autostart: expected true or false, got "yes"; write true, without quotes'),
        ("autostart = 0", "autostart: expected true or false, got 0; write false, without quotes"),
        ("autorestart = 'always'", 'autorestart: expected true, false or "unexpected", got "always"; write true'),
        ("autorestart = 1", 'autorestart: expected true, false or "unexpected", got 1'),
        ("stopwaitsecs = '5m'", 'stopwaitsecs: expected a number of seconds from 0, got "5m"; write 300'),
        ("stopwaitsecs = '10'", "write 10, without quotes"),
        ("stopwaitsecs = -1", "stopwaitsecs: expected a number of seconds from 0, at most 1000000000, got -1"),
        ("stopwaitsecs = inf", "got inf"),
        ("stopwaitsecs = nan", "got nan"),
        ("ready_timeout = 0", "ready_timeout: expected a number of seconds above 0"),
        ("umask = 22", 'umask: expected an octal mode in quotes, as in "0660", got 22; write "0022"'),
        ("umask = '888'", 'umask: expected an octal mode in quotes, as in "0660", at most 0777, got "888"'),
        ("umask = '01777'", "at most 0777"),
        ("umask = 0o22\nsocket_mode = 18", 'socket_mode: expected an octal mode in quotes, as in "0660", got 18'),
        ("stdout_logfile_maxbytes = '50 megs'", "the units are KB, MB and GB"),
        ("stdout_logfile_maxbytes = -1", "stdout_logfile_maxbytes: expected a size in bytes"),
        (
            "ready = 'pong'",
            'one of "accepts", "startsecs", "ping", "http", "notify", "exit", got "pong"; did you mean "ping"?',
        ),
        ("ready = 'accept'", 'write "accepts"'),
        ("ready = '/healthz'", 'write "http:/healthz"'),
        ("ready = 'http://127.0.0.1/'", 'the pool\'s own socket is asked; write "http:/PATH"'),
        ("ready = 'http:healthz'", 'expected "http:" and a path, as in "http:/healthz", got "http:healthz"'),
        ("ready = 'http:/a b'", 'expected "http:" and a path'),
        ("ready = 'http:/a\\r\\nHost: x'", 'expected "http:" and a path'),
        ("ready = 'https:/'", "ready: expected one of"),
        ("ready = 'PING'", 'write "ping"'),
        ("server = 'uwsgi'", 'server: expected one of "flup", "native", got "uwsgi"'),
        ("stopsignal = 'SIGFOO'", "stopsignal: expected the name or number of a signal"),
        ("stopsignal = 65", "stopsignal: expected the name or number of a signal"),
        ("stopsignal = 0", "stopsignal: expected the name or number of a signal"),
        ("exitcodes = '0,2'", 'got "0,2"; write [0,2], without quotes'),
        ("exitcodes = [256]", "exitcodes: expected a list of exit codes from 0 to 255"),
        ("user = 'www-data:'", 'user: expected "user" or "user:group", got "www-data:"'),
        ("user = -1", "user: expected"),
        ("socket_owner = ':'", "socket_owner: expected"),
        ("stdout_logfile = '/dev/stdout'", 'stdout_logfile: expected a log file, got "/dev/stdout"; write "-"'),
        ("stdout_logfile = 'AUTO'", "there are no automatic log files"),
        ("stdout_logfile = 'syslog'", "syslog is not in this version"),
        ("stdout_logfile = '/dev/null'", 'write "none"'),
        ("stdout_logfile = 'x%'", "write %% for a percent sign"),
        ("directory = '~/x'", "write %(ENV_HOME)s/x"),
        ("directory = 'file:///srv'", 'write only the path: "/srv"'),
        ("directory = ''", "directory: expected a path"),
        ("directory = '%(ENV_D)s'\nenvironment = { D = 'x' }", 'directory: "x" is not an absolute path'),
        ("environment = 'A=\"1\",B=2'", 'environment: expected a table of environment variables, got \'A="1",B=2\'; '
         'write environment = { A = "1", B = "2" }'),
        ("environment = ['A=1']", 'write environment = { NAME = "value", OTHER = "value" }'),
        ("environment = { PORT = 8080 }", 'expected text for the variable PORT, got 8080; write PORT = "8080"'),
        ("environment = { A.B = 'x' }", 'a name with a dot goes in quotes: "A.B"'),
        ("environment = { 'A=' = 'x' }", "cannot be the name of an environment variable"),
        ("environment = { A = '100%' }", "environment: A: a lone %"),
        ("environment = { A = '%(ENV_A)s' }", "environment: A: %(ENV_A): the environment variable A is not set"),
        ('user = "a\\u0000b"', "holds a NUL character"),
        ("environment_file = 'none.env'", "none.env: there is no such file"),
        ("rlimit_nofile = 'unlimited'", "the kernel has no unlimited here"),
        ("rlimit_core = 'lots'", 'rlimit_core: expected a size, as in "512MB", "soft:hard" or "unlimited", got "lots"'),
        ("rlimit_nproc = '5MB'", 'rlimit_nproc: expected a number, "soft:hard" or "unlimited", got "5MB"'),
        ("rlimit_core = '5:3'", "the soft limit 5 is above the hard limit 3"),
        ("rlimit_core = 'unlimited:3'", "the soft limit unlimited is above the hard limit 3"),
        ("depends_on = 'a, b'", 'write ["a", "b"]'),
        ("depends_on = 'ap'", 'there is no pool or program "ap"; did you mean "app"?'),
        ("depends_on = 'app'", "depends_on: each waits for the next, so none could start: app → app"),
        ("process_name = '%(program_name)s'\nnumprocs = 2", "process_name: 2 processes need different names"),
        ("process_name = 'a b'", 'process_name: "a b" will not do as a name'),
        ("backoff_max = 0.5", "backoff_max: backoff_initial (1) is above backoff_max (0.5)"),
        ("stopasgroup = true\nkillasgroup = false", "killasgroup: stopasgroup = true needs killasgroup = true"),
        ("chroot = '/jail'\ndirectory = 'x'", "directory: with chroot it is a path inside of it"),
        ("socket_mode = '0600'", "socket_mode: is for Unix sockets, and the pool listens on 127.0.0.1:9001"),
        ("socket_owner = 'x'", "socket_owner: is for Unix sockets"),
        ("socket_allowed = 'localhost'", 'socket_allowed: expected a list of IP addresses, as in ["127.0.0.1"]'),
        ("socket_env = 'A-B'", "socket_env: expected the name of an environment variable"),
        ("wsgi = 'a:b'", "wsgi: give either command or wsgi, not both"),
        ("threads = 4", "threads: is for a wsgi application only"),
        ("preload = true", "preload: is for a wsgi application only"),
        ("pythonpath = 'a:b'", 'write ["a", "b"]'),
    ],
)  # fmt: skip
def test_a_wrong_key_of_a_pool(tmp_path: Path, keys: str, message: str):
    lines = errors(tmp_path, POOL + keys + "\n").splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("pool.toml: pool.app.")
    assert message in lines[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("directory", '"%(here)s/%(process_num)d"'),
        ("pythonpath", '"%(here)s/%(process_num)d"'),
        ("environment", '{ PYTHONPATH = "/srv/%(process_num)d" }'),
    ],
)
def test_what_is_imported_once_cannot_come_from_a_place_of_each_process(tmp_path: Path, key: str, value: str):
    keys = f'[pool.app]\nsocket = "*:1"\nwsgi = "a:b"\nnumprocs = 1\n{key} = {value}\n'
    assert errors(tmp_path, f"{keys}preload = true\n").startswith(f"pool.toml: pool.app.{key}: ")
    (tmp_path / "pool.toml").write_text(keys)
    read(tmp_path / "pool.toml", {})


@pytest.mark.parametrize(
    ("socket", "message"),
    [
        ("9001", 'socket: expected a listening address, or a list of them, got 9001; write "127.0.0.1:9001"'),
        ('":9001"', "write 127.0.0.1:9001, or *:9001 for every interface"),
        ('"app.sock"', "give an absolute path"),
        ("[]", "it is empty"),
        ('["*:1", "*:1"]', "*:1 is listed twice"),
        ('["*:1", "/run/a.sock"]', 'socket: as fd 0 a process gets only the first of 2 sockets'),
        ('"/run/%(process_num)d.sock"', "different for each process"),
        (f'"/run/{"x" * 200}"', "at most 107"),
    ],
)  # fmt: skip
def test_a_wrong_socket(tmp_path: Path, socket: str, message: str):
    assert message in errors(tmp_path, f'[pool.app]\nsocket = {socket}\ncommand = "x"\n')


@pytest.mark.parametrize(
    ("wsgi", "message"),
    [
        ("app.py", 'name the module, not its file: "app:app"'),
        ("shop/app.py:wsgi", 'name the module, not its file: "shop.app:wsgi"'),
        ("shop.web", 'say which callable of the module: "shop.web:app"'),
        ("shop.web:make()", "a factory is not called"),
        ("", "expected a WSGI application"),
    ],
)
def test_a_wrong_wsgi_application(tmp_path: Path, wsgi: str, message: str):
    lines = errors(tmp_path, f'[pool.app]\nsocket = "*:1"\nwsgi = "{wsgi}"\n')
    assert "pool.app.wsgi: expected a WSGI application" in lines
    assert message in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "pool.toml: there is nothing to run: add a [pool.NAME] or a [program.NAME]"),
        ("[manager]\nminfds = 127\n" + POOL, "manager.minfds: expected"),
        ("[pool.app]\n", "pool.app.socket: is missing"),
        ("[pool.app]\n", "pool.app.command: is missing"),
        ("[program.app]\n", 'program.app.command: is missing: say what to run, as in command = "python3 app.py"'),
        ('[program.app]\ncommand = ""\n', "it is empty"),
        ("[program.app]\ncommand = [1]\n", 'write "1"'),
        ("[program.app]\ncommand = \"it's\"\n", "cannot be split into words: no closing quotation"),
        ('[program.app]\ncommand = "x"\nsocket = "*:1"\n', "program.app.socket: only a pool has this key"),
        ('[program.app]\ncommand = "x"\nready = "ping"\n', 'program.app.ready: "ping" is for pools'),
        ('[program.app]\ncommand = "x"\nready = "accepts"\n', 'program.app.ready: "accepts" is for pools'),
        ('[program.app]\ncommand = "x"\nready = "http:/x"\n', 'program.app.ready: "http:/x" is for pools'),
        ('[pool.app]\nsocket = "*:1"\nwsgi = "m:app"\nready = "http"\n', "a wsgi pool speak FastCGI"),
        ('[program.app]\ncommand = "%(ENV_P)d"\nenvironment.P = "1"\n', "write %(ENV_P)s"),
        ('[program."a b"]\ncommand = "x"\n', "program.a b: this name will not do"),
        ('[program.all]\ncommand = "x"\n', "program.all: this name will not do"),
        ('[program.-x]\ncommand = "x"\n', "program.-x: this name will not do"),
        ('[program."a\\nb"]\ncommand = "x"\n', "program.a\\nb: this name will not do"),
        ('[pool]\nsocket = "*:1"\n', "pool.socket: a pool needs a name"),
        ('[[pool]]\nsocket = "*:1"\n', "pool: expected tables with a name, as in [pool.app]"),
        ("manager = 3\n", "manager: expected a table, got 3"),
        ('numprocs = 3\n' + POOL, "numprocs: it stands above the first table; it belongs in [pool.NAME]"),
        ('loglevel = "info"\n' + POOL, "loglevel: it stands above the first table; it belongs in [manager]"),
        ('incldue = "x"\n' + POOL, "incldue: unknown key above the first table; did you mean include?"),
        ("include = 3\n" + POOL, "include: expected a list of files"),
        ("[include]\nfiles = '*.toml'\n" + POOL, 'write include = ["conf.d/*.toml"] above the first table'),
        ('include = "none.toml"\n' + POOL, "include: there is no file none.toml"),
        ('include = "%(x)s"\n' + POOL, "include: %(x) is unknown"),
        ("[pools.app]\n", "pools: unknown table; did you mean [pool.NAME]?"),
        ("[Manager]\n" + POOL, "Manager: unknown table; did you mean [manager]?"),
        ('["program:x"]\ncommand = "x"\n', "program:x: unknown table; in TOML it is [program.x]"),
        ("[supervisord]\n" + POOL, "supervisord: unknown table; here it is [manager]"),
        ("[unix_http_server]\n" + POOL, "control, control_mode and control_owner"),
        ("[web]\n", "web: unknown table; leave it out: a page over HTTP"),
        ('[www]\nlisten = "/run/a.sock"\n', "www: unknown table; did you mean [pool.www]?"),
        ('[mailer]\ncommand = "x"\n', "mailer: unknown table; did you mean [program.mailer]?"),
        ("[xyzzy]\n", "the tables are [manager], [defaults], [pool.NAME], [program.NAME] and [group.NAME]"),
        ("[manager]\nnumprocs = 2\n" + POOL, "manager.numprocs: this key belongs in a [pool.NAME]"),
        ("[manager]\nnodaemon = true\n" + POOL, "manager.nodaemon: unknown key; leave it out"),
        ('[manager]\ncontrol = "unix:///run/x.sock"\n' + POOL, 'write only the path: "/run/x.sock"'),
        (f'[manager]\ncontrol = "/{"x" * 108}"\n{POOL}', "manager.control: "),
        ('[manager]\nloglevel = "warn"\n' + POOL, 'write "warning"'),
        ("[defaults]\nnumproc = 2\n" + POOL, "defaults.numproc: unknown key; did you mean numprocs?"),
        ("[defaults]\nloglevel = 'info'\n" + POOL, "defaults.loglevel: this key belongs in [manager]"),
        ("[defaults]\nnumprocs = 'x'\n" + POOL, "defaults.numprocs: expected a whole number"),
        ("[defaults]\nsocket_mode = 'x'\n" + PROGRAM, "defaults.socket_mode: expected an octal mode"),
        ("[defaults]\nsocket = '*:1'\ncommand = 'x'\n[pool.a]\n[pool.b]\n", "[pool.a] listens on *:1 already"),
        (POOL + POOL.replace("app", "b"), "pool.b.socket: [pool.app] listens on 127.0.0.1:9001 already"),
        (POOL + POOL.replace("app", "b").replace("127.0.0.1", "*"), "[pool.app] listens on *:9001 already as 127"),
        (POOL + POOL.replace("app", "b").replace("127.0.0.1", "0.0.0.0"), "already as 127.0.0.1:9001"),
        ("[manager]\ncontrol = '/run/a'\n" + POOL.replace("127.0.0.1:9001", "/run/a"), "the manager's control socket"),
        (POOL + '[program.app]\ncommand = "x"\n', "program.app: [pool.app] has the same name"),
        (POOL + '[group.app]\nprograms = "app"\n', "group.app: [pool.app] has the same name"),
        (POOL + "[group.g]\n", "group.g.programs: is missing"),
        (POOL + "[group.g]\nprograms = []\n", "group.g.programs: is empty"),
        (POOL + "[group.g]\nprograms = 'apq'\n", 'there is no pool or program "apq"; did you mean "app"?'),
        (POOL + "[group.g]\nprograms = 'app'\npriority = 1\n", "group.g.priority: this key belongs in a [pool.NAME]"),
        (
            PROGRAM + 'depends_on = "b"\n[program.b]\ncommand = "x"\ndepends_on = "c"\n'
            '[program.c]\ncommand = "x"\ndepends_on = ["b", "job"]\n',
            "so none could start: b → c → b",
        ),
        (PROGRAM + "depends_on = 'g'\n[group.g]\nprograms = 'job'\n", '"g" is a group; name its pools and programs'),
    ],
)  # fmt: skip
def test_a_wrong_table(tmp_path: Path, text: str, message: str):
    assert message in errors(tmp_path, text)


def test_all_problems_are_told_at_once_and_each_of_them_once(tmp_path: Path):
    lines = errors(
        tmp_path,
        '[defaults]\nnice = 99\n[manager]\nlogfile_backup = 2\n[pool.a]\nnumprocs = "x"\n'
        '[pool.b]\nsocket = "*:0"\ncommand = "x"\n[program.c]\ncommand = "x"\ndepends_on = "b"\n',
    )
    assert [line.split(": ")[1] for line in lines.splitlines()] == [
        "manager.logfile_backup",
        "defaults.nice",
        "pool.a.numprocs",
        "pool.a.socket",
        "pool.b.socket",
        "pool.a.command",
    ]


def test_a_table_in_two_files_is_told_with_both(tmp_path: Path):
    (tmp_path / "more.toml").write_text(POOL)
    lines = errors(tmp_path, f'include = "more.toml"\n{POOL}')
    assert lines == "more.toml: pool.app: this table is in pool.toml too; it must be in one file only"


def test_an_error_in_an_included_file_names_that_file(tmp_path: Path):
    (tmp_path / "more.toml").write_text("[program.b]\ncommand = 3\n")
    (tmp_path / "broken.toml").write_text("x")
    assert errors(tmp_path, f'include = "more.toml"\n{POOL}').startswith("more.toml: program.b.command: expected")
    assert errors(tmp_path, f'include = "broken.toml"\n{POOL}').startswith("broken.toml: line 1: not TOML")


WRONG = f'{POOL}depends_on = "mail"\nnumproc = 1\n[pool.bare]\n'


@pytest.mark.parametrize(
    ("include", "problem"),
    [
        ('"gone.toml"', "pool.toml: include: there is no file gone.toml"),
        ('["broken.toml", "more.toml"]', "broken.toml: line 1: not TOML: "),
        ("3", "pool.toml: include: expected a list of files"),
        ('"."', "it is a directory"),
    ],
)
def test_a_wrong_include_hides_nothing_else_and_nothing_is_said_of_what_nobody_has_seen(
    tmp_path: Path, include: str, problem: str
):
    (tmp_path / "broken.toml").write_text("[program.mail\n")
    (tmp_path / "more.toml").write_text("[program.b]\ncommand = 3\n")
    first, *others = errors(tmp_path, f"include = {include}\n{WRONG}").splitlines()
    assert problem in first
    numproc = "pool.toml: pool.app.numproc: unknown key; did you mean numprocs?"
    assert others[0] == numproc
    assert all("program.b.command: expected" in line for line in others[1:]), "not that mail or a command is missing"


def test_with_the_defaults_seen_it_is_sure_what_is_missing(tmp_path: Path):
    lines = errors(tmp_path, 'include = "gone.toml"\n[defaults]\nnice = 1\n[program.bare]\n')
    assert "pool.toml: program.bare.command: is missing" in lines


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "huge", "unreadable"])
def test_what_is_no_file_to_read(tmp_path: Path, kind: str):
    path = tmp_path / "pool.toml"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    elif kind == "unreadable":
        path.symlink_to(path)
    with pytest.raises(ConfigError) as caught:
        read(path, {})
    message = {
        "missing": "there is no such file",
        "directory": "it is a directory",
        "fifo": "it is not a regular file",
        "huge": "it is larger than 4096 KB",
        "unreadable": "it cannot be read: Too many levels of symbolic links",
    }[kind]
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A=1\nB\n", "line 2: expected NAME=value"),
        (b'A="1\n', 'line 1: the closing " is missing'),
        (b"A=\0", "line 1"),
    ],
)
def test_a_wrong_environment_file_is_told_with_the_line(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "a.env").write_bytes(content)
    lines = errors(tmp_path, POOL + 'environment_file = "a.env"\n')
    assert lines.startswith("pool.toml: pool.app.environment_file: ")
    assert message in lines
