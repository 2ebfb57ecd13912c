"""How long a web server is waited for, and by which pace: the limits of a request that every engine holds it to.

A pause is bounded, and so is the sum of them: a peer that sends or takes a byte a second must not hold a worker for
days. What it has sent or taken earns it time, at a rate that is below every modem's.
"""

from __future__ import annotations

import select
import socket
from time import monotonic
from typing import Final

from fcgimgr.worker.patched import is_patched, poll, wait_together

#: Seconds that a request may take to come, from its beginning to the last of its parameters.
HEAD_PATIENCE: Final = 30.0
#: Seconds for which the application is kept waiting for the next piece of a body, and bytes a second below which it is
#: not kept waiting for longer than that in all.
BODY_PATIENCE: Final = 30.0
BODY_RATE: Final = 500
#: Seconds in which the peer must take something of the answer (nginx gives its own client 60), and bytes a second below
#: which it is not waited for longer than that in all.
SEND_PATIENCE: Final = 120.0
SEND_RATE: Final = 500
#: Seconds to wait for the peer to close, while it may still be sending: closing with bytes unread resets the connection
#: under our answer (tcp(7), unix(7)).
LINGER: Final = 2.0


class ClientGoneError(ConnectionError):
    """The web server has closed the connection, aborted the request, or stopped sending or taking bytes."""


class AnsweredError(ConnectionError):
    """More of a body is asked for after the end of the answer, with which the request is over: what the web server has
    not sent by then it need not send, and what follows may be its next request."""

    def __init__(self) -> None:
        super().__init__("the answer has ended, and its request with it: the rest of the body cannot be read any more")


class TooSlowError(Exception):
    """Its text says what the peer has not done in time."""


def comes(connection: socket.socket, event: int, patience: float) -> bool:
    """Whether the event, an end or a failure comes within `patience` seconds."""
    if patience > 0 and is_patched():
        wait_together(connection, event, patience)
        patience = 0
    polled = poll()
    polled.register(connection, event)
    return bool(polled.poll(max(0.0, patience) * 1000))


def wait_for_body(connection: socket.socket, come: int, waited: float) -> float:
    """Wait for more of a body of which `come` bytes are here, after `waited` seconds of waiting for those.

    The seconds in all. Raises TooSlowError.
    """
    begun = monotonic()
    patience = min(BODY_PATIENCE, BODY_PATIENCE + come / BODY_RATE - waited)
    if not comes(connection, select.POLLIN, patience):
        raise TooSlowError(f"{come} bytes of a body came in {waited + patience:.0f} s")
    return waited + monotonic() - begun


def send_slowly(connection: socket.socket, unsent: memoryview, flags: int, stalled: float) -> float:
    """Send what was not taken at once, after `stalled` seconds for which this answer was stalled before.

    The seconds in all, less those that were earned. Raises TooSlowError, and OSError: the peer has gone.
    """
    while unsent:
        begun = monotonic()
        patience = max(0.0, min(SEND_PATIENCE, SEND_PATIENCE - stalled))
        if not comes(connection, select.POLLOUT, patience):
            raise TooSlowError(f"an answer was taken too slowly, and nothing of it for {patience:.0f} s")
        stalled += monotonic() - begun
        try:
            sent = connection.send(unsent, flags)
        except BlockingIOError:
            continue
        stalled -= sent / SEND_RATE
        unsent = unsent[sent:]
    return stalled
