"""The reading end of one child's stdout or stderr: from its pipe to its log, as whole lines.

A thousand idle children must cost next to nothing, and one that writes a gigabyte must go through at the speed of the
disk without holding up the others. So all pumps read into one buffer; a pump keeps only the beginning of a line whose
end has not come yet, and the last few KiB for `tail`. Lines are not looked at one by one: a chunk is cut after its last
newline and handed on as it is. One call reads READ_SIZE bytes at most and returns to the loop, where the others have
their turn.

- Every byte is handed on, in order; nothing is changed where no format is asked for, save that a stream's last line
  gets a newline if it had none (the next process's first line would be glued to it).
- Lines of up to LINE_LIMIT bytes are handed on whole, so processes that share a target never mix theirs. A longer one
  is handed on in pieces as it comes.
- In JSON a traceback is one line. Its end is not known before the next line comes, so what may be a part of one waits
  for that, GATHERING seconds at most, and only where a manager that is killed leaves it (inhand.py).
- A pump whose target is blocked stops reading until it is free: its child waits, as with any slow reader of a pipe.
- One that rests leaves for a moment in the pipe what comes; so what its child says right before its death can be known
  as a whole then, before it is handed on (pools/repeats.py).
"""

import errno
import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fcgimgr.manager.logs import inhand, tracebacks
from fcgimgr.manager.logs.inhand import LINE_LIMIT, Hand, Left
from fcgimgr.manager.logs.lines import LineFormat, Timestamps, dress, split_lines
from fcgimgr.manager.logs.reading import Direct, Guarded, LateError
from fcgimgr.manager.logs.target import NOWHERE, Target

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle

RECENT = 8 * 1024
MUCH = 16 * 1024  # bytes that one which rests has found in its pipe; that takes 64 KiB
DRAIN_LIMIT = 4 * 1024 * 1024
GATHERING = 0.1

Lines = list[bytes]


class Pump:
    """Reads `fd` (non-blocking, its own from now on) whenever there is something, and writes to `target`.

    `process` and `stream` are named in JSON; `label` is put before each line otherwise (lines.py). `clock`: nanoseconds
    since 1970. `gathers`: its tracebacks, in JSON, are a line each (tracebacks.py). `release` gets the target back,
    once. `on_eof` is called when the stream has ended and the pump has closed itself; it is not called by `close`.
    """

    __slots__ = (
        "_begun",
        "_dress",
        "_fd",
        "_followers",
        "_gathered",
        "_gathers",
        "_heard",
        "_held",
        "_inode",
        "_inside_line",
        "_late",
        "_loop",
        "_on_eof",
        "_paused",
        "_pipe",
        "_place",
        "_recent",
        "_release",
        "_rest",
        "_resting",
        "_split",
        "_target",
    )  # fmt: skip

    def __init__(
        self,
        loop: "AbstractEventLoop",
        fd: int,
        target: Target,
        *,
        process: str,
        stream: str,
        timestamps: Timestamps = "none",
        format: LineFormat = "raw",
        label: str = "",
        gathers: bool = False,
        clock: Callable[[], int] = time.time_ns,
        on_eof: Callable[[], None] | None = None,
        pipe: Direct | Guarded | None = None,
        release: Callable[[Target], None] | None = None,
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._pipe = pipe or Direct(fd)
        self._pipe.begin(self._come)
        self._late = False  # something is still being read
        self._target = target
        self._gathers = gathers and format == "json"
        self._split = tracebacks.records if self._gathers else split_lines
        self._gathered: TimerHandle | None = None  # when what may be a part of a traceback has waited long enough
        self._dress = dress(
            timestamps=timestamps,
            line_format=format,
            process=process,
            stream=stream,
            label=label,
            clock=clock,
            on_terminal=target.is_terminal,
            split=self._split,
        )
        self._on_eof = on_eof
        self._release = release
        self._inode = os.fstat(fd).st_ino
        self._begun = b""  # the beginning of a line whose end has not come
        self._place: int | None = None  # where that is kept (inhand.py)
        self._inside_line = False  # a piece of an overlong line was handed on, its end was not
        self._recent = b""
        self._heard = -math.inf  # when something was read last, monotonic
        self._followers: tuple[Callable[[Lines], None], ...] = ()
        self._paused = False
        self._rest = 0.0  # seconds
        self._resting: TimerHandle | None = None
        self._held: list[bytes] | None = None  # what is not to be handed on yet
        loop.add_reader(fd, self._on_readable)

    @property
    def closed(self) -> bool:
        return self._fd < 0

    @property
    def inode(self) -> int:
        """Of the pipe: the same at both of its ends. 0 when it is closed."""
        return self._inode if self._fd >= 0 else 0

    @property
    def silent_for(self) -> float:
        """Seconds since something was read; infinite: nothing was, by this one."""
        return self._loop.time() - self._heard

    def hand_over(self) -> tuple[int, bytes, bool, bytes]:
        """What another pump needs to `go_on`: (fd, beginning of a line, whether inside a line, what was read last)."""
        return self._fd, self._begun, self._inside_line, self._recent

    def go_on(self, begun: bytes, inside_line: bool, recent: bytes) -> None:
        """Read on where another pump of this pipe stopped."""
        self._begin(begun)
        self._inside_line, self._recent = inside_line, recent
        if b"\n" in begun:
            self._gathered = self._loop.call_later(GATHERING, self._has_gathered)

    def recover(self, left: Left) -> None:
        """Hand on what a dead manager had read of this pipe, before anything else is read of it."""
        data = left.data[self._target.grown(left, self._split) :]
        self._recent = data[-RECENT - 1 :]
        cut = data.rfind(b"\n") + 1
        if len(data) - cut > LINE_LIMIT:
            cut = len(data)
        if cut:
            self._hand_on(data[:cut])
        self._begin(data[cut:])

    def tail(self, n: int, *, unfinished: bool = True) -> Lines:
        """The last `n` lines of what the child wrote, without newlines; of the last RECENT bytes only.

        `unfinished`: also a last line that has no end yet; without it, `follow` goes on exactly where this stops.
        """
        recent = self._recent
        if len(recent) > RECENT:  # one byte more than wanted is kept, so that a whole first line is told from a cut one
            recent = recent[recent.find(b"\n", 0, -1) + 1 :] if b"\n" in recent[:-1] else from_a_character(recent[1:])
        lines = recent.split(b"\n")
        last = lines.pop()
        if last and unfinished:
            lines.append(last)
        return lines[-n:] if n > 0 else []

    def follow(self, callback: Callable[[Lines], None]) -> Callable[[], None]:
        """Call `callback` with lines as they come, without newlines. Returns what ends it."""

        def own(lines: Lines) -> None:
            callback(lines)

        def cancel() -> None:
            self._followers = tuple(follower for follower in self._followers if follower is not own)

        self._followers += (own,)
        return cancel

    def drain(self, limit: int = DRAIN_LIMIT) -> bool:
        """Read what is there, without waiting, `limit` bytes or little more; True when more may be left.

        For the child's death: what it wrote before is in the pipe. Also reads for a blocked target.
        """
        while self._fd >= 0 and not self._late and limit > 0:
            size = self._read()
            if size == 0:
                return False
            limit -= size
        return self._fd >= 0

    @property
    def rests(self) -> bool:
        """Whether it reads with a delay."""
        return self._rest > 0

    def rest(self, seconds: float) -> None:
        """From now on read what comes only so many seconds after it has come; 0: at once, as all do."""
        self._rest = seconds
        if not seconds and self._resting is not None:
            self._resting.cancel()
            self._end_rest()

    def drain_unless(self, is_known: Callable[[bytes], bool]) -> bool:
        """As `drain`, but what was there is not handed on to the target if it is known; whether it was."""
        self._held = []
        try:
            self.drain()
        finally:
            held, self._held = self._held, None
            known = bool(held) and is_known(b"".join(held))
            for chunk in held:
                if known:
                    self._tell_followers(chunk)
                else:
                    self._hand_on(chunk)
        return known

    def drop(self) -> None:
        """Go on reading, so that nobody has to wait who writes, and keep nothing of it."""
        if self._fd < 0 or self._target is NOWHERE:
            return
        self._hand_on_the_rest()
        if self._release:
            self._release(self._target)
        self._target = NOWHERE
        self._resume()

    def close(self) -> None:
        """Hand on what is there of an unfinished line and let go of the pipe and the target; the tail stays."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        if not self._paused and not self._late:
            self._loop.remove_reader(fd)
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self._pipe.close()
        self._hand_on_the_rest()
        if self._release:
            self._release(self._target)

    # -- reading ----------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._target.blocked:
            self._loop.remove_reader(self._fd)
            self._paused = True
            self._target.when_free(self._resume)
        elif self._rest:
            self._loop.remove_reader(self._fd)
            self._paused = True
            self._resting = self._loop.call_later(self._rest, self._end_rest)
        else:
            self._read()

    def _end_rest(self) -> None:
        self._resting = None
        if self._fd >= 0 and self._read() > MUCH:
            self._rest = 0.0  # else it would have to wait for us
        self._resume()

    def _resume(self) -> None:
        if self._paused and self._fd >= 0:
            self._paused = False
            if not self._late:
                self._loop.add_reader(self._fd, self._on_readable)

    def _read(self) -> int:
        """Read once; how many bytes there were. At the end of the stream, close."""
        hand = inhand.hand
        start = self._begin_to_read(hand)
        try:
            size = self._pipe.read(hand)
        except BlockingIOError:
            hand.let_go(0)
            return 0
        except LateError:
            inhand.hand.let_go(0)
            self._late = True
            if not self._paused:
                self._loop.remove_reader(self._fd)
            return 0
        except OSError:  # the stream cannot be read any more; asked again it would fail again, without end
            self._end()
            raise
        self._has_read(hand, start, size)
        return size

    def _come(self, other: Hand | None, size: int) -> None:
        """What was late is here: so much in another's hand, or -errno."""
        if self._fd < 0:
            return
        self._late = False
        if not self._paused:
            self._loop.add_reader(self._fd, self._on_readable)
        if other is None or size == -errno.EAGAIN:
            return
        if size < 0:
            self._end()
            return
        hand = inhand.hand
        start = self._begin_to_read(hand)
        hand.buffer[LINE_LIMIT : LINE_LIMIT + size] = other.buffer[LINE_LIMIT : LINE_LIMIT + size]
        other.let_go(size)
        self._has_read(hand, start, size)

    def _begin_to_read(self, hand: Hand) -> int:
        start = LINE_LIMIT - len(self._begun)
        if self._begun:
            hand.buffer[start:LINE_LIMIT] = self._begun
        hand.begin(self._inode, start)
        return start

    def _has_read(self, hand: Hand, start: int, size: int) -> None:
        if size == 0:
            hand.let_go(0)
            self._end()
        else:
            self._heard = self._loop.time()
            self._take(hand, start, LINE_LIMIT + size)
            hand.let_go(size)

    def _end(self) -> None:
        if self._fd >= 0:
            self.close()
            if self._on_eof:
                self._on_eof()

    def _take(self, hand: Hand, start: int, end: int) -> None:
        """Hand on the lines that end in the bytes just read (up to `end`), and keep what is begun."""
        hand.has_read(start, end, raw=self._dress is None)
        if end - LINE_LIMIT > RECENT:
            self._recent = bytes(hand.buffer[end - RECENT - 1 : end])
        else:
            self._recent = (self._recent + hand.buffer[LINE_LIMIT:end])[-RECENT - 1 :]
        cut = hand.newline(LINE_LIMIT, end)
        if cut == 0:
            if end - start <= LINE_LIMIT:
                self._begin(bytes(hand.buffer[start:end]))
                return
            cut = end
        elif end - cut > LINE_LIMIT:
            cut = end
        elif self._gathers:
            cut = self._behind_what_is_whole(hand, start, cut, end)
        if cut > start:
            self._hand_on(hand.buffer[start:cut])
        self._begin(bytes(hand.buffer[cut:end]))

    def _behind_what_is_whole(self, hand: Hand, start: int, cut: int, end: int) -> int:
        """The place before a traceback that may not have come whole, if there is one at the end of these lines."""
        last = self._split(bytes(hand.buffer[start:cut]))[-1]
        before = cut - len(last) - 1
        if not tracebacks.may_go_on(last) or end - before > LINE_LIMIT:
            return cut
        if not hand.can_keep(self._place, end - before):
            return cut  # a manager that is killed meanwhile would take it along
        if self._gathered is None:
            self._gathered = self._loop.call_later(GATHERING, self._has_gathered)
        return before

    def _has_gathered(self) -> None:
        """Nothing more has come of it; or it comes so slowly that it is told in parts."""
        self._gathered = None
        whole = self._begun.rfind(b"\n") + 1
        if whole:
            lines, rest = self._begun[:whole], self._begun[whole:]
            self._hand_on(lines)
            self._begin(rest)

    def _hand_on_the_rest(self) -> None:
        """Nothing more is read for this target: an unfinished line gets its end."""
        if self._gathered is not None:
            self._gathered.cancel()
            self._gathered = None
        if self._begun or self._inside_line:
            self._hand_on(self._begun if self._begun.endswith(b"\n") else self._begun + b"\n")
            self._begin(b"")

    def _begin(self, line: bytes) -> None:
        """This is the beginning of a line."""
        self._begun = line
        if line or self._place is not None:
            self._place = inhand.hand.keep(self._place, self._inode, line)

    def _hand_on(self, chunk: bytes | memoryview) -> None:
        if self._held is not None:
            self._held.append(bytes(chunk))
            return
        inside, self._inside_line = self._inside_line, chunk[-1] != 0x0A
        written = chunk if self._dress is None else self._dress(bytes(chunk), inside)
        if self._target.shows_how_far:
            inhand.hand.hand_on(len(written), len(chunk))
        self._target.write(written)
        self._tell_followers(chunk)

    def _tell_followers(self, chunk: bytes | memoryview) -> None:
        if self._followers:
            lines = bytes(chunk).removesuffix(b"\n").split(b"\n")
            for follower in self._followers:
                follower(lines)


def from_a_character(cut: bytes) -> bytes:
    """What was cut off somewhere, without the rest of a character of UTF-8 that it begins in."""
    for start in range(min(4, len(cut))):
        if cut[start] & 0xC0 != 0x80:
            return cut[start:]
    return cut
