"""In which order changes are made, so that each address and name is free when another pool is to have it.

A pool that is to have the address of another waits until that one has left it. Where they wait for each other, because
they change places, one of them yields: it is stopped first, and starts where it is to be when the others have moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from fcgimgr.config.address import Address
from fcgimgr.config.crosschecks import bucket, clash
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
    held: dict[object, list[tuple[Address, str]]] = {}
    renamed = {change.before: change.name for change in changes if change.before is not None}
    for change in changes:
        for address in _addresses(None if How.ADD in change.how else before.get(change.before or change.name)):
            held.setdefault(bucket(address), []).append((address, change.name))
    waits: dict[str, frozenset[str]] = {}
    for change in changes:
        first = {
            holder
            for address in _addresses(after[change.name])
            for its, holder in held.get(bucket(address), ())
            if clash(its, address)
        }
        waits[change.name] = frozenset(first | {renamed.get(change.name, change.name)}) - {change.name}
    yielding: frozenset[str] = frozenset()
    while (one := _in_a_circle(waits, yielding)) is not None:
        yielding |= {one}
    return Moves({name: others - yielding for name, others in waits.items()}, yielding)


def shared(one: ProcessSettings, other: ProcessSettings) -> str | None:
    """An address that both pools listen at; None: both can be there."""
    return next(
        (str(its) for its in _addresses(one) if any(clash(its, address) for address in _addresses(other))), None
    )


def _addresses(settings: ProcessSettings | None) -> tuple[Address, ...]:
    return settings.sockets if isinstance(settings, PoolSettings) else ()


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
