"""What to say about a key or a table that is not known. Imported only on the way to an error.

People bring keys from Supervisor, PHP-FPM, uWSGI and systemd; where the thing exists here under another name, the
message says so. Keys of the design that a later version will have are named as such, so that nobody hunts for a typo.
"""

import difflib
from collections.abc import Iterable
from typing import Any, Final

from fcgimgr.config.keys import keys
from fcgimgr.config.settings import GroupSettings, ManagerSettings, PoolSettings

LATER: Final = frozenset([
    "policy", "numprocs_max", "min_spare", "max_spare",
    "idle_timeout", "cgroup", "stdout_events_enabled", "stderr_events_enabled",
])  # fmt: skip

_NUMPROCS: Final = "here it is numprocs"
_DYNAMIC: Final = "scaling is not in this version; numprocs says how many processes there are"
_SYSLOG: Final = 'syslog is not in this version; with stdout_logfile = "-" the service manager can collect the output'
_CAPTURE: Final = "capturing parts of the output is not supported; leave it out"
_HTTP: Final = "the HTTP face is not in this version; commands use [manager].control"

FOREIGN: Final = {
    # Supervisor
    "nodaemon": "leave it out: fcgimgr runs in the foreground unless `fcgimgr run --daemon` is asked for",
    "silent": 'leave it out: [manager].logfile = "-" logs to standard error',
    "nocleanup": "leave it out: there are no automatic log files",
    "childlogdir": "leave it out: there are no automatic log files; say stdout_logfile",
    "strip_ansi": "not supported; leave it out",
    "minprocs": "here it is rlimit_nproc of the pool or program",
    "serverurl": "leave it out: commands find the manager by [manager].control",
    "stdout_syslog": _SYSLOG,
    "stderr_syslog": _SYSLOG,
    "stdout_capture_maxbytes": _CAPTURE,
    "stderr_capture_maxbytes": _CAPTURE,
    "events": "event listeners are not in this version",
    "buffer_size": "event listeners are not in this version",
    "files": 'write include = ["conf.d/*.toml"] at the top of the file',
    "include": "it stands above the first table: below one it is a key of that",
    # PHP-FPM
    "listen": "here it is socket",
    "listen.backlog": "here it is socket_backlog",
    "listen.owner": 'here it is socket_owner = "user:group"',
    "listen.group": 'here it is socket_owner = "user:group"',
    "listen.mode": "here it is socket_mode",
    "listen.allowed_clients": "here it is socket_allowed",
    "pm": _DYNAMIC,
    "pm.max_children": _NUMPROCS,
    "pm.start_servers": _DYNAMIC,
    "pm.min_spare_servers": _DYNAMIC,
    "pm.max_spare_servers": _DYNAMIC,
    "pm.process_idle_timeout": _DYNAMIC,
    "pm.max_requests": "here it is max_requests",
    "pm.status_path": "leave it out: `fcgimgr status` shows the pool",
    "ping.path": 'leave it out; ready = "ping" and `fcgimgr probe` do this',
    "request_terminate_timeout": "here it is request_timeout",
    "access.log": "here it is access_log",
    "access.format": "here it is access_format",
    "request_slowlog_timeout": "here it is slow_after",
    "catch_workers_output": "leave it out: output is always collected, see stdout_logfile",
    "decorate_workers_output": "here it is log_format and log_timestamps",
    "rlimit_files": "here it is rlimit_nofile",
    "process.priority": "here it is nice",
    "error_log": "here it is [manager].logfile",
    "log_level": "here it is [manager].loglevel",
    "pid": "here it is [manager].pidfile",
    "daemonize": "leave it out: `fcgimgr run --daemon` does it",
    "chdir": "here it is directory",
    "env": 'here it is environment = { NAME = "value" }',
    "emergency_restart_threshold": "leave it out: a failing process is started again after a growing pause",
    "process_control_timeout": "here it is stopwaitsecs",
    "security.limit_extensions": "this is for the web server or the application",
    # uWSGI, gunicorn, systemd, Docker
    "workers": _NUMPROCS,
    "processes": _NUMPROCS,
    "process": _NUMPROCS,
    "instances": _NUMPROCS,
    "replicas": _NUMPROCS,
    "children": _NUMPROCS,
    "max_children": _NUMPROCS,
    "bind": "here it is socket",
    "address": "here it is socket",
    "port": 'here it is socket = "127.0.0.1:9001"',
    "host": 'here it is socket = "127.0.0.1:9001"',
    "backlog": "here it is socket_backlog",
    "mode": "here it is socket_mode",
    "owner": "here it is socket_owner",
    "chmod": "here it is socket_mode, or control_mode in [manager]",
    "chown": "here it is socket_owner, or control_owner in [manager]",
    "chmod-socket": "here it is socket_mode",
    "chown-socket": "here it is socket_owner",
    "group": 'here it is user = "user:group"',
    "uid": "here it is user",
    "gid": 'here it is user = "user:group"',
    "username": "here it is user",
    "cwd": "here it is directory",
    "workdir": "here it is directory",
    "working_directory": "here it is directory",
    "env_file": "here it is environment_file",
    "module": 'here it is wsgi = "module:callable"',
    "app": 'here it is wsgi = "module:callable"',
    "callable": 'here it is wsgi = "module:callable"',
    "venv": 'here it is python = "VENV/bin/python"',
    "virtualenv": 'here it is python = "VENV/bin/python"',
    "home": 'here it is python = "VENV/bin/python"',
    "exec": "here it is command",
    "execstart": "here it is command",
    "args": "here they are words of command",
    "cmd": "here it is command",
    "max-requests": "here it is max_requests",
    "max-requests-delta": "here it is max_requests_jitter",
    "max_worker_lifetime": "here it is max_lifetime",
    "max-worker-lifetime": "here it is max_lifetime",
    "reload-on-rss": "here it is max_rss",
    "accesslog": "here it is access_log",
    "access_log_format": "here it is access_format",
    "access_logfile": "here it is access_log",
    "harakiri": "here it is request_timeout",
    "restart": "here it is autorestart",
    "restartsec": "here it is backoff_initial",
    "timeout": "here it is stopwaitsecs for stopping, request_timeout for requests",
    "stop_signal": "here it is stopsignal",
    "killsignal": "here it is stopsignal",
    "limitnofile": "here it is rlimit_nofile",
    "nofile": "here it is rlimit_nofile",
    "after": "here it is depends_on",
    "requires": "here it is depends_on",
    "autoload": "here it is autostart",
    "enabled": "here it is autostart",
}

FOREIGN_TABLES: Final = {
    "supervisord": "here it is [manager]",
    "supervisorctl": "leave it out: `fcgimgr status` finds the manager by [manager].control",
    "unix_http_server": "here it is [manager] with control, control_mode and control_owner",
    "inet_http_server": _HTTP,
    "web": "it is not in this version: " + _HTTP,
    "rpcinterface": "leave it out",
    "eventlistener": "event listeners are not in this version",
    "fcgi-program": "here it is [pool.NAME]",
    "fcgi_program": "here it is [pool.NAME]",
    "global": "here it is [manager]",
    "default": "here it is [defaults]",
    "uwsgi": "here it is [pool.NAME]",
    "service": "here it is [program.NAME]",
    "process": "here it is [program.NAME]",
}

_TABLES: Final = ("manager", "defaults", "pool", "program", "group", "include")


def unknown_table(name: str, value: Any) -> str:
    """The message for something at the top level of a file that is not known."""
    plain = name.lower()
    kind, colon, rest = plain.partition(":")
    if colon and kind in ("program", "group", "fcgi-program"):
        return f"unknown table; in TOML it is [{'pool' if kind == 'fcgi-program' else kind}.{rest.strip() or 'NAME'}]"
    for word in (plain, kind):
        if word in FOREIGN_TABLES:
            return f"unknown table; {FOREIGN_TABLES[word]}"
    if not isinstance(value, dict):
        return _stray_key(name)
    if plain in _TABLES[:-1]:
        return f"unknown table; did you mean [{plain}]?"
    close = difflib.get_close_matches(plain[:40], _TABLES, 1, 0.7)
    if close:
        name_too = ".NAME" if close[0] in ("pool", "program", "group") else ""
        return f"unknown table; did you mean [{close[0]}{name_too}]?"
    if "socket" in value or "listen" in value:
        return f"unknown table; did you mean [pool.{name}]?"
    if "command" in value:
        return f"unknown table; did you mean [program.{name}]?"
    return "unknown table; the tables are [manager], [defaults], [pool.NAME], [program.NAME] and [group.NAME]"


def unknown_key(table: str, key: str, value: object, allowed: Iterable[str]) -> str:
    """The message for a key that `table` ("manager", "defaults", "pool", "program" or "group") does not have."""
    full = f"{key}.{next(iter(value))}" if isinstance(value, dict) and value else key
    for word in (full.lower(), key.lower()):
        if word in LATER:
            return "it is not in this version of fcgimgr"
        if word in FOREIGN:
            return f"unknown key; {FOREIGN[word]}"
    names = list(allowed)
    plain = key.lower().replace("-", "_")
    if plain in names:
        return f"unknown key; did you mean {plain}?"
    elsewhere = _elsewhere(table, plain)
    if elsewhere:
        return elsewhere
    if plain.startswith("rlimit_"):
        return "unknown key; the limits are " + ", ".join(name for name in names if name.startswith("rlimit_"))
    close = difflib.get_close_matches(plain[:60], [*names, *LATER], 1, 0.7)
    if close and close[0] in LATER:
        return f"unknown key; {close[0]} is not in this version of fcgimgr"
    if close:
        return f"unknown key; did you mean {close[0]}?"
    return "unknown key; `fcgimgr schema` and docs/configuration.md list them all"


def _elsewhere(table: str, key: str) -> str | None:
    if table == "program" and key in keys(PoolSettings):
        return "only a pool has this key: make the table a [pool.NAME], or leave the key out"
    if table != "manager" and key in keys(ManagerSettings):
        return "this key belongs in [manager]"
    if table in ("manager", "group") and key in keys(PoolSettings):
        return "this key belongs in a [pool.NAME] or [program.NAME], or in [defaults] for all of them"
    if table in ("pool", "program", "defaults") and key in keys(GroupSettings):
        return "this key belongs in [group.NAME]"
    return None


def _stray_key(name: str) -> str:
    if name in keys(ManagerSettings) and name not in keys(PoolSettings):
        return "it stands above the first table; it belongs in [manager]"
    if name in keys(PoolSettings) or name.lower() in FOREIGN:
        mend = f" ({FOREIGN[name.lower()]})" if name.lower() in FOREIGN else ""
        return f"it stands above the first table; it belongs in [pool.NAME] or [program.NAME]{mend}"
    close = difflib.get_close_matches(name.lower()[:40], _TABLES, 1, 0.7)
    return "unknown key above the first table" + (
        f"; did you mean {close[0]}?" if close else "; only include stands there"
    )
