"""One request through a WSGI application (PEP 3333): start_response, write, the response's blocks, close.

An `Exchange` makes the records of the answer and hands them to `wire`, its connection. The whole of a small answer
goes out in one piece, head, body and END_REQUEST together: from an application that returns a list or a tuple, and from
one that declares its Content-Length as soon as it has yielded that much.
A block of all others is sent as it is yielded.

The application must not be able to break the response's form: a line feed in a header, a status that is none or a body
shorter than its Content-Length is refused, by an exception where it did it. A longer one is cut. (An empty one whose
header names a file that the web server is to send in its place has that file's length.)
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Final, Protocol

from fcgimgr.fastcgi.records import FULL_CONTENT, VERSION, RecordType, encode_record, end_request
from fcgimgr.worker.asking import asked
from fcgimgr.worker.saying import say

#: RFC 9110 section 5.6.2: what a field name may hold.
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BREAK: Final = re.compile(r"[\r\n\0]")
#: One of 1xx is no answer: the client would go on waiting for that (RFC 9110 section 15.2).
_STATUS: Final = re.compile(r"[2-9][0-9][0-9] [^\x00-\x1f\x7f]*")
#: In a head as it is sent: a header that has the web server send a file, or the answer of another server, in place of
#: this one's body: X-Accel-Redirect of nginx, the others of lighttpd, Apache (mod_xsendfile), Caddy, h2o.
_SENT_BY_ANOTHER: Final = re.compile(
    r"^(?:X-Accel-Redirect|X-Sendfile2?|X-LIGHTTPD-send-(?:temp)?file|X-Reproxy-URL):", re.IGNORECASE | re.MULTILINE
)
#: Bytes of a regular file that are read at once, a whole number of records.
FILE_BLOCK: Final = 4 * FULL_CONTENT
#: Buffers for one sendmsg; the kernel takes 1024 (IOV_MAX).
_BUFFERS: Final = 128
#: Bytes of a block below which it is copied behind the head, into one record.
_COPIED: Final = 16384

_RECORD: Final = struct.Struct(">BBHHxx")
_STDOUT: Final = int(RecordType.STDOUT)


class Wire(Protocol):
    """Where an answer goes. All may raise OSError: the client has gone."""

    def send(self, message: bytes, last: bool, over: bool) -> None:
        """Send it all. `last`: the request ends with it. `over`: and the application does nothing more for it, which
        may take time."""

    def send_parts(self, parts: list[bytes | memoryview], last: bool, over: bool) -> None: ...

    def check(self) -> None:
        """Raises OSError when the client is known to have gone."""


class FileWrapper:
    """`wsgi.file_wrapper`: a regular file in large blocks, whatever `block` the application thought best.

    A pipe, a socket or a program's output would stall until so much is there: of them each read takes what has come,
    or, where the file has no `read1` of its own, `block` bytes, as the application wants it. PEP 3333 promises `read`
    alone: every io.BufferedIOBase has a `read1`, and as a rule one that raises UnsupportedOperation.

    It is its own iterator, and can be moved as far as the file can: so a framework finds a range (Werkzeug does), which
    else it would have to look for from the file's beginning.
    """

    def __init__(self, file: BinaryIO, block: int = 8192) -> None:
        self._file = file
        self._block = block
        self._read: Callable[[], bytes] | None = None
        for name in ("close", "seekable", "seek", "tell"):
            if hasattr(file, name):
                setattr(self, name, getattr(file, name))

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._read is None:
            self._read = self._reading()
        if block := self._read():
            return block
        raise StopIteration

    def _reading(self) -> Callable[[], bytes]:
        file = self._file
        if _is_regular(file):
            return lambda: file.read(FILE_BLOCK)
        if hasattr(file, "read1"):
            return self._read_what_has_come
        return lambda: file.read(self._block)

    def _read_what_has_come(self) -> bytes:
        try:
            block: bytes = self._file.read1(FULL_CONTENT)  # type: ignore[attr-defined]
        except io.UnsupportedOperation:
            self._read = lambda: self._file.read(self._block)
            return self._read()
        return block


def _is_regular(file: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except Exception:  # noqa: BLE001  # anything with a `read` may be wrapped, and its fileno may be anything
        return False


class Exchange:
    """`asks_for_head`: a HEAD request. `run` may be called once.

    `bodiless`: the request or the status has no body, and none is sent; `status`: 0 before start_response; `sent`:
    bytes of the body; `head_sent`: whether anything has been sent; `ended`: whether all of it has.
    """

    __slots__ = ("_asks_for_head", "_head", "_id", "_left", "_wire", "bodiless", "ended", "head_sent", "sent", "status")

    def __init__(self, wire: Wire, request_id: int, asks_for_head: bool) -> None:
        self._wire = wire
        self._id = request_id
        self._head = ""
        self._left = -1  # bytes that the declared length still promises; -1: none is declared
        self._asks_for_head = self.bodiless = asks_for_head
        self.status = 0
        self.sent = 0
        self.head_sent = False
        self.ended = False

    def run(self, application: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> None:
        """Raises what the application raises, and OSError from the wire."""
        result = application(environ, self.start_response)
        kind = type(result)
        if (kind is list or kind is tuple) and self._head and not self.head_sent:  # these have no close()
            longer = self._answer(result[0] if len(result) == 1 else _joined(result))  # type: ignore[index,arg-type]
        else:
            try:
                longer = self._send_all(result)
            finally:
                close = getattr(result, "close", None)
                if close is not None:
                    close()
        if longer:
            with contextlib.suppress(Exception):  # the application may have put anything into its environ
                after = f"after {self.sent} bytes, at {asked(environ)}"
                say(f"a body was longer than its Content-Length, and was cut {after}")

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """As PEP 3333 has it. Raises TypeError and ValueError for what is no response header."""
        if exc_info is not None:
            try:
                if self.head_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # its traceback holds this frame
        elif self._head:
            raise ValueError("start_response was called twice without exc_info")
        number, head = _known_statuses.get(status) or _status_line(status)
        left = -1
        for field in headers:
            try:
                known = _known_fields.get(field)
            except TypeError:  # a list, say
                known = None
            line, length = known or _field_line(field)
            head += line
            if length >= 0:
                if left >= 0:
                    raise ValueError(f"two headers say the Content-Length: {left} and {length}")
                left = length
        self.status = number
        if number == 204 or number == 304:
            self.bodiless = True
        elif self._head:  # which is taken back
            self.bodiless = self._asks_for_head
        self._left = left
        self._head = head
        return self.write

    def write(self, block: bytes) -> None:
        """Send a block of the body now, after the head if that is still to be sent."""
        if not self._head:
            raise ValueError("the application gave a body before it called start_response")
        if not isinstance(block, bytes):
            raise _no_block(block)
        if self.bodiless:
            return  # the head goes with the end
        if self.head_sent and not block:
            return
        last = False
        if self._left >= 0:
            if len(block) > self._left:
                raise ValueError(
                    f"the body is longer than its Content-Length: {len(block)} bytes came where {self._left} were left"
                )
            self._left -= len(block)
            last = self._left == 0
        elif self.ended:
            raise ValueError(f"the application gave {len(block)} more bytes after the end of its response")
        self._send(block, last)

    def fail(self, page: bytes) -> None:
        """In place of an answer of which nothing has been sent: status 500 and this page."""
        self._head = "Status: 500 Internal Server Error\r\nContent-Type: text/plain\r\n"
        self.bodiless = self._asks_for_head
        self.status = 500
        self._left = -1
        self._answer(page)

    def _answer(self, body: bytes) -> bool:
        """All of the body at once, with which the application has done its part. Whether it was longer than declared,
        and was cut."""
        if not isinstance(body, bytes):
            raise _no_block(body)
        longer = False
        if self.bodiless:
            body = b""
        elif self._left < 0:
            self._head += f"Content-Length: {len(body)}\r\n"
        elif self._left != len(body):
            if self._left < len(body):
                body = body[: self._left]
                longer = True
            elif body or not _SENT_BY_ANOTHER.search(self._head):
                raise ValueError(f"the body has {len(body)} bytes, its Content-Length says {self._left}")
        self._send(body, True, True)
        return longer

    def _send_all(self, result: Iterable[bytes]) -> bool:
        """A block as it is yielded, to the declared length if there is one (PEP 3333 has it so): the client has all
        that it was promised. Whether there was more, by mistake: of a file a part may be chosen, and a log grows."""
        check = self._wire.check
        chosen = isinstance(result, FileWrapper)
        for block in result:
            if not block:
                if not self.ended:
                    check()  # whoever waits for something to say hears as well that nobody is there any more
                continue
            if self.ended:
                return not chosen
            if self.head_sent:
                check()
            if self._left >= 0 and not self.bodiless and isinstance(block, bytes) and len(block) > self._left:
                self.write(block[: self._left])
                return not chosen
            self.write(block)
            if self.bodiless or (chosen and self.ended):
                break
        if not self.ended:
            self._finish()
        return False

    def _finish(self) -> None:
        """The application has yielded all that it had."""
        if not self._head:
            raise ValueError("the application did not call start_response")
        if self._left > 0 and not self.bodiless and (self.sent or not _SENT_BY_ANOTHER.search(self._head)):
            raise ValueError(f"the body ended {self._left} bytes before its Content-Length")
        self._send(b"", True)

    def _send(self, block: bytes, last: bool, over: bool = False) -> None:
        request_id = self._id
        tail = (_TAIL_1 if request_id == 1 else _tail(request_id)) if last else b""
        head = b""
        if not self.head_sent:
            try:
                head = f"{self._head}\r\n".encode("latin-1")
            except UnicodeEncodeError as error:
                raise _not_latin(error.object, error.start) from None
            if len(head) > FULL_CONTENT:
                raise ValueError(f"the response's header is longer than {FULL_CONTENT} bytes")
            self.head_sent = True
        size = len(block)
        length = len(head) + size
        self.sent += size
        if length <= FULL_CONTENT and (size < _COPIED or not head):
            record = _RECORD.pack(VERSION, _STDOUT, request_id, length) if length else b""
            self._wire.send(record + head + block + tail, last, over)
        else:
            self._send_records(head, block, tail, over)
        self.ended = last

    def _send_records(self, head: bytes, block: bytes, tail: bytes, over: bool) -> None:
        """What is more than one record. The block is not copied. Without a `tail` the request goes on."""
        request_id = self._id
        parts: list[bytes | memoryview] = []
        if head:
            parts += (_RECORD.pack(VERSION, _STDOUT, request_id, len(head)), head)
        view = memoryview(block)
        for at in range(0, len(block), FULL_CONTENT):
            piece = view[at : at + FULL_CONTENT]
            parts += (_RECORD.pack(VERSION, _STDOUT, request_id, len(piece)), piece)
            if len(parts) >= _BUFFERS:
                self._wire.send_parts(parts, False, False)
                parts = []
        if tail:
            parts.append(tail)
        if parts:
            self._wire.send_parts(parts, bool(tail), over)


def _tail(request_id: int) -> bytes:
    return encode_record(RecordType.STDOUT, request_id) + end_request(request_id)


_TAIL_1: Final = _tail(1)

#: What has been looked at before and is well: a status, with its number and its line; a header, with its line and the
#: length of the body, or -1 where it does not say that. An application says the same of most of its answers.
_known_statuses: dict[str, tuple[int, str]] = {}
_known_fields: dict[tuple[str, str], tuple[str, int]] = {}
#: Bounded, for it may make up new ones without end: then it is all begun anew.
_MOST_KNOWN: Final = 300
#: Characters of a header beyond which it is not kept in mind, nor is a cookie, which nobody else gets.
_LONGEST_KNOWN: Final = 500


def _joined(blocks: Sequence[bytes]) -> bytes:
    try:
        return b"".join(blocks)
    except TypeError:
        raise _no_block(next(block for block in blocks if not isinstance(block, bytes))) from None


def _no_block(block: object) -> TypeError:
    return TypeError(f"a block of the response is bytes, not {type(block).__name__}")


def _not_latin(head: str, at: int) -> ValueError:
    """`head` holds there what none can (PEP 3333)."""
    line = head[head.rfind("\n", 0, at) + 1 :]
    where = "the status" if line == head else f"the response header {line.partition(':')[0]}"
    return ValueError(f"{where} holds {head[at]!r}, which is not in Latin-1: encode it, as RFC 8187 or a URL has it")


def _field_line(field: tuple[str, str]) -> tuple[str, int]:
    """The line of this header, as `_known_fields` has it. Raises TypeError and ValueError for what is none."""
    if not isinstance(field, (tuple, list)) or len(field) != 2:
        raise TypeError(f"a response header is a pair of name and value, not {field!r}")
    name, value = field
    if not isinstance(name, str):
        raise TypeError(f"the name of a response header is a str, not {name!r}")
    if not isinstance(value, str):
        raise TypeError(f"the value of the response header {name} is a str, not {value!r}")
    if _BREAK.search(name) or _BREAK.search(value):
        raise ValueError(f"a line break or NUL in the response's header: {f'{name}: {value}'!r}")
    lower = name.lower()
    if not _FIELD_NAME.fullmatch(name) or lower == "status":
        raise ValueError(f"{name!r} is not the name of a response header")
    length = -1
    if lower == "content-length":
        if not (value.isascii() and value.isdigit()):
            raise ValueError(f"the Content-Length {value!r} is not a number")
        length = int(value)
    found = f"{name}: {value}\r\n", length
    # What is no plain tuple of texts may have a behaviour of its own.
    is_plain = type(field) is tuple and type(name) is str and type(value) is str
    if is_plain and lower != "set-cookie" and len(found[0]) <= _LONGEST_KNOWN:
        _keep_in_mind(_known_fields, field, found)
    return found


def _status_line(status: str) -> tuple[int, str]:
    if isinstance(status, str) and _BREAK.search(status):
        raise ValueError(f"a line break or NUL in the response's header: {status!r}")
    if not isinstance(status, str) or not _STATUS.fullmatch(status):
        raise ValueError(
            f"{status!r} is not a status: write three digits from 200 on, a space and a reason, such as '200 OK'"
        )
    found = int(status[:3]), f"Status: {status}\r\n"
    if type(status) is str and len(status) <= _LONGEST_KNOWN:
        _keep_in_mind(_known_statuses, status, found)
    return found


def _keep_in_mind(known: dict[Any, Any], key: object, found: object) -> None:
    if len(known) >= _MOST_KNOWN:
        known.clear()
    known[key] = found
