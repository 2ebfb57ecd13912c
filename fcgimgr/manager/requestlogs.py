"""The log files that workers write to themselves (fcgimgr/worker/appending.py): access_log and slowlog.

A worker runs as the pool's user, who as a rule may not create a file in /var/log. So the manager creates it before the
worker is started, and again when log files are opened anew, with that user as its owner, who is to write to it.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from fcgimgr.config.processes import ProcessPlan
from fcgimgr.linux.accounts import Account
from fcgimgr.manager.openlog import FILE_MODE, open_log, open_reason

#: The variables that tell a worker their paths.
ACCESS_LOG: Final = "FCGIMGR_ACCESS_LOG"
SLOWLOG: Final = "FCGIMGR_SLOWLOG"


def environment(plan: ProcessPlan) -> dict[str, str]:
    """What tells the worker of this plan where it is to write."""
    paths = {ACCESS_LOG: plan.access_log, SLOWLOG: plan.slowlog}
    return {name: path for name, path in paths.items() if path is not None}


def files(plan: ProcessPlan) -> list[str]:
    """The paths of the files among them."""
    return [path for path in dict.fromkeys(environment(plan).values()) if path != "-"]


def create(path: str, account: Account | None, owner: tuple[int, int] | None, mode: int | None) -> list[str]:
    """Let there be this file, for this user to write to; what is wrong, in words. owner, mode: as logs are to have."""
    problems: list[str] = []
    uid, gid = owner or (-1, -1)
    if account is not None:
        uid, gid = account.uid, gid if gid != -1 else account.gid
    bits = FILE_MODE if mode is None else mode | stat.S_IWUSR
    try:
        os.close(open_log(path, owner=(uid, gid), mode=bits, note=lambda note: problems.append(f"{path}: {note}")))
    except OSError as error:
        problems.append(f"{path}: cannot be opened: {open_reason(error)}")
    return problems
