"""Clients that POST without end, each with an id of its own, and check every answer.

The client is a thread and a socket: it sends the next POST when it has had the answer to the last one, at once or after
a pause. A POST is sent once; what has not been answered with 200 and its id, whole, has failed.
"""

import random
import socket
import threading
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Final, Self

from tests.waiting import eventually

PATIENCE: Final = 65.0
"""Seconds that a client waits for an answer: nginx gives up before (60), and says so with 504."""

#: Milliseconds that a program waits before it answers, and in the middle of the answer: none at all, as short as a
#: system call, and now and then so long that any look at the connection finds it idle.
WAITS: Final = (0, 0, 1, 2, 3, 5, 10)
LONG_WAIT: Final = 400
LONG: Final = 0.004  # the share of POSTs that wait so long, before and between each

PAUSES: Final = (0.0, 0.0, 0.0, 0.002, 0.02)
"""Seconds between an answer and the next POST; a client has each of these for a while."""


@dataclass(frozen=True)
class Failed:
    """A POST that was not answered rightly. begun, ended: monotonic seconds."""

    name: str
    begun: float
    ended: float
    why: str


class Posts:
    """`clients` at work on 127.0.0.1:`port` from entry to exit. On entry each has had a right answer."""

    def __init__(self, port: int, clients: int, seed: int = 1) -> None:
        self.failures: list[Failed] = []
        self._longest = [0.0] * clients
        self._port = port
        self._seed = seed
        self._counts = [0] * clients
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._go_on, args=(client,), daemon=True) for client in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        try:
            eventually(lambda: all(self._counts), within=60)
            assert not self.failures, self.failures[:3]
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """No more POSTs; those under way have come to an end."""
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE + 5)

    @property
    def count(self) -> int:
        """How many have come to an end, good or bad."""
        return sum(self._counts)

    @property
    def longest(self) -> float:
        """Seconds that the longest right answer took."""
        return max(self._longest)

    def go_on(self, count: int = 50) -> None:
        """Wait until so many more have come to an end."""
        until = self.count + count
        eventually(lambda: self.count >= until, within=PATIENCE)

    def _go_on(self, client: int) -> None:
        chance = random.Random(f"{self._seed} {client}")
        connection: Connection | None = None
        pause = 0.0
        while not self._ended.is_set():
            number = self._counts[client]
            if number % 100 == 0:
                pause = chance.choice(PAUSES)
            before, between = (LONG_WAIT if chance.random() < LONG else chance.choice(WAITS) for _ in range(2))
            name = f"{client}-{number}"
            begun = monotonic()
            try:
                connection = connection or Connection(self._port)
                connection.post(name, before, between)
                self._longest[client] = max(self._longest[client], monotonic() - begun)
            except (OSError, ValueError) as error:
                self.failures.append(Failed(name, begun, monotonic(), str(error) or repr(error)))
            if connection is not None and connection.over:
                connection.close()
                connection = None
            self._counts[client] += 1
            if pause:
                sleep(pause)
        if connection is not None:
            connection.close()


class Connection:
    """An HTTP connection to 127.0.0.1:`port`. `over`: it is of no further use."""

    def __init__(self, port: int) -> None:
        self.over = False
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._begun = False  # the answer has

    def close(self) -> None:
        self._socket.close()

    def post(self, name: str, before: int, between: int) -> None:
        """OSError or ValueError when it is not answered with 200 and this name: it says what came instead."""
        body = f"{name} {before} {between}"
        self.over = True
        self._socket.sendall(f"POST / HTTP/1.1\r\nHost: promise\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        self._begun = False
        head = self._until(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        fields = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if fields.get("transfer-encoding") == "chunked":
            text = self._chunks()
        else:
            text = self._exactly(int(fields["content-length"]))
        self.over = fields.get("connection") == "close"
        if status.split()[1] != "200":
            raise ValueError(status)
        if text != f"{name}\n".encode():
            raise ValueError(f"another answer: {text[:200]!r}")

    def _chunks(self) -> bytes:
        text = b""
        while length := int(self._until(b"\r\n"), 16):
            text += self._exactly(length)
            self._until(b"\r\n")
        self._until(b"\r\n")
        return text

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._received:
            self._receive()
        found, _, self._received = self._received.partition(mark)
        return found

    def _exactly(self, length: int) -> bytes:
        while len(self._received) < length:
            self._receive()
        found, self._received = self._received[:length], self._received[length:]
        return found

    def _receive(self) -> None:
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionError("cut off in the middle of the answer" if self._begun else "closed unanswered")
        self._begun = True
        self._received += received


def carried_out(log: str) -> tuple[dict[str, int], dict[str, int]]:
    """Of the text of a program's log: how often each id was begun, and how often it was done."""
    begun: dict[str, int] = {}
    done: dict[str, int] = {}
    for line in log.splitlines():
        what, _, name = line.partition(" ")
        counts = begun if what == "begun" else done
        counts[name] = counts.get(name, 0) + 1
    return begun, done
