"""One child started and waited for until it executes its program, by whichever way its recipe goes."""

import os
import select
from typing import Any

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.spawn import Forked, Order, Recipe, start


def spawn(recipe: Recipe, **fds: Any) -> int:
    """Its pid; `fds`: as in Order. LinuxError: there is no child."""
    [child] = start([Order(recipe, **fds)])
    return pid_of(child)


def pid_of(child: int | Forked | LinuxError) -> int:
    """The child's pid, once it executes its program. LinuxError: there is no child, or no more."""
    if isinstance(child, LinuxError):
        raise child
    if isinstance(child, int):
        return child
    select.select([child], [], [], 30)
    fault = child.fault()
    if fault is not None:
        os.waitpid(child.pid, 0)
        raise fault
    return child.pid
