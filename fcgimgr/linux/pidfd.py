"""A process held by a descriptor: it tells of its end, and takes signals without fear of a reused pid, child or not.

A pid written down earlier may be another process's by now. So the descriptor is opened *first* and the identity checked
*after*: what the check sees is then what the descriptor holds, and that never changes.

This is the one place that signals others (tests/unit/test_signals_by_descriptor.py): the manager is root as a rule, and
the number of a process that has ended may be anybody's.
"""

import errno
import fcntl
import os
import select
import signal
import struct
from functools import cache
from typing import Final, Self

from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError, refuse
from fcgimgr.linux.libc import pidfd_getfd

# linux/pidfd.h: struct pidfd_info as of Linux 6.13, {mask: u64, cgroup: u64, pid … fsgid: 11 u32, exit_code: i32}. The
# size is a part of the request's number; a newer kernel takes the older, shorter one.
_INFO: Final = struct.Struct("=QQ11Ii")
_INFO_EXIT: Final = 1 << 3
_PIDFD_GET_INFO: Final = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(0xFF, 11, struct pidfd_info)
_PIDFD_SIGNAL_PROCESS_GROUP: Final = 1 << 2


class PidFd:
    """One process, for as long as this is open. poll(2) says readable when it has ended."""

    __slots__ = ("_fd", "pid")  # there is one for each process

    def __init__(self, pid: int) -> None:
        """LinuxError: there is no such process, or no fd is left."""
        self.pid = pid
        self._fd = -1
        try:
            self._fd = os.pidfd_open(pid)
        except OSError as error:
            refuse(f"pid {pid}", error)

    @classmethod
    def of(cls, pid: int, start_time: int | None, boot_id: str, identity: int | None = None) -> Self | None:
        """The very process that had this `identity`, or start time (`procfs.start_time`), in this boot; None: it
        has ended.
        """
        if boot_id != procfs.boot_id():
            return None
        try:
            found = cls(pid)
        except LinuxError:
            return None
        if found.was_known_as(start_time, identity) and not found.has_ended():
            return found
        found.close()
        return None

    def was_known_as(self, start_time: int | None, identity: int | None) -> bool:
        """Whether it is the one of which this was written down. Of an identity alone, where there is one."""
        if identity is not None and (own := self.identity) is not None:
            return own == identity
        return start_time is not None and procfs.start_time(self.pid) == start_time

    @property
    def is_there(self) -> bool:
        """Whether it was not reaped yet, be it dead or alive."""
        try:
            signal.pidfd_send_signal(self._fd, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    @property
    def identity(self) -> int | None:
        """What no other process of this boot has, or will have. None: before Linux 6.9 only the start time tells.

        Unlike that it can be had without asking the process (procfs): since there is pidfs, it is the inode.
        """
        about = os.fstat(self._fd)
        return about.st_ino if about.st_dev != _anonymous() else None

    @classmethod
    def below(cls, pid: int, ancestor: int) -> Self | None:
        """A process that descends from `ancestor`, which nobody reaps meanwhile; None: it is gone, or another now."""
        try:
            found = cls(pid)
        except LinuxError:
            return None
        above = procfs.parent(pid)
        while above and above != ancestor:
            above = procfs.parent(above)
        if above == ancestor and not found.has_ended():
            return found
        found.close()
        return None

    def fileno(self) -> int:
        return self._fd

    def has_ended(self) -> bool:
        """Whether it has ended, reaped or not."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def wait(self, patience: float) -> None:
        """Until it has ended. Blocks, for so many seconds at most."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll(patience * 1000)

    def signal(self, number: int) -> bool:
        """Send a signal to the process; False when it has ended and was reaped. LinuxError: not permitted."""
        self._refuse_special()
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise LinuxError(_not_permitted(f"pid {self.pid}", number)) from error
        return True

    def signal_group(self, number: int) -> bool:
        """Send a signal to the process group that it leads, or led: also when it has ended and was reaped.

        False: nobody is in it. LinuxError: not one of them permits it.
        """
        self._refuse_special()
        try:
            try:
                signal.pidfd_send_signal(self._fd, number, None, _PIDFD_SIGNAL_PROCESS_GROUP)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return self._signal_group_by_number(number)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise LinuxError(_not_permitted(f"process group {self.pid}", number)) from error
        return True

    def _signal_group_by_number(self, number: int) -> bool:
        """Before Linux 6.9. The number is the group's own until its leader is reaped, and then as long as it has
        members: if there is a process of that number then, it is another's.
        """
        if not self.is_there and procfs.state(self.pid) is not None:
            return False
        os.killpg(self.pid, number)
        return True

    def _refuse_special(self) -> None:
        # The init process is nobody's to signal, and a group 0 or 1 would be our own, or everybody.
        if self.pid <= 1:
            raise ValueError(f"pid {self.pid} is not to be signalled")

    def wait_status(self) -> int | None:
        """How it ended, as waitpid(2) has it, also of one that is not our child; None: unknown, or not yet.

        Known from Linux 6.15 on, once its parent (or pid 1) has reaped it, which may be shortly after `has_ended`.
        """
        info = bytearray(_INFO.size)
        struct.pack_into("=Q", info, 0, _INFO_EXIT)
        try:
            fcntl.ioctl(self._fd, _PIDFD_GET_INFO, info)
        except OSError:  # ENOTTY, EINVAL: an older kernel. ESRCH: one that forgets at the reaping
            return None
        mask, *_, status = _INFO.unpack(info)
        return status if mask & _INFO_EXIT else None

    def get_fd(self, number: int) -> int:
        """A descriptor of our own, close-on-exec, of what its fd `number` is: a listener comes back this way.

        LinuxError: not permitted (it takes the right to ptrace it: the same user and capabilities, and Yama's leave),
        no such fd, or a kernel before 5.6.
        """
        try:
            return pidfd_getfd(self._fd, number)
        except OSError as error:
            advice = ""
            if error.errno in (errno.EPERM, errno.EACCES):
                advice = "needs the right to ptrace it: its user or root, and /proc/sys/kernel/yama/ptrace_scope 0"
            refuse(f"pid {self.pid}: cannot take over its fd {number}", error, advice)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def which(pid: int) -> int | None:
    """What tells a process from all others that have had its number, or will: its identity, or where there is no such
    thing its start time. None: it is gone.
    """
    try:
        with PidFd(pid) as process:
            identity = process.identity
            return identity if identity is not None else procfs.start_time(pid)
    except LinuxError:
        return None


@cache
def _anonymous() -> int:
    """The device of the descriptors that all have the same inode, which pidfds were among."""
    fd = os.eventfd(0)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def _not_permitted(whom: str, number: int) -> str:
    return f"{whom}: not permitted to send signal {number}; it runs as another user, whom only root can signal"
