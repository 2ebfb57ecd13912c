"""Whether a connection waits at a listener, and whether any can still come: one process can shut it down for all.

shutdown(2) acts on the socket and not on the descriptor. poll(2) then answers POLLHUP for TCP, and POLLRDHUP for a Unix
socket that is shut down for reading alone; on a Unix socket also POLLIN, for ever, though accept(2) has nobody to give.
"""

import select
from collections.abc import Iterable
from typing import Final

_IS_SHUT_DOWN: Final = select.POLLHUP | select.POLLRDHUP


def somebody_waits(listeners: Iterable[int]) -> bool:
    """Whether a connection waits to be accepted at one of these descriptors."""
    return any(events & select.POLLIN and not events & _IS_SHUT_DOWN for events in _look(listeners).values())


def shut_down(listeners: Iterable[int]) -> frozenset[int]:
    """Those of these descriptors whose listeners let nobody in any more."""
    return frozenset(fd for fd, events in _look(listeners).items() if events & _IS_SHUT_DOWN)


def _look(listeners: Iterable[int]) -> dict[int, int]:
    poll = select.poll()
    for fd in listeners:
        poll.register(fd, select.POLLIN | select.POLLRDHUP)
    return dict(poll.poll(0))
