"""What /proc tells about a process. None means unknown: the process is gone, or we may not look.

These are called for a thousand processes in one status, so they read with bare system calls.

A process that executes another program keeps a lock (exec_update_lock) while its close-on-exec descriptors are closed,
and so for as long as a file system likes that one of them is of (FUSE). Some kernels wait for that lock where they show
`stat`, all do at `environ`, `syscall` and what is behind `fd`, and no signal but SIGKILL ends that. `status`, `statm`,
`comm`, `task` and `children` wait for nobody. What reads something else says that it may block: it is for a helper
(helper.py, glance.py).
"""

import errno
import os
from collections.abc import Callable, Collection, Container, Iterator
from typing import Final

from fcgimgr.linux.errors import refuse

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")

#: Of one process, descriptors that are looked at, or threads and descendants, where others wait meanwhile.
MOST_FDS: Final = 2048
MOST_PROCESSES: Final = 512

# A longer answer may have come in part: seq_file hands out whole records, about a page of them at a time.
_ONE_READ: Final = 2048


def start_time(pid: int) -> int | None:
    """When it started, in clock ticks since boot: with the pid, the identity of a process (proc(5), stat field 22).

    May block, unless the process is our own, or of those that we have just forked, or a zombie.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def age(pid: int, uptime: float) -> float | None:
    """Seconds since it started. uptime: seconds since boot, as time.clock_gettime(CLOCK_BOOTTIME) gives them."""
    ticks = start_time(pid)
    return None if ticks is None else max(0.0, uptime - ticks / _TICKS)


def state(pid: int) -> str | None:
    """One letter: R running, S sleeping, D disk, T stopped, Z zombie … (proc(5), stat field 3)."""
    return _state(_read(f"/proc/{pid}/status"))


def tracer(pid: int) -> int | None:
    """Who traces it (ptrace(2)): 0 is nobody."""
    return _from_status(pid, b"TracerPid:", 10)


def capabilities(pid: int) -> int | None:
    """Those in force, a bit for each (CapEff)."""
    return _from_status(pid, b"CapEff:", 16)


def signal_waits(thread: int) -> bool:
    """Whether a signal has been sent to this thread, or its process, that it does not block and has not taken yet."""
    waiting = (_from_status(thread, b"SigPnd:", 16) or 0) | (_from_status(thread, b"ShdPnd:", 16) or 0)
    return bool(waiting & ~(_from_status(thread, b"SigBlk:", 16) or 0))


def wait_status(pid: int) -> int | None:
    """How it ended, as waitpid(2) has it, of a zombie (proc(5), stat field 52). None: it is none, or another user's."""
    fields = _stat(pid)
    if not fields or fields[0] != b"Z" or (os.geteuid() not in (0, owner(pid))):
        return None
    return int(fields[49])


def owner(pid: int) -> int | None:
    """Its user."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def parent(pid: int) -> int | None:
    """The pid of its parent."""
    return _from_status(pid, b"PPid:", 10)


def rss(pid: int) -> int | None:
    """Resident memory in bytes. A zombie has 0."""
    text = _read(f"/proc/{pid}/statm")
    return int(text.split()[1]) * _PAGE if text else None


def is_dying(pid: int) -> bool:
    """Whether its memory has gone already; its children may not yet have been given to another parent then."""
    text = _read(f"/proc/{pid}/statm")
    return text is not None and text.startswith(b"0 ")


def session(pid: int) -> int | None:
    """The id of its session: the pid of the process we started, for all its descendants that did not leave it."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def children(pid: int, most: int | None = None) -> list[int] | None:
    """The pids of its children, at one glance per thread: one that forks meanwhile may be missed.

    most: so many threads are looked at.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")[:most]
    except OSError:
        return None
    found: list[int] = []
    for thread in threads:
        text = _read(f"/proc/{pid}/task/{thread}/children")
        if text is None:  # a kernel without CONFIG_PROC_CHILDREN, or the thread is gone
            return [other for other in pids() if parent(other) == pid]
        found += map(int, text.split())
    return found


def descendants(pid: int, most: int | None = None) -> list[int]:
    """The processes below this one: php-cgi's and fcgiwrap's accept in its place. most: some so many are enough."""
    found = list(children(pid, most) or ())
    for one in found:  # which grows meanwhile
        if most is not None and len(found) >= most:
            return found[:most]
        found += children(one, most) or ()
    return found


def environment_of(pid: int) -> dict[str, str] | None:
    """The environment it was started with. None when it is gone or belongs to another user.

    It is read from its memory, and so it may never come (linux/helper.py).
    """
    text = _read(f"/proc/{pid}/environ")
    if text is None:
        return None
    pairs = (os.fsdecode(entry).partition("=") for entry in text.split(b"\0") if b"=" in entry)
    return {key: value for key, _, value in pairs}


def command(pid: int) -> str | None:
    """Its short name, at most 15 characters (comm), for messages."""
    text = _read(f"/proc/{pid}/comm")
    return text.decode(errors="replace").rstrip("\n") if text else None


def configuration_of(pid: int) -> str | None:
    """The configuration that it runs as a manager of ours, by its command line; None: it is none."""
    words = (_read(f"/proc/{pid}/cmdline") or b"").split(b"\0")
    try:
        place = words.index(b"fcgimgr.manager")
        return os.fsdecode(words[words.index(b"--config", place) + 1])
    except (ValueError, IndexError):
        return None


def socket_inodes(pid: int, most: int | None = None) -> set[int] | None:
    """Inodes of the sockets it has open; else as `sockets`. May block."""
    found = sockets(pid, most)
    return None if found is None else set(found.values())


def sockets(pid: int, most: int | None = None) -> dict[int, int] | None:
    """{fd: inode} of the sockets it has open. None when it is gone or belongs to another user, or has more than `most`
    descriptors: each costs a microsecond or two. May block.
    """
    try:
        return dict(open_sockets(pid, most))
    except OSError:  # also when it died or changed its user while we looked
        return None


def holds(pid: int, inodes: Container[int], most: int = MOST_FDS) -> bool | None:
    """Whether it has one of these sockets open. None: as of `sockets`, unless one is found before that. May block."""
    try:
        return any(inode in inodes for _, inode in open_sockets(pid, most))
    except OSError:
        return None


def open_sockets(pid: int, most: int | None = None) -> Iterator[tuple[int, int]]:
    """(fd, inode) of the sockets it has open. OSError: as `sockets` has None. May block."""
    directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(directory) as entries:  # some at a time, however many there are
            for count, entry in enumerate(entries):
                if count == most:
                    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
                try:
                    target = os.readlink(entry.name, dir_fd=directory)
                except FileNotFoundError:
                    continue  # closed since we listed it
                if target.startswith("socket:["):
                    yield int(entry.name), int(target[8:-1])
    finally:
        os.close(directory)


def open_fd(pid: int, fd: int, flags: int, kind: str, is_it: Callable[[os.stat_result], bool]) -> int | None:
    """Open once more, as `flags` say and close-on-exec, what a process has as its `fd`; None: there is another thing.

    kind: what /proc shows of such a thing begins with this. OSError: it may not be looked at. May block.
    """
    try:
        # A process may put there what it likes, a device that acts on being opened too. O_PATH does not open it yet.
        found = os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        # Nor is a file's server asked about it, which may never answer (FUSE): its name is known without that.
        if not os.readlink(f"/proc/self/fd/{found}").startswith(kind) or not is_it(os.fstat(found)):
            return None
        return os.open(f"/proc/self/fd/{found}", flags | os.O_CLOEXEC)
    finally:
        os.close(found)


def threads(pid: int) -> int:
    """How many threads it has; 0 when it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def thread_states(pid: int) -> list[str] | None:
    """The state letter of each of its threads, as `state` gives the first one's. None when it is gone."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return None
    found = [_state(_read(f"/proc/{pid}/task/{thread}/status")) for thread in threads]
    return [state for state in found if state is not None] or None


def system_calls(pid: int) -> list[tuple[int, int]] | None:
    """(number, first argument) of the system call each of its threads waits in; (-1, 0): in none, it computes.

    A thread that is stopped shows the call it was stopped in. None: the process is gone, we may not look (it takes the
    right to ptrace it), or the kernel does not tell (CONFIG_HAVE_ARCH_TRACEHOOK).
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return None
    found: list[tuple[int, int]] = []
    for thread in threads:
        text = _read(f"/proc/{pid}/task/{thread}/syscall")
        if text is None:
            if os.path.exists(f"/proc/{pid}/task/{thread}"):
                return None
            continue  # this thread has ended
        words = text.split()
        inside = len(words) > 2 and words[0] != b"-1"
        found.append((int(words[0]), int(words[1], 16)) if inside else (-1, 0))
    return found or None


def boot_id() -> str:
    """The id of this boot: what was written down under another one is of processes long gone. LinuxError without it."""
    path = "/proc/sys/kernel/random/boot_id"
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError as error:
        refuse(path, error, "the manager needs /proc whole (systemd: no ProcSubset=pid)")


def pids() -> list[int]:
    """Every process there is."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def holders(
    inodes: Collection[int] | None, at: Callable[[int], None] = lambda pid: None, without: Container[int] = ()
) -> str:
    """ " by pid 12 (nginx)" for those that have one of these sockets open, as far as we may see; else nothing. Of a
    manager the configuration is told too.

    Walks all of /proc, but for `without`: for error messages only. May block; at: is told at whom it looks.
    """
    wanted = set(inodes or ())
    found: list[int] = []
    for pid in pids() if wanted else ():
        if pid not in without:
            at(pid)
            if holds(pid, wanted):
                found.append(pid)
    named = [f"pid {pid} ({_what_runs(pid)})" for pid in found[:3]]
    return f" by {', '.join(named)}" + (" and others" if len(found) > 3 else "") if named else ""


def _what_runs(pid: int) -> str:
    name, configuration = command(pid) or "gone", configuration_of(pid)
    if configuration is None or not configuration.isprintable():
        return name
    return f"{name} -c {configuration}"


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the third (state) on: the second, the name, may hold spaces and brackets."""
    text = _read(f"/proc/{pid}/stat")
    return text[text.rindex(b")") + 2 :].split() if text else None


def _state(status: bytes | None) -> str | None:
    """The state letter. The name, which comes before it, holds no newline there: it is escaped."""
    return chr(status[status.index(b"\nState:\t") + 8]) if status else None


def _from_status(pid: int, key: bytes, base: int) -> int | None:
    """A number from /proc/PID/status."""
    lines = (_read(f"/proc/{pid}/status") or b"").splitlines()
    return next((int(line[len(key) :], base) for line in lines if line.startswith(key)), None)


def _read(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 65536)
        if len(text) > _ONE_READ:
            while more := os.read(fd, 65536):
                text += more
        return text
    except OSError:  # ESRCH: it ended between the open and the read
        return None
    finally:
        os.close(fd)
