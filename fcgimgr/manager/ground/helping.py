"""What a helper does (linux/helper.py): it has jobs, and answers what is asked of each.

A job looks at processes, and may block there. It is made in the helper and asked again and again; while it works out an
answer it may tell something, and go on with what is said to that. Where a helper could not look at what the manager can
look at (linux/helper.py says when), jobs are made and asked in the manager, as if they could not block.

Nothing that goes wrong with one process ends the helper, which has other work: it is told. Only the end of its socket
does, and then it leaves nothing behind.
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
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.gate import Gates
from fcgimgr.linux.helper import Progress, frame, messages
from fcgimgr.linux.processes import reap

#: Tells what was found, and hands back what is said to that.
Tell: TypeAlias = Callable[[Any], Any]

#: The number of a fault that happened in no job.
NO_JOB: Final = 0


class Ground(NamedTuple):
    """What a job has at hand. at: is told whom the next step is about. progress: where it is noted whom it holds.
    given_up: who is not to be looked at, as that did not end."""

    gates: Gates
    at: Callable[[int], None]
    progress: Progress
    given_up: Collection[int]


class Job(Protocol):
    """Requests, answers and what is told are of the built-in types."""

    def answer(self, request: Any, tell: Tell) -> Any:
        """May block."""

    def end(self) -> None:
        """Leave nothing behind: no gate closed, nobody held."""


Makers: TypeAlias = dict[str, Callable[[Ground], Job]]


class HungUpError(Exception):
    """The manager has hung up."""


class OverError(Exception):
    """Nobody waits for the answer any more."""


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
        with suppress(HungUpError):
            while True:
                poll.poll()
                self._hear_of_threads()
                while self._receive(socket.MSG_DONTWAIT):
                    self._heed(self._messages.popleft())
        for job in self._jobs.values():
            with suppress(Exception):  # there is nobody to tell, and the others are to leave nothing behind either
                job.end()

    def _hear_of_threads(self) -> None:
        """Take in what the kernel tells of those that are traced."""
        with suppress(BlockingIOError):
            while os.read(self._children, 65536):
                continue
        for death in reap(self._stopped):
            self._gates.ended(death.pid)
        self._gates.go_on()
        self._progress.at(0)

    def _stopped(self, thread: int) -> None:
        try:
            self._gates.stopped(thread)
        except Exception:  # noqa: BLE001 - as below; the others that have stopped are to go on
            self._say(NO_JOB, "fault", traceback.format_exc())
            self._gates.open_of(thread)

    def _receive(self, flags: int = 0) -> bool:
        """Whether there is a message. HungUpError: there will be none any more."""
        while not self._messages:
            try:
                some = self._socket.recv(65536, flags)
            except BlockingIOError:
                return False
            except OSError as error:
                raise HungUpError from error
            if not some:
                raise HungUpError
            self._received += some
            self._messages.extend(messages(self._received))
        return True

    def _heed(self, message: Any) -> None:
        number, what, content = message
        self._progress.at(0)
        try:
            if what == "make":
                kind, given_up = content
                ground = Ground(self._gates, self._progress.at, self._progress, frozenset(given_up))
                self._jobs[number] = self._makers[kind](ground)
            elif what == "ask":
                answer = self._jobs[number].answer(content, lambda told: self._tell(number, told))
                self._say(number, "answer", answer)
            elif (job := self._jobs.pop(number, None)) is not None:  # "end" or "drop"
                job.end()
            if what == "end":
                self._say(number, "answer", None)
        except HungUpError:
            raise
        except OverError:
            pass
        except LinuxError as error:
            self._say(number, "refused", str(error))
        except Exception:  # noqa: BLE001 - a fault of ours is to be heard of where it can be told
            self._say(number, "fault", traceback.format_exc())
        self._progress.at(0)

    def _tell(self, number: int, told: Any) -> Any:
        """OverError: whoever asked is not there any more."""
        _, before = self._progress.seen()
        self._progress.at(0)  # it is the manager who is waited for
        self._say(number, "tell", told)
        later: list[Any] = []
        while True:
            self._receive()
            message = self._messages.popleft()
            if message[0] == number and message[1] in ("said", "over"):
                break
            later.append(message)
        self._messages.extendleft(reversed(later))
        self._progress.at(before)
        if message[1] == "over":
            raise OverError
        return message[2]

    def _say(self, number: int, what: str, content: Any) -> None:
        try:
            self._socket.sendall(frame((number, what, content)))
        except OSError as error:
            raise HungUpError from error


def serve(makers: Makers, progress: Progress, its: socket.socket) -> None:
    """The whole life of a helper."""
    Helping(its, makers, progress).serve()
