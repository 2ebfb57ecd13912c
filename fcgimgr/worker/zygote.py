"""The zygote of a pool with `preload = true`: it imports the application once, and the workers are forks of it.

    PYTHON …/fcgimgr/worker/start.py --zygote 3 --server … module:callable

A fork takes a millisecond where an import takes seconds, and shares the memory of all that was imported. The zygote
itself never serves, and never has a listener.

It talks to the manager on file descriptor 3, a Unix socket that keeps packets apart (SOCK_SEQPACKET), a message each:

    zygote  → manager   ready              the application is imported
    manager → spare     ID␀ENTRY␀ENTRY…    be a worker, with these descriptors: go, stdout, stderr, and more. ENTRY is
                                           +NAME=VALUE  a variable to set
                                           -NAME        one to unset
                                           *NAME=COUNT  one to set to the numbers of so many of the descriptors
    spare   → manager   born ID            it is one, in a session of its own; who, the kernel tells (SCM_CREDENTIALS)
    zygote  → manager   failed ID TEXT     there is no worker

Requests come one at a time. The manager's end closes when it wants no more of the zygote, or has died.

**The spare.** The fork is made in advance: it costs milliseconds, and while a worker is missing nobody should wait for
it. So there is always one process, the spare, that waits for the next request, and has only to put on the worker's
output, environment and signals. It is taken from the zygote by two forks, of which the one between ends at once: so it
becomes the child of the manager, which is a subreaper and hears of a worker's death like of any other's. It listens
when that is so, of which the zygote tells it. When it serves, the zygote makes the next one.

**No worker before its manager knows it.** A worker waits for a byte on `go` before it serves. When that closes instead
(the manager has died, or does not want this worker any more), it ends: nobody can be left over.

**Hooks of os.register_at_fork** run once a worker, with the worker's own environment and output, the session its own:
the spare waits in the first of them, ours. (Of the fork between, Python does not hear. Without ctypes it must, and then
they run once more, in the process between.)

What else of a fork is the application's to know: threads do not come along, and whatever it has opened is shared by all
workers, a connection to a database above all. What it prints while it is imported is the zygote's.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from fcgimgr.worker.patched import pair
from fcgimgr.worker.saying import say, told

#: The manager tells the zygote's time to end by closing the channel; of systemd, who tells all of a unit, it hears
#: nothing, for until then it has workers to replace.
_IGNORED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_LONGEST: Final = 256 * 1024  # bytes of a request
_MOST_FDS: Final = 253  # SCM_MAX_FD (linux/net/scm.h)
_GO: Final = b"g"
_VARIABLE: Final = b"FCGIMGR_PROCESS="
#: What a spare reports to the zygote: there will be no request any more; after the number of one, that it is a worker.
_HUNG_UP: Final = b"hung up"
_BORN: Final = b"born"
#: Seconds for which the zygote waits until a new worker serves before it makes the next spare (a hook of its may take
#: its time), and then for the worker's first answers, if no other one is asked for: a fork keeps a processor busy for
#: milliseconds, and for as long those who write to the memory that it shares.
_PATIENCE: Final = 1.0
_REST: Final = 0.1
#: How often the zygote rehearses: until its interpreter has made quick what is done often (PEP 659).
_REHEARSALS: Final = 32
#: A spare that dies by itself in fewer seconds is no accident: something does not let it live.
_SHORT_LIFE: Final = 1.0


class Zygote:
    """`channel`: the descriptor of the socket to the manager. To be made before the application is imported, so that
    its hook runs before the application's."""

    def __init__(self, channel: int) -> None:
        os.set_inheritable(channel, False)
        self._channel = socket.socket(fileno=channel)
        self._go = -1  # in a worker: by which it is told that it may serve
        self._line: socket.socket | None = None  # in a worker: to the zygote, closed when it serves
        self._spare: socket.socket | None = None  # in a spare that is to be: the line to the zygote
        self._dispositions: dict[signal.Signals, Any] = {}  # of signals, for a worker
        self._rehearse: Callable[[], None] = nothing
        self._place = Place.find()
        self._warned = False
        os.register_at_fork(after_in_child=self._wait_in_a_spare)
        name_process(f"zygote:{os.environ.get('FCGIMGR_POOL', '')}")

    def fork_workers(self, rehearse: Callable[[], None]) -> None:
        """Have a worker each time the manager asks. Returns in every worker, and never in the zygote.

        `rehearse`: what can be done in advance of what a worker will do, in the spare.
        """
        self._rehearse = rehearse
        for _ in range(_REHEARSALS):
            rehearse()
        # What is there now lives as long as the zygote. The collector would write to all of it, and unshare it.
        gc.collect()
        gc.freeze()
        for ignored in _IGNORED:
            if (disposition := signal.getsignal(ignored)) is not None:  # else the application has set it, in C
                self._dispositions[ignored] = disposition
                signal.signal(ignored, signal.SIG_IGN)
        self._say(b"ready")
        while not self._fork():
            pass

    def wait_for_go(self) -> None:
        """In a worker that is ready to serve: until it may, or never."""
        name = os.environ.get("FCGIMGR_PROCESS", "")
        name_process(name)
        if os.read(self._go, 1) != _GO:
            os._exit(0)
        os.close(self._go)
        if self._place is not None:
            self._place.write(name)
        if self._line is not None:
            self._line.close()

    def _fork(self) -> bool:
        """In a worker True. In the zygote False, when there is one, or the manager has been told that there is none."""
        self._warn_of_threads()
        _flush()
        line, its = pair(socket.SOCK_SEQPACKET)
        begun = time.monotonic()
        with line, its:
            try:
                if self._fork_a_sibling(its):
                    return True
            except OSError as error:
                self._refuse(f"cannot fork: {error.strerror}")
                return False
            its.close()
            self._attend(line, begun)
            return False

    def _fork_a_sibling(self, line: socket.socket) -> bool:
        """Fork a spare, which is no child of ours but of our parent: by a process between, which has ended when this
        returns in the zygote. True: here is the worker that the spare has become. OSError."""
        between = _fork_unheard() if _c is not None else os.fork()
        if between == 0:
            try:
                self._spare = line
                if (_fork_once_more() if _c is not None else os.fork()) == 0:
                    return True
            except OSError as error:
                os._exit(error.errno or 1)
            os._exit(0)
        try:
            _, status = os.waitpid(between, 0)
        except ChildProcessError:  # the application ignores SIGCHLD: the kernel has reaped it
            status = 0
        if status != 0:
            code = os.waitstatus_to_exitcode(status)
            raise OSError(code, os.strerror(code) if code > 0 else f"signal {-code} has killed the process between")
        return False

    def _attend(self, line: socket.socket, begun: float) -> None:
        """Watch over a spare, of `begun` (monotonic), until it serves or will not."""
        with contextlib.suppress(BrokenPipeError):  # it has been killed
            line.send(_GO)
        number = _receive(line)
        if number == _HUNG_UP:
            os._exit(0)  # not sys.exit: what atexit would clean up, the workers still use
        if not number:  # somebody has killed it
            if time.monotonic() - begun < _SHORT_LIFE:
                say("the process that was to be the next worker dies")
                os._exit(1)
            return
        said = _receive(line)
        if said == _BORN:
            select.select([line], [], [], _PATIENCE)
            select.select([self._channel], [], [], _REST)
        else:
            self._say(b"failed %s %s" % (number, said or b"it was killed before it was a worker"))

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

    def _wait_in_a_spare(self) -> None:
        """The first hook in a child of any fork. A spare waits in it for a request, and leaves it as a worker."""
        if (line := self._spare) is None:
            return
        self._spare = None
        try:
            self._line = line.dup()  # which outlives the zygote's
            if _receive(line) != _GO:  # the zygote has died
                os._exit(0)
            self._rehearse()
            number, entries, fds = self._hear()
            line.send(number or _HUNG_UP)
            if not number:
                os._exit(0)
        except BaseException as error:  # noqa: BLE001  # nobody is to go on as if it were the zygote
            say(f"no worker came of the spare process:\n{told(error)}")
            os._exit(1)
        try:
            self._become_a_worker(entries, fds)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the zygote must hear of it
            line.send(f"it cannot become a worker: {error}".encode()[:1000])
            os._exit(1)
        self._say(b"born %s" % number)
        line.send(_BORN)
        self._channel.close()

    def _become_a_worker(self, entries: Iterable[bytes], fds: Sequence[int]) -> None:
        self._go, stdout, stderr, *others = fds
        for fd, target in ((stdout, 1), (stderr, 2)):
            os.dup2(fd, target)
            os.close(fd)
        _put_on(entries, others)
        for signal_number, disposition in self._dispositions.items():
            signal.signal(signal_number, disposition)
        os.setsid()

    def _say(self, message: bytes) -> None:
        try:
            self._channel.send(message)
        except OSError:  # the manager has died, or does not want us any more
            os._exit(0)

    def _warn_of_threads(self) -> None:
        if self._warned or (count := _count_threads()) == 1:
            return
        self._warned = True
        names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        if len(names) < count - 1:
            names.append(f"{count - 1 - len(names)} that Python's threading does not know")
        say(
            f"the application has started threads while it was imported ({', '.join(names)}); a fork "
            "does not take them along, so no worker has them: start them at the first request, or by "
            "os.register_at_fork(after_in_child=…), or set preload = false"
        )


def _count_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # in a chroot
        return threading.active_count()


def _fork_unheard() -> int:
    """fork(2) as Python's os.fork does it, but that the child has not heard of it yet: it may do nothing but go on to
    _fork_once_more, or end. OSError."""
    import ctypes

    _c.PyOS_BeforeFork()
    pid: int = _c.fork()
    code = ctypes.get_errno()
    if pid != 0:
        _c.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, os.strerror(code))
    return pid


def _fork_once_more() -> int:
    """In a child of _fork_unheard: fork(2) a child that hears of both forks as of one. OSError."""
    import ctypes

    pid: int = _c.fork()
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if pid == 0:
        _c.PyOS_AfterFork_Child()
    return pid


def _find_c() -> Any:
    """libc's fork, and what Python has for programs that embed it: to be called before and after a fork that it does
    not make itself ("Process Control" of its C API), which runs the hooks. None: a Python without ctypes."""
    try:
        import ctypes

        # PyDLL keeps the interpreter's lock: the child has it as well, and nobody else there could want it.
        c = ctypes.PyDLL(None, use_errno=True)
        for name in ("PyOS_BeforeFork", "PyOS_AfterFork_Parent", "PyOS_AfterFork_Child"):
            getattr(c, name).restype = None
        c.fork.restype = ctypes.c_int
    except (ImportError, OSError, AttributeError):
        return None
    return c


_c = _find_c()


def nothing() -> None:
    """No rehearsal."""


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


def _receive(line: socket.socket) -> bytes:
    """The next message; b"" when the other end has gone."""
    try:
        return line.recv(2048)
    except ConnectionResetError:  # with a message of ours unread
        return b""


def _flush() -> None:
    """What was printed and not written yet would be written by every worker."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # None, closed, a pipe without a reader, or the application's own
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
