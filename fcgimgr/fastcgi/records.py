"""FastCGI records: bytes in, records out, and the reverse. No socket, no clock, no role.

Everything on a FastCGI connection is a record: an 8-byte header (version, type, request id, content length, padding
length), up to 65535 bytes of content, up to 255 bytes of padding. `RecordReader` takes bytes as they come, in any
split, and never holds more than one unfinished record. PARAMS, STDIN, STDOUT and STDERR are byte *streams* cut into
records and ended by an empty one; a name-value pair may lie across two records, so the records of PARAMS are joined
(`PairStream`) before the pairs are read.

Source: FastCGI Specification 1.0 (Open Market, 29 April 1996), sections 3 to 5.
The worker loads this in the application's own interpreter: standard library only, Python 3.9 or later.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

VERSION: Final = 1
HEADER_LENGTH: Final = 8
MAX_CONTENT: Final = 65535
#: What encoders put in one record: the largest multiple of 8, so that only the last record of a stream is padded.
FULL_CONTENT: Final = 65528
#: A request id of 0 marks a management record, which belongs to the connection and to no request.
NO_REQUEST: Final = 0
KEEP_CONNECTION: Final = 1
MAX_PARAMS: Final = 1 << 20

_HEADER: Final = struct.Struct(">BBHHBx")
_BEGIN: Final = struct.Struct(">HB5x")
_END: Final = struct.Struct(">LB3x")
_LONG_LENGTH: Final = struct.Struct(">L")


class RecordType(IntEnum):
    BEGIN_REQUEST = 1
    ABORT_REQUEST = 2
    END_REQUEST = 3
    PARAMS = 4
    STDIN = 5
    STDOUT = 6
    STDERR = 7
    DATA = 8
    GET_VALUES = 9
    GET_VALUES_RESULT = 10
    UNKNOWN_TYPE = 11


class Role(IntEnum):
    RESPONDER = 1
    AUTHORIZER = 2
    FILTER = 3


class ProtocolStatus(IntEnum):
    """Why a request ended (END_REQUEST): the protocol's view, not the application's."""

    REQUEST_COMPLETE = 0
    CANT_MPX_CONN = 1
    OVERLOADED = 2
    UNKNOWN_ROLE = 3


class FastCGIError(Exception):
    """Something went wrong with a FastCGI peer; the text says what, in words."""


class ProtocolError(FastCGIError):
    """The peer sent what is not FastCGI, or more of it than is allowed."""


class Record(NamedTuple):
    """One record without its padding. `type` is an int: a peer may send types that RecordType does not know."""

    type: int
    request_id: int
    content: bytes


class RecordReader:
    """Bytes as they come from a connection → records.

    Holds at most one unfinished record (66 KB). After a ProtocolError the stream has no known boundary any more:
    every later `feed` raises the same error.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._failure: ProtocolError | None = None

    def feed(self, incoming: bytes) -> list[Record]:
        """The records that `incoming` completes, in order. Raises ProtocolError on a version other than 1."""
        if self._failure is not None:
            raise self._failure
        buffer = self._buffer
        buffer += incoming
        records = []
        start, end = 0, len(buffer)
        while end - start >= HEADER_LENGTH:
            version, kind, request_id, length, padding = _HEADER.unpack_from(buffer, start)
            if version != VERSION:
                self._failure = ProtocolError(f"not FastCGI: a record begins with version {version} instead of 1")
                buffer.clear()
                raise self._failure
            content = start + HEADER_LENGTH
            if end < content + length + padding:
                break
            records.append(Record(kind, request_id, bytes(buffer[content : content + length])))
            start = content + length + padding
        del buffer[:start]
        return records

    @property
    def between_records(self) -> bool:
        """True where an end of file would cut no record in two."""
        return not self._buffer


def encode_record(kind: int, request_id: int, content: bytes = b"") -> bytes:
    """One record, padded to a multiple of 8. `content` is at most 65535 bytes (ValueError)."""
    if len(content) > MAX_CONTENT:
        raise ValueError(f"a record holds at most {MAX_CONTENT} bytes, not {len(content)}")
    padding = -len(content) & 7
    return _HEADER.pack(VERSION, kind, request_id, len(content), padding) + content + bytes(padding)


def encode_stream(kind: int, request_id: int, content: bytes) -> bytes:
    """`content` cut into as many records as it takes: none for b"", because an empty record would end the stream."""
    return b"".join(
        encode_record(kind, request_id, content[at : at + FULL_CONTENT]) for at in range(0, len(content), FULL_CONTENT)
    )


def begin_request(request_id: int, role: int = Role.RESPONDER, *, keep_connection: bool = False) -> bytes:
    flags = KEEP_CONNECTION if keep_connection else 0
    return encode_record(RecordType.BEGIN_REQUEST, request_id, _BEGIN.pack(role, flags))


def ends_request(sent: bytes) -> bool:
    """Whether these last bytes of what was sent, 16 or more, are an END_REQUEST record as everybody writes it.

    Its last three bytes are reserved, and PHP leaves in them what was there.
    """
    return sent[-16:-14] == b"\x01\x03" and sent[-12:-8] == b"\x00\x08\x00\x00" and sent[-4:-3] <= b"\x03"


def ends_stdin(unread: bytes) -> bool:
    """Whether that is nothing, or only the end of a request's STDIN, which some read with the next request."""
    return not unread or (len(unread) == HEADER_LENGTH and unread[:2] == b"\x01\x05" and not any(unread[4:]))


def end_request(request_id: int, app_status: int = 0, protocol_status: int = ProtocolStatus.REQUEST_COMPLETE) -> bytes:
    """`app_status` is the application's exit status as 32 bits, unsigned."""
    return encode_record(RecordType.END_REQUEST, request_id, _END.pack(app_status & 0xFFFFFFFF, protocol_status))


class Beginning(NamedTuple):
    role: int
    keep_connection: bool


def decode_begin_request(content: bytes) -> Beginning:
    if len(content) != _BEGIN.size:
        raise ProtocolError(f"BEGIN_REQUEST holds {len(content)} bytes instead of {_BEGIN.size}")
    role, flags = _BEGIN.unpack(content)
    return Beginning(role, bool(flags & KEEP_CONNECTION))


class Ending(NamedTuple):
    app_status: int
    protocol_status: int


def decode_end_request(content: bytes) -> Ending:
    if len(content) != _END.size:
        raise ProtocolError(f"END_REQUEST holds {len(content)} bytes instead of {_END.size}")
    return Ending(*_END.unpack(content))


def encode_pairs(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Name-value pairs: each length is one byte below 128, else four bytes with the highest bit set."""
    parts: list[bytes] = []
    for name, value in pairs:
        parts += (_encode_length(len(name)), _encode_length(len(value)), name, value)
    return b"".join(parts)


def _encode_length(length: int) -> bytes:
    if length < 0x80:
        return bytes((length,))
    if length > 0x7FFFFFFF:
        raise ValueError(f"a name or value holds at most 2 GiB, not {length} bytes")
    return _LONG_LENGTH.pack(length | 0x80000000)


def decode_pairs(content: bytes) -> list[tuple[bytes, bytes]]:
    """The pairs of a whole stream, in order, repeated names kept. Raises ProtocolError where a pair is cut off."""
    pairs = []
    at, end = 0, len(content)
    while at < end:
        name_length, at = _decode_length(content, at)
        value_length, at = _decode_length(content, at)
        value_at = at + name_length
        if value_at + value_length > end:
            raise ProtocolError(
                f"a name-value pair of {name_length} + {value_length} bytes is cut off after {end - at} bytes"
            )
        pairs.append((content[at:value_at], content[value_at : value_at + value_length]))
        at = value_at + value_length
    return pairs


def _decode_length(content: bytes, at: int) -> tuple[int, int]:
    """The length that stands at `at`, and where what follows it begins."""
    if at >= len(content):
        raise ProtocolError("a name-value pair is cut off in its lengths")
    if content[at] < 0x80:
        return content[at], at + 1
    if at + 4 > len(content):
        raise ProtocolError("a name-value pair is cut off in its lengths")
    return _LONG_LENGTH.unpack_from(content, at)[0] & 0x7FFFFFFF, at + 4


class PairStream:
    """The records of one PARAMS stream, joined, then read as pairs. Holds at most `limit` bytes."""

    def __init__(self, limit: int = MAX_PARAMS) -> None:
        self._limit = limit
        self._joined = bytearray()

    def add(self, content: bytes) -> None:
        """The content of the next record. Raises ProtocolError above the limit."""
        if len(self._joined) + len(content) > self._limit:
            raise ProtocolError(f"the parameters of a request are longer than {self._limit} bytes")
        self._joined += content

    def joined(self) -> bytes:
        return bytes(self._joined)

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """All pairs, once the stream has ended (its empty record has come)."""
        return decode_pairs(self.joined())
