"""What one process of a pool or program gets: its name, its command line, its variables, its log files.

A plan is a pure function of the settings: no account is looked up, no program searched, no variable of the manager's
own environment taken. `read` has tried the plans already, so that one made from what it returned cannot fail.
"""

import os
import sys
from typing import Final

import msgspec

from fcgimgr.config.expansions import expand
from fcgimgr.config.pools import PoolSettings, ProcessSettings
from fcgimgr.config.settings import Config

WORKER_MAIN: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "worker", "start.py")
"""The worker is run by its path, for the application's own Python has no fcgimgr installed."""


class ProcessPlan(msgspec.Struct, frozen=True):
    """One process, every expansion done.

    name: "app_00"; argv: with `preload` the zygote's; environment: only what the configuration adds to the manager's
    own; directory: None for the manager's; stdout_logfile, stderr_logfile: an absolute path, "-" or "none"; access_log,
    slowlog: an absolute path, "-", or None where there is none.
    """

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    directory: str | None
    stdout_logfile: str
    stderr_logfile: str
    access_log: str | None = None
    slowlog: str | None = None


def process_plan(settings: ProcessSettings, config: Config, index: int) -> ProcessPlan:
    """The plan of process `index`, counted from 0; ValueError for settings whose templates `read` has not checked."""
    names: dict[str, str | int] = {
        "program_name": settings.name,
        "process_num": settings.numprocs_start + index,
        "numprocs": settings.numprocs,
    }
    own = {name: expand(value, names) for name, value in settings.environment.items()}
    names.update({f"ENV_{name}": value for name, value in own.items()})
    environment = {**config.manager.environment, **settings.file_environment, **own}
    argv = tuple(expand(word, names) for word in settings.command)
    access_log = slowlog = None
    if isinstance(settings, PoolSettings) and settings.wsgi is not None:
        access_log = None if settings.access_log is None else expand(settings.access_log, names)
        slowlog = None if settings.slow_after is None else expand(settings.slowlog, names)
        argv = _worker(settings, settings.wsgi)
        paths = [expand(path, names) for path in settings.pythonpath]
        if paths:
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([*paths, before] if before else paths)
    return ProcessPlan(
        name=expand(settings.process_name, names),
        argv=argv,
        environment=environment,
        directory=None if settings.directory is None else expand(settings.directory, names),
        stdout_logfile=expand(settings.stdout_logfile, names),
        stderr_logfile=expand(settings.stderr_logfile, names),
        access_log=access_log,
        slowlog=slowlog,
    )


def _worker(settings: PoolSettings, wsgi: str) -> tuple[str, ...]:
    options: list[str] = []
    if settings.threads is not None:
        options += ("--threads", str(settings.threads))
    if settings.max_requests is not None:
        options += ("--max-requests", f"{settings.max_requests}+{settings.max_requests_jitter}")
    # Their paths may differ from process to process, so they are in the environment: a zygote has one command line.
    if settings.access_log is not None:
        options.append(f"--access-format={settings.access_format}")  # one word, for it may begin with a "-"
    if settings.slow_after is not None:
        options += ("--slow-after", str(settings.slow_after))
    if settings.preload:
        options += ("--zygote", "3")
    if settings.ready != "startsecs":
        options += ("--ready-timeout", f"{settings.ready_timeout:g}")
    return (settings.python or sys.executable, WORKER_MAIN, "--server", settings.server, *options, wsgi)
