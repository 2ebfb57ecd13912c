"""What a ping asks, and what counts as a good answer: a FastCGI request, or an HTTP one. No I/O.

Either is sent in two parts, so that a process can be found out that has the first in hand and cannot answer yet. What
comes back is whatever the program likes to send; nothing of it is kept but the status, and there is an end to it all.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from fcgimgr.config.settings import PoolSettings, ProcessSettings
from fcgimgr.fastcgi.client import Request, Response
from fcgimgr.fastcgi.records import ProtocolError, ProtocolStatus

PARAMS: Final = {
    "GATEWAY_INTERFACE": "CGI/1.1",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SERVER_SOFTWARE": "fcgimgr",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "REMOTE_ADDR": "127.0.0.1",
    "REQUEST_METHOD": "GET",
    "REQUEST_URI": "/fcgimgr-ping",
    "SCRIPT_NAME": "/fcgimgr-ping",
    "SCRIPT_FILENAME": "/fcgimgr-ping",
    "DOCUMENT_URI": "/fcgimgr-ping",
    "QUERY_STRING": "",
    "CONTENT_LENGTH": "",
    "CONTENT_TYPE": "",
    "HTTP_USER_AGENT": "fcgimgr-ping",
    "FCGIMGR_PING": "1",
}

LONGEST_ANSWER: Final = 1024 * 1024  # bytes of a body that is thrown away
LONGEST_HEAD: Final = 64 * 1024  # bytes of an HTTP answer's head, with those of interim answers before it

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")


class OverloadedError(ProtocolError):
    """A good answer it is not, but neither a fault of the code."""


class Question(Protocol):
    """One request and its answer. `decided`: it is known what the answer is worth; `complete`: nothing more comes."""

    @property
    def decided(self) -> bool: ...

    @property
    def complete(self) -> bool: ...

    def opening(self) -> bytes:
        """The request but for its end."""

    def closing(self) -> bytes:
        """Its end."""

    def receive(self, incoming: bytes) -> None:
        """What has come; nothing (b"") is the end of all. ProtocolError: that is no answer."""

    def judge(self) -> None:
        """Once it is decided: ProtocolError says why the answer is not good."""


def question(settings: ProcessSettings) -> Question:
    """What a process of a pool with these settings is to be asked."""
    path = settings.ready_path if isinstance(settings, PoolSettings) else None
    return FastCGIQuestion() if path is None else HttpQuestion(path)


class FastCGIQuestion:
    """Any complete answer below 500 will do: an application need not know of pings, and a 404 is an answer."""

    def __init__(self) -> None:
        self._request = Request(PARAMS, max_body=LONGEST_ANSWER)
        self._response: Response | None = None

    @property
    def decided(self) -> bool:
        return self._response is not None

    complete = decided

    def opening(self) -> bytes:
        return self._request.opening()

    def closing(self) -> bytes:
        return self._request.closing()

    def receive(self, incoming: bytes) -> None:
        self._response = self._request.receive(incoming) if incoming else self._request.eof()

    def judge(self) -> None:
        response = self._response
        assert response is not None
        if response.protocol_status == ProtocolStatus.OVERLOADED:
            raise OverloadedError("declined the request: it has enough of them (FCGI_OVERLOADED)")
        if response.protocol_status != 0 or response.status is None or response.status >= 500:
            raise ProtocolError(f"answered with status {response.status}, FastCGI status {response.protocol_status}")


class HttpQuestion:
    """A GET for a path that was named for this, so only a status from 200 to 399 will do.

    The status decides; what follows is read for politeness, as far as its end can be told.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._head = b""  # as far as it has come
        self._headers = 0  # bytes of heads that have been read
        self._status: int | None = None
        self._left: int | None = None  # bytes of the body that are still to come; None: until the end of all
        self._body = 0
        self._tail = b""  # the last bytes, where the body comes in chunks
        self._chunked = False
        self._ended = False

    @property
    def decided(self) -> bool:
        return self._status is not None

    @property
    def complete(self) -> bool:
        chunks_over = self._chunked and self._tail.endswith(b"0\r\n\r\n")
        return self._ended or self._left == 0 or chunks_over or self._body > LONGEST_ANSWER

    def opening(self) -> bytes:
        head = f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: fcgimgr-ping\r\nAccept: */*\r\n"
        return f"{head}Connection: close\r\n".encode("ascii")

    def closing(self) -> bytes:
        return b"\r\n"

    def receive(self, incoming: bytes) -> None:
        if not incoming:
            self._ended = True
            if not self.decided:
                raise ProtocolError(f"closed the connection before it had answered GET {self._path}")
        elif self.decided:
            self._take_body(incoming)
        else:
            self._take_head(incoming)

    def _take_head(self, incoming: bytes) -> None:
        self._head += incoming
        while (end := _HEAD_END.search(self._head)) is not None:
            head, rest = self._head[: end.start()], self._head[end.end() :]
            status = self._status_of(head)
            if status < 200 and status != 101:  # an interim answer: the real one follows
                self._headers += end.end()
                self._head = rest
                continue
            self._status, self._head = status, b""
            self._expect_body(status, head)
            self._take_body(rest)
            return
        if not b"HTTP/1.".startswith(self._head[:7]):
            self._status_of(self._head)
        if self._headers + len(self._head) > LONGEST_HEAD:
            raise ProtocolError(f"the head of its answer is longer than {LONGEST_HEAD} bytes")

    def _status_of(self, head: bytes) -> int:
        line = head.partition(b"\n")[0].rstrip(b"\r")
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"answered with no HTTP: {line[:40]!r}")
        return int(match[1])

    def _expect_body(self, status: int, head: bytes) -> None:
        for line in head.split(b"\n")[1:]:
            name, _, value = line.partition(b":")
            name, value = name.strip().lower(), value.strip().lower()
            if name == b"transfer-encoding" and value.endswith(b"chunked"):
                self._chunked = True
            elif name == b"content-length" and value.isdigit() and len(value) < 19:
                self._left = int(value)
        if self._chunked:
            self._left = None
        if status in (204, 304):
            self._left = 0

    def _take_body(self, incoming: bytes) -> None:
        self._body += len(incoming)
        if self._left is not None:
            self._left = max(0, self._left - len(incoming))
        self._tail = (self._tail + incoming)[-5:]

    def judge(self) -> None:
        assert self._status is not None
        if not 200 <= self._status < 400:
            raise ProtocolError(f"GET {self._path} was answered with status {self._status}")
