"""A request as it comes to a server: bytes in, its parameters and its body out; without I/O, in bounded memory.

Most requests come in one piece: BEGIN_REQUEST, one record of PARAMS, the empty one, the empty STDIN. `read_whole` reads
that shape in one pass. All others go through `Arrival`, which takes bytes in any split and answers for the connection
what the application is not asked about: GET_VALUES, unknown management records, roles that are not served, a second
request while the first is still coming in.

Source: FastCGI Specification 1.0, sections 3 to 5.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from typing import Final

from fcgimgr.fastcgi.common import Common, Run
from fcgimgr.fastcgi.records import (
    HEADER_LENGTH,
    KEEP_CONNECTION,
    MAX_PARAMS,
    NO_REQUEST,
    VERSION,
    PairStream,
    ProtocolError,
    ProtocolStatus,
    RecordType,
    Role,
    begin_request,
    decode_begin_request,
    decode_pairs,
    encode_pairs,
    encode_record,
    end_request,
)

_HEADER: Final = struct.Struct(">BBHHBx")
#: The first 24 bytes of a request in one piece: all of BEGIN_REQUEST and the header of PARAMS, of which the length and
#: the padding are its own.
_OPENING: Final = struct.Struct(">20sHBx")
#: What stands before these, and the flags that it says.
_OPENINGS_1: Final = {
    begin_request(1, keep_connection=bool(flags)) + encode_record(RecordType.PARAMS, 1)[:4]: flags
    for flags in (0, KEEP_CONNECTION)
}
_ENDS_1: Final = encode_record(RecordType.PARAMS, 1) + encode_record(RecordType.STDIN, 1)
_LONG: Final = struct.Struct(">L")
_NO_RUNS: Final[dict[str, Run]] = {}


def read_whole(wire: bytes, parameters: dict[str, str], common: Common) -> int | None:
    """Read a request with the id 1 and without a body, if `wire` is exactly that in the usual shape.

    Its parameters, as Latin-1 text, are added to `parameters`. `common`: of the requests from there; it learns. The
    flags of BEGIN_REQUEST; None, and nothing done, when it is anything else. Raises ProtocolError where a name-value
    pair is cut off.
    """
    if len(wire) < 40:
        return None
    opening, length, padding = _OPENING.unpack_from(wire)
    flags = _OPENINGS_1.get(opening)
    end = 24 + length
    if flags is None or not length or wire[end + padding :] != _ENDS_1:
        return None
    decode_parameters(wire, 24, end, parameters, common.runs)
    common.left -= 1
    if common.left <= 0:
        common.learn(wire[24:end])
    return flags


def decode_parameters(
    wire: bytes, at: int, end: int, parameters: dict[str, str], runs: Mapping[str, Run] = _NO_RUNS
) -> None:
    """The name-value pairs from `at` to `end`, as Latin-1 text (PEP 3333). Raises ProtocolError where one is cut off.

    What `decode_pairs` does, in the way that costs least: the text is decoded once, and cut; what is in `runs`
    (common.py) is there already.
    """
    pairs = wire[at:end]
    text = pairs.decode("latin-1")
    at, end = 0, len(text)
    try:
        if text.isascii():  # then no length is a long one, of which the first bit is set
            before = ""
            while at < end:
                if before in runs:
                    run, said = runs[before]
                    if pairs.startswith(run, at):
                        parameters.update(said)
                        at += len(run)
                        before = ""
                        continue
                start = at + 2
                middle = start + pairs[at]
                at = middle + pairs[at + 1]
                before = text[start:middle]
                parameters[before] = text[middle:at]
        while at < end:
            name = pairs[at]
            value = pairs[at + 1]
            if name | value < 0x80:
                start = at + 2
            else:
                if name < 0x80:
                    start = at + 1
                else:
                    name = _LONG.unpack_from(pairs, at)[0] & 0x7FFFFFFF
                    start = at + 4
                value = pairs[start]
                if value < 0x80:
                    start += 1
                else:
                    value = _LONG.unpack_from(pairs, start)[0] & 0x7FFFFFFF
                    start += 4
            middle = start + name
            at = middle + value
            parameters[text[start:middle]] = text[middle:at]
    except (IndexError, struct.error):
        at = end + 1
    if at != end:
        raise ProtocolError("a name-value pair of the parameters is cut off")


class Arrival:
    """The incoming side of one connection, for requests that do not come in one piece. One request at a time.

    After each `feed`: `replies` are to be sent; `begun` says whether a request is being announced or served;
    `parameters` is None until they are complete; `body` holds the pieces of STDIN that have come and were not taken;
    `body_ended`; `aborted`. `over` ends the request; what came after it is in `rest`: feed b"" to go on with that.
    `keep`: whether the peer wants to go on using the connection, by its last request; `passed_over`: bytes that have
    come since that began and belonged to no request, as the rest of a body does whose request is over.

    `values`: what GET_VALUES is answered with.
    """

    def __init__(self, values: Mapping[bytes, bytes], *, max_parameters: int = MAX_PARAMS) -> None:
        self._values = values
        self._limit = max_parameters
        self.replies: list[bytes] = []
        self.keep = True
        self.passed_over = 0
        # The record that is being read: its type, its request, bytes of content and of padding still to come.
        self._kind = 0
        self._of = NO_REQUEST
        self._left = 0
        self._padding = 0
        self._empty = False  # it has no content: the end of its stream
        self._collected = bytearray()
        self.rest = b""  # the beginning of a header, or what came after the request
        self.over()

    def over(self) -> None:
        """Forget the request: it is answered, or was aborted."""
        self.request_id = NO_REQUEST
        self.parameters: dict[str, str] | None = None
        self.body: deque[bytes] = deque()
        self.body_length = 0  # bytes that have come so far
        self.body_ended = False
        self.aborted = False
        self._pairs = PairStream(self._limit)

    def resume(self, request_id: int) -> None:
        """A request that was read without our help, to its end, is being served."""
        self.request_id = request_id
        self.parameters = {}
        self.body_ended = True

    @property
    def begun(self) -> bool:
        return self.request_id != NO_REQUEST

    @property
    def between_requests(self) -> bool:
        """True where an end of file would cut nothing in two."""
        return not (self.begun or self.rest or self._left or self._padding)

    def feed(self, incoming: bytes, parameters: dict[str, str] | None = None) -> None:
        """Take what has come. `parameters`: of which a copy becomes `self.parameters`, with those of the next complete
        request. Raises ProtocolError on what is no FastCGI, or too much of it."""
        wire = self.rest + incoming if self.rest else incoming
        at, end = 0, len(wire)
        while True:
            if self.aborted:
                break
            if self.body_ended:
                # Only this may still concern the request; all else is about the next.
                header = wire[at : at + HEADER_LENGTH]
                if header == encode_record(RecordType.ABORT_REQUEST, self.request_id):
                    self.aborted = True
                    at += HEADER_LENGTH
                break
            if self._left:
                if at == end:
                    break
                piece = wire[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._take(piece)
                if self._left:
                    break
                self._end_record(parameters)
                continue
            if self._padding:
                skipped = min(self._padding, end - at)
                at += skipped
                self._padding -= skipped
            if end - at < HEADER_LENGTH:
                break
            version, self._kind, self._of, self._left, self._padding = _HEADER.unpack_from(wire, at)
            if version != VERSION:
                raise ProtocolError(f"not FastCGI: a record begins with version {version} instead of 1")
            at += HEADER_LENGTH
            self._empty = not self._left
            if self._empty:
                self._end_record(parameters)
        self.rest = wire[at:]
        if len(self.rest) > self._limit:
            raise ProtocolError(f"more than {self._limit} bytes were sent ahead of an answer")

    def _take(self, piece: bytes) -> None:
        """A piece of the content of the record that is being read. A piece is lost where nobody wants the record."""
        kind, of = self._kind, self._of
        if of == self.request_id and of != NO_REQUEST:
            if kind == RecordType.STDIN:
                if self.parameters is None:
                    raise ProtocolError("the body of a request came before the end of its parameters")
                self.body.append(piece)
                self.body_length += len(piece)
                return
            if kind == RecordType.PARAMS:
                if self.parameters is not None:
                    raise ProtocolError("parameters of a request came after their end")
                self._pairs.add(piece)
                return
        # What is read at the end of its record, and forgotten: no more than one record is ever held.
        if kind == (RecordType.GET_VALUES if of == NO_REQUEST else RecordType.BEGIN_REQUEST):
            self._collected += piece
        else:
            self.passed_over += len(piece)

    def _end_record(self, parameters: dict[str, str] | None) -> None:
        kind, of = self._kind, self._of
        if of == NO_REQUEST:
            self._manage(kind)
        elif kind == RecordType.BEGIN_REQUEST:
            self._begin(of)
        elif of != self.request_id:
            return  # it belongs to a request that was refused, or is over
        elif kind == RecordType.ABORT_REQUEST:
            self.aborted = True
        elif kind == RecordType.PARAMS and self._empty and self.parameters is None:
            self.parameters = {} if parameters is None else parameters.copy()
            joined = self._pairs.joined()
            decode_parameters(joined, 0, len(joined), self.parameters)
        elif kind == RecordType.STDIN and self._empty:
            if self.parameters is None:
                raise ProtocolError("the body of a request ended before its parameters")
            self.body_ended = True

    def _manage(self, kind: int) -> None:
        if kind == RecordType.GET_VALUES:
            asked = [name for name, _ in decode_pairs(self._taken())]
            known = [(name, self._values[name]) for name in dict.fromkeys(asked) if name in self._values]
            self.replies.append(encode_record(RecordType.GET_VALUES_RESULT, NO_REQUEST, encode_pairs(known)))
        else:
            self.replies.append(encode_record(RecordType.UNKNOWN_TYPE, NO_REQUEST, bytes([kind]) + bytes(7)))

    def _begin(self, of: int) -> None:
        role, keep = decode_begin_request(self._taken())
        if of == self.request_id:
            raise ProtocolError(f"request {of} was begun a second time before it ended")
        if self.begun:
            self.replies.append(end_request(of, protocol_status=ProtocolStatus.CANT_MPX_CONN))
            return
        self.keep = keep
        self.passed_over = 0
        if role == Role.RESPONDER:
            self.request_id = of
        else:
            self.replies.append(end_request(of, protocol_status=ProtocolStatus.UNKNOWN_ROLE))

    def _taken(self) -> bytes:
        content = bytes(self._collected)
        self._collected.clear()
        return content
