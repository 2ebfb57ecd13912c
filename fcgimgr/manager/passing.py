"""What waits in the queue of a generation that has died of it is passed on to the one that serves again.

Its processes may never accept these connections, or die with them in hand; and a connection cannot be moved from one
listener to another. So the manager accepts them itself, connects to the generation that serves, and carries the bytes
to and fro until both sides have ended. That is so from the moment in which the traffic was led back until the dead
generation's listener is closed, and so for a few connections.

Those processes of it that still live accept beside us. The listener is made non-blocking, for them too: whoever waits
in accept goes on waiting, and whoever comes to it when nothing is there ends, or looks again.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from fcgimgr.linux.listeners import LostListener

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.generation import Generation
    from fcgimgr.manager.listening import ConnectTo, Listening

#: Bytes that are carried at a time.
PIECE: Final = 65536


class Passing:
    """Passes connections on, from `pass_on` to `end` of each generation."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._accepting: dict[Generation, list[socket.socket]] = {}
        self._carrying: set[asyncio.Task[None]] = set()

    def pass_on(self, generation: Generation, to: Listening) -> None:
        """What comes to this generation's listeners is for those of the same address there."""
        assert generation.listening is not None  # it has served
        targets = {str(place.address): place.connect_to() for place in to.places}
        listeners = self._accepting.setdefault(generation, [])
        for place in generation.listening.places:
            target = targets.get(str(place.address))
            if target is not None and not isinstance(place.listener, LostListener):
                listener = place.listener.sock.dup()
                listener.setblocking(False)
                listeners.append(listener)
                self._daemon.loop.add_reader(listener, self._accept, listener, target)

    def end(self, generation: Generation) -> None:
        """Its listeners are closed. What was accepted is carried on."""
        for listener in self._accepting.pop(generation, ()):
            self._daemon.loop.remove_reader(listener)
            listener.close()

    def close(self) -> None:
        """The manager ends."""
        for generation in tuple(self._accepting):
            self.end(generation)
        for task in self._carrying:
            task.cancel()

    def _accept(self, listener: socket.socket, target: ConnectTo) -> None:
        # Not loop.sock_accept: one that is cancelled at the wrong moment accepts all the same, and loses what it has.
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:  # EINVAL: it was shut down
            self._daemon.loop.remove_reader(listener)
            return
        task = self._daemon.loop.create_task(self._carry(client, target))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, client: socket.socket, target: ConnectTo) -> None:
        loop = self._daemon.loop
        with (
            client,
            socket.socket(client.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as server,
            suppress(OSError),
        ):
            client.setblocking(False)
            server.setblocking(False)
            await loop.sock_connect(server, target)
            pumps = [loop.create_task(self._pump(*ends)) for ends in ((client, server), (server, client))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
            finally:  # one side is gone, so nobody hears the other
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        loop = self._daemon.loop
        while piece := await loop.sock_recv(source, PIECE):
            await loop.sock_sendall(sink, piece)
        sink.shutdown(socket.SHUT_WR)
