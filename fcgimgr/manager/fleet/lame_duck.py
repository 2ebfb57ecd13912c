"""Out of the load balancer's sight first, and only then out of service.

While a manager drains, `probe ready` says no and everything else goes on as before: whoever has not looked yet, and
still sends requests, is served. An operator or a preStop hook asks for it (`fcgimgr drain`) and may take it back. After
SIGTERM with `drain_delay` it is so by itself for that long, and then the shutdown begins; what has been drained before
counts.
"""

from __future__ import annotations

from asyncio import TimerHandle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon


class Departure:
    """Whether the manager drains. since: when that began, by the loop's clock; None: it does not."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._timer: TimerHandle | None = None
        self.since: float | None = None
        self.why = ""

    @property
    def decided(self) -> bool:
        """Whether a shutdown follows of itself."""
        return self._timer is not None

    @property
    def delay(self) -> float:
        """Seconds of `drain_delay` that are still to pass, or would be if the drain began now."""
        daemon = self._daemon
        since = daemon.loop.time() if self.since is None else self.since
        return max(0.0, since + daemon.config.manager.drain_delay - daemon.loop.time())

    def drain(self, why: str) -> None:
        """Do not want new requests any more; a second call changes nothing."""
        if self.since is not None or self._daemon.state == "STOPPING":
            return
        self.since, self.why = self._daemon.loop.time(), why
        self._changed(self._daemon.state, "DRAINING", why)

    def undo(self) -> None:
        """Take it back; nothing to do if it was not said."""
        if self.since is None:
            return
        self.since, self.why = None, ""
        self._changed("DRAINING", self._daemon.state, None)

    def go_on(self, since: float | None, why: str) -> None:
        """Be where the code before this one was, in this process."""
        self.since, self.why = since, why

    def shutdown(self, why: str) -> None:
        """Shut down when `drain_delay` is over: at once if there is none, or nobody was sent here yet."""
        delay = self.delay if self._daemon.state == "RUNNING" else 0.0
        if not delay:
            self._daemon.shutdown(why)
            return
        self._daemon.journal.info(f"{why}: the shutdown begins in {delay:.3g} s (drain_delay); serving until then")
        self._timer = self._daemon.loop.call_later(delay, self._daemon.shutdown, f"{why}, and drain_delay is over")
        if self.since is None:
            self.drain(why)
        else:
            self._daemon.manager_changed()

    def forget(self) -> None:
        """The shutdown has begun."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _changed(self, before: str, after: str, why: str | None) -> None:
        daemon = self._daemon
        daemon.journal.info(f"{after}: {why}" if why else after)
        daemon.history.record("manager", daemon.config.manager.identifier, before, after, why)
        daemon.manager_changed()
