"""What runit's, daemontools' and spawn-fcgi's words are here, and those of systemd, Docker and pm2; see foreign.py."""

from typing import Final

from fcgimgr.config.foreign_rows import one

_RLIMITS: Final = "`rlimit_as`, `rlimit_nofile`, `rlimit_nproc`, `rlimit_core`, `rlimit_fsize`"

RUNIT: Final = (
    one("a service directory", "`[program.NAME]`, or `[pool.NAME]` with a `socket`"),
    one("`run`", '`command`, a line without a shell, or `command = "./run"` with `directory`'),
    one(
        "`log/run`, `multilog`, `svlogd`",
        '`stdout_logfile` with rotation built in; `log_timestamps = "tai64n"` writes what tai64nlocal reads. A pipe '
        '(`"|multilog t ./main"`) is refused',
    ),
    one("`multilog` with `s`, `n`; the file `config` of svlogd", "`stdout_logfile_maxbytes`, `stdout_logfile_backups`"),
    one(
        "`finish`",
        "leave it out: no program is run after another. Why a process ended is in `fcgimgr events` and in the log; "
        "what is to be cleaned up, the program does at its start",
    ),
    one("`down`", "`autostart = false`"),
    one(
        "`check` of runit, `notification-fd` of s6",
        '`ready`: `"notify"` (READY=1, as for systemd), `"ping"`, `"http:/PATH"`; `depends_on` waits for it',
    ),
    one(
        "`envdir`, `chpst -e`",
        "`environment_file`: one file of lines NAME=value in place of a directory with a file for each; or "
        '`environment = { NAME = "value" }`',
    ),
    one("`chpst`", f"a key for each option: `user`, `environment_file`, `nice`, `chroot`; the limits are {_RLIMITS}"),
    one("`setuidgid`, `chpst -u`", "`user`"),
    one("`envuidgid`, `chpst -U`", '`environment = { UID = "33", GID = "33" }`; they change nobody\'s rights'),
    one("`softlimit`, `chpst -m -o -p -c -f`", f"{_RLIMITS}; for memory that is really used, `max_rss`"),
    one("`chpst -n`", "`nice`"),
    one("`chpst -/`", "`chroot`"),
    one("`setlock`, `chpst -l`", "leave it out, or write `flock -n /run/lock/x ./run` as the command"),
    one(
        "`fghack`, `pgrphack`, `chpst -P`",
        "leave it out: each process has a session of its own, and must stay in the foreground",
    ),
    one("`sv start`, `svc -u`", "`fcgimgr start mailer`"),
    one("`sv stop`, `svc -d`", "`fcgimgr stop mailer`"),
    one("`sv restart`, `svc -t`", "`fcgimgr restart mailer`: it waits, and says what came of it"),
    one(
        "`sv once`, `svc -o`",
        '`autorestart = false` and `ready = "exit"`, then `fcgimgr start mailer`',
    ),
    one("`sv hup`, `svc -h`, and the other letters", "`fcgimgr signal HUP mailer`"),
    one("`sv status`, `svstat`", "`fcgimgr status`; exit code 3 when something is not running"),
    one("`sv check`", "`fcgimgr probe ready`"),
    one("`svok`", "`fcgimgr ping`"),
    one(
        "a link in `/etc/service`, seen within 5 s",
        "a table in the file, or a file in `conf.d` with `include`; then `fcgimgr update`",
    ),
    one("removing the link, then `svc -dx`", "take the table out, then `fcgimgr update`"),
    one("`svscan`, `runsvdir`, `supervise`, `runsv`", "the manager, one process for all: `fcgimgr`"),
)

SPAWN_FCGI: Final = (
    one("what stands after `--`, or after `-f`", "`command`; with `-f` a shell had split it, here none does"),
    one("`-s PATH`", '`socket = "/run/fcgimgr/app.sock"`'),
    one("`-a ADDRESS -p PORT`", '`socket = "127.0.0.1:9001"`; without `-a`, which is all addresses, `"*:9001"`'),
    one("`-b`", "`socket_backlog`"),
    one("`-M`", '`socket_mode`; `"0660"` unless it is said'),
    one("`-U`, `-G`", '`socket_owner = "user:group"`'),
    one("`-u`, `-g`", '`user = "user:group"`'),
    one("`-F`", "`numprocs`: each of them is started again when it dies"),
    one("`-C`", '`numprocs` and `environment = { PHP_FCGI_CHILDREN = "0" }`, or [the number there](#php)'),
    one("`-d`", "`directory`"),
    one("`-c`", "`chroot`"),
    one("`-S`", "leave it out: the socket is made outside of the chroot, always"),
    one("`-P`", "leave it out: `fcgimgr status` has the pids; that of the manager: `pidfile` in `[manager]`"),
    one("`-n`, and a supervisor around it", "leave it out: the manager is that supervisor"),
)

_NUMPROCS: Final = "`numprocs`"
_COMMAND: Final = "`command`"

#: Of systemd, Docker and pm2, and what people try: of no table in the docs.
OTHERS: Final = (
    one("`username`", "`user`"),
    one("`exec`, `execstart`, `cmd`, `script`, `entrypoint`", _COMMAND),
    one("`args`, `arguments`", "words of `command`"),
    one("`enabled`, `autoload`", "`autostart`"),
    one("`execstartpost`, `execstop`", "leave it out: no program is run before or after another"),
    one("`env_file`, `environmentfile`", "`environment_file`, of lines NAME=value"),
    one("`ulimit`", "`rlimit_as`, `rlimit_nofile` and the other `rlimit_` keys"),
    one("`log`", "`stdout_logfile`"),
    one("`instances`, `replicas`, `process`, `children`, `max_children`", _NUMPROCS),
    one("`address`, `bind_address`", "`socket`"),
    one("`port`, `host`", '`socket = "127.0.0.1:9001"`'),
    one("`mode`, `chmod`", "`socket_mode`"),
    one("`owner`, `chown`", "`socket_owner`"),
    one("`include`", "it stands above the first table: below one it is a key of that"),
    one("`app`", '`wsgi = "module:callable"`'),
    one("`cwd`, `workdir`, `working_directory`, `workingdirectory`", "`directory`"),
    one("`access_logfile`", "`access_log`"),
    one("`restart`", "`autorestart`"),
    one("`restartsec`, `restart_delay`", "`backoff_initial`"),
    one("`max_restarts`", "`startretries`"),
    one("`max_memory_restart`", "`max_rss`"),
    one("`timeoutstopsec`, `kill_timeout`, `stop_grace_period`, `stop_timeout`", "`stopwaitsecs`"),
    one("`stop_signal`, `killsignal`", "`stopsignal`"),
    one("`limitnofile`, `nofile`", "`rlimit_nofile`"),
    one("`after`, `requires`, `wants`", "`depends_on`"),
    one("`[service]`, `[process]`", "`[program.NAME]`"),
    one("`[default]`", "`[defaults]`"),
    one("`[web]`", "leave it out: a page over HTTP is not in this version; commands use `[manager].control`"),
)
