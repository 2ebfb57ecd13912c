"""In which order changes are made, so that each address and name is free when another pool is to have it.

A pool that is to have the address of another waits until that one has left it. Where they wait for each other, because
they change places, one of them yields: it is stopped first, and starts where it is to be when the others have moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from fcgimgr.config.crosschecks import clash
from fcgimgr.config.difference import Change, How
from fcgimgr.config.settings import PoolSettings, ProcessSettings


class Moves(msgspec.Struct, frozen=True):
    """after: for whose changes each change waits. yielding: who is stopped first, so that nobody waits for it."""

    after: dict[str, frozenset[str]] = {}
    yielding: frozenset[str] = frozenset()


def moves(
    changes: Sequence[Change], before: Mapping[str, ProcessSettings], after: Mapping[str, ProcessSettings]
) -> Moves:
    """The order of these changes, none of them a removal. before, after: the settings, by name."""
    waits: dict[str, frozenset[str]] = {}
    for change in changes:
        others = (other for other in changes if other is not change)
        waits[change.name] = frozenset(other.name for other in others if _is_first(other, change, before, after))
    yielding: frozenset[str] = frozenset()
    while (one := _in_a_circle(waits, yielding)) is not None:
        yielding |= {one}
    return Moves({name: others - yielding for name, others in waits.items()}, yielding)


def _is_first(
    other: Change, change: Change, before: Mapping[str, ProcessSettings], after: Mapping[str, ProcessSettings]
) -> bool:
    """Whether `other` has, until it is changed, the name or an address that `change` is to have."""
    if other.before == change.name:
        return True
    was = None if How.ADD in other.how else before.get(other.before or other.name)
    return was is not None and shared(was, after[change.name]) is not None


def shared(one: ProcessSettings, other: ProcessSettings) -> str | None:
    """An address that both pools listen at; None: both can be there."""
    if not isinstance(one, PoolSettings) or not isinstance(other, PoolSettings):
        return None
    return next((str(address) for address in one.sockets if any(clash(address, its) for its in other.sockets)), None)


def _in_a_circle(waits: Mapping[str, frozenset[str]], yielding: frozenset[str]) -> str | None:
    """One that would wait for itself, since it waits for others that do; None: nobody."""
    for name in waits:
        seen: frozenset[str] = frozenset()
        left = waits[name] - yielding
        while left:
            seen |= left
            left = frozenset().union(*(waits[other] for other in left)) - yielding - seen
        if name in seen:
            return name
    return None
