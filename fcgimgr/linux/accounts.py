"""Names of users and groups turned into numbers, once, in the parent.

A forked child never looks a name up: behind a chroot /etc/group is another file, and NSS may load libraries and open
connections. So an Account carries its supplementary groups along.
"""

import grp
import os
import pwd

import msgspec

from fcgimgr.linux.errors import LinuxError


class Account(msgspec.Struct, frozen=True):
    """Whom a child runs as. `groups` is what setgroups(2) gets, the primary one included."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str
    shell: str


def resolve_user(text: str) -> Account:
    """The account of "www-data", "33", "www-data:adm" or "33:4"; a group given here takes the primary one's place.

    LinuxError: no such user or group, or a bare uid without a passwd entry and without a group.
    """
    user, _, group = text.partition(":")
    entry = _find_user(user)
    if entry is None:
        if not group:
            raise LinuxError(f"user {user}: no such uid in the passwd database; give the group too, as {user}:GROUP")
        gid = _gid(group)
        return Account(uid=int(user), gid=gid, groups=(gid,), name=user, home="/", shell="/bin/sh")
    gid = _gid(group) if group else entry.pw_gid
    return Account(
        uid=entry.pw_uid,
        gid=gid,
        groups=tuple(os.getgrouplist(entry.pw_name, gid)),
        name=entry.pw_name,
        home=entry.pw_dir or "/",
        shell=entry.pw_shell or "/bin/sh",
    )


def resolve_owner(text: str) -> tuple[int, int]:
    """(uid, gid) of "user", "user:group" or ":group", as chown(2) takes them: -1 leaves that one alone.

    A user alone brings the primary group, as Supervisor's socket_owner does. LinuxError when one is unknown.
    """
    user, colon, group = text.partition(":")
    if not user and not group:
        raise LinuxError(f"owner {text!r}: neither a user nor a group is named; write user, user:group or :group")
    gid = _gid(group) if group else -1
    if not user:
        return -1, gid
    entry = _find_user(user)
    if entry is None:
        return int(user), gid
    return entry.pw_uid, gid if colon and group else entry.pw_gid


def _find_user(user: str) -> pwd.struct_passwd | None:
    """The passwd entry; None for a number without one (a legal owner all the same)."""
    try:
        return pwd.getpwnam(user)
    except KeyError:
        pass  # a name of digits only is looked up as a number next, as chown(1) does
    if not (user.isascii() and user.isdigit()):
        raise LinuxError(f"user {user}: there is no such user; create it (useradd --system {user}) or name another")
    if int(user) >= 2**32 - 1:
        raise LinuxError(f"user {user}: a uid is less than {2**32 - 1}")
    try:
        return pwd.getpwuid(int(user))
    except KeyError:
        return None


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        pass  # as above: digits only are a number
    if not (group.isascii() and group.isdigit()):
        raise LinuxError(
            f"group {group}: there is no such group; create it (groupadd --system {group}) or name another"
        )
    if int(group) >= 2**32 - 1:
        raise LinuxError(f"group {group}: a gid is less than {2**32 - 1}")
    return int(group)


def is_private_group(gid: int) -> bool:
    """Whether nobody but the user that we run as is in this group: a user's own, as many distributions make one.

    Never for root, to whom the files of a user are a stranger's, and not where the database does not tell.
    """
    uid = os.geteuid()
    try:
        group, ours = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    if uid == 0 or ours.pw_gid != gid or group.gr_name != ours.pw_name or set(group.gr_mem) - {ours.pw_name}:
        return False
    return all(other.pw_uid == uid for other in pwd.getpwall() if other.pw_gid == gid)
