"""Is a kept connection idle, for all that can be known from outside? Then it may be hung up on. Pure.

A cut answer is worse than a wait: what is unknown is not idle. The signs, the surest first:

- Bytes that wait unread: a request has come. In use.
- What was seen to be said there: a request without a whole answer is in use; after a whole answer it is idle.
- A thread waits to read from this very connection, and nothing has come since: it expects the next request. Idle, if
  the last word was not the client's, who may pause in the midst of a request. Of a Unix socket the kernel tells
  nothing of that, so it must have been so for QUIET.
- TCP: nothing was ever sent: not answered. The last byte went out after the last one came in: answered, perhaps by
  half. So no thread of the process may be computing or sending, and it must have been silent for QUIET, which is meant
  to be longer than a program pauses within an answer. Of a Unix socket without a thread that reads it nothing is known.

And none is idle that was used within COLD: its client may be sending the next request at this very moment.
"""

from typing import Final, NamedTuple

#: Seconds for which a connection that has said nothing yet is in use: its request is on the way. nginx sends it at
#: once; lost on the network it is sent again after 0.2 s and 0.6 s. Who is silent longer is a health check, or dead.
EXPECTED: Final = 1.0
#: Seconds of silence after which an answer counts as whole, where nobody has seen it.
QUIET: Final = 5.0
#: Seconds after its last use for which a connection is likely to be used again.
COLD: Final = 0.5


class Signs(NamedTuple):
    """What the kernel tells of one connection. received: bytes, of Unix sockets unknown; answered: the last word was
    the server's; silent: seconds, of Unix sockets unknown; is_closed: by the server, for writing."""

    unread: int
    received: int | None
    answered: bool | None
    silent: float | None
    is_closed: bool = False


class Talk(NamedTuple):
    """What was seen to be said on a connection. in_use: None is unknown; last: when, seconds, monotonic; has_ended: the
    client has been told that there will be no more; is_upgraded: it has left HTTP, for WebSocket say."""

    in_use: bool | None
    last: float
    has_ended: bool = False
    is_upgraded: bool = False


class Evidence(NamedTuple):
    """talk: None, nothing was. is_read: a thread waits to read it. active: one of its process computes or sends.
    seen_for: seconds since it was first seen."""

    talk: Talk | None
    is_read: bool
    active: bool
    seen_for: float
    now: float

    def silent(self, signs: Signs) -> float | None:
        """Seconds, at least, since anything was said there."""
        if self.talk is None:
            return signs.silent
        told = self.now - self.talk.last
        return told if signs.silent is None else min(told, signs.silent)


def is_idle(signs: Signs, evidence: Evidence, quiet: float = QUIET) -> bool | None:
    """None: nobody can know."""
    talk, silent = evidence.talk, evidence.silent(signs)
    if talk is not None and talk.has_ended:
        return True
    if signs.unread:
        return False
    if signs.is_closed:
        return True
    if silent is not None and silent < COLD:
        return False
    if talk is not None and talk.in_use is not None:
        return not talk.in_use
    if signs.received == 0:
        return silent is not None and silent >= EXPECTED
    if evidence.is_read and signs.answered is not False and (talk is None or signs.received is not None):
        return signs.received is not None or evidence.seen_for >= quiet
    if not signs.answered:
        return signs.answered
    if evidence.active:
        return False
    return True if silent is not None and silent >= quiet else None
