"""Steady load through nginx by clients that check every answer: who answered, and whether it was what was asked.

Each client is a thread that asks one request after another, on a connection of its own each time, until the load ends.
What is not a whole and right answer is a failure, and is kept with its time, so that a test can say that there was
none, or whose it was.
"""

import itertools
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Self

from tests.waiting import eventually

PATIENCE = 20.0
"""Seconds that a client waits for an answer: a bound on a broken program, and nginx gives up later."""


@dataclass(frozen=True)
class Answered:
    """A right answer: when it was asked for and had (monotonic seconds), and by whom it was given."""

    begun: float
    ended: float
    path: str
    pid: int
    generation: int


@dataclass(frozen=True)
class Failed:
    """A request without a right answer."""

    begun: float
    ended: float
    path: str
    why: str


class Load:
    """`clients` at work from entry to exit on 127.0.0.1:`port`, each asking for `paths` in turn.

    `pause`: milliseconds that the program takes for a request, so that there is always one in hand.
    On entry each client has had an answer.
    """

    def __init__(self, port: int, *, paths: Sequence[str] = ("/",), clients: int = 5, pause: int = 3) -> None:
        self.answers: list[Answered] = []
        self.failures: list[Failed] = []
        self._port = port
        self._paths = paths
        self._pause = pause
        self._numbers = itertools.count()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        try:
            self.goes_on(len(self._threads))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE + 5)

    def goes_on(self, count: int = 40) -> None:
        """Wait until `count` more requests, begun after this call, have come to an end, good or bad."""
        begun = monotonic()
        eventually(lambda: len(self.since(begun)) + self._failed_since(begun) >= count, within=30)

    def since(self, moment: float) -> list[Answered]:
        """The answers to requests that were begun after this moment."""
        return [answer for answer in tuple(self.answers) if answer.begun > moment]

    def generations_since(self, moment: float) -> set[int]:
        """Which generations have answered those."""
        return {answer.generation for answer in self.since(moment)}

    def _failed_since(self, moment: float) -> int:
        return sum(failure.begun > moment for failure in tuple(self.failures))

    def _ask_on(self) -> None:
        for path in itertools.cycle(self._paths):
            if self._ended.is_set():
                return
            uri = f"{path}?pause={self._pause}&n={next(self._numbers)}"
            begun = monotonic()
            try:
                text = get(self._port, uri)
                said = dict(line.partition(" ")[::2] for line in text.splitlines())
                if said.get("asked") != uri or not text.endswith("end\n"):
                    raise OSError(f"another answer than to {uri}: {text!r}")
                answer = Answered(begun, monotonic(), path, int(said["pid"]), int(said["generation"]))
                self.answers.append(answer)
            except (OSError, ValueError, KeyError) as error:
                self.failures.append(Failed(begun, monotonic(), path, repr(error)))


def get(port: int, uri: str) -> str:
    """The body of the answer to a GET; OSError when it is not 200, with what it is."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(f"GET {uri} HTTP/1.0\r\nHost: load\r\n\r\n".encode())
        received = bytearray()
        while more := connection.recv(65536):
            received += more
    head, _, body = received.decode(errors="replace").partition("\r\n\r\n")
    status = head.partition("\r\n")[0]
    if " 200 " not in f"{status} ":
        raise OSError(status or "no answer")
    return body
