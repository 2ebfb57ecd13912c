"""A blocking client of the control socket: what the command line asks the manager with.

One connection, one request after another. Notifications that arrive while a request waits go to `on_event`; after a
`tail` or `events` that follows, `notices()` gives them until either side hangs up.
"""

import errno
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from . import codec
from .messages import PARSE_ERROR, REFUSED, ControlError, ManagerGone, NoManager, NoParams, Notice, Params, Response

T = TypeVar("T")

ANSWER_LIMIT: Final = 64 * 1024 * 1024
"""The longest line taken from a manager, in bytes: the status of 1000 processes is 0.2 MB."""

#: Milliseconds of a wait without end. A signal that comes just before the system call is heard by Python just after it.
_SLICE: Final = 1000
_PATH_LIMIT: Final = 107  # sizeof(sockaddr_un.sun_path) less the final NUL, unix(7)


class Client:
    """A connection to the manager at `path`.

    `timeout`: seconds that the manager may be silent when it need not wait for anything. NoManager when nobody
    answers there; ControlError when somebody does, but not as a manager should.
    """

    def __init__(self, path: str, timeout: float = 10.0) -> None:
        self.path = path
        self._timeout = timeout
        self._reader = codec.LineReader(ANSWER_LIMIT)
        self._received: deque[Response | Notice] = deque()
        self._last_id = 0
        self._output: int | None = None
        self._socket = _connect(path, timeout)

    def heed_reader(self, output: int) -> None:
        """From now on give up waiting, by BrokenPipeError, when nobody reads any more what is written to this fd."""
        self._output = output

    def call(
        self,
        method: str,
        params: Params | None = None,
        *,
        answer: type[T],
        on_event: Callable[[Notice], None] | None = None,
        patient: bool = False,
    ) -> T:
        """Ask for `method` and return its result as an `answer` (msgspec.Raw: the JSON as it came).

        `patient` waits however long it takes: for commands that end when a process has started or stopped.
        ControlError when the manager refuses or falls silent, ManagerGone when it hangs up.
        """
        self._last_id += 1
        self._socket.settimeout(None if patient else self._timeout)
        try:
            self._socket.sendall(codec.encode_request(self._last_id, method, params or NoParams()))
        except TimeoutError as error:
            raise self._silent() from error
        except (BrokenPipeError, ConnectionResetError):
            pass  # It hung up before it read; what it said why (too many clients) may still be there to be received.
        while (message := self._next_message()) is not None:
            if not isinstance(message, Response):
                if on_event is not None:
                    on_event(message)
            elif message.error is not None:
                raise ControlError(message.error.message, code=message.error.code, id=message.id)
            elif message.id == self._last_id:
                return _decode(message.result, answer)
            else:
                raise ControlError(f"the manager at {self.path} answered another question than the one asked")
        raise ManagerGone(f"the manager at {self.path} went away before it answered")

    def notices(self) -> Iterator[Notice]:
        """What is told from now on, for as long as it takes; ends when the manager hangs up."""
        self._socket.settimeout(None)
        while (message := self._next_message()) is not None:
            if not isinstance(message, Response):
                yield message

    def process(self) -> int | None:
        """A pidfd of the manager, readable once it has ended, for the caller to close; None where that is not known.

        The kernel notes who called listen() (SO_PEERCRED, unix(7)); asked while that process lives and is connected,
        the pid cannot have become another's.
        """
        pid, _, _ = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            return os.pidfd_open(pid)
        except OSError:
            return None  # In another pid namespace, or a systemd socket's: that it hangs up must do.

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _next_message(self) -> Response | Notice | None:
        """The next message of a kind that is known; None when the manager has hung up."""
        while not self._received:
            self._wait_if_patient()
            try:
                received = self._socket.recv(256 * 1024)
            except TimeoutError as error:
                raise self._silent() from error
            except ConnectionResetError:
                return None
            if not received:
                return None
            for line in self._reader.feed(received):
                message = codec.parse_message(line)
                if message is not None:
                    self._received.append(message)
        return self._received.popleft()

    def _wait_if_patient(self) -> None:
        """Return when something has come. BrokenPipeError: nobody reads any more what is written to the output."""
        if self._output is None and self._socket.gettimeout() is not None:
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if self._output is not None:
            poll.register(self._output, 0)  # errors come unasked: on a pipe without a reader, a terminal that has gone
        while not (events := poll.poll(_SLICE)):
            pass
        if any(fd == self._output for fd, _ in events):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _silent(self) -> ControlError:
        return ControlError(f"the manager at {self.path} has not answered for {self._timeout:g} s")


def _connect(path: str, timeout: float) -> socket.socket:
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise NoManager(f"no manager at {path}: a socket's path has at most {_PATH_LIMIT} bytes")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
    except BlockingIOError as error:
        # A Unix socket whose queue is full answers EAGAIN at once where the caller would not block.
        connection.close()
        raise ControlError(f"the manager at {path} takes no connections: its queue is full") from error
    except PermissionError as error:
        connection.close()
        raise ControlError(
            f"no permission to speak to the manager at {path}: do it as the user that it runs as, or as root "
            f"(control_mode and control_owner in its configuration say who else may)",
            code=REFUSED,
        ) from error
    except OSError as error:
        connection.close()
        raise NoManager(f"no manager at {path}: {_why(error)}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _why(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return "there is no such socket"
        case errno.ECONNREFUSED:
            return "nobody listens there (left over from one that was killed? its processes serve on for the next one)"
        case _:
            return error.strerror or str(error)


def _decode(result: msgspec.Raw, answer: type[T]) -> T:
    if answer is msgspec.Raw:
        return result  # type: ignore[return-value]
    try:
        decoded: Any = msgspec.json.decode(result, type=answer)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ControlError(f"the manager's answer is not understood: {error}", code=PARSE_ERROR) from error
    return decoded  # type: ignore[no-any-return]
