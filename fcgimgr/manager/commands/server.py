"""The control socket's manager side: who may speak, how much, and for how long; what they ask is in table.py.

A client cannot disturb the manager: a line is bounded (messages.LINE_LIMIT), so are the clients, the requests each has
under way, what it leaves unread, and how long it may hold a connection without asking for anything.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from fcgimgr.control.codec import (
    LineReader,
    encode_error,
    encode_notification,
    encode_refusal,
    encode_result,
    parse_request,
)
from fcgimgr.control.messages import CLIENT_LIMIT, INTERNAL_ERROR, REFUSED, ControlError, Notice, Request
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import Listener
from fcgimgr.manager.commands.table import CHANGING, COMMANDS
from fcgimgr.manager.ground.orders import given_by
from fcgimgr.manager.succession.own_files import control_owner

if TYPE_CHECKING:
    from fcgimgr.config.settings import ManagerSettings
    from fcgimgr.manager.daemon import Daemon

IDLE_LIMIT: Final = 60.0  # seconds without a request under way
IDLE_ENOUGH: Final = 1.0  # … that make room for another client, where there are as many as may be
REQUEST_LIMIT: Final = 16  # under way at once, a client
BEHIND: Final = 1024 * 1024  # bytes left unread from which on a client is told only what must be said
UNREAD_LIMIT: Final = 16 * 1024 * 1024  # bytes that a client may leave unread before it is hung up on
GOODBYE: Final = 1.0  # seconds for the last answers to go out when the manager ends
LATE: Final = 1.0  # seconds in which those are still let in who had come to a socket that was removed


class ControlServer:
    """Listens on the control socket until it is closed."""

    def __init__(self, daemon: Daemon, listener: Listener) -> None:
        self.daemon = daemon
        self.clients: set[Client] = set()
        self.listener = listener
        self._settings = daemon.config.manager
        self._owner = control_owner(self._settings)[0]
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await self.daemon.loop.create_unix_server(lambda: Client(self), sock=self.listener.sock)

    async def listen_on(self, listener: Listener) -> None:
        """Let clients come here from now on; the file of the socket before is gone."""
        if listener is self.listener:
            return
        before, server, self.listener = self.listener, self._server, listener
        before.unlink()
        await self.open()
        if server is not None:
            self.daemon.loop.call_later(LATE, server.close)

    def open_to(self, settings: ManagerSettings) -> None:
        """Serve those whom these settings let in, and where somebody is not let in any more, hang up on who may be it.

        The kernel looks at who connects, and only then: of who came by a group nobody knows whether by this one.
        """
        before, self._settings = self._settings, settings
        self._owner = control_owner(settings)[0]
        if before.control_owner != settings.control_owner or before.control_mode & ~settings.control_mode:
            others = tuple(client for client in self.clients if not self._is_named(client.uid))
            self.daemon.loop.call_later(GOODBYE, self._hang_up_on, others)

    def _hang_up_on(self, clients: tuple[Client, ...]) -> None:
        if self.daemon.updating:  # who has asked for that waits for its end
            self.daemon.loop.call_later(GOODBYE, self._hang_up_on, clients)
            return
        for client in clients:
            if client in self.clients:
                client.refuse("hung up on: who may control this manager has changed")
                self.clients.discard(client)

    def _is_named(self, uid: int) -> bool:
        return uid in (0, os.geteuid(), self._owner)

    def may_speak(self, uid: int) -> bool:
        """Root, our own user and control_owner; others where control_mode lets them, which the kernel has checked."""
        return self._is_named(uid) or bool(self._settings.control_mode & 0o022)

    def make_room(self) -> bool:
        """Hang up on whoever has asked for nothing for the longest time. False: all have something under way."""
        now = self.daemon.loop.time()
        idle = [client for client in self.clients if not client.tasks and now - client.heard > IDLE_ENOUGH]
        if not idle:
            return False
        longest = min(idle, key=lambda client: client.heard)
        longest.refuse("hung up on: it asked for nothing, and others wait for a connection")
        self.clients.discard(longest)
        return True

    async def close(self) -> None:
        """Let the last answers go out, then hang up on everybody."""
        if self._server is not None:
            self._server.close()
        tasks = [task for client in self.clients for task in client.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=GOODBYE)
        await self._hang_up()
        self.listener.close()

    async def pause(self) -> int:
        """Hang up on everybody, and let who comes wait in the queue. Answers with the fd of the listening socket."""
        self.daemon.loop.remove_reader(self.listener.sock)
        await self._hang_up()
        return self.listener.fileno()

    async def _hang_up(self) -> None:
        for client in tuple(self.clients):
            client.hang_up()
        until = self.daemon.loop.time() + GOODBYE
        while self.clients and self.daemon.loop.time() < until:
            await asyncio.sleep(0.005)  # until connection_lost: what was written is flushed


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._daemon = server.daemon
        self._reader = LineReader()
        self._transport: asyncio.WriteTransport | None = None
        self._who = ""
        self.uid = -1
        self.heard = server.daemon.loop.time()  # when it last began to have nothing under way
        self._gone = server.daemon.loop.create_future()
        self._idle: asyncio.TimerHandle | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.behind = False
        self._catch_up: list[Callable[[], None]] = []

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        transport.set_write_buffer_limits(high=BEHIND)
        pid, self.uid, _ = peer_credentials(transport.get_extra_info("socket"))
        self._who = f"pid {pid}, uid {self.uid}"
        if not self._server.may_speak(self.uid):
            self.refuse(f"uid {self.uid} may not control this manager (control_mode and control_owner say who may)")
        elif len(self._server.clients) >= CLIENT_LIMIT and not self._server.make_room():
            self.refuse(f"{CLIENT_LIMIT} clients are being served already; try again later")
        else:
            self._server.clients.add(self)
            self._watch_idling()

    def refuse(self, why: str) -> None:
        """Say so, and hang up."""
        self._send(encode_error(None, REFUSED, why))
        self.hang_up()

    def data_received(self, data: bytes) -> None:
        if self not in self._server.clients:
            return
        try:
            lines = self._reader.feed(data)
        except ControlError as error:
            self._send(encode_refusal(error))
            self.hang_up()
            return
        for line in lines:
            self._take(line)

    def eof_received(self) -> bool:
        # A client that has said all may still want its answers: keep the connection while a request is under way.
        if not self.tasks:
            return False
        if not self._gone.done():
            self._gone.set_result(None)
        return True

    def pause_writing(self) -> None:
        self.behind = True

    def resume_writing(self) -> None:
        self.behind = False
        callbacks, self._catch_up = self._catch_up, []
        for callback in callbacks:
            callback()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.clients.discard(self)
        if self._idle is not None:
            self._idle.cancel()
        if not self._gone.done():
            self._gone.set_result(None)
        for task in self.tasks:
            task.cancel()

    # Requests

    def _take(self, line: bytes) -> None:
        try:
            request = parse_request(line)
            if len(self.tasks) >= REQUEST_LIMIT:
                raise ControlError(f"{REQUEST_LIMIT} requests are under way already", code=REFUSED, id=request.id)
        except ControlError as error:
            self._send(encode_refusal(error))
            return
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if request.method in CHANGING:
            self._daemon.journal.info(f"asked to {wish(request)}", by=self._who)
        task = self._daemon.loop.create_task(self._answer(request))
        self.tasks.add(task)
        task.add_done_callback(self._answered)

    async def _answer(self, request: Request) -> None:
        try:
            with given_by(self._who):
                result = await COMMANDS[request.method](self._daemon, request.params, self)
        except ControlError as error:
            self._send(encode_error(request.id, error.code, str(error)))
        except LinuxError as error:
            self._send(encode_error(request.id, REFUSED, str(error)))
        except Exception as error:  # noqa: BLE001 - a fault of one command is told to who gave it, and ends nothing
            self._daemon.journal.error(f"internal error in {request.method}: {error!r}")
            self._send(encode_error(request.id, INTERNAL_ERROR, f"internal error: {error!r}"))
            if request.method in CHANGING:
                self._daemon.fault(error)
        else:
            self._send(encode_result(request.id, result))

    def _answered(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self.tasks:
            return
        if self._gone.done():
            self.hang_up()
        else:
            self._watch_idling()

    def _watch_idling(self) -> None:
        self.heard = self._daemon.loop.time()
        if self._idle is None:
            self._idle = self._daemon.loop.call_later(IDLE_LIMIT, self.hang_up)

    # commands.Caller

    def notify(self, method: str, params: Notice) -> None:
        self._send(encode_notification(method, params))

    def when_caught_up(self, callback: Callable[[], None]) -> None:
        self._catch_up.append(callback)

    async def gone(self) -> None:
        await asyncio.shield(self._gone)

    def _send(self, line: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > UNREAD_LIMIT:
            self._daemon.journal.warning("a client of the control socket does not read: hung up", by=self._who)
            self._transport.abort()
            return
        self._transport.write(line)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()


def peer_credentials(connection: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of whoever connected, as the kernel noted them then (SO_PEERCRED, unix(7))."""
    return struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))


def wish(request: Request) -> str:
    """What was asked for, for the log: "reload app canary 5"."""
    words = [request.method]
    for field in msgspec.structs.fields(request.params):
        value = getattr(request.params, field.name)
        if value == field.default:
            continue
        if isinstance(value, tuple):
            words += value
        elif value is True:
            words.append(field.name)
        elif isinstance(value, str):
            words.append(value)
        elif isinstance(value, float):
            words += (field.name, f"{value:g}")
    return " ".join(words)
