"""Whoever wants to know how things go on: a command that waits, the supervisor of the manager."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.pool import Pool


class Watcher:
    """All of it does nothing unless overridden."""

    def process_changed(self, generation: Generation, index: int) -> None:
        """A process of this generation went into another state."""

    def pool_changed(self, pool: Pool) -> None:
        """Something happened in this pool."""

    def manager_changed(self) -> None:
        """The manager itself went into another state."""

    def fault(self, why: str) -> None:
        """A fault of the manager's may have swallowed what is waited for."""

    def reload_began(self) -> None:
        """An update or a reload of everything begins; another one may be under way."""

    def reload_over(self) -> None:
        """One of them is over, well or not."""
