"""What a figure is: samples of each manager, and the budget that fcgimgr has for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final, Literal

from bench.peers import Peer

OURS: Final = "fcgimgr"


@dataclass
class Figure:
    """`samples` by manager, in `unit`. Ours are held against `budget`, in the same unit.

    better: whether less or more of it is good. note: what a reader must know to read the row. table: "" for the one of
    all figures, a row a figure; else the name of a table of its own, where the figures are the columns.
    """

    name: str
    unit: str
    budget: float | None = None
    better: Literal["less", "more"] = "less"
    samples: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    table: str = ""

    def add(self, column: str, sample: float) -> None:
        self.samples.setdefault(column, []).append(sample)

    def median(self, column: str) -> float | None:
        return median(self.samples[column]) if self.samples.get(column) else None

    def ratio(self, column: str) -> float | None:
        """How many times better fcgimgr is than this column; below 1 it is worse. None where that has no meaning."""
        ours, theirs = self.median(OURS), self.median(column)
        if not ours or not theirs:
            return None
        return theirs / ours if self.better == "less" else ours / theirs

    @property
    def met(self) -> bool | None:
        """Whether the median is within the budget; None without one."""
        ours = self.median(OURS)
        if ours is None or self.budget is None:
            return None
        return ours <= self.budget if self.better == "less" else ours >= self.budget


@dataclass(frozen=True)
class Setting:
    """What a figure is measured with: the managers, a directory of its own, the children's programs, how often."""

    peers: list[Peer]
    directory: Path
    build: Callable[[str, str], str]  # (source, name) → the program's path
    runs: int | None  # None: as often as the figure thinks fit
    quick: bool
    only: list[str] | None = None  # the managers' names; None: all
    failures: list[str] = field(default_factory=list)  # what of a figure could not be measured, and why

    def wants(self, manager: str) -> bool:
        return self.only is None or manager in self.only

    def times(self, usual: int, quick: int) -> int:
        return self.runs or (quick if self.quick else usual)

    def place(self, *parts: object) -> Path:
        return self.directory.joinpath(*map(str, parts))


def say(message: str) -> None:
    """Progress, on standard error: the table alone goes to standard output."""
    print(f"bench: {message}", file=sys.stderr, flush=True)
