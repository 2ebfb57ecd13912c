"""From what a person types to processes: `app`, `app:*`, `app:app_00`, a group, `all`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fcgimgr.control.messages import NO_SUCH_NAME, ControlError, Event
from fcgimgr.manager.history import REMEMBERED

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.generation import Generation
    from fcgimgr.manager.pools import Pool

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


def choose_process(daemon: Daemon, name: str) -> tuple[Generation, int]:
    """The one process that `name` means; a pool's name will do if it has one process."""
    chosen = choose(daemon, (name,)).items()
    found = [(generation, index) for generation, indexes in chosen for index in indexes_of(generation, indexes)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(generation.process_name(index) for generation, index in found[:10])
    raise ControlError(f"{name} is {len(found)} processes; name one of them: {names}", code=NO_SUCH_NAME)


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
    for name in names:
        group = daemon.config.groups.get(name)
        wanted.update(group.programs if group is not None else (name.removesuffix(":*"),))
    known = {subject for event in daemon.history.last(REMEMBERED) for subject in _subjects(event)}
    for name in wanted - known:
        _one(daemon, name)
    return lambda event: not wanted.isdisjoint(_subjects(event))


def _subjects(event: Event) -> tuple[str, str]:
    """What an event is about: app:app_00, and app."""
    return event.name, event.name.partition(":")[0]


def indexes_of(generation: Generation, indexes: tuple[int, ...] | None) -> Iterable[int]:
    return range(len(generation.core.processes)) if indexes is None else indexes


def _one(daemon: Daemon, name: str) -> Iterable[tuple[Pool, tuple[int, ...] | None]]:
    if name == "all":
        return [(pool, None) for pool in daemon.pools.values()]
    if group := daemon.config.groups.get(name):
        # An update that was broken off may not have come to all of them.
        return [(daemon.pools[member], None) for member in group.programs if member in daemon.pools]
    pool_name, colon, process = name.partition(":")
    pool = daemon.pools.get(pool_name)
    if pool is None:
        raise _unknown(name, [*daemon.pools, *daemon.config.groups, "all"], "pool, program or group")
    if not colon or process == "*":
        return [(pool, None)]
    known = {slot.name: index for index, slot in enumerate(pool.serving.slots)}
    if process not in known:
        raise _unknown(name, [f"{pool_name}:{process}" for process in known], "process")
    return [(pool, (known[process],))]


def _unknown(name: str, known: Iterable[str], what: str) -> ControlError:
    import difflib  # 2 MB, for the one user in many who mistypes

    names = list(known)
    alike = difflib.get_close_matches(name, names, n=3)
    if alike:
        hint = f"did you mean {' or '.join(alike)}?"
    else:
        hint = f"there are {', '.join(names[:10])}{', …' if len(names) > 10 else ''}" if names else "there is none"
    return ControlError(f"there is no {what} {name!r}; {hint}", code=NO_SUCH_NAME)
