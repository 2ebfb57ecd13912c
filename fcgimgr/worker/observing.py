"""The seam between an engine and whoever wants to know of its requests: a scoreboard, limits, an access log.

Without an observer an engine pays for this with one comparison a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Observer(Protocol):
    """Called by the thread that serves the request, each `begin` followed by its `end` before the next `begin`.
    `now`: monotonic seconds, which the engine has read for itself as well."""

    def begin(self, environ: Mapping[str, Any], now: float) -> None:
        """A request is about to enter the application. The engine goes on filling `environ`, and the application may
        change it."""

    def end(self, status: int, sent: int, now: float) -> bool:
        """Its last byte is sent, or its client has gone, or the application has failed.

        `status`: 200, or 0 when there was no answer; `sent`: bytes of the body that were handed to the connection.
        False: this process has served enough. It accepts no more, finishes what its threads have in hand, and exits 0.
        """
