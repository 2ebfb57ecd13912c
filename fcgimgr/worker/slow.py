"""The slow log: a request that takes longer than slow_after is written down once, with where it is just then.

A thread of its own looks, for only the interpreter can tell its frames with their lines of source. It sleeps until the
oldest request in hand is due, and where none is, until one begins: an idle worker makes no system call, and a busy one
pays with one comparison a request. While an extension holds the interpreter's lock it cannot look, and does so when
that lets go. (One that never lets go is found by request_timeout, which needs no lock:
fcgimgr/manager/looking/limits.py.)
"""

from __future__ import annotations

import linecache
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final, Protocol

from fcgimgr.worker.accesslog import escaped
from fcgimgr.worker.appending import AppendedFile
from fcgimgr.worker.patched import frame_of
from fcgimgr.worker.saying import fault, say

#: Frames that are written, the innermost ones.
DEEPEST: Final = 64

_OURS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class InHand(Protocol):
    """A thread, and its request if it is `busy`. `number`: of the request; `told`: of the one written down last;
    `since`: monotonic seconds."""

    thread: int
    busy: bool
    number: int
    told: int
    since: float
    method: str
    uri: str


class SlowLog:
    """Writes to `file` what of `in_hand()` has taken `after` seconds."""

    def __init__(self, after: float, file: AppendedFile, in_hand: Callable[[], Iterable[InHand]]) -> None:
        self._after = after
        self._file = file
        self._in_hand = in_hand
        self._asleep = True
        self._failed = False
        self._begun = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        pool, process = os.environ.get("FCGIMGR_POOL", "-"), os.environ.get("FCGIMGR_PROCESS", "-")
        self._who = f"{escaped(pool)}:{escaped(process)} pid={os.getpid()}"

    def began(self) -> None:
        """A request has begun, and is to be found in hand.

        The flag is read without a lock: who goes to sleep sets it first, and then looks once more.
        """
        if self._asleep:
            if self._thread is None:
                self._start()
            self._begun.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="slow log", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as error:  # a limit of the system: RLIMIT_NPROC, pids.max, memory
                    say(f"no slow log: {error}")
                    self._asleep = False

    def _run(self) -> None:
        while True:
            try:
                self._watch()
            except Exception as error:  # noqa: BLE001  # a fault in one entry must not be the end of all others
                if not self._failed:
                    self._failed = True
                    say(f"an entry of the slow log cannot be made, nor any other like it: {escaped(fault(error))}")
                time.sleep(min(self._after, 1.0))  # whatever it is, it is not tried without a pause

    def _watch(self) -> None:
        """Until the next look is due."""
        due = self.look()
        if due is None:
            # Nothing in hand now. Look once more in a while before going to sleep for good: a worker that has a
            # short request now and then need not wake this thread for each of them.
            time.sleep(self._after)
            due = self.look()
        if due is None:
            self._begun.clear()
            self._asleep = True
            due = self.look()
            if due is None:
                self._begun.wait()
            self._asleep = False
        if due is not None:
            time.sleep(max(0.0, due - monotonic()))

    def look(self) -> float | None:
        """Write down what is due; when to look again (monotonic), None: nothing else is in hand."""
        now = monotonic()
        due: float | None = None
        for hand in self._in_hand():
            number, since = hand.number, hand.since
            if not hand.busy or hand.told == number:
                continue
            if since + self._after <= now:
                hand.told = number  # first: one that cannot be written must not keep back the others for ever
                self._write(hand, number, now - since)
            elif due is None or since + self._after < due:
                due = since + self._after
        return due

    def _write(self, hand: InHand, number: int, took: float) -> None:
        frame = frame_of(hand.thread)
        if frame is None:
            return
        linecache.checkcache()  # a file may be another since it was last shown
        stack = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=DEEPEST)
        del frame
        stack.reverse()
        asked = f"{escaped(hand.method)} {escaped(hand.uri)}"
        if not hand.busy or hand.number != number:
            return  # it has just ended, and what was seen may be of another
        while len(stack) > 1 and _is_not_the_applications(stack[0].filename):
            del stack[0]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        head = f"{stamp}Z {self._who} {asked} has taken {took:.3f} s and is here:\n"
        self._file.write((head + "".join(stack.format()) + "\n").encode("utf-8", "backslashreplace"))


def _is_not_the_applications(filename: str) -> bool:
    return filename.startswith(_OURS) or filename == threading.__file__ or f"{os.sep}flup{os.sep}" in filename
