"""The manager's own process and those it is the parent of: how it sets itself up, and how it reaps.

A pid stays the number of a dead child until that child is reaped. So as long as only `reap` reaps, the number of one
that has not been reaped can never be a stranger's. Signals go by descriptor all the same (linux/pidfd.py).
"""

import os
import resource
import signal
from collections.abc import Callable, Container, Iterator
from typing import Final, NamedTuple

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.libc import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl

# CPython ignores these two in itself, and means it: a write to a dead client is to be an error and not a death.
_IGNORED_ON_PURPOSE: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
# Where "unlimited" and the odd container's milliard of fds end.
_FDS_ENOUGH: Final = 1 << 20


class Death(NamedTuple):
    """The end of a child: its pid, and its wait status as waitpid(2) gives it."""

    pid: int
    status: int

    @property
    def code(self) -> int | None:
        """What it exited with; None if a signal killed it."""
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else None

    @property
    def signal(self) -> int | None:
        """The signal that killed it; None if it exited."""
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else None

    @property
    def dumped_core(self) -> bool:
        return os.WCOREDUMP(self.status)


def reap(stopped: Callable[[int], None] = lambda pid: None) -> Iterator[Death]:
    """The children that have died, none twice, without waiting. Includes strangers handed to us as (sub)reaper.

    `stopped` is told of each thread we trace that has stopped, and is to ask waitid(2) for the stop.

    Each is still a zombie while the caller has it: its pid and process group cannot belong to anybody else, so the
    rest of its group can be killed safely. It is freed when the caller asks for the next, or leaves the loop.
    """
    while True:
        try:
            seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if seen is None:
            return
        if seen.si_code == os.CLD_TRAPPED:
            stopped(seen.si_pid)
            continue
        try:
            yield Death(seen.si_pid, _wait_status(seen.si_code, seen.si_status))
        finally:
            os.waitpid(seen.si_pid, 0)


def set_subreaper(*, on: bool = True) -> None:
    """Become the parent of descendants whose own parent dies, in the place of pid 1: none is out of our reach."""
    prctl(PR_SET_CHILD_SUBREAPER, on)


def die_with_parent(parent: int, number: int) -> None:
    """Have the kernel send us this signal as soon as the thread that started us has ended (PR_SET_PDEATHSIG, prctl(2));
    at once, if the process `parent` is not our parent any more.
    """
    prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def set_name(name: str) -> None:
    """The name that ps, top and pkill show for this process: at most 15 bytes, the rest is cut."""
    with open("/proc/self/comm", "wb") as comm:
        comm.write(os.fsencode(name)[:15])


def raise_nofile(minfds: int) -> int:
    """Raise our own limit of open files as far as it goes, and answer the soft limit before: what children should get.

    (A program that uses select(2) breaks on fds above 1023, hence the children keep the soft limit they would have.)
    LinuxError when fewer than `minfds` are to be had.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _as_number(hard) < minfds:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (minfds, minfds))
        except (ValueError, OSError) as error:
            raise LinuxError(
                f"minfds: {minfds} open files are asked for, the limit is {hard}; raise it (systemd: LimitNOFILE=, "
                f"shell: ulimit -Hn) or lower minfds"
            ) from error
        return soft
    enough = min(_as_number(hard), max(_FDS_ENOUGH, minfds))
    if _as_number(soft) < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    return soft


def close_inherited(keep: Container[int] = ()) -> None:
    """Close every fd from 3 on but those in `keep`, which become close-on-exec. To be called before anything is opened.

    A pipe that whoever started us forgot to close would otherwise stay open as long as the manager lives.
    """
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if fd > 2 and fd not in keep:
                os.close(fd)
            elif fd > 2:
                os.set_inheritable(fd, False)
        except OSError:
            continue  # the one that listdir itself had open


def reset_ignored_signals() -> None:
    """Back to default what we were started with ignored (nohup, a shell's `&`): a child must be able to die of it."""
    for number in signal.valid_signals() - _IGNORED_ON_PURPOSE:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _wait_status(code: int, status: int) -> int:
    """siginfo's si_code and si_status of a dead child in waitpid(2)'s form."""
    if code == os.CLD_EXITED:
        return status << 8
    return status | 0x80 if code == os.CLD_DUMPED else status


def _as_number(limit: int) -> int:
    return _FDS_ENOUGH if limit == resource.RLIM_INFINITY else limit
