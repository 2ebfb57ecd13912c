"""What a start does with what a manager before it has left behind, if that was killed: take it over, or end it.

A state that is of no use (of another boot, damaged, another user's) is never an obstacle: it is told in one line, and
then it is a start like any other. Processes that the dead manager had started and no state tells of (it was killed in
the very moment between) would hold the sockets and answer in the place of ours: they are ended first.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

from fcgimgr.config.settings import Config
from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.manager.children.environments import Mark
from fcgimgr.manager.commands import updating
from fcgimgr.manager.logs.journal import Journal
from fcgimgr.manager.succession.adoption import Estate, adopt, replace_incomplete, running_config
from fcgimgr.manager.succession.state import NAME, StateError, read

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon

__all__ = ["Estate", "find_estate", "inherit", "running_config"]

# Seconds that a process has to end by SIGTERM when nothing is known of it but whose it is, and then by SIGKILL.
PATIENCE: Final = 10.0
DIES_WITHIN: Final = 1.0


def find_estate(state_dir: str, journal: Journal, *, fresh: bool) -> Estate | None:
    """What is left of a manager that was killed; None: none was. `fresh`: there was no state_dir."""
    path = os.path.join(state_dir, NAME)
    try:
        saved = read(path, procfs.boot_id())
    except StateError as error:
        journal.warning(f"{path}: the state of an earlier manager is of no use: {error}")
        return Estate(None)
    return Estate(saved) if saved is not None or not fresh else None


async def inherit(daemon: Daemon, estate: Estate, config: Config) -> None:
    """Take over, or end, what is left, and go on with what `config` asks for."""
    daemon.abandoned.take_over(estate.abandoned)
    if estate.handed_over:
        daemon.state = "RUNNING"
        adoptions = adopt(daemon, estate)
        for adoption in adoptions:
            adoption.settle()
        daemon.reap_children()  # those that died during the exec
        daemon.manager_changed()
        daemon.go_on()
        replace_incomplete(daemon)
        return
    daemon.taking_over = True
    kept = bool(estate.living)
    addresses = [address for pool in daemon.config.pools.values() for address in pool.sockets]
    daemon.fd_store.sort_out(addresses, held=estate.sockets_held(), served=estate.sockets_served())
    adoptions = adopt(daemon, estate) if kept else []
    await end_unknown(daemon, estate)
    for adoption in adoptions:
        adoption.settle()
    if kept and config.manager.orphans == "kill":
        daemon.journal.info('stopping the processes that were taken over (orphans = "kill")')
        await asyncio.gather(*(updating.stopped(daemon, pool) for pool in daemon.pools.values()))
        kept = False
        if daemon.state != "STOPPING":
            daemon.begin_anew(config)
    if daemon.state == "STOPPING":  # we were told to end meanwhile
        return
    if not kept:
        daemon.start()
        return
    daemon.go_on()
    daemon.in_background(_catch_up(daemon))


async def _catch_up(daemon: Daemon) -> None:
    await updating.update_and_log(daemon, "after taking over")
    replace_incomplete(daemon)


# Processes that no state tells of


async def end_unknown(daemon: Daemon, estate: Estate) -> None:
    """End what an earlier manager of this state_dir has started and nobody has taken over."""
    taken_over = {
        (generation.name, str(generation.number), generation.slots[index].name)
        for generation, index in daemon.children.values()
    }
    before = list(procfs.pids())
    await daemon.environments.learned(before)  # meanwhile we start others, in the places of the dead
    found = unknown(daemon, estate.pid, before, taken_over)
    if not found:
        return
    pids = ", ".join(str(pidfd.pid) for pidfd in found)
    daemon.journal.warning(f"ending processes of an earlier manager that its state does not tell of: pid {pids}")
    for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, DIES_WITHIN)):
        for pidfd in found:
            try:
                pidfd.signal(number)
            except LinuxError as error:
                daemon.journal.error(str(error))
        await _all_ended(daemon, found, patience)
    for pidfd in found:
        pidfd.close()


def unknown(daemon: Daemon, manager: int | None, pids: Iterable[int], taken_over: Collection[Mark]) -> list[PidFd]:
    """Those of these, to be closed. `manager`: the earlier manager's pid.

    They are known by the notify socket in their environment, which is that manager's alone. What descends from a
    process that was taken over belongs to it.
    """
    sockets = [os.path.join(daemon.config.manager.state_dir, "notify-")]
    if manager is not None and (manager == os.getpid() or procfs.state(manager) is None):
        sockets.append(f"@fcgimgr-{manager}-")  # else its number is another's by now, and may be another manager's

    def is_unknown(pid: int) -> bool:
        if pid in daemon.children or procfs.session(pid) in daemon.children or procfs.parent(pid) == os.getpid():
            return False
        environment = daemon.environments.of(pid)  # of what was started since, the manager before us is no more
        if environment is None or environment.mark is None or environment.mark in taken_over:
            return False
        if not environment.notify.startswith(tuple(sockets)):
            return False
        return procfs.state(pid) not in (None, "Z", "X")

    found = []
    for pid in filter(is_unknown, pids):
        try:
            process = PidFd(pid)
        except LinuxError:  # it has ended since
            continue
        if is_unknown(pid):  # once more, as the number may be another's since
            found.append(process)
        else:
            process.close()
    return found


async def _all_ended(daemon: Daemon, pidfds: Iterable[PidFd], patience: float) -> None:
    """Wait until all of them have ended, or for `patience` seconds, or until the manager is to end."""
    loop = daemon.loop
    left = {pidfd.pid: pidfd for pidfd in pidfds if not pidfd.has_ended()}
    done = loop.create_future()

    def ended(pid: int) -> None:
        loop.remove_reader(left.pop(pid))
        if not left and not done.done():
            done.set_result(None)

    for pid, pidfd in left.items():
        loop.add_reader(pidfd, ended, pid)
    if left:
        await asyncio.wait({done, daemon.ended}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    for pidfd in left.values():
        loop.remove_reader(pidfd)
