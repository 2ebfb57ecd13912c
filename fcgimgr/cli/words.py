"""The commands of others, and where each leads here: those of supervisorctl, systemctl, pm2, sv, php-fpm and nginx.

Whoever types them is often in a hurry, so nobody is led from a word that only looks to one that changes what runs. A
command that does is suggested where the word means it, or where it is a slip of a finger; never for a vague likeness.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from .symptoms import symptom

#: Commands that end processes, or change what runs.
CHANGING: Final = frozenset(
    ["stop", "reload", "update", "upgrade", "restart", "scale", "signal", "shutdown", "drain", "reopen"]
)

_STATUS: Final = "`fcgimgr status`"
_LOGS: Final = "`fcgimgr tail NAME` shows what a process or pool writes, `fcgimgr log` what the manager itself does"
_LOG: Final = "`fcgimgr log` shows what the manager itself does"
_CHECK: Final = "`fcgimgr check` looks at the configuration"
_UPDATE: Final = "`fcgimgr update` applies what has changed in the configuration, or refuses it whole"
_REREAD: Final = (
    "`fcgimgr check` looks at the configuration, `fcgimgr update --dry-run` says what would change, `fcgimgr update` "
    "applies it"
)
_RESTART: Final = "`fcgimgr reload NAME` puts new processes in the place of the old ones, `fcgimgr restart NAME` too"
_SIGNAL: Final = "`fcgimgr signal SIG NAME` sends a signal, as in `fcgimgr signal HUP app`"
_STOP: Final = "`fcgimgr stop NAME` stops a pool, a program or a process"
_START: Final = "`fcgimgr start NAME` starts it"
_RUN: Final = "`fcgimgr` alone runs the manager, `fcgimgr run --daemon` in the background"
_INIT: Final = "write a pool.toml: `fcgimgr help first-pool`; to see one at work: `fcgimgr demo`"
_RUNIT: Final = (
    "`fcgimgr start NAME`, `fcgimgr stop NAME`, `fcgimgr restart NAME`, `fcgimgr signal HUP NAME`, `fcgimgr status`; "
    "what becomes of the rest: `fcgimgr help from-runit-and-daemontools`"
)
_RUNIT_TREE: Final = (
    "`fcgimgr` is one process for all; what becomes of service directories: `fcgimgr help from-runit-and-daemontools`"
)
_SOCKET: Final = "the sockets stand in the configuration: `fcgimgr help socket`"
_USER: Final = "it stands in the configuration: `fcgimgr help user`"
_NUMPROCS: Final = "it stands in the configuration: `fcgimgr help numprocs`"
_WATCH: Final = (
    "`FORCE_COLOR=1 watch -c fcgimgr status` looks again and again, `fcgimgr status -v` shows the requests in hand"
)
_TABLE: Final = "it stands in the configuration, not in a command: change the file, then `fcgimgr update`"
_PROBE: Final = "`fcgimgr probe ready` and `fcgimgr probe live` are for health checks"
_DEV: Final = "`fcgimgr dev module:app` runs an application while you write it"
_SYSTEMD: Final = "systemd starts it at boot: `fcgimgr help systemd`"
_MANAGER: Final = "`fcgimgr shutdown` ends the manager and all that it runs; `fcgimgr stop NAME` one of them"
_SHELL: Final = "there is no shell of its own: give one command at a time; `fcgimgr help` lists them"
_TRACE: Final = (
    "`fcgimgr status -v` shows the requests in hand; a slow one is logged with its traceback: `fcgimgr help slow_after`"
)

# What is said, and to which words.
_ANSWERS: Final = (
    (
        _STATUS,
        "list ls ps l show describe desc info inspect stat is-active is-failed is-enabled list-units jlist prettylist",
    ),
    (_STATUS, "svstat pools processes programs"),
    (_WATCH, "top htop monit monitor watch dash dashboard uptime uwsgitop"),
    (_LOGS, "logs cat output stdout"),
    ("`fcgimgr tail --stderr NAME` shows what a process writes to its standard error", "stderr errors"),
    (_LOG, "maintail mainlog journal journalctl"),
    ("`fcgimgr events` shows what happened", "history audit"),
    (_CHECK, "avail configtest config conf test validate verify lint syntax doctor"),
    (_REREAD, "reread"),
    (_UPDATE, "add remove daemon-reload reconfigure apply refresh sync"),
    (_RESTART, "try-restart reload-or-restart force-reload condrestart graceful graceful-reload gracefulreload"),
    (_RESTART, "redeploy deploy bounce cycle respawn rolling-restart"),
    (_SIGNAL, "kill sendsignal hup usr1 usr2 int alarm interrupt pause cont"),
    (_STOP, "down halt terminate term"),
    (_START, "up launch resume unpause"),
    ("`fcgimgr start NAME` starts it again when it is FATAL", "reset-failed clear-failed retry"),
    ('a program that runs once has `ready = "exit"`: `fcgimgr help ready`', "once"),
    (_RUN, "daemon foreground"),
    ("a process has no terminal; `fcgimgr tail -f NAME` follows what it writes", "fg attach"),
    ("`fcgimgr reopen` opens the logs anew, for logrotate", "rotate logrotate flush reloadlogs"),
    ("rotation empties log files: `fcgimgr help logs`", "clear truncate"),
    (_INIT, "init new create ecosystem setup sample"),
    (_TABLE, "enable disable mask unmask edit set delete del rm register unregister"),
    (_SYSTEMD, "startup unstartup install uninstall boot"),
    ("the manager keeps its state by itself: `fcgimgr help succession`", "save dump resurrect"),
    (_PROBE, "health healthcheck healthz ready live alive"),
    (_DEV, "serve server runserver develop debug"),
    ("`fcgimgr status --json` has the numbers; `fcgimgr help monitoring`", "metrics stats statistics prometheus"),
    ("`fcgimgr ping` says the manager's pid, `fcgimgr status` those of the processes", "pid pids mainpid"),
    (_SHELL, "open shell exit quit bye interactive console"),
    ("`fcgimgr --version`", "version ver about"),
    ("`fcgimgr help`", "man docs doc manual usage commands ?"),
    ("`fcgimgr help configuration` has every key of the configuration", "keys options settings"),
    ("`fcgimgr reload NAME --canary 5%`", "canary"),
    ("`fcgimgr reload NAME --promote`", "promote"),
    ("`fcgimgr reload NAME --abort` discards what is starting or a canary", "abort cancel rollback undo"),
    (_TRACE, "trace strace stack traceback"),
    ("`fcgimgr request ADDRESS SCRIPT` asks a FastCGI socket", "curl get fetch call"),
    (_RUNIT, "sv svc svok runsvctl runsvchdir update-service s6-svc s6-svstat s6-rc rcctl"),
    (_RUNIT_TREE, "svscan runsvdir runsv supervise s6-svscan s6-supervise runit daemontools s6"),
    (
        "what becomes of its options: `fcgimgr help from-uwsgi-and-gunicorn`",
        "gunicorn uwsgi gunicorn.conf.py",
    ),
    ("what becomes of its configuration: `fcgimgr help from-supervisor`", "supervisor supervisord supervisorctl"),
    ("what becomes of its configuration: `fcgimgr help from-php-fpm`", "php-fpm fpm php-fpm.conf www.conf"),
    ("a pool does what it did: `fcgimgr help servers`", "spawn-fcgi multiwatch"),
    ("`fcgimgr schema` prints the JSON Schema of the configuration", "json-schema jsonschema"),
    (_MANAGER, "terminate-all kill-all stop-all stopall exit-all poweroff"),
    ("`fcgimgr scale NAME +1` is for one process more, -1 for one less", "incr decr ttin ttou grow shrink resize"),
    ("`fcgimgr scale NAME N`; for good `numprocs` in the configuration", "numprocs workers"),
)

WORDS: Final = {word: answer for answer, words in _ANSWERS for word in words.split()}

#: Options of others, before the name of a command.
OPTIONS: Final = {
    "-t": _CHECK,
    "-T": _CHECK,
    "--test": _CHECK,
    "--check-config": _CHECK,
    "--configtest": _CHECK,
    "-v": "`fcgimgr --version`; or after a command, as in `fcgimgr status -v`",
    "-V": "`fcgimgr --version`",
    "-d": _RUN,
    "-D": _RUN,
    "--daemon": _RUN,
    "--daemonize": _RUN,
    "-n": "it runs in the foreground anyway: `fcgimgr`",
    "--nodaemon": "it runs in the foreground anyway: `fcgimgr`",
    "-F": "it runs in the foreground anyway: `fcgimgr`",
    "--reload": _RESTART,
    "--stop": _MANAGER,
    "--config-file": "it is -c FILE",
    "--configuration": "it is -c FILE",
    "-a": _SOCKET,
    "-p": _SOCKET,
    "-b": _SOCKET,
    "-M": "it stands in the configuration: `fcgimgr help socket_mode`",
    "-U": "it stands in the configuration: `fcgimgr help socket_owner`",
    "-u": _USER,
    "-g": _USER,
    "-C": _NUMPROCS,
    "--socket-path": "it is -s SOCKET",
    "-w": _NUMPROCS,
}

#: What nginx takes after -s, where here the control socket stands.
OF_NGINX: Final = {
    "reload": f"{_UPDATE}; {_RESTART}",
    "reopen": "`fcgimgr reopen` opens the logs anew",
    "stop": _MANAGER,
    "quit": _MANAGER,
}


def meant_by_option(option: str) -> str | None:
    """What to say to somebody who gave it before a command. A long one may be a key, ours or one of others."""
    from fcgimgr.config.advice import foreign_key
    from fcgimgr.config.keys import keys
    from fcgimgr.config.settings import ManagerSettings, PoolSettings

    key = option.removeprefix("--")
    if told := OPTIONS.get(option):
        return told
    if key == option:
        return None
    if (ours := key.replace("-", "_")) in {**keys(PoolSettings), **keys(ManagerSettings)}:
        return f"it stands in the configuration: `fcgimgr help {ours}`"
    return f"what becomes of it: `fcgimgr help {key}`" if any(foreign_key(key)) else None


def meant(word: str, commands: Iterable[str]) -> str:
    """What to say to somebody who typed `word`, which is no command, as if it were one."""
    if told := WORDS.get(word.lower()):
        return f"here: {told}"
    if symptom(word):
        return f"what it means: `fcgimgr help {word}`"
    if word.endswith((".toml", ".conf", ".ini")):
        return f"a configuration is given with -c, as in `fcgimgr -c {word} check`"
    module, colon, name = word.partition(":")
    if colon and module.replace(".", "").isidentifier() and name.isidentifier():
        return f"to run an application while you write it: `fcgimgr dev {word}`"
    near = _near(word.lower(), list(commands))
    return f"did you mean {' or '.join(near)}?" if near else "`fcgimgr help` lists what there is"


def _near(word: str, commands: list[str]) -> list[str]:
    begun = [name for name in commands if name.startswith(word) and (len(word) > 2 or name not in CHANGING)]
    if begun and word:
        return begun
    slips = get_close_matches(word, [name for name in commands if name[0] == word[:1]], n=1, cutoff=0.75)
    return slips or get_close_matches(word, [name for name in commands if name not in CHANGING], n=1)
