"""What is done in a storm: by an operator, by whoever kills a process, and by whoever kills the manager.

Each act has done what it does, and has been told that it went well, when it returns; where that is not so (the manager
was killed in the middle of it) it leaves in the house what must come of it. None of them may lose a request but by the
death of the process that had it in hand.
"""

import subprocess
import time
from collections.abc import Callable
from typing import Final

from fcgimgr.control.messages import (
    ControlError,
    ManagerGone,
    NamesParams,
    ReloadParams,
    RestartParams,
    ScaleParams,
    Updated,
    UpdateParams,
    UpgradeParams,
    Verdict,
)
from tests.chaos.storm import Deed, House, Storm, known
from tests.integration.commands import WITHIN, words
from tests.waiting import eventually

# -- by an operator ---------------------------------------------------------------------------------------------------


def reload(storm: Storm, house: House) -> None:
    was = storm.processes()
    storm.tell("reload", ReloadParams(names=(house.name,)))
    storm.goes_on_as(was, but=[house.name])


def reload_all(storm: Storm, house: House) -> None:
    storm.tell("reload", ReloadParams(names=("all",)))


def canary(storm: Storm, house: House) -> None:
    """On TCP: a canary that is promoted or aborted. Elsewhere it is a reload."""
    if house.address.startswith("unix:"):
        reload(storm, house)
        return
    storm.tell("reload", ReloadParams(names=(house.name,), canary=storm.chance.choice([5.0, 50.0])))
    time.sleep(storm.chance.random() / 10)
    action = storm.chance.choice(["promote", "abort"])
    storm.tell("reload", ReloadParams(names=(house.name,), action=action))


def scale(storm: Storm, house: House) -> None:
    was = storm.processes()
    house.wanted = storm.chance.randint(1, 4)
    storm.tell("scale", ScaleParams(name=house.name, numprocs=str(house.wanted)))
    storm.goes_on_as(was, but=[house.name])


def restart_one(storm: Storm, house: House) -> None:
    storm.tell("restart", RestartParams(names=(one_of(storm, house),)))


def retire_one(storm: Storm, house: House) -> None:
    """One process is stopped, and started again a moment later; a pool's last one is not: that would be a stop."""
    if house.wanted == 1:
        scale(storm, house)
        return
    name = one_of(storm, house)
    storm.tell("stop", NamesParams(names=(name,)))
    storm.tell("start", NamesParams(names=(name,)))


def one_of(storm: Storm, house: House) -> str:
    return f"{house.name}:{house.name}_{storm.chance.randrange(house.wanted):02d}"


def change(storm: Storm, house: House) -> None:
    """Another number of processes, another backlog, another umask, or several of these, in the file."""
    what = storm.chance.choice(["numprocs", "backlog", "umask", "all"])
    if what in ("numprocs", "all"):
        before, house.written = house.written, storm.chance.randint(1, 4)
        if house.written != before:
            house.wanted = house.written
    if what in ("backlog", "all"):
        house.backlog = storm.chance.randint(100, 300)
    if what in ("umask", "all"):
        house.umask = storm.chance.choice([0o22, 0o27, 0o77])
    storm.write()


def update(storm: Storm, house: House) -> None:
    was = storm.processes()
    change(storm, house)
    updated = storm.ask("update", UpdateParams(), Updated)
    assert updated.ok, updated
    storm.goes_on_as(was, but=[house.name])


# -- by whoever kills a process ---------------------------------------------------------------------------------------


def kill(storm: Storm, house: House) -> None:
    storm.kill(storm.victim(house), house)


def kill_during_reload(storm: Storm, house: House) -> None:
    """A process of the old or the new generation, at any moment of the reload."""
    storm.tell("reload", ReloadParams(names=(house.name,), wait=False))
    time.sleep(storm.chance.random() / 4)
    storm.kill(storm.victim(house), house)


def kill_during_scale(storm: Storm, house: House) -> None:
    house.wanted = storm.chance.randint(1, 4)
    storm.tell("scale", ScaleParams(name=house.name, numprocs=str(house.wanted), wait=False))
    storm.kill(storm.victim(house), house)


# -- the manager, by its own code -------------------------------------------------------------------------------------


def upgrade(storm: Storm, house: House) -> None:
    """The same pid, the same processes with all that is known of them."""
    was, pong, uptime = storm.processes(), storm.pong(), storm.manager.status().manager.uptime
    storm.manager("upgrade").succeeds()
    now = storm.pong()
    assert (now.pid, now.upgrades) == (pong.pid, pong.upgrades + 1)
    assert storm.manager.status().manager.uptime > uptime
    storm.goes_on_as(was)


def kill_during_upgrade(storm: Storm, house: House) -> None:
    """A process dies while the manager goes over to the installed code, or a moment before or after."""
    pid, upgrades = storm.victim(house), storm.pong().upgrades
    with command(storm, "upgrade") as upgrading:
        time.sleep(storm.chance.random())
        storm.kill(pid, house)
        output = upgrading.communicate(timeout=WITHIN)[0]
    # What the dead process has left is to be ended before an upgrade, or it would be forgotten.
    assert upgrading.returncode == 0 or "what dead processes have left" in output, output
    if upgrading.returncode == 0:
        assert storm.pong().upgrades == upgrades + 1


def upgrade_during_reload(storm: Storm, house: House) -> None:
    """It is refused and says why; unless the reload was over before, and then it succeeds."""
    before = storm.pong().upgrades
    storm.tell("reload", ReloadParams(names=(house.name,), wait=False))
    time.sleep(storm.chance.random() / 4)
    try:
        verdict = storm.ask("upgrade", UpgradeParams(), Verdict)
    except ControlError as error:
        if f"{house.name}: a reload or canary is under way" not in str(error):
            raise
        return
    assert verdict.ok, verdict
    eventually(lambda: storm.pong().upgrades == before + 1)


def reload_during_upgrade(storm: Storm, house: House) -> None:
    """One of the two is refused or hung up on, or both go well: one after the other."""
    before, output = storm.pong().upgrades, ""
    with command(storm, "upgrade") as upgrading:
        time.sleep(storm.chance.random())
        try:
            storm.tell("reload", ReloadParams(names=(house.name,)))
        except ManagerGone:
            pass  # It had not begun.
        output = upgrading.communicate(timeout=WITHIN)[0]
    if upgrading.returncode:
        assert "a reload or canary is under way" in output or "its log says why" in output, output
    assert storm.pong().upgrades == before + (not upgrading.returncode)


def command(storm: Storm, *arguments: str) -> subprocess.Popen[str]:
    """A command of `fcgimgr` that goes on while something else is done."""
    line = words("-c", storm.manager.config, *arguments)
    return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


# -- by whoever kills the manager -------------------------------------------------------------------------------------


def succession(storm: Storm, house: House) -> None:
    """The pools serve on, and the next manager has the same processes and knows as much of them."""
    was = storm.processes()
    storm.kill_manager()
    storm.serves_alone(storm.houses)
    storm.follow()
    storm.goes_on_as(was)


def two_starters(storm: Storm, house: House) -> None:
    """Two are started at once: one takes over, and the other is told."""
    was = storm.processes()
    storm.kill_manager()
    storm.follow(starters=2)
    storm.goes_on_as(was)


def death_meanwhile(storm: Storm, house: House) -> None:
    """A process dies while there is no manager: the others serve, the next manager replaces it and counts that."""
    if house.wanted == 1:
        house.wanted = 2  # else nobody would be left who has the socket
        storm.tell("scale", ScaleParams(name=house.name, numprocs="2"))
    was, pid = storm.processes(), storm.victim(house)
    storm.kill_manager()
    storm.kill(pid, house)
    storm.serves_alone(storm.houses)
    storm.follow()
    storm.goes_on_as(was, but=[house.name])
    eventually(storm.in_order, within=30)
    now = storm.processes()[house.name]
    for name, process in was[house.name].items():
        if process.pid == pid:
            assert now[name].restarts == (process.restarts or 0) + 1, now[name]
        else:
            assert known(now[name]) == known(process)


def change_meanwhile(storm: Storm, house: House) -> None:
    """The file says something else when the next manager comes: an update, once all is taken back."""
    was = storm.processes()
    storm.kill_manager()
    change(storm, house)
    storm.follow()
    storm.goes_on_as(was, but=[house.name])


def amid(storm: Storm, house: House, begin: Callable[[], object], *, longest: float, may_kill: bool = False) -> None:
    """The manager is killed at any moment after this has begun, and, now and then, a process of the pool with it."""
    was = storm.processes()
    pid = storm.victim(house) if may_kill and house.wanted > 1 and storm.chance.random() < 0.3 else None
    begin()
    time.sleep(storm.chance.random() * longest)
    storm.kill_manager()
    storm.kill(pid, house)
    time.sleep(storm.chance.random() / 4)
    storm.follow()
    storm.goes_on_as(was, but=[house.name])


def amid_reload(storm: Storm, house: House) -> None:
    params = ReloadParams(names=(house.name,), wait=False)
    amid(storm, house, lambda: storm.tell("reload", params), longest=0.5, may_kill=True)


def amid_canary(storm: Storm, house: House) -> None:
    """It is given up. On a Unix socket this is a reload."""
    percent = None if house.address.startswith("unix:") else storm.chance.choice([5.0, 50.0])
    params = ReloadParams(names=(house.name,), canary=percent)
    amid(storm, house, lambda: storm.tell("reload", params), longest=0.1, may_kill=True)


def amid_scale(storm: Storm, house: House) -> None:
    """What was answered to is remembered: it goes on to the number that was asked for."""
    house.wanted = storm.chance.randint(1, 4)
    params = ScaleParams(name=house.name, numprocs=str(house.wanted), wait=False)
    amid(storm, house, lambda: storm.tell("scale", params), longest=0.2)


def amid_restart(storm: Storm, house: House) -> None:
    """Of one process among others: between the only one and its successor, nobody but the manager has the socket."""
    if house.wanted == 1:
        amid_reload(storm, house)
        return
    params = RestartParams(names=(one_of(storm, house),), wait=False)
    amid(storm, house, lambda: storm.tell("restart", params), longest=0.2)


def amid_retirement(storm: Storm, house: House) -> None:
    """The process goes on leaving under the next manager, and is started again."""
    if house.wanted == 1:
        amid_scale(storm, house)
        return
    names = (one_of(storm, house),)
    amid(storm, house, lambda: storm.tell("stop", NamesParams(names=names, wait=False)), longest=0.1)
    storm.tell("stop", NamesParams(names=names))
    storm.tell("start", NamesParams(names=names))


def amid_update(storm: Storm, house: House) -> None:
    """The next manager does the rest of it."""
    updating: list[subprocess.Popen[str]] = []

    def begin() -> None:
        change(storm, house)
        updating.append(command(storm, "update"))

    amid(storm, house, begin, longest=1.0)
    updating[0].communicate(timeout=WITHIN)


def amid_upgrade(storm: Storm, house: House) -> None:
    """Before the trial of the installed code, in it, in the exec, or after it."""
    upgrading: list[subprocess.Popen[str]] = []
    amid(storm, house, lambda: upgrading.append(command(storm, "upgrade")), longest=1.5, may_kill=True)
    upgrading[0].communicate(timeout=WITHIN)


ACTS: Final[dict[str, tuple[Deed, int]]] = {
    "reload": (reload, 5),
    "reload of all": (reload_all, 1),
    "canary": (canary, 2),
    "scale": (scale, 3),
    "restart of one": (restart_one, 3),
    "retirement": (retire_one, 3),
    "update": (update, 3),
    "kill": (kill, 2),
    "kill during a reload": (kill_during_reload, 2),
    "kill during a scale": (kill_during_scale, 1),
    "upgrade": (upgrade, 3),
    "kill during an upgrade": (kill_during_upgrade, 1),
    "upgrade during a reload": (upgrade_during_reload, 1),
    "reload during an upgrade": (reload_during_upgrade, 1),
    "manager killed": (succession, 3),
    "manager killed, two starters": (two_starters, 1),
    "manager killed, then a process": (death_meanwhile, 2),
    "manager killed, then an edit": (change_meanwhile, 1),
    "manager killed amid a reload": (amid_reload, 2),
    "manager killed amid a canary": (amid_canary, 1),
    "manager killed amid a scale": (amid_scale, 2),
    "manager killed amid a restart": (amid_restart, 1),
    "manager killed amid a retirement": (amid_retirement, 1),
    "manager killed amid an update": (amid_update, 2),
    "manager killed amid an upgrade": (amid_upgrade, 2),
}
