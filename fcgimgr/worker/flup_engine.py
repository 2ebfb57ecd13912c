"""flup's FastCGI server, on connections that AcceptLoop accepts, with what flup 1.0.3 gets wrong mended.

flup's own: a request and its life on a connection (roles, a second one at a time, aborts), and what it forgives an
application: text in a body, bytes in a status or a header. Replaced here:

- Records are read in large pieces and written together, where flup makes two or three system calls a record.
- PARAMS are joined before they are read (flup misreads a pair that lies across two records) and bounded.
- The environ (environ.py) and the response (exchange.py) are those of the native server. flup cuts PATH_INFO out of
  what the client sent, undecoded; leaves CONTENT_TYPE and CONTENT_LENGTH in it twice; answers HEAD, 204 and 304 with a
  body; passes on a line feed in a header, and a body that is not as long as was declared.
- wsgi.input is a file as Python has them, and says that it ends.
- A broken or malformed connection ends that connection, with one line on stderr; flup swallows the error.
- An exception of the application goes to the process's stderr, and so to the pool's log, with the request that raised
  it. (In FCGI_STDERR it would be seen by the web server alone; nginx answers 502 when it fills the header buffer.) Once
  a part of the response is sent the connection is broken off: with an orderly end a truncated page would look whole.
- A peer is held to limits (patience.py): the parameters whatever else it sends, no body before their end (flup
  collects it without bound), the body, and the taking of the answer.
- A client that has gone ends its request: before the application is called, or at its next block or read. An abort is
  answered. flup goes on.
- GET_VALUES is answered (flup compares str with bytes and finds nothing).
- An OSError of the application's own is a fault like any other. (flup takes every EPIPE for the client's, and passes it
  over: of a lost database connection there was an empty page, or half of one, and not a word.)
- A child that the application has forked ends as it wants to, and says nothing on its parent's connection.
- A connection is closed at once when all of its request has been read; else the peer's end is waited for, at most
  LINGER seconds. (flup always waits, and for ever: a peer that keeps its side open costs a thread.)
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from flup.server import fcgi_base

from fcgimgr.fastcgi.arriving import decode_parameters
from fcgimgr.fastcgi.records import (
    KEEP_CONNECTION,
    PairStream,
    ProtocolError,
    Record,
    RecordReader,
    RecordType,
    decode_begin_request,
    decode_pairs,
    encode_pairs,
    encode_record,
    end_request,
)
from fcgimgr.worker.accepting import KEPT_PATIENCE, AcceptLoop
from fcgimgr.worker.body import Body, buffered
from fcgimgr.worker.environ import finish, promises, template
from fcgimgr.worker.exchange import Exchange, FileWrapper
from fcgimgr.worker.forked import end_child
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

_READ: Final = 65536
_NOW: Final = socket.MSG_DONTWAIT
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
    server = _Server(application, threads, observer)
    for listener in listeners:
        if listener.family != socket.AF_UNIX:
            # Accepted sockets inherit it. Without it the second piece of an answer waits for the peer's delayed ACK.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    loop = AcceptLoop(
        listeners,
        lambda accepted: _Connection(accepted, server),
        threads=threads,
        allowed=allowed,
        ready=ready,
        see_off=_Connection.see_off,
    )
    server.loop = loop
    loop.run()


def knows_its_flup() -> bool:
    """Whether this is flup 1.0.3, or a copy of it. (flup6 has the same name, and connections without a timeout.)"""
    return "timeout" in fcgi_base.Connection.__init__.__code__.co_varnames


class _Input:
    """A request's STDIN, as far as it has come and was not read. `length`: bytes that have come so far."""

    def __init__(self, connection: _Connection) -> None:
        self.pieces: deque[bytes] = deque()
        self.length = 0
        self.ended = False

    def add_data(self, content: bytes) -> None:
        if content:
            self.pieces.append(content)
            self.length += len(content)
        else:
            self.ended = True


class _Request(fcgi_base.Request):  # type: ignore[misc]  # flup has no types
    # What flup's Connection sets.
    requestId: int  # noqa: N815
    role: int
    flags: int

    def __init__(self, connection: _Connection, input_stream: type, timeout: None) -> None:
        self._conn = connection
        self.server = connection.server
        self.stdin = input_stream(connection)
        self.parameters = PairStream()
        self.started = False
        self.aborted = False

    def run(self) -> None:
        """Raises EOFError where the connection is to be closed."""
        connection, server = self._conn, self.server
        if comes(connection.socket, select.POLLRDHUP, 0):
            raise EOFError
        connection.gone = False  # of an upload that was aborted before
        environ = server.environ.copy()
        joined = self.parameters.joined()
        decode_parameters(joined, 0, len(joined), environ)
        environ.update(server.promised)
        finish(environ)
        if self.flags & KEEP_CONNECTION:
            connection.parting = parting_from(environ.get("SERVER_SOFTWARE", ""))
        body = Body(self._more)
        whole = self.stdin.ended
        environ["wsgi.input"] = io.BytesIO(b"".join(self.stdin.pieces)) if whole else buffered(body)
        exchange = Exchange(connection, self.requestId, environ["REQUEST_METHOD"] == "HEAD")
        observer = server.observer
        if observer is not None:
            observer.begin(environ)
        try:
            self._answer(exchange, environ)
        finally:
            body.over()
            if observer is not None and not observer.end(exchange.status, exchange.sent):
                server.loop.retire()
        connection.over(self)

    def _answer(self, exchange: Exchange, environ: dict[str, Any]) -> None:
        connection, loop = self._conn, self.server.loop
        try:
            exchange.run(self.server.application, environ)
        except BaseException as error:  # noqa: BLE001  # whatever an application raises ends the request, not the worker
            if loop.forked:
                end_child(None if connection.gone else error)  # gone: it returned, and found the connection closed
            if self.aborted:
                connection.gone = False
                connection.send(end_request(self.requestId), True, True)
                return
            if connection.gone:
                raise EOFError from None  # reading or writing failed because the client has gone: no fault to report
            say_failed(environ, error)
            if not exchange.head_sent:
                exchange.fail(_ERROR_PAGE)
            elif not exchange.ended:
                raise EOFError from None
        else:
            if loop.forked:
                end_child(None)

    def _more(self) -> bytes:
        """The next piece of the body, for an application that reads it."""
        connection, body = self._conn, self.stdin
        while not body.pieces:
            if body.ended:
                return b""
            if self.aborted:
                raise connection.lost("the web server has aborted the request")
            try:
                connection.process_input()
            except ProtocolError as error:
                raise connection.given_up(str(error)) from None
        return bytes(body.pieces.popleft())


class _Server(fcgi_base.BaseFCGIServer):  # type: ignore[misc]
    request_class = _Request

    loop: AcceptLoop

    def __init__(self, application: Callable[..., Any], threads: int, observer: Observer | None) -> None:
        super().__init__(_forgiving(application), multithreaded=threads > 1, multiprocess=True)
        self.observer = observer
        self.promised = promises(threads)
        self.environ = template(self.promised)
        count = str(threads).encode()
        self.values = {b"FCGI_MAX_CONNS": count, b"FCGI_MAX_REQS": count, b"FCGI_MPXS_CONNS": b"0"}


class _Connection(fcgi_base.Connection):  # type: ignore[misc]
    """One accepted connection. flup's methods take flup's Record; `_take` makes one of ours."""

    _inputStreamClass = _Input  # noqa: N815  # flup's name

    until = 0.0
    hung_up = False

    def __init__(self, accepted: socket.socket, server: _Server) -> None:
        super().__init__(accepted, None, server, None)
        self.socket = accepted
        self.idle = True
        self.gone = False
        self.parting: Parting | None = None  # how to end what the web server wants to keep; None: it has not wanted to
        self._hanging_up: HangingUp | None = None
        self._closing = False  # the last answer was the last one
        self._leaving = False  # the web server was told so, and is to close; what it has sent before gets its answer
        self._keepGoing = True
        self._running: _Request | None = None
        self._last = 0  # the id of the last request
        self._all_read = True  # of that, to the end of its STDIN, after which a peer sends nothing
        self._announced_until = 0.0  # monotonic seconds; of the request that is being announced
        self._reader = RecordReader()
        self._arrived: deque[Record] = deque()
        self._stalled = 0.0  # seconds for which this answer waited for the peer, less those that it has earned since
        self._waited = 0.0  # seconds for which an application was kept waiting for this body

    # --- what AcceptLoop calls

    def serve(self) -> bool:
        try:
            while self._keepGoing:
                self.process_input()
                if not self._requests and not self._arrived:
                    self._rest()
                    return bool(self._keepGoing)
        except EOFError:
            return False
        except ProtocolError as error:
            say(f"connection closed: {error}")
            return False
        except OSError:
            if not self.gone:
                raise
            return False  # the client went away, which is its right
        return False

    def _rest(self) -> None:
        """Until more comes, in no thread. Half a record is the beginning of a request."""
        now = time.monotonic()
        if self._reader.between_records:
            self.idle = True
            self.until = now + KEPT_PATIENCE
        elif self.idle:
            self.idle = False
            self.until = now + HEAD_PATIENCE

    def see_off(self) -> bool:
        if self.parting is not Parting.RECORD or self._leaving:
            return self.parting is not None
        self._leaving = True
        try:
            return self.socket.send(GOODBYE, _NOW) == len(GOODBYE)
        except OSError:
            return False

    def drop(self) -> None:
        if not (self.idle or self.hung_up):
            say("connection closed before its request had come")
        self.socket.close()

    def close(self) -> None:
        with contextlib.suppress(OSError, ProtocolError), self.socket:
            if self._all_read or any(_ends_stdin(record) for record in self._arrived):
                return
            self.socket.shutdown(socket.SHUT_WR)
            until = time.monotonic() + LINGER
            # The clock is asked too: of who never stops sending there is always something to read.
            while (left := until - time.monotonic()) > 0 and comes(self.socket, select.POLLIN, left):
                rest = self.socket.recv(_READ)
                if not rest or any(_ends_stdin(record) for record in self._reader.feed(rest)):
                    return

    # --- records in

    def process_input(self) -> None:
        """Handle one record, or read more of it; raises EOFError at the end. Also called by a reading application."""
        if not self._arrived:
            self._receive()
        if self._arrived:
            self._take(self._arrived.popleft())

    def _receive(self) -> None:
        if self._requests and self._running is None and time.monotonic() > self._announced_until:
            raise _late()  # of who sends nonsense for ever there is always something to read
        try:
            incoming = self.socket.recv(_READ, _NOW)
        except BlockingIOError:
            self._wait_for_more()
            return
        except OSError:
            self.gone = True
            raise
        if not incoming:
            self.gone = True
            if self._running is not None:
                raise self.lost("the web server has closed the connection")
            raise EOFError
        self._arrived.extend(self._reader.feed(incoming))

    def _wait_for_more(self) -> None:
        if self._running is not None:
            try:
                self._waited = wait_for_body(self.socket, self._running.stdin.length, self._waited)
            except TooSlowError as error:
                raise self.given_up(str(error)) from None
            return
        left = self._announced_until - time.monotonic()
        if self._requests and not comes(self.socket, select.POLLIN, left):
            raise _late()

    def _take(self, record: Record) -> None:
        if record.request_id == self._last and _ends_stdin(record):
            self._all_read = True
        handler = _HANDLERS.get(record.type)
        if handler is None:
            if record.request_id:
                return
            handler = _Connection._do_unknown_type
        translated = fcgi_base.Record(record.type, record.request_id)
        translated.contentData = record.content
        translated.contentLength = len(record.content)
        handler(self, translated)

    def _do_begin_request(self, record: Any) -> None:
        role, _ = decode_begin_request(record.contentData)  # flup would fail on a wrong length with a struct.error
        if record.requestId in self._requests:
            raise ProtocolError(f"request {record.requestId} was begun a second time before it ended")
        refused = bool(self._requests)  # which prolongs nothing
        super()._do_begin_request(record)
        if not refused:
            self._announced_until = time.monotonic() + HEAD_PATIENCE
            self._last = record.requestId
            self._all_read = False
            if role not in self.server.roles:
                self.end_request(self._requests[record.requestId], 0, fcgi_base.FCGI_UNKNOWN_ROLE)

    def _do_abort_request(self, record: Any) -> None:
        request = self._requests.get(record.requestId)
        if request is None:
            return
        request.aborted = True
        self._all_read = True  # a peer that wants no answer loses nothing with it
        if not request.started:
            self.end_request(request)

    def _do_params(self, record: Any) -> None:
        request = self._requests.get(record.requestId)
        if request is None or request.started:
            return
        if record.contentData:
            request.parameters.add(record.contentData)
            return
        request.started = True
        while self._arrived and self._arrived[0].type == RecordType.STDIN:  # what is here of the body
            self._take(self._arrived.popleft())
        self._running = request
        self._stalled = self._waited = 0.0
        try:
            self._start_request(request)
        finally:
            self._running = None

    def _do_stdin(self, record: Any) -> None:
        self._refuse_early(record)
        super()._do_stdin(record)

    def _do_data(self, record: Any) -> None:
        """It is for filters, which are not served: nobody would read it."""
        self._refuse_early(record)

    def _refuse_early(self, record: Any) -> None:
        request = self._requests.get(record.requestId)
        if request is not None and not request.started:
            raise ProtocolError("the body of a request came before the end of its parameters")

    def _do_get_values(self, record: Any) -> None:
        known = self.server.values
        asked = [name for name, _ in decode_pairs(record.contentData)]
        answer = fcgi_base.Record(fcgi_base.FCGI_GET_VALUES_RESULT)
        answer.contentData = encode_pairs((name, known[name]) for name in dict.fromkeys(asked) if name in known)
        self.writeRecord(answer)

    # --- records out

    def writeRecord(self, record: Any) -> None:  # noqa: N802  # flup's name
        """What is not the answer. Nobody waits for a peer that asks and does not read: raises ProtocolError."""
        wire = encode_record(record.type, record.requestId, record.contentData)
        try:
            sent = self.socket.send(wire, _NOW)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.gone = True
            raise
        if sent < len(wire):
            raise ProtocolError("the replies to management records are not read")

    def send(self, message: bytes, last: bool, over: bool) -> None:
        hanging_up = None
        if last and self._is_last():
            message, hanging_up = self._part(message)
        flags = self._flags(last and over)
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
        hanging_up = None
        if last and self._is_last():
            parts[-1], hanging_up = self._part(bytes(parts[-1]))
        flags = self._flags(last and over)
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

    def _flags(self, over: bool) -> int:
        """When nothing comes behind it, the end of the connection goes with the end of the answer: over TCP in one
        segment (tcp(7), TCP_CORK)."""
        request = self._running
        if over and request is not None and not request.flags & KEEP_CONNECTION:
            return _NOW | socket.MSG_MORE
        return _NOW

    def _send_rest(self, unsent: memoryview, flags: int) -> None:
        try:
            self._stalled = send_slowly(self.socket, unsent, flags, self._stalled)
        except TooSlowError as error:
            raise self.given_up(str(error)) from None
        except OSError:
            self.gone = True
            raise

    def check(self) -> None:
        """Raises ClientGoneError when the client is known to have gone, or to want no answer any more."""
        polled = poll()
        try:
            polled.register(self.socket, select.POLLIN | select.POLLRDHUP)
        except ValueError:  # in a child that the application has forked
            raise self.lost("the connection is not this process's") from None
        events = polled.poll(0)
        if not events:
            return
        if events[0][1] & ~select.POLLIN:
            raise self.lost("the web server has closed the connection")
        request = self._running
        assert request is not None
        if request.stdin.ended and not self._arrived:  # else it is the body, or the next request
            try:
                self._receive()
            except ProtocolError as error:
                raise self.given_up(str(error)) from None
        abort = Record(RecordType.ABORT_REQUEST, request.requestId, b"")
        if abort in self._arrived:
            self._arrived.remove(abort)
            request.aborted = True
            raise self.lost("the web server has aborted the request")

    # --- the end

    def _is_last(self) -> bool:
        """Whether an answer on a connection that the web server would keep is the last one."""
        request = self._running
        return request is not None and bool(request.flags & KEEP_CONNECTION) and self.server.loop.stopping

    def _part(self, end: bytes) -> tuple[bytes, HangingUp | None]:
        """What is sent in place of the end of the last answer, and how the connection is ended with it, where it is for
        us to do so. (One buffer: what is cut off is sent buffer by buffer.)"""
        parting = self.parting
        assert parting is not None
        if parting is Parting.END:
            if self._hanging_up is None:
                self._hanging_up = HangingUp(self.socket)
            self._hanging_up.sending()
            return end, self._hanging_up
        self._closing = self._leaving
        self._leaving = True
        return last_words(end, parting), None

    def _hung_up(self, hanging_up: HangingUp) -> None:
        try:
            self._closing = hanging_up.over()
        except OSError:
            self.gone = True
            raise

    def over(self, request: _Request) -> None:
        """Its answer is sent."""
        del self._requests[request.requestId]
        if self._closing or not request.flags & KEEP_CONNECTION:
            self._keepGoing = False

    def given_up(self, why: str) -> ClientGoneError:
        say(f"connection closed: {why}")
        return self.lost(why)

    def lost(self, why: str) -> ClientGoneError:
        self.gone = True
        return ClientGoneError(why)

    def _cleanupSocket(self) -> None:  # noqa: N802  # flup's name
        """flup closes from within a request; here AcceptLoop closes, once serve() has answered False."""


_HANDLERS: Final[dict[int, Callable[[_Connection, Any], None]]] = {
    RecordType.BEGIN_REQUEST: _Connection._do_begin_request,
    RecordType.ABORT_REQUEST: _Connection._do_abort_request,
    RecordType.PARAMS: _Connection._do_params,
    RecordType.STDIN: _Connection._do_stdin,
    RecordType.DATA: _Connection._do_data,
    RecordType.GET_VALUES: _Connection._do_get_values,
}


def _late() -> ProtocolError:
    return ProtocolError(f"a request was begun and not finished in {HEAD_PATIENCE:g} s")


def _ends_stdin(record: Record) -> bool:
    return record.type == RecordType.STDIN and not record.content


# --- what flup forgives


def _forgiving(application: Callable[..., Any]) -> Callable[..., Any]:
    """The application, with Latin-1 made of its text in a body, and text of its bytes in a status and in headers."""

    def calling(environ: dict[str, Any], start_response: Callable[..., Callable[[bytes], None]]) -> Any:
        def start(status: Any, headers: Any, exc_info: Any = None) -> Callable[[Any], None]:
            if type(headers) is list and any(_has_bytes(field) for field in headers):
                headers = [tuple(map(_text, field)) if _has_bytes(field) else field for field in headers]
            write = start_response(_text(status), headers, exc_info)
            return lambda block: write(_encoded(block))

        result = application(environ, start)
        kind = type(result)
        if kind is list or kind is tuple:
            return [_encoded(block) for block in result] if any(type(block) is str for block in result) else result
        return result if isinstance(result, FileWrapper) else _Encoded(result)

    return calling


class _Encoded:
    """The blocks of `result`."""

    def __init__(self, result: Iterable[Any]) -> None:
        self._result = result
        close = getattr(result, "close", None)
        if close is not None:
            self.close = close

    def __iter__(self) -> Iterator[Any]:
        return map(_encoded, self._result)


def _encoded(block: Any) -> Any:
    return block.encode("latin-1") if type(block) is str else block


def _text(word: Any) -> Any:
    return word.decode("latin-1") if type(word) is bytes else word


def _has_bytes(field: Any) -> bool:
    return type(field) in (tuple, list) and bytes in map(type, field)
