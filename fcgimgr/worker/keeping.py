"""Whether a connection that the web server would like to keep is kept, so that keeping gains time and costs nobody any.

A kept connection saves some 50 µs a request. But it binds the web server's next request to this process: it waits here
while another process is idle. That costs nothing while requests take microseconds, and much as soon as they do not.

- Nothing is kept while the mean of the requests is above MEAN, where 50 µs are nothing.
- Nothing is kept while RESIDUAL is exceeded: the time that somebody who comes at any moment of a busy process has to
  wait for the request in hand, E[S²] / 2 E[S]: a few long requests among many short ones make it large at once.
- A process that has not been idle for SHED requests lets one connection go: the web server's next one goes to whichever
  process is free. So connections spread evenly, however they began.

Times are seconds. Means are exponential, over about the last 1 / WEIGHT requests.
"""

from __future__ import annotations

from typing import Final

MEAN: Final = 0.001
RESIDUAL: Final = 0.010
WEIGHT: Final = 1 / 256
SHED: Final = 256


class Keeping:
    """`busy`: requests since this process last had nothing to do; whoever waits for work sets it to 0."""

    __slots__ = ("_mean", "_square", "busy")

    def __init__(self) -> None:
        self._mean = 0.0
        self._square = 0.0
        self.busy = 0

    def served(self, elapsed: float) -> None:
        """A request took this long."""
        self.busy += 1
        self._mean += (elapsed - self._mean) * WEIGHT
        self._square += (elapsed * elapsed - self._square) * WEIGHT

    @property
    def worth(self) -> bool:
        """Whether a connection shall be kept now."""
        mean = self._mean
        if mean > MEAN or self._square > 2 * RESIDUAL * mean:
            return False
        if self.busy >= SHED:
            self.busy = 0
            return False
        return True
