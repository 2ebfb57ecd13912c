"""The scoreboard: what a worker is doing, in memory that it shares with the manager.

A worker has one board, a file without a name (memfd) that the manager made and that nobody else has. It begins with a
head, and then has a lane for each thread that serves requests, written by that thread alone: no lock is taken, and
none can be left behind by a worker that dies. All sums are made by who reads.

    head   magic: 8 bytes, by the worker   reopen: u32, by the manager: log files are to be opened anew when it changes
    lane   count: u32 | state, requests, since, last, thread, method, uri | count again: u32

A lane is written as one struct, from its first byte to its last, so while that goes on its two counts differ. A reader
may overtake the writer, and be overtaken again before it comes to the second count; so it takes two copies, and
believes them only if they are the same: with equal counts in the first one, the writing was over when the second was
taken. (Where the processor writes in another order, a URI may be of two requests, for one look.)
Else the reader believes nothing: a worker runs other people's code, and may write anything here. So it copies the board
with pread(2), and takes a number only where it can be one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

MAGIC: Final = b"fcgibrd1"
HEAD_SIZE: Final = 64
REOPEN_AT: Final = 8
REOPEN: Final = struct.Struct("<I")

LANE_SIZE: Final = 512
METHOD_LONGEST: Final = 16
URI_LONGEST: Final = 448
#: count, state, requests, since, last, thread, method, length of the URI, URI, count.
LANE: Final = struct.Struct(f"<IIQddQ{METHOD_LONGEST}sI{URI_LONGEST}sI")

#: States of a lane. One that no thread has ever written is all zeros.
IDLE: Final = 1
WORKING: Final = 2

#: The environment variable that tells a worker as which descriptor it has its board.
VARIABLE: Final = "FCGIMGR_SCOREBOARD"
#: Sent to a worker, it lets it write the traceback of every thread to its standard error (SIGRTMAX-3 of glibc).
TRACEBACK_SIGNAL: Final = 61
#: Lanes that a board has at least: as many threads as an engine may have when nobody says how many.
LANES: Final = 16

# A writer needs a microsecond for a lane, and as a rule milliseconds between two.
_TRIES: Final = 10

_MOST_REQUESTS: Final = 1 << 53  # what JSON's readers can tell apart


def size(lanes: int) -> int:
    """Bytes of a board with so many lanes."""
    return HEAD_SIZE + LANE_SIZE * lanes


class Request(NamedTuple):
    """A request in hand. `since`: monotonic seconds; `thread`: threading.get_ident(); `uri` may be cut short."""

    method: str
    uri: str
    since: float
    thread: int


class Reading(NamedTuple):
    """What a board says. `last`: seconds that the request took that ended last; None: there was none yet."""

    requests: int
    last: float | None
    in_hand: tuple[Request, ...]  # the oldest first


def read(copy: Callable[[], bytes], now: float) -> Reading | None:
    """What the board says of which `copy` makes a copy, at `now` (monotonic); None: it cannot be told."""
    for _ in range(_TRIES):
        board = copy()
        if board == copy():
            try:
                reading = parse(board, now)
            except ValueError:
                return None
            if reading is not None:
                return reading
    return None


def parse(board: bytes, now: float) -> Reading | None:
    """What this copy of a board says at `now` (monotonic); None: it was torn, try another. ValueError: it is no board.

    A board is one from when its worker has come up.
    """
    if board[:8] != MAGIC:
        raise ValueError("this is not a board of this version")
    requests, ended, last, in_hand = 0, -1.0, None, []
    for at in range(HEAD_SIZE, len(board) - LANE_SIZE + 1, LANE_SIZE):
        count, state, served, since, took, thread, method, length, uri, again = LANE.unpack_from(board, at)
        if count != again:
            return None
        if state not in (IDLE, WORKING) or not 0.0 <= since <= now + 1.0:  # NaN is refused as well
            if state == 0:
                break  # lanes are taken in their order
            continue
        requests = min(requests + served, _MOST_REQUESTS)
        if state == WORKING:
            cut = uri[: min(length, URI_LONGEST)].decode("latin-1")
            in_hand.append(Request(method.rstrip(b"\0").decode("latin-1"), cut, min(since, now), thread))
        elif since > ended and math.isfinite(took) and took >= 0.0:
            ended, last = since, took
    return Reading(requests, last, tuple(sorted(in_hand, key=lambda request: request.since)))
