"""An answer on one connection, and what becomes of the connection with it: what both engines have in common.

`Answering` is the Wire of an Exchange (exchange.py). An engine makes of it the connections that its loop is given: it
reads requests and their bodies in its own way, and says whether a connection goes on.

Exceptions of the application go to the process's stderr, and so to the pool's log, with the request that raised them;
so does what it writes to wsgi.errors. (In FCGI_STDERR it would be seen by the web server alone, cut into its error log;
nginx answers 502 when it fills the header buffer.) Once a part of the response is sent the connection is broken off:
with an orderly end a truncated page would look whole.
"""

from __future__ import annotations

import io
import select
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Final

from fcgimgr.fastcgi.records import ProtocolError, end_request
from fcgimgr.worker.accepting import KEPT_PATIENCE, AcceptLoop
from fcgimgr.worker.environ import finish, promises, template
from fcgimgr.worker.exchange import Exchange
from fcgimgr.worker.forked import end_child
from fcgimgr.worker.observing import Observer
from fcgimgr.worker.parting import GOODBYE, HangingUp, Parting, last_words, parting_from
from fcgimgr.worker.patched import poll
from fcgimgr.worker.patience import LINGER, ClientGoneError, TooSlowError, send_slowly, wait_for_body
from fcgimgr.worker.saying import say, say_failed

#: Bytes that are read from a connection at once, and how: nobody waits in a system call that reads or sends.
READ: Final = 65536
NOW: Final = socket.MSG_DONTWAIT
_ERROR_PAGE: Final = b"The application failed. What happened is in its log.\n"


def send_without_delay(listeners: Sequence[socket.socket]) -> None:
    """Have the sockets that are accepted do so, which inherit it. Else the second piece of an answer waits for the
    peer's delayed ACK."""
    for listener in listeners:
        if listener.family != socket.AF_UNIX:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Engine:
    """What all connections share. `values`: what GET_VALUES is answered with; `served` is told when each request was in
    hand, from one monotonic time to another."""

    loop: AcceptLoop

    def __init__(
        self,
        application: Callable[..., Iterable[bytes]],
        threads: int,
        observer: Observer | None,
        served: Callable[[float, float], None] = lambda begun, ended: None,
    ) -> None:
        self.application = application
        self.observer = observer
        self.served = served
        count = str(threads).encode()
        self.values = {b"FCGI_MAX_CONNS": count, b"FCGI_MAX_REQS": count, b"FCGI_MPXS_CONNS": b"0"}
        self.promised = promises(threads)
        self.environ = template(self.promised)


class Answering(ABC):
    """One accepted connection. `gone`: sending or receiving has failed. Its loop sets `hung_up` and `seen_off`."""

    __slots__ = (
        "_closing",
        "_engine",
        "_hanging_up",
        "_keep",
        "_leaving",
        "_parting",
        "_stalled",
        "_waited",
        "gone",
        "hung_up",
        "seen_off",
        "socket",
        "until",
    )

    def __init__(self, accepted: socket.socket, engine: Engine) -> None:
        self.socket = accepted
        self.until = 0.0
        self.hung_up = False
        self.seen_off = False
        self.gone = False
        self._engine = engine
        self._keep = False  # whether the web server wants to use the connection again
        self._parting: Parting | None = None  # how to end what the web server wants to keep; None: it has not wanted to
        self._hanging_up: HangingUp | None = None
        self._closing = False  # the last answer was the last one
        self._leaving = False  # the web server was told so, and is to close; what it has sent before gets its answer
        self._stalled = 0.0  # seconds for which this answer waited for the peer, less those that it has earned since
        self._waited = 0.0  # seconds for which an application was kept waiting for this body

    # --- what an engine says

    @abstractmethod
    def _goes_on(self) -> bool:
        """Decide whether this answer is the last one, and note it in `_closing`. To be asked with the end of each."""

    @abstractmethod
    def _is_aborted(self) -> bool:
        """Whether the web server has aborted the request in hand."""

    @abstractmethod
    def _hear(self) -> None:
        """Something has come while an answer is being sent. Raises ClientGoneError where it is an abort."""

    # --- the application

    def answer(self, environ: dict[str, Any], request_id: int, body: io.BytesIO | io.BufferedReader) -> bool:
        """Run the application on a request. Whether its answer is complete."""
        engine = self._engine
        self.gone = False  # of an upload that was aborted before
        self._stalled = self._waited = 0.0
        finish(environ, engine.promised)
        environ["wsgi.input"] = body
        if self._keep and self._parting is None:
            self._parting = parting_from(environ.get("SERVER_SOFTWARE", ""))
        exchange = Exchange(self, request_id, environ["REQUEST_METHOD"] == "HEAD")
        observer = engine.observer
        begun = monotonic()
        if observer is not None:
            observer.begin(environ, begun)
        whole = True
        try:
            exchange.run(engine.application, environ)
        except BaseException as error:  # noqa: BLE001  # an application may raise anything; it ends the request alone
            if engine.loop.forked:
                end_child(None if self.gone else error)  # gone: it returned, and found the connection closed
            whole = self._failed(exchange, environ, request_id, error)
        else:
            if engine.loop.forked:
                end_child(None)
        finally:
            ended = monotonic()
            if observer is not None and not observer.end(exchange.status, exchange.sent, ended):
                engine.loop.retire()
        engine.served(begun, ended)
        self.until = ended + KEPT_PATIENCE
        return whole

    def _failed(self, exchange: Exchange, environ: dict[str, Any], request_id: int, error: BaseException) -> bool:
        if exchange.ended:
            say_failed(environ, error)
            return True  # whoever has it need not know
        if self._is_aborted():
            self.gone = False
            self.send(end_request(request_id), True, True)
            return True
        if self.gone:
            return False  # reading or writing failed because the client has gone: no fault to report
        say_failed(environ, error)
        if exchange.head_sent:
            return False
        exchange.fail(_ERROR_PAGE)
        return True

    def _wait_for_body(self, come: int) -> None:
        """Wait for more of a body of which so many bytes are here."""
        try:
            self._waited = wait_for_body(self.socket, come, self._waited)
        except TooSlowError as error:
            raise self._given_up(str(error)) from None

    # --- what an Exchange calls

    def check(self) -> None:
        """Raises ClientGoneError when the client is known to have gone, or to want no answer any more."""
        polled = poll()
        try:
            polled.register(self.socket, select.POLLIN | select.POLLRDHUP)
        except ValueError:  # in a child that the application has forked
            raise self._lost("the connection is not this process's") from None
        events = polled.poll(0)
        if events:
            if events[0][1] & ~select.POLLIN:
                raise self._lost("the web server has closed the connection")
            self._hear()

    def send(self, message: bytes, last: bool, over: bool) -> None:
        flags = NOW
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
            self._hang_up(hanging_up)

    def send_parts(self, parts: list[bytes | memoryview], last: bool, over: bool) -> None:
        flags = NOW
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
            self._hang_up(hanging_up)

    def _send_rest(self, unsent: memoryview, flags: int) -> None:
        try:
            self._stalled = send_slowly(self.socket, unsent, flags, self._stalled)
        except TooSlowError as error:
            raise self._given_up(str(error)) from None
        except OSError:
            self.gone = True
            raise

    def _reply(self, wire: bytes) -> None:
        """What is not the answer. Nobody waits for a peer that asks and does not read: raises ProtocolError."""
        try:
            sent = self.socket.send(wire, NOW)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.gone = True
            raise
        if sent < len(wire):
            raise ProtocolError("the replies to management records are not read")

    # --- the end

    def is_promised(self) -> bool:
        """Whether the web server counts on the connection: it has heard that it may use it again, or is to close it."""
        return self._leaving or (self._keep and not self._closing)

    def see_off(self) -> bool:
        """What the web server has sent before gets its answer; and what it sends within a grace, where nothing can tell
        it that it should not."""
        if self._parting is not Parting.RECORD or self._leaving:
            return self._parting is not None
        self._leave()
        try:
            return self.socket.send(GOODBYE, NOW) == len(GOODBYE)
        except OSError:
            return False

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

    def _hang_up(self, hanging_up: HangingUp) -> None:
        try:
            self._closing = hanging_up.over()
        except OSError:
            self.gone = True
            raise

    def _leave(self) -> bool:
        """The last answer is given. Whether the web server closes the connection, or has something to say before."""
        if self._leaving or not self._keep or self._parting is Parting.END:
            return False
        self._leaving = True
        self.until = monotonic() + LINGER
        return True

    def _given_up(self, why: str) -> ClientGoneError:
        say(f"connection closed: {why}")
        return self._lost(why)

    def _lost(self, why: str) -> ClientGoneError:
        self.gone = True
        return ClientGoneError(why)
