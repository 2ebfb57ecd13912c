"""The pool that `dev` runs: of the application named on the command line, or as a pool of a configuration has it.

Of a configuration's pool those settings hold that are the application's: what it is, its server, its Python, where it
is, and its variables. What makes a server of it stays away: its socket, so that it may run beside the real one; `user`
and the limits, for it runs as whoever writes it; its logs; `request_timeout`, for a debugger must be let wait.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from .failure import USAGE, Failure

if TYPE_CHECKING:
    from fcgimgr.config.settings import Config, PoolSettings

_THREADS: Final = 4

VERSIONS: Final = 5
"""How many versions of the code may run at the same time: one that serves, one that comes, old ones at a request."""

_MANAGER: Final = """\
# Made by `fcgimgr dev`, and gone when it ends.
[manager]
control = {control}
loglevel = "error"
shutdown_timeout = 3
"""

# An old version has an hour for what it has in hand: somebody may be looking at it in a debugger.
_POOL: Final = """
[pool.{name_in_quotes}]
socket = {socket}
process_name = {process_name}
wsgi = {application}
server = {server}
python = {python}
directory = {directory}
environment = {environment}
clear_env = {clear_env}
ready_timeout = {ready_timeout}
log_label = false
autostart = false
startretries = 0
stopwaitsecs = 3600
"""

# That of a version whose source is another by now is not to be taken for its own (dev_bytecode.py).
_PYTHON: Final = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": ""}
# What the worker names to whoever has to mend something: see worker/interpreter.py.
_KEYS_IN: Final = "FCGIMGR_DEV"

_GIVE_PYTHON: Final = "name one that runs the application, as in --python .venv/bin/python"


class DevPool(msgspec.Struct, frozen=True):
    """What is run. directory: absolute; threads: None for as many as `server` has without saying so;
    name, process: what the log is to call it; more_sources: further directories with modules of the application; said:
    how whoever has written them named the application, its Python and its directory, by the keys of a pool; keys_in:
    the pool in which these keys are written, "" where options of `dev` stand for them.
    """

    application: str
    python: str
    directory: str
    name: str
    process: str
    server: str = "flup"
    threads: int | None = _THREADS
    environment: Mapping[str, str] = {}
    clear_env: bool = False
    ready_timeout: float = 30.0
    more_sources: tuple[str, ...] = ()
    said: Mapping[str, str] = {}
    keys_in: str = ""

    def names(self) -> tuple[str, ...]:
        """Of the pools, one a version."""
        return (self.name, *(f"{self.name}-{number}" for number in range(2, VERSIONS + 1)))

    def toml(self, control: str, sockets: Mapping[str, str]) -> str:
        """A configuration of these pools alone. control: an absolute path; sockets: the address of each by its name."""
        variables = {**self.environment, **_PYTHON, _KEYS_IN: self.keys_in}
        environment = ", ".join(f"{_text(name, template=False)} = {_text(it)}" for name, it in variables.items())
        pools = (
            _POOL.format(
                name_in_quotes=_text(name, template=False),
                socket=_text(socket),
                process_name=_text(self.process),
                application=_text(self.application),
                server=_text(self.server),
                python=_text(self.python),
                directory=_text(self.directory),
                environment=f"{{ {environment} }}",
                clear_env=json.dumps(self.clear_env),
                ready_timeout=self.ready_timeout,
            )
            + ("" if self.threads is None else f"threads = {self.threads}\n")
            for name, socket in sockets.items()
        )
        return _MANAGER.format(control=_text(control)) + "".join(pools)

    def refuse_unless_fit(self, config: str) -> None:
        """Failure, in the words of whoever has written it: it cannot run so. config: the path of a file with `toml`."""
        from fcgimgr.config.problems import ConfigError
        from fcgimgr.config.read import read

        said = {"python": self.python, "directory": self.directory, **self.said}
        try:
            read(config, os.environ)
        except ConfigError as error:
            found = {(problem.key.rpartition(".")[2], problem.message) for problem in error.problems}
            text = "\n".join(f"{said.get(key, key)}: {message}" for key, message in sorted(found))
            raise Failure(text, code=USAGE) from error
        if not os.path.isdir(self.directory):
            raise Failure(f"{said['directory']}: there is no such directory; say where the app is", code=USAGE)
        if not os.path.isfile(self.python):
            raise Failure(f"{said['python']}: there is no such file; {_GIVE_PYTHON}", code=USAGE)
        if not os.access(self.python, os.X_OK):
            raise Failure(f"{said['python']}: it cannot be executed; {_GIVE_PYTHON}", code=USAGE)


def of_application(application: str, directory: str | None, python: str | None, threads: int | None) -> DevPool:
    """Of `module:callable`; the others are options, None where they were not given.

    A log has it as POOL:PROCESS, so it is called there as it was typed.
    """
    from fcgimgr.config.pools import NAME

    module, _, attribute = application.partition(":")
    is_fit = all(re.fullmatch(NAME, name) and name != "all" for name in (module, attribute))
    return DevPool(
        application=application,
        name=module if is_fit else "dev",
        process=attribute if is_fit else "dev",
        python=os.path.abspath(python) if python else _python(),
        directory=os.path.abspath(directory or "."),
        threads=threads or _THREADS,
        said=_said(application, python, directory),
        more_sources=_on_path(os.environ.get("PYTHONPATH"), os.path.abspath(directory or ".")),
    )


def of_configuration(
    path: str, name: str | None, directory: str | None, python: str | None, threads: int | None
) -> DevPool:
    """Of the pool `name` in the configuration at `path`; None: of the only one with `wsgi`. The rest are options, which
    count more than the pool's keys. ConfigError: the configuration is broken. Failure: there is no such pool.
    """
    from fcgimgr.config.processes import process_plan
    from fcgimgr.config.read import read

    config = read(path, os.environ)
    settings = _chosen(config, name)
    assert settings.wsgi is not None  # it was chosen for it
    plan = process_plan(settings, config, 0)
    interpreter = python or settings.python
    home = os.path.abspath(directory or plan.directory or config.manager.directory or ".")
    inherited = None if settings.clear_env else os.environ.get("PYTHONPATH")
    return DevPool(
        application=settings.wsgi,
        python=os.path.abspath(interpreter) if interpreter else _python(),
        directory=home,
        name=settings.name,
        process=plan.name,
        server=settings.server,
        threads=threads or settings.threads,
        environment=plan.environment,
        clear_env=settings.clear_env,
        ready_timeout=settings.ready_timeout,
        said={
            "wsgi": f"{config.path}: pool.{settings.name}.wsgi",
            "directory": f"{config.path}: pool.{settings.name}.directory: {home}",
            "python": f"{config.path}: pool.{settings.name}.python: {settings.python}"
            if settings.python not in (None, config.activated)
            else _python(),
        }
        | _said(None, python, directory),
        keys_in="" if python else settings.name,
        more_sources=_on_path(plan.environment.get("PYTHONPATH", inherited), home),
    )


def _said(application: str | None, python: str | None, directory: str | None) -> dict[str, str]:
    """What was given on the command line, as it was typed."""
    given = {
        "wsgi": application,
        "python": f"--python {python}" if python else None,
        "directory": f"--directory {directory}" if directory else None,
    }
    return {key: text for key, text in given.items() if text is not None}


def _on_path(pythonpath: str | None, directory: str) -> tuple[str, ...]:
    """The entries of a PYTHONPATH, from a process's directory."""
    return tuple(os.path.join(directory, entry) for entry in (pythonpath or "").split(os.pathsep) if entry)


def _chosen(config: "Config", name: str | None) -> "PoolSettings":
    found = [pool for pool in config.pools.values() if pool.wsgi is not None]
    names = ", ".join(pool.name for pool in found)
    if not found:
        raise Failure(f"{config.path}: no pool in it has wsgi; give an application: fcgimgr dev app:app", code=USAGE)
    if name is None and len(found) > 1:
        raise Failure(f"{config.path}: which pool? Name one of {names}: fcgimgr dev {found[0].name}", code=USAGE)
    for pool in found:
        if name in (None, pool.name):
            return pool
    problem = "has no wsgi" if name in config.pools else "is no pool in it"
    raise Failure(f"{config.path}: {name} {problem}; name one of {names}, or an application, as in app:app", code=USAGE)


def _python() -> str:
    """That of the activated virtualenv, else ours: `fcgimgr` need not be installed where the application is."""
    from fcgimgr.config.virtualenv import python_in

    return python_in(os.environ) or sys.executable


def _text(text: str, *, template: bool = True) -> str:
    """A TOML string that is read as `text`. A JSON text is a basic string of TOML, but for one character."""
    from fcgimgr.config.expansions import escape

    quoted = json.dumps(escape(text) if template else text, ensure_ascii=False)
    return quoted.replace("\x7f", "\\u007f")
