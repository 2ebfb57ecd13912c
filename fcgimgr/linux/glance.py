"""One look at what may block (helper.py), where the loop of a manager cannot go on before it knows: it waits briefly.

A helper is forked for that one look, in a millisecond, and killed when it sleeps and gets no further for `ASLEEP`: so
who has it wait keeps us for that long, and no longer. One that computes, or waits for the processor, has `PATIENCE`.
"""

import marshal
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final

from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.helper import Progress, fork_helper
from fcgimgr.linux.pidfd import PidFd

#: Seconds without a step for which it has to be in uninterruptible sleep, and those that it may take in all.
ASLEEP: Final = 0.05
PATIENCE: Final = 2.0
_LOOKS: Final = 5
_MOST_WITHOUT: Final = 3

#: Tells whom the next step is about.
At = Callable[[int], None]


class NoGlanceError(Exception):
    """Nothing was seen: who was looked at has let us wait, or there can be no helper. at: the pid of that one, or 0."""

    def __init__(self, why: str, at: int = 0) -> None:
        super().__init__(why)
        self.at = at


def glance(look: Callable[[At], Any]) -> Any:
    """What `look` answers, of the built-in types. NoGlanceError. OSError and LinuxError: those of `look`."""
    return _ask(lambda at: (look(at), None))[0]


def glance_fd(get: Callable[[], int | None]) -> int | None:
    """A descriptor of ours, close-on-exec, of that which `get` has; None: it has none. Errors as of `glance`."""
    return _ask(lambda at: (None, get()))[1]


def holders(inodes: Collection[int] | None) -> str:
    """ " by pid 12 (nginx)" for those that have one of these sockets open (procfs.holders), if that can be seen."""
    without: set[int] = set()
    while inodes and len(without) < _MOST_WITHOUT:
        try:
            return str(glance(lambda at: procfs.holders(inodes, at, without)))
        except NoGlanceError as error:
            if not error.at:
                break
            without.add(error.at)
    return ""


def _ask(look: Callable[[At], tuple[Any, int | None]]) -> tuple[Any, int | None]:
    progress = Progress()
    try:
        pid, ours = fork_helper("fcgimgr-glance", partial(_serve, look, progress))
    except LinuxError as error:
        raise NoGlanceError(str(error)) from error
    content, found = bytearray(), list[int]()
    with ours, PidFd(pid) as helper:
        while _is_heard(ours, progress, pid):
            some, fds, _, _ = socket.recv_fds(ours, 1 << 16, 1)
            found += fds
            if not some:
                break
            content += some
        helper.signal(signal.SIGKILL)
    fd = found[0] if found else None
    if fd is not None:
        os.set_inheritable(fd, False)
    try:
        what, answer = marshal.loads(content)
    except (EOFError, ValueError, TypeError) as error:
        if fd is not None:
            os.close(fd)
        raise NoGlanceError("a look at it does not end", progress.seen()[1]) from error
    if what == "OSError":
        raise OSError(*answer)
    if what == "LinuxError":
        raise LinuxError(answer)
    return answer, fd


def _is_heard(ours: socket.socket, progress: Progress, helper: int) -> bool:
    """Whether something can be received, be it only the end; False: it does not get on."""
    poll = select.poll()
    poll.register(ours, select.POLLIN)
    until = time.monotonic() + PATIENCE
    seen, asleep = progress.seen(), 0
    while time.monotonic() < until:
        if poll.poll(ASLEEP / _LOOKS * 1000):
            return True
        if progress.seen() != seen or procfs.state(helper) != "D":
            seen, asleep = progress.seen(), 0
        elif (asleep := asleep + 1) == _LOOKS:
            return False
    return False


def _serve(look: Callable[[At], tuple[Any, int | None]], progress: Progress, its: socket.socket) -> None:
    """The whole life of the helper."""
    fd: int | None = None
    try:
        answer, fd = look(progress.at)
        said: tuple[str, Any] = ("answer", answer)
    except OSError as error:
        said = "OSError", (error.errno, error.strerror)
    except LinuxError as error:
        said = "LinuxError", str(error)
    content = marshal.dumps(said)
    if fd is not None:
        socket.send_fds(its, [content], [fd])
    else:
        its.sendall(content)
