"""`ready = "ping"`: a process is ready when it has answered a FastCGI request of ours.

The listener is shared, so a ping reaches whichever process accepts first. To know who that was, the request is held
back just before its end: the process that accepted holds the connection open, and the kernel tells who has the other
end of it (sock_diag for its inode, /proc/PID/fd for its owner). Then the request is finished, and the answer counts
for that process. Where this cannot be known (a worker with children of its own that accept, or fds that may not be
read) a process counts as ready when it has lived startsecs and the pool has answered. And where the kernel keeps
handing the pings to siblings (servers on epoll share unevenly) it does so after half its ready_timeout: it is alive,
and its pool answers.

Any complete answer below 500 will do: an application need not know of pings, and a 404 is an answer.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

from fcgimgr.core.generation import Happened
from fcgimgr.core.process import Ready, Starting
from fcgimgr.fastcgi.client import Request
from fcgimgr.fastcgi.records import ProtocolError
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.procfs import socket_inodes
from fcgimgr.linux.sockdiag import peer_inode

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.generation import Generation

PING: Final = {
    "GATEWAY_INTERFACE": "CGI/1.1",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SERVER_SOFTWARE": "fcgimgr",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "REMOTE_ADDR": "127.0.0.1",
    "REQUEST_METHOD": "GET",
    "REQUEST_URI": "/fcgimgr-ping",
    "SCRIPT_NAME": "/fcgimgr-ping",
    "SCRIPT_FILENAME": "/fcgimgr-ping",
    "DOCUMENT_URI": "/fcgimgr-ping",
    "QUERY_STRING": "",
    "CONTENT_LENGTH": "",
    "CONTENT_TYPE": "",
    "HTTP_USER_AGENT": "fcgimgr-ping",
    "FCGIMGR_PING": "1",
}

# Seconds between two looks: at who has accepted, and between two pings. They grow from the first to the second.
SHORTEST: Final = 0.005
LONGEST: Final = 0.25
# Pings at a time, once siblings have answered: many wake more of those that wait on epoll than one does.
AT_ONCE: Final = 8
ACCEPTED_WITHIN: Final = 2.0
LONGEST_ANSWER: Final = 1024 * 1024  # bytes of a body that is thrown away
ANSWERED_WITHIN: Final = 5.0


class Readiness:
    """Pings the pools that have a process waiting to be found ready, and nothing while there is none."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._tasks: dict[Generation, asyncio.Task[None]] = {}

    def process_changed(self, generation: Generation) -> None:
        """Begin to ping when the first process of a pool is spawned that is to be found ready so."""
        if generation.settings.ready != "ping" or generation in self._tasks or not starting(generation):
            return
        self._tasks[generation] = self._daemon.loop.create_task(self._ping(generation))

    async def _ping(self, generation: Generation) -> None:
        pause = SHORTEST
        pings = 1
        said = ""
        try:
            while starting(generation):
                asked = (self._ask(generation) for _ in range(pings))
                found = False
                for answer in await asyncio.gather(*asked, return_exceptions=True):
                    if isinstance(answer, OSError | ProtocolError | TimeoutError | LinuxError):
                        failure = str(answer) or "no answer in time"
                        if failure != said:
                            said = generation.ping_failure = failure
                            self._daemon.journal.warning(f"ping: {failure}", name=generation.name)
                    elif isinstance(answer, BaseException):
                        raise answer
                    else:
                        found |= self._heed(generation, answer)
                        pings = min(AT_ONCE, pings * 2)
                if found:
                    pause, pings = SHORTEST, 1
                    continue
                await asyncio.sleep(pause)
                pause = min(LONGEST, pause * 1.5)
        finally:
            del self._tasks[generation]

    def _heed(self, generation: Generation, holder: int | None) -> bool:
        """A ping was answered, by the process with this pid if that is known. True if it made a process ready."""
        now = self._daemon.loop.time()
        settings = generation.settings
        patience = settings.startsecs if holder is None else settings.ready_timeout / 2
        found = False
        for index, state in starting(generation).items():
            if state.pid == holder or now - state.since >= patience:
                generation.feed(Happened(index, Ready()))
                found = True
        return found

    async def _ask(self, generation: Generation) -> int | None:
        """One ping that was answered well, and the pid of the process that took it, if it can be told.

        OSError, ProtocolError and TimeoutError say why there was no good answer.
        """
        loop = self._daemon.loop
        listening = generation.listening
        if listening is None or listening.lost:
            raise OSError("the pool has no open socket")
        request = Request(PING, max_body=LONGEST_ANSWER)
        with socket.socket(listening.listeners[0].sock.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
            async with asyncio.timeout(ANSWERED_WITHIN):
                await loop.sock_connect(connection, listening.lead_ping(connection))
                await loop.sock_sendall(connection, request.opening())
                holder = await self._holder(connection, by_readiness(generation))
                await loop.sock_sendall(connection, request.closing())
                while (response := request.receive(received := await loop.sock_recv(connection, 65536))) is None:
                    if not received:
                        response = request.eof()
                        break
        if response.protocol_status != 0 or response.status is None or response.status >= 500:
            raise ProtocolError(f"answered with status {response.status}, FastCGI status {response.protocol_status}")
        return holder

    async def _holder(self, connection: socket.socket, pids: list[int]) -> int | None:
        pause = SHORTEST
        until = self._daemon.loop.time() + ACCEPTED_WITHIN
        while (inode := peer_inode(connection)) is None:
            if self._daemon.loop.time() > until:
                return None
            await asyncio.sleep(pause)
            pause = min(LONGEST, pause * 1.5)
        return next((pid for pid in pids if inode in (socket_inodes(pid) or ())), None)


def starting(generation: Generation) -> dict[int, Starting]:
    """The processes that are spawned and not yet ready, by index."""
    return {index: state for index, state in enumerate(generation.core.processes) if isinstance(state, Starting)}


def by_readiness(generation: Generation) -> list[int]:
    """The pids of a generation, those that a ping is for first: each one looked at costs a walk through its fds."""
    ready = [state.pid for state in generation.core.processes if state.pid and not isinstance(state, Starting)]
    return [state.pid for state in starting(generation).values()] + ready
