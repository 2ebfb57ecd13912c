"""Whether a connection that the web server would like to keep is kept, so that keeping gains time and costs nobody any.

A kept connection saves some 50 µs a request. But it binds the web server's next request to this process: it waits here
while another process is idle. That costs nothing while requests take microseconds, and much as soon as they do not.

- Nothing is kept while the expected wait is above WAIT: that of somebody who comes at any moment, for the request in
  hand, E[S²] / 2 (E[S] + E[G]), S being the time of a request and G the pause before the next one. (The residual life
  of renewal theory, times how much of the time there is a request.) Few long requests among many short ones make it
  large at once.
- Nothing is kept while requests take longer than MEAN, where 50 µs are nothing, and either connections wait in the
  listeners' queue or the process is busy for more than half of the time.
- A process keeps at most MOST for each of its threads, and MOST_IN_ALL; all other requests come through the socket that
  all processes share. While it does not get the processor, whatever is sent to it waits: that must be few.
- A process in which SHED requests have waited for another one lets one connection go: the web server's next one goes to
  whichever process is free. So connections spread evenly, however they began, also while nobody is busy all the time:
  of 64 connections to four processes 24 were seen on each of two, and one on another, for as long as there was load.

Times are seconds. Means are exponential, over about the last 1 / WEIGHT requests; a process begins as if it had been
idle for long, so that its first requests, which are slow, decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

WAIT: Final = 0.005
MEAN: Final = 0.001
WEIGHT: Final = 1 / 64
SHED: Final = 128

MOST: Final = 24
#: Whatever the number of threads: with those that wait for other reasons it stays below the usual limit of descriptors.
MOST_IN_ALL: Final = 384


class Keeping:
    """`busy`: there was a request since this process last had nothing to do; whoever waits for work and keeps nothing
    unsets it. (With threads it always is.)
    `waited`: requests that had to wait for another, since a connection was let go; whoever takes them adds to it. (With
    threads it is all of them.)
    `ended`: when the last request did, monotonic seconds.
    `kept`: the connections that are kept now; who closes one takes it out.

    Threads may share it: a request that is lost to a mean is no harm.
    """

    __slots__ = ("_mean", "_most", "_pause", "_queued", "_square", "_threads", "busy", "ended", "kept", "waited")

    def __init__(self, queued: Callable[[], bool], threads: int = 1) -> None:
        """`queued`: whether connections wait to be accepted."""
        self._queued = queued
        self._threads = threads
        self._most = min(MOST * threads, MOST_IN_ALL)
        self._mean = 0.0
        self._square = 0.0
        self._pause = 1.0
        self.ended = 0.0
        self.busy = threads > 1
        self.waited = 0
        self.kept: set[object] = set()

    def served(self, begun: float, ended: float) -> None:
        """A request was in hand from one monotonic time to another."""
        self.busy = True
        if self._threads > 1:
            self.waited += 1
        taken = ended - begun
        self._mean += (taken - self._mean) * WEIGHT
        self._square += (taken * taken - self._square) * WEIGHT
        pause = begun - self.ended
        # Longer ones are one idle moment, and would hide what follows; with threads one may be negative.
        self._pause += ((pause if pause < 1.0 else 1.0) - self._pause) * WEIGHT if pause > 0 else 0.0
        self.ended = ended

    def keeps(self, connection: object) -> bool:
        """Whether this connection shall be kept now."""
        known = connection in self.kept
        if not known and len(self.kept) >= self._most:
            return False
        mean, pause = self._mean, self._pause
        if self._square > 2 * WAIT * (mean + pause):
            return False
        if mean > MEAN and (mean > pause or self._queued()):
            return False
        if self.waited >= SHED:
            self.waited = 0
            return False
        if not known:
            self.kept.add(connection)
        return True
