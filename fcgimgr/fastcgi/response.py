"""A FastCGI server's answer to one request: records in, events out; without I/O, in bounded memory.

What an application writes to STDOUT is a CGI response: header lines, an empty line, the body. `ResponseReader` finds
these across any cut into records and reports them as they come, so that a front can pass on a body of any length.

    Head(status, headers)   once, before any Body; status from `Status:`, 302 with a bare `Location:`, else 200
    Body(content)           any number
    Stderr(content)         any number, at any time
    End(app_status, protocol_status)   last

Records of other requests and of unknown types are passed over, as nginx's peers differ in what they send; a version
other than 1, a header that is no header, and an end of file before END_REQUEST are ProtocolErrors.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Union

from fcgimgr.fastcgi.records import Ending, ProtocolError, RecordReader, RecordType, decode_end_request

MAX_HEAD: Final = 64 * 1024

#: RFC 9110 section 5.6.2: what a field name may hold.
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: RFC 9110 section 5.5: no control character but the tab in a value.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS: Final = re.compile(r"([1-9][0-9][0-9])(?: .*)?")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")


class Head(NamedTuple):
    """`headers` in the order and spelling of the application, without `Status`; text is Latin-1, as in WSGI."""

    status: int
    headers: tuple[tuple[str, str], ...]


class Body(NamedTuple):
    content: bytes


class Stderr(NamedTuple):
    content: bytes


class End(NamedTuple):
    app_status: int
    protocol_status: int


#: Written with Union because it is evaluated when the module loads, and Python 3.9 has no `|` for types.
Event = Union[Head, Body, Stderr, End]  # noqa: UP007


class ResponseReader:
    """Bytes from the server → events of the answer to request `request_id`. Holds at most a head of `max_head` bytes.

    After a ProtocolError it stays failed: every later `receive` raises the same error.
    """

    def __init__(self, request_id: int = 1, *, max_head: int = MAX_HEAD) -> None:
        self._request_id = request_id
        self._max_head = max_head
        self._records = RecordReader()
        self._head: bytearray | None = bytearray()  # None once it is parsed
        self._failure: ProtocolError | None = None
        self.ended = False

    def receive(self, incoming: bytes) -> list[Event]:
        """The events that `incoming` completes. What comes after END_REQUEST is passed over."""
        if self._failure is not None:
            raise self._failure
        events: list[Event] = []
        try:
            for kind, request_id, content in self._records.feed(incoming):
                if request_id != self._request_id or self.ended:
                    continue
                if kind == RecordType.STDOUT:
                    events += self._output(content)
                elif kind == RecordType.STDERR and content:
                    events.append(Stderr(content))
                elif kind == RecordType.END_REQUEST:
                    events.append(self._end(decode_end_request(content)))
        except ProtocolError as error:
            self._failure = error
            raise
        return events

    def eof(self) -> None:
        """The server has closed the connection. Raises ProtocolError when the answer was not complete."""
        if self.ended:
            return
        if self._head is None:
            where = "in the middle of its response"
        elif self._head:
            where = "in the middle of its response header"
        else:
            where = "without a response"
        self._failure = ProtocolError(f"the FastCGI server closed the connection {where}")
        raise self._failure

    def _output(self, content: bytes) -> list[Event]:
        if self._head is None:
            return [Body(content)] if content else []
        # The end of the head may lie across two records: look again at the last three bytes of the earlier ones.
        seen = max(0, len(self._head) - 3)
        self._head += content
        if self._head.startswith((b"\n", b"\r\n")):
            raise ProtocolError("the response begins with an empty line instead of a header")
        end = _HEAD_END.search(self._head, seen)
        if (end.start() if end else len(self._head)) > self._max_head:
            raise ProtocolError(f"the response header is longer than {self._max_head} bytes")
        if end is None:
            return []
        head = parse_head(bytes(self._head[: end.start()]))
        rest = bytes(self._head[end.end() :])
        self._head = None
        return [head, Body(rest)] if rest else [head]

    def _end(self, ending: Ending) -> End:
        # Nothing at all is an answer too (OVERLOADED has no other form); half a header is not.
        if self._head:
            raise ProtocolError("the response ended in the middle of its header")
        self.ended = True
        return End(ending.app_status, ending.protocol_status)


def parse_head(block: bytes) -> Head:
    """The lines before the empty one (RFC 3875 section 6.3), ended by LF or CR LF. Raises ProtocolError."""
    status: int | None = None
    headers = []
    for line in block.decode("latin-1").split("\n"):
        field = line[:-1] if line.endswith("\r") else line
        name, colon, value = field.partition(":")
        value = value.strip(" \t")
        if not colon or not _FIELD_NAME.fullmatch(name):
            raise ProtocolError(f"the response header holds a line that is no header: {_shown(field)}")
        if _CONTROL.search(value):
            raise ProtocolError(f"the response header {name} holds a control character: {_shown(value)}")
        if name.lower() != "status":
            headers.append((name, value))
            continue
        matched = _STATUS.fullmatch(value)
        if matched is None:
            raise ProtocolError(f"the response has no valid status: {_shown(value)}")
        status = int(matched.group(1))
    if status is None:
        status = 302 if any(name.lower() == "location" for name, _ in headers) else 200
    return Head(status, tuple(headers))


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:60] + "…")
