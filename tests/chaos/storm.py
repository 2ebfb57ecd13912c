"""A storm: pools of several kinds under steady load through nginx, and one act after another at random, from a seed.

After every act the house must be in order again: exactly the wanted processes, all running and all in the status; no
zombie, no stray, no descriptor more than before. And at the end every request that failed must be explained: only what
was in the hands of a process that an act killed may be lost. Who had it in hand is known by the pool and the time: the
kill fell between the request and its failure, and no process has more in hand than there are clients.

The acts are in ACTS, with their weights. Acts on the manager itself, its upgrade and its death by SIGKILL, take their
places there as soon as the manager survives them.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final

from fcgimgr.control.client import Client
from fcgimgr.control.messages import (
    NamesParams,
    PoolStatus,
    ReloadParams,
    RestartParams,
    ScaleParams,
    Updated,
    UpdateParams,
    Verdict,
)
from tests.integration.backends import BACKENDS, front, pool
from tests.integration.commands import Manager, configuration
from tests.integration.load import Failed, Load
from tests.integration.ports import free_address
from tests.integration.running import strays
from tests.integration.scenes import Child
from tests.waiting import eventually

KINDS: Final = ("go", "php", "wsgi")
TRANSPORTS: Final = ("tcp", "unix")
CLIENTS: Final = 2
"""For each kind of program; each client asks the pool on TCP and the one on the Unix socket in turn."""

SETTLED_WITHIN: Final = 30.0
SLACK: Final = 0.1
"""Seconds by which a kill may lie outside of a request that it broke: clocks are read before and after."""


@dataclass
class House:
    """A pool as it should be."""

    name: str
    kind: str
    address: str
    path: str
    wanted: int = 3
    written: int = 3  # numprocs in the file
    umask: int = 0o22
    backlog: int = 256


@dataclass
class Outcome:
    """What came of a storm."""

    seed: int
    acts: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    kills: list[tuple[float, str]] = field(default_factory=list)
    lost: list[tuple[str, Failed]] = field(default_factory=list)
    unexplained: list[tuple[str, Failed]] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        acts = ", ".join(f"{count} {name}" for name, count in sorted(self.acts.items()))
        lines = [
            f"seed {self.seed}: {self.requests} requests in {self.seconds:.0f} s",
            f"{sum(self.acts.values())} acts: {acts}",
            f"{len(self.kills)} processes killed, {len(self.lost)} requests lost in their hands",
            f"{len(self.unexplained)} requests lost otherwise",
        ]
        lines += [f"  {name} at {failed.begun:.3f}: {failed.why}" for name, failed in self.unexplained]
        return "\n".join(lines)


class Storm:
    """One run in an empty directory."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.outcome = Outcome(seed)
        self.chance = random.Random(seed)
        self.directory = directory
        self.houses = []
        for kind in KINDS:
            (directory / kind).mkdir()
            for number, transport in enumerate(TRANSPORTS):
                address = free_address(transport, directory / kind)
                self.houses.append(House(f"{kind}_{transport}", kind, address, f"/{number}"))
        self.loads: dict[str, Load] = {}

    @contextmanager
    def brewing(self) -> Iterator[None]:
        """The manager, three nginx and their clients at work."""
        with ExitStack() as stack:
            self.manager = stack.enter_context(Manager(self.write(), self.directory / "fcgimgr.sock"))
            for kind in KINDS:
                BACKENDS[kind].prepare(self.directory / kind)
                addresses = [house.address for house in self.houses if house.kind == kind]
                nginx = stack.enter_context(front(self.directory / kind, kind, *addresses))
                paths = [house.path for house in self.houses if house.kind == kind]
                self.loads[kind] = stack.enter_context(Load(nginx.port, paths=paths, clients=CLIENTS, pause=2))
            self.spare_fds = self.descriptors() - self.pipes()
            yield

    def rage(self, seconds: float) -> Outcome:
        """Act for so long; what came of it. AssertionError: after an act the house was not in order again."""
        begun = monotonic()
        with self.brewing():
            while monotonic() - begun < seconds:
                name, act = self.choose()
                house = self.chance.choice(self.houses)
                try:
                    act(self, house)
                    eventually(self.in_order, within=SETTLED_WITHIN)
                except Exception as error:
                    raise AssertionError(f"seed {self.outcome.seed}: after {name} of {house}: {error}") from error
                self.outcome.acts[name] += 1
            for load in self.loads.values():
                load.goes_on(10)
        self.outcome.seconds = monotonic() - begun
        self.judge()
        return self.outcome

    def choose(self) -> tuple[str, Callable[["Storm", House], None]]:
        ((name, (act, _)),) = self.chance.choices(list(ACTS.items()), [weight for _, weight in ACTS.values()])
        return name, act

    # What should be

    def write(self) -> Path:
        """The configuration as `houses` has it."""
        tables = []
        for house in self.houses:
            keys = (
                "startretries = 20",
                "backoff_initial = 0.05",
                "backoff_max = 0.2",
                f"socket_backlog = {house.backlog}",
            )
            table = pool(self.directory, house.kind, house.address, *keys, numprocs=house.written, name=house.name)
            tables.append(f'{table}umask = "{house.umask:03o}"\n')
        return configuration(self.directory, "\n".join(tables))

    def in_order(self) -> bool:
        """Whether everything is as it should be, and the status says what is."""
        shown = {each.name: each for each in self.manager.status().pools}
        assert list(shown) == [house.name for house in self.houses]
        for house in self.houses:
            each = shown[house.name]
            assert (each.state, each.numprocs, each.canary) == ("RUNNING", house.wanted, None), each
            assert len(each.processes) == house.wanted, each
            assert all(process.state == "RUNNING" for process in each.processes), each
            self.is_true(each)
        pids = sorted(process.pid or 0 for each in shown.values() for process in each.processes)
        assert sorted(Child(self.manager.pid).children) == pids
        found = {int(stray.split()[0]) for stray in strays(self.manager.mark)}
        assert found == {*pids, self.manager.pid}, found
        assert self.descriptors() == self.spare_fds + self.pipes(), Child(self.manager.pid).fds
        return True

    def is_true(self, shown: PoolStatus) -> None:
        """What the status says of each process is what the kernel says."""
        for process in shown.processes:
            assert process.pid is not None
            child = Child(process.pid)
            assert child.stat[0] not in "ZXTt", (process, child.stat[0])
            assert child.parent == self.manager.pid
            assert child.environ["FCGIMGR_POOL"] == shown.name
            assert child.environ["FCGIMGR_PROCESS"] == process.name
            assert child.environ["FCGIMGR_GENERATION"] == str(process.generation) == str(shown.generation)

    def descriptors(self) -> int:
        return len(Child(self.manager.pid).fds)

    def pipes(self) -> int:
        """How many of the manager's descriptors are its processes' stdout and stderr."""
        return 2 * sum(house.wanted for house in self.houses)

    # What an act needs

    def tell(self, method: str, params: NamesParams | ReloadParams | RestartParams | ScaleParams) -> Verdict:
        verdict = self.manager.command(method, params)
        assert verdict.ok, verdict
        return verdict

    def kill_one(self, house: House) -> None:
        """SIGKILL to one process of the pool, of whichever generation."""
        processes = [process for process in self.manager.pool(house.name).processes if process.pid is not None]
        if not processes:
            return
        pid = self.chance.choice(processes).pid
        assert pid is not None
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has gone by itself since
        self.outcome.kills.append((monotonic(), house.name))

    # The reckoning

    def judge(self) -> None:
        """Tell the requests that a kill explains from those that nothing does."""
        names = {(house.kind, house.path): house.name for house in self.houses}
        for kind, load in self.loads.items():
            self.outcome.requests += len(load.answers) + len(load.failures)
            for failed in load.failures:
                name = names[kind, failed.path]
                explained = any(
                    killed == name and failed.begun - SLACK <= moment <= failed.ended + SLACK
                    for moment, killed in self.outcome.kills
                )
                (self.outcome.lost if explained else self.outcome.unexplained).append((name, failed))
        kills, lost = Counter(name for _, name in self.outcome.kills), Counter(name for name, _ in self.outcome.lost)
        for name, count in lost.items():
            assert count <= kills[name] * CLIENTS, f"{name}: {count} requests lost by {kills[name]} kills"


# -- acts -------------------------------------------------------------------------------------------------------------


def reload(storm: Storm, house: House) -> None:
    storm.tell("reload", ReloadParams(names=(house.name,)))


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
    house.wanted = storm.chance.randint(1, 4)
    storm.tell("scale", ScaleParams(name=house.name, numprocs=str(house.wanted)))


def restart_one(storm: Storm, house: House) -> None:
    index = storm.chance.randrange(house.wanted)
    storm.tell("restart", RestartParams(names=(f"{house.name}:{house.name}_{index:02d}",)))


def retire_one(storm: Storm, house: House) -> None:
    """One process is stopped, and started again a moment later; a pool's last one is not: that would be a stop."""
    if house.wanted == 1:
        scale(storm, house)
        return
    name = f"{house.name}:{house.name}_{storm.chance.randrange(house.wanted):02d}"
    storm.tell("stop", NamesParams(names=(name,)))
    storm.tell("start", NamesParams(names=(name,)))


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
    change(storm, house)
    with Client(str(storm.manager.control)) as client:
        updated = client.call("update", UpdateParams(), answer=Updated, patient=True)
    assert updated.ok, updated


def kill(storm: Storm, house: House) -> None:
    storm.kill_one(house)


def kill_during_reload(storm: Storm, house: House) -> None:
    """A process of the old or the new generation, at any moment of the reload."""
    storm.tell("reload", ReloadParams(names=(house.name,), wait=False))
    time.sleep(storm.chance.random() / 4)
    storm.kill_one(house)


def kill_during_scale(storm: Storm, house: House) -> None:
    house.wanted = storm.chance.randint(1, 4)
    storm.tell("scale", ScaleParams(name=house.name, numprocs=str(house.wanted), wait=False))
    storm.kill_one(house)


ACTS: Final[dict[str, tuple[Callable[[Storm, House], None], int]]] = {
    "reload": (reload, 5),
    "canary": (canary, 2),
    "scale": (scale, 3),
    "restart of one": (restart_one, 3),
    "retirement": (retire_one, 3),
    "update": (update, 3),
    "kill": (kill, 2),
    "kill during a reload": (kill_during_reload, 2),
    "kill during a scale": (kill_during_scale, 1),
}
