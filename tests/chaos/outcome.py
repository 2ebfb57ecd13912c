"""What came of a storm: how many requests, acts and kills there were, and for each request that was lost, why.

A request is explained when a process of its pool was killed while it was under way: the dead one had it in hand. No
process has more in hand than there are clients, and no more is explained. Everything else is lost by the acts of an
operator, or by the manager's death: that must be nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.integration.load import Failed

SLACK: Final = 0.1
"""Seconds by which a kill may lie outside of a request that it broke: clocks are read before and after."""


@dataclass(frozen=True)
class Act:
    """Something that was done to a pool, or to the manager: from when to when (monotonic seconds)."""

    name: str
    pool: str
    begun: float
    ended: float

    def __str__(self) -> str:
        return f"{self.name} ({self.pool})"


@dataclass(frozen=True)
class Lost:
    """A request that was lost. `cause`: what explains it, or empty; `during`: the acts that were under way."""

    pool: str
    failed: Failed
    cause: str
    during: str


@dataclass
class Outcome:
    """All of one storm. `kills`: when, and of which pool; `alone`: seconds that pools were without a manager."""

    seed: int
    begun: float = 0.0
    seconds: float = 0.0
    acts: list[Act] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    lost: list[Lost] = field(default_factory=list)
    trouble: str = ""  # the house was not in order after an act, and so the storm ended

    @property
    def unexplained(self) -> list[Lost]:
        return [lost for lost in self.lost if not lost.cause]

    def reckon(self, pool: str, answered: int, failures: Iterable[Failed], most: int) -> None:
        """Take in the requests of one pool. `most`: how many a process may have in hand."""
        failures = list(failures)
        self.requests[pool] += answered + len(failures)
        kills = [moment for moment, killed in self.kills if killed == pool]
        left = dict.fromkeys(kills, most)
        for failed in failures:
            near = (moment for moment in kills if failed.begun - SLACK <= moment <= failed.ended + SLACK)
            killer = next((moment for moment in near if left[moment]), None)
            if killer is not None:
                left[killer] -= 1
            cause = "in the hands of a process that was killed" if killer is not None else ""
            self.lost.append(Lost(pool, failed, cause, self._during(failed)))

    def _during(self, failed: Failed) -> str:
        acts = [act for act in self.acts if act.begun - SLACK <= failed.ended and failed.begun <= act.ended + SLACK]
        return ", ".join(map(str, acts)) or "no act"

    def __str__(self) -> str:
        count = self.requests.total()
        lines = [
            f"seed {self.seed}: {count} requests in {self.seconds:.0f} s, {len(self.acts)} acts, {len(self.lost)} lost",
            "",
        ]
        lines += [*table(("act", "times", "longest"), list(self._acts())), ""]
        kills = Counter(pool for _, pool in self.kills)
        explained = Counter(lost.pool for lost in self.lost if lost.cause)
        unexplained = Counter(lost.pool for lost in self.unexplained)
        heads = ("pool", "requests", "processes killed", "lost in their hands", "lost otherwise")
        pools = [(name, self.requests[name], kills[name], explained[name], unexplained[name]) for name in self.requests]
        total = ("all", count, kills.total(), explained.total(), unexplained.total())
        lines += [*table(heads, [*pools, total]), ""]
        if self.alone:
            lines.append(f"without a manager: {len(self.alone)} times, at most {max(self.alone):.1f} s")
        causes: dict[str, list[Lost]] = {}
        for lost in self.lost:
            why = lost.cause or f"UNEXPLAINED, of {lost.pool} during {lost.during}: {lost.failed.why}"
            causes.setdefault(why, []).append(lost)
        for why, losses in causes.items():
            first, last = losses[0].failed.begun - self.begun, losses[-1].failed.ended - self.begun
            lines.append(
                f"{len(losses)} lost {why}" + (f", {first:.1f} to {last:.1f} s" if not losses[0].cause else "")
            )
        if self.trouble:
            lines.append(f"NOT IN ORDER: {self.trouble}")
        return "\n".join(lines)

    def _acts(self) -> Iterator[tuple[str, int, str]]:
        for name in sorted({act.name for act in self.acts}):
            lengths = [act.ended - act.begun for act in self.acts if act.name == name]
            yield name, len(lengths), f"{max(lengths):.1f} s"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines, the first column left-aligned and all others right-aligned below their heads."""
    cells = [list(heads), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
