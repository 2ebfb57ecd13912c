"""Who may control the manager is changed by an update, on the open socket: a group of people who deploy, say."""

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.commands import Done, Manager, configuration, fcgimgr, words
from tests.integration.scenes import NOBODY, open_directory
from tests.rights import as_root
from tests.waiting import eventually

pytestmark = as_root

IDLE = '[program.idle]\ncommand = "sleep 1000"\nstartsecs = 0\n'
GROUP = 64017
"""Of the people who deploy."""
FOR_THE_GROUP = f'control_mode = "0660"\ncontrol_owner = ":{GROUP}"\n'


@contextmanager
def manager_of(keys: str = "") -> Iterator[Manager]:
    with open_directory() as directory:
        config = configuration(directory, keys + IDLE)
        with Manager(config, directory / "fcgimgr.sock") as manager:
            yield manager


def update(manager: Manager, keys: str, more: str = "") -> Done:
    configuration(manager.config.parent, keys + IDLE + more)
    return manager("update")


def as_deployer(manager: Manager, *arguments: str) -> Done:
    return fcgimgr("-c", manager.config, *arguments, user=NOBODY, group=GROUP, extra_groups=[], cwd="/")


def attributes(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def test_an_update_lets_a_group_in_and_nobody_else() -> None:
    with manager_of() as manager:
        as_deployer(manager, "restart", "idle").fails(1)
        before = manager.control.stat().st_ino
        said = update(manager, FOR_THE_GROUP).succeeds()
        assert "manager.control_mode: updated\nmanager.control_owner: updated\n" in said
        assert attributes(manager.control) == (0, GROUP, 0o660)
        assert manager.control.stat().st_ino == before
        as_deployer(manager, "restart", "idle").succeeds()
        assert as_deployer(manager, "update").succeeds() == "no pool or program has changed\n"
        other = fcgimgr("-c", manager.config, "ping", user=NOBODY, group=NOBODY, extra_groups=[], cwd="/")
        assert "no permission" in other.fails(1)


def test_who_is_not_let_in_any_more_is_hung_up_on() -> None:
    with manager_of(FOR_THE_GROUP) as manager:
        command = words("-c", manager.config, "events", "-f")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, user=NOBODY, group=GROUP, extra_groups=[], cwd="/"
        ) as follower:
            assert follower.stdout is not None
            assert follower.stdout.readline()
            assert "control_mode: updated" in update(manager, "").succeeds()
            assert attributes(manager.control) == (0, 0, 0o600)
            said = follower.communicate(timeout=20)[1].decode()
        assert follower.returncode == 1
        assert "hung up" in said
        as_deployer(manager, "ping").fails(1)
        manager("ping").succeeds()


def test_who_is_let_in_anew_is_not_hung_up_on_for_others(tmp_path: Path) -> None:
    """Who has come by the new group, while those of the old one still have their moment."""
    slow = '[program.slow]\ncommand = "sleep 1000"\nstartsecs = 1.5\nautostart = false\n'
    with manager_of(f'control_mode = "0660"\ncontrol_owner = ":{NOBODY}"\n') as manager:
        assert update(manager, FOR_THE_GROUP, slow).succeeds()
        assert "started" in as_deployer(manager, "start", "slow").succeeds()


def test_an_owner_that_does_not_exist_is_refused_and_nothing_is_applied() -> None:
    with manager_of() as manager:
        keys = 'control_mode = "0660"\ncontrol_owner = ":no-such-group"\n'
        more = '[program.more]\ncommand = "sleep 1000"\n'
        refused = update(manager, keys, more).fails(2)
        assert "manager.control_owner: group no-such-group: there is no such group" in refused
        assert refused.endswith("nothing was applied\n")
        assert attributes(manager.control) == (0, 0, 0o600)
        assert [pool.name for pool in manager.status().pools] == ["idle"]


def test_it_stays_so_when_the_socket_is_made_again_and_over_an_upgrade() -> None:
    with manager_of() as manager:
        configuration(manager.config.parent, FOR_THE_GROUP + IDLE)
        os.kill(manager.pid, signal.SIGHUP)
        eventually(lambda: attributes(manager.control) == (0, GROUP, 0o660))
        assert "upgraded" in manager("upgrade").succeeds()
        as_deployer(manager, "ping").succeeds()
        for file in (*manager.control.parent.glob(".fcgimgr-*"), manager.control):
            file.unlink()
        eventually(lambda: manager.control.exists() and attributes(manager.control) == (0, GROUP, 0o660))
        eventually(lambda: as_deployer(manager, "ping").code == 0)
