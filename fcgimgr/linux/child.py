"""The child between fork and exec: it makes itself what its recipe says, and reports the step that failed.

Nothing of Python's own clean-up may run in here: it would flush buffers and unlink files that are the parent's. So it
ends in execve or in _exit, whatever happens.
"""

import errno
import fcntl
import os
import resource
import signal
import stat
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

from fcgimgr.linux.libc import PR_SET_NO_NEW_PRIVS, close_all_but, prctl
from fcgimgr.linux.recipes import RLIMITS, Recipe, is_us, nofile

_LOWEST: Final = 64


def become(
    recipe: Recipe,
    sources: Sequence[int],
    environment: dict[str, str],
    signals: Sequence[int],
    listen_pid: bool,
    report: int,
) -> NoReturn:
    """Never returns. `sources` become fds 0, 1, 2, …; a failure goes into the pipe `report` as "STEP:ERRNO".

    signals: those to be put back to their default. listen_pid: LISTEN_PID is wanted, which only the child can tell.
    """
    step = "fds"
    code = errno.EINVAL  # of a ValueError: a NUL byte in a word, or "=" in a variable's name
    try:
        # Copy them clear of the targets first, where no dup2 can overwrite one before its turn.
        lowest = max(_LOWEST, len(sources))
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, lowest)
        sources = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, lowest) for source in sources]
        for step in _steps(recipe, sources, signals, report):  # noqa: B007 (where it failed)
            pass
        step = "exec"
        if listen_pid:
            environment = {**environment, "LISTEN_PID": str(os.getpid())}
        os.execve(recipe.executable, recipe.argv, environment)
    except OSError as error:
        code = error.errno or code
    finally:
        try:
            os.write(report, f"{step}:{code}".encode())
        finally:
            os._exit(127)


def _steps(recipe: Recipe, sources: Sequence[int], signals: Sequence[int], report: int) -> Iterator[str]:
    """What the child does to itself, in this order; before each step its name, in case it fails."""
    for target, source in enumerate(sources):
        os.dup2(source, target)
    close_all_but(report, len(sources), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.setsid()

    yield "signals"
    for number in signals:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

    if recipe.oom_score_adj is not None:
        yield "oom_score_adj"
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(recipe.oom_score_adj))
    if recipe.chroot is not None:
        yield "chroot"
        os.chroot(recipe.chroot)
        os.chdir("/")
    if recipe.directory is not None:
        yield "directory"
        os.chdir(recipe.directory)
    if recipe.umask is not None:
        os.umask(recipe.umask)
    if recipe.nice is not None:
        yield "nice"
        os.setpriority(os.PRIO_PROCESS, 0, recipe.nice)

    limits = recipe.rlimits
    soft, hard = nofile(recipe)
    if soft is not None and hard is None:
        limits = {**limits, "nofile": (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])}
    for name, limit in limits.items():
        yield f"rlimit_{name}"
        try:
            resource.setrlimit(RLIMITS[name], limit)
        except ValueError as error:  # Python's word for EPERM here
            raise PermissionError(errno.EPERM, str(error)) from error

    account = recipe.account
    if account is not None and not is_us(account):
        yield "user"
        for fd in (1, 2):
            # Else the child could write to its pipe, but not open it as /dev/stderr: that asks the inode's owner.
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.fchown(fd, account.uid, account.gid)
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    if recipe.no_new_privs:
        yield "no_new_privs"
        prctl(PR_SET_NO_NEW_PRIVS, 1)
