"""What has happened lately, and who wants to hear of it: the source of `events` and of every waiting command."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, TypeAlias

from fcgimgr.control.messages import Event, Exit

REMEMBERED: Final = 1000

Listener: TypeAlias = Callable[[Event], None]


class History:
    """The last events, newest last, and those who follow."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=REMEMBERED)
        self._followers: dict[object, Listener] = {}

    def record(
        self,
        kind: str,
        name: str,
        before: str | None = None,
        after: str | None = None,
        detail: str | None = None,
        *,
        cause: str | None = None,
        by: str | None = None,
        exit: Exit | None = None,
    ) -> None:
        """Remember an event that happens now and tell every follower. All is as of control.messages.Event."""
        event = Event(
            time=time.time(),
            kind=kind,
            name=name,
            from_state=before,
            to_state=after,
            detail=detail,
            cause=cause,
            by=by,
            exit=exit,
        )
        self._events.append(event)
        for follower in tuple(self._followers.values()):
            follower(event)

    def last(self, count: int, of: Callable[[Event], bool] = lambda event: True) -> tuple[Event, ...]:
        """The newest `count` of the events for which `of` is true, oldest first."""
        return tuple(islice(filter(of, reversed(self._events)), count))[::-1]

    def follow(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each event from now on; the answer ends that."""
        token = object()
        self._followers[token] = listener
        return lambda: self._followers.pop(token, None) and None
