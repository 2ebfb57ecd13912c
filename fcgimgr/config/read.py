"""A configuration file in, a checked `Config` out.

The whole is checked before any of it is used: `read` either returns settings that fit together or raises one
ConfigError with all the problems it could find. It opens nothing but the files of the configuration (and the
environment files they name), so that `fcgimgr check` may be run by anybody, beside a running manager.
"""

import os
import signal
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import msgspec.structs

from fcgimgr.config.checks import check_table
from fcgimgr.config.crosschecks import check_together
from fcgimgr.config.envfile import read_environment_file
from fcgimgr.config.expansions import PROCESS_NAMES
from fcgimgr.config.files import load
from fcgimgr.config.findings import Findings, TableRead
from fcgimgr.config.keys import Key, keys
from fcgimgr.config.place import Place
from fcgimgr.config.problems import ConfigError, Problem
from fcgimgr.config.selfdraining import drains_itself
from fcgimgr.config.settings import (
    Config,
    GroupSettings,
    ManagerSettings,
    PoolSettings,
    ProgramSettings,
    default_control,
)
from fcgimgr.config.tables import Table, Tables, sort_tables
from fcgimgr.config.virtualenv import activated_python

__all__ = ["ConfigError", "Problem", "read"]

Names = dict[str, str | int]
_STRUCTS: Final = {"manager": ManagerSettings, "program": ProgramSettings, "group": GroupSettings}


def read(path: str | os.PathLike[str], environ: Mapping[str, str]) -> Config:
    """The configuration at `path`; ConfigError with every problem in it.

    environ: for `%(ENV_X)s`, XDG_RUNTIME_DIR and VIRTUAL_ENV; os.environ, but for a test.
    """
    path = os.fspath(path)
    everywhere: Names = {f"ENV_{name}": value for name, value in environ.items()}
    everywhere["host_node_name"] = os.uname().nodename
    loaded = load(path, everywhere)
    if not loaded.files:
        raise ConfigError(tuple(loaded.problems))
    tables = sort_tables(loaded.files)
    unseen = tables.unseen() if loaded.problems else frozenset()
    findings = Findings([*loaded.problems, *tables.problems], loaded.warnings, unseen)
    config = _config(path, environ, tables, everywhere, findings)
    warnings = tuple(map(str, findings.warnings))
    if findings.problems:
        raise ConfigError(tuple(findings.problems), warnings)
    return msgspec.structs.replace(config, warnings=warnings)


def _config(path: str, environ: Mapping[str, str], tables: Tables, everywhere: Names, findings: Findings) -> Config:
    manager = _manager(path, environ, tables.manager, everywhere, findings)
    names = {**everywhere, **{f"ENV_{name}": value for name, value in manager.environment.items()}}
    groups = {table.name: group for table in tables.groups if (group := _group(table, names, findings))}
    group_of: dict[str, str] = {}
    for name, group in groups.items():
        for member in group.programs:
            group_of.setdefault(member, name)
    of_defaults: set[str] = set()
    pools: dict[str, PoolSettings] = {}
    programs: dict[str, ProgramSettings] = {}
    reads: list[TableRead] = []
    python = activated_python(environ)
    for table in (*tables.pools, *tables.programs):
        inner: Names = {**names, "program_name": table.name, "group_name": group_of.get(table.name, table.name)}
        reading = _ProcessTable(table, tables.defaults, inner, findings, python)
        reads.append(reading.read())
        of_defaults |= reading.of_defaults
        settings = reads[-1].settings
        if isinstance(settings, PoolSettings):
            pools[table.name] = settings
        elif settings is not None:
            programs[table.name] = settings
    if tables.defaults is not None:
        _check_defaults(tables.defaults, names, of_defaults, findings)
    config = Config(
        path=os.path.abspath(path),
        manager=manager,
        pools=pools,
        programs=programs,
        groups=groups,
        activated=python if any(map(_is_activated, reads)) else None,
    )
    for one in reads:
        check_table(one, config, findings)
    check_together(config, tables, reads, findings, path)
    return config


def _is_activated(one: TableRead) -> bool:
    """Whether the table's Python is that of the virtualenv that is active."""
    return isinstance(one.settings, PoolSettings) and one.settings.python is not None and "python" not in one.given


def _manager(
    path: str, environ: Mapping[str, str], table: Table | None, names: Names, findings: Findings
) -> ManagerSettings:
    values: dict[str, Any] = {}
    if table is not None:
        for key in _known(table, keys(ManagerSettings), findings):
            _read_key(key, table, {**names, "here": table.file.directory}, values, findings)
    control = values.setdefault("control", default_control(path, environ))
    values.setdefault("state_dir", control.removesuffix(".sock") + ".state")
    return ManagerSettings(**values)


def _group(table: Table, names: Names, findings: Findings) -> GroupSettings | None:
    values: dict[str, Any] = {}
    for key in _known(table, keys(GroupSettings), findings):
        _read_key(key, table, {**names, "here": table.file.directory, "group_name": table.name}, values, findings)
    if "programs" not in table.entries:
        findings.problem(table, "programs", 'is missing: say which pools and programs, as in programs = ["app"]')
    return GroupSettings(name=table.name, **values) if values else None


class _ProcessTable:
    """Reading one pool or program: its own keys over those of [defaults].

    python: of the virtualenv that is active; of_defaults: the keys that were read from [defaults].
    """

    def __init__(
        self, table: Table, defaults: Table | None, names: Names, findings: Findings, python: str | None
    ) -> None:
        self._struct = PoolSettings if table.kind == "pool" else ProgramSettings
        self._keys = keys(self._struct)
        self._table = table
        self._defaults = defaults
        self._names = names
        self._later: frozenset[str] = PROCESS_NAMES
        self._findings = findings
        self._python = python
        self._values: dict[str, Any] = {}
        self._given: dict[str, Table] = {}
        self.of_defaults: set[str] = set()

    def read(self) -> TableRead:
        own = list(_known(self._table, self._keys, self._findings, self._defaults))
        if self._defaults is not None:
            self._given = {name: self._defaults for name in self._defaults.entries if name in self._keys}
            for name, other in (("command", "wsgi"), ("wsgi", "command")):
                if name in self._table.entries:
                    self._given.pop(other, None)
            self.of_defaults = set(self._given)
        self._given.update({key.name: self._table for key in own})
        self._read_environment()
        for name, table in self._given.items():
            if name not in ("environment", "environment_file"):
                self._read(self._keys[name], table)
        return TableRead(self._table, self._settings(), self._given)

    def _read_environment(self) -> None:
        """The variables come first, for the other keys may expand them."""
        layers = [table for table in (self._defaults, self._table) if table and "environment" in table.entries]
        if "environment_file" in self._given:
            self._read(self._keys["environment_file"], self._given["environment_file"])
        if "environment_file" in self._values:
            try:
                variables = read_environment_file(self._values["environment_file"])
            except ValueError as error:
                self._findings.unread(self._given["environment_file"], "environment_file", str(error))
            else:
                self._values["file_environment"] = variables
                self._names.update({f"ENV_{name}": value for name, value in variables.items()})
        merged: dict[str, str] = {}
        for table in layers:
            self._values.pop("environment", None)
            self._read(self._keys["environment"], table)
            merged.update(self._values.get("environment", {}))
        if merged:
            self._values["environment"] = merged
        self._later = PROCESS_NAMES | {f"ENV_{name}" for name in merged}

    def _read(self, key: Key, table: Table) -> None:
        names = {**self._names, "here": table.file.directory}
        _read_key(key, table, names, self._values, self._findings, self._later)

    def _settings(self) -> PoolSettings | ProgramSettings | None:
        values = self._values
        if self._struct is ProgramSettings:
            return ProgramSettings(name=self._table.name, **values)
        if "socket" not in self._given:
            self._findings.absent(
                "defaults",
                self._table,
                "socket",
                'is missing: say where the pool listens, as in socket = "127.0.0.1:9001"',
            )
        if "sockets" not in values:
            return None
        if "wsgi" in values:
            # Our own worker takes its listeners in any way and sets them as it needs them.
            values.setdefault("socket_blocking", False)
            # It says READY=1 once the application is imported: with startsecs, an application that takes longer to
            # import than that would count as started, and a reload would take the broken code for good.
            values.setdefault("ready", "notify")
            if self._python is not None and "chroot" not in self._given:  # inside, that path is another's
                values.setdefault("python", self._python)
            if len(values["sockets"]) > 1:
                values.setdefault("socket_pass", "systemd")
        else:
            # The same of any program: time alone says nothing of whether it will serve.
            values.setdefault("ready", "accepts")
            if drains_itself(values.get("command", ()), values.get("stopsignal", signal.SIGTERM)):
                values.setdefault("drain", "self")
        return PoolSettings(name=self._table.name, **values)


def _known(table: Table, known: Mapping[str, Key], findings: Findings, defaults: Table | None = None) -> Iterator[Key]:
    """The keys of a table; each unknown one is a problem."""
    for name, value in table.entries.items():
        if name in known:
            yield known[name]
        else:
            from fcgimgr.config.advice import At, unknown_keys

            for key, told in unknown_keys(At(table.kind, _runs(table, defaults), tuple(known)), name, value):
                findings.problem(table, key, told)


def _runs(table: Table, defaults: Table | None) -> str:
    """Whether it runs a "command" or a "wsgi" application; "": neither is said."""
    for entries in (table.entries, defaults.entries if defaults is not None else {}):
        for key in ("wsgi", "command"):
            if key in entries:
                return key
    return ""


def _read_key(
    key: Key,
    table: Table,
    names: Mapping[str, str | int],
    values: dict[str, Any],
    findings: Findings,
    later: Collection[str] = (),
) -> None:
    """Put the setting that `table` says for `key` into `values`, or the problem with it into `findings`."""
    place = Place(table.file.directory, table.file.text, key.name, names, frozenset(later))
    try:
        setting = key.kind.read(table.entries[key.name], place)
    except ValueError as error:
        findings.unread(table, key.name, _meant(key.name, table) or str(error))
        return
    if key.field == "rlimits":
        values.setdefault("rlimits", {})[key.name.removeprefix("rlimit_")] = setting
    else:
        values[key.field] = setting


def _meant(name: str, table: Table) -> str | None:
    """What to write where keys with a dot have made a table of one that is none, as socket.mode does."""
    value = table.entries[name]
    known = keys(_STRUCTS.get(table.kind, PoolSettings))
    dotted = [inner for inner in value if f"{name}_{inner}" in known] if isinstance(value, dict) else []
    return "; ".join(f"{name}.{inner}: did you mean {name}_{inner}?" for inner in dotted) or None


def _check_defaults(table: Table, names: Names, used: set[str], findings: Findings) -> None:
    """The keys of [defaults] that no pool or program took are checked too: they may be needed tomorrow."""
    inner: Names = {**names, "here": table.file.directory, "program_name": "NAME", "group_name": "NAME"}
    environment = table.entries.get("environment")
    later = PROCESS_NAMES | {f"ENV_{name}" for name in (environment if isinstance(environment, dict) else ())}
    for key in _known(table, keys(PoolSettings), findings):
        if key.name not in used:
            _read_key(key, table, inner, {}, findings, later)
