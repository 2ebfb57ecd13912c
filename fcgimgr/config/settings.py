"""The settings, typed and frozen: every table and key of a configuration, with its default and its description.

A field is a key of the TOML file. Its annotation holds the kind (how the value is read) and the description a user
sees; the reader, the JSON Schema and docs/configuration.md are all made from these fields and nothing else (keys.py),
so that they cannot disagree. The few fields that are no keys have no kind.

Settings hold no account ids, no open files and nothing else of the machine: two readings of equal files are equal.
The tables of pools and programs are in pools.py; import them from here.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fcgimgr.config.compounds import Environment, Names
from fcgimgr.config.pools import MB, NAME, PoolSettings, ProcessSettings, ProgramSettings
from fcgimgr.config.scalars import Account, Choice, Flag, Octal, Path, Seconds, Size, Text, Whole

__all__ = [
    "Config",
    "GroupSettings",
    "ManagerSettings",
    "PoolSettings",
    "ProcessSettings",
    "ProgramSettings",
    "default_control",
]

_LEVELS: Final = {
    "warn": 'write "warning"',
    "notice": 'write "info"',
    "critical": 'write "error"',
    "alert": 'write "error"',
    "trace": 'write "debug"',
    "blather": 'write "debug"',
}

_PRESETS: Final = {
    **dict.fromkeys(("supervisor", "nginx", "swoole", "daemonmcn"), "that preset is not in this version"),
    "phpfpm": 'write "php-fpm"',
    "fpm": 'write "php-fpm"',
}


class ManagerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[manager]`: the manager itself."""

    control: Annotated[
        str,
        Path(),
        Meta(
            description=(
                "Path of the control socket, through which `fcgimgr status` and the other commands reach the manager. "
                "CONFIGNAME is the configuration file's name without its ending: two projects of one user whose files "
                "have the same name need a `control` each."
            ),
            extra={
                "default": "`/run/fcgimgr/CONFIGNAME.sock` as root; else `$XDG_RUNTIME_DIR/fcgimgr/CONFIGNAME.sock`, "
                "or without that variable `/tmp/fcgimgr-UID/CONFIGNAME.sock`"
            },
        ),
    ]
    control_mode: Annotated[
        int,
        Octal(),
        Meta(
            description=(
                'Permissions of the control socket, in octal. Whoever may write to it controls the manager: `"0660"` '
                "with `control_owner` opens it to a group."
            )
        ),
    ] = 0o600
    control_owner: Annotated[
        str | None,
        Account(group_alone=True),
        Meta(
            description=(
                'Owner of the control socket: `"user"`, `"user:group"` or `":group"`. Without it, the user the manager '
                "runs as."
            )
        ),
    ] = None
    pidfile: Annotated[
        str | None,
        Path(),
        Meta(
            description=(
                "File to write the manager's process id to. It is locked while the manager runs, so a second manager "
                "on it is refused. Without it, none is written."
            )
        ),
    ] = None
    state_dir: Annotated[
        str,
        Path(),
        Meta(
            description="Directory for what the manager must remember about its processes while it runs.",
            extra={"default": "the path of `control` with the ending `.state`"},
        ),
    ]
    logfile: Annotated[
        str,
        Path(words=("-",)),
        Meta(description='The manager\'s own log: a file, or `"-"` for standard error.'),
    ] = "-"
    loglevel: Annotated[
        Literal["debug", "info", "warning", "error"],
        Choice(words=("debug", "info", "warning", "error"), meant=_LEVELS),
        Meta(description="The least important messages that still go to the manager's log."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Choice(words=("text", "json")),
        Meta(description="Form of the manager's log: a line of text, or one JSON object a line."),
    ] = "text"
    logfile_maxbytes: Annotated[
        int,
        Size(),
        Meta(description="Size at which the log is rotated to `logfile.1`; 0 for never."),
    ] = 50 * MB
    logfile_backups: Annotated[
        int,
        Whole(low=0, high=10_000),
        Meta(description="How many rotated logs are kept; 0 for none."),
    ] = 10
    logfile_owner: Annotated[
        str | None,
        Account(group_alone=True),
        Meta(
            description=(
                'Owner of the log when it is made: `"user"`, `"user:group"` or `":group"`. Without it, the user the '
                'manager runs as. Example: `":adm"`.'
            )
        ),
    ] = None
    logfile_mode: Annotated[
        int | None,
        Octal(),
        Meta(description="Permissions of the log when it is made, in octal.", extra={"default": '`"0640"`'}),
    ] = None
    umask: Annotated[
        int,
        Octal(),
        Meta(description="File mode mask of the manager, in octal; processes get it too unless their table says else."),
    ] = 0o022
    directory: Annotated[
        str | None,
        Path(),
        Meta(
            description=(
                "Directory the manager changes to when it starts; processes without a `directory` of their own run "
                "there. Without it, where it was started (`/` with `--daemon`)."
            )
        ),
    ] = None
    minfds: Annotated[
        int,
        Whole(low=128, high=2**20),  # listeners have descriptors from 64 on (linux/tcpsocket.py)
        Meta(
            description=(
                "Open files the manager must be able to have: it raises its own limit to this and does not start where "
                "it cannot."
            )
        ),
    ] = 1024
    environment: Annotated[
        dict[str, str],
        Environment(),
        Meta(
            description=(
                "Environment variables for every process; those of a pool or program come on top. They are known as "
                '`%(ENV_X)s` too. Example: `{ LANG = "C.UTF-8" }`.'
            )
        ),
    ] = {}
    shutdown_timeout: Annotated[
        float,
        Seconds(),
        Meta(
            description="Seconds that a shutdown may take in all; processes that are still there after it are killed."
        ),
    ] = 30.0
    drain_delay: Annotated[
        float,
        Seconds(),
        Meta(
            description=(
                "Seconds to go on serving after SIGTERM while `fcgimgr probe ready` says no: the time that a load "
                "balancer takes to notice. Then the shutdown begins, with `shutdown_timeout` to itself."
            )
        ),
    ] = 0.0
    exit_on_fatal: Annotated[
        bool,
        Flag(),
        Meta(
            description=(
                "End the manager, with exit code 1, as soon as a pool or program is FATAL: in a container, so that the "
                "orchestrator sees it."
            )
        ),
    ] = False
    orphans: Annotated[
        Literal["keep", "kill"],
        Choice(words=("keep", "kill")),
        Meta(
            description=(
                "What a manager does at its start with processes that a manager before it left behind when it was "
                'killed: `"keep"` takes them over with their sockets and logs, as they are; `"kill"` stops them (by '
                "their stopsignal, after stopwaitsecs by SIGKILL) and starts new ones."
            )
        ),
    ] = "keep"
    signals: Annotated[
        Literal["php-fpm"],
        Choice(words=("php-fpm",), meant=_PRESETS),
        Meta(
            description=(
                'What signals to the manager mean: `"php-fpm"` is TERM, INT and QUIT to stop, HUP to update, USR1 to '
                "reopen the logs, USR2 to reload all."
            )
        ),
    ] = "php-fpm"
    identifier: Annotated[
        str,
        Text(wanted="one word", pattern=r"[^\s\x00-\x1f]{1,64}"),
        Meta(description="Name of this manager in its log."),
    ] = "fcgimgr"


def default_control(path: str | os.PathLike[str], environ: Mapping[str, str] = os.environ) -> str:
    """Where the control socket of the configuration at `path` is when the file does not say it."""
    name = os.path.splitext(os.path.basename(os.path.abspath(path)))[0]
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0:
        directory = "/run/fcgimgr"
    elif runtime.startswith("/"):  # the XDG base directory specification: a relative path is to be ignored
        directory = os.path.join(runtime, "fcgimgr")
    else:
        directory = f"/tmp/fcgimgr-{os.geteuid()}"
    return os.path.join(directory, f"{name}.sock")


class GroupSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[group.NAME]`: one name for several pools and programs in commands."""

    name: str
    programs: Annotated[
        tuple[str, ...],
        Names(what="names of pools and programs", pattern=NAME),
        Meta(
            description='The pools and programs of the group, for commands on all of them. Example: `["app", "queue"]`.'
        ),
    ]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration, checked. path: absolute; warnings: lines for the user, none of them an obstacle;
    activated: the Python of the virtualenv that is active, where a pool has it for want of one of its own.
    """

    path: str
    manager: ManagerSettings
    pools: dict[str, PoolSettings] = {}
    programs: dict[str, ProgramSettings] = {}
    groups: dict[str, GroupSettings] = {}
    warnings: tuple[str, ...] = ()
    activated: str | None = None
