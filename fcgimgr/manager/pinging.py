"""One ping: a FastCGI request of ours to the processes of a generation, and which of them has taken it.

The listener is shared, so a ping reaches whichever process accepts first. To know who that was, the request is held
back just before its end: the process that accepted holds the connection open, and the kernel tells who has the other
end of it (sock_diag for its inode, /proc/PID/fd for its owner). Then the request is finished, and the answer counts
for that process.

A ping that nobody has accepted says nothing of the code: it may wait behind real requests. So the time that an answer
may take begins when it is accepted. How long that may be waited for is the caller's to say, who can see what the
processes have in hand meanwhile.

Any complete answer below 500 will do: an application need not know of pings, and a 404 is an answer.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

from fcgimgr.core.process import Starting
from fcgimgr.fastcgi.client import Request
from fcgimgr.fastcgi.records import ProtocolError, ProtocolStatus
from fcgimgr.linux.procfs import socket_inodes
from fcgimgr.linux.sockdiag import established_inodes, peer_inode
from fcgimgr.manager.gating import descendants

if TYPE_CHECKING:
    from fcgimgr.manager.generation import Generation

PARAMS: Final = {
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

# Seconds between two looks at who has accepted, growing from the first to the second.
SHORTEST: Final = 0.005
LONGEST: Final = 0.25
LONGEST_ANSWER: Final = 1024 * 1024  # bytes of a body that is thrown away


class OverloadedError(ProtocolError):
    """A good answer it is not, but neither a fault of the code."""


class Ping:
    """A ping to this generation.

    accepted: a process has it in hand; None: the kernel does not tell. holder: pid of the process of the generation
    that has, itself or by a child; None: unknown. strayed: for certain it was nobody of this generation.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._loop = generation.daemon.loop
        self.accepted: bool | None = False
        self.inode: int | None = None
        self.holder: int | None = None
        self.strayed = False

    async def ask(self, answer_within: float | None, *, children: bool = False) -> None:
        """Returns when it was answered well. answer_within: seconds, from its acceptance on; None: for ever.

        `children`: look also who among the processes' children has accepted it. OSError, ProtocolError and
        TimeoutError say why there was no good answer. It waits for its acceptance until it is cancelled.
        """
        listening = self._generation.listening
        if listening is None or listening.lost:
            raise OSError("the pool has no open socket")
        request = Request(PARAMS, max_body=LONGEST_ANSWER)
        with socket.socket(listening.listeners[0].sock.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
            async with asyncio.timeout(answer_within):
                await self._loop.sock_connect(connection, listening.lead_ping(connection))
                await self._loop.sock_sendall(connection, request.opening())
            await self._until_accepted(connection)
            self._find_holder(children)
            async with asyncio.timeout(answer_within):
                await self._loop.sock_sendall(connection, request.closing())
                while (response := request.receive(received := await self._loop.sock_recv(connection, 65536))) is None:
                    if not received:
                        response = request.eof()
                        break
        if response.protocol_status == ProtocolStatus.OVERLOADED:
            raise OverloadedError("declined the request: it has enough of them (FCGI_OVERLOADED)")
        if response.protocol_status != 0 or response.status is None or response.status >= 500:
            raise ProtocolError(f"answered with status {response.status}, FastCGI status {response.protocol_status}")

    async def _until_accepted(self, connection: socket.socket) -> None:
        pause = SHORTEST
        while (inode := peer_inode(connection)) is None:
            listening = self._generation.listening
            if listening is None:
                raise OSError("the pool has no open socket any more")
            if pause == LONGEST and established_inodes(listening.names) is None:
                self.accepted = None
                return
            if has_heard(connection):  # and whoever accepted it has closed it by now
                self.accepted = True
                return
            try:
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                self.inode = peer_inode(connection)  # so that it is not taken for a client's
                raise
            pause = min(LONGEST, pause * 1.5)
        self.accepted = True
        self.inode = inode

    def _find_holder(self, children: bool) -> None:
        if self.inode is None:
            return
        pids = by_readiness(self._generation)
        certain = True
        for family in (False, True) if children else (False,):
            for pid in pids:
                for member in descendants(pid) if family else [pid]:
                    inodes = socket_inodes(member)
                    if inodes is None:
                        certain = False
                    elif self.inode in inodes:
                        self.holder = pid
                        return
        self.strayed = certain and children


def has_heard(connection: socket.socket) -> bool:
    """Whether something has come from the other end, be it only its end. ConnectionResetError: it was reset."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


def starting(generation: Generation) -> dict[int, Starting]:
    """The processes that are spawned and not yet ready, by index."""
    return {index: state for index, state in enumerate(generation.core.processes) if isinstance(state, Starting)}


def by_readiness(generation: Generation) -> list[int]:
    """The pids of a generation, those that a ping is for first: each one looked at costs a walk through its fds."""
    ready = [state.pid for state in generation.core.processes if state.pid and not isinstance(state, Starting)]
    return [state.pid for state in starting(generation).values()] + ready
