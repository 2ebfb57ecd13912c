"""`wsgi.input` of a request whose body has not come in one piece: read from the connection as the application asks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Final

#: What one read of the application fetches at most, where it says no number.
_BLOCK: Final = 65536


class Body(io.RawIOBase):
    """`more` gives the next piece of the body, b"" at its end, and may raise OSError."""

    def __init__(self, more: Callable[[], bytes]) -> None:
        self._more = more
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into) -> int:  # type: ignore[no-untyped-def]  # any writable buffer; Python 3.9 has no name for it
        piece = self._piece
        if not piece:
            piece = memoryview(self._more())
        count = min(len(into), len(piece))
        into[:count] = piece[:count]
        self._piece = piece[count:]
        return count

    def readall(self) -> bytes:
        pieces: list[bytes | memoryview] = [self._piece]
        self._piece = memoryview(b"")
        while piece := self._more():
            pieces.append(piece)
        return b"".join(pieces)

    def over(self) -> None:
        """The request has ended: whoever still holds its input reads no more of this connection."""
        self._more = bytes
        self._piece = memoryview(b"")


def buffered(body: Body) -> io.BufferedReader:
    return io.BufferedReader(body, _BLOCK)
