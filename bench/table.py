"""The figures as a Markdown table, and as JSON."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.figure import OURS, Figure


def markdown(figures: list[Figure], columns: list[str]) -> str:
    """The table of all figures, and after it those that have one of their own."""
    apart: dict[str, list[Figure]] = {}
    for figure in figures:
        apart.setdefault(figure.table, []).append(figure)
    general = apart.pop("", [])
    tables = [_general(general, columns)] if general else []
    return "\n\n".join([*tables, *map(_turned, apart.values())])


def _general(figures: list[Figure], columns: list[str]) -> str:
    """A row a figure: median (lowest-highest) of each manager, how many times fcgimgr is better, and the budget."""
    others = [column for column in columns if column != OURS]
    head = ["", *columns, *(f"{column} ÷ {OURS}" for column in others), f"{OURS} must"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for figure in figures:
        cells = [_title(figure) + (f"; {figure.note}" if figure.note else "")]
        cells += [_samples(figure, column) for column in columns]
        cells += [_ratio(figure, column) for column in others]
        rows.append([*cells, _budget(figure)])
    return _lines(rows)


def _turned(figures: list[Figure]) -> str:
    """A column a figure; a row for each of whom there are samples."""
    names = dict.fromkeys(name for figure in figures for name in figure.samples)
    rows = [["", *map(_title, figures)], ["---"] + ["---:"] * len(figures)]
    rows += [[name, *(_samples(figure, name) for figure in figures)] for name in names]
    return _lines(rows)


def _title(figure: Figure) -> str:
    return f"{figure.name} ({figure.unit})" if figure.unit else figure.name


def _lines(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _samples(figure: Figure, column: str) -> str:
    middle = figure.median(column)
    if middle is None:
        return "-"
    samples = figure.samples[column]
    if len(samples) == 1:
        return f"**{_number(middle)}**"
    return f"**{_number(middle)}** ({_number(min(samples))}-{_number(max(samples))})"


def _ratio(figure: Figure, column: str) -> str:
    ratio = figure.ratio(column)
    return "-" if ratio is None else f"{_number(ratio)} ×"


def _budget(figure: Figure) -> str:
    if figure.budget is None:
        return "-"
    sign = "≤" if figure.better == "less" else "≥"
    verdict = {True: "met", False: "**missed**", None: "not measured"}[figure.met]
    return f"{sign} {_number(figure.budget)}: {verdict}"


def _number(value: float) -> str:
    """Three digits that matter, and never an exponent."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def as_json(figures: list[Figure], where: str) -> str:
    """All samples, with the machine they were taken on (`where`, in words)."""
    report: dict[str, Any] = {"machine": where, "time": round(time.time()), "figures": []}
    for figure in figures:
        report["figures"].append(
            {
                "name": figure.name,
                "unit": figure.unit,
                "better": figure.better,
                "budget": figure.budget,
                "met": figure.met,
                "median": {column: figure.median(column) for column in figure.samples},
                "ratio": {column: figure.ratio(column) for column in figure.samples if column != OURS},
                "samples": figure.samples,
                "note": figure.note,
                "table": figure.table,
            }
        )
    return json.dumps(report, indent=1, ensure_ascii=False)


def revision() -> str:
    """Of the checkout that this module lies in; "+" when files differ from it. "unknown" outside of git."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=7"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except OSError:
        return "unknown"
    return answer.stdout.strip() or "unknown"


def machine() -> str:
    return f"{os.cpu_count()} processors, Linux {platform.release()}, Python {platform.python_version()}"


def load() -> str:
    """Over the last 1, 5 and 15 minutes: a machine that was busy besides has given worse figures."""
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())
