"""The loop in front of an engine: accepts when a thread is free, hands connections to threads, drains on a signal.

What it promises, and flup's own loop does not:

- **A connection is accepted only when a thread is free for it.** Else it waits in the listener's queue, where another
  worker may take it and the manager can see it. (flup accepts and closes: the web server answers 502.)
- **Workers take turns.** Each waits in epoll with EPOLLEXCLUSIVE, so that a connection wakes one of them and not all,
  and after each accept goes to the end of the kernel's line by registering again; without that the kernel prefers
  the same one every time. An idle worker makes no system call.
- **A kept connection costs no thread** while it is idle: it waits in the same epoll.
- **TERM loses nothing**: the queue is served once more, requests in hand are finished, kept connections are closed
  when they are idle. INT, QUIT and HUP do the same; further signals change nothing (systemd sends TERM to every
  process of a unit, and so does the manager). What does not end is the manager's to kill.
- **`retire` is the same, but leaves the queue to others**: a worker that has served enough makes room for a new one.

The main thread only waits, accepts and hands over; it runs no request.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
#: Seconds in which a new connection must send its first byte: one that never does (a TCP probe) must not hold a thread.
FIRST_BYTE_PATIENCE: Final = 5.0
#: The same once we are stopping: the bytes of an honest peer are on their way already.
FIRST_BYTE_GRACE: Final = 1.0
#: Seconds for which a stopping worker still takes connections that wait, while other workers take them too.
QUEUE_PATIENCE: Final = 2.0

_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Connection(Protocol):
    """What an engine makes of an accepted socket."""

    @property
    def socket(self) -> socket.socket: ...

    def serve(self) -> bool:
        """Serve what has come. True: idle between two requests, to be called again when more comes. False: over."""

    def close(self) -> None:
        """Close it so that the peer can still read the last answer; may take seconds, raises nothing."""


class AcceptLoop:
    """`connect` makes a Connection of a blocking socket; `allowed` takes the peer's address; `ready` is called once,
    when connections are being accepted. Must be run in the main thread, where Python delivers signals."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        connect: Callable[[socket.socket], Connection],
        *,
        threads: int,
        allowed: Callable[[Any], bool] = lambda peer: True,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._connect = connect
        self._limit = threads
        self._allowed = allowed
        self._ready = ready
        self._epoll = select.epoll()
        self._handed_over: queue.SimpleQueue[tuple[Connection, bool] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # All below is shared with the threads, under this lock; its waiters wait for `_busy` to fall.
        self._changed = threading.Condition()
        self._busy = 0  # connections that a thread has or is about to get; above the limit while kept ones wake up
        self._kept: dict[int, Connection] = {}  # by fd, the longest idle first
        self._armed = False
        self._stopping = False
        self._retiring = False
        self._signals = -1  # the end of the signals' pipe that is written to
        # Readable (hung up) for every thread once we are stopping.
        self._stop_reader, self._stop_writer = os.pipe()

    def run(self) -> None:
        """Serve until a stop signal; returns when every request in hand is finished."""
        signals = self._listen_for_signals()
        os.register_at_fork(after_in_child=self._forked)
        self._epoll.register(signals, select.EPOLLIN)
        with self._changed:
            self._arm()
        self._ready()
        while not self._stopping:
            for fd, _ in self._epoll.poll():
                if fd == signals:
                    told = os.read(signals, 512)
                    self._stopping = self._retiring or any(number in STOP_SIGNALS for number in told)
                elif fd in self._listeners:
                    self._accept(self._listeners[fd])
                else:
                    self._wake(fd)
        self._stop()

    def retire(self) -> None:
        """Accept no more, finish what is in hand, return from `run`. From any thread."""
        self._retiring = True
        with contextlib.suppress(BlockingIOError):  # full: the loop is about to wake up anyway
            os.write(self._signals, bytes([signal.SIGTERM]))

    # --- signals

    def _listen_for_signals(self) -> int:
        """A descriptor from which the numbers of arriving signals can be read.

        The C-level handler writes them. A handler in Python alone would miss a signal that comes just before
        epoll_wait, and the worker would sleep on it.
        """
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._signals = writer
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        return reader

    def _forked(self) -> None:
        """In a child that the application forked: a signal to it must not stop us through the shared pipe, and it
        must not hold our listeners."""
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for listener in self._listeners.values():
            listener.close()

    # --- connections in

    def _arm(self) -> None:
        """Wait for connections, at the end of the line of workers. With the lock held."""
        if not self._armed and not self._stopping and self._busy < self._limit:
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
            connection, peer = listener.accept()
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
            with self._changed:
                self._hand_over(self._connect(connection), fresh=True)
                self._disarm()
                self._arm()
        else:
            connection.close()
        return True

    def _make_room(self, error: OSError) -> None:
        """No descriptor or memory for one more connection. Never try again at once: that would be a busy loop."""
        with self._changed:
            if self._kept:
                self._take_kept(next(iter(self._kept))).socket.close()
            elif self._busy:
                self._disarm()  # the next request to end arms again
            else:
                # Nothing is in hand that could end: what is leaked stays leaked. A new process serves better.
                raise error

    def _hand_over(self, connection: Connection, *, fresh: bool) -> None:
        """With the lock held."""
        self._busy += 1
        self._handed_over.put((connection, fresh))
        if len(self._threads) < min(self._busy, self._limit):
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # a limit of the system: RLIMIT_NPROC, pids.max, memory
                if not self._threads:
                    raise
                self._limit = len(self._threads)
                print(f"fcgimgr worker: going on with {self._limit} threads: {error}", file=sys.stderr, flush=True)
            else:
                self._threads.append(thread)

    def _wake(self, fd: int) -> None:
        """A kept connection has something to say, or has gone."""
        with self._changed:
            if fd in self._kept:
                self._hand_over(self._take_kept(fd), fresh=False)
                if self._busy >= self._limit:
                    self._disarm()

    def _take_kept(self, fd: int) -> Connection:
        self._epoll.unregister(fd)
        return self._kept.pop(fd)

    # --- in the threads

    def _work(self) -> None:
        while (handed_over := self._handed_over.get()) is not None:
            connection, fresh = handed_over
            try:
                if fresh and not self._speaks(connection.socket):
                    connection.socket.close()
                elif not (connection.serve() and self._keep(connection)):
                    connection.close()
            except Exception:  # noqa: BLE001  # a fault of one connection is no reason to lose the thread
                print(f"fcgimgr worker: a connection failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
                connection.close()
            with self._changed:
                self._busy -= 1
                self._arm()
                self._changed.notify_all()

    def _keep(self, connection: Connection) -> bool:
        """Wait for its next request without a thread; False when there shall be none."""
        with self._changed:
            if not self._stopping:
                self._kept[connection.socket.fileno()] = connection
                self._epoll.register(connection.socket, select.EPOLLIN)
            return not self._stopping

    def _speaks(self, connection: socket.socket) -> bool:
        """Whether a new connection sends anything (an end of file counts), in time."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.register(self._stop_reader, 0)  # poll reports a hang-up unasked
        ready = [fd for fd, _ in poll.poll(FIRST_BYTE_PATIENCE * 1000)]
        if connection.fileno() not in ready and ready:
            poll.unregister(self._stop_reader)
            ready = [fd for fd, _ in poll.poll(FIRST_BYTE_GRACE * 1000)]
        return connection.fileno() in ready

    # --- the end

    def _stop(self) -> None:
        os.close(self._stop_writer)
        with self._changed:
            self._disarm()
            readable = {fd for fd, _ in self._epoll.poll(0)}
            for fd in list(self._kept):
                connection = self._take_kept(fd)
                if fd in readable:  # a request has come meanwhile: it gets its answer
                    self._hand_over(connection, fresh=False)
                else:
                    connection.socket.close()  # its answer was read long ago: nothing to wait for
        if not self._retiring:
            self._serve_the_queue(time.monotonic() + QUEUE_PATIENCE)
        for listener in self._listeners.values():
            listener.close()
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0)
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
