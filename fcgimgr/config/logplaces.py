"""Where logs are to be written: `check` and `update` can see that one cannot be before any line is lost."""

import os
import stat
from collections.abc import Iterator
from typing import Final

from fcgimgr.config.processes import process_plan
from fcgimgr.config.settings import Config
from fcgimgr.linux.directories import LinkRefusedError, directory_of

# Links that a log follows all the same: what the manager itself was given.
_OWN: Final = ("/dev/stdout", "/dev/stderr")


def unwritable(config: Config) -> dict[str, str]:
    """By the path of each log that cannot be written: why, beginning with the key.

    A directory that does not exist is made by nobody; a link that is in the way is not followed.
    """
    first: dict[str, str] = {}  # a line for each reason, however many logs it is the reason of
    found: dict[str, str] = {}
    for key, path in log_files(config):
        if path not in _OWN and (problem := _problem(path)) is not None:
            found[path] = first.setdefault(problem, f"{key}: {problem}")
    return found


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


def _problem(path: str) -> str | None:
    """What keeps a log from being written at `path`, for all that may be known: the manager may look where this user
    may not.
    """
    where = os.path.dirname(path)
    try:
        with directory_of(path) as (directory, name):
            if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                return (
                    f"{path} is a symbolic link, which is not followed: its lines would be lost; name the file itself"
                )
    except LinkRefusedError as error:
        return f"the directory {where}: {error.strerror}; its lines would be lost"
    except (FileNotFoundError, NotADirectoryError):
        if not os.path.isdir(where):
            return f"the directory {where} does not exist; its lines would be lost: install -d {where}"
    except OSError:
        pass
    return None
