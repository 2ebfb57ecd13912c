"""What a worker tells of its requests: an engine calls `begin` and `end` for each (observing.py), and this hands it on
to the scoreboard, the access log and the slow log, and knows when the worker has served enough.

Each thread that serves has a `Hand` of its own, with all that is known of its request, so that nothing is locked. With
the scoreboard alone it costs a request a few look-ups and one struct.pack_into, twice.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from fcgimgr.worker.accesslog import AccessLog, Served
from fcgimgr.worker.appending import AppendedFile
from fcgimgr.worker.asking import request_uri
from fcgimgr.worker.board import Board, Lane, inherited_board
from fcgimgr.worker.notify import send
from fcgimgr.worker.patched import get_ident
from fcgimgr.worker.retiring import Retirement
from fcgimgr.worker.slow import SlowLog


class Hand:
    """What a thread has in hand: the request `number`, if it is `busy`. `since`: monotonic seconds; `last`: seconds
    that the one before took, below 0 if there was none."""

    __slots__ = ("busy", "environ", "lane", "last", "method", "number", "since", "thread", "told", "uri")

    def __init__(self, lane: Lane | None) -> None:
        self.lane = lane
        self.thread = get_ident()
        self.environ: Mapping[str, Any] = {}
        self.busy = False
        self.number = 0
        self.told = -1  # slow.py
        self.method = ""
        self.uri = ""
        self.since = 0.0
        self.last = -1.0


class Watch:
    """Shows on `board`, if there is one, what the threads are doing; `retirement`: when that is to end."""

    def __init__(
        self, board: Board | None = None, retirement: Retirement | None = None, access_log: AccessLog | None = None
    ) -> None:
        self._board = board
        self._retirement = retirement
        self._access_log = access_log
        self._own = threading.local()
        self.hands: list[Hand] = []
        self.slow_log: SlowLog | None = None

    def begin(self, environ: Mapping[str, Any], now: float) -> None:
        """A request goes to the application."""
        try:
            hand: Hand = self._own.hand
        except AttributeError:
            hand = self._own.hand = self._new_hand()
        hand.since = now
        hand.environ = environ
        hand.method = method = environ.get("REQUEST_METHOD", "")
        hand.uri = uri = environ.get("REQUEST_URI") or request_uri(environ)
        hand.busy = True
        if hand.lane is not None:
            hand.lane.work(hand.number, now, hand.last, method, uri)
        if self.slow_log is not None:
            self.slow_log.began()

    def end(self, status: int, sent: int, now: float) -> bool:
        """It is over. False: this process shall take no more."""
        hand: Hand = self._own.hand
        hand.busy = False
        hand.number += 1
        hand.last = took = now - hand.since
        if hand.lane is not None:
            hand.lane.rest(hand.number, now, took)
        goes_on = self._retirement is None or self._retirement.one_more(now)
        if self._access_log is not None:
            served = Served(hand.environ, hand.method, hand.uri, status, sent, time.time(), took)
            self._access_log.write(served)
        hand.environ = {}
        return goes_on

    def _new_hand(self) -> Hand:
        hand = Hand(self._board.lane() if self._board is not None else None)
        self.hands.append(hand)
        return hand


def watch_over(options: Any, environ: MutableMapping[str, str]) -> Watch:
    """What the command line's options and the manager's variables ask for; these are taken out of `environ`."""
    board = inherited_board(environ)
    reopen = (lambda: 0) if board is None else (lambda: board.reopen)
    retirement = access_log = None
    if options.max_requests is not None:
        most, jitter = options.max_requests
        retirement = Retirement(most, jitter, environ.get("NOTIFY_SOCKET"))
    if (path := environ.pop("FCGIMGR_ACCESS_LOG", None)) is not None:
        tell = teller(environ, "X_ACCESS_LOG")
        access_log = AccessLog(options.access_format, AppendedFile(path, standard=1, reopen=reopen, tell=tell))
    watch = Watch(board, retirement, access_log)
    if (path := environ.pop("FCGIMGR_SLOWLOG", None)) is not None and options.slow_after is not None:
        file = AppendedFile(path, standard=2, reopen=reopen, tell=teller(environ, "X_SLOWLOG"))
        watch.slow_log = SlowLog(options.slow_after, file, lambda: watch.hands)
    return watch


def teller(environ: Mapping[str, str], name: str) -> Callable[[str], None]:
    """What lets the manager know what is wrong with a log, as far as it can be told without a wait."""
    address = environ.get("NOTIFY_SOCKET")

    def tell(problem: str) -> None:
        if address:
            with contextlib.suppress(OSError):
                send(address, f"{name}={problem}", socket.MSG_DONTWAIT)

    return tell
