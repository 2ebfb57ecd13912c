"""A kernel that lacks what newer ones have, for a program and all it starts: close_range(2), which came with Linux 5.9,
and SO_PASSRIGHTS, which came with 6.16. By a filter of system calls (seccomp(2)) that answers as such a kernel does.

    python tests/older_kernel.py COMMAND…
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Final

#: What stands before a command that is to run on one.
OLDER_KERNEL: Final = (sys.executable, os.path.abspath(__file__))
AVAILABLE: Final = platform.machine() == "x86_64"  # system calls have other numbers elsewhere

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_MODE_FILTER = 2
_CLOSE_RANGE, _SETSOCKOPT, _SO_PASSRIGHTS = 436, 54, 83
_LOAD, _IS, _ANSWER = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NUMBER, _THIRD_ARGUMENT = 0, 32  # of struct seccomp_data


def be_on_one() -> None:
    """From now on, for good."""
    instructions = [
        (_LOAD, 0, 0, _NUMBER),
        (_IS, 4, 0, _CLOSE_RANGE),
        (_IS, 0, 2, _SETSOCKOPT),
        (_LOAD, 0, 0, _THIRD_ARGUMENT),
        (_IS, 2, 0, _SO_PASSRIGHTS),
        (_ANSWER, 0, 0, _ALLOW),
        (_ANSWER, 0, 0, _FAIL | errno.ENOSYS),
        (_ANSWER, 0, 0, _FAIL | errno.ENOPROTOOPT),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no filter of system calls can be had")


if __name__ == "__main__":
    be_on_one()
    os.execvp(sys.argv[1], sys.argv[1:])
