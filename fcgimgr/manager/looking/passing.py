"""What waits in the queue of a generation that does not come to it is passed on to the one that serves.

Its processes are dead, or hang, or each has a request in hand that takes long: they may never accept these connections,
while those of the other generation are idle; and a connection cannot be moved from one listener to another. So the
manager accepts them itself, connects to the generation that serves, and carries the bytes to and fro. That is so until
the listener is closed, and so for a few connections: each is ended with its first answer, where that is seen to be
whole (answers/conversation.py), so that its client makes the next one to those that serve; another protocol ends its
own. No more than MOST are carried at a time, and the others wait for them. The generation has not left before the last
of them is over, at most stopwaitsecs after the end of its listener.

Those processes of it that still live accept beside us. The listener is made non-blocking, for them too: whoever waits
in accept goes on waiting, and whoever comes to it when nothing is there ends, or looks again. They are to end anyway;
where they are not any more, it is made what it was.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from fcgimgr.answers.conversation import Bytes, Conversation
from fcgimgr.linux.listeners import LostListener
from fcgimgr.linux.parting import end_with, unread
from fcgimgr.linux.rights import cut_short, refuse_rights
from fcgimgr.manager.pools import losses
from fcgimgr.manager.sockets.receiving import closing, receive

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.sockets.listening import ConnectTo, Listening, Place

MOST: Final = 128
#: Bytes that are carried at a time.
PIECE: Final = 65536
NO_LINGER: Final = bytes(8)  # struct linger
#: Seconds between two tries: to connect where the queue is full, as a Unix socket does not say when it is not any more;
#: to accept where there is no descriptor or memory for it.
FULL: Final = 0.02
#: Seconds for which a full queue is waited for, as nginx does.
CONNECT: Final = 60.0
#: Seconds in which a client closes after its last answer.
LINGER: Final = 5.0


class Passing:
    """Passes connections on, from `pass_on` to `end` of each generation."""

    def __init__(self, daemon: Daemon) -> None:
        self._loop = daemon.loop
        self._passages: dict[Generation, _Passage] = {}

    def pass_on(self, generation: Generation, to: Listening) -> None:
        """What comes to this generation's listeners is for those of the same address there. Again, it does nothing."""
        if generation not in self._passages:
            self._passages[generation] = _Passage(self._loop, generation, to, self._over)

    def end(self, generation: Generation) -> None:
        """Its listeners are closed, or its processes serve again. What was accepted is carried on, for stopwaitsecs."""
        if (passage := self._passages.get(generation)) is not None:
            passage.end()

    def carries(self, generation: Generation) -> bool:
        """Whether anybody who came to it is still being served by another."""
        return generation in self._passages

    def close(self) -> None:
        """All is to end now."""
        for passage in tuple(self._passages.values()):
            passage.end()
            passage.drop()

    def _over(self, generation: Generation) -> None:
        del self._passages[generation]
        generation.daemon.look_at_soon(generation.pool)


class _Accepting(NamedTuple):
    listener: socket.socket
    to: Place
    blocked: bool


class _Passage:
    """From one generation to another. over: is called when it is at its end, and nothing is carried any more."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        generation: Generation,
        to: Listening,
        over: Callable[[Generation], None],
    ) -> None:
        assert generation.listening is not None  # it has served
        self._loop = loop
        self._generation = generation
        self._over = over
        self._accepting: list[_Accepting] = []
        self._carrying: set[asyncio.Task[None]] = set()
        self._answered: set[asyncio.Task[None]] = set()  # those of them whose client has only to close
        self._is_at_end = False
        self._deadline: asyncio.TimerHandle | None = None
        targets = {str(place.address): place for place in to.places}
        for place in generation.listening.places:
            target = targets.get(str(place.address))
            if target is not None and not isinstance(place.listener, LostListener):
                listener = place.listener.sock.dup()
                self._accepting.append(_Accepting(listener, target, os.get_blocking(listener.fileno())))
                os.set_blocking(listener.fileno(), False)
        self._begin()

    def end(self) -> None:
        if self._is_at_end:
            return
        for one in self._accepting:
            while self._accept(one):
                pass
        self._is_at_end = True
        for one in self._accepting:
            self._loop.remove_reader(one.listener)
            os.set_blocking(one.listener.fileno(), one.blocked)
            with cut_short():
                one.listener.close()
        if self._carrying:
            self._deadline = self._loop.call_later(self._generation.settings.stopwaitsecs, self.drop)
        else:
            self._over(self._generation)

    def drop(self) -> None:
        """Nobody is waited for any more."""
        if lost := len(self._carrying - self._answered):
            losses.dropped(self._generation, lost)
        for task in self._carrying:
            task.cancel()

    def _begin(self) -> None:
        for one in () if self._is_at_end else self._accepting:
            self._loop.add_reader(one.listener, self._accept, one)

    def _accept(self, one: _Accepting) -> bool:
        """Whether one was accepted."""
        if len(self._carrying) >= MOST:  # until there is room
            self._loop.remove_reader(one.listener)
            return False
        try:
            client, _ = one.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another was quicker; or its client has gone
            return False
        except OSError as error:
            self._loop.remove_reader(one.listener)
            if error.errno != errno.EINVAL:  # it was shut down
                self._loop.call_later(FULL, self._begin)
            return False
        task = self._loop.create_task(self._carry(client, one.to))
        self._carrying.add(task)
        task.add_done_callback(self._carried)
        return True

    def _carried(self, task: asyncio.Task[None]) -> None:
        self._carrying.discard(task)
        self._answered.discard(task)
        if len(self._carrying) == MOST - 1:
            self._begin()
        if self._is_at_end and not self._carrying:
            if self._deadline is not None:
                self._deadline.cancel()
            self._over(self._generation)

    async def _carry(self, client: socket.socket, to: Place) -> None:
        with closing(client):
            client.setblocking(False)
            # What the processes have made of their listener is of what was accepted there too: a close(2) that waits.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            try:
                server = await self._connect(client, to)
            except (OSError, TimeoutError) as error:
                losses.not_passed_on(self._generation, error)
                return
            with closing(server), suppress(OSError):
                said = Conversation()
                asking = self._loop.create_task(self._ask(client, server, said))
                try:
                    await self._answer(server, client, said)
                    self._answered.add(cast(asyncio.Task[None], asyncio.current_task()))
                    await asyncio.wait([asking], timeout=LINGER)
                finally:
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)

    async def _connect(self, client: socket.socket, to: Place) -> socket.socket:
        """OSError, TimeoutError: that cannot be had."""
        server = socket.socket(client.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        refuse_rights(server)
        try:
            async with asyncio.timeout(CONNECT):
                if client.family != socket.AF_UNIX:
                    await self._loop.sock_connect(server, _from_where_it_came_to(client, server))
                else:
                    with self._in_force(to).way_in() as target:
                        await connect(self._loop, server, target)
        except BaseException:
            server.close()
            raise
        return server

    def _in_force(self, to: Place) -> Place:
        """The same address of the generation that serves by now: that of `to` may have left meanwhile."""
        serving = self._generation.pool.serving
        if serving is self._generation or serving.listening is None:
            return to
        return next((place for place in serving.listening.places if str(place.address) == str(to.address)), to)

    async def _ask(self, client: socket.socket, server: socket.socket, said: Conversation) -> None:
        over = socket.SHUT_RDWR  # where the client is gone nobody waits for an answer
        try:
            while piece := await receive(self._loop, client, PIECE):
                said.came(len(piece), of(piece))
                await self._loop.sock_sendall(server, piece)
            over = socket.SHUT_WR
        finally:
            with suppress(OSError):
                server.shutdown(over)

    async def _answer(self, server: socket.socket, client: socket.socket, said: Conversation) -> None:
        while piece := await receive(self._loop, server, PIECE):
            if said.would_be_answered(len(piece), of(piece)) and said.may_wait(unread(client)):
                count = end_with(client, piece)
                if count < len(piece):
                    await self._loop.sock_sendall(client, piece[count:])
                break
            said.sent(len(piece), of(piece))
            await self._loop.sock_sendall(client, piece)
        client.shutdown(socket.SHUT_WR)


def _from_where_it_came_to(client: socket.socket, server: socket.socket) -> ConnectTo:
    """The address to which the client connected, which leads to those that serve; `server` is bound to it as well.

    For who comes from 127.0.0.1 is believed more: what X-Forwarded-For says, or that it is an administrator.
    """
    host, port, *rest = client.getsockname()
    server.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
    server.bind((host, 0, *rest))
    return (host, port, *rest)


async def connect(loop: asyncio.AbstractEventLoop, connection: socket.socket, target: ConnectTo) -> None:
    """Also where a queue is full, of which a Unix socket tells neither when it is so nor when it is not. OSError."""
    if connection.family != socket.AF_UNIX:
        await loop.sock_connect(connection, target)
        return
    while True:
        try:
            connection.connect(target)
        except BlockingIOError:
            await asyncio.sleep(FULL)
        else:
            return


def of(piece: bytes) -> Bytes:
    return lambda at, count: piece[at : at + count]
