"""A FastCGI request, from the web server's side: what to send, and the answer to what comes back.

`Request` does no I/O, so that the manager can ask a worker from its own loop:

    request = Request({"REQUEST_METHOD": "GET", "SCRIPT_FILENAME": "/srv/app.php"})
    send(request.to_send())
    while (response := request.receive(recv())) is None: ...      # and request.eof() at the end of file

`fetch` is the same over a socket, blocking, for the command line.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from fcgimgr.fastcgi.records import (
    ProtocolError,
    RecordType,
    Role,
    begin_request,
    encode_pairs,
    encode_record,
    encode_stream,
)
from fcgimgr.fastcgi.response import Body, Event, Head, ResponseReader, Stderr
from fcgimgr.fastcgi.transport import connect, converse

MAX_BODY: Final = 64 << 20
#: Stderr is for a person to read: what comes above this is dropped, which is no reason to fail the request.
MAX_STDERR: Final = 64 << 10


class Response(NamedTuple):
    """A complete answer. `status` is None when the server ended the request without any output (overloaded, say)."""

    status: int | None
    headers: tuple[tuple[str, str], ...]
    body: bytes
    stderr: bytes
    app_status: int
    protocol_status: int

    def header(self, name: str) -> str | None:
        """The first header of that name, in any case."""
        return next((value for known, value in self.headers if known.lower() == name.lower()), None)


class Request:
    """One request with id 1 on a connection of its own (or a kept one), and its answer.

    `params` are the CGI variables, text in UTF-8 (undecodable bytes as surrogate escapes); `stdin` is the body.
    An answer of more than `max_body` bytes is a ProtocolError.
    """

    def __init__(
        self,
        params: Mapping[str, str],
        stdin: bytes = b"",
        *,
        role: int = Role.RESPONDER,
        keep_connection: bool = False,
        max_body: int = MAX_BODY,
    ) -> None:
        self._params = params
        self._stdin = stdin
        self._role = role
        self._keep_connection = keep_connection
        self._max_body = max_body
        self._reader = ResponseReader()
        self._head: Head | None = None
        self._body = bytearray()
        self._stderr = bytearray()
        self.response: Response | None = None

    def to_send(self) -> bytes:
        """The whole request."""
        return self.opening() + self.closing()

    def opening(self) -> bytes:
        """BEGIN_REQUEST and the parameters, without the empty record that ends them: the server knows of the
        request and does not yet run it."""
        pairs = encode_pairs(
            (name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape"))
            for name, value in self._params.items()
        )
        return begin_request(1, self._role, keep_connection=self._keep_connection) + encode_stream(
            RecordType.PARAMS, 1, pairs
        )

    def closing(self) -> bytes:
        """The end of the parameters, and all of stdin."""
        return (
            encode_record(RecordType.PARAMS, 1)
            + encode_stream(RecordType.STDIN, 1, self._stdin)
            + encode_record(RecordType.STDIN, 1)
        )

    def receive(self, incoming: bytes) -> Response | None:
        """Take what the server sent; the Response once it is complete. Raises ProtocolError."""
        for event in self._reader.receive(incoming):
            self.take(event)
        return self.response

    def eof(self) -> Response:
        """The server has closed the connection: the Response, or ProtocolError when it was not complete."""
        self._reader.eof()
        assert self.response is not None
        return self.response

    def take(self, event: Event) -> None:
        """One event of the answer; `receive` does this for all."""
        if isinstance(event, Body):
            if len(self._body) + len(event.content) > self._max_body:
                raise ProtocolError(f"the response is longer than {self._max_body} bytes")
            self._body += event.content
        elif isinstance(event, Stderr):
            self._stderr += event.content[: MAX_STDERR - len(self._stderr)]
        elif isinstance(event, Head):
            self._head = event
        else:
            status, headers = self._head if self._head is not None else (None, ())
            self.response = Response(
                status, headers, bytes(self._body), bytes(self._stderr), event.app_status, event.protocol_status
            )


def fetch(
    address: str, params: Mapping[str, str], stdin: bytes = b"", timeout: float = 30.0, *, max_body: int = MAX_BODY
) -> Response:
    """Ask the FastCGI server at `address` (forms: `transport.connect`) and wait for the whole answer.

    `timeout`: seconds for all of it. Raises FastCGIError, whose text says what happened and what to look at.
    """
    deadline = time.monotonic() + timeout
    request = Request(params, stdin, max_body=max_body)
    with connect(address, timeout=timeout) as connection:
        for event in converse(connection, [request.to_send()], ResponseReader(), timeout=timeout, deadline=deadline):
            request.take(event)
    assert request.response is not None  # converse ends with End or raises
    return request.response
