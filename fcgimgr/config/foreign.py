"""What the keys of Supervisor, PHP-FPM, uWSGI and gunicorn are here: for `check`, `help` and the docs alike.

The cells are as foreign_rows.py says; those of runit, daemontools and others are in foreign_tools.py. Imported only on
the way to an error, and to write the pages (foreign_pages.py).
"""

from typing import Final

from fcgimgr.config.foreign_rows import Row, one
from fcgimgr.config.foreign_tools import OTHERS, RUNIT

_SAME: Final = "the same"
_ENVIRONMENT: Final = '`environment = { NAME = "value" }`, or `environment_file`'
_HTTP: Final = "leave it out: a page and an interface over HTTP are not in this version"
_LISTENERS: Final = (
    "leave it out: in place of an event listener, a `[program.NAME]` that reads `fcgimgr events -f --json`, "
    "see [monitoring](monitoring.md#what-happens-as-a-stream)"
)

SUPERVISOR: Final = (
    one("`[fcgi-program:x]`", "`[pool.NAME]`"),
    one("`[program:x]`", "`[program.NAME]`"),
    one("`[group:x]`, `programs`", "`[group.NAME]`, `programs`, as a list"),
    one("`priority` in `[group:x]`", "`priority` of each of its members, or `depends_on`"),
    one("`[include]`, `files`", 'write `include = ["conf.d/*.toml"]` above the first table; nested includes are read'),
    one("`[unix_http_server]`: `file`, `chmod`, `chown`", "`[manager]`: `control`, `control_mode` and `control_owner`"),
    one("`username`, `password`", "leave it out: the control socket's permissions decide"),
    one("`[inet_http_server]`, `[rpcinterface:x]`, `supervisor.rpcinterface_factory`", _HTTP),
    one("`[eventlistener:x]`, `events`, `buffer_size`, `result_handler`", _LISTENERS),
    one(
        "`[supervisorctl]`, `serverurl`, `prompt`, `history_file`",
        "leave it out: commands find the manager by `[manager].control`",
    ),
    one("`[supervisord]`", "`[manager]`"),
    one(
        "`logfile`, `logfile_maxbytes`, `logfile_backups`, `loglevel`",
        "the same in `[manager]`; the levels are debug, info, warning, error",
    ),
    one(
        "`pidfile`, `umask`, `minfds`, `identifier`, `directory`, `environment`",
        "the same in `[manager]`; `environment` is a table",
    ),
    one(
        "`user` in `[supervisord]`",
        "leave it out: start the manager as that user, or say `user` in `[defaults]`",
    ),
    one("`nodaemon`", "leave it out: it runs in the foreground, unless `fcgimgr run --daemon` is asked for"),
    one("`minprocs`", "`rlimit_nproc` of a pool or program"),
    one("`silent`", 'leave it out: `[manager].logfile = "-"` logs to standard error'),
    one("`nocleanup`, `childlogdir`", "leave it out: there are no automatic log files; say `stdout_logfile`"),
    one("`strip_ansi`, `profile_options`", "leave it out: there is no such thing"),
    one(
        "`command`, `process_name`, `numprocs`, `numprocs_start`, `priority`",
        "the same; `process_name` has the number in it by default",
    ),
    one(
        "`autostart`, `autorestart`, `exitcodes`, `startsecs`, `startretries`",
        'the same; `autorestart` defaults to `true`: write `autorestart = "unexpected"` in `[defaults]` to keep '
        "Supervisor's way",
    ),
    one("`stopsignal`, `stopwaitsecs`, `stopasgroup`, `killasgroup`", "the same; `killasgroup` defaults to `true`"),
    one("`user`, `umask`, `directory`", 'the same; `user` may be `"name:group"`, and sets HOME and USER'),
    one("`environment`", 'a table: `environment = { LANG = "C.UTF-8" }`'),
    one("`redirect_stderr`", _SAME),
    one(
        "`stdout_logfile`, `stderr_logfile`",
        'the same, with `"none"`; AUTO does not exist: the default is the manager\'s own log; for `/dev/stdout` '
        'write `"-"`',
    ),
    one("`stdout_logfile_maxbytes`, `stdout_logfile_backups`, and those of stderr", _SAME),
    one(
        "`stdout_capture_maxbytes`, `stderr_capture_maxbytes`",
        "leave it out: capturing parts of the output is not supported",
    ),
    one("`stdout_events_enabled`, `stderr_events_enabled`", "leave it out: output as events is not in this version"),
    one(
        "`stdout_syslog`, `stderr_syslog`",
        'leave it out: syslog is not in this version; with `stdout_logfile = "-"` the service manager can collect '
        "the output",
    ),
    one("`socket`", "the same, `unix:///path` and `tcp://host:port` too; IPv6, `*`, several, `systemd:NAME`"),
    one("`socket_backlog`, `socket_owner`", "the same; the owner is not taken from `user`"),
    one("`socket_mode`", 'the same; the default is `"0660"`, not 0700'),
)

_STATIC: Final = "leave it out: `numprocs` processes always run; scaling by load is not in this version"
_OF_REQUESTS: Final = "leave it out: the web server logs each request (nginx: access_log)"
_SLOW: Final = (
    "leave it out: of a command there is no slow log; nginx can log `$request_time`, and `fcgimgr status` shows who is "
    "BUSY"
)
#: What to do instead of each key of a `wsgi` pool where a command runs, as a cell.
INSTEAD: Final = {
    "server": "leave it out: a command is a server itself",
    "threads": "leave it out: how many threads it has is the program's own setting",
    "preload": "leave it out: a command is started anew each time",
    "python": "leave it out, and write the interpreter as the first word of `command`",
    "pythonpath": '`environment = { PYTHONPATH = "/srv/lib" }`',
    "max_requests": '`environment = { PHP_FCGI_MAX_REQUESTS = "500" }`, with which php-cgi ends itself; of any '
    "program: `max_lifetime` and `max_rss`",
    "max_requests_jitter": "leave it out: of any program there are `max_lifetime` and `max_rss`",
    "request_timeout": "leave it out: nginx gives up after `fastcgi_read_timeout`, and nothing ends the request from "
    "outside; `php-cgi -d max_execution_time=30` ends a script after so much CPU time",
    "slow_after": _SLOW,
    "slowlog": _SLOW,
    "access_log": _OF_REQUESTS,
    "access_format": _OF_REQUESTS,
}
_RESTARTS: Final = "leave it out: what fails to start is tried again after growing pauses, `backoff_initial` to "
_PHP_VALUE: Final = 'an option of the command: `command = "php-cgi -d memory_limit=128M"`'

FPM: Final = (
    one("a pool, such as `[www]`", "`[pool.www]`"),
    one("`[global]`", "`[manager]`"),
    one("`user`", _SAME),
    one("`group`", '`user = "user:group"`'),
    one("`listen`", "`socket`"),
    one("`listen.backlog`", "`socket_backlog`"),
    one("`listen.owner`, `listen.group`", '`socket_owner = "user:group"`'),
    one("`listen.mode`", "`socket_mode`"),
    one(
        "`listen.acl_users`, `listen.acl_groups`", "leave it out: `socket_owner` and `socket_mode` say who may connect"
    ),
    one("`listen.allowed_clients`", "`socket_allowed`, which becomes FCGI_WEB_SERVER_ADDRS"),
    one("`pm`", _STATIC),
    one("`pm.max_children`", "`numprocs`"),
    one(
        "`pm.start_servers`, `pm.min_spare_servers`, `pm.max_spare_servers`, `pm.max_spawn_rate`, "
        "`pm.process_idle_timeout`",
        _STATIC,
    ),
    one("`pm.max_requests`", INSTEAD["max_requests"], "`max_requests`"),
    one("`pm.status_path`, `pm.status_listen`", "leave it out: `fcgimgr status` shows the pool, `--json` for scripts"),
    one("`ping.path`, `ping.response`", 'leave it out: `ready = "ping"` and `fcgimgr probe` do this'),
    one(
        "`request_terminate_timeout`, `request_terminate_timeout_track_finished`",
        INSTEAD["request_timeout"],
        "`request_timeout`",
    ),
    one("`request_slowlog_timeout`, `request_slowlog_trace_depth`", INSTEAD["slow_after"], "`slow_after`"),
    one("`slowlog`", INSTEAD["slowlog"], "`slowlog`"),
    one("`access.log`", INSTEAD["access_log"], "`access_log`"),
    one("`access.format`, `access.suppress_path`", INSTEAD["access_format"], "`access_format`"),
    one("`php_value`, `php_flag`", _PHP_VALUE),
    one(
        "`php_admin_value`, `php_admin_flag`",
        _PHP_VALUE + "; a script can change it by ini_set, if PHP lets it at all",
    ),
    one("`env`", _ENVIRONMENT),
    one("`clear_env`", "the same; it defaults to `false`"),
    one("`chdir`, `prefix`", "`directory`"),
    one("`chroot`", _SAME),
    one("`rlimit_files`", "`rlimit_nofile`"),
    one("`rlimit_core`", _SAME),
    one("`process.priority`", "`nice`"),
    one("`process.dumpable`, `apparmor_hat`", "leave it out: there is no such thing"),
    one("`catch_workers_output`", "leave it out: output is always collected, see `stdout_logfile`"),
    one("`decorate_workers_output`", "`log_format` and `log_timestamps`"),
    one(
        "`security.limit_extensions`",
        "leave it out: `location ~ [.]php$` of nginx says what PHP runs; with `php-cgi -d cgi.fix_pathinfo=0` it runs "
        "just that file",
    ),
    one("`pid`", "`[manager].pidfile`"),
    one("`error_log`", "`[manager].logfile`"),
    one("`log_level`", "`[manager].loglevel`"),
    one(
        "`syslog.facility`, `syslog.ident`",
        "leave it out: syslog is not in this version; with the logs on `-` the service manager can collect them",
    ),
    one("`log_limit`, `log_buffering`", "leave it out: there is no such thing"),
    one("`daemonize`", "leave it out: `fcgimgr run --daemon` does it"),
    one(
        "`emergency_restart_threshold`, `emergency_restart_interval`",
        _RESTARTS + "`backoff_max`",
    ),
    one("`process_control_timeout`", "`stopwaitsecs`"),
    one("`process.max`", "leave it out: each pool has its `numprocs`"),
    one("`events.mechanism`, `systemd_interval`", "leave it out: it is not needed"),
)


def _wsgi(uwsgi: str, gunicorn: str, here: str) -> Row:
    return Row((uwsgi, gunicorn), here)


WSGI: Final = (
    _wsgi("`[uwsgi]`", "none", "`[pool.NAME]`, each application with its own name"),
    _wsgi(
        "`module`, `wsgi-file`, `callable`",
        "`wsgi_app`, or the argument `module:app`; `module:create_app()`",
        '`wsgi = "module:app"`; always a module, not a file, and not a call: make the application in a module of its '
        "own",
    ),
    _wsgi(
        "`home`, `virtualenv`, `venv`, `pyhome`",
        "the virtualenv that gunicorn is installed in",
        '`python = "/srv/shop/venv/bin/python"`; it needs nothing but the application',
    ),
    _wsgi("`chdir`", "`chdir`", "`directory`"),
    _wsgi("`pythonpath`", "`pythonpath`", "`pythonpath`, as a list"),
    _wsgi("`processes`, `workers`", "`workers`", "`numprocs`"),
    _wsgi(
        "none",
        "`WEB_CONCURRENCY`",
        '`numprocs = "%(ENV_WEB_CONCURRENCY)s"`, where the variable is set for the manager',
    ),
    _wsgi(
        "`threads`, `enable-threads`",
        "`threads`, of the class `gthread`",
        "`threads`; threads of the application's own always run",
    ),
    _wsgi("`socket`, `fastcgi-socket`, `uwsgi-socket`", "`bind`", "`socket`, several as a list"),
    _wsgi("`http`, `http-socket`", "`bind`", "leave it out: nginx speaks HTTP, and `socket` is for FastCGI"),
    _wsgi("`listen`", "`backlog`", "`socket_backlog`"),
    _wsgi(
        "`https`, `https-socket`",
        "`certfile`, `keyfile`, `ca_certs`, `ssl_version`",
        "leave it out: `listen 443 ssl;` with its certificate in nginx",
    ),
    _wsgi("`chmod-socket`, `chown-socket`", "`umask`", "`socket_mode`, `socket_owner`"),
    _wsgi("`uid`, `gid`", "`user`, `group`", '`user = "user:group"`'),
    _wsgi("`umask`", "`umask`", "`umask`, which is not about the socket"),
    _wsgi("`env`", "`raw_env`", _ENVIRONMENT),
    _wsgi(
        "`master`, `die-on-term`, `need-app`, `vacuum`, `strict`, `single-interpreter`, `no-orphans`",
        "`reuse_port`, `daemon`",
        "leave it out: it is always so, or not needed",
    ),
    _wsgi(
        "`lazy-apps = true`, `lazy`",
        "`preload_app = False`",
        "leave it out: so it is, each process imports the application by itself",
    ),
    _wsgi(
        "`lazy-apps = false`, `py-call-osafterfork`",
        "`preload_app = True`",
        "`preload = true`; see [preload](preload.md)",
    ),
    _wsgi(
        "`reload-mercy`, `worker-reload-mercy`",
        "`graceful_timeout`",
        "`stopwaitsecs`, and `shutdown_timeout` in `[manager]` for when that stops",
    ),
    _wsgi("`touch-reload`, `touch-workers-reload`, a master FIFO", "none", "`fcgimgr reload`"),
    _wsgi(
        "`touch-chain-reload`, or c in the master FIFO",
        "none",
        "`fcgimgr restart --hard`: one process after the other, without the memory for twice as many",
    ),
    _wsgi(
        "`py-autoreload`, `py-auto-reload`",
        "`reload`, `reload_engine`, `reload_extra_files`",
        "leave it out: [`fcgimgr dev -c pool.toml`](commands.md#dev) while writing; it watches `.py` files, and takes "
        "others with the next change of one",
    ),
    _wsgi("`harakiri`, `harakiri-verbose`", "`timeout`", "`request_timeout`; off unless it is said"),
    _wsgi(
        "`max-requests`, `max-requests-delta`",
        "`max_requests`, `max_requests_jitter`",
        "`max_requests`, `max_requests_jitter`",
    ),
    _wsgi("`max-worker-lifetime`", "none", "`max_lifetime`"),
    _wsgi("`reload-on-rss`, `evil-reload-on-rss`", "none", "`max_rss`"),
    _wsgi("`limit-as`", "none", "`rlimit_as`"),
    _wsgi("`max-fd`", "none", "`rlimit_nofile`"),
    _wsgi(
        "`cheaper`, `cheaper-initial`, `cheaper-step`, `cheaper-algo`, `cheap`, `idle`",
        "TTIN, TTOU",
        "`fcgimgr scale`, by hand",
    ),
    _wsgi(
        "`attach-daemon`, `smart-attach-daemon`, `mule`, `mules`, `spooler`",
        "none",
        "a `[program.NAME]` for each, such as a [queue consumer](../examples/queue)",
    ),
    _wsgi("`cron`", "none", "leave it out: a timer of systemd does this"),
    _wsgi(
        "`uwsgidecorators`: `@cron`, `@timer`",
        "none",
        "a timer of systemd, or a `[program.NAME]` that sleeps between its turns",
    ),
    _wsgi(
        "`uwsgidecorators`: `@spool`, `@mulefunc`",
        "none",
        "a queue, and a `[program.NAME]` that works on it: celery, RQ, or as in [the example](../examples/queue)",
    ),
    _wsgi("none", "`loglevel`", "`loglevel` in `[manager]`; what the application logs is set in the application"),
    _wsgi(
        "`logto`, `logto2`, `daemonize`, `daemonize2`",
        "`errorlog`, `--error-logfile`, `--log-file`, `capture_output`",
        "`stdout_logfile`, `stderr_logfile`, `redirect_stderr`",
    ),
    _wsgi("`logfile-chown`, `logfile-chmod`", "none", "`logfile_owner`, `logfile_mode`"),
    _wsgi("`log-maxsize`", "`logconfig`, `logconfig_dict`", "`stdout_logfile_maxbytes`, `stdout_logfile_backups`"),
    _wsgi(
        "`logger`, `req-logger`, `log-format`, `logformat`, `disable-logging`",
        "`accesslog`, `--access-logfile`, `access_log_format`, `--access-logformat`",
        "`access_log`, `access_format`; off unless it is said, for nginx logs as well",
    ),
    _wsgi("`log-slow`", "none", "`slow_after`, `slowlog`: with a traceback"),
    _wsgi(
        "`procname`, `procname-prefix`, `auto-procname`",
        "`proc_name`",
        "leave it out: `fcgimgr status` has the pids, `FCGIMGR_PROCESS` in the environment the name; with `preload` "
        "ps shows it too",
    ),
    _wsgi(
        "none",
        "`--check-config`",
        "`fcgimgr check`; whether the application can be imported, `fcgimgr reload` says, while the old one serves",
    ),
    _wsgi("`pidfile`, `pidfile2`, `safe-pidfile`", "`pidfile`", "`[manager]`: `pidfile`"),
    _wsgi("`stats`, `stats-server`", "`statsd_host`, `statsd_prefix`", "`fcgimgr status --json`"),
    _wsgi(
        "`emperor`, `vassals-include`",
        "none",
        'one file with a table for each application, or `include = ["conf.d/*.toml"]`',
    ),
    _wsgi("`static-map`, `check-static`, `static-index`", "none", "leave it out: `location /static/` in nginx"),
    _wsgi("`limit-post`", "none", "leave it out: `client_max_body_size 20m;` in nginx"),
    _wsgi(
        "`socket-timeout`, `http-timeout`, `http-keepalive`, `so-keepalive`",
        "`keepalive`, `--keep-alive`",
        "leave it out: nginx has the whole request before it passes it on, and `client_body_timeout 60s;` for the "
        "browser; [limits of the worker](wsgi.md#time-limits) are fixed",
    ),
    _wsgi(
        "`buffer-size`, `post-buffering`",
        "`limit_request_line`, `limit_request_fields`, `limit_request_field_size`",
        "leave it out: nginx limits the head of a request, and a process takes up to 1 MiB of parameters",
    ),
    _wsgi(
        "`plugins`, `plugin`, `thunder-lock`",
        "`worker_connections`, `worker_tmp_dir`, `tmp_upload_dir`, `forwarded_allow_ips`, `secure_scheme_headers`, "
        "`proxy_protocol`, `sendfile`",
        "leave it out: it is not needed",
    ),
    _wsgi(
        "`ignore-sigpipe`, `ignore-write-errors`, `disable-write-exception`",
        "none",
        "leave it out: that a browser has gone is no error in the log",
    ),
    _wsgi(
        "`gevent`, `gevent-monkey-patch`",
        '`worker_class = "gevent"`',
        'leave it out: `server = "native"` serves an application that calls `monkey.patch_all()` itself '
        "[one request at a time](wsgi.md#what-an-application-gets); for many in one process, gunicorn as a `command` "
        "of its own",
    ),
    _wsgi(
        "`asyncio`",
        '`worker_class = "eventlet"`, an ASGI class',
        "a `command` of its own, such as [uvicorn](../examples/asgi)",
    ),
    _wsgi("none", '`worker_class = "gthread"`', '`threads`, with `server = "native"`'),
    _wsgi("none", '`worker_class = "sync"`', 'leave it out: so it is with `server = "native"` and without `threads`'),
    _wsgi(
        "hooks: `hook-pre-app`, `hook-post-app`, `exec-pre-app`, `@postfork`",
        "`on_starting`, `on_reload`, `when_ready`, `pre_fork`, `post_fork`, `post_worker_init`, `worker_int`, "
        "`worker_abort`, `pre_exec`, `pre_request`, `post_request`, `child_exit`, `worker_exit`, `nworkers_changed`, "
        "`on_exit`",
        "leave it out: `os.register_at_fork` with `preload`; else the application's own module, and Python's exit "
        "handlers",
    ),
)

#: The tables by whose keys they hold, as a message names them.
FOREIGN: Final = {
    "Supervisor": SUPERVISOR,
    "PHP-FPM": FPM,
    "uWSGI or gunicorn": WSGI,
    "runit or daemontools": RUNIT,
    "": OTHERS,
}
