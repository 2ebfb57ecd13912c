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
- An exception of the application ends its request (answering.py). flup tells the web server of it, in FCGI_STDERR, and
  gives a truncated page an orderly end.
- A request whose parameters have not all come waits in no thread. (In flup it holds one, and the process from its end.)
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
)
from fcgimgr.worker.accepting import KEPT_PATIENCE, AcceptLoop
from fcgimgr.worker.answering import NOW, READ, Answering, Engine, send_without_delay
from fcgimgr.worker.body import Body, buffered
from fcgimgr.worker.exchange import FileWrapper
from fcgimgr.worker.observing import Observer
from fcgimgr.worker.patience import HEAD_PATIENCE, LINGER, AnsweredError, comes
from fcgimgr.worker.saying import say


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
    send_without_delay(listeners)
    loop = AcceptLoop(
        listeners,
        lambda accepted: _Connection(accepted, server),
        threads=threads,
        allowed=allowed,
        ready=ready,
        see_off=_Connection.see_off,
        promised=_Connection.is_promised,
    )
    server.loop = loop
    loop.run()


def knows_its_flup() -> bool:
    """Whether this is flup 1.0.3, or a copy of it. (flup6 has the same name, and connections without a timeout.)"""
    return "timeout" in fcgi_base.Connection.__init__.__code__.co_varnames


class _Input:
    """A request's STDIN, as far as it has come and was not read. `length`: bytes that have come so far."""

    def __init__(self, _: _Connection) -> None:  # flup's Request passes it, for an input that reads by itself
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
        self.answered = False
        self.aborted = False

    def run(self) -> None:
        """Raises EOFError where the connection is to be closed."""
        connection, server = self._conn, self.server
        if comes(connection.socket, select.POLLRDHUP, 0):
            raise EOFError
        environ = server.environ.copy()
        joined = self.parameters.joined()
        decode_parameters(joined, 0, len(joined), environ)
        body = Body(self._more)
        whole = self.stdin.ended
        source = io.BytesIO(b"".join(self.stdin.pieces)) if whole else buffered(body)
        try:
            if not connection.answer(environ, self.requestId, source):
                raise EOFError
        finally:
            body.over()

    def _more(self) -> bytes:
        """The next piece of the body, for an application that reads it."""
        connection, body = self._conn, self.stdin
        while not body.pieces:
            if body.ended:
                return b""
            if self.answered:
                raise AnsweredError
            if self.aborted:
                raise connection._lost("the web server has aborted the request")
            try:
                connection.process_input()
            except ProtocolError as error:
                raise connection._given_up(str(error)) from None
        return bytes(body.pieces.popleft())


class _Server(Engine, fcgi_base.BaseFCGIServer):  # type: ignore[misc]
    request_class = _Request

    def __init__(self, application: Callable[..., Any], threads: int, observer: Observer | None) -> None:
        fcgi_base.BaseFCGIServer.__init__(self, application, multithreaded=threads > 1, multiprocess=True)
        Engine.__init__(self, _forgiving(application), threads, observer)


class _Connection(Answering, fcgi_base.Connection):  # type: ignore[misc]
    """One accepted connection. flup's methods take flup's Record; `_take` makes one of ours."""

    _inputStreamClass = _Input  # noqa: N815  # flup's name

    def __init__(self, accepted: socket.socket, server: _Server) -> None:
        Answering.__init__(self, accepted, server)
        fcgi_base.Connection.__init__(self, accepted, None, server, None)
        self.idle = True
        self._keepGoing = True
        self._running: _Request | None = None
        self._last = 0  # the id of the last request
        self._all_read = True  # of that, to the end of its STDIN, after which a peer sends nothing
        self._announced_until = 0.0  # monotonic seconds; of the request that is being announced
        self._reader = RecordReader()
        self._arrived: deque[Record] = deque()

    # --- what AcceptLoop calls

    def serve(self) -> bool:
        try:
            self._receive()
            while self._arrived and self._keepGoing:
                self._take(self._arrived.popleft())
            if self._keepGoing:
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

    def _rest(self) -> None:
        """Until more comes, in no thread. Half a record is the beginning of a request."""
        if not self._requests and self._reader.between_records:
            self.idle = True
            self.until = time.monotonic() + (LINGER if self._leaving else KEPT_PATIENCE)
        elif self.idle:
            self.idle = False
            self.until = self._announced_until = time.monotonic() + HEAD_PATIENCE

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
                rest = self.socket.recv(READ)
                if not rest or any(_ends_stdin(record) for record in self._reader.feed(rest)):
                    return

    # --- records in

    def process_input(self) -> None:
        """Handle one record, or read more of them; raises EOFError at the end. Called by an application that reads."""
        if not self._arrived:
            self._receive()
        if self._arrived:
            self._take(self._arrived.popleft())

    def _receive(self) -> None:
        if not self.idle and time.monotonic() > self._announced_until:
            raise _late()  # of who sends nonsense for ever there is always something to read
        try:
            incoming = self.socket.recv(READ, NOW)
        except BlockingIOError:
            if self._running is not None:
                self._wait_for_body(self._running.stdin.length)
            return
        except OSError:
            self.gone = True
            raise
        if not incoming:
            self.gone = True
            if self._running is not None:
                raise self._lost("the web server has closed the connection")
            raise EOFError
        self._arrived.extend(self._reader.feed(incoming))

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
        refused = bool(self._requests)
        super()._do_begin_request(record)
        if not refused:
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
            self.idle = True

    def _do_params(self, record: Any) -> None:
        request = self._requests.get(record.requestId)
        if request is None or request.started:
            return
        if record.contentData:
            request.parameters.add(record.contentData)
            return
        request.started = True
        self.idle = True  # what comes behind it is for another request, and has time of its own
        while self._arrived and self._arrived[0].type == RecordType.STDIN:  # what is here of the body
            self._take(self._arrived.popleft())
        self._running = request
        self._keep = bool(request.flags & KEEP_CONNECTION)
        try:
            self._start_request(request)
        finally:
            self._running = None
        del self._requests[request.requestId]
        if self._closing and not self._leave():
            self._keepGoing = False

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
        """What is not the answer. Raises ProtocolError."""
        self._reply(encode_record(record.type, record.requestId, record.contentData))

    # --- the answer

    def _goes_on(self) -> bool:
        loop = self._engine.loop
        goes = self._keep and not (self._leaving or loop.stopping or loop.crowded)
        self._closing = not goes
        if self._running is not None:
            self._running.answered = True
        return goes

    def _is_aborted(self) -> bool:
        return self._running is not None and self._running.aborted

    def _hear(self) -> None:
        request = self._running
        assert request is not None
        if request.stdin.ended and not self._arrived:  # else it is the body, or the next request
            try:
                self._receive()
            except ProtocolError as error:
                raise self._given_up(str(error)) from None
        abort = Record(RecordType.ABORT_REQUEST, request.requestId, b"")
        if abort in self._arrived:
            self._arrived.remove(abort)
            request.aborted = True
            raise self._lost("the web server has aborted the request")

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
