"""What the keys of one pool or program must be to each other."""

import math
import os
import re
from collections.abc import Sequence
from typing import Final

from fcgimgr.config.address import TcpAddress, UnixAddress
from fcgimgr.config.expansions import expand
from fcgimgr.config.findings import Findings, TableRead
from fcgimgr.config.pools import NAME, somaxconn
from fcgimgr.config.processes import process_plan
from fcgimgr.config.settings import Config, PoolSettings, ProgramSettings

#: The keys of a wsgi pool alone; what to do instead where a command runs, foreign.INSTEAD says.
WSGI_KEYS: Final = (
    "server", "threads", "preload", "python", "pythonpath", "max_requests", "max_requests_jitter", "request_timeout",
    "slow_after", "slowlog", "access_log", "access_format",
)  # fmt: skip

#: Less than this no process of any language uses: whoever writes 512 means 512MB.
LEAST_RSS: Final = 1024 * 1024

# Keys that only say more about another.
_NEEDS: Final = {"max_requests_jitter": "max_requests", "access_format": "access_log", "slowlog": "slow_after"}

_SHELL_WORDS: Final = frozenset(["&&", "||", "|", ">", ">>", "<", "2>&1", ";", "&"])


def check_table(read: TableRead, config: Config, findings: Findings) -> None:
    """Find what is wrong within one table, and try the plans of its processes."""
    name = read.table.name
    if name == "all" or not re.fullmatch(NAME, name):
        findings.problem(
            read.table, "", 'this name will not do: no spaces, no ":/*,%", no "-" at the beginning, and not "all"'
        )
    settings = read.settings
    _what_runs(read, findings)
    if settings is None:
        return
    _numbers(read, settings, findings)
    _commands(read, settings, findings)
    if isinstance(settings, PoolSettings):
        _sockets(read, settings, findings)
        _wsgi(read, settings, findings)
        if settings.ready == "exit":
            findings.problem(read, "ready", '"exit" is for programs that do one thing and end: a pool is to serve')
    elif settings.ready not in ("startsecs", "notify", "exit"):
        findings.problem(
            read, "ready", f'"{settings.ready}" is for pools: a program has no socket; write "notify" or leave it out'
        )
    _plans(read, settings, config, findings)


def _what_runs(read: TableRead, findings: Findings) -> None:
    if "command" in read.given and "wsgi" in read.given:
        findings.problem(read, "wsgi", "give either command or wsgi, not both")
    elif "command" not in read.given and "wsgi" not in read.given:
        wsgi = ' (or wsgi = "module:callable")' if read.table.kind == "pool" else ""
        findings.absent(
            "defaults", read, "command", f'is missing: say what to run, as in command = "python3 app.py"{wsgi}'
        )


def _numbers(read: TableRead, settings: PoolSettings | ProgramSettings, findings: Findings) -> None:
    if settings.backoff_initial > settings.backoff_max:
        key = "backoff_max" if "backoff_max" in read.given else "backoff_initial"
        findings.problem(
            read, key, f"backoff_initial ({settings.backoff_initial:g}) is above backoff_max ({settings.backoff_max:g})"
        )
    if settings.stopasgroup and not settings.killasgroup:
        findings.problem(read, "killasgroup", "stopasgroup = true needs killasgroup = true; leave killasgroup out")
    is_ended = settings.autorestart == "unexpected" or settings.ready == "exit"
    if read.own("exitcodes") and not is_ended and isinstance(settings, ProgramSettings):
        findings.warning(read, "exitcodes", 'has no effect without autorestart = "unexpected" or ready = "exit"')
    if settings.max_rss is not None and settings.max_rss < LEAST_RSS:
        findings.problem(read, "max_rss", f'{settings.max_rss} bytes are less than any process uses; as in "512MB"')
    if settings.redirect_stderr and read.own("stderr_logfile"):
        findings.warning(read, "stderr_logfile", "has no effect with redirect_stderr = true")


def _commands(read: TableRead, settings: PoolSettings | ProgramSettings, findings: Findings) -> None:
    if not isinstance(read.given["command"].entries["command"] if "command" in read.given else None, str):
        return  # whoever writes a list of words means them as they are
    if os.path.basename(settings.command[0] if settings.command else "") == "spawn-fcgi":
        findings.warning(
            read,
            "command",
            "spawn-fcgi leaves what it starts, on a socket of its own; write what stands behind its --, or after its "
            "-f: `fcgimgr help servers`",
        )
    if (mend := _shell_command(settings.command)) is not None:
        findings.warning(read, "command", f'there is no shell, "{settings.command[0]}" is taken for a program; {mend}')
    for word in settings.command:
        if word.startswith("#"):
            findings.warning(read, "command", f'there is no shell, "{word}" and what follows are passed as words')
            break
        if word in _SHELL_WORDS:
            mend = f'as in ["sh", "-c", "exec … {word} …"]'
            findings.warning(
                read, "command", f'there is no shell, "{word}" is passed as a word; if it is meant, {mend}'
            )
        elif match := re.search(r"\$(?:\{(\w+)\}|(\w+))", word):
            name = match[1] or match[2]
            findings.warning(read, "command", f"there is no shell, {match[0]} stays as it is; write %(ENV_{name})s")
        elif word.startswith("~/"):
            findings.warning(
                read, "command", f'there is no shell, "{word}" stays as it is; write %(ENV_HOME)s{word[1:]}'
            )


def _shell_command(words: Sequence[str]) -> str | None:
    """What to write in place of a command that only a shell has; None: it is none."""
    first = words[0] if words else ""  # one that could not be read has none
    if re.fullmatch(r"[A-Za-z_]\w*=.*", first, re.DOTALL):
        name, _, value = first.partition("=")
        return f'write environment = {{ {name} = "{value}" }}'
    if first == "cd":
        return "set directory"
    if first == "exec":
        return "leave it out"
    if first in ("source", ".", "export"):
        return "write environment_file, or environment"
    return None


def _sockets(read: TableRead, settings: PoolSettings, findings: Findings) -> None:
    if not any(isinstance(address, UnixAddress) and address.path[0] != "@" for address in settings.sockets):
        for key in ("socket_mode", "socket_owner"):
            if read.own(key):
                where = str(settings.sockets[0])
                findings.problem(read, key, f"is for Unix sockets, and the pool listens on {where}; leave it out")
    if not settings.can_have_canary and read.own("reload_canary"):
        other = next(address for address in settings.sockets if not isinstance(address, TcpAddress))
        findings.problem(read, "reload_canary", f"is for TCP sockets, and the pool listens on {other}; leave it out")
    if len(settings.sockets) > 1 and settings.socket_pass == "stdin":
        findings.problem(
            read,
            "socket_pass" if "socket_pass" in read.given else "socket",
            f"as fd 0 a process gets only the first of {len(settings.sockets)} sockets, and nobody serves the others; "
            'write socket_pass = "systemd" or "env" if the program can take them so, else make a pool of each',
        )
    if read.own("socket_env") and settings.socket_pass != "env":
        findings.warning(read, "socket_env", 'has no effect without socket_pass = "env"')
    limit = somaxconn()
    if settings.socket_backlog > limit and "socket_backlog" in read.given:
        findings.warning(
            read,
            "socket_backlog",
            f"the kernel caps {settings.socket_backlog} at {limit}; raise it with sysctl net.core.somaxconn",
        )


def _wsgi(read: TableRead, settings: PoolSettings, findings: Findings) -> None:
    if settings.wsgi is None:
        if "wsgi" not in read.given:
            for key in filter(read.own, WSGI_KEYS):
                from fcgimgr.config.advice import of_wsgi_alone

                findings.problem(read, key, of_wsgi_alone(key))
        return
    for key, without in _NEEDS.items():
        if read.own(key) and getattr(settings, without) is None:
            findings.warning(read, key, f"has no effect without {without}")
    if settings.slow_after is not None and settings.slow_after >= (settings.request_timeout or math.inf):
        findings.warning(read, "slow_after", "has no effect: request_timeout ends a request sooner")
    if settings.chroot is not None:
        for key in ("access_log", "slowlog"):
            if key in read.given and getattr(settings, key) != "-":
                findings.problem(read, key, 'a file cannot be opened from within a chroot; write "-"')
    if read.own("drain"):
        findings.problem(read, "drain", "the workers of a wsgi pool always finish what they have in hand; leave it out")
    if settings.ready_path is not None:
        findings.problem(read, "ready", 'the workers of a wsgi pool speak FastCGI; write "ping" or leave it out')
    if read.own("socket_blocking"):
        findings.problem(read, "socket_blocking", "a wsgi pool sets it by itself; leave it out")
    if settings.socket_pass == "env" and settings.socket_env != "FCGI_LISTEN_FD":
        findings.problem(read, "socket_env", "a wsgi pool knows FCGI_LISTEN_FD only; leave it out")


def _preload(read: TableRead, settings: PoolSettings, config: Config, findings: Findings) -> None:
    """It is imported once, so where from cannot differ."""
    if settings.wsgi is None or not settings.preload:
        return
    first, second = (process_plan(settings, config, index) for index in (0, 1))
    where = "cannot differ from process to process with preload = true, which imports the application once"
    if first.directory != second.directory:
        findings.problem(read, "directory", f"{where}; leave the process's number and name out")
    if first.environment.get("PYTHONPATH") != second.environment.get("PYTHONPATH"):
        key = "pythonpath" if "pythonpath" in read.given else "environment"
        findings.problem(read, key, f"PYTHONPATH {where}; leave the process's number and name out")


def _plans(read: TableRead, settings: PoolSettings | ProgramSettings, config: Config, findings: Findings) -> None:
    # Templates differ only in the number, so the first and the last process tell all that can go wrong.
    try:
        plans = [process_plan(settings, config, index) for index in {0, settings.numprocs - 1}]
    except ValueError as error:
        findings.problem(read, "", str(error))
        return
    if isinstance(settings, PoolSettings):
        _preload(read, settings, config, findings)
    for plan in plans:
        if plan.name == "all" or not re.fullmatch(NAME, plan.name):
            findings.problem(
                read,
                "process_name",
                f'"{plan.name}" will not do as a name: no spaces, no ":/*,%", no "-" at the beginning',
            )
    for key in ("directory", "stdout_logfile", "stderr_logfile", "access_log", "slowlog"):
        paths = {path for plan in plans if (path := getattr(plan, key)) not in (None, "-", "none")}
        if not all(path.startswith("/") for path in paths):  # only where it begins with a variable of its own
            mend = f"write %(here)s/{getattr(settings, key)}"
            findings.problem(read, key, f'"{min(paths)}" is not an absolute path; {mend}')
    names: dict[str, str | int] = {"program_name": settings.name, "numprocs": 0}
    names.update({f"ENV_{name}": "" for name in settings.environment})
    if settings.numprocs > 1 and expand(settings.process_name, {**names, "process_num": 1}) == expand(
        settings.process_name, {**names, "process_num": 2}
    ):
        mend = f"{read.table.name}_%(process_num)02d"
        findings.problem(
            read, "process_name", f'{settings.numprocs} processes need different names; write "{mend}" or leave it out'
        )
    if settings.chroot is not None and "directory" in read.given and settings.directory is not None:
        written = read.given["directory"].entries["directory"]
        if isinstance(written, str) and not written.startswith(("/", "%(")):
            findings.problem(read, "directory", "with chroot it is a path inside of it; write it from its / on")
