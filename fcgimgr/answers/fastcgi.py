"""FastCGI as it goes by: which requests have begun, and which have ended, in one direction of a connection.

Only the headers of the records are read. Bytes may come in any split; what is no FastCGI is `lost`, and nothing raises.
"""

from __future__ import annotations

import copy
import struct
from typing import Final, Self

from fcgimgr.fastcgi.records import HEADER_LENGTH, VERSION, RecordType

_HEADER: Final = struct.Struct(">BBHHB")
_ENDLESS: Final = 1 << 62
_FROM_SERVER: Final = frozenset(
    {
        RecordType.END_REQUEST,
        RecordType.STDOUT,
        RecordType.STDERR,
        RecordType.GET_VALUES_RESULT,
        RecordType.UNKNOWN_TYPE,
    }
)
_FROM_CLIENT: Final = frozenset(
    {
        RecordType.BEGIN_REQUEST,
        RecordType.ABORT_REQUEST,
        RecordType.PARAMS,
        RecordType.STDIN,
        RecordType.DATA,
        RecordType.GET_VALUES,
    }
)


class Records:
    """The records in one direction. begun, ended: the ids of the requests that a whole record has named so."""

    __slots__ = ("_answers", "_ending", "_header", "_left", "begun", "ended", "is_lost")

    def __init__(self, *, answers: bool) -> None:
        self.begun: frozenset[int] = frozenset()
        self.ended: frozenset[int] = frozenset()
        self.is_lost = False
        self._answers = answers
        self._header = b""  # as far as it has come
        self._left = 0  # of the record under way
        self._ending: int | None = None  # the request that it ends

    def copy(self) -> Self:
        return copy.copy(self)

    @property
    def is_between(self) -> bool:
        """Whether no record is under way, and that is known."""
        return not (self.is_lost or self._left or self._header)

    @property
    def opaque(self) -> int:
        """So many of the next bytes may be anything: they can be skipped without being looked at."""
        return _ENDLESS if self.is_lost else self._left

    def skip(self, count: int) -> None:
        """As many bytes go by that nobody has seen."""
        if count > self.opaque:
            self.lose()
        elif not self.is_lost:
            self._left -= count
            self._end_if_whole()

    def lose(self) -> None:
        self.is_lost, self._header, self._left, self._ending = True, b"", 0, None

    def begin(self) -> None:
        """What comes next is the beginning of a record, whatever was before."""
        self.is_lost, self._header, self._left, self._ending = False, b"", 0, None

    def feed(self, seen: bytes) -> None:
        """These bytes go by."""
        while seen:
            if opaque := min(self.opaque, len(seen)):
                self.skip(opaque)
                seen = seen[opaque:]
            else:
                missing = HEADER_LENGTH - len(self._header)
                self._header += seen[:missing]
                seen = seen[missing:]
                if len(self._header) == HEADER_LENGTH:
                    self._understand(*_HEADER.unpack_from(self._header))

    def _understand(self, version: int, kind: int, request_id: int, length: int, padding: int) -> None:
        self._header = b""
        if version != VERSION or kind not in (_FROM_SERVER if self._answers else _FROM_CLIENT):
            self.lose()
            return
        self._left = length + padding
        if kind == RecordType.BEGIN_REQUEST:
            self.begun |= {request_id}
        elif kind == RecordType.END_REQUEST:
            self._ending = request_id
        self._end_if_whole()

    def _end_if_whole(self) -> None:
        if not self._left and self._ending is not None:
            self.ended |= {self._ending}
            self._ending = None


def begins_request(seen: bytes) -> bool:
    """Whether these bytes, the first of what was read at once, look like a BEGIN_REQUEST record."""
    return seen[:2] == b"\x01\x01" and seen[4:6] == b"\x00\x08"
