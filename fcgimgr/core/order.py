"""In which order pools and programs start and stop: priority and depends_on.

Starting: by priority, lower first, then as written; nobody waits for anybody, except that what `depends_on` others
starts when all of those are RUNNING, or have done what they are for. Stopping: in reverse, and here each wave waits for
the one before it, so that a queue consumer's database proxy is still there while the consumer finishes its last
message.
"""

from __future__ import annotations

from collections.abc import Mapping

from fcgimgr.config.settings import ProcessSettings
from fcgimgr.core.generation import READY, PoolState


def start_order(settings: Mapping[str, ProcessSettings]) -> list[str]:
    """All names, in the order in which they are started."""
    return sorted(settings, key=lambda name: settings[name].priority)  # sorted() is stable: then as written


def missing(settings: ProcessSettings, states: Mapping[str, PoolState]) -> tuple[str, ...]:
    """The dependencies that are not ready yet; it may start when there is none."""
    return tuple(name for name in settings.depends_on if states.get(name) not in READY)


def stop_waves(settings: Mapping[str, ProcessSettings]) -> list[tuple[str, ...]]:
    """All names in waves: those of one wave are stopped together, once the waves before it have ended.

    The highest priority number goes first; nothing goes before all that depends on it has gone.
    """
    remaining = dict(settings)
    waves: list[tuple[str, ...]] = []
    while remaining:
        needed = {name for other in remaining.values() for name in other.depends_on}
        free = [name for name in remaining if name not in needed]
        # The configuration refuses cycles; were there one, stopping in any order still beats never stopping.
        candidates = free or list(remaining)
        last = max(remaining[name].priority for name in candidates)
        wave = tuple(name for name in candidates if remaining[name].priority == last)
        waves.append(wave)
        for name in wave:
            del remaining[name]
    return waves
