"""From what a person types to processes: `app`, `app:*`, `app:app_00`, a group, `all`.

Where it can mean one thing only, also as others write it: `app_00`, `app:0`, and Supervisor's `group:app_00`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fcgimgr.control.messages import NO_SUCH_NAME, ControlError, Event
from fcgimgr.manager.ground.history import REMEMBERED

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.pool import Pool

#: The generation that serves a pool, with the indexes of some of its processes, or None for all of it.
Chosen = dict["Generation", tuple[int, ...] | None]


def choose(daemon: Daemon, names: Iterable[str]) -> Chosen:
    """What `names` mean, each pool once. ControlError for the first that means nothing, with what is alike."""
    chosen: Chosen = {}
    for name in names:
        for pool, indexes in _one(daemon, name):
            generation = pool.serving
            before = chosen.get(generation, ())
            chosen[generation] = None if indexes is None or before is None else tuple(dict.fromkeys(before + indexes))
    return chosen


def choose_pool(daemon: Daemon, name: str) -> Pool:
    """The pool or program that `name` means."""
    pool = daemon.pools.get(name.removesuffix(":*"))
    if pool is None:
        raise _unknown(name, daemon.pools, "pool or program")
    return pool


def events_of(daemon: Daemon, names: tuple[str, ...] | None) -> Callable[[Event], bool]:
    """Whether an event is about what `names` mean; None: all. ControlError: nothing is called so, nor ever was."""
    if names is None or "all" in names:
        return lambda event: True
    wanted: set[str] = set()
    known = {subject for event in daemon.history.last(REMEMBERED) for subject in _subjects(event)}
    for name in names:
        plain = name.removesuffix(":*")
        if plain in known:
            wanted.add(plain)
            continue
        for pool, indexes in _one(daemon, name):
            wanted.update((pool.name,) if indexes is None else map(pool.serving.process_name, indexes))
    return lambda event: not wanted.isdisjoint(_subjects(event))


def _subjects(event: Event) -> tuple[str, str]:
    """What an event is about: app:app_00, and app."""
    return event.name, event.name.partition(":")[0]


def indexes_of(generation: Generation, indexes: tuple[int, ...] | None) -> Iterable[int]:
    return range(len(generation.core.processes)) if indexes is None else indexes


def _one(daemon: Daemon, name: str) -> Iterable[tuple[Pool, tuple[int, ...] | None]]:
    if name == "all":
        return [(pool, None) for pool in daemon.pools.values()]
    if members := _members(daemon, name.removesuffix(":*")):
        return [(pool, None) for pool in members]
    first, colon, second = name.partition(":")
    if pool := daemon.pools.get(first):
        return [(pool, _in_pool(pool, second) if colon and second != "*" else None)]
    if members := _members(daemon, first):
        return [_in_group(first, members, second)]
    found = _processes(daemon.pools.values(), name)
    if len(found) == 1:
        return found
    if found:
        raise _ambiguous(name, found)
    raise _unknown(name, [*daemon.pools, *daemon.config.groups, "all"], "pool, program or group")


def _members(daemon: Daemon, group: str) -> list[Pool]:
    """The pools and programs of a group; an update that was broken off may not have come to all of them."""
    found = daemon.config.groups.get(group)
    return [daemon.pools[member] for member in found.programs if member in daemon.pools] if found else []


def _in_pool(pool: Pool, process: str) -> tuple[int]:
    """A process of `pool` by its name, or by its number alone."""
    names = [slot.name for slot in pool.serving.slots]
    if process in names:
        return (names.index(process),)
    index = int(process) - pool.settings.numprocs_start if process.isascii() and process.isdigit() else -1
    if 0 <= index < len(names):
        return (index,)
    raise _unknown(f"{pool.name}:{process}", [f"{pool.name}:{name}" for name in names], "process")


def _in_group(group: str, members: list[Pool], name: str) -> tuple[Pool, tuple[int, ...] | None]:
    """A member of a group, or a process of one, as Supervisor names them."""
    for pool in members:
        if name == pool.name:
            return pool, None
    found = _processes(members, name)
    if len(found) == 1:
        return found[0]
    if found:
        raise _ambiguous(f"{group}:{name}", found)
    known = [f"{pool.name}:{slot.name}" for pool in members for slot in pool.serving.slots]
    raise _unknown(f"{group}:{name}", known, "process in that group")


def _processes(pools: Iterable[Pool], name: str) -> list[tuple[Pool, tuple[int]]]:
    """The processes of this name, whatever their pool."""
    return [(pool, (index,)) for pool in pools for index, slot in enumerate(pool.serving.slots) if slot.name == name]


def _ambiguous(name: str, found: list[tuple[Pool, tuple[int]]]) -> ControlError:
    names = " or ".join(pool.serving.process_name(index) for pool, (index,) in found)
    return ControlError(f"{name} is the name of several: say {names}", code=NO_SUCH_NAME)


def _unknown(name: str, known: Iterable[str], what: str) -> ControlError:
    import difflib  # 2 MB, for the one user in many who mistypes

    names = list(known)
    near = difflib.get_close_matches(name, names, n=3)
    alike = [known for known in names if known in near]  # in their order, not by likeness
    if alike:
        hint = f"did you mean {' or '.join(alike)}?"
    else:
        hint = f"there are {', '.join(names[:10])}{', …' if len(names) > 10 else ''}" if names else "there is none"
    return ControlError(f"there is no {what} {name!r}; {hint}", code=NO_SUCH_NAME)
