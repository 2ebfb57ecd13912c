"""fcgimgr's own FastCGI server for WSGI: one request a process, in the main thread, or `threads` of them.

A connection is a small state machine between the loop, which says when bytes have come, and an Exchange, which runs the
application. While a request is incomplete the connection waits in epoll, whoever is slow: a peer that sends nonsense,
half a record, a byte a second or nothing costs one timeout and no worker. The application is called when the
parameters are complete and, where a short body is announced, that too; a long one is read as the application reads.

Exceptions of the application go to the process's stderr, and so to the pool's log, with the request that raised them;
so does what it writes to wsgi.errors. (In FCGI_STDERR it would be seen by the web server alone, cut into its error log;
nginx answers 502 when it fills the header buffer.) Once a part of the response is sent the connection is broken off:
with an orderly end a truncated page would look whole.
"""

from __future__ import annotations

import gc
import io
import select
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

from fcgimgr.fastcgi.arriving import Arrival, read_whole
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
from fcgimgr.worker.body import Body, buffered
from fcgimgr.worker.environ import finish, promises, template
from fcgimgr.worker.exchange import Exchange
from fcgimgr.worker.forked import end_child
from fcgimgr.worker.keeping import Keeping
from fcgimgr.worker.observing import Observer
from fcgimgr.worker.parting import GOODBYE, HangingUp, Parting, last_words, parting_from
from fcgimgr.worker.patched import poll
from fcgimgr.worker.patience import (
    HEAD_PATIENCE,
    LINGER,
    ClientGoneError,
    TooSlowError,
    comes,
    send_slowly,
    wait_for_body,
)
from fcgimgr.worker.saying import say, say_failed
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
_READ: Final = 65536
_NOW: Final = socket.MSG_DONTWAIT
_REHEARSED: Final = (
    begin_request(1, keep_connection=True)
    + encode_record(RecordType.PARAMS, 1, encode_pairs([(b"REQUEST_METHOD", b"GET"), (b"REQUEST_URI", b"/")]))
    + encode_record(RecordType.PARAMS, 1)
    + encode_record(RecordType.STDIN, 1)
)
_ERROR_PAGE: Final = b"The application failed. What happened is in its log.\n"


def serve(
    application: Callable[..., Any],
    listeners: Sequence[socket.socket],
    threads: int,
    allowed: Callable[[Any], bool],
    ready: Callable[[], None],
    observer: Observer | None = None,
) -> None:
    """Serve `application` until a stop signal, at most `threads` requests at once."""
    keeping = Keeping(lambda: any(comes(listener, select.POLLIN, 0) for listener in listeners), threads)
    engine = _Engine(application, threads, observer, keeping)
    for listener in listeners:
        if listener.family != socket.AF_UNIX:
            # Accepted sockets inherit it. Without it the second piece of an answer waits for the peer's delayed ACK.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connect(accepted: socket.socket) -> _Connection:
        return _Connection(accepted, engine)

    loop: AcceptLoop
    common: dict[str, Any] = {
        "allowed": allowed,
        "ready": ready,
        "see_off": _Connection.see_off,
        "promised": keeping.kept.__contains__,
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
        web_server.recv(_READ)
        connection.close()


def _connect_nothing(accepted: socket.socket) -> _Connection:
    raise AssertionError("a rehearsal accepts nothing")


def _say_hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"Hello\n"]


class _Engine:
    """What all connections share."""

    loop: AcceptLoop

    def __init__(
        self, application: Callable[..., Any], threads: int, observer: Observer | None, keeping: Keeping
    ) -> None:
        self.application = application
        self.observer = observer
        self.keeping = keeping
        self.always_asks = threads > 1
        count = str(threads).encode()
        self.values = {b"FCGI_MAX_CONNS": count, b"FCGI_MAX_REQS": count, b"FCGI_MPXS_CONNS": b"0"}
        self.promised = promises(threads)
        self.environ = template(self.promised)


class _Connection:
    """One accepted connection. `hung_up` is set by a loop that hears of it."""

    __slots__ = (
        "_arrival",
        "_closing",
        "_engine",
        "_hanging_up",
        "_keep",
        "_leaving",
        "_lingering",
        "_parting",
        "_spoke",
        "_stalled",
        "_waited",
        "gone",
        "hung_up",
        "socket",
        "until",
    )

    def __init__(self, accepted: socket.socket, engine: _Engine) -> None:
        self.socket = accepted
        self.until = 0.0
        self.hung_up = False
        self.gone = False  # sending or receiving has failed
        self._engine = engine
        self._arrival: Arrival | None = None  # while a request does not come in one piece
        self._spoke = False
        self._keep = False  # whether the web server wants to use the connection again
        self._parting: Parting | None = None  # how to end what the web server wants to keep; None: it has not wanted to
        self._hanging_up: HangingUp | None = None
        self._closing = False  # the last answer was the last one
        self._leaving = False  # the web server was told so, and is to close; what it has sent before gets its answer
        self._lingering = False
        self._stalled = 0.0  # seconds for which this answer waited for the peer, less those that it has earned since
        self._waited = 0.0  # seconds for which an application was kept waiting for this body

    # --- what a loop calls

    @property
    def idle(self) -> bool:
        arrival = self._arrival
        return self._spoke and (arrival is None or arrival.between_requests) and not self._lingering

    def serve(self) -> bool:
        try:
            incoming = self._receive_first()
            if incoming is None:
                return True
            if not incoming:
                return False
            if self._lingering:
                return self._lingers_on(incoming)
            if self._arrival is None:
                environ = self._engine.environ.copy()
                flags = read_whole(incoming, environ)
                if flags is not None:
                    if b"wsgi." in incoming:  # a look costs less than the update
                        environ.update(self._engine.promised)
                    self._keep = bool(flags & KEEP_CONNECTION)
                    return self._serve_whole(environ)
                self._arrival = Arrival(self._engine.values)
                self.until = monotonic() + HEAD_PATIENCE
            return self._gather(self._arrival, incoming)
        except ProtocolError as error:
            say(f"connection closed: {error}")
            return False
        except OSError:
            if not self.gone:
                raise
            return False

    def see_off(self) -> bool:
        """What the web server has sent before gets its answer; and what it sends within a grace, where nothing can tell
        it that it should not."""
        if self._parting is not Parting.RECORD or self._leaving:
            return self._parting is not None
        self._leave()
        try:
            return self.socket.send(GOODBYE, _NOW) == len(GOODBYE)
        except OSError:
            return False

    def close(self) -> None:
        self._engine.keeping.kept.discard(self)
        self.socket.close()

    def drop(self) -> None:
        if self._arrival is not None and not (self.idle or self._lingering or self.hung_up):
            say("connection closed before its request had come")
        self.close()

    # --- a request in

    def _receive_first(self) -> bytes | None:
        """What has come; b"" at the end; None when nothing has."""
        try:
            incoming = self.socket.recv(_READ, _NOW)
        except BlockingIOError:
            if self._spoke or self.until:
                return None
            if not comes(self.socket, select.POLLIN, FIRST_BYTE_AT_ONCE):
                self.until = monotonic() + FIRST_BYTE_PATIENCE
                return None
            return self._receive_first()
        except OSError:
            return b""  # reset: as good as closed
        self._spoke = True
        return incoming

    def _serve_whole(self, environ: dict[str, Any]) -> bool:
        if not self._answer(environ, 1, io.BytesIO()):
            return False
        if self._closing and not self._leave():
            return False
        arrival = self._arrival
        if arrival is None:
            return True
        arrival.over()  # made while an answer was being sent, for what came ahead
        return self._gather(arrival, b"")

    def _gather(self, arrival: Arrival, incoming: bytes) -> bool:
        """Take some of a request that comes in pieces, and serve it when enough of it is there."""
        arrival.feed(incoming, self._engine.environ.copy())
        while True:
            if arrival.aborted:
                arrival.replies.append(end_request(arrival.request_id))
                arrival.over()
            elif arrival.parameters is not None and _enough(arrival):
                if self._hears_more(arrival):
                    continue
                if not self._serve_gathered(arrival, arrival.parameters):
                    return False
                if self._lingering:
                    return True
                arrival.over()
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
            arrival.feed(b"", self._engine.environ.copy())

    def _serve_gathered(self, arrival: Arrival, environ: dict[str, Any]) -> bool:
        """Whether the connection goes on, or lingers."""
        self._keep = arrival.keep
        self._waited = 0.0
        environ.update(self._engine.promised)
        if arrival.body_ended:
            whole = self._answer(environ, arrival.request_id, io.BytesIO(b"".join(arrival.body)))
        else:
            body = Body(self._more)
            whole = self._answer(environ, arrival.request_id, buffered(body))
            body.over()
        return whole and (not self._closing or self._leave())

    def _hears_more(self, arrival: Arrival) -> bool:
        """The end of no body, which httpd writes for itself, is there within microseconds: with all of the request read
        nothing is left to hear of it."""
        if arrival.body_ended or arrival.body_length or not comes(self.socket, select.POLLIN, FIRST_BYTE_AT_ONCE):
            return False
        try:
            incoming = self.socket.recv(_READ, _NOW)
        except BlockingIOError:
            return False
        except OSError:
            self.gone = True
            raise
        arrival.feed(incoming)
        return bool(incoming)

    def _passes_over(self, arrival: Arrival) -> bool:
        """Pass over what the application has left of the body, as far as it is here. Whether it can go on then."""
        left = UNREAD
        while not (arrival.body_ended or arrival.aborted):
            try:
                incoming = self.socket.recv(_READ, _NOW)
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
                incoming = self.socket.recv(_READ, _NOW)
            except BlockingIOError:
                try:
                    self._waited = wait_for_body(self.socket, arrival.body_length, self._waited)
                except TooSlowError as error:
                    raise self._given_up(str(error)) from None
            except OSError:
                self.gone = True
                raise
            else:
                if not incoming:
                    raise self._lost("the web server has closed the connection")
                return incoming

    def _send_replies(self, arrival: Arrival) -> None:
        """Nobody waits for a peer that asks and does not read: raises ProtocolError."""
        if arrival.replies:
            message = b"".join(arrival.replies)
            arrival.replies.clear()
            try:
                sent = self.socket.send(message, _NOW)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.gone = True
                raise
            if sent < len(message):
                raise ProtocolError("the replies to management records are not read")

    # --- the application

    def _answer(self, environ: dict[str, Any], request_id: int, body: io.BytesIO | io.BufferedReader) -> bool:
        """Run the application on a request. Whether its answer is complete."""
        engine = self._engine
        # Of one that it kept, SoloLoop hears with the request; one that is new and came from a queue must be asked.
        keeping = engine.keeping
        may_have_left = engine.always_asks or (keeping.busy and self not in keeping.kept)
        if self.hung_up or (may_have_left and comes(self.socket, select.POLLRDHUP, 0)):
            return False
        self.gone = False  # of an upload that was aborted before
        self._stalled = 0.0
        finish(environ)
        environ["wsgi.input"] = body
        exchange = Exchange(self, request_id, environ["REQUEST_METHOD"] == "HEAD")
        if self._keep and self._parting is None:
            self._parting = parting_from(environ.get("SERVER_SOFTWARE", ""))
        begun = monotonic()
        observer = engine.observer
        if observer is None:
            whole = self._run(exchange, environ, request_id)
        else:
            observer.begin(environ)
            whole = False
            try:
                whole = self._run(exchange, environ, request_id)
            finally:
                if not observer.end(exchange.status, exchange.sent):
                    engine.loop.retire()
        now = monotonic()
        keeping.served(begun, now)
        self.until = now + KEPT_PATIENCE
        return whole

    def _run(self, exchange: Exchange, environ: dict[str, Any], request_id: int) -> bool:
        try:
            exchange.run(self._engine.application, environ)
        except BaseException as error:  # noqa: BLE001  # an application may raise anything; it ends the request alone
            if self._engine.loop.forked:
                end_child(None if self.gone else error)  # gone: it returned, and found the connection closed
            return self._failed(exchange, environ, request_id, error)
        if self._engine.loop.forked:
            end_child(None)
        return True

    def _failed(self, exchange: Exchange, environ: dict[str, Any], request_id: int, error: BaseException) -> bool:
        arrival = self._arrival
        if arrival is not None and arrival.aborted:
            self.gone = False
            self.send(end_request(request_id), True, True)
            return True
        if self.gone:
            return False  # reading or writing failed because the client has gone: no fault to report
        say_failed(environ, error)
        if exchange.head_sent:
            return exchange.ended
        exchange.fail(_ERROR_PAGE)
        return True

    # --- what an Exchange calls

    def check(self) -> None:
        """Raises ClientGoneError when the client is known to have gone, or to want no answer any more."""
        polled = poll()
        try:
            polled.register(self.socket, select.POLLIN | select.POLLRDHUP)
        except ValueError:  # in a child that the application has forked
            raise self._lost("the connection is not this process's") from None
        events = polled.poll(0)
        if not events:
            return
        if events[0][1] & ~select.POLLIN:
            raise self._lost("the web server has closed the connection")
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

    def send(self, message: bytes, last: bool, over: bool) -> None:
        flags = _NOW
        hanging_up = None
        if last and not self._goes_on():
            if self._keep:
                message, hanging_up = self._part(message)
            elif over:
                # The end of the connection goes with the end of the answer, which saves TCP a segment and a tenth of
                # the request's cost. Without it the answer would wait, 200 ms at most (tcp(7), TCP_CORK).
                flags |= socket.MSG_MORE
        if hanging_up is not None:
            hanging_up.sending()
        try:
            sent = self.socket.send(message, flags)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.gone = True
            raise
        if sent < len(message):
            self._send_rest(memoryview(message)[sent:], flags)
        if hanging_up is not None:
            self._hung_up(hanging_up)

    def send_parts(self, parts: list[bytes | memoryview], last: bool, over: bool) -> None:
        flags = _NOW
        hanging_up = None
        if last and not self._goes_on():
            if self._keep:
                parts[-1], hanging_up = self._part(bytes(parts[-1]))
            elif over:
                flags |= socket.MSG_MORE
        if hanging_up is not None:
            hanging_up.sending()
        try:
            sent = self.socket.sendmsg(parts, (), flags)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.gone = True
            raise
        for part in parts:
            if sent >= len(part):
                sent -= len(part)
            else:
                self._send_rest(memoryview(part)[sent:], flags)
                sent = 0
        if hanging_up is not None:
            self._hung_up(hanging_up)

    def _send_rest(self, unsent: memoryview, flags: int) -> None:
        try:
            self._stalled = send_slowly(self.socket, unsent, flags, self._stalled)
        except TooSlowError as error:
            raise self._given_up(str(error)) from None
        except OSError:
            self.gone = True
            raise

    # --- the end

    def _goes_on(self) -> bool:
        """Decide whether this answer is the last one."""
        arrival = self._arrival
        # With too much of the body unread it cannot go on, and the web server must know that with the answer.
        goes = (arrival is None or self._passes_over(arrival)) and self._keep
        engine = self._engine
        goes = goes and not (self._leaving or engine.loop.stopping)
        if goes and not engine.keeping.keeps(self):
            goes = self._parting is Parting.END and self._its_end().spares()
        self._closing = not goes
        return goes

    def _its_end(self) -> HangingUp:
        if self._hanging_up is None:
            self._hanging_up = HangingUp(self.socket)
        return self._hanging_up

    def _part(self, end: bytes) -> tuple[bytes, HangingUp | None]:
        """What is sent in place of the end of the last answer, and how the connection is ended with it, where it is for
        us to do so. (One buffer: what is cut off is sent buffer by buffer.)"""
        parting = self._parting
        assert parting is not None
        return last_words(end, parting), self._its_end() if parting is Parting.END else None

    def _hung_up(self, hanging_up: HangingUp) -> None:
        try:
            self._closing = hanging_up.over()
        except OSError:
            self.gone = True
            raise

    def _leave(self) -> bool:
        """The last answer is given. Whether the web server closes the connection, or has something to say before."""
        arrival = self._arrival
        if arrival is not None and not (arrival.body_ended or arrival.aborted):
            return self._linger()
        if self._leaving or not self._keep or self._parting is Parting.END:
            return False
        self._leaving = True
        self._engine.keeping.kept.discard(self)
        self.until = monotonic() + LINGER
        return True

    def _linger(self) -> bool:
        """Nothing more is said; the rest of a request that the peer still sends is passed over, for a while."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        self._lingering = True
        self.until = monotonic() + LINGER
        return True

    def _lingers_on(self, incoming: bytes) -> bool:
        arrival = self._arrival
        assert arrival is not None
        arrival.feed(incoming)
        arrival.body.clear()
        return not (arrival.body_ended or arrival.aborted)

    def _given_up(self, why: str) -> ClientGoneError:
        say(f"connection closed: {why}")
        return self._lost(why)

    def _lost(self, why: str) -> ClientGoneError:
        self.gone = True
        return ClientGoneError(why)


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
