"""The zygote of a pool with `preload = true`: it imports the application once, and the workers are forks of it.

    PYTHON …/fcgimgr/worker/start.py --zygote 3 --server … module:callable

A fork takes a millisecond where an import takes seconds, and shares the memory of all that was imported. The zygote
itself never serves, and never has a listener.

It talks to the manager on file descriptor 3, a Unix socket that keeps packets apart (SOCK_SEQPACKET), a message each:

    zygote  → manager   ready              the application is imported
    manager → zygote    ID␀ENTRY␀ENTRY…    fork a worker, with these descriptors: go, stdout, stderr, and more. ENTRY is
                                           +NAME=VALUE  a variable to set
                                           -NAME        one to unset
                                           *NAME=COUNT  one to set to the numbers of so many of the descriptors
    worker  → manager   born ID            it is in a session of its own; who it is, the kernel tells (SCM_CREDENTIALS)
    zygote  → manager   forked ID          and from now on it is the manager's child
                        failed ID TEXT     there is no worker

Requests come one at a time. The manager's end closes when it wants no more of the zygote, or has died.

**Whose child a worker is.** The zygote forks a process between, in advance. This waits for the request, makes itself
ready in the worker's place (output, environment, signals), forks the worker and ends: so the worker becomes the child
of the manager, which is a subreaper and hears of its death at once. When the zygote has reaped the process between, it
says `forked`, for by then that is so, and forks the next one.

**No worker before its manager knows it.** A worker waits for a byte on `go` before it serves. When that closes instead
(the manager has died, or does not want this worker any more), it ends: nobody can be left over.

**Hooks of os.register_at_fork** run once a worker, with the worker's own environment and output, the session its own:
the process between is made by libc's fork, of which Python does not know. (With threads about, whose locks only the
hooks can put right, or without ctypes, it is made by os.fork and they run for it too.)

What else of a fork is the application's to know: threads do not come along, and whatever it has opened is shared by all
workers, a connection to a database above all. What it prints while it is imported is the zygote's.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

#: The manager tells the zygote's time to end by closing the channel; of systemd, who tells all of a unit, it hears
#: nothing, for until then it has workers to replace.
_IGNORED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_LONGEST: Final = 256 * 1024  # bytes of a request
_MOST_FDS: Final = 253  # SCM_MAX_FD (linux/net/scm.h)
_GO: Final = b"g"
_VARIABLE: Final = b"FCGIMGR_PROCESS="
_HUNG_UP: Final = b"hung up"  # what the process between reports when there will be no request any more


class Zygote:
    """`channel`: the descriptor of the socket to the manager. To be made before the application is imported, so that
    its hook runs before the application's."""

    def __init__(self, channel: int) -> None:
        os.set_inheritable(channel, False)
        self._channel = socket.socket(fileno=channel)
        self._bearing: tuple[bytes, int] | None = None  # in the process between: request, report
        self._go = -1  # in a worker: by which it is told that it may serve
        self._place = Place.find()
        self._warned = False
        os.register_at_fork(after_in_child=self._born)
        name_process(f"zygote:{os.environ.get('FCGIMGR_POOL', '')}")

    def fork_workers(self) -> None:
        """Fork a worker each time the manager asks. Returns in every worker, and never in the zygote."""
        # What is there now lives as long as the zygote. The collector would write to all of it, and unshare it.
        gc.collect()
        gc.freeze()
        before = {ignored: signal.getsignal(ignored) for ignored in _IGNORED}
        for ignored, disposition in before.items():
            if disposition is not None:  # else the application has set it, in C
                signal.signal(ignored, signal.SIG_IGN)
        self._say(b"ready")
        while (go := self._fork(before)) is None:
            pass
        self._go = go

    def wait_for_go(self) -> None:
        """In a worker that is ready to serve: until it may, or never."""
        name = os.environ.get("FCGIMGR_PROCESS", "")
        name_process(name)
        if os.read(self._go, 1) != _GO:
            os._exit(0)
        os.close(self._go)
        if self._place is not None:
            self._place.write(name)

    def _fork(self, dispositions: dict[signal.Signals, Any]) -> int | None:
        """In the worker: its `go`. In the zygote None, when the manager has been told how it went."""
        self._warn_of_threads()
        _flush()
        reader, writer = os.pipe()
        try:
            between = _fork_unnoticed()
        except OSError as error:
            os.close(reader)
            os.close(writer)
            self._refuse(f"cannot fork: {error.strerror}")
            return None
        if between == 0:
            os.close(reader)
            return self._bear(dispositions, writer)
        os.close(writer)
        with open(reader, "rb", buffering=0) as report:
            said = report.read()  # until nobody can say more
        with contextlib.suppress(ChildProcessError):  # the application ignores SIGCHLD: the kernel has reaped it
            os.waitpid(between, 0)
        number, _, failure = said.partition(b" ")
        if not number:  # somebody has killed it
            print("fcgimgr worker: the process that was to fork the next worker has died", file=sys.stderr, flush=True)
            os._exit(1)
        if said == _HUNG_UP:
            os._exit(0)  # not sys.exit: what atexit would clean up, the workers still use
        self._say(b"failed %s %s" % (number, failure[:1000]) if failure else b"forked %s" % number)
        return None

    def _refuse(self, why: str) -> None:
        number, _, fds = self._hear()
        if not number:
            os._exit(0)
        for fd in fds:
            os.close(fd)
        self._say(b"failed %s %s" % (number, why.encode()))

    def _hear(self) -> tuple[bytes, Sequence[bytes], Sequence[int]]:
        """The next request: its number, entries and descriptors. An empty number: the manager has hung up."""
        try:
            packet, fds, *_ = socket.recv_fds(self._channel, _LONGEST, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        except OSError:  # ECONNRESET: the manager has died before it read all that we said
            packet, fds = b"", []
        number, *entries = packet.split(b"\0")
        return number, entries, [_beyond_standard(fd) for fd in fds]

    def _bear(self, dispositions: dict[signal.Signals, Any], report: int) -> int:
        """In the process between: be as the worker is to be, and fork it. Returns in the worker, with its `go`."""
        try:
            number, entries, fds = self._hear()
            if not number:
                os.write(report, _HUNG_UP)
                os._exit(0)
            os.write(report, number + b" ")
            go, stdout, stderr, *others = fds
            for fd, target in ((stdout, 1), (stderr, 2)):
                os.dup2(fd, target)
                os.close(fd)
            _put_on(entries, others)
            for signal_number, disposition in dispositions.items():
                if disposition is not None:
                    signal.signal(signal_number, disposition)
            self._bearing = number, report
            worker = os.fork()
        except BaseException as error:  # noqa: BLE001  # whatever it is, the zygote must hear of it, and only one go on
            os.write(report, f"cannot become a worker: {error}".encode())
            os._exit(1)
        if worker != 0:
            os._exit(0)
        return go

    def _born(self) -> None:
        """The first thing in a child of any fork. Of the process between's it is the worker, and says so: before the
        application's hooks, which may take their time."""
        if self._bearing is not None:
            (number, report), self._bearing = self._bearing, None
            os.setsid()
            self._say(b"born %s" % number)
            self._channel.close()
            os.close(report)

    def _say(self, message: bytes) -> None:
        try:
            self._channel.send(message)
        except OSError:  # the manager has died, or does not want us any more
            os._exit(0)

    def _warn_of_threads(self) -> None:
        if threading.active_count() == 1 or self._warned:
            return
        self._warned = True
        names = ", ".join(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
        print(
            f"fcgimgr worker: the application has started threads while it was imported ({names}); a fork does not "
            "take them along, so no worker has them: start them at the first request, or by "
            "os.register_at_fork(after_in_child=…), or set preload = false",
            file=sys.stderr,
            flush=True,
        )


def _fork_unnoticed() -> int:
    """os.fork without the hooks of os.register_at_fork, where that can be. OSError."""
    if threading.active_count() > 1 or _libc_fork is None:
        return os.fork()
    import ctypes

    ctypes.set_errno(0)
    pid: int = _libc_fork()
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return pid


def _find_libc_fork() -> Callable[[], int] | None:
    try:
        import ctypes

        # PyDLL keeps the interpreter's lock: the child has it as well, and nobody else there could want it.
        return ctypes.PyDLL(None, use_errno=True).fork
    except (ImportError, OSError, AttributeError):  # a Python built without it
        return None


_libc_fork = _find_libc_fork()


def _put_on(entries: Iterable[bytes], fds: Sequence[int]) -> None:
    """Have the environment that these entries of a request make of the present one."""
    left = iter(fds)
    for entry in entries:
        name, _, value = os.fsdecode(entry[1:]).partition("=")
        if entry[:1] == b"+":
            os.environ[name] = value
        elif entry[:1] == b"*":
            os.environ[name] = ",".join(str(next(left)) for _ in range(int(value)))
        else:
            os.environ.pop(name, None)


def _beyond_standard(fd: int) -> int:
    """The same, clear of 0, 1 and 2, should the application have closed one of these."""
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def _flush() -> None:
    """What was printed and not written yet would be written by every worker."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # None, closed, or a pipe without a reader
            stream.flush()


def name_process(name: str) -> None:
    """What ps and top show, at most 15 bytes; without /proc (in a chroot) it stays as it is."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as comm:
        comm.write(os.fsencode(name)[:15])


class Place:
    """Where the kernel has what this process was started with as $FCGIMGR_PROCESS (proc(5): env_start): `room` bytes.

    By that the manager tells whose descendants are whose, and Python's os.environ changes nothing of it. So a worker
    writes its own name over the zygote's, which was started with room enough.
    """

    def __init__(self, at: int, room: int) -> None:
        self._at = at
        self._room = room

    @classmethod
    def find(cls) -> Place | None:
        """None: there is no /proc (in a chroot), or no such variable."""
        try:
            with open("/proc/self/stat", "rb") as stat, open("/proc/self/environ", "rb") as environ:
                start = int(stat.read().rpartition(b")")[2].split()[47])
                block = b"\0" + environ.read()
        except OSError:
            return None
        at = block.find(b"\0" + _VARIABLE)
        return (
            cls(start + at + len(_VARIABLE), block.find(b"\0", at + 1) - at - 1 - len(_VARIABLE)) if at >= 0 else None
        )

    def write(self, process: str) -> None:
        written = os.fsencode(process)
        if len(written) <= self._room:
            with contextlib.suppress(OSError), open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(self._at)
                memory.write(written.ljust(self._room, b"\0"))
