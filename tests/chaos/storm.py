"""A storm: pools of several kinds under steady load through nginx, and one act after another at random, from a seed.

What can be done is in acts.py, to the pools and to the manager itself: it is upgraded in place, and killed at any
moment and followed by the next one, which takes the same processes back. What is lost is told in outcome.py.

After every act the house must be in order again: exactly the wanted processes, all running and all in the status; no
zombie, no stray, no descriptor more than before. What an act does not concern must be as it was: the same processes
with the same restarts and exits, whoever the manager is.
"""

import os
import random
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

from fcgimgr.control.client import Client
from fcgimgr.control.messages import (
    ControlError,
    Params,
    Pong,
    PoolStatus,
    ProcessStatus,
    Status,
    StatusParams,
    Verdict,
)
from fcgimgr.linux import procfs
from tests.chaos.outcome import Act, Outcome
from tests.integration.backends import BACKENDS, front, pool
from tests.integration.commands import Manager, configuration
from tests.integration.load import Load
from tests.integration.ports import free_address
from tests.integration.running import strays
from tests.integration.scenes import Child, are_gone
from tests.waiting import eventually

KINDS: Final = ("go", "php", "wsgi")
TRANSPORTS: Final = ("tcp", "unix")
CLIENTS: Final = 2
"""For each kind of program; each client asks the pool on TCP and the one on the Unix socket in turn."""

SETTLED_WITHIN: Final = 30.0
ENDS_WITHIN: Final = 60.0

Answer = TypeVar("Answer")

Was = dict[str, dict[str, ProcessStatus]]
"""How each process of each pool was."""


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

    def __str__(self) -> str:
        return self.name


Deed = Callable[["Storm", House], None]


class Storm:
    """One run in an empty directory. `acts`: what can be done, and how often one is done beside the others."""

    def __init__(self, directory: Path, seed: int, acts: dict[str, tuple[Deed, int]]) -> None:
        self.outcome = Outcome(seed)
        self.chance = random.Random(seed)
        self.directory = directory
        self._acts = acts
        # Each of them once to begin with, so that a short storm leaves none out.
        self._first = self.chance.sample(list(acts), len(acts))
        self.houses = []
        for kind in KINDS:
            (directory / kind).mkdir()
            for number, transport in enumerate(TRANSPORTS):
                address = free_address(transport, directory / kind)
                self.houses.append(House(f"{kind}_{transport}", kind, address, f"/{number}"))
        self.loads: dict[str, Load] = {}
        self.left: set[int] = set()  # the processes of managers that were killed
        self._managers = count(1)

    @contextmanager
    def brewing(self) -> Iterator[None]:
        """The manager, three nginx and their clients at work."""
        with ExitStack() as stack:
            self.manager = self._next_manager(Manager(self.write(), self.directory / "fcgimgr.sock"))
            self.manager.__enter__()
            # Of them all, the last.
            stack.push(lambda *error: self.manager.__exit__(*error))
            for kind in KINDS:
                BACKENDS[kind].prepare(self.directory / kind)
                addresses = [house.address for house in self.houses if house.kind == kind]
                nginx = stack.enter_context(front(self.directory / kind, kind, *addresses))
                paths = [house.path for house in self.houses if house.kind == kind]
                self.loads[kind] = stack.enter_context(Load(nginx.port, paths=paths, clients=CLIENTS, pause=2))
            eventually(self.looks_at_nobody)
            _, fds = self.look()
            self.nulls = list(fds.values()).count(os.devnull)
            self.others = len(fds) - self.nulls - self.held()
            yield

    def rage(self, seconds: float) -> Outcome:
        """Act for so long; what came of it. It ends at once when after an act the house is not in order again."""
        self.outcome.begun = monotonic()
        try:
            with self.brewing():
                while monotonic() - self.outcome.begun < seconds:
                    self._act()
                for load in self.loads.values():
                    load.goes_on(10)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, what was lost until then is told with it
            acts = self.outcome.acts
            self.outcome.trouble = f"after {acts[-1] if acts else 'the start'}: {error!r}"
        self.outcome.seconds = monotonic() - self.outcome.begun
        for house in self.houses:
            if (load := self.loads.get(house.kind)) is not None:
                answered = sum(answer.path == house.path for answer in load.answers)
                failures = [failed for failed in load.failures if failed.path == house.path]
                self.outcome.reckon(house.name, answered, failures, CLIENTS)
        return self.outcome

    def _act(self) -> None:
        weights = [weight for _, weight in self._acts.values()]
        name = self._first.pop() if self._first else self.chance.choices(list(self._acts), weights)[0]
        house = self.chance.choice(self.houses)
        begun = monotonic()
        try:
            self._acts[name][0](self, house)
            eventually(self.in_order, within=SETTLED_WITHIN)
        finally:
            self.outcome.acts.append(Act(name, house.name, begun, monotonic()))

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
        status, fds = self.look()
        assert (status.manager.pid, status.manager.state) == (self.manager.pid, "RUNNING"), status.manager
        shown = {each.name: each for each in status.pools}
        assert list(shown) == [house.name for house in self.houses]
        children = set(Child(self.manager.pid).children)
        for house in self.houses:
            each = shown[house.name]
            assert (each.state, each.numprocs, each.canary) == ("RUNNING", house.wanted, None), each
            assert len(each.processes) == house.wanted, each
            assert all(process.state == "RUNNING" for process in each.processes), each
            self.is_true(each, children)
        pids = {process.pid or 0 for each in shown.values() for process in each.processes}
        assert children <= pids, f"children of no pool: {children - pids}"
        found = {int(stray.split()[0]) for stray in strays(self.manager.mark)}
        assert found == {*pids, self.manager.pid}, f"{found ^ {*pids, self.manager.pid}}: strays, or missing"
        self.leaks_none(fds)
        return True

    def is_true(self, shown: PoolStatus, children: Collection[int]) -> None:
        """What the status says of each process is what the kernel says."""
        for process in shown.processes:
            assert process.pid is not None
            child = Child(process.pid)
            assert child.stat[0] not in "ZXTt", (process, child.stat[0])
            assert process.pid in children or process.pid in self.left, (process, child.parent)
            assert child.environ["FCGIMGR_POOL"] == shown.name
            assert child.environ["FCGIMGR_PROCESS"] == process.name
            assert child.environ["FCGIMGR_GENERATION"] == str(process.generation) == str(shown.generation)

    def leaks_none(self, fds: dict[int, str]) -> None:
        """Whether the manager has the descriptors that the first one had when it was up, and what its processes need.

        Spawning keeps some numbers taken (linux/spawn.py), from the first spawn on.
        """
        nulls = list(fds.values()).count(os.devnull)
        assert nulls <= self.nulls, fds
        wanted = self.others + self.held()
        assert len(fds) - nulls == wanted, f"{len(fds) - nulls} descriptors, not {wanted}: {fds}"

    def look(self) -> tuple[Status, dict[int, str]]:
        """The status, and the manager's descriptors."""
        with Client(str(self.manager.control)) as client:
            status = client.call("status", StatusParams(detail=False), answer=Status)
            # Here, where there is one client exactly: those that came before have been taken leave of.
            return status, Child(self.manager.pid).fds

    def looks_at_nobody(self) -> bool:
        """Whether the manager has no helper, which takes descriptors while it looks at young processes."""
        return "fcgimgr-helper" not in map(procfs.command, procfs.children(self.manager.pid) or ())

    def held(self) -> int:
        """How many of the manager's descriptors its processes take: pidfd, stdout, stderr, a worker's board."""
        return sum((4 if house.kind == "wsgi" else 3) * house.wanted for house in self.houses)

    # What an act needs

    def tell(self, method: str, params: Params) -> Verdict:
        verdict = self.ask(method, params, Verdict)
        assert verdict.ok, verdict
        return verdict

    def ask(self, method: str, params: Params | None, answer: type[Answer]) -> Answer:
        """A command, which must come to an end."""
        with Client(str(self.manager.control), timeout=ENDS_WITHIN) as client:
            return client.call(method, params, answer=answer)

    def pong(self) -> Pong:
        return self.ask("ping", None, Pong)

    def processes(self) -> Was:
        """How each process is."""
        return {
            each.name: {process.name: process for process in each.processes} for each in self.manager.status().pools
        }

    def goes_on_as(self, was: Was, *, but: Collection[str] = ()) -> None:
        """Each process that was is there with all that is known of it, but for these pools."""
        now = self.processes()
        for name in was.keys() - set(but):
            before, after = ({key: known(one) for key, one in each[name].items()} for each in (was, now))
            assert before == after, f"{name} was {before} and is {after}"

    def victim(self, house: House) -> int | None:
        """The pid of one process of the pool, of whichever generation; None: it has none just now."""
        pids = [process.pid for process in self.manager.pool(house.name).processes if process.pid is not None]
        return self.chance.choice(pids) if pids else None

    def kill(self, pid: int | None, house: House) -> None:
        """SIGKILL to a process of this pool, if it is still there."""
        if pid is None:
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has gone by itself since
        self.outcome.kills.append((monotonic(), house.name))
        are_gone(pid)  # it may take its time to die, and until then everything looks well

    # Managers

    def _next_manager(self, manager: Manager) -> Manager:
        manager.log = self.directory / f"manager-{next(self._managers)}.log"
        return manager

    def kill_manager(self) -> None:
        """SIGKILL. Until `follow` the pools are alone."""
        self._killed = monotonic()
        self.manager.kill()
        self.left = {int(stray.split()[0]) for stray in strays(self.manager.mark)}

    def serves_alone(self, houses: Sequence[House]) -> None:
        """Wait until each of these pools has answered a request that was begun after the manager's death."""
        for house in houses:
            load = self.loads[house.kind]
            eventually(lambda at=house.path, load=load: any(a.path == at for a in load.since(self._killed)), within=30)

    def follow(self, *, starters: int = 1) -> None:
        """Start the next manager; it answers, and all that it does by itself follows. Of several, one comes up."""
        before = self.manager
        begun = [self._next_manager(Manager(before.config, before.control, mark=before.mark)) for _ in range(starters)]
        for manager in begun:
            manager.begin()
        while len(begun) > 1:
            refused = eventually(lambda: next((one for one in begun if one.ended), None), within=SETTLED_WITHIN)
            assert refused.wait() == 1, refused.output()
            assert "already held by " in refused.output(), refused.output()
            begun.remove(refused)
        (self.manager,) = begun
        eventually(self._is_up, within=SETTLED_WITHIN)
        self.outcome.alone.append(monotonic() - self._killed)

    def _is_up(self) -> bool:
        if self.manager.ended:  # not an AssertionError: there is nothing left to wait for
            raise RuntimeError(f"the manager ended with {self.manager.wait()}: {self.manager.output()}")
        try:
            return self.manager.status().manager.state == "RUNNING"
        except ControlError:
            return False


def known(process: ProcessStatus) -> tuple[object, ...]:
    """What a manager must not forget of a process."""
    return process.pid, process.state, process.generation, process.restarts, process.exit
