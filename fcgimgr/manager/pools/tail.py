"""The last lines of a process's output: from memory, and from its log file where more are asked for than memory has.

Who asks may be the pool's own user (control_owner), and the directory that user's too. So nothing is read but the very
file that is written to; and where none is, because the process is down, what a log is opened as (logs/opening.py).
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from fcgimgr.manager.logs.opening import open_to_read

if TYPE_CHECKING:
    from fcgimgr.manager.logs.file import Logs
    from fcgimgr.manager.pools.generation import Generation

#: How far back, in bytes, a log file is read.
FARTHEST: Final = 1024 * 1024


def last_lines(generation: Generation, index: int, stream: str, count: int) -> list[bytes]:
    """At most `count` lines, oldest first. A log file that several processes share is not looked into."""
    lines = generation.last_lines(index, stream, count)
    path = own_log_file(generation, index, stream)
    if len(lines) >= count or path is None:
        return lines
    return end_of_file(generation.daemon.logs, path, count) or lines


def own_log_file(generation: Generation, index: int, stream: str) -> str | None:
    """The file that holds this stream of this process and nothing else."""
    if generation.recipes is None:
        return None
    settings = generation.settings
    template = settings.stdout_logfile if stream == "stdout" or settings.redirect_stderr else settings.stderr_logfile
    if template in ("-", "none") or (settings.numprocs > 1 and "%(process_num)" not in template):
        return None
    if not settings.redirect_stderr and settings.stdout_logfile == settings.stderr_logfile:
        return None
    plan = generation.recipes.plan(index)
    return plan.stdout_logfile if template == settings.stdout_logfile else plan.stderr_logfile


def end_of_file(logs: Logs, path: str, count: int) -> list[bytes]:
    """The last `count` lines of a log file, as far as FARTHEST bytes go; none if it cannot be read."""
    try:
        file = logs.written_at(path)
        fd = open_to_read(path) if file is None else file.open_to_read()
    except OSError:
        return []
    if fd is None:
        return []
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return []
        start = max(0, status.st_size - FARTHEST)
        lines = os.pread(fd, FARTHEST, start).split(b"\n")
    except OSError:
        return []
    finally:
        os.close(fd)
    if lines and not lines[-1]:
        lines.pop()
    if start:
        lines = lines[1:]  # its beginning was cut off
    return lines[-count:] if count else []
