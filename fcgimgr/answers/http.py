"""HTTP/1.x as it goes by: where one message ends and the next begins, in one direction of a connection (RFC 9112).

Only the framing is read: the head, the length of the body or its chunks, and of an answer whether it has a body at all.
Bytes may come in any split. What is no HTTP/1 is `lost`, for good, until whoever feeds it knows where a message begins.
Nothing raises: the bytes are other people's.
"""

from __future__ import annotations

import copy
import re
from enum import Enum, auto
from typing import Final, Self

_ENDLESS: Final = 1 << 62
#: The longest head, or line of a chunk, that is read on: servers allow some 64 KB.
LONGEST_HEAD: Final = 1 << 18

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: |\r?\n)")
_REQUEST: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) [^\r\n]+ HTTP/1\.[01]\r?\n")
# What stands before a head that goes on in the next bytes.
_PLAUSIBLE: Final = {
    True: re.compile(rb"(?:H|HT|HTT|HTTP|HTTP/|HTTP/1|HTTP/1\.[^\n]*)\Z", re.DOTALL),
    False: re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}(?: [^\r\n]*\r?)?\Z"),
}
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_NO_BODY: Final = frozenset({204, 304})
_SWITCHING: Final = 101


class At(Enum):
    """Where in a message the next byte stands."""

    BEGINNING = auto()  # of the next message, if there is one
    HEAD = auto()
    BODY = auto()  # of a known length
    CHUNK_SIZE = auto()
    CHUNK = auto()  # its bytes, and the end of line behind them
    TRAILER = auto()
    REST = auto()  # until the connection is closed
    UPGRADED = auto()  # another protocol from here on (101)
    LOST = auto()


class Messages:
    """The messages in one direction.

    `asked`: by each request of which the head has come, whether it was a HEAD; the tracker of the answers is given that
    of the requests, and takes from it as answers begin. `is_sure`: whether the answer under way had one to take.
    """

    __slots__ = ("_answers", "_left", "_line", "asked", "at", "ended", "is_sure")

    def __init__(self, *, answers: bool, asked: tuple[bool, ...] = ()) -> None:
        self.at = At.BEGINNING
        self.ended = 0
        self.asked = asked
        self.is_sure = False
        self._answers = answers
        self._line = b""  # of the head or of a line, as far as it has come
        self._left = 0

    def copy(self) -> Self:
        return copy.copy(self)

    @property
    def is_between(self) -> bool:
        """Whether no message is under way, and that is known."""
        return self.at is At.BEGINNING

    @property
    def opaque(self) -> int:
        """So many of the next bytes may be anything: they can be skipped without being looked at."""
        if self.at in {At.REST, At.UPGRADED, At.LOST}:
            return _ENDLESS
        return self._left if self.at in {At.BODY, At.CHUNK} else 0

    def skip(self, count: int) -> None:
        """As many bytes go by that nobody has seen."""
        if count > self.opaque:
            self.lose()
        elif self.at in {At.BODY, At.CHUNK}:
            self._left -= count
            if not self._left and self.at is At.BODY:
                self._end()

    def lose(self) -> None:
        self.at, self._line = At.LOST, b""

    def begin(self) -> None:
        """What comes next is the beginning of a message, whatever was before."""
        self.at, self._line = At.BEGINNING, b""

    def feed(self, seen: bytes) -> None:
        """These bytes go by."""
        while seen:
            if opaque := min(self.opaque, len(seen)):
                self.skip(opaque)
                seen = seen[opaque:]
            elif self.at in {At.BEGINNING, At.HEAD}:
                seen = self._read_head(seen)
            elif self.at is At.CHUNK:
                seen = self._read_end_of_chunk(seen)
            else:
                seen = self._read_line(seen)

    def _read_head(self, seen: bytes) -> bytes:
        if self.at is At.BEGINNING:
            seen = seen.lstrip(b"\r\n")  # between two messages (RFC 9112, 2.2)
            if not seen:
                return b""
            self.at = At.HEAD
        before = len(self._line)
        self._line += seen
        end = _END_OF_HEAD.search(self._line, max(0, before - 3))
        if end is None:
            if len(self._line) > LONGEST_HEAD or not self._is_plausible():
                self.lose()
            return b""
        head, self._line = self._line[: end.end()], b""
        self._understand(head)
        return seen[end.end() - before :]

    def _is_plausible(self) -> bool:
        first, more, _ = self._line.partition(b"\n")
        if more:
            return (_STATUS if self._answers else _REQUEST).match(self._line) is not None
        return _PLAUSIBLE[self._answers].match(first) is not None

    def _understand(self, head: bytes) -> None:
        start = (_STATUS if self._answers else _REQUEST).match(head)
        if start is None:
            self.lose()
        elif not self._answers:
            self.asked += (start[1] == b"HEAD",)
            self._frame(_fields(head), endless=False)
        elif (status := int(start[1])) == _SWITCHING:
            self.at = At.UPGRADED
        elif status < 200:  # an interim answer: the answer is still to come
            self.at = At.BEGINNING
        else:
            self.is_sure = bool(self.asked)
            for_head, self.asked = self.asked[:1] == (True,), self.asked[1:]
            if for_head or status in _NO_BODY:
                self._end()
            else:
                self._frame(_fields(head), endless=True)

    def _frame(self, fields: dict[bytes, bytes], *, endless: bool) -> None:
        """How long is the body behind this head (RFC 9112, 6.3)?"""
        coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
        if coding is not None:
            if coding.lower().rpartition(b",")[2].strip() == b"chunked":
                self.at = At.CHUNK_SIZE
            elif endless:
                self.at = At.REST
            else:
                self.lose()
        elif length is not None:
            if not length.isdigit() or len(length) > 18:
                self.lose()
            elif int(length):
                self.at, self._left = At.BODY, int(length)
            else:
                self._end()
        elif endless:
            self.at = At.REST
        else:
            self._end()

    def _read_line(self, seen: bytes) -> bytes:
        line, end, rest = seen.partition(b"\n")
        self._line += line
        if len(self._line) > LONGEST_HEAD:
            self.lose()
        elif end:
            whole, self._line = self._line.removesuffix(b"\r"), b""
            if self.at is At.CHUNK_SIZE:
                self._begin_chunk(whole.partition(b";")[0].strip())
            elif not whole:  # the end of the trailer
                self._end()
        return rest

    def _begin_chunk(self, size: bytes) -> None:
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
            self.lose()
        elif length := int(size, 16):
            self.at, self._left = At.CHUNK, length
        else:
            self.at = At.TRAILER

    def _read_end_of_chunk(self, seen: bytes) -> bytes:
        line, end, rest = seen.partition(b"\n")
        self._line += line
        if self._line not in {b"", b"\r"}:
            self.lose()
        elif end:
            self.at, self._line = At.CHUNK_SIZE, b""
        return rest

    def _end(self) -> None:
        self.at = At.BEGINNING
        self.ended += 1


def begins_request(seen: bytes) -> bool:
    """Whether these bytes, the first of what was read at once, look like the first of a request."""
    return re.match(rb"[A-Z]{3,16} [/*h]", seen) is not None


def _fields(head: bytes) -> dict[bytes, bytes]:
    """The fields that say how long a body is, their names in small letters; of several of a name, all joined."""
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\n")[1:]:
        name, colon, value = line.partition(b":")
        key = name.lower()
        if colon and key in {b"content-length", b"transfer-encoding"}:
            value = value.strip()
            if key not in found:
                found[key] = value
            elif key == b"transfer-encoding" or found[key] != value:  # twice the same length is one (RFC 9110, 8.6)
                found[key] += b"," + value
    return found
