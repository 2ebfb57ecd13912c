"""Starting a child: exactly the fds, identity and surroundings its recipe says, and nothing else of ours.

Every child gets a session of its own, default signal dispositions and an empty signal mask. Two ways lead there:

- *posix_spawn*, where glibc uses vfork: 0.4 ms whatever the manager's size. What it cannot set in the child (directory,
  umask, soft limit of open files) is set in ourselves around the call and put back: the manager has one thread.
- *fork*, 1 ms and more, when only the child itself can do it: another user, nice, limits, chroot, no_new_privs,
  oom_score_adj, LISTEN_PID. Errors come back through a close-on-exec pipe, which exec closes when all went well.

Both return when the program has been executed, or raise LinuxError and leave no child behind.
"""

import contextlib
import errno
import fcntl
import os
import resource
import signal
from collections.abc import Iterator, Sequence
from typing import Final

from fcgimgr.linux.child import become
from fcgimgr.linux.executables import find_executable
from fcgimgr.linux.recipes import RLIMITS, Recipe, is_us, nofile, refuse_step

__all__ = ["FIRST_LISTENER", "RLIMITS", "Recipe", "find_executable", "spawn"]

#: Where a child finds its first listener, if it is not its stdin.
FIRST_LISTENER: Final = 3

_ALL_SIGNALS: Final = signal.valid_signals()
_LOWEST_SLOT: Final = 64
_SLOTS: Final = 8

# Fds kept by for `_within_reach`, low ones from when there were few: all /dev/null while they are not needed.
_slots: Final[list[int]] = []


def spawn(
    recipe: Recipe,
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    listeners: Sequence[int] = (),
    listen_names: Sequence[str] = (),
    listen_pid: bool = False,
    others: Sequence[int] = (),
) -> int:
    """Start a child and return its pid; it leads its own session and process group.

    stdin, stdout, stderr: our fds, given to the child as 0, 1, 2 and still ours afterwards; `listeners` become 3, 4, …,
    and `others` follow.
    listen_pid: pass these in systemd's way as well (LISTEN_PID, LISTEN_FDS; LISTEN_FDNAMES from `listen_names`).
    LinuxError names the step that failed; then there is no child.
    """
    environment = recipe.environment
    if listen_pid:
        environment = {**environment, "LISTEN_FDS": str(len(listeners)), "LISTEN_FDNAMES": ":".join(listen_names)}
    sources = (stdin, stdout, stderr, *listeners, *others)
    soft, _ = nofile(recipe)
    try:
        if not listen_pid and not _needs_fork(recipe):
            with _within_reach(sources, soft) as reachable:
                if reachable is not None:
                    return _spawn_by_vfork(recipe, reachable, environment, soft)
        return _spawn_by_fork(recipe, sources, environment, listen_pid)
    except OSError as error:
        refuse_step(recipe, "fds", error.errno)


# --- by posix_spawn


def _needs_fork(recipe: Recipe) -> bool:
    _, hard = nofile(recipe)
    return bool(
        recipe.nice is not None
        or recipe.no_new_privs
        or recipe.oom_score_adj is not None
        or recipe.chroot is not None
        or (recipe.account is not None and not is_us(recipe.account))
        # We can put our own soft limits back, but a lowered hard one only as root.
        or recipe.rlimits.keys() - {"nofile"}
        or (hard is not None and hard != resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def _spawn_by_vfork(recipe: Recipe, sources: Sequence[int], environment: dict[str, str], soft: int | None) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(sources)]
    with _surroundings(recipe, soft):
        try:
            return os.posix_spawn(
                recipe.executable,
                recipe.argv,
                environment,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=_ALL_SIGNALS,
            )
        except OSError as error:
            refuse_step(recipe, "exec", error.errno)
        except ValueError:  # a NUL byte in a word, or "=" in a variable's name
            refuse_step(recipe, "exec", errno.EINVAL)


@contextlib.contextmanager
def _surroundings(recipe: Recipe, soft: int | None) -> Iterator[None]:
    """Ourselves with the child's directory, umask and soft limit of open files, for the time of one posix_spawn."""
    home, umask, limits = -1, None, None
    try:
        if recipe.directory is not None:
            home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            os.fchdir(home)  # a rehearsal: go nowhere if we could not come back
            try:
                os.chdir(recipe.directory)
            except OSError as error:
                refuse_step(recipe, "directory", error.errno)
        if recipe.umask is not None:
            umask = os.umask(recipe.umask)
        if soft is not None:
            now = resource.getrlimit(resource.RLIMIT_NOFILE)
            if soft != now[0]:
                try:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, now[1]))
                except (ValueError, OSError):
                    refuse_step(recipe, "rlimit_nofile", errno.EPERM)
                limits = now
        yield
    finally:
        if limits is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        if umask is not None:
            os.umask(umask)
        if home >= 0:
            os.fchdir(home)
            os.close(home)


@contextlib.contextmanager
def _within_reach(sources: Sequence[int], soft: int | None) -> Iterator[Sequence[int] | None]:
    """`sources`, those of them in reserved slots that posix_spawn could not dup from where they are; None: no room.

    glibc refuses fds at or above the soft limit, which by then is the child's (posix_spawn_file_actions_adddup2 asks
    sysconf), and with a thousand children ours are. A source among the targets would be overwritten before its turn.
    """
    out_of_reach = [
        source
        for target, source in enumerate(sources)
        if (source < len(sources) and source != target) or (soft is not None and source >= soft)
    ]
    if not _slots:
        _reserve_slots()
    if not out_of_reach:
        yield sources
        return
    null, *room = _slots
    if len(set(out_of_reach)) > len(room) or (soft is not None and _slots[-1] >= soft):
        yield None
        return
    staged = dict(zip(dict.fromkeys(out_of_reach), room, strict=False))
    try:
        for source, slot in staged.items():
            os.dup2(source, slot, inheritable=False)
        yield [staged.get(source, source) for source in sources]
    finally:
        for slot in staged.values():  # or we would hold the child's pipes open
            os.dup2(null, slot, inheritable=False)


def _reserve_slots() -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    _slots.extend(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, _LOWEST_SLOT) for _ in range(_SLOTS))
    os.close(null)


# --- by fork


def _spawn_by_fork(recipe: Recipe, sources: Sequence[int], environment: dict[str, str], listen_pid: bool) -> int:
    handled, ignored = _dispositions()
    report, say = os.pipe2(os.O_CLOEXEC)
    try:
        # A signal that came before the child has reset it would run our handler there, and write into the wake-up pipe
        # the child shares with us.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        try:
            pid = os.fork()
            if pid == 0:
                become(recipe, sources, environment, [*handled, *ignored], listen_pid, say)
        except OSError as error:
            refuse_step(recipe, "fork", error.errno)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(say)
        failure = os.read(report, 4096)  # until the end of file, which is the exec
    finally:
        os.close(report)
    if failure:
        os.waitpid(pid, 0)
        step, _, code = failure.decode().rpartition(":")
        refuse_step(recipe, step, int(code))
    return pid


def _dispositions() -> tuple[list[int], list[int]]:
    """The signals we handle, and those we ignore. (To reset all 62 in the child costs 0.2 ms in page faults.)"""
    handled: list[int] = []
    ignored: list[int] = []
    for number in _ALL_SIGNALS:
        disposition = signal.getsignal(number)
        if disposition == signal.SIG_IGN:
            ignored.append(number)
        elif disposition not in (signal.SIG_DFL, None):
            handled.append(number)
    return handled, ignored
