"""What a worker tells of its requests: an engine calls `begin` and `end` for each, and this keeps the scoreboard.

Each thread that serves has a `Hand` of its own, with all that is known of its request, so that nothing is locked.
An Observer (observing.py); what it costs a request is a clock read, a few look-ups and one struct.pack_into, twice.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import monotonic
from typing import Any

from fcgimgr.fastcgi.scoreboard import IDLE, WORKING
from fcgimgr.worker.board import Board, Lane
from fcgimgr.worker.retiring import Retirement


class Hand:
    """What a thread has in hand. `environ` is None between two requests; `since`: monotonic seconds."""

    __slots__ = ("environ", "lane", "last", "requests", "since", "thread")

    def __init__(self, lane: Lane | None) -> None:
        self.lane = lane
        self.thread = threading.get_ident()
        self.environ: Mapping[str, Any] | None = None
        self.requests = 0
        self.since = 0.0
        self.last = -1.0


class Watch:
    """Shows on `board`, if there is one, what the threads are doing; `retirement`: when that is to end."""

    def __init__(self, board: Board | None, retirement: Retirement | None = None) -> None:
        self._board = board
        self._retirement = retirement
        self._own = threading.local()

    def begin(self, environ: Mapping[str, Any]) -> None:
        """A request goes to the application."""
        try:
            hand: Hand = self._own.hand
        except AttributeError:
            hand = self._own.hand = self._new_hand()
        hand.since = since = monotonic()
        hand.environ = environ
        if hand.lane is not None:
            method = str(environ.get("REQUEST_METHOD", "")).encode("latin-1", "replace")
            uri = request_uri(environ).encode("latin-1", "replace")
            hand.lane.write(WORKING, hand.requests, since, hand.last, hand.thread, method, uri)

    def end(self, status: int, sent: int) -> bool:
        """It is over. False: this process shall take no more."""
        hand: Hand = self._own.hand
        now = monotonic()
        hand.requests += 1
        hand.last = now - hand.since
        if hand.lane is not None:
            hand.lane.write(IDLE, hand.requests, now, hand.last, hand.thread)
        hand.environ = None
        return self._retirement is None or self._retirement.one_more(now)

    def _new_hand(self) -> Hand:
        return Hand(self._board.lane() if self._board is not None else None)


def request_uri(environ: Mapping[str, Any]) -> str:
    """As the client has sent it, if the web server says so (REQUEST_URI), else put together."""
    uri = environ.get("REQUEST_URI")
    if uri:
        return str(uri)
    query = environ.get("QUERY_STRING")
    path = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    return f"{path}?{query}" if query else path
