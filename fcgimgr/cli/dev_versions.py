"""The versions of the code that `dev` runs: one serves, one may be coming, older ones finish what they have in hand.

Each is a pool of its own in dev's manager, and dev's front says which of them gets the requests. Generations of one
pool would not do: the next one waits until the one before has left, so that a request which sits in a debugger, or a
page that streams, would hold up the next change.
"""

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from fcgimgr.control.messages import Params, Verdict
    from fcgimgr.demo.front import Front

T = TypeVar("T")


class Versions:
    """`sockets`: the address of each pool by name. ControlError, OSError: the manager does not answer, or refuses."""

    def __init__(self, sockets: Mapping[str, str], control: str, front: "Front") -> None:
        self._sockets = sockets
        self._control = control
        self._front = front
        self._leaving: list[str] = []  # the oldest first
        self.serving: str | None = None

    def look(self) -> None:
        """Whether the manager is there: see the errors above."""
        from fcgimgr.control.messages import Pong

        self._ask("ping", None, Pong)

    def begin(self) -> "Coming":
        """Start the code that is there now. As long as none serves, requests wait for it."""
        name = self._at_rest()
        self._front.trouble = ()
        if self.serving is None:
            self._front.pool = self._sockets[name]
        return Coming(name, self._control)

    def switch(self, coming: "Coming") -> None:
        """It serves from now on, and what served finishes what it has in hand."""
        from fcgimgr.control.messages import NamesParams, Verdict

        before, self.serving = self.serving, coming.name
        self._front.pool, self._front.trouble = self._sockets[coming.name], ()
        if before is not None:
            self._leaving.append(before)
            self._ask("stop", NamesParams(names=(before,), wait=False), Verdict)

    def abandon(self, coming: "Coming") -> None:
        """It is not wanted any more, wherever its import is."""
        self._kill(coming.name, wait=False)
        coming.verdict()

    def fail(self, verdict: "Verdict") -> None:
        """The code does not come up: whoever asks for a page is told, if no other code serves, or not any more."""
        lines = [line for process in verdict.processes for line in process.lines or (process.detail or "",)]
        self._front.trouble = ("The application does not come up: mend it, and save.", "", *lines)

    def _at_rest(self) -> str:
        """A pool of which nothing runs; if there is none, the oldest version that is still at a request gives way."""
        from fcgimgr.control.messages import Status, StatusParams

        status = self._ask("status", StatusParams(detail=False), Status)
        free = [pool.name for pool in status.pools if pool.state in ("STOPPED", "FATAL")]
        self._leaving = [name for name in self._leaving if name not in free]
        if self.serving in free:  # it has died, and what is there now has not come up in its place
            self.serving = None
        if not free:
            free = [name for name in (*self._leaving, *self._sockets) if name != self.serving]
            self._kill(free[0], wait=True)
            self._leaving = [name for name in self._leaving if name != free[0]]
        return free[0]

    def _kill(self, name: str, *, wait: bool) -> None:
        from fcgimgr.control.messages import NamesParams, SignalParams, Verdict

        self._ask("stop", NamesParams(names=(name,), wait=False), Verdict)  # before: else it would be started again
        self._ask("signal", SignalParams(names=(name,), signal="KILL"), Verdict)
        if wait:
            self._ask("stop", NamesParams(names=(name,)), Verdict, patient=True)

    def _ask(self, method: str, params: "Params | None", answer: type[T], *, patient: bool = False) -> T:
        from fcgimgr.control.client import Client

        with Client(self._control) as client:
            return client.call(method, params, answer=answer, patient=patient)


class Coming:
    """A version that is being started; readable when it is known what came of that."""

    def __init__(self, name: str, control: str) -> None:
        self.name = name
        self._control = control
        self._outcome: Any = None
        self._over, self._wait_is_over = os.pipe()
        threading.Thread(target=self._wait, daemon=True).start()

    def fileno(self) -> int:
        return self._over

    def verdict(self) -> "Verdict":
        """Waits for it. ControlError, OSError: there is none, because the manager did not answer."""
        if self._over >= 0:
            os.read(self._over, 1)
            os.close(self._over)
            self._over = -1
        if isinstance(self._outcome, Exception):
            raise self._outcome
        verdict: Verdict = self._outcome
        return verdict

    def _wait(self) -> None:
        from fcgimgr.control.client import Client
        from fcgimgr.control.messages import ControlError, NamesParams, Verdict

        try:
            with Client(self._control) as client:
                self._outcome = client.call("start", NamesParams(names=(self.name,)), answer=Verdict, patient=True)
        except (ControlError, OSError) as error:
            self._outcome = error
        finally:
            os.close(self._wait_is_over)
