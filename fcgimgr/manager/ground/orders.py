"""Who has given the order that is being carried out: a client of the control socket, or a signal.

What an order does at once is done in its own task; what comes of it later, by a timer or a death, is done in callbacks
that nobody has ordered, though asyncio would hand them the order's context variables. So an order is known by its task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

_givers: WeakKeyDictionary[asyncio.Task[object], str] = WeakKeyDictionary()


@contextmanager
def given_by(who: str) -> Iterator[None]:
    """What the present task does within was ordered by them: "pid 4711, uid 0", or "SIGHUP"; "" is nobody."""
    task = asyncio.current_task()
    assert task is not None  # orders are carried out by tasks
    before = _givers.get(task, "")
    _givers[task] = who
    try:
        yield
    finally:
        _givers[task] = before


def giver() -> str:
    """Who has ordered what is being done; "": nobody."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs: in tests, and before it does
        return ""
    return _givers.get(task, "") if task is not None else ""
