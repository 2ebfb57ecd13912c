"""One connection of a server, looked at from outside: is a request in hand there, or has the last one been answered?

Fed with what the server reads and sends, as far as anybody has seen it: most connections are met in the midst of
something. FastCGI and HTTP/1.x are told apart by the first byte of an answer or a request. What is not seen from its
beginning is unknown, until the next request begins; what is neither of the two stays unknown. Nothing raises.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Final, TypeAlias

from fcgimgr.answers import fastcgi, http
from fcgimgr.fastcgi.records import VERSION, ends_request, ends_stdin

#: So many bytes are looked at, at once, where they may matter.
_PIECE: Final = 4096
_LAST: Final = 16
#: So many pieces of what goes by at once: a server that wants to keep us busy could make it any number.
_READS: Final = 256
#: Requests without an answer that are counted.
_ASKED: Final = 1024

#: Bytes that have gone by, from an offset on: as many as asked for, or fewer, or none when nobody can know.
Bytes: TypeAlias = Callable[[int, int], bytes]


class State(Enum):
    UNKNOWN = auto()
    IN_USE = auto()  # a request has begun, or its answer, and has not been answered whole
    ANSWERED = auto()  # whole, and nothing has come since


class Conversation:
    """`last`: when something last went by, seconds, monotonic, as whoever feeds it says."""

    def __init__(self) -> None:
        self.last: float | None = None
        self._speaks: _Protocol | None = None
        self._answered = False

    @property
    def state(self) -> State:
        if self._speaks is None:
            return State.ANSWERED if self._answered else State.UNKNOWN
        if self._speaks.is_in_use:
            return State.IN_USE
        return State.ANSWERED if self._answered else State.UNKNOWN

    @property
    def is_fastcgi(self) -> bool:
        return isinstance(self._speaks, _FastCGI)

    @property
    def is_upgraded(self) -> bool:
        """Whether it has left HTTP, for WebSocket say."""
        return isinstance(self._speaks, _HTTP) and self._speaks.is_upgraded

    def may_wait(self, unread: bytes) -> bool:
        """Whether these bytes, which the server has not read, are no request: nothing, or what some send behind one."""
        return ends_stdin(unread) if self.is_fastcgi else not unread

    def came(self, count: int, read: Bytes) -> None:
        """The server has read `count` bytes."""
        first = read(0, _LAST)
        if self._speaks is None or self._speaks.is_lost:
            if fastcgi.begins_request(first):
                self._speaks = _FastCGI()
            elif http.begins_request(first):
                self._speaks = _HTTP()
        self._answered = False
        if self._speaks is not None:
            self._speaks.expect(first)
            self._speaks.came(count, read)

    def sent(self, count: int, read: Bytes) -> None:
        """The server has sent `count` bytes."""
        if self._speaks is None or self._speaks.is_lost:
            first = read(0, 1)
            self._speaks = _FastCGI() if first == bytes((VERSION,)) else _HTTP() if first == b"H" else None
        if self._speaks is None:
            self._answered = ends_request(read(max(0, count - _LAST), _LAST))
        else:
            self._answered = self._speaks.sent(count, read)

    def would_be_answered(self, count: int, read: Bytes) -> bool:
        """Whether these bytes, were they all sent, would be the last of an answer, with no other request in hand."""
        twin = Conversation()
        twin._speaks = None if self._speaks is None else self._speaks.copy()
        twin.sent(count, read)
        return twin.state is State.ANSWERED


class _HTTP:
    def __init__(self) -> None:
        self._requests = http.Messages(answers=False)
        self._answers = http.Messages(answers=True)

    def copy(self) -> _HTTP:
        twin = _HTTP()
        twin._requests, twin._answers = self._requests.copy(), self._answers.copy()
        return twin

    @property
    def is_lost(self) -> bool:
        return self._answers.at is http.At.LOST

    @property
    def is_upgraded(self) -> bool:
        return self._answers.at is http.At.UPGRADED

    @property
    def is_in_use(self) -> bool:
        if self._answers.at is http.At.LOST:
            return False  # that is: unknown
        asking = not self._requests.is_between and self._requests.at is not http.At.LOST
        return not self._answers.is_between or asking or bool(self._answers.asked)

    def expect(self, first: bytes) -> None:
        """A request that begins while an answer seems to be under way shows that it is not: it was one to a HEAD."""
        if http.begins_request(first) and self._requests.at in {http.At.LOST, http.At.BEGINNING}:
            self._requests.begin()
            if self._answers.at is http.At.LOST or (self._answers.at is http.At.BODY and not self._answers.is_sure):
                self._answers.begin()
                self._answers.asked = ()

    def came(self, count: int, read: Bytes) -> None:
        if self.is_upgraded:
            return
        _follow(self._requests, count, read)
        self._answers.asked += self._requests.asked
        self._requests.asked = ()
        if len(self._answers.asked) > _ASKED:
            self._answers.lose()
            self._answers.asked = ()

    def sent(self, count: int, read: Bytes) -> bool:
        before = self._answers.ended
        _follow(self._answers, count, read)
        return self._answers.ended > before and self._answers.is_between


class _FastCGI:
    def __init__(self) -> None:
        self._requests = fastcgi.Records(answers=False)
        self._answers = fastcgi.Records(answers=True)
        self._open: frozenset[int] = frozenset()

    def copy(self) -> _FastCGI:
        twin = _FastCGI()
        twin._requests, twin._answers = self._requests.copy(), self._answers.copy()
        twin._open = self._open
        return twin

    @property
    def is_lost(self) -> bool:
        return self._answers.is_lost

    @property
    def is_in_use(self) -> bool:
        if self._answers.is_lost:
            return False
        return bool(self._open) or not self._answers.is_between

    def expect(self, first: bytes) -> None:
        if fastcgi.begins_request(first) and self._requests.is_lost:
            self._requests.begin()

    def came(self, count: int, read: Bytes) -> None:
        _follow(self._requests, count, read)
        self._open |= self._requests.begun
        self._requests.begun = frozenset()

    def sent(self, count: int, read: Bytes) -> bool:
        _follow(self._answers, count, read)
        ended, self._answers.ended = self._answers.ended, frozenset()
        self._open -= ended
        if self._answers.is_lost:
            return ends_request(read(max(0, count - _LAST), _LAST))
        return bool(ended) and self._answers.is_between


_Protocol: TypeAlias = _HTTP | _FastCGI


def _follow(stream: http.Messages | fastcgi.Records, count: int, read: Bytes) -> None:
    """Feed what matters of these bytes, and skip the rest."""
    at = reads = 0
    while at < count:
        if opaque := min(stream.opaque, count - at):
            stream.skip(opaque)
            at += opaque
        elif reads < _READS and (piece := read(at, min(_PIECE, count - at))):
            stream.feed(piece)
            at += len(piece)
            reads += 1
        else:
            stream.lose()
