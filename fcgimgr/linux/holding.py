"""A process stopped in its tracks, looked at, and let go: how one is found at a moment when it may be ended.

SIGSTOP cannot be caught or ignored, and a stopped process neither accepts nor answers: what is seen of it while it is
held stays true. A signal sent meanwhile waits, so a stopsignal followed by `let_go` is the first thing it meets.

Who holds a process must let it go: if whoever does is killed in between, and nobody else knows of it, it stays stopped
until the next manager, which therefore lets go of all it takes over.
"""

import os
import signal
import time
from typing import Final

from fcgimgr.linux import procfs
from fcgimgr.linux.pidfd import PidFd

# Stopped, traced, or at an end: none of these will do anything.
_ENDED: Final = frozenset("ZX")
_STILL: Final = frozenset("Tt") | _ENDED
_PAUSE: Final = 0.0001


def hold(process: PidFd, patience: float = 0.02) -> bool:
    """Stop all its threads; True when each of them stands still. False, and it goes on: not so in `patience` seconds.

    Blocks, mostly for 0.1 ms: a thread stops when it next gets the processor, one in state D only when its disk has
    answered. False too when the process is gone. LinuxError where signalling is not permitted.
    """
    deadline = time.monotonic() + patience
    if not process.signal(signal.SIGSTOP):
        return False
    # Others may be what its threads wait for: give the processor away before looking.
    os.sched_yield()
    while not is_held(process.pid):
        if time.monotonic() > deadline:
            let_go(process)
            return False
        time.sleep(_PAUSE)
    return not set(procfs.thread_states(process.pid) or "Z") <= _ENDED


def is_held(pid: int) -> bool:
    """Whether each of its threads stands still. Also true of the dead."""
    states = procfs.thread_states(pid)
    return states is None or _STILL.issuperset(states)


def let_go(process: PidFd) -> bool:
    """Let it run on (SIGCONT); False when it is gone. Harmless to one that runs. LinuxError: not permitted."""
    return process.signal(signal.SIGCONT)
