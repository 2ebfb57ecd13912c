"""One ping: a request of ours to the processes of a generation (asking.py), and which of them has taken it.

The listener is shared, so a ping reaches whichever process accepts first. To know who that was, the request is held
back just before its end: the process that accepted holds the connection open, and the kernel tells who has the other
end of it (sock_diag for its inode, /proc/PID/fd for its owner). Then the request is finished, and the answer counts
for that process.

A ping that nobody has accepted says nothing of the code: it may wait behind real requests. So the time that an answer
may take begins when it is accepted. How long that may be waited for is the caller's to say, who can see what the
processes have in hand meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from fcgimgr.config.settings import PoolSettings, ProcessSettings
from fcgimgr.core.process import Starting
from fcgimgr.linux.rights import refuse_rights
from fcgimgr.linux.sockdiag import established_inodes, peer_inode
from fcgimgr.manager.children.descriptors import Inquiry
from fcgimgr.manager.looking.asking import Question, question
from fcgimgr.manager.looking.passing import connect
from fcgimgr.manager.sockets.receiving import closing, receive

if TYPE_CHECKING:
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.sockets.listening import Listening

# Seconds between two looks at who has accepted, growing from the first to the second.
SHORTEST: Final = 0.005
LONGEST: Final = 0.25
# Seconds that the rest of an answer is waited for whose worth is known.
REST: Final = 1.0


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
        asked = question(self._generation.settings)
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        with closing(socket.socket(listening.listeners[0].sock.family, kind)) as connection:
            refuse_rights(connection)
            self._generation.pings.add(connection)
            try:
                await self._ask(asked, connection, listening, answer_within, children)
            finally:
                if self.inode is not None:
                    self._generation.pinged.append(self.inode)
                self._generation.pings.discard(connection)
        asked.judge()

    async def _ask(
        self,
        asked: Question,
        connection: socket.socket,
        listening: Listening,
        answer_within: float | None,
        children: bool,
    ) -> None:
        async with asyncio.timeout(answer_within):
            with listening.lead_ping(connection) as target:
                await connect(self._loop, connection, target)
            await self._loop.sock_sendall(connection, asked.opening())
        await self._until_accepted(connection)
        await self._find_holder(children)
        async with asyncio.timeout(answer_within):
            await self._loop.sock_sendall(connection, asked.closing())
            while not asked.decided:
                asked.receive(await receive(self._loop, connection, 65536))
        with suppress(OSError):  # TimeoutError is one
            async with asyncio.timeout(REST):
                while not asked.complete:
                    asked.receive(await receive(self._loop, connection, 65536))

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

    async def _find_holder(self, children: bool) -> None:
        if self.inode is None:
            return
        pids = by_readiness(self._generation)
        certain = True
        with Inquiry(self._generation.daemon) as inquiry:
            for family in (False, True) if children else (False,):
                async for pid, seen in inquiry.sockets(pids, {self.inode}, family=family):
                    if seen.found:
                        self.holder = pid
                        return
                    certain = certain and seen.whole
        self.strayed = certain and children


def has_heard(connection: socket.socket) -> bool:
    """Whether something has come from the other end, be it only its end. ConnectionResetError: it was reset."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


def is_pinged(settings: ProcessSettings) -> bool:
    """Whether a process with these settings is ready when it has answered a ping."""
    return isinstance(settings, PoolSettings) and settings.is_pinged


def by_readiness(generation: Generation) -> list[int]:
    """The pids of a generation, those that a ping is for first: each one looked at costs a walk through its fds."""
    ready = [state.pid for state in generation.core.processes if state.pid and not isinstance(state, Starting)]
    return [state.pid for state in generation.processes_in(Starting).values()] + ready
