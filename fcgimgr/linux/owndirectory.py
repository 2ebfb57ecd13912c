"""A directory that the manager keeps files of its own in: made if it is not there, and used only if it is safe.

A directory that others may write to would let them replace the control socket or read what is not theirs, so what is
found there already must belong to root or to us, and be writable by nobody else (but for a sticky one like /tmp, in
which what we make ourselves is safe). A link in its place is followed as one on the way to it is, once: where nobody
else can have put it (`/var/run -> /run`). Root asks the same of all directories above it: whoever may rename one of
them may put another tree in its place.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fcgimgr.linux.directories import directory_of, itself, open_directory, others_who_may_change, who_else_may_write
from fcgimgr.linux.errors import LinuxError, refuse


def ensure_directory(path: str, mode: int, key: str) -> bool:
    """Let there be a safe directory at `path`; its parent must exist. True if it had to be made. LinuxError.

    key: of [manager], which the words are to name.
    """
    with _parent_of(path, key) as (parent, name):
        made = True
        try:
            os.mkdir(name, mode, dir_fd=parent)
        except FileExistsError:
            made = False
        except OSError as error:
            refuse(f"manager.{key}: cannot create the directory {path}", error, _mend(path))
        found = _open(parent, name, path, key)
        try:
            if made:
                _set_mode(found, mode, path, key)  # mkdir's went through the umask
            _refuse_unsafe(found, path, key)
        finally:
            os.close(found)
    return made


def look_at_directory(path: str, key: str) -> bool:
    """Whether it is there, and safe. LinuxError: `ensure_directory` would refuse it. Nothing is made."""
    with _parent_of(path, key) as (parent, name):
        try:
            os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        found = _open(parent, name, path, key)
        try:
            _refuse_unsafe(found, path, key)
        finally:
            os.close(found)
    return True


@contextmanager
def _parent_of(path: str, key: str) -> Iterator[tuple[int, str]]:
    """The directory that it is in, and its name there. LinuxError."""
    parent = os.path.dirname(path)
    if os.geteuid() == 0:
        _refuse_ways_of_others(parent, path, key)
    with ExitStack() as found:
        try:
            directory, name = found.enter_context(directory_of(path))
        except FileNotFoundError as error:
            raise LinuxError(
                f"manager.{key}: the directory {parent} does not exist; create it or choose another"
            ) from error
        except OSError as error:
            refuse(f"manager.{key}: the directory {parent}", error)
        yield directory, name or "."  # of the root itself


def _open(parent: int, name: str, path: str, key: str) -> int:
    try:
        return open_directory(name, parent)
    except FileNotFoundError as error:
        try:
            target = os.readlink(name, dir_fd=parent)
        except OSError:  # no link, or not any more
            refuse(f"manager.{key}: the directory {path}", error)
        raise LinuxError(
            f"manager.{key}: {path} is a symbolic link to {target}, which does not exist; "
            "create that, or choose another place"
        ) from error
    except NotADirectoryError as error:
        raise LinuxError(f"manager.{key}: {path} is not a directory; move it away or choose another place") from error
    except OSError as error:
        refuse(f"manager.{key}: the directory {path}", error)


def _set_mode(directory: int, mode: int, path: str, key: str) -> None:
    try:
        os.chmod(itself(directory), mode)
    except OSError as error:
        refuse(f"manager.{key}: the directory {path}", error)


def _refuse_unsafe(directory: int, path: str, key: str) -> None:
    if os.geteuid() == 0:
        # The kernel's own word for where it is: a link has led there, perhaps.
        _refuse_ways_of_others(os.path.dirname(os.readlink(itself(directory))), path, key)
    found = os.fstat(directory)
    if found.st_uid not in (0, os.geteuid()):
        raise LinuxError(f"manager.{key}: the directory {path} belongs to uid {found.st_uid}; choose one of our own")
    if found.st_mode & stat.S_ISVTX:
        return
    if found.st_mode & stat.S_IWOTH:
        raise LinuxError(f"manager.{key}: everybody may write to the directory {path}; chmod o-w it, or choose another")
    if (other := who_else_may_write(itself(directory), found)) is not None:
        raise LinuxError(f"manager.{key}: the directory {path} {other.why}; chmod g-w it, or choose another")


def _refuse_ways_of_others(above: str, path: str, key: str) -> None:
    """LinuxError where somebody else could lead the way to `path` elsewhere, later."""
    try:
        other = others_who_may_change(above)
    except OSError:
        return  # it is not there, or no directory, which is said in other words
    if other is not None:
        raise LinuxError(
            f"manager.{key}: on the way to {path}, {other}, who could put another in its place; choose a place below "
            "directories of root's, such as /run"
        )


def _mend(path: str) -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and path.startswith(f"{runtime}/"):  # su and sudo may leave it as it was
        return f"XDG_RUNTIME_DIR is {runtime}, which is not this user's: unset it, or say [manager] control"
    return "create it for this user, or choose another place"
