"""Names to numbers, on the accounts every Linux has: root and nobody, and whoever runs the tests."""

import grp
import os
import pwd

import pytest

from fcgimgr.linux.accounts import Account, resolve_owner, resolve_user
from fcgimgr.linux.errors import LinuxError

NOBODY = pwd.getpwnam("nobody")
UNUSED = "3999999999"


def test_a_user_by_name_and_by_number() -> None:
    by_name = resolve_user("nobody")
    assert (by_name.uid, by_name.gid, by_name.name) == (NOBODY.pw_uid, NOBODY.pw_gid, "nobody")
    assert (by_name.home, by_name.shell) == (NOBODY.pw_dir, NOBODY.pw_shell)
    assert set(by_name.groups) == set(os.getgrouplist("nobody", NOBODY.pw_gid))
    assert resolve_user(str(NOBODY.pw_uid)) == by_name


def test_a_group_takes_the_primary_ones_place() -> None:
    account = resolve_user("nobody:root")
    assert account.gid == 0
    assert 0 in account.groups
    assert NOBODY.pw_gid not in account.groups
    assert resolve_user("nobody:0") == account


def test_a_number_without_an_entry_needs_a_group() -> None:
    assert resolve_user(f"{UNUSED}:123") == Account(
        uid=int(UNUSED), gid=123, groups=(123,), name=UNUSED, home="/", shell="/bin/sh"
    )
    with pytest.raises(LinuxError, match=f"give the group too, as {UNUSED}:GROUP"):
        resolve_user(UNUSED)


@pytest.mark.parametrize("text", ["no-such-user", "", "-1", "٣", ":root", "4294967295", "nobody:no-such-group"])
def test_what_is_unknown_is_refused(text: str) -> None:
    with pytest.raises(LinuxError, match=r"user|group"):
        resolve_user(text)


def test_owners() -> None:
    root = grp.getgrnam("root").gr_gid
    assert resolve_owner("nobody") == (NOBODY.pw_uid, NOBODY.pw_gid), "as Supervisor does it"
    assert resolve_owner("nobody:root") == (NOBODY.pw_uid, root)
    assert resolve_owner(":root") == (-1, root)
    assert resolve_owner("12345:54321") == (12345, 54321)
    assert resolve_owner(UNUSED) == (int(UNUSED), -1)
    for wrong in ("", ":", "no-such-user", "root:no-such-group"):
        with pytest.raises(LinuxError):
            resolve_owner(wrong)
