"""Starting children: exactly the fds, identity and surroundings their recipes say, and nothing else of ours.

Every child gets a session of its own, default signal dispositions and an empty signal mask. Two ways lead there:

- *posix_spawn*, where glibc uses vfork: cheap whatever the manager's size, and several at once (posixspawn.py). What it
  cannot set in the child (directory, umask, soft limit of open files) is set in ourselves around the call and put back:
  nothing else of the manager runs meanwhile. When it returns, the program has been executed.
- *fork*, when only the child itself can do it: another user, nice, limits, chroot, no_new_privs, oom_score_adj,
  LISTEN_PID. What the child still has to do may take long (a user's file system that hangs, a user who stops it), so it
  is not waited for: it says through a pipe how that went (`Forked`).
"""

import contextlib
import errno
import fcntl
import os
import resource
import signal
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from fcgimgr.linux import procfs
from fcgimgr.linux.child import become
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.executables import find_executable
from fcgimgr.linux.posixspawn import Launch, run_together
from fcgimgr.linux.recipes import RLIMITS, Recipe, is_us, nofile, refuse_step

__all__ = ["FIRST_LISTENER", "RLIMITS", "Forked", "Order", "Recipe", "find_executable", "start"]

#: Where a child finds its first listener, if it is not its stdin.
FIRST_LISTENER: Final = 3

_ALL_SIGNALS: Final = signal.valid_signals()
_LONGEST_REPORT: Final = 4096


class Order(NamedTuple):
    """A child to be started.

    stdin, stdout, stderr: our fds, given to the child as 0, 1, 2 and still ours afterwards; `listeners` become 3, 4, …,
    and `others` follow.
    listen_pid: pass these in systemd's way as well (LISTEN_PID, LISTEN_FDS; LISTEN_FDNAMES from `listen_names`).
    """

    recipe: Recipe
    stdin: int
    stdout: int
    stderr: int
    listeners: Sequence[int] = ()
    listen_names: Sequence[str] = ()
    listen_pid: bool = False
    others: Sequence[int] = ()

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.stdin, self.stdout, self.stderr, *self.listeners, *self.others)

    @property
    def environment(self) -> dict[str, str]:
        """All but LISTEN_PID, which only the child can tell."""
        if not self.listen_pid:
            return self.recipe.environment
        names = ":".join(self.listen_names)
        return {**self.recipe.environment, "LISTEN_FDS": str(len(self.listeners)), "LISTEN_FDNAMES": names}


class Forked:
    """A child that is on its way to its program. Readable (`fileno`) when it is there, or has failed, or has died.

    `born`: its start time (procfs), which can be asked for now as it cannot when its program executes another one.
    """

    def __init__(self, pid: int, recipe: Recipe, report: int) -> None:
        self.pid = pid
        self.born = procfs.start_time(pid)
        self._recipe = recipe
        self._report = report

    def fileno(self) -> int:
        return self._report

    def fault(self) -> LinuxError | None:
        """Why it cannot execute its program; it ends then by itself. None: it can, or it has died on the way.

        To be asked once, when it is readable or the child is dead.
        """
        try:
            said = os.read(self._report, _LONGEST_REPORT)  # until the end of file, which is the exec
        finally:
            self.close()
        if not said:
            return None
        step, _, code = said.decode().rpartition(":")
        try:
            refuse_step(self._recipe, step, int(code))
        except LinuxError as fault:
            return fault

    def close(self) -> None:
        if self._report >= 0:
            os.close(self._report)
            self._report = -1


def start(orders: Sequence[Order]) -> list[int | Forked | LinuxError]:
    """Start the children, and answer for each in its place.

    int: its pid; it has executed its program, and leads its own session and process group. Forked: it will, or say why
    not. LinuxError: there is no child; it names the step that failed.
    """
    answers: list[int | Forked | LinuxError] = []
    by_spawn: dict[tuple[str | None, int | None, int | None], list[tuple[int, Order]]] = {}
    for at, order in enumerate(orders):
        if order.listen_pid or _needs_fork(order.recipe):
            answers.append(_fork(order))
        else:
            answers.append(0)
            recipe = order.recipe
            by_spawn.setdefault((recipe.directory, recipe.umask, nofile(recipe)[0]), []).append((at, order))
    for alike in by_spawn.values():
        for (at, _), answer in zip(alike, _spawn_alike([order for _, order in alike]), strict=True):
            answers[at] = answer
    return answers


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


def _spawn_alike(orders: Sequence[Order]) -> list[int | LinuxError]:
    """Start these, which have the same directory, umask and soft limit of open files."""
    answers: list[int | LinuxError] = [0] * len(orders)
    launches: dict[int, Launch] = {}
    with contextlib.ExitStack() as held:
        for at, order in enumerate(orders):
            try:
                # Before the soft limit is lowered: glibc refuses fds above it, and those of a thousand children are.
                sources = _clear_of_targets(order.sources, held)
                launches[at] = Launch(order.recipe.executable, order.recipe.argv, order.environment, sources)
            except OSError as error:
                answers[at] = _fault(order.recipe, "exec" if error.errno == errno.EINVAL else "fds", error.errno)
            else:
                held.callback(launches[at].close)
        try:
            with _surroundings(orders[0].recipe):
                run_together(list(launches.values()))
        except LinuxError as fault:
            return [answer or fault for answer in answers]
    for at, launch in launches.items():
        answers[at] = launch.pid or _fault(orders[at].recipe, "exec", launch.code)
    return answers


def _fault(recipe: Recipe, step: str, code: int | None) -> LinuxError:
    try:
        refuse_step(recipe, step, code)
    except LinuxError as fault:
        return fault


def _clear_of_targets(sources: Sequence[int], held: contextlib.ExitStack) -> list[int]:
    """`sources`, with a copy in the place of each that would be overwritten before its turn; until `held` ends."""
    clear = list(sources)
    for target, source in enumerate(sources):
        if source < len(sources) and source != target:
            clear[target] = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, len(sources))
            held.callback(os.close, clear[target])
    return clear


@contextlib.contextmanager
def _surroundings(recipe: Recipe) -> Iterator[None]:
    """Ourselves with the child's directory, umask and soft limit of open files, for the time of a posix_spawn."""
    soft, _ = nofile(recipe)
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


# --- by fork


def _fork(order: Order) -> Forked | LinuxError:
    handled, ignored = dispositions()
    try:
        report, say = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return _fault(order.recipe, "fds", error.errno)
    # A signal that came before the child has reset it would run our handler there, and write into the wake-up pipe
    # the child shares with us.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    try:
        pid = os.fork()
        if pid == 0:
            become(order.recipe, order.sources, order.environment, [*handled, *ignored], order.listen_pid, say)
    except OSError as error:
        os.close(report)
        return _fault(order.recipe, "fork", error.errno)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(say)
    return Forked(pid, order.recipe, report)


def dispositions() -> tuple[list[int], list[int]]:
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
