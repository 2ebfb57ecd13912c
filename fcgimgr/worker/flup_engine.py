"""flup's FastCGI server, on connections that AcceptLoop accepts, with what flup 1.0.3 gets wrong mended.

flup's own: the WSGI side (`handler`: environ, start_response, write), requests and their streams. Replaced here:

- Records are read in large pieces and written together, where flup makes two or three system calls a record.
- PARAMS are joined before they are read (flup misreads a pair that lies across two records) and bounded.
- A broken or malformed connection ends that connection, with one line on stderr; flup swallows the error.
- An exception of the application goes to the process's stderr, and so to the pool's log, with the request that raised
  it. (In FCGI_STDERR it would be seen by the web server alone; nginx answers 502 when it fills the header buffer.) Once
  a part of the response is sent the connection is broken off: with an orderly end a truncated page would look whole.
- A peer is held to limits: the parameters in HEAD_PATIENCE whatever else it sends, no body before their end (flup
  collects it without bound), and something of what it is sent taken in SEND_PATIENCE.
- GET_VALUES is answered (flup compares str with bytes and finds nothing).
- An OSError of the application's own is a fault like any other. (flup takes every EPIPE for the client's, and passes it
  over: of a lost database connection there was an empty page, or half of one, and not a word.)
- A connection is closed at once when all of its request has been read; else the peer's end is waited for, at most
  LINGER seconds. (flup always waits, and for ever: a peer that keeps its side open costs a thread.)
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from flup.server import fcgi_base

from fcgimgr.fastcgi.records import (
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
from fcgimgr.worker.accepting import FIRST_BYTE_GRACE, KEPT_PATIENCE, AcceptLoop
from fcgimgr.worker.asking import asked
from fcgimgr.worker.observing import Observer
from fcgimgr.worker.parting import GOODBYE, HangingUp, Parting, last_words, parting_from

#: Seconds that a request may take to be announced, from its BEGIN_REQUEST to the last of its parameters. Its body may
#: take as long as it takes: how fast a body must come is for the web server to say, which as a rule has it whole.
HEAD_PATIENCE: Final = 30.0
#: Seconds in which the peer must take something of what it is sent. nginx gives its own client 60.
SEND_PATIENCE: Final = 120.0
#: Seconds to wait for the peer to close while it may still be sending: closing with bytes unread resets the connection
#: under our answer (tcp(7), unix(7)).
LINGER: Final = 2.0
_READ: Final = 65536
_SEND_AT: Final = 65536


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
    server.loop = AcceptLoop(
        listeners,
        lambda accepted: _Connection(accepted, server),
        threads=threads,
        allowed=allowed,
        ready=ready,
        see_off=_Connection.see_off,
    )
    server.loop.run()


class _Output(fcgi_base.OutputStream):  # type: ignore[misc]  # flup has no types
    """STDOUT: flup calls flush after each block of the response; the records wait in the connection until then."""

    status = 0
    sent = 0

    def write(self, content: bytes) -> None:
        if self.dataWritten:
            self.sent += len(content)
        elif content:  # the head, with `Status: 200 OK` in front (in an error page of flup's, with the body behind)
            self.status = int(content[8:11])
            self.sent = len(content) - content.index(b"\r\n\r\n") - 4
        super().write(content)

    def flush(self) -> None:
        self._conn.flush()


class _Request(fcgi_base.Request):  # type: ignore[misc]
    def __init__(self, connection: _Connection, input_stream: type, timeout: None) -> None:
        super().__init__(connection, input_stream, timeout)
        self.stdout = _Output(connection, self, fcgi_base.FCGI_STDOUT)
        self.stderr = sys.stderr
        self.parameters = PairStream()
        self.started = False

    def run(self) -> None:
        observer = self.server.observer
        if observer is None or self.role not in self.server.roles:
            self._answer()
            return
        observer.begin(self.params)
        try:
            self._answer()
        finally:
            if not observer.end(self.stdout.status, self.stdout.sent):
                self.server.loop.retire()

    def _answer(self) -> None:
        protocol_status, app_status = fcgi_base.FCGI_REQUEST_COMPLETE, 0
        try:
            protocol_status, app_status = self.server.handler(self)
        except BaseException as error:  # noqa: BLE001  # whatever an application raises ends the request, not the worker
            if self._conn.gone:
                raise EOFError from None  # reading or writing failed because the client has gone: no fault to report
            raised = error.__cause__ if isinstance(error, _WrappedError) else error
            assert raised is not None
            told = "".join(traceback.format_exception(type(raised), raised, raised.__traceback__))
            sys.stderr.write(f"fcgimgr worker: the application failed at {asked(self.params)}\n{told}")
            sys.stderr.flush()
            if self.stdout.dataWritten:
                raise EOFError from None
            self.server.error(self)
        self.stdout.close()
        self._conn.end_request(self, app_status, protocol_status)


class _WrappedError(Exception):
    """An OSError of the application on its way through flup, which would pass over an EPIPE."""


def _wrapped(application: Callable[..., Any]) -> Callable[..., Any]:
    def calling(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            result = application(environ, start_response)
        except OSError as error:
            raise _WrappedError from error
        return result if type(result) in (list, tuple) else _WrappedResult(result)

    return calling


class _WrappedResult:
    """`result`, with the length by which flup finds that there is one block only."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def __len__(self) -> int:
        return len(self._result)

    def __iter__(self) -> Iterator[Any]:
        try:
            for block in self._result:  # noqa: UP028  # `yield from` would also call close()
                yield block
        except OSError as error:
            raise _WrappedError from error

    def close(self) -> None:
        close = getattr(self._result, "close", None)
        if close is None:
            return
        try:
            close()
        except OSError as error:
            raise _WrappedError from error


class _Server(fcgi_base.BaseFCGIServer):  # type: ignore[misc]
    request_class = _Request
    maxwrite = 65528 + fcgi_base.FCGI_HEADER_LEN

    loop: AcceptLoop

    def __init__(self, application: Callable[..., Any], threads: int, observer: Observer | None) -> None:
        super().__init__(_wrapped(application), multithreaded=threads > 1, multiprocess=True)
        self.observer = observer
        self.values = {
            b"FCGI_MAX_CONNS": str(threads).encode(),
            b"FCGI_MAX_REQS": str(threads).encode(),
            b"FCGI_MPXS_CONNS": b"0",
        }


class _Connection(fcgi_base.Connection):  # type: ignore[misc]
    """One accepted connection. flup's methods take flup's Record; `_take` makes one of ours."""

    idle = True  # whenever serve() has answered True
    until = 0.0
    hung_up = False

    def __init__(self, accepted: socket.socket, server: _Server) -> None:
        super().__init__(accepted, None, server, None)
        self.socket = accepted
        self.gone = False
        self._keepGoing = True
        self._parting: Parting | None = None  # how to end what the web server wants to keep; None: it has not wanted to
        self._hanging_up: HangingUp | None = None
        self._leaving = False  # the web server was told to close it
        self._running = False
        self._all_read = True  # of the last request, to the end of its STDIN, after which a peer sends nothing
        self._announced_until = 0.0  # monotonic seconds; of the request that is being announced
        self._reader = RecordReader()
        self._arrived: deque[Record] = deque()
        self._unsent: list[bytes] = []
        self._unsent_length = 0
        # socket(7): a send that has waited for so long ends with what was taken, or if that is nothing with EAGAIN.
        seconds, part = divmod(SEND_PATIENCE, 1)
        patience = struct.pack("ll", int(seconds), int(part * 1_000_000))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        if accepted.family != socket.AF_UNIX:
            # An answer is two or three small sends; Nagle would hold the second for the peer's delayed ACK (40 ms).
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # --- what AcceptLoop calls

    def serve(self) -> bool:
        try:
            while self._keepGoing:
                self.process_input()
                if not self._requests and not self._arrived:
                    self.until = time.monotonic() + (FIRST_BYTE_GRACE if self._leaving else KEPT_PATIENCE)
                    return bool(self._keepGoing)
        except EOFError:
            return False
        except ProtocolError as error:
            print(f"fcgimgr worker: connection closed: {error}", file=sys.stderr, flush=True)
            return False
        except OSError:
            if not self.gone:
                raise
            return False  # the client went away, which is its right
        return False

    def see_off(self) -> bool:
        if self._parting is not Parting.RECORD or self._leaving:
            return self._parting is not None
        self._leaving = True
        try:
            return self.socket.send(GOODBYE, socket.MSG_DONTWAIT) == len(GOODBYE)
        except OSError:
            return False

    def drop(self) -> None:
        self.socket.close()

    def close(self) -> None:
        with contextlib.suppress(OSError, ProtocolError), self.socket:
            if self._all_read or any(_ends_stdin(record) for record in self._arrived):
                return
            self.socket.shutdown(socket.SHUT_WR)
            until = time.monotonic() + LINGER
            # The clock is asked too: of who never stops sending there is always something to read.
            while (left := until - time.monotonic()) > 0 and self._readable(left) and (rest := self.socket.recv(_READ)):
                if any(_ends_stdin(record) for record in self._reader.feed(rest)):
                    break

    # --- records in

    def process_input(self) -> None:
        """Handle one record, or read more of it; raises EOFError at the end. Also called by a reading application."""
        if not self._arrived:
            self._receive()
        if self._arrived:
            self._take(self._arrived.popleft())

    def _receive(self) -> None:
        if self._requests and not self._running:
            left = self._announced_until - time.monotonic()
            if left <= 0 or not self._readable(left):
                raise ProtocolError(f"a request was begun and not finished in {HEAD_PATIENCE:g} s")
        try:
            incoming = self.socket.recv(_READ)
        except OSError:
            self.gone = True
            raise
        if not incoming:
            self.gone = True
            raise EOFError
        self._arrived.extend(self._reader.feed(incoming))

    def _readable(self, patience: float) -> bool:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(patience * 1000))

    def _take(self, record: Record) -> None:
        handlers = {
            RecordType.BEGIN_REQUEST: self._do_begin_request,
            RecordType.ABORT_REQUEST: self._do_abort_request,
            RecordType.PARAMS: self._do_params,
            RecordType.STDIN: self._do_stdin,
            RecordType.DATA: self._do_data,
            RecordType.GET_VALUES: self._do_get_values,
        }
        if _ends_stdin(record):
            self._all_read = True
        handler = handlers.get(record.type)  # type: ignore[call-overload]
        if handler is None:
            if record.request_id:
                return
            handler = self._do_unknown_type
        translated = fcgi_base.Record(record.type, record.request_id)
        translated.contentData = record.content
        translated.contentLength = len(record.content)
        handler(translated)
        if not self._running:
            self.flush()

    def _do_begin_request(self, record: Any) -> None:
        decode_begin_request(record.contentData)  # flup would fail on a wrong length with a struct.error
        if not self._requests:  # a second one at the same time is refused, and prolongs nothing
            self._announced_until = time.monotonic() + HEAD_PATIENCE
            self._all_read = False
        super()._do_begin_request(record)

    def _do_params(self, record: Any) -> None:
        request = self._requests.get(record.requestId)
        if request is None or request.started:
            return
        if record.contentData:
            request.parameters.add(record.contentData)
            return
        for name, value in request.parameters.pairs():
            request.params[name.decode("latin-1")] = value.decode("latin-1")
        if request.flags & fcgi_base.FCGI_KEEP_CONN:
            self._parting = parting_from(request.params.get("SERVER_SOFTWARE", ""))
        request.started = self._running = True
        try:
            self._start_request(request)
        finally:
            self._running = False

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
        wire = encode_record(record.type, record.requestId, record.contentData)
        self._unsent.append(wire)
        self._unsent_length += len(wire)
        if self._unsent_length >= _SEND_AT:
            self.flush()

    def flush(self) -> None:
        if not self._unsent:
            return
        wire = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_length = 0
        if self.gone:  # the application was told and goes on: it waits no second time
            raise EOFError
        try:
            self.socket.sendall(wire)
        except BlockingIOError:
            self.gone = True
            why = f"nothing of an answer was taken for {SEND_PATIENCE:g} s"
            print(f"fcgimgr worker: connection closed: {why}", file=sys.stderr, flush=True)
            raise TimeoutError(why) from None
        except OSError:
            self.gone = True
            raise

    def end_request(self, request: Any, app_status: int = 0, protocol_status: int = 0, remove: bool = True) -> None:
        super().end_request(request, app_status, protocol_status, remove)
        if self._requests or not request.flags & fcgi_base.FCGI_KEEP_CONN:
            self.flush()
            return
        if self._parting is not None and self.server.loop.stopping:
            self._end_with(self._parting)
        else:
            self.flush()

    def _end_with(self, parting: Parting) -> None:
        """Send the last answer."""
        self._unsent[-1] = last_words(self._unsent[-1], parting)
        if parting is Parting.END:
            if self._hanging_up is None:
                self._hanging_up = HangingUp(self.socket)
            self._hanging_up.sending()
            self.flush()
            try:
                self._keepGoing = not self._hanging_up.over()
            except OSError:
                self.gone = True
                raise
            return
        self.flush()
        if self._leaving:
            self._keepGoing = False  # what had crossed is answered
        self._leaving = True

    def _cleanupSocket(self) -> None:  # noqa: N802  # flup's name
        """flup closes from within a request; here AcceptLoop closes, once serve() has answered False."""


def _ends_stdin(record: Record) -> bool:
    return record.type == RecordType.STDIN and not record.content
