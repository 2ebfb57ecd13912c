"""The scoreboard: what a worker is doing, in memory that it shares with the manager.

A worker has one board, a file without a name (memfd) that the manager made and that nobody else has. It begins with a
head, and then has a lane for each thread that serves requests, written by that thread alone: no lock is taken, and
none can be left behind by a worker that dies. All sums are made by who reads.

    head   magic: 8 bytes, by the worker   reopen: u32, by the manager: log files are to be opened anew when it changes
    lane   count: u32   thread: u64   two halves, each: state, requests, since, last; method, length of the URI, URI

A lane says what stands in the half that its count names, by being even or odd. The other half is the one that is
written, and then the count goes up by one, in one store. So a writer that has to wait in the middle of it, for as long
as it may be, hides nothing; and a reader has a whole half if the count is still the same after it was copied, for as
long is nobody writing to that. (Where the processor writes in another order, a URI may be of two requests, for one
look.)
Else the reader believes nothing: a worker runs other people's code, and may write anything here. So it copies the board
with pread(2), and takes a number only where it can be one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

MAGIC: Final = b"fcgibrd2"
HEAD_SIZE: Final = 64
REOPEN_AT: Final = 8
REOPEN: Final = struct.Struct("<I")

LANE_SIZE: Final = 1024
METHOD_LONGEST: Final = 16
URI_LONGEST: Final = 448
COUNT: Final = struct.Struct("<I")
THREAD_AT: Final = 8
THREAD: Final = struct.Struct("<Q")
#: Where the half of an even count begins, and that of an odd one.
HALVES: Final = (16, 520)
#: state, requests, since, last, method, length of the URI, URI.
WORK: Final = struct.Struct(f"<IQdd{METHOD_LONGEST}sI{URI_LONGEST}s")
#: The same without a request in hand.
REST: Final = struct.Struct("<IQdd")

#: States of a lane. One that no thread has ever written has the count 0.
IDLE: Final = 1
WORKING: Final = 2

#: The environment variable that tells a worker as which descriptor it has its board.
VARIABLE: Final = "FCGIMGR_SCOREBOARD"
#: Sent to a worker, it lets it write the traceback of every thread to its standard error (SIGRTMAX-3 of glibc).
TRACEBACK_SIGNAL: Final = 61
#: Lanes that a board has at least: as many threads as an engine may have when nobody says how many.
LANES: Final = 16

# A writer is at it for a microsecond, twice a request.
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
    """What the board says of which `copy` makes a copy, at `now` (monotonic); None: it cannot be told.

    A board is one from when its worker has come up.
    """
    board = copy()
    if board[: len(MAGIC)] != MAGIC:
        return None
    halves: dict[int, tuple[Any, ...]] = {}
    for _ in range(_TRIES):
        before, board = board, copy()
        if _take_halves(halves, before, board):
            return _sum_up(halves, board, now)
    return None


def _take_halves(halves: dict[int, tuple[Any, ...]], before: bytes, after: bytes) -> bool:
    """Add what the lanes say that have none yet, by where they begin. False: one was being written to."""
    whole = True
    for at in range(HEAD_SIZE, min(len(before), len(after)) - LANE_SIZE + 1, LANE_SIZE):
        if at in halves:
            continue
        (count,) = COUNT.unpack_from(before, at)
        if not count:
            break  # lanes are taken in their order
        if COUNT.unpack_from(after, at)[0] == count:
            halves[at] = WORK.unpack_from(before, at + HALVES[count & 1])
        else:
            whole = False
    return whole


def _sum_up(halves: dict[int, tuple[Any, ...]], board: bytes, now: float) -> Reading:
    requests, ended, last, in_hand = 0, -1.0, None, []
    for at, (state, served, since, took, method, length, uri) in halves.items():
        if state not in (IDLE, WORKING) or not 0.0 <= since <= now + 1.0:  # NaN is refused as well
            continue
        requests = min(requests + served, _MOST_REQUESTS)
        if state == WORKING:
            (thread,) = THREAD.unpack_from(board, at + THREAD_AT)
            cut = uri[: min(length, URI_LONGEST)].decode("latin-1")
            in_hand.append(Request(method.rstrip(b"\0").decode("latin-1"), cut, min(since, now), thread))
        elif since > ended and 0.0 <= took <= now:
            ended, last = since, took
    return Reading(requests, last, tuple(sorted(in_hand, key=lambda request: request.since)))
