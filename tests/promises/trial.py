"""One program put to the test: POSTs without end through nginx, and meanwhile all that an operator does to its pool.

Afterwards each POST is accounted for, by what its client has seen and by what the program has logged: it has failed
when it was not answered rightly, and was carried out twice when it was begun more than once. The promise is that there
is none of either.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Final

from fcgimgr.control.client import Client
from fcgimgr.control.messages import ControlError, Params, ReloadParams, RestartParams, ScaleParams, Verdict
from tests.integration.commands import Manager, configuration
from tests.integration.ports import free_address
from tests.promises.front import front
from tests.promises.posts import Failed, Posts, carried_out
from tests.promises.programs import LOG, POOL, Program, Socket

ENDS_WITHIN: Final = 180.0  # seconds for a command: a bound on a broken manager
SLACK: Final = 0.1  # seconds by which a POST may be outside of the act that has cost it


@dataclass(frozen=True)
class Acts:
    """How many POSTs at least, and how often each thing is done meanwhile. scales: one process less, then one more."""

    posts: int
    reloads: int
    restarts: int
    scales: int


@dataclass(frozen=True)
class Act:
    """Something done to the pool. begun, ended: monotonic seconds."""

    name: str
    begun: float
    ended: float


@dataclass(frozen=True)
class Lost:
    """A POST that has failed; how often the program has begun it, and done it."""

    failed: Failed
    begun: int
    done: int
    during: str


@dataclass
class Outcome:
    """What came of it. `trouble`: an act failed, or the trial could not go on; else empty."""

    program: str
    socket: Socket
    posts: int = 0
    longest: float = 0.0
    acts: list[Act] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    trouble: str = ""

    @property
    def kept(self) -> bool:
        """Whether the promise was."""
        return not (self.lost or self.twice or self.trouble)

    def row(self) -> tuple[str, ...]:
        """As HEADS has it."""
        begun, done = sum(lost.begun > 0 for lost in self.lost), sum(lost.done > 0 for lost in self.lost)
        times = (self._seconds(name) for name in ("reload", "restart one", "scale down", "scale up"))
        counts = (self.posts, len(self.lost), begun, done, len(self.twice))
        return (self.program, self.socket, *map(str, counts), *times, f"{self.longest:.1f}")

    def _seconds(self, name: str) -> str:
        seconds = [act.ended - act.begun for act in self.acts if act.name == name]
        return f"{len(seconds)} × {median(seconds):.1f} ({max(seconds):.1f})" if seconds else "-"

    def losses(self) -> Iterator[str]:
        """A line for each way in which something was lost, and for each trouble."""
        ways: Counter[tuple[str, str, str]] = Counter()
        for lost in self.lost:
            how = "done" if lost.done else "begun" if lost.begun else "never begun"
            ways[lost.during, how, lost.failed.why] += 1
        for (during, how, why), count in ways.most_common():
            yield f"{self.program} {self.socket}: {count} lost during {during}, {how}: {why}"
        if self.twice:
            yield f"{self.program} {self.socket}: {len(self.twice)} carried out twice: {', '.join(self.twice[:10])}"
        if self.trouble:
            yield f"{self.program} {self.socket}: {self.trouble}"


HEADS: Final = (
    "program",
    "socket",
    "POSTs",
    "failed",
    "begun",
    "done",
    "twice",
    "reload (s)",
    "restart one (s)",
    "scale down (s)",
    "scale up (s)",
    "longest answer (s)",
)


class Trial:
    """A program on a kind of socket, its files in `directory`. `keys`: more lines for its pool's table."""

    def __init__(self, program: Program, socket: Socket, directory: Path, keys: Sequence[str] = ()) -> None:
        self._program = program
        self._directory = directory
        self._address = free_address(socket, directory)
        self._table = program.pool(directory, socket, self._address, *keys)
        self._outcome = Outcome(program.name, socket)

    def run(self, acts: Acts, seed: int = 1) -> Outcome:
        """Do all this; an act that fails ends it."""
        outcome = self._outcome
        manager = Manager(configuration(self._directory, self._table), self._directory / "fcgimgr.sock", within=60)
        try:
            with manager, front(self._directory, self._program, self._address) as nginx:
                posts = Posts(nginx.port, self._program.clients, seed)
                with posts:
                    try:
                        self._act(manager, posts, acts)
                        while posts.count < acts.posts:
                            posts.go_on()
                        posts.go_on()
                    finally:
                        posts.end()
                        self._account(posts)
        except (AssertionError, OSError, RuntimeError, ControlError) as error:
            outcome.trouble = f"{error!r}"
        return outcome

    def _account(self, posts: Posts) -> None:
        begun, done = carried_out((self._directory / LOG).read_text())
        outcome = self._outcome
        outcome.posts = posts.count
        outcome.longest = posts.longest
        outcome.twice = [name for name, times in begun.items() if times > 1]
        for failed in posts.failures:
            lost = Lost(failed, begun.get(failed.name, 0), done.get(failed.name, 0), self._during(failed))
            outcome.lost.append(lost)

    def _act(self, manager: Manager, posts: Posts, acts: Acts) -> None:
        """All of it by turns; between two acts the load goes on, so that there are kept connections again."""
        processes = itertools.cycle(range(self._program.numprocs))
        for number in range(max(acts.reloads, acts.restarts, acts.scales)):
            posts.go_on()
            if number < acts.restarts:
                name = f"{POOL}:{POOL}_{next(processes):02d}"
                self._tell(manager, "restart one", "restart", RestartParams(names=(name,)))
                posts.go_on()
            if number < acts.scales:
                self._tell(manager, "scale down", "scale", ScaleParams(name=POOL, numprocs="-1"))
                posts.go_on()
                self._tell(manager, "scale up", "scale", ScaleParams(name=POOL, numprocs="+1"))
                posts.go_on()
            if number < acts.reloads:
                self._tell(manager, "reload", "reload", ReloadParams(names=(POOL,)))

    def _tell(self, manager: Manager, name: str, method: str, params: Params) -> None:
        with self._timed(name), Client(str(manager.control), timeout=ENDS_WITHIN) as client:
            verdict = client.call(method, params, answer=Verdict)
        assert verdict.ok, f"{name} failed: {verdict}"

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun = monotonic()
        try:
            yield
        finally:
            self._outcome.acts.append(Act(name, begun, monotonic()))

    def _during(self, failed: Failed) -> str:
        acts = (
            act.name
            for act in self._outcome.acts
            if act.begun - SLACK <= failed.ended and failed.begun <= act.ended + SLACK
        )
        return ", ".join(acts) or "no act"
