"""How a connection is ended that the web server wants to keep, so that it sends no request into the end.

With FCGI_KEEP_CONN it is the web server that closes (FastCGI 1.0, section 3.5), and the protocol has no word for a
process that is about to end, or has too many. What a web server heeds, as read in their sources and tried, differs:

- nginx (RECORD) keeps a connection only when nothing follows END_REQUEST in what it has read, and closes one that it
  has put by as soon as it reads anything there. So a record that says nothing is the word: an empty FCGI_STDERR. Where
  a stream is cut nobody knows, and one read may end just before it: so the closing is left to nginx, and a request that
  has crossed with the word is served. (An end of file it may read one event late, and answer 502 for what it sent.)
- HAProxy (STATUS) hears what happens to a connection that it has put by when it polls next, and may send a request on
  it first. But where END_REQUEST says FCGI_OVERLOADED it passes the answer on as any other, and closes the connection.
- All others (END) are taken to do as Apache httpd and h2o, which look for an end of file each time before they use a
  connection again: it comes with the last answer. Anything else to read there would hide it from Apache.

lighttpd and Caddy never ask to keep a connection.

On TCP the end of file travels with the end of the answer (MSG_MORE, then shutdown). A Unix socket can do nothing of the
kind: the peer is woken by the answer, and may have us off the processor, and its next request sent, before we come to
the shutdown. So the clock is looked at: when that took longer than a peer may take, the connection is not ended now but
with the next answer. That leaves the moment between the clock and the shutdown: behind httpd and h2o on a machine with
all processors busy one of 30,000 ends still cost a request. So nothing is ended there without need.
"""

from __future__ import annotations

import select
import socket
from enum import Enum
from time import monotonic
from typing import Final

from fcgimgr.fastcgi.records import ProtocolStatus, RecordType, encode_record
from fcgimgr.worker.patched import poll

#: Behind the last answer, and alone on a connection that is idle.
GOODBYE: Final = encode_record(RecordType.STDERR, 1)
#: Seconds in which no peer wakes up, reads an answer, passes it on, and sends the next request that waits for a
#: connection. A send to a Unix socket takes 5 to 15 µs.
AT_ONCE: Final = 20e-6
#: Seconds for which the end may be put off because the clock said so, and because the peer's next request was there.
#: Not so many answers: on a machine with all processors busy most of them are late, and those of a second are hundreds.
LATE_FOR: Final = 1.0
CROSSED_FOR: Final = 3.0
#: Answers for each of which a connection need not end for no better reason than that another process may be free.
SPARED: Final = 64

_NGINX: Final = ("nginx", "openresty", "freenginx", "angie", "tengine")
_HAPROXY: Final = "haproxy"
#: The last four bytes of END_REQUEST: its protocol status, and three that are reserved.
_OVERLOADED: Final = bytes([ProtocolStatus.OVERLOADED, 0, 0, 0])


class Parting(Enum):
    """What a web server is told it by."""

    RECORD = "a record behind END_REQUEST"
    STATUS = "the protocol status of END_REQUEST"
    END = "an end of file right behind END_REQUEST"


def parting_from(software: str) -> Parting:
    """From a web server with that SERVER_SOFTWARE. Nobody but nginx, which says what it is told to, leaves it out."""
    name = software.lower()
    if not name or name.startswith(_NGINX):
        return Parting.RECORD
    return Parting.STATUS if name.startswith(_HAPROXY) else Parting.END


def last_words(end: bytes, parting: Parting) -> bytes:
    """What is sent in place of `end`, the last bytes of an answer with all of its END_REQUEST."""
    if parting is Parting.RECORD:
        return end + GOODBYE
    return end[: -len(_OVERLOADED)] + _OVERLOADED if parting is Parting.STATUS else end


class HangingUp:
    """The end of file behind a last answer, on one connection: `sending` before the (last) send, `over` after it."""

    __slots__ = ("_begun", "_connection", "_is_local", "_put_off_at", "_spared")

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._is_local = connection.family == socket.AF_UNIX
        self._put_off_at = 0.0  # first
        self._spared = 0
        self._begun = 0.0

    def spares(self) -> bool:
        """Whether the connection rather goes on, where it could."""
        self._spared += 1
        return self._is_local and self._spared % SPARED != 0

    def sending(self) -> None:
        self._begun = monotonic()
        if not self._is_local:
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def over(self) -> bool:
        """Whether the connection has been ended; else it goes on, to its next answer. Raises OSError."""
        if self._is_local and (now := monotonic()) - self._begun > AT_ONCE and self._puts_off(now):
            return False
        self._connection.shutdown(socket.SHUT_WR)
        return True

    def _puts_off(self, now: float) -> bool:
        self._put_off_at = self._put_off_at or now
        if now - self._put_off_at < LATE_FOR:
            return True
        polled = poll()
        polled.register(self._connection, select.POLLIN)
        return now - self._put_off_at < CROSSED_FOR and bool(polled.poll(0))
