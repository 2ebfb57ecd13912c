"""State that survives an exec: a file without a name, sealed so that what is read is what was written.

No disk is touched and nothing is left behind, whatever becomes of the new program.
"""

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NoReturn

from fcgimgr.linux.errors import LinuxError, refuse

_SEALED: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def memfd(name: str, content: bytes) -> int:
    """A close-on-exec descriptor of a new sealed file with this content; `name` shows in /proc/PID/fd. LinuxError."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        refuse(f"memfd {name}", error)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALED)
    except OSError as error:
        os.close(fd)
        refuse(f"memfd {name}: cannot hold {len(content)} bytes", error)
    return fd


def read_memfd(fd: int) -> bytes:
    """The content, from its beginning, as often as one likes. LinuxError: not open, or not a sealed memfd.

    An fd number from the environment may be anything: only what nobody can change any more is believed.
    """
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALED != _SEALED:
            raise LinuxError(f"fd {fd}: is not a sealed memfd")
        size = os.fstat(fd).st_size
        content = b""
        while len(content) < size:
            content += os.pread(fd, size - len(content), len(content))
    except OSError as error:
        refuse(f"fd {fd}: is not a sealed memfd", error)
    return content


def exec_keeping(executable: str, argv: Sequence[str], environment: Mapping[str, str], fds: Iterable[int]) -> NoReturn:
    """Become another program, pid and children the same, and pass on `fds` under their numbers besides 0, 1 and 2.

    LinuxError when it cannot be executed or one is not open: then all is as before, the fds close-on-exec again.
    """
    passed: list[int] = []
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
            passed.append(fd)
        os.execve(executable, list(argv), dict(environment))
    except OSError as error:
        refuse(f"cannot execute {executable}", error)
    finally:
        for fd in passed:
            os.set_inheritable(fd, False)
