"""fcgimgr's own FastCGI server for WSGI: one request a process, in the main thread, or `threads` of them.

A connection is a small state machine between the loop, which says when bytes have come, and an Exchange, which runs the
application. While a request is incomplete the connection waits in epoll, whoever is slow: a peer that sends nonsense,
half a record, a byte a second or nothing costs one timeout and no worker. The application is called when the
parameters are complete and, where a short body is announced, that too; a long one is read as the application reads.

What happens to the answer is answering.py's.
"""

from __future__ import annotations

import gc
import io
import select
import socket
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import Any, Final

from fcgimgr.fastcgi.arriving import Arrival, read_whole
from fcgimgr.fastcgi.common import Common
from fcgimgr.fastcgi.records import (
    KEEP_CONNECTION,
    ProtocolError,
    RecordType,
    begin_request,
    encode_pairs,
    encode_record,
    end_request,
)
from fcgimgr.worker.accepting import FIRST_BYTE_AT_ONCE, FIRST_BYTE_PATIENCE, KEPT_PATIENCE, AcceptLoop
from fcgimgr.worker.answering import NOW, READ, Answering, Engine, send_without_delay
from fcgimgr.worker.body import Body, buffered
from fcgimgr.worker.keeping import Keeping
from fcgimgr.worker.observing import Observer
from fcgimgr.worker.parting import Parting
from fcgimgr.worker.patience import HEAD_PATIENCE, LINGER, AnsweredError, comes
from fcgimgr.worker.saying import say
from fcgimgr.worker.solo import SoloLoop

#: A body that is announced with at most so many bytes is there when the application is called.
SHORT_BODY: Final = 65536
#: Bytes of a body that nobody has read, which are passed over before the end of the answer so that the connection can
#: go on.
UNREAD: Final = 262144
#: Bytes of it that may come after that. The end of a body often does: httpd writes it for itself. And a web server may
#: have sent all of it, into the buffers of both sockets (tcp_wmem, tcp_rmem), and its next request behind it. One that
#: has not sent all of it when it reads the answer stops there.
LATE: Final = 1 << 25
_REHEARSED: Final = (
    begin_request(1, keep_connection=True)
    + encode_record(RecordType.PARAMS, 1, encode_pairs([(b"REQUEST_METHOD", b"GET"), (b"REQUEST_URI", b"/")]))
    + encode_record(RecordType.PARAMS, 1)
    + encode_record(RecordType.STDIN, 1)
)


def serve(
    application: Callable[..., Any],
    listeners: Sequence[socket.socket],
    threads: int,
    allowed: Callable[[Any], bool],
    ready: Callable[[], None],
    observer: Observer | None = None,
) -> None:
    """Serve `application` until a stop signal, at most `threads` requests at once."""
    keeping = Keeping(lambda: queued(listeners), threads)
    engine = _Engine(application, threads, observer, keeping)
    send_without_delay(listeners)

    def connect(accepted: socket.socket) -> _Connection:
        return _Connection(accepted, engine)

    loop: AcceptLoop
    common: dict[str, Any] = {
        "allowed": allowed,
        "ready": ready,
        "see_off": _Connection.see_off,
        "promised": _Connection.is_promised,
    }
    if threads == 1:
        loop = SoloLoop(listeners, connect, keeping=keeping, **common)
    else:
        loop = AcceptLoop(listeners, connect, threads=threads, **common)
    engine.loop = loop
    # What is there now stays: the collector need not look at all of the application again and again.
    gc.collect()
    gc.freeze()
    loop.run()


def queued(listeners: Sequence[socket.socket]) -> bool:
    """Whether connections wait to be accepted. Asked by threads, while the main one may be closing the listeners."""
    try:
        return any(comes(listener, select.POLLIN, 0) for listener in listeners)
    except ValueError:
        return False


def rehearse() -> None:
    """Serve a request that nobody has made, by an application that is none.

    What a process does for the first time is slow, and in a fork each page of memory that it writes to for the first
    time is copied, which takes microseconds: hundreds of them for the engine alone.
    """
    web_server, ours = socket.socketpair()
    with web_server:
        engine = _Engine(_say_hello, 1, None, Keeping(lambda: False))
        engine.loop = AcceptLoop([], _connect_nothing, threads=1)  # which never runs
        connection = _Connection(ours, engine)
        web_server.send(_REHEARSED)
        connection.serve()
        web_server.recv(READ)
        connection.close()


def _connect_nothing(accepted: socket.socket) -> _Connection:
    raise AssertionError("a rehearsal accepts nothing")


def _say_hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"Hello\n"]


class _Engine(Engine):
    def __init__(
        self, application: Callable[..., Any], threads: int, observer: Observer | None, keeping: Keeping
    ) -> None:
        super().__init__(application, threads, observer, keeping.served)
        self.keeping = keeping
        #: Connections of which their loop hears that the web server has gone.
        self.unasked: Collection[object] = keeping.kept if threads == 1 else ()
        self.common = Common()


class _Connection(Answering):
    __slots__ = ("_answered", "_arrival", "_lingering", "_spoke")

    _engine: _Engine

    def __init__(self, accepted: socket.socket, engine: _Engine) -> None:
        super().__init__(accepted, engine)
        self._arrival: Arrival | None = None  # while a request does not come in one piece
        self._spoke = False
        self._answered = False  # before all of its body was read
        self._lingering = False

    # --- what a loop calls

    @property
    def idle(self) -> bool:
        arrival = self._arrival
        return self._spoke and (arrival is None or arrival.between_requests) and not self._lingering

    def serve(self) -> bool:
        incoming: bytes | None
        try:
            try:
                incoming = self.socket.recv(READ, NOW)
            except BlockingIOError:
                incoming = self._wait_for_first()
                if incoming is None:
                    return True
            except OSError:
                return False  # reset: as good as closed
            if not incoming:
                return False
            self._spoke = True
            arrival = self._arrival
            if arrival is None:
                engine = self._engine
                environ = engine.environ.copy()
                flags = read_whole(incoming, environ, engine.common)
                if flags is not None:
                    self._keep = flags == KEEP_CONNECTION
                    return self._serve_whole(environ)
                arrival = self._arrival = Arrival(self._engine.values)
                self.until = monotonic() + HEAD_PATIENCE
            elif self._lingering:
                return self._lingers_on(arrival, incoming)
            elif arrival.between_requests:
                self.until = monotonic() + HEAD_PATIENCE
            return self._gather(arrival, incoming)
        except ProtocolError as error:
            say(f"connection closed: {error}")
            return False
        except OSError:
            if not self.gone:
                raise
            return False

    def close(self) -> None:
        self._engine.keeping.kept.discard(self)
        self.socket.close()

    def drop(self) -> None:
        if self._arrival is not None and not (self.idle or self._lingering or self.hung_up):
            say("connection closed before its request had come")
        self.close()

    # --- a request in

    def _wait_for_first(self) -> bytes | None:
        """Nothing has come yet: what comes at once on a new connection, b"" at its end; None when nothing does."""
        if self._spoke or self.until:
            return None
        if not comes(self.socket, select.POLLIN, FIRST_BYTE_AT_ONCE):
            self.until = monotonic() + FIRST_BYTE_PATIENCE
            return None
        try:
            return self.socket.recv(READ, NOW)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _serve_whole(self, environ: dict[str, Any]) -> bool:
        if (self.hung_up or self not in self._engine.unasked) and self._has_left():
            return False
        if not self.answer(environ, 1, io.BytesIO()) or (self._closing and not self._leave()):
            return False
        arrival = self._arrival
        if arrival is None:
            return True
        arrival.over()  # made while an answer was being sent, for what came ahead
        return self._gather(arrival, b"")

    def _gather(self, arrival: Arrival, incoming: bytes) -> bool:
        """Take some of a request that comes in pieces, and serve it when enough of it is there."""
        arrival.feed(incoming, self._engine.environ)
        heard = False
        while True:
            if arrival.aborted:
                arrival.replies.append(end_request(arrival.request_id))
                arrival.over()
            elif arrival.parameters is not None and _enough(arrival):
                if not heard:  # once: who goes on saying something else must not hold the process
                    heard = True
                    if self._hears_more(arrival):
                        continue
                if not self._serve_gathered(arrival, arrival.parameters):
                    return False
                if self._lingering:
                    return True
                arrival.over()
                heard = False
                self.until = monotonic() + HEAD_PATIENCE
            else:
                self._send_replies(arrival)
                if (not arrival.begun and not arrival.keep) or arrival.passed_over > LATE:
                    return self._linger()
                if arrival.between_requests:
                    if not arrival.passed_over:  # else it counts on, to the next request
                        self._arrival = None
                    self.until = monotonic() + (LINGER if self._leaving else KEPT_PATIENCE)
                return True
            arrival.feed(b"", self._engine.environ)

    def _serve_gathered(self, arrival: Arrival, environ: dict[str, Any]) -> bool:
        """Whether the connection goes on, or lingers."""
        self._keep = arrival.keep
        if self._has_left():
            return False
        if arrival.body_ended:
            whole = self.answer(environ, arrival.request_id, io.BytesIO(b"".join(arrival.body)))
        else:
            self._answered = False
            body = Body(self._more)
            whole = self.answer(environ, arrival.request_id, buffered(body))
            body.over()
        return whole and (not self._closing or self._leave())

    def _has_left(self) -> bool:
        """Whether the web server has gone before its request was taken up."""
        engine = self._engine
        # Of one that it kept, SoloLoop hears with the request; one that is new and came from a queue must be asked.
        in_doubt = engine.keeping.busy and self not in engine.unasked
        return self.hung_up or (in_doubt and comes(self.socket, select.POLLRDHUP, 0))

    def _hears_more(self, arrival: Arrival) -> bool:
        """The end of no body, which httpd writes for itself, is there within microseconds: with all of the request read
        nothing is left to hear of it."""
        if arrival.body_ended or arrival.body_length or not comes(self.socket, select.POLLIN, FIRST_BYTE_AT_ONCE):
            return False
        try:
            incoming = self.socket.recv(READ, NOW)
        except BlockingIOError:
            return False
        except OSError:
            self.gone = True
            raise
        arrival.feed(incoming)
        self.hung_up = not incoming
        return bool(incoming)

    def _passes_over(self, arrival: Arrival) -> bool:
        """Pass over what the application has left of the body, as far as it is here. Whether it can go on then."""
        left = UNREAD
        self._answered = not arrival.body_ended
        while not (arrival.body_ended or arrival.aborted):
            try:
                incoming = self.socket.recv(READ, NOW)
                arrival.feed(incoming)
            except BlockingIOError:
                return True  # the rest belongs to no request when it comes
            except (OSError, ProtocolError):
                return False
            arrival.body.clear()
            left -= len(incoming)
            if not incoming or left <= 0:
                return False
        return True

    def _more(self) -> bytes:
        """The next piece of the body, for an application that reads it."""
        arrival = self._arrival
        assert arrival is not None
        while not arrival.body:
            if self._answered:
                raise AnsweredError
            if arrival.body_ended:
                return b""
            if arrival.aborted:
                raise self._lost("the web server has aborted the request")
            try:
                arrival.feed(self._receive(arrival))
                self._send_replies(arrival)
            except ProtocolError as error:
                raise self._given_up(str(error)) from None
        return arrival.body.popleft()

    def _receive(self, arrival: Arrival) -> bytes:
        while True:
            try:
                incoming = self.socket.recv(READ, NOW)
            except BlockingIOError:
                self._wait_for_body(arrival.body_length)
            except OSError:
                self.gone = True
                raise
            else:
                if not incoming:
                    raise self._lost("the web server has closed the connection")
                return incoming

    def _send_replies(self, arrival: Arrival) -> None:
        """Raises ProtocolError."""
        if arrival.replies:
            message = b"".join(arrival.replies)
            arrival.replies.clear()
            self._reply(message)

    # --- the answer

    def _is_aborted(self) -> bool:
        return self._arrival is not None and self._arrival.aborted

    def _hear(self) -> None:
        if self._arrival is None:
            self._arrival = Arrival(self._engine.values)
            self._arrival.keep = self._keep
            self._arrival.resume(1)
        if self._arrival.body_ended:  # else it is the body
            try:
                self._arrival.feed(self._receive(self._arrival))
            except ProtocolError as error:
                raise self._given_up(str(error)) from None
            if self._arrival.aborted:
                raise self._lost("the web server has aborted the request")

    def _goes_on(self) -> bool:
        arrival = self._arrival
        # With too much of the body unread it cannot go on, and the web server must know that with the answer.
        goes = (arrival is None or self._passes_over(arrival)) and self._keep
        engine = self._engine
        goes = goes and not (self._leaving or engine.loop.stopping)
        if goes and not engine.keeping.keeps(self):
            goes = self._parting is Parting.END and self._its_end().spares() and not engine.loop.crowded
        self._closing = not goes
        return goes

    # --- the end

    def _leave(self) -> bool:
        arrival = self._arrival
        # (Where its request is over already, what is late of the body was passed over, or will be.)
        if arrival is not None and arrival.begun and not (arrival.body_ended or arrival.aborted):
            return self._linger()
        self._engine.keeping.kept.discard(self)
        return super()._leave()

    def _linger(self) -> bool:
        """Nothing more is said; the rest of a request that the peer still sends is passed over, for a while."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        self._lingering = True
        self.until = monotonic() + LINGER
        return True

    def _lingers_on(self, arrival: Arrival, incoming: bytes) -> bool:
        arrival.feed(incoming)
        arrival.body.clear()
        return not (arrival.body_ended or arrival.aborted)


def _enough(arrival: Arrival) -> bool:
    """Whether what has come of the body is enough to call the application.

    More of it than was announced is no reason to refuse it: a web server that unpacks a compressed upload announces the
    length of the packed one (mod_deflate does). The application reads it as it comes, to its end, which PEP 3333 leaves
    to the server and `wsgi.input_terminated` says; but it is not collected here, where nothing would hold its sender.
    """
    if arrival.body_ended or arrival.body_length > SHORT_BODY:
        return True
    assert arrival.parameters is not None
    announced = arrival.parameters.get("CONTENT_LENGTH", "")
    return not (announced.isascii() and announced.isdigit() and len(announced) < 10 and int(announced) <= SHORT_BODY)
