"""The loop in front of an engine: accepts when a thread is free, hands connections to threads, drains on a signal.

What it promises, and flup's own loop does not:

- **A connection is accepted only when a thread is free for it.** Else it waits in the listener's queue, where another
  worker may take it and the manager can see it. (flup accepts and closes: the web server answers 502.)
- **Workers take turns.** Each waits in epoll with EPOLLEXCLUSIVE, so that a connection wakes one of them and not all,
  and after each accept goes to the end of the kernel's line by registering again; without that the kernel prefers
  the same one every time. An idle worker makes no system call.
- **A connection that waits costs no thread**: one kept between two requests, one that has not said anything yet. It
  waits in the same epoll, for a limited time; a kept one is seen off then (parting.py).
- **TERM loses nothing**: the queue is served once more, requests in hand are finished, and what has come on connections
  that wait gets its answer. Kept connections are seen off (parting.py): their peers are told to close them, or they are
  ended with the next answer on them; one that is not used again in FIRST_BYTE_GRACE is closed. INT, QUIT and HUP do the
  same; further signals change nothing (systemd sends TERM to every process of a unit, and so does the manager). What
  does not end is the manager's to kill.
- **`retire` is the same, but leaves the queue to others**: a worker that has served enough makes room for a new one.

The main thread only waits, accepts and hands over; it runs no request. (solo.py has the loop of which it is the only
thread, and runs them all.)
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from fcgimgr.worker.forked import end_child
from fcgimgr.worker.patched import accept, epoll, poll
from fcgimgr.worker.saying import say, told

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
#: Seconds in which a new connection must send its first byte: one that never does (a TCP probe) is closed.
FIRST_BYTE_PATIENCE: Final = 5.0
#: The same once we are stopping, and for the rest of a request: an honest peer's bytes are on their way already. Also
#: for the end of a connection that was seen off.
FIRST_BYTE_GRACE: Final = 1.0
#: Seconds that a thread waits for the first byte. As a rule it comes within microseconds of the connection.
FIRST_BYTE_AT_ONCE: Final = 0.002
#: Seconds for which a stopping worker still takes connections that wait, while other workers take them too.
QUEUE_PATIENCE: Final = 2.0
#: Seconds after which a kept connection is closed that nobody uses. nginx closes its own after 60 s, and it must be the
#: one to do so: a request that it sends while we close gets no answer.
KEPT_PATIENCE: Final = 90.0
#: Connections that wait in one process, beyond those that the engine has promised to keep.
MOST_WAITING: Final = 512

_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Connection(Protocol):
    """What an engine makes of an accepted socket.

    Between two calls of `serve`, `until` is the monotonic time at which its waiting ends, and `idle` says that it
    waits for a new request, so that closing it cuts nothing in two. A loop that hears of the peer's end with the next
    request sets `hung_up`; one that has waited for long enough, `seen_off`.
    """

    until: float
    hung_up: bool
    seen_off: bool

    @property
    def idle(self) -> bool: ...

    @property
    def socket(self) -> socket.socket: ...

    def serve(self) -> bool:
        """Serve what has come. True: to be called again when more comes. False: over."""

    def drop(self) -> None:
        """Close it while it waits: nothing has to be read by the peer any more."""

    def close(self) -> None:
        """Close it so that the peer can still read the last answer; may take seconds, raises nothing."""


class AcceptLoop:
    """`connect` makes a Connection of a blocking socket; `allowed` takes the peer's address; `ready` is called once,
    when connections are being accepted; `see_off` tells the peer of an idle connection that it is over, without waiting
    for anything, and answers whether the peer is expected to close it; `promised` says of a connection that its peer
    counts on it: so it is kept however many wait. Must be run in the main thread, where Python delivers signals.

    `stopping`: a stop signal has come, or `retire` was called. Nothing that is answered now has a successor.
    `crowded`: no more connections can wait than those that are promised to.
    `forked`: this is a child that the application has forked; it must not go on as if it were its parent.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        connect: Callable[[socket.socket], Connection],
        *,
        threads: int,
        allowed: Callable[[Any], bool] = lambda peer: True,
        ready: Callable[[], None] = lambda: None,
        see_off: Callable[[Any], bool] = lambda connection: False,
        promised: Callable[[Any], bool] = lambda connection: False,
    ) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._connect = connect
        self._limit = threads
        self._allowed = allowed
        self._ready = ready
        self._see_off = see_off
        self._promised = promised
        self._epoll = epoll()
        self._handed_over: queue.SimpleQueue[tuple[Connection, bool] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # All below is shared with the threads, under this lock; its waiters wait for `_busy` to fall.
        self._changed = threading.Condition()
        self._busy = 0  # connections that a thread has or is about to get; above the limit while kept ones wake up
        self._in_hand: set[Connection] = set()  # those that count as busy
        self._waiting: dict[int, Connection] = {}  # by fd
        self._silent: set[int] = set()  # those of them that have never said anything
        self._look_at = math.inf  # when the first of them may have waited long enough; not after that
        self._armed = False
        self.stopping = False
        self.forked = False
        self._retiring = False
        self._signals = self._signals_in = -1  # both ends of the signals' pipe

    def run(self) -> None:
        """Serve until a stop signal; returns when every request in hand is finished."""
        self._listen_for_signals()
        os.register_at_fork(after_in_child=self._forked)
        self._epoll.register(self._signals, select.EPOLLIN)
        with self._changed:
            self._arm()
        self._ready()
        self._serve()
        self._stop()

    @property
    def crowded(self) -> bool:
        return len(self._waiting) >= MOST_WAITING

    def retire(self) -> None:
        """Accept no more, finish what is in hand, return from `run`. From any thread."""
        self._retiring = self.stopping = True
        self._tell_main(signal.SIGTERM)

    def _serve(self) -> None:
        while not self.stopping:
            events = self._epoll.poll(self._patience())
            for fd, flags in events:
                self._happened(fd, flags)
            # Not before: who is late and has come all the same is served, and none of these descriptors is another's.
            if self._look_at != math.inf and time.monotonic() >= self._look_at:
                self._close_expired()

    def _happened(self, fd: int, flags: int) -> None:
        if fd == self._signals:
            told = os.read(fd, 512)
            self.stopping = self.stopping or any(number in STOP_SIGNALS for number in told)
        elif fd in self._listeners:
            self._accept(self._listeners[fd])
        else:
            self._wake(fd, flags)

    # --- signals

    def _listen_for_signals(self) -> None:
        """A descriptor from which the numbers of arriving signals can be read.

        The C-level handler writes them. A handler in Python alone would miss a signal that comes just before
        epoll_wait, and the worker would sleep on it. But it is there too: the application may take the C-level one for
        itself (asyncio leaves none behind), and the main thread may be in the middle of a request.
        """
        self._signals, self._signals_in = os.pipe()
        os.set_blocking(self._signals, False)
        os.set_blocking(self._signals_in, False)
        self._hear_signals()
        for number in STOP_SIGNALS:
            signal.signal(number, self._told_to_stop)

    def _hear_signals(self) -> None:
        signal.set_wakeup_fd(self._signals_in, warn_on_full_buffer=False)

    def _told_to_stop(self, number: int, _: object) -> None:
        self.stopping = True
        self._tell_main(number)

    def _tell_main(self, number: int) -> None:
        """Wake the main thread up; 0 is no signal's number."""
        with contextlib.suppress(BlockingIOError):  # full: it is about to wake up anyway
            os.write(self._signals_in, bytes([number]))

    def _forked(self) -> None:
        """In a child that the application forked: a signal to it must not stop us through the shared pipe, nor may it
        change what its parent waits for, or hold our listeners and connections."""
        if self.forked:
            return  # a child of the child
        self.forked = self.stopping = True
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for listener in self._listeners.values():
            listener.close()
        for connection in [*self._waiting.values(), *self._in_hand]:
            connection.socket.close()
        self._epoll.close()
        os.close(self._signals)
        os.close(self._signals_in)

    # --- connections in

    def _arm(self) -> None:
        """Wait for connections, at the end of the line of workers. With the lock held."""
        if not self._armed and not self.stopping and self._busy < self._limit:
            for fd in self._listeners:
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self._armed = True

    def _disarm(self) -> None:
        if self._armed:
            for fd in self._listeners:
                self._epoll.unregister(fd)
            self._armed = False

    def _accept(self, listener: socket.socket) -> bool:
        """Take one connection, if one waits and a thread is free; whether there was one."""
        if self._busy >= self._limit or self._retiring:  # since epoll answered
            return False
        try:
            connection, peer = accept(listener)
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                self._make_room(error)
                return False
            # Another worker was faster, or the client has gone: accept(2) on Linux also reports the pending network
            # errors of the new connection here.
            if error.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EFAULT, errno.EOPNOTSUPP):
                raise
            return error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK)
        if self._allowed(peer):
            self._admit(self._connect(connection))
        else:
            connection.close()
        return True

    def _admit(self, connection: Connection) -> None:
        with self._changed:
            self._hand_over(connection, fresh=True)
            self._disarm()
            self._arm()

    def _make_room(self, error: OSError) -> None:
        """No descriptor or memory for one more connection. Never try again at once: that would be a busy loop."""
        with self._changed:
            if self._waiting:
                self._take_waiting(next(iter(self._waiting))).drop()
            elif self._busy:
                self._disarm()  # the next request to end arms again
            else:
                # Nothing is in hand that could end: what is leaked stays leaked. A new process serves better.
                raise error

    def _hand_over(self, connection: Connection, *, fresh: bool) -> None:
        """With the lock held."""
        self._busy += 1
        self._in_hand.add(connection)
        self._handed_over.put((connection, fresh))
        if len(self._threads) < min(self._busy, self._limit):
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # a limit of the system: RLIMIT_NPROC, pids.max, memory
                if not self._threads:
                    raise
                self._limit = len(self._threads)
                say(f"going on with {self._limit} threads: {error}")
            else:
                self._threads.append(thread)

    def _wake(self, fd: int, flags: int) -> None:
        """A waiting connection has something to say, or has gone, which needs no thread. `flags`: epoll's."""
        with self._changed:
            if fd not in self._waiting:
                return
            connection = self._take_waiting(fd)
            if flags != select.EPOLLIN and _has_ended(connection.socket):
                connection.hung_up = True
                connection.drop()
                return
            self._hand_over(connection, fresh=False)
            if self._busy >= self._limit:
                self._disarm()

    # --- connections that wait

    def _wait(self, connection: Connection, *, silent: bool = False) -> bool:
        """Wait for what it says next, without a thread; False when it is to be closed instead."""
        with self._changed:
            if self.crowded and not self._promised(connection):
                return False
            if self.stopping and not self._waits_on(connection, silent):
                return False
            fd = connection.socket.fileno()
            self._waiting[fd] = connection
            self._in_hand.discard(connection)
            if silent:
                self._silent.add(fd)
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
            if connection.until < self._look_at:
                self._look_at = connection.until
                self._tell_main(0)
            return True

    def _waits_on(self, connection: Connection, silent: bool) -> bool:
        """Whether a connection waits although we are stopping, and then not for long."""
        if not (silent or not connection.idle or _speaks(connection.socket, 0) or self._see_off(connection)):
            return False
        connection.until = min(connection.until, time.monotonic() + FIRST_BYTE_GRACE)
        return True

    def _take_waiting(self, fd: int) -> Connection:
        self._epoll.unregister(fd)
        self._silent.discard(fd)
        return self._waiting.pop(fd)

    def _patience(self) -> float | None:
        """Seconds for which the main thread may sleep; None: for ever."""
        return None if self._look_at == math.inf else max(0.0, self._look_at - time.monotonic())

    def _close_expired(self) -> None:
        with self._changed:
            now = time.monotonic()
            for fd, connection in list(self._waiting.items()):
                # What has come since the last look is no less in time for that. (A half request is late all the same.)
                if connection.until > now or (connection.idle and _speaks(connection.socket, 0)):
                    continue
                if connection.idle and not connection.seen_off and self._see_off(connection):
                    connection.seen_off = True  # and what crosses with that is served
                    connection.until = now + FIRST_BYTE_GRACE
                else:
                    self._take_waiting(fd).drop()
            self._look_at = min((connection.until for connection in self._waiting.values()), default=math.inf)

    # --- in the threads

    def _work(self) -> None:
        while (handed_over := self._handed_over.get()) is not None:
            connection, fresh = handed_over
            try:
                self._attend(connection, fresh)
            finally:  # whatever happens, what is not in hand any more must not count as if it were
                with self._changed:
                    self._busy -= 1
                    if connection.socket.fileno() < 0:  # else it waits, or is in hand again by now
                        self._in_hand.discard(connection)
                    self._arm()
                    self._changed.notify_all()

    def _attend(self, connection: Connection, fresh: bool) -> None:
        try:
            if fresh and not _speaks(connection.socket, FIRST_BYTE_AT_ONCE):
                connection.until = time.monotonic() + FIRST_BYTE_PATIENCE
                if not self._wait(connection, silent=True):
                    connection.drop()
            elif not (self._serves(connection) and self._wait(connection)):
                connection.close()
        except BaseException as error:  # noqa: BLE001  # a fault of one connection is no reason to lose the thread
            say(f"a connection failed:\n{told(error)}")
            connection.close()

    def _serves(self, connection: Connection) -> bool:
        try:
            return connection.serve()
        finally:
            if self.forked:  # the locks may be held by threads that are not in this process
                end_child(sys.exc_info()[1])

    # --- the end

    def _stop(self) -> None:
        begun = time.monotonic()
        with self._changed:
            self._disarm()
            readable = dict(self._epoll.poll(0))
            for fd, connection in list(self._waiting.items()):
                if fd not in readable and fd not in self._silent and connection.idle and not self._see_off(connection):
                    self._take_waiting(fd).drop()  # its answer was read long ago: nothing to wait for
        for fd, flags in readable.items():
            self._wake(fd, flags)  # a request has come meanwhile: it gets its answer
        if not self._retiring:
            self._serve_the_queue(begun + QUEUE_PATIENCE)
        for listener in self._listeners.values():
            listener.close()
        self._serve_the_waiting()
        for _ in self._threads:
            self._handed_over.put(None)
        for thread in self._threads:
            thread.join()

    def _serve_the_queue(self, until: float) -> None:
        """Connections that wait may have no other worker to go to. `until`: monotonic seconds."""
        for listener in self._listeners.values():
            while True:
                with self._changed:
                    free = self._changed.wait_for(
                        lambda: self._busy < self._limit, timeout=max(0.0, until - time.monotonic())
                    )
                if not free or time.monotonic() > until or not self._accept(listener):
                    break

    def _serve_the_waiting(self) -> None:
        """Until all is over: those in the middle of something, and those that were seen off."""
        with self._changed:
            # From now on: the queue may have taken longer than that, and what came meanwhile was not looked at.
            until = time.monotonic() + FIRST_BYTE_GRACE
            for connection in self._waiting.values():
                connection.until = min(connection.until, until)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._busy == 0)
                if not self._waiting:
                    return
                now = time.monotonic()
                self._look_at = min(connection.until for connection in self._waiting.values())
            events = dict(self._epoll.poll(max(0.0, self._look_at - now)))
            for fd, flags in events.items():
                if fd == self._signals:
                    os.read(fd, 512)
                else:
                    self._wake(fd, flags)
            with self._changed:
                # Who is late and has something to say has it taken, and as long again for the rest.
                for fd, connection in list(self._waiting.items()):
                    if connection.until <= (now - FIRST_BYTE_GRACE if fd in events else now) and not (
                        connection.idle and _speaks(connection.socket, 0)
                    ):
                        self._take_waiting(fd).drop()


def _speaks(connection: socket.socket, within: float) -> bool:
    """Whether it sends anything (an end of file counts) within so many seconds."""
    polled = poll()
    polled.register(connection, select.POLLIN)
    return bool(polled.poll(within * 1000))


def _has_ended(connection: socket.socket) -> bool:
    """Whether nothing that can be read comes before its end."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
