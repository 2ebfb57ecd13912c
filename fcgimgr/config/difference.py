"""What differs between the configuration that runs and another one, and what it takes to get from one to the other.

As little as possible: a setting that only the manager looks at is taken over where it is; a number of processes is a
scale; a socket's backlog, mode and owner change on the open socket; only what a process was started with (its command,
environment, user, addresses) takes new processes. What did not change is not touched.
"""

from __future__ import annotations

from collections.abc import Container
from enum import IntEnum
from typing import Any, Final

import msgspec

from fcgimgr.config.settings import Config, ManagerSettings, PoolSettings, ProcessSettings

#: Looked at when the manager decides; the processes never see them.
POLICY: Final = frozenset(
    {
        "autostart", "autorestart", "exitcodes", "startsecs", "startretries", "backoff_initial", "backoff_max",
        "on_fatal", "priority", "depends_on", "ready", "ready_timeout", "stopsignal", "stopwaitsecs", "stopasgroup",
        "killasgroup", "drain", "reload_timeout", "reload_watch", "reload_canary", "max_lifetime", "max_rss",
        "request_timeout",
    }
)  # fmt: skip

#: Of the open socket.
ON_THE_SOCKET: Final = frozenset({"socket_backlog", "socket_owner", "socket_mode"})

#: Of `[manager]`: taken over at once. The others are what the manager was started with.
MANAGER_LIVE: Final = frozenset(
    {
        "loglevel", "shutdown_timeout", "drain_delay", "exit_on_fatal", "identifier", "orphans", "control_mode",
        "control_owner",
    }
)  # fmt: skip


class How(IntEnum):
    """What a change takes, the least first."""

    ADOPT = 1  # nothing but to know it
    SOCKET = 2  # to change the open socket
    SCALE = 3  # to start or stop some processes
    RELOAD = 4  # new processes
    ADD = 5
    REMOVE = 6


class Change(msgspec.Struct, frozen=True):
    """What is to be done with one pool or program. `before` is its name until now, where it is renamed."""

    name: str
    how: frozenset[How]
    keys: tuple[str, ...] = ()
    before: str | None = None

    def __str__(self) -> str:
        name = f"{self.before} -> {self.name}" if self.before else self.name
        return f"{name}: {self.words}"

    @property
    def words(self) -> str:
        """What has changed, and what is done about it."""
        if How.ADD in self.how:
            return "new"
        if How.REMOVE in self.how:
            return "removed"
        words = {
            How.RELOAD: "reload",
            How.SCALE: "scale",
            How.SOCKET: "change the socket",
            How.ADOPT: "no process is touched",
        }
        doing = [words[how] for how in sorted(self.how, reverse=True) if how is not How.ADOPT] or [words[How.ADOPT]]
        changed = ", ".join(self.keys) or "name"
        return f"{changed} changed: {' and '.join(doing)}"


class Difference(msgspec.Struct, frozen=True):
    """All changes, in the order of the new file, removals last; `restart`: keys of [manager] that stay as they are."""

    changes: tuple[Change, ...] = ()
    manager: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes or self.manager or self.restart)


def difference(old: Config, new: Config, stale: Container[str] = ()) -> Difference:
    """What it takes to get from `old` to `new`. stale: who has another manager.environment than `new` has."""
    before: dict[str, ProcessSettings] = {**old.pools, **old.programs}
    after: dict[str, ProcessSettings] = {**new.pools, **new.programs}
    everybody = old.manager.environment != new.manager.environment
    removed = {name: settings for name, settings in before.items() if _gone(settings, after.get(name))}
    changes = []
    for name, settings in after.items():
        was = before.get(name)
        if was is None or _gone(was, settings):
            if (renamed := _same_but_for_the_name(settings, removed)) is not None:
                del removed[renamed]
                changes.append(Change(name, frozenset({How.RELOAD}), before=renamed))
            else:
                changes.append(Change(name, frozenset({How.ADD})))
        elif (change := _change(was, settings, everybody or name in stale)) is not None:
            changes.append(change)
    changes += [Change(name, frozenset({How.REMOVE})) for name in removed]
    keys = changed_keys(old.manager, new.manager)
    return Difference(
        changes=tuple(changes),
        manager=tuple(key for key in keys if key in MANAGER_LIVE),
        restart=tuple(key for key in keys if key not in MANAGER_LIVE and key != "environment"),
    )


def changed_keys(old: ManagerSettings | ProcessSettings, new: ManagerSettings | ProcessSettings) -> tuple[str, ...]:
    """The names of the settings that differ, in their order."""
    return tuple(key for key in new.__struct_fields__ if getattr(old, key, None) != getattr(new, key))


def _gone(settings: ProcessSettings, now: ProcessSettings | None) -> bool:
    return now is None or type(now) is not type(settings)


def _change(was: ProcessSettings, settings: ProcessSettings, everybody: bool) -> Change | None:
    keys = changed_keys(was, settings)
    how = {_how(key) for key in keys}
    if everybody:
        how.add(How.RELOAD)
        keys = (*keys, "manager.environment")
    if not how:
        return None
    return Change(settings.name, frozenset(how), tuple(dict.fromkeys(_written(key) for key in keys)))


def _how(key: str) -> How:
    if key in POLICY:
        return How.ADOPT
    if key in ON_THE_SOCKET:
        return How.SOCKET
    return How.SCALE if key == "numprocs" else How.RELOAD


def _written(field: str) -> str:
    """The key of the file that sets a field."""
    return {"sockets": "socket", "rlimits": "rlimit_…", "file_environment": "environment_file"}.get(field, field)


def _same_but_for_the_name(settings: ProcessSettings, removed: dict[str, ProcessSettings]) -> str | None:
    """The pool that went and listens where this one is to: its socket can be handed over without a gap."""
    if not isinstance(settings, PoolSettings):
        return None
    addresses = _addresses(settings)
    for name, was in removed.items():
        if isinstance(was, PoolSettings) and _addresses(was) & addresses:
            return name
    return None


def _addresses(settings: PoolSettings) -> set[str]:
    return {str(address) for address in settings.sockets}


def settings_of(config: Config, name: str) -> Any:
    """The settings of the pool or program of this name."""
    return config.pools.get(name) or config.programs.get(name)
