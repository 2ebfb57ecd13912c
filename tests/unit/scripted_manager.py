"""A stand-in for the manager: answers the control socket from a script, in a thread, over a real Unix socket.

It speaks the real codec, so a test of the client or of a command is a test of the bytes too.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fcgimgr.control import codec, messages
from fcgimgr.control.messages import ControlError, Request

Answer = Callable[["Connection", Request], Any]


class Connection:
    """One client, as the script sees it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def notify(self, method: str, params: Any) -> None:
        self._socket.sendall(codec.encode_notification(method, params))

    def send(self, raw: bytes) -> None:
        self._socket.sendall(raw)

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def until_the_client_hangs_up(self) -> None:
        while self._socket.recv(4096):
            pass


class ScriptedManager:
    """Answers each method by `answers[method]`: a result, a ControlError to refuse with, or a function that gives
    one of these (None: it has said all itself). `requests` are those received, in order."""

    def __init__(self, path: Path | str, **answers: Any) -> None:
        self.path = str(path)
        self.answers: dict[str, Any] = answers
        self.requests: list[Request] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._clients: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()

    @property
    def asked(self) -> list[tuple[str, messages.Params]]:
        return [(request.method, request.params) for request in self.requests]

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._clients.append(client)
            with client, contextlib.suppress(OSError):
                for line in _lines(client):
                    self._answer(client, line)

    def _answer(self, client: socket.socket, line: bytes) -> None:
        try:
            request = codec.parse_request(line)
        except ControlError as error:
            client.sendall(codec.encode_refusal(error))
            return
        self.requests.append(request)
        result = self.answers.get(request.method)
        if callable(result):
            result = result(Connection(client), request)
        if isinstance(result, ControlError):
            client.sendall(codec.encode_error(request.id, result.code, str(result)))
        elif result is not None:
            client.sendall(codec.encode_result(request.id, result))


def _lines(client: socket.socket) -> Iterator[bytes]:
    reader = codec.LineReader()
    while received := client.recv(65536):
        yield from reader.feed(received)
