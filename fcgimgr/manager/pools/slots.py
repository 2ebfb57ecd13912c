"""One slot of a pool as the shell knows it: what core need not decide anything, above all where its output goes.

Processes come and go in a slot, each with pipes of its own. What stays is the slot: whoever follows its output follows
it across restarts, and the last words of the process before are kept, for they explain its death.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections.abc import Callable, Iterable
from typing import Final

from fcgimgr.core.process import Exit
from fcgimgr.fastcgi.scoreboard import Reading
from fcgimgr.linux.spawn import Forked
from fcgimgr.manager.children.board import Board
from fcgimgr.manager.logs.pump import Pump
from fcgimgr.manager.pools.causes import Restarts

# Pipes of dead processes of which every line is kept; of those before them it is read and dropped, and of still older
# ones not even that: whoever writes to them waits then.
MOST_LINGERING: Final = 4
MOST_DROPPED: Final = 64
LAST_WORDS: Final = 10  # log lines of a dead process that are kept
# Seconds before its end in which what a process says may tell why: it may take as long to write a core dump.
OF_ITS_END: Final = 2.0
MOST_LINES: Final = 200  # of those that a pump remembers

Lines = list[bytes]


class Slot:
    """`stderr` is None where it goes with stdout (redirect_stderr)."""

    __slots__ = (
        "armed", "at_risk", "board", "born", "end", "exit", "followers", "forked", "fresh_rss", "has_told_of_lingering",
        "identity", "lingering", "name", "old_stderr", "old_stdout", "pipes", "requests", "restarts", "since",
        "spawned", "started", "status_text", "stderr", "stdout", "timer",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = 0.0  # monotonic seconds
        self.born: int | None = None  # when, in the kernel's ticks: with the pid, which process it is (procfs)
        self.identity: int | None = None  # the same, where there is such a thing (PidFd.identity)
        self.pipes: tuple[int, ...] = ()  # inodes of the pipes it writes to
        self.board: Board | None = None  # what its process shows of its requests
        self.fresh_rss: int | None = None  # bytes of memory when it was ready; None: not known
        self.spawned = 0  # how often; with those that could not be
        self.restarts = Restarts()  # … but for the first, by why
        self.since = 0.0  # when it came into the state that it is in, monotonic; 0: not known
        self.exit: Exit | None = None
        self.end = ""  # that in words, with what it had in hand and what it said last
        self.at_risk = 0  # connections that its process had in hand when it was told to end all the same
        self.forked: Forked | None = None  # while its process has not come to its program
        self.requests: int | None = None
        self.status_text: str | None = None
        self.timer: TimerHandle | None = None
        self.armed: float | None = None
        self.stdout: Pump | None = None
        self.stderr: Pump | None = None
        self.old_stdout: Lines = []
        self.old_stderr: Lines = []
        self.lingering: list[Pump] = []  # of dead processes whose descendants still hold the pipe
        self.has_told_of_lingering = False
        self.followers: list[Follower] = []

    def begin(self, now: float, stdout: Pump, stderr: Pump | None, board: Board | None = None) -> None:
        """A new process writes to these pipes, and to this board."""
        self.started = now
        self.count_spawn()
        self.at_risk = 0
        self.born = self.identity = self.fresh_rss = None
        self.requests = self.status_text = None
        self.let_go_of_board()
        self.board = board
        self.hear(stdout, stderr)

    def count_spawn(self) -> None:
        """A process was spawned, or could not be."""
        self.spawned += 1
        if self.spawned > 1:
            self.restarts.count()

    def hear(self, stdout: Pump | None, stderr: Pump | None) -> None:
        """Its process writes to these pipes."""
        self.stdout, self.stderr = stdout, stderr
        self.pipes = tuple(pump.inode for pump in (stdout, stderr) if pump is not None)
        for follower in self.followers:
            follower.attach(self)

    def hear_last_words(self, is_known: Callable[[bytes], bool] | None = None) -> bool:
        """The process is dead: read what it wrote before, and keep the end of it.

        is_known: whether another has said the same already, so that it need not be logged. The answer: that was so.
        """
        known = False
        errors = self.pump("stderr")
        for pump in (self.stdout, self.stderr):
            if pump is not None and pump is errors and is_known is not None:
                known = pump.drain_unless(is_known)
            elif pump is not None:
                pump.drain()
        self.old_stdout = self.stdout.tail(LAST_WORDS) if self.stdout else []
        self.old_stderr = self.stderr.tail(LAST_WORDS) if self.stderr else []
        return known

    def lines_before_its_end(self) -> Lines:
        """The last lines on the standard error of the process that has just ended, as many as are kept; none, if it had
        been silent for a while: they are of something else.
        """
        pump = self.pump("stderr")
        return pump.tail(MOST_LINES) if pump is not None and pump.silent_for <= OF_ITS_END else []

    def set_pumps_aside(self) -> str | None:
        """Make room for the next process's pumps. Who still writes to the old pipes is read on, within bounds.

        The answer: what is to be told of those bounds, the first time that they are passed.
        """
        pumps = [*self.lingering, self.stdout, self.stderr]
        self.lingering = [pump for pump in pumps if pump is not None and not pump.closed]
        self.stdout = self.stderr = None
        for pump in self.lingering[:-MOST_LINGERING]:
            pump.drop()
        while len(self.lingering) > MOST_LINGERING + MOST_DROPPED:
            self.lingering.pop(0).close()
        if len(self.lingering) <= MOST_LINGERING or self.has_told_of_lingering:
            return None
        self.has_told_of_lingering = True
        return (
            "what it started has outlived its process, again and again: the output of all but the last "
            f"{MOST_LINGERING} is dropped, and that of all but the last {MOST_LINGERING + MOST_DROPPED} not even read"
        )

    def reading(self, now: float) -> Reading | None:
        """What its process shows of its requests, at `now` (monotonic); None: nothing is known."""
        return self.board.read(now) if self.board is not None else None

    def may_be_busy(self, now: float) -> bool:
        """Whether its process has a request in hand, or nothing can be read of it just now."""
        reading = self.reading(now)
        return bool(reading.in_hand) if reading is not None else self.board is not None

    def in_hand(self, now: float) -> str:
        """The requests that it has in hand, to be put behind what is said of it."""
        reading = self.reading(now)
        if reading is None or not reading.in_hand:
            return ""
        oldest = reading.in_hand[0]
        more = f" and {len(reading.in_hand) - 1} more" if len(reading.in_hand) > 1 else ""
        return f", with {oldest.method} {oldest.uri} in hand for {now - oldest.since:.1f} s{more}"

    def let_go_of_board(self) -> None:
        """Its process is dead."""
        if self.board is not None:
            self.board.close()
            self.board = None

    def close(self) -> None:
        """Let go of all pipes, of the board, and of the timer."""
        self.let_go_of_board()
        for pump in (*self.lingering, self.stdout, self.stderr):
            if pump is not None:
                pump.close()
        self.lingering = []
        self.stdout = self.stderr = None
        if self.timer is not None:
            self.timer.cancel()

    def pump(self, stream: str) -> Pump | None:
        """The pipe that carries `stdout` or `stderr`."""
        return self.stdout if stream == "stdout" or self.stderr is None else self.stderr

    def last_lines(self, stream: str, count: int, *, alive: bool) -> Lines:
        """The last lines that the process wrote, and if it wrote few, those of the one before it."""
        if count == 0:
            return []
        pump = self.pump(stream)
        lines = pump.tail(count) if pump is not None else []
        if pump is not None and not alive:
            return lines  # it is dead, and what is kept as old is its own
        old = self.old_stdout if pump is self.stdout else self.old_stderr
        return (old + lines)[-count:]

    def last_words(self, *, alive: bool) -> Lines:
        """What explains a death: the end of its standard error, or of its standard output if it said nothing there."""
        words = self.last_lines("stderr", LAST_WORDS, alive=alive)
        return words or self.last_lines("stdout", LAST_WORDS, alive=alive)

    def follow(self, stream: str, callback: Callable[[Lines], None]) -> Callable[[], None]:
        """Call `callback` with lines as they are written, until the answer is called."""
        follower = Follower(stream, callback)
        self.followers.append(follower)
        follower.attach(self)

        def stop() -> None:
            follower.cancel()
            if follower in self.followers:
                self.followers.remove(follower)

        return stop


class Follower:
    """Somebody who reads one stream of a slot as it comes, across its processes."""

    __slots__ = ("callback", "cancel", "stream")

    def __init__(self, stream: str, callback: Callable[[Lines], None]) -> None:
        self.stream = stream
        self.callback = callback
        self.cancel: Callable[[], None] = lambda: None

    def attach(self, slot: Slot) -> None:
        """Go on with the slot's present process."""
        pump = slot.pump(self.stream)
        if pump is not None:
            self.cancel = pump.follow(self.callback)


def longest_in_hand(slots: Iterable[Slot], now: float) -> str:
    """The request that has taken longest of all, to be put behind what is said of them: " (app_00: GET /slow 22 s)"."""
    readings = ((slot.name, slot.reading(now)) for slot in slots)
    found = [(reading.in_hand[0], name) for name, reading in readings if reading is not None and reading.in_hand]
    if not found:
        return ""
    request, name = min(found, key=lambda one: one[0].since)
    return f" ({name}: {request.method} {request.uri} {now - request.since:.0f} s)"
