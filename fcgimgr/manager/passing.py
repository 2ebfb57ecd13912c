"""What waits in the queue of a generation that does not come to it is passed on to the one that serves.

Its processes are dead, or hang, or each has a request in hand that takes long: they may never accept these connections,
while those of the other generation are idle; and a connection cannot be moved from one listener to another. So the
manager accepts them itself, connects to the generation that serves, and carries the bytes to and fro. That is so until
the listener is closed, and so for a few connections: each is ended with its first answer, where that is seen to be
whole (answers/conversation.py), so that its client makes the next one to those that serve; another protocol ends its
own. No more than MOST are carried at a time, and the others wait for them.

Those processes of it that still live accept beside us. The listener is made non-blocking, for them too: whoever waits
in accept goes on waiting, and whoever comes to it when nothing is there ends, or looks again. They are to end anyway;
where they are not any more, it is made what it was.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from fcgimgr.answers.conversation import Bytes, Conversation
from fcgimgr.fastcgi.records import ends_stdin
from fcgimgr.linux.listeners import LostListener
from fcgimgr.linux.parting import end_with, unread

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.generation import Generation
    from fcgimgr.manager.listening import ConnectTo, Listening

MOST: Final = 128
#: Bytes that are carried at a time.
PIECE: Final = 65536
#: Seconds between two tries: to connect where the queue is full, as a Unix socket does not say when it is not any more;
#: to accept where there is no descriptor or memory for it.
FULL: Final = 0.02
#: Seconds in which a client closes after its last answer.
LINGER: Final = 5.0


class _Accepting(NamedTuple):
    listener: socket.socket
    target: ConnectTo
    blocked: bool


class Passing:
    """Passes connections on, from `pass_on` to `end` of each generation."""

    def __init__(self, daemon: Daemon) -> None:
        self._loop = daemon.loop
        self._accepting: dict[Generation, list[_Accepting]] = {}
        self._carrying: set[asyncio.Task[None]] = set()

    def pass_on(self, generation: Generation, to: Listening) -> None:
        """What comes to this generation's listeners is for those of the same address there. Again, it does nothing."""
        assert generation.listening is not None  # it has served
        if generation in self._accepting:
            return
        targets = {str(place.address): place.connect_to() for place in to.places}
        accepting = self._accepting.setdefault(generation, [])
        for place in generation.listening.places:
            target = targets.get(str(place.address))
            if target is not None and not isinstance(place.listener, LostListener):
                listener = place.listener.sock.dup()
                accepting.append(_Accepting(listener, target, os.get_blocking(listener.fileno())))
                os.set_blocking(listener.fileno(), False)
                self._begin(accepting[-1])

    def end(self, generation: Generation) -> None:
        """Its listeners are closed, or its processes serve again. What was accepted is carried on."""
        for one in self._accepting.pop(generation, ()):
            self._loop.remove_reader(one.listener)
            os.set_blocking(one.listener.fileno(), one.blocked)
            one.listener.close()

    def close(self) -> None:
        """The manager ends."""
        for generation in tuple(self._accepting):
            self.end(generation)
        for task in self._carrying:
            task.cancel()

    def _begin(self, one: _Accepting) -> None:
        self._loop.add_reader(one.listener, self._accept, one)

    def _accept(self, one: _Accepting) -> None:
        if len(self._carrying) >= MOST:  # until there is room
            self._loop.remove_reader(one.listener)
            return
        try:
            client, _ = one.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another was quicker; or its client has gone
            return
        except OSError as error:
            self._loop.remove_reader(one.listener)
            if error.errno != errno.EINVAL:  # it was shut down
                self._loop.call_later(FULL, self._begin_again)
            return
        task = self._loop.create_task(self._carry(client, one.target))
        self._carrying.add(task)
        task.add_done_callback(self._carried)

    def _carried(self, task: asyncio.Task[None]) -> None:
        self._carrying.discard(task)
        if len(self._carrying) == MOST - 1:
            self._begin_again()

    def _begin_again(self) -> None:
        for accepting in self._accepting.values():
            for one in accepting:
                self._begin(one)

    async def _carry(self, client: socket.socket, target: ConnectTo) -> None:
        loop = self._loop
        with (
            client,
            socket.socket(client.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as server,
            suppress(OSError),
        ):
            client.setblocking(False)
            server.setblocking(False)
            await self._connect(server, target)
            said = Conversation()
            asking = loop.create_task(self._ask(client, server, said))
            try:
                await self._answer(server, client, said)
                await asyncio.wait([asking], timeout=LINGER)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def _connect(self, server: socket.socket, target: ConnectTo) -> None:
        if server.family != socket.AF_UNIX:
            await self._loop.sock_connect(server, target)
            return
        while True:
            try:
                server.connect(target)
            except BlockingIOError:
                await asyncio.sleep(FULL)
            else:
                return

    async def _ask(self, client: socket.socket, server: socket.socket, said: Conversation) -> None:
        loop = self._loop
        over = socket.SHUT_RDWR  # where the client is gone nobody waits for an answer
        try:
            while piece := await loop.sock_recv(client, PIECE):
                said.came(len(piece), of(piece))
                await loop.sock_sendall(server, piece)
            over = socket.SHUT_WR
        finally:
            with suppress(OSError):
                server.shutdown(over)

    async def _answer(self, server: socket.socket, client: socket.socket, said: Conversation) -> None:
        loop = self._loop
        while piece := await loop.sock_recv(server, PIECE):
            if said.would_be_answered(len(piece), of(piece)) and _is_no_request(unread(client), said):
                count = end_with(client, piece)
                if count < len(piece):
                    await loop.sock_sendall(client, piece[count:])
                break
            said.sent(len(piece), of(piece))
            await loop.sock_sendall(client, piece)
        client.shutdown(socket.SHUT_WR)


def of(piece: bytes) -> Bytes:
    return lambda at, count: piece[at : at + count]


def _is_no_request(waiting: bytes, said: Conversation) -> bool:
    return ends_stdin(waiting) if said.is_fastcgi else not waiting
