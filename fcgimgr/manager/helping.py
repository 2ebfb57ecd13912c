"""What a helper does (linux/helper.py): it has jobs, and answers what is asked of each.

A job looks at processes, and may block there. It is made in the helper and asked again and again; while it works out an
answer it may tell something, and go on with what is said to that. Where a helper could not look at what the manager can
look at (linux/helper.py says when), jobs are made and asked in the manager, as if they could not block.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import traceback
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeAlias

from fcgimgr.linux.gate import Gates
from fcgimgr.linux.helper import Progress, frame, messages
from fcgimgr.linux.processes import reap

#: Tells what was found, and hands back what is said to that.
Tell: TypeAlias = Callable[[Any], Any]


class Ground(NamedTuple):
    """What a job has at hand. at: is told whom the next step is about. given_up: who is not to be looked at, as that
    did not end."""

    gates: Gates
    at: Callable[[int], None]
    given_up: Collection[int]


class Job(Protocol):
    """Requests, answers and what is told are of the built-in types."""

    def answer(self, request: Any, tell: Tell) -> Any:
        """May block."""

    def end(self) -> None:
        """Leave nothing behind: no gate closed, nobody held."""


Makers: TypeAlias = dict[str, Callable[[Ground], Job]]


class Helping:
    """A helper at work."""

    def __init__(self, its: socket.socket, makers: Makers, progress: Progress) -> None:
        self._socket = its
        self._makers = makers
        self._progress = progress
        self._gates = Gates(progress.at)
        self._jobs: dict[int, Job] = {}
        self._received = bytearray()
        self._messages: deque[Any] = deque()
        self._children, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Until the manager hangs up."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._children, select.POLLIN)
        with suppress(EOFError, OSError):
            while True:
                poll.poll()
                self._hear_of_threads()
                while self._receive(socket.MSG_DONTWAIT):
                    self._heed(self._messages.popleft())
        for job in self._jobs.values():
            job.end()

    def _hear_of_threads(self) -> None:
        """Take in what the kernel tells of those that are traced."""
        with suppress(BlockingIOError):
            while os.read(self._children, 65536):
                continue
        for death in reap(self._gates.stopped):
            self._gates.ended(death.pid)
        self._gates.go_on()
        self._progress.at(0)

    def _receive(self, flags: int = 0) -> bool:
        """Whether there is a message. EOFError: there will be none any more."""
        while not self._messages:
            try:
                some = self._socket.recv(65536, flags)
            except BlockingIOError:
                return False
            if not some:
                raise EOFError
            self._received += some
            self._messages.extend(messages(self._received))
        return True

    def _heed(self, message: Any) -> None:
        number, what, content = message
        self._progress.at(0)
        try:
            if what == "make":
                kind, given_up = content
                self._jobs[number] = self._makers[kind](Ground(self._gates, self._progress.at, frozenset(given_up)))
            elif what == "ask":
                answer = self._jobs[number].answer(content, lambda told: self._tell(number, told))
                self._say(number, "answer", answer)
            elif (job := self._jobs.pop(number, None)) is not None:  # "end" or "drop"
                job.end()
            if what == "end":
                self._say(number, "answer", None)
        except (EOFError, OSError):
            raise
        except Exception:  # noqa: BLE001 - a fault of ours is to be heard of where it can be told
            self._say(number, "fault", traceback.format_exc())

    def _tell(self, number: int, told: Any) -> Any:
        self._say(number, "tell", told)
        later: list[Any] = []
        while True:
            self._receive()
            message = self._messages.popleft()
            if message[:2] == (number, "said"):
                self._messages.extendleft(reversed(later))
                return message[2]
            later.append(message)

    def _say(self, number: int, what: str, content: Any) -> None:
        self._socket.sendall(frame((number, what, content)))


def serve(makers: Makers, progress: Progress, its: socket.socket) -> None:
    """The whole life of a helper."""
    Helping(its, makers, progress).serve()
