"""What processes have in hand, and whether they get on with it: for a ping that waits behind real requests.

A process works that has let go of a connection which it had before, or whose client has taken more of an answer. One
that keeps the same connections and says nothing may be at a long request or stuck; only time tells these apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, TypeAlias

from fcgimgr.linux.draining import taken
from fcgimgr.manager.children.descriptors import Inquiry

if TYPE_CHECKING:
    from fcgimgr.manager.pools.generation import Generation

#: By the inode of the connection, how many bytes of answers its client has taken.
Hands: TypeAlias = dict[int, int]


async def in_hand(generation: Generation, pids: Iterable[int], without: Collection[int] = ()) -> dict[int, Hands]:
    """What each of these processes and its children have in hand, but for the connections `without` (inodes).

    A process of which that cannot be known is left out.
    """
    listening = generation.listening
    accepted = taken(listening.names) if listening is not None else None
    if accepted is None:
        return {}
    found: dict[int, Hands] = {}
    with Inquiry(generation.daemon) as inquiry:
        async for pid, seen in inquiry.sockets(pids, accepted.keys(), family=True):
            if seen.itself:
                found[pid] = {inode: accepted[inode] for inode in seen.found.difference(without)}
    return found


def has_worked(before: Hands, after: Hands) -> bool:
    """Whether something of what was in hand has been answered since, at least in part."""
    return any(inode not in after or after[inode] != count for inode, count in before.items())
