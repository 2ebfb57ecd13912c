"""What the kernel itself calls a file: the device of its file system, and the number of its inode there.

That is how socket diagnostics (unix(7), sock_diag(7)) name the file that a socket is bound to. stat(2) tells what the
file system likes to be seen: on an overlay of two file systems (Docker's, without xino) and in a subvolume of btrfs it
is another device. So its mount is asked for the one, and fdinfo, from Linux 5.14 on, for the other (proc(5)).
"""

import os
from typing import Final

# Before 5.8 it gave its inodes numbers that nothing else tells.
_HIDES_INODES: Final = b"overlay"


def identity_of(fd: int) -> tuple[int, int] | None:
    """(device, inode) of what is open; O_PATH will do. None: nothing tells. OSError: it is not open."""
    found = os.fstat(fd)
    told = dict(line.split(b":", 1) for line in _lines(f"/proc/self/fdinfo/{fd}") if b":" in line)
    device, kind = _mount(told.get(b"mnt_id", b"").strip())
    if b"ino" not in told and kind == _HIDES_INODES:
        return None
    return found.st_dev if device is None else device, int(told.get(b"ino", found.st_ino))


def _mount(number: bytes) -> tuple[int | None, bytes]:
    """The device of this mount, and its kind of file system; None: it is not to be seen here."""
    for line in _lines("/proc/self/mountinfo"):
        words = line.split(b" ")
        if words[0] == number:
            major, minor = words[2].split(b":")
            return os.makedev(int(major), int(minor)), words[words.index(b"-") + 1]
    return None, b""


def _lines(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read().splitlines()
    except OSError:  # no /proc
        return []
