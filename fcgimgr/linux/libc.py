"""The system calls Python has no name for: prctl, close_range, pidfd_getfd, renameat2 and inotify.

Kept in one place because ctypes knows nothing of the C prototypes: every argument is passed as a full machine word.
"""

import contextlib
import ctypes
import errno
import os
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
PR_GET_CHILD_SUBREAPER: Final = 37
PR_SET_NO_NEW_PRIVS: Final = 38

# The same on every architecture but alpha: syscalls since 5.1 share their numbers.
_SYS_CLOSE_RANGE: Final = 436
_SYS_PIDFD_GETFD: Final = 438
_HIGHEST_FD: Final = 0xFFFFFFFF
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2

# PyDLL keeps the GIL: none of these calls can block, and a forked child has nobody to hand it to.
libc: Final = ctypes.PyDLL(None, use_errno=True)


def prctl(option: int, argument: int = 0) -> int:
    """prctl(2) with one argument; OSError when it fails."""
    word = ctypes.c_ulong
    answer: int = libc.prctl(ctypes.c_int(option), word(argument), word(0), word(0), word(0))
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


def close_all_but(kept: int, first: int, fallback_end: int) -> None:
    """Close every fd from `first` on except `kept`.

    Before Linux 5.9 one by one: those that /proc lists; those below `fallback_end`, where there is none to read it by.
    """
    for low, high in ((first, kept - 1), (kept + 1, _HIGHEST_FD)):
        if low <= high and _close_range(low, high) != 0:
            _close_one_by_one(low, high, fallback_end)


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A close-on-exec descriptor of ours of what fd `number` of that process is. OSError (pidfd_getfd(2)): why not."""
    word = ctypes.c_ulong
    answer: int = libc.syscall(ctypes.c_long(_SYS_PIDFD_GETFD), word(pidfd), word(number), word(0))
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


def exchange(one: str, other: str, *, in_directory: int, in_other: int) -> None:
    """Let two names, each in a directory that is open, lead to each other's file, in one step (renameat2(2)).

    OSError; ENOSYS: the C library is too old; EINVAL: the file system cannot do that.
    """
    _renameat2(one, other, in_directory, in_other, _RENAME_EXCHANGE)


def rename_to_free(old: str, new: str, *, in_directory: int, in_other: int) -> None:
    """Rename a file to a name that nothing has, in one step. OSError as of `exchange`; EEXIST: something has it."""
    _renameat2(old, new, in_directory, in_other, _RENAME_NOREPLACE)


def _renameat2(old: str, new: str, in_directory: int, in_other: int, flags: int) -> None:
    # By the C library's name: unlike the two above, the system call has another number on each architecture.
    call = getattr(libc, "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fd = ctypes.c_int
    _checked(call(fd(in_directory), os.fsencode(old), fd(in_other), os.fsencode(new), ctypes.c_uint(flags)))


def inotify_init() -> int:
    """A new inotify instance, non-blocking and close-on-exec (inotify_init1(2)). OSError; EMFILE: too many."""
    return _checked(libc.inotify_init1(ctypes.c_int(os.O_NONBLOCK | os.O_CLOEXEC)))


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """The number of the watch (inotify_add_watch(2)). OSError; ENOSPC: /proc/sys/fs/inotify/max_user_watches."""
    return _checked(libc.inotify_add_watch(ctypes.c_int(fd), os.fsencode(path), ctypes.c_uint32(mask)))


def inotify_rm_watch(fd: int, number: int) -> None:
    """Take a watch away (inotify_rm_watch(2)). OSError; EINVAL: it has gone already."""
    _checked(libc.inotify_rm_watch(ctypes.c_int(fd), ctypes.c_int(number)))


def _checked(answer: int) -> int:
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


def _close_one_by_one(low: int, high: int, fallback_end: int) -> None:
    try:
        listed = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        os.closerange(low, min(high + 1, fallback_end))
        return
    for fd in listed:
        if low <= fd <= high:
            with contextlib.suppress(OSError):  # the one that listdir itself had open
                os.close(fd)


def _close_range(low: int, high: int) -> int:
    word = ctypes.c_ulong
    answer: int = libc.syscall(ctypes.c_long(_SYS_CLOSE_RANGE), word(low), word(high), word(0))
    return answer
