"""Memory that a child shares with us: a file without a name, of a size that nobody can change any more.

It is read by pread(2): whatever the child does to it, a read is a read, and waits for nobody. It is written to mapped,
for write(2) waits until nobody else is in one.
"""

import fcntl
import os
import stat
from typing import Final

from fcgimgr.linux import procfs
from fcgimgr.linux.errors import refuse

_SEALED: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def shared_memory(name: str, size: int) -> int:
    """A close-on-exec descriptor of `size` bytes of zeros; `name` shows in /proc/PID/fd. LinuxError."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        refuse(f"memfd {name}", error)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALED)
    except OSError as error:
        os.close(fd)
        refuse(f"memfd {name}: cannot have {size} bytes", error)
    return fd


def open_shared(pid: int, fd: int, inode: int) -> int | None:
    """A descriptor of the memory with this inode that a process has as its `fd`; None: it has another thing there.

    OSError: it may not be looked at.
    """

    def is_it(there: os.stat_result) -> bool:
        return stat.S_ISREG(there.st_mode) and there.st_ino == inode

    ours = procfs.open_fd(pid, fd, os.O_RDWR, "/memfd:", is_it)
    if ours is None or fcntl_seals(ours):
        return ours
    os.close(ours)
    return None


def find_shared(pid: int, inode: int) -> int | None:
    """The same, of whatever number it is there. OSError: it may not be looked at."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith("/memfd:"):
                found = open_shared(pid, int(name), inode)
                if found is not None:
                    return found
        except FileNotFoundError:
            continue  # closed since we listed it
    return None


def fcntl_seals(fd: int) -> bool:
    """Whether this is memory as `shared_memory` makes it."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALED == _SEALED
    except OSError:  # EINVAL: no memfd
        return False
