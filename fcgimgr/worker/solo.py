"""The loop of a process that serves one request at a time, in its main thread: nothing is handed over, nothing locked.

What AcceptLoop promises holds here too. A connection that is kept stays registered while it is served, and one that
comes while requests are waiting is taken without asking epoll first: a request costs as few system calls as can be.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from fcgimgr.worker.accepting import AcceptLoop, Connection
from fcgimgr.worker.keeping import Keeping
from fcgimgr.worker.patched import Together, is_patched
from fcgimgr.worker.saying import say, told

#: Events that are fetched at once; what is left comes with the next call, and nobody waits long.
_EVENTS = 64
#: Seconds after which it looks after its signals, once, when nothing comes.
FIRST_SLEEP: Final = 1.0


class SoloLoop(AcceptLoop):
    """`keeping` is told when the process is idle. `serve` of a connection must not wait for its first byte."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        connect: Callable[[socket.socket], Connection],
        *,
        keeping: Keeping,
        allowed: Callable[[Any], bool],
        ready: Callable[[], None],
        see_off: Callable[[Any], bool],
        promised: Callable[[Any], bool],
    ) -> None:
        super().__init__(
            listeners, connect, threads=1, allowed=allowed, ready=ready, see_off=see_off, promised=promised
        )
        self._keeping = keeping

    def _serve(self) -> None:
        poll = (Together(self._epoll) if is_patched() else self._epoll).poll
        waiting = self._waiting
        attend = self._attend
        keeping = self._keeping
        now = time.monotonic()
        while not self.stopping:
            ended = keeping.ended
            # Where nothing is kept, whether there is a moment's rest is asked: what comes after that was in no queue.
            if waiting or not (events := poll(0, _EVENTS)):
                if not waiting:
                    keeping.busy = False
                left = self._look_at - now
                events = poll(FIRST_SLEEP if left > FIRST_SLEEP else max(0.0, left), _EVENTS)
                if not events:
                    # Nothing to do for a while, or something to close. The application has run in this thread: it may
                    # have taken the signals' descriptor, and a signal that came just before poll() was not heard.
                    self._hear_signals()
                    self._close_expired()
                    events = poll(self._patience(), _EVENTS)
            if len(events) > 1:
                keeping.waited += len(events) - 1
            for fd, flags in events:
                connection = waiting.get(fd)
                if connection is not None:
                    if flags != select.EPOLLIN:
                        connection.hung_up = True
                    attend(connection, False)
                else:
                    self._happened(fd, flags)
            # There may always be something to do; who is late is closed all the same. A request has read the clock.
            now = keeping.ended if keeping.ended != ended else time.monotonic()
            if self._look_at <= now:
                self._close_expired()

    def _accept(self, listener: socket.socket) -> bool:
        took = super()._accept(listener)
        # Under load the next one is there already. Only where no kept connection has to wait meanwhile, and no signal:
        # a worker that is to end leaves the queue to others, or looks at the clock between two requests of it.
        for _ in range(_EVENTS):
            if self._waiting or self.stopping or not super()._accept(listener):
                break
        self._disarm()
        self._arm()
        return took

    def _admit(self, connection: Connection) -> None:
        self._in_hand = {connection}  # until the next one: by then it is closed, or waits
        self._attend(connection, True)

    def _wake(self, fd: int, flags: int) -> None:
        connection = self._waiting.get(fd)
        if connection is not None:
            self._attend(connection, False)

    def _attend(self, connection: Connection, fresh: bool) -> None:
        try:
            if connection.serve() and (
                # Of one that waits already, and not for less long than others, nothing is to be noted.
                (not fresh and connection.until >= self._look_at and not self.stopping) or self._wait(connection)
            ):
                return
        except Exception as error:  # noqa: BLE001  # a fault of one connection is no reason to lose the process
            say(f"a connection failed:\n{told(error)}")
        fd = connection.socket.fileno()
        if self._waiting.pop(fd, None) is not None:
            # Closing alone takes it out of epoll only while no forked child holds it too.
            self._epoll.unregister(fd)
        connection.close()

    def _wait(self, connection: Connection, *, silent: bool = False) -> bool:
        if self.stopping and not self._waits_on(connection, silent):
            return False
        fd = connection.socket.fileno()
        if fd not in self._waiting:
            if self.crowded and not self._promised(connection):
                return False
            self._waiting[fd] = connection
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        if connection.until < self._look_at:
            self._look_at = connection.until
        return True
