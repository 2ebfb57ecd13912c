"""A directory found by descriptors, one name after the other, so that nobody can lead the way elsewhere meanwhile.

A symbolic link on the way is followed only where nobody else can have put it: it sits in a directory of root's or our
own that neither its group nor others may write to. So `/var/log/app -> /data/log` is followed, and a link that an
application has put in its own directory is not.

What is no secret and is not written to, but is obeyed (a configuration), may lie anywhere: of that it is asked who else
could have put it there (`others_who_may_change`).
"""

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from fcgimgr.linux.accounts import is_private_group

LINKS: Final = 40  # as many as the kernel follows, path_resolution(7)
_REFUSED: Final = (
    "on its path {} is a symbolic link that another user may have put there, which is not followed; "
    "name the directory itself"
)
_SECOND_NAME: Final = (
    "{} is a hard link, which another user may have put there; name a file that has one name only, or let nobody else "
    "write to its directory"
)
# <linux/posix_acl_xattr.h>: a version, then entries of a tag, what is permitted, and whom.
_ACL_HEADER: Final = 4
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_WRITE: Final = 2
_USER, _GROUP_OBJ, _GROUP = 2, 4, 8
_NAMED: Final = {_USER: "user", _GROUP: "group"}
_WAY: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class LinkRefusedError(OSError):
    """A link that another user may have put there (`filename`)."""


@contextmanager
def directory_of(path: str) -> Iterator[tuple[int, str]]:
    """The directory that a path lies in, as a descriptor for `dir_fd`, and the file's name there. OSError."""
    way, _, name = path.rstrip("/").rpartition("/")
    way = f"{way}/" if path.startswith("/") else way
    directory = _walk(way, _root(way))
    try:
        yield directory, name
    finally:
        os.close(directory)


def open_directory(name: str, parent: int) -> int:
    """The directory of this name in one that is open, for `dir_fd`. A link is followed as on any way. OSError."""
    return _walk(name, os.dup(parent))


def open_in_place(path: str, flags: int) -> int:
    """Open a file as open(2) does, without waiting; a link in its own place is followed as one on the way is. OSError.

    Root only: who runs as an ordinary user reaches nothing that is not that user's to reach. And a file with a second
    name, in a directory that others may write to, may be a hard link to one that they may not read.
    """
    flags |= os.O_CLOEXEC | os.O_NONBLOCK
    if os.geteuid() != 0:
        return os.open(path, flags)
    for _ in range(LINKS):
        with directory_of(path) as (directory, name):
            try:
                fd = os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                if not is_ours_alone(directory):
                    raise LinkRefusedError(errno.ELOOP, _REFUSED.format(name), name) from None
                path = os.path.join(os.path.dirname(path), os.readlink(name, dir_fd=directory))
                continue
            if has_another_name(fd) and not is_ours_alone(directory):
                os.close(fd)
                raise LinkRefusedError(errno.ELOOP, _SECOND_NAME.format(name), name)
            return fd
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def has_another_name(fd: int) -> bool:
    """Whether this is a regular file to which a second name leads (a hard link)."""
    found = os.fstat(fd)
    return stat.S_ISREG(found.st_mode) and found.st_nlink > 1


class Other(NamedTuple):
    """Somebody besides root and us who may change what is at a path. what: where; why: in words; anybody: everybody."""

    what: str
    why: str
    anybody: bool

    def __str__(self) -> str:
        return f"{self.what} {self.why}"


def others_who_may_change(path: str) -> Other | None:
    """Who, besides root and us, may change the file or directory at `path`, or put another in its place, or in that of
    a directory or link on the way to it: everybody, if that is so. None: nobody. OSError: it cannot be looked at.

    Root's group is as good as root. In a directory with the sticky bit (/tmp) only what others own is theirs to move.
    """
    found = list(_others_on_the_way(os.path.abspath(path)))
    return next((other for other in found if other.anybody), found[0] if found else None)


def _others_on_the_way(path: str) -> Iterator[Other]:
    names = path.split("/")
    here, links = "/", 0
    for_all = False  # everybody may put something into `here`, and move what is theirs
    while names:
        name = names.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            for_all = False  # it was passed on the way down
            continue
        there = os.path.join(here, name)
        found = os.lstat(there)
        if found.st_uid not in (0, os.geteuid()):
            yield Other(there, f"belongs to uid {found.st_uid}", for_all)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(there)
            names[:0] = target.split("/")
            if target.startswith("/"):
                here, for_all = "/", False
            continue
        if other := who_else_may_write(there, found):
            yield other
        here, for_all = there, bool(found.st_mode & stat.S_IWOTH)


def who_else_may_write(path: str, found: os.stat_result) -> Other | None:
    """Who besides its owner may change this file, or take out of this directory what is not theirs."""
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return None
    return _others_who_write(path, found)


def _others_who_write(path: str, found: os.stat_result) -> Other | None:
    if not found.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
        return None
    if os.statvfs(path).f_flag & os.ST_RDONLY:  # a ConfigMap of Kubernetes lies in a directory of mode 0777
        return None
    if found.st_mode & stat.S_IWOTH:
        return Other(path, "may be written to by everybody", True)
    listed = _listed(path)
    is_the_groups = listed is None or _GROUP_OBJ in (tag for tag, _ in listed)
    if is_the_groups and found.st_gid != 0 and not is_private_group(found.st_gid):
        return Other(path, f"may be written to by the group {found.st_gid}", False)
    for tag, number in listed or ():
        if tag in _NAMED and number not in (0, os.geteuid() if tag == _USER else 0):
            return Other(
                path, f"may be written to by the {_NAMED[tag]} {number}, as its access control list says", False
            )
    return None


def _listed(path: str) -> list[tuple[int, int]] | None:
    """(tag, uid or gid) of those that its access control list lets write, where the mask does. None: it has no list."""
    try:
        acl = os.getxattr(path, "system.posix_acl_access")
    except OSError:
        return None
    entries = _ACL_ENTRY.iter_unpack(acl[_ACL_HEADER : len(acl) - (len(acl) - _ACL_HEADER) % _ACL_ENTRY.size])
    return [(tag, number) for tag, permitted, number in entries if permitted & _ACL_WRITE]


def _walk(path: str, here: int) -> int:
    """The directory at `path` from the one that is open, which is closed. OSError."""
    names = path.split("/")
    links = 0
    try:
        while names:
            name = names.pop(0)
            if name in ("", "."):
                continue
            there = os.open(name, _WAY, dir_fd=here)
            try:
                kind = os.fstat(there).st_mode
                if stat.S_ISLNK(kind):
                    links += 1
                    if links > LINKS or not is_ours_alone(here):
                        raise LinkRefusedError(errno.ELOOP, _REFUSED.format(name), name)
                    target = os.readlink("", dir_fd=there)
                    names[:0] = target.split("/")
                    if not target.startswith("/"):
                        continue
                    from_root = _root(target)
                    os.close(here)
                    here = from_root
                elif stat.S_ISDIR(kind):
                    here, there = there, here
                else:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
            finally:
                os.close(there)
    except BaseException:
        os.close(here)
        raise
    return here


def _root(path: str) -> int:
    return os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def is_ours_alone(directory: int) -> bool:
    """Whether nobody but root and us can put anything into this directory."""
    found = os.fstat(directory)
    if found.st_uid not in (0, os.geteuid()):
        return False
    if found.st_mode & stat.S_IWOTH:  # also where it is read-only to us: to others it need not be
        return False
    if found.st_mode & stat.S_IWGRP and not is_private_group(found.st_gid):
        return False
    return _others_who_write(itself(directory), found) is None


def itself(fd: int) -> str:
    """A path of the very file or directory that is open, wherever it is, and if it is nowhere."""
    return f"/proc/self/fd/{fd}"
