"""The settings of pools and programs: the tables `[pool.NAME]`, `[program.NAME]` and `[defaults]` (see settings.py)."""

import signal
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fcgimgr.config.address import Address, TcpAddress
from fcgimgr.config.compounds import AccessFormat, Addresses, Codes, Command, Environment, Names, Paths, Wsgi
from fcgimgr.config.limits import Limits
from fcgimgr.config.scalars import (
    Account,
    Choice,
    Flag,
    Octal,
    Path,
    Percent,
    Readiness,
    Restart,
    Seconds,
    Signal,
    Size,
    Text,
    Whole,
)

MB: Final = 1024 * 1024
SOMAXCONN: Final = "/proc/sys/net/core/somaxconn"
MOST_PROCESSES: Final = 10_000

NAME: Final = r"(?!-)[^\s:/*,%\x00-\x1f]+"
"""A name of a pool, program, group or process: one word that the command line can tell from all its other words."""

_IP: Final = r"[0-9.]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*"


def somaxconn() -> int:
    """The kernel's cap on any backlog; 4096, its own default since Linux 5.4, where /proc does not tell."""
    try:
        with open(SOMAXCONN, "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 4096


def default_backlog() -> int:
    return max(1, min(4096, somaxconn()))


class ProcessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What pools and programs share.

    name: of the table, not a key. command: words, each a template (expansions.py); () where `wsgi` says what to run.
    file_environment: what environment_file held when the configuration was read, not a key.
    """

    name: str
    command: Annotated[
        tuple[str, ...],
        Command(),
        Meta(
            description=(
                "What to run: a command line, or the list of its words. There is no shell: `&&`, `|`, `>` and `$NAME` "
                'mean nothing (write `["sh", "-c", "exec …"]` if they must). It must stay in the foreground. A name '
                'without a slash is searched in PATH. Example: `"php-cgi"`.'
            ),
        ),
    ] = ()
    numprocs: Annotated[
        int,
        Whole(low=1, high=MOST_PROCESSES),
        Meta(description="How many processes to run; those of a pool share its sockets. Example: `4`."),
    ] = 1
    numprocs_start: Annotated[
        int,
        Whole(low=0, high=10**6),
        Meta(description="The number that the first process has in `%(process_num)d`; the next ones count up."),
    ] = 0
    process_name: Annotated[
        str,
        Text(per_process=True),
        Meta(
            description=(
                "Name of each process; the default gives `app_00`, `app_01` and so on. With more than one process it "
                "must hold `%(process_num)d`."
            )
        ),
    ] = "%(program_name)s_%(process_num)02d"
    directory: Annotated[
        str | None,
        Path(per_process=True),
        Meta(
            description=(
                "Directory to run in; a relative one starts at the configuration file's directory. Without it, the "
                'manager\'s own. Example: `"/srv/shop"`.'
            )
        ),
    ] = None
    environment: Annotated[
        dict[str, str],
        Environment(per_process=True),
        Meta(
            description=(
                "Environment variables, as a table of texts; they come on top of, from the lowest up, the environment "
                "the manager was started with, `[manager].environment`, `environment_file` and "
                '`[defaults].environment`. Example: `{ DJANGO_SETTINGS_MODULE = "shop.settings", PORT = '
                '"80%(process_num)02d" }`.'
            )
        ),
    ] = {}
    environment_file: Annotated[
        str | None,
        Path(),
        Meta(
            description=(
                "File of environment variables, one `NAME=value` a line; `#` begins a comment line, `export ` before "
                "a name and quotes around a value are taken off. Read together with the configuration. Example: "
                '`"/etc/shop/secrets.env"`.'
            )
        ),
    ] = None
    file_environment: dict[str, str] = {}
    clear_env: Annotated[
        bool,
        Flag(),
        Meta(
            description=(
                "Give the processes only what this configuration says, nothing of the environment that the manager "
                "was started with except PATH."
            )
        ),
    ] = False
    user: Annotated[
        str | None,
        Account(),
        Meta(
            description=(
                'User to run as: `"name"`, `"name:group"`, or numbers; the supplementary groups are the user\'s. The '
                'manager must be root for it. Without it, the manager\'s own user. Example: `"www-data"`.'
            )
        ),
    ] = None
    umask: Annotated[
        int | None,
        Octal(),
        Meta(description='File mode mask, in octal. Without it, `[manager].umask`. Example: `"027"`.'),
    ] = None
    nice: Annotated[
        int | None,
        Whole(low=-20, high=19),
        Meta(description="Nice value, -20 (first) to 19 (last); below the manager's own it needs root."),
    ] = None
    no_new_privs: Annotated[
        bool,
        Flag(),
        Meta(description="Never let the processes gain privileges, through a setuid program for example (prctl(2))."),
    ] = False
    oom_score_adj: Annotated[
        int | None,
        Whole(low=-1000, high=1000),
        Meta(
            description=(
                "How willingly the kernel kills the processes when memory runs out, -1000 (never) to 1000 (first). "
                "Without it, the manager's own. Example: `500`."
            )
        ),
    ] = None
    chroot: Annotated[
        str | None,
        Path(),
        Meta(
            description=(
                "Directory that the processes see as `/`; `command` and `directory` are looked for inside it. The "
                'manager must be root. Example: `"/srv/jail"`.'
            )
        ),
    ] = None
    rlimits: Annotated[
        dict[str, tuple[int, int]],
        Limits(),
        Meta(description="Resource limits as (soft, hard), -1 for unlimited, by their names without `rlimit_`."),
    ] = {}
    autostart: Annotated[
        bool,
        Flag(),
        Meta(description="Start with the manager; else it waits for `fcgimgr start`."),
    ] = True
    autorestart: Annotated[
        bool | Literal["unexpected"],
        Restart(),
        Meta(
            description=(
                "Replace a process that ends by itself: always (`true`), never (`false`), or only after an exit code "
                'that is not in `exitcodes` or a signal (`"unexpected"`, the default of Supervisor).'
            )
        ),
    ] = True
    exitcodes: Annotated[
        tuple[int, ...],
        Codes(),
        Meta(
            description=(
                "Exit codes that are expected. A process of a pool that has served and ends so is replaced at once, "
                'however young it is; with `autorestart = "unexpected"` they end a process for good.'
            )
        ),
    ] = (0,)
    startsecs: Annotated[
        float,
        Seconds(),
        Meta(
            description=(
                "Seconds that a process must live to count as started (RUNNING). One that ends sooner has failed to "
                "start, unless it has served and ends with one of `exitcodes`. 0: it need not live any time."
            )
        ),
    ] = 1.0
    startretries: Annotated[
        int,
        Whole(low=-1, high=10**6),
        Meta(
            description=(
                "Failed starts in a row that are tried again, after a growing pause, before the process is FATAL; -1 "
                "for ever."
            )
        ),
    ] = 3
    backoff_initial: Annotated[
        float,
        Seconds(positive=True),
        Meta(description="Seconds of pause after the first failed start; each further failure doubles it."),
    ] = 1.0
    backoff_max: Annotated[
        float,
        Seconds(positive=True),
        Meta(description="The longest pause between two starts, in seconds."),
    ] = 30.0
    on_fatal: Annotated[
        Literal["close", "keep", "retry"],
        Choice(words=("close", "keep", "retry")),
        Meta(
            description=(
                "When every process is FATAL, or the sockets cannot be opened: "
                '`"close"` refuses clients at once, so that nginx goes to its next upstream, until somebody starts '
                'it; `"keep"` lets them wait; `"retry"` refuses them too, but starts what is FATAL once more after a '
                "pause of twice `backoff_max` (60 seconds), and then again and again, after pauses that grow up to "
                "twenty times that (10 minutes)."
            )
        ),
    ] = "close"
    priority: Annotated[
        int,
        Whole(low=-(10**6), high=10**6),
        Meta(description="Order of starting: lower is earlier, and stops later. It orders only; `depends_on` waits."),
    ] = 999
    depends_on: Annotated[
        tuple[str, ...],
        Names(what="names of pools and programs", pattern=NAME),
        Meta(
            description=(
                "Pools and programs that must be ready before this one starts; they stop after it. Example: "
                '`["cache", "queue"]`.'
            )
        ),
    ] = ()
    ready: Annotated[
        str,
        Readiness(
            words=("accepts", "startsecs", "ping", "http", "notify", "exit"),
            meant={
                "sd_notify": 'write "notify"',
                "accept": 'write "accepts"',
                "exited": 'write "exit"',
                "oneshot": 'write "exit"',
                "https": 'the pool\'s own socket is asked, without TLS; write "http:/PATH"',
            },
        ),
        Meta(
            description=(
                "When a process is ready: once it has lived `startsecs` and was seen to take the pool's socket "
                '(`"accepts"`, the default of a pool with `command`); once it has lived `startsecs`, whatever it does '
                '(`"startsecs"`, the default of a program); once it answers a FastCGI request of the manager '
                '(`"ping"`), or an HTTP request for `/` or the path that is named (`"http"`, `"http:/healthz"`) with a '
                "status from 200 to 399, pools only; or once it says READY=1 on $NOTIFY_SOCKET, as systemd services do "
                '(`"notify"`, the default of a `wsgi` pool, which says it when the application is imported). '
                '`"exit"`, programs only: once it has ended with one of `exitcodes`, having done what it is for (a '
                "migration); any other end is a failed start."
            ),
            extra={"default": '`"accepts"`; `"notify"` with `wsgi`, `"startsecs"` of a program'},
        ),
    ] = "startsecs"
    ready_timeout: Annotated[
        float,
        Seconds(positive=True),
        Meta(
            description=(
                'Seconds that a process has to become ready, but with `ready = "startsecs"` and `"exit"`; then its '
                "start failed."
            )
        ),
    ] = 30.0
    stopsignal: Annotated[
        int,
        Signal(),
        Meta(description='Signal that asks a process to end: a name or a number. Example: `"INT"`.'),
    ] = int(signal.SIGTERM)
    stopwaitsecs: Annotated[
        float,
        Seconds(),
        Meta(description="Seconds a process has to end after `stopsignal`; then it is killed with SIGKILL."),
    ] = 10.0
    stopasgroup: Annotated[
        bool,
        Flag(),
        Meta(description="Send `stopsignal` to the children of the process too (its whole process group)."),
    ] = False
    killasgroup: Annotated[
        bool,
        Flag(),
        Meta(description="Kill the children of the process too when it is killed, so that none is left behind."),
    ] = True
    max_lifetime: Annotated[
        float | None,
        Seconds(positive=True),
        Meta(
            description=(
                "Seconds after its start at which a process is replaced by a new one; without it, never. Processes "
                "are replaced one at a time, and no request is lost. Example: `86400`, a day."
            )
        ),
    ] = None
    max_rss: Annotated[
        int | None,
        Size(),
        Meta(
            description=(
                "Resident memory above which a process is replaced, as by `max_lifetime`; looked at every 5 seconds. "
                "Without it, nobody looks. What its own children use is not counted, what it shares with others is. "
                'Example: `"512MB"`.'
            )
        ),
    ] = None
    stdout_logfile: Annotated[
        str,
        Path(words=("-", "none"), per_process=True),
        Meta(
            description=(
                'Where standard output goes: a file, `"-"` for the manager\'s own output, or `"none"` to discard it. '
                'Example: `"/var/log/shop/%(process_num)02d.log"`.'
            )
        ),
    ] = "-"
    stdout_logfile_maxbytes: Annotated[
        int,
        Size(),
        Meta(description="Size at which `stdout_logfile` is rotated to `.1`; 0 for never (logrotate does it)."),
    ] = 50 * MB
    stdout_logfile_backups: Annotated[
        int,
        Whole(low=0, high=10_000),
        Meta(description="How many rotated files of `stdout_logfile` are kept; 0 for none."),
    ] = 10
    redirect_stderr: Annotated[
        bool,
        Flag(),
        Meta(description="Send standard error where standard output goes, in the order in which it was written."),
    ] = False
    stderr_logfile: Annotated[
        str,
        Path(words=("-", "none"), per_process=True),
        Meta(description="Where standard error goes; as `stdout_logfile`."),
    ] = "-"
    stderr_logfile_maxbytes: Annotated[
        int,
        Size(),
        Meta(description="Size at which `stderr_logfile` is rotated to `.1`; 0 for never."),
    ] = 50 * MB
    stderr_logfile_backups: Annotated[
        int,
        Whole(low=0, high=10_000),
        Meta(description="How many rotated files of `stderr_logfile` are kept; 0 for none."),
    ] = 10
    logfile_owner: Annotated[
        str | None,
        Account(group_alone=True),
        Meta(
            description=(
                'Owner of log files that are made: `"user"`, `"user:group"` or `":group"`. Without it, the user the '
                "manager runs as; of `access_log` and `slowlog` always the pool's user, and this is their group. A "
                'file that is there stays as it is. Example: `":adm"`.'
            )
        ),
    ] = None
    logfile_mode: Annotated[
        int | None,
        Octal(),
        Meta(
            description=(
                "Permissions of log files that are made, in octal. A file that is there stays as it is until it is "
                "rotated."
            ),
            extra={"default": '`"0640"`'},
        ),
    ] = None
    log_timestamps: Annotated[
        Literal["none", "iso", "tai64n"],
        Choice(words=("none", "iso", "tai64n")),
        Meta(
            description="A time before each line in the log files: none, ISO 8601, or TAI64N as daemontools writes it."
        ),
    ] = "none"
    log_format: Annotated[
        Literal["raw", "json"],
        Choice(words=("raw", "json"), meant={"text": 'write "raw"'}),
        Meta(
            description=(
                "Lines as the process writes them, or each one in a JSON object with its time and process; a line that "
                "is a JSON object itself is a part of it, and so, as one, is a traceback of a `wsgi` pool's process."
            )
        ),
    ] = "raw"
    log_label: Annotated[
        bool,
        Flag(),
        Meta(
            description=(
                "Put the process's name before each raw line that goes to the manager's own log. Without it a process "
                "can write lines there that look like the manager's."
            )
        ),
    ] = True

    @property
    def ready_path(self) -> str | None:
        """What an HTTP request that tells whether a process is ready asks for; None: there is no such request."""
        word, _, path = self.ready.partition(":")
        return (path or "/") if word == "http" else None

    @property
    def is_pinged(self) -> bool:
        """Whether a process is ready when it has answered a request of the manager's."""
        return self.ready == "ping" or self.ready_path is not None


class ProgramSettings(ProcessSettings, frozen=True, kw_only=True):
    """`[program.NAME]`: processes without a socket, as a queue consumer."""


class PoolSettings(ProcessSettings, frozen=True, kw_only=True):
    """`[pool.NAME]`: processes that share listening sockets."""

    sockets: Annotated[
        tuple[Address, ...],
        Addresses(),
        Meta(
            description=(
                'Where the pool listens: `"127.0.0.1:9001"` (or `"tcp://127.0.0.1:9001"`), `"[::1]:9001"`, `"*:9001"` '
                'for every interface, `"/run/app.sock"` (or `"unix:///run/app.sock"`), `"systemd:NAME"` for a socket '
                'of that name from systemd, `"fd:3"` for an inherited one; or a list of these. The manager opens it '
                "and keeps it open."
            ),
            extra={"key": "socket"},
        ),
    ]
    socket_backlog: Annotated[
        int,
        Whole(low=1, high=2**31 - 1),
        Meta(
            description=(
                "Connections that may wait until a process takes them; further ones fail (Unix) or hang (TCP). The "
                "kernel caps it at `net.core.somaxconn`."
            ),
            extra={"default": "4096, or `net.core.somaxconn` where that is less"},
        ),
    ] = msgspec.field(default_factory=default_backlog)
    socket_owner: Annotated[
        str | None,
        Account(group_alone=True),
        Meta(
            description=(
                'Owner of a Unix socket: `"user"`, `"user:group"` or `":group"`. Without it, the user the manager '
                'runs as. The web server must be able to write to it. Example: `":www-data"`.'
            )
        ),
    ] = None
    socket_mode: Annotated[
        int,
        Octal(),
        Meta(description='Permissions of a Unix socket, in octal: who may connect. Example: `"0666"` for everybody.'),
    ] = 0o660
    socket_allowed: Annotated[
        tuple[str, ...],
        Names(what='IP addresses, as in ["127.0.0.1"]', pattern=_IP),
        Meta(
            description=(
                "IP addresses whose connections the processes accept, given to them in FCGI_WEB_SERVER_ADDRS; without "
                'it, all. Whether it is obeyed is up to the FastCGI library. Example: `["127.0.0.1", "10.0.0.2"]`.'
            )
        ),
    ] = ()
    socket_pass: Annotated[
        Literal["stdin", "env", "systemd"],
        Choice(words=("stdin", "env", "systemd")),
        Meta(
            description=(
                'How a process gets the sockets: the (first) one as fd 0, as FastCGI has it (`"stdin"`); all from fd '
                '3 on with the number in the variable `socket_env` (`"env"`); or as systemd passes them, with '
                'LISTEN_FDS (`"systemd"`).'
            )
        ),
    ] = "stdin"
    socket_env: Annotated[
        str,
        Text(wanted="the name of an environment variable", pattern="[A-Za-z_][A-Za-z0-9_]*"),
        Meta(description='Name of the variable that holds the fd number with `socket_pass = "env"`.'),
    ] = "FCGI_LISTEN_FD"
    socket_blocking: Annotated[
        bool,
        Flag(),
        Meta(
            description=(
                "Whether `accept` on the sockets waits. libfcgi and php-cgi need `true`; a server that waits in "
                "select or epoll and then accepts is better off with `false`, for only one of the processes that were "
                "woken gets the connection. A `wsgi` pool sets it by itself."
            )
        ),
    ] = True
    wsgi: Annotated[
        str | None,
        Wsgi(),
        Meta(
            description=(
                'In place of `command`: a Python WSGI application as `"module:callable"`, served by a worker of '
                'fcgimgr. Example: `"shop.wsgi:application"`.'
            )
        ),
    ] = None
    server: Annotated[
        Literal["flup", "native"],
        Choice(words=("flup", "native")),
        Meta(
            description=(
                'Which FastCGI server runs the `wsgi` application: `"flup"`, in threads, or `"native"`, fcgimgr\'s '
                "own and several times as fast, one request a process unless `threads` says more. See "
                "`fcgimgr help wsgi.md`."
            )
        ),
    ] = "flup"
    threads: Annotated[
        int | None,
        Whole(low=1, high=1000),
        Meta(
            description=(
                "Requests that one process of a `wsgi` application serves at a time. Without it, 16 with "
                '`server = "flup"`, 1 with `"native"`. Example: `4`.'
            )
        ),
    ] = None
    preload: Annotated[
        bool,
        Flag(),
        Meta(
            description=(
                "Import the `wsgi` application once and fork the processes from that: they share its memory, and one "
                "that dies is replaced in milliseconds. What is to be known of forks: `fcgimgr help preload.md`."
            )
        ),
    ] = False
    python: Annotated[
        str | None,
        Path(bare=True),
        Meta(
            description=(
                "Python that runs the `wsgi` application, as a rule that of its virtualenv. Without it, that of the "
                "virtualenv that is active where the manager is started (`$VIRTUAL_ENV`; as root, if nobody else may "
                'change it), else the one that runs fcgimgr. Example: `"/srv/shop/venv/bin/python"`.'
            )
        ),
    ] = None
    pythonpath: Annotated[
        tuple[str, ...],
        Paths(per_process=True),
        Meta(
            description=(
                "Directories in which the modules of the `wsgi` application are looked for first; they are put before "
                'a PYTHONPATH of `environment`. Example: `["/srv/shop/src"]`.'
            )
        ),
    ] = ()
    max_requests: Annotated[
        int | None,
        Whole(low=1, high=10**9),
        Meta(
            description=(
                "Requests after which a process of a `wsgi` application is replaced, as by `max_lifetime`; until its "
                "turn comes it serves on. Without it, never. Example: `10000`."
            )
        ),
    ] = None
    max_requests_jitter: Annotated[
        int,
        Whole(low=0, high=10**9),
        Meta(
            description=(
                "So many requests more at most, by chance, so that processes that were started together are not "
                "replaced one right after the other. Example: `1000`."
            )
        ),
    ] = 0
    request_timeout: Annotated[
        float | None,
        Seconds(positive=True),
        Meta(
            description=(
                "Seconds that a request to a `wsgi` application may take. Then it is logged with its traceback, and "
                "its process is replaced: `stopsignal`, and after `stopwaitsecs` SIGKILL, or after a second where it "
                "has nothing else in hand. Without it, for ever. Example: `60`."
            )
        ),
    ] = None
    slow_after: Annotated[
        float | None,
        Seconds(positive=True),
        Meta(
            description=(
                "Seconds after which a request to a `wsgi` application is written to the `slowlog`, with the "
                "traceback of where it is. It goes on. Example: `2.5`."
            )
        ),
    ] = None
    slowlog: Annotated[
        str,
        Path(words=("-",), per_process=True),
        Meta(
            description=(
                'The file of slow requests, or `"-"`: the standard error of the process. Opened anew by '
                "`fcgimgr reopen`; not rotated."
            )
        ),
    ] = "-"
    access_log: Annotated[
        str | None,
        Path(words=("-",), per_process=True),
        Meta(
            description=(
                'File in which a `wsgi` application\'s requests are logged, a line each; `"-"`: the standard output '
                'of the process. Opened anew by `fcgimgr reopen`; not rotated. Example: `"/var/log/shop/access.log"`.'
            )
        ),
    ] = None
    access_format: Annotated[
        str,
        AccessFormat(),
        Meta(
            description=(
                'Form of these lines: `"json"`, or text with the characters of PHP-FPM: `%R` client, `%u` user, '
                "`%t` time of the request, `%m` method, `%r` path, `%Q%q` query, `%s` status, `%l` length of the "
                "request, `%b` of the answer, `%d` seconds, `%p` pid, `%n` pool and others, as `fcgimgr help limits` "
                "lists them."
            )
        ),
    ] = '%R - %u %t "%m %r%Q%q" %s %d %p'
    drain: Annotated[
        Literal["self", "watch"],
        Choice(words=("self", "watch")),
        Meta(
            description=(
                'How a process of a `command` ends without losing a request: `"self"` gives it its `stopsignal` and '
                "leaves it to the program to finish what it has in hand, as gunicorn does; "
                '`"watch"` gives it its `stopsignal` only when it has nothing in hand, for a program that does not. '
                "See `fcgimgr help reload.md`."
            ),
            extra={"default": '`"self"` where `command` is a server known to do it, else `"watch"`'},
        ),
    ] = "watch"
    reload_timeout: Annotated[
        float,
        Seconds(positive=True),
        Meta(
            description="Seconds that the processes of a reload have to become ready, all of them; then the reload has "
            "failed, and the old ones serve on."
        ),
    ] = 60.0
    reload_watch: Annotated[
        float,
        Seconds(),
        Meta(
            description="Seconds after the switch of a reload in which the new processes are not trusted: if more than "
            "half of them die, and the old ones are still there, those serve again and the reload has failed. The old "
            "ones are kept for `startsecs` after the switch, for longer while the new ones leave connections waiting, "
            "and while they finish what they have. 0 for never."
        ),
    ] = 10.0
    reload_canary: Annotated[
        float | None,
        Percent(),
        Meta(
            description=(
                "Let `fcgimgr reload` (and SIGUSR2) stop at a canary of this share of the connections, in percent, as "
                "`--canary` does; `reload --promote` completes it, `--abort` discards it. For TCP sockets. `update` "
                "and `restart` replace all at once. Without it, so does `reload`."
            )
        ),
    ] = None

    @property
    def can_have_canary(self) -> bool:
        """Whether the kernel can share out the connections of all its sockets."""
        return all(isinstance(address, TcpAddress) for address in self.sockets)
