"""Opening a log file: where the manager is root and the directory is the application's, this is where care is needed.

- O_NOFOLLOW, and only regular files and character devices (`/dev/null`): a planted symbolic link must not lead root's
  pen elsewhere, a planted FIFO must not make the manager wait for its reader. Nor must a link in the place of a
  directory on the way to it (linux/directories.py). Nor a hard link, which only root could have been kept from making
  (fs.protected_hardlinks): in a directory where others may put one, a file has one name.
- New files are 0640: logs hold what users typed and what programs print when they break, so the world does not read
  them, and a group (Debian's `adm`) may. Another owner and mode are given to the file that was made, by its descriptor.
  A file that is already there keeps its own: whoever may write to the directory could have put another's there.
"""

import errno
import os
import stat
from collections.abc import Callable

from fcgimgr.linux.accounts import resolve_owner
from fcgimgr.linux.directories import LinkRefusedError, directory_of, has_another_name, is_ours_alone
from fcgimgr.linux.errors import LinuxError
from fcgimgr.manager.logs.target import reason

FILE_MODE = 0o640
# O_NONBLOCK: opening a FIFO or a modem line must not wait for the other side. Regular files ignore it.
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK

HINTS = {
    errno.ELOOP: "it is a symbolic link, which is not followed; name the file itself",
    errno.ENOENT: "its directory does not exist",
    errno.ENXIO: "it is not a regular file; name another path",
    errno.EISDIR: "it is a directory; name a file in it",
    errno.EMLINK: "it has another name (a hard link), and others may write to its directory; remove it",
}


def open_log(path: str, *, owner: tuple[int, int] | None, mode: int | None, note: Callable[[str], None]) -> int:
    """A descriptor that appends to `path`. A file created here gets `mode` and `owner` (uid, gid; -1: as it is).

    OSError when it cannot be opened. A refused owner or mode is told to `note` and is no error: whose the lines are
    matters less than that they are kept.
    """
    with directory_of(path) as (directory, name):
        return open_in(directory, name, owner=owner, mode=mode, note=note)


def open_to_read(path: str) -> int:
    """A descriptor to read the log at `path`, with the same care. OSError: it cannot be."""
    with directory_of(path) as (directory, name):
        return _open_existing(directory, name, FLAGS & ~(os.O_WRONLY | os.O_APPEND))


def open_in(
    directory: int, name: str, *, owner: tuple[int, int] | None, mode: int | None, note: Callable[[str], None]
) -> int:
    """The same for the file of this name in a directory that is open."""
    try:
        # With no more rights than it is to have: who can open it now can read it later.
        narrow = FILE_MODE if mode is None else FILE_MODE & mode
        fd = os.open(name, FLAGS | os.O_CREAT | os.O_EXCL, narrow, dir_fd=directory)
    except FileExistsError:
        return _open_existing(directory, name)
    try:
        if owner is not None:
            os.fchown(fd, *owner)
        if mode is not None:
            os.fchmod(fd, mode)
    except OSError as error:
        note(f"the new file cannot be given its owner and mode: {reason(error)}")
    return fd


def _open_existing(directory: int, name: str, flags: int = FLAGS) -> int:
    fd = os.open(name, flags, dir_fd=directory)
    kind = os.fstat(fd).st_mode
    if has_another_name(fd) and not is_ours_alone(directory):
        os.close(fd)
        raise OSError(errno.EMLINK, "has another name", name)
    if stat.S_ISREG(kind) or stat.S_ISCHR(kind):
        return fd
    os.close(fd)
    raise OSError(errno.ENXIO, "not a regular file", name)


def owner_of_logs(name: str | None) -> tuple[int, int] | None:
    """(uid, gid) of a logfile_owner; -1: whichever it is. LinuxError: there is no such user or group."""
    try:
        return None if name is None else resolve_owner(name)
    except LinuxError as error:
        raise LinuxError(f"logfile_owner: {error}") from error


def make_directory(path: str, like: os.stat_result) -> None:
    """Let the directory of the log at `path` be there again, as it was. OSError."""
    with directory_of(os.path.dirname(path)) as (parent, name):
        os.mkdir(name, 0o700, dir_fd=parent)
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.listdir(made):  # and would be given what is in that
            raise FileExistsError(errno.EEXIST, "somebody has put another directory in its place", name)
        if os.geteuid() == 0:
            os.fchown(made, like.st_uid, like.st_gid)
        os.fchmod(made, stat.S_IMODE(like.st_mode))
    finally:
        os.close(made)


def open_reason(error: OSError) -> str:
    """Why a log file could not be opened, with what to do about it where that is not plain."""
    if isinstance(error, LinkRefusedError):
        return reason(error)
    return HINTS.get(error.errno or 0) or reason(error)
