"""Where logs are to be written: `check` can see that a directory is missing before any line is lost."""

import os
from collections.abc import Iterator

from fcgimgr.config.processes import process_plan
from fcgimgr.config.settings import Config


def warnings(config: Config) -> Iterator[str]:
    """A line for each directory of a log that does not exist: it is made by nobody."""
    missing: dict[str, str] = {}
    for key, path in log_files(config):
        directory = os.path.dirname(path)
        if not _may_be_there(directory):
            missing.setdefault(directory, key)
    for directory, key in missing.items():
        yield f"{key}: the directory {directory} does not exist; its lines would be lost: install -d {directory}"


def log_files(config: Config) -> Iterator[tuple[str, str]]:
    """(key, absolute path) of every log file, that of the manager first."""
    paths = [("manager.logfile", config.manager.logfile)]
    for kind, units in (("pool", config.pools), ("program", config.programs)):
        for name, settings in units.items():
            for index in range(settings.numprocs):
                plan = process_plan(settings, config, index)
                for key in ("stdout_logfile", "stderr_logfile", "access_log", "slowlog"):
                    paths.append((f"{kind}.{name}.{key}", getattr(plan, key) or ""))
    yield from dict.fromkeys((key, path) for key, path in paths if os.path.isabs(path))


def _may_be_there(directory: str) -> bool:
    """Whether it exists, for all that may be known: the manager may look where this user may not."""
    try:
        os.stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
