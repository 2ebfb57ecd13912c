"""A generation's listeners: opened all together or not at all, and led traffic to or away from together.

A generation beside another has its own listener for each address: on TCP a second one in the SO_REUSEPORT group, to
which the kernel leads nothing until the group is steered; on Unix a socket at PATH.new, until it is renamed over PATH.
What was passed to the manager ready-made (systemd, fd) can have nothing beside it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from fcgimgr.config.address import Address, InheritedAddress, SystemdAddress, TcpAddress, UnixAddress
from fcgimgr.config.settings import PoolSettings
from fcgimgr.linux.accounts import resolve_owner
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import Listener, LostListener, open_tcp, open_unix, take_inherited
from fcgimgr.linux.sockdiag import listening_at, queue_length, tcp_queue, unix_queue, waiting
from fcgimgr.linux.steering import Group, refuse_new

if TYPE_CHECKING:
    from fcgimgr.manager.sockets.store import FdStore

Inherited = Mapping[str, Sequence[int]]
ConnectTo = tuple[Any, ...] | str | bytes
Undo = Callable[[], None]


class Place:
    """One address of a generation: its listener there, and the group that the kernel chooses from, if there is one.

    `over`: the listener whose path is still to be taken over (Unix, beside another generation). It gets ours then, at
    which nobody looks for it, and keeps it until it is closed: so it can come back.
    """

    __slots__ = ("address", "group", "listener", "over")

    def __init__(
        self, address: Address, listener: Listener, group: Group | None = None, over: Listener | None = None
    ) -> None:
        self.address = address
        self.listener = listener
        self.group = group
        self.over = over

    @property
    def bound(self) -> ConnectTo:
        """What the kernel calls the listener: `getsockname()`."""
        name: ConnectTo = self.listener.sock.getsockname()
        return name

    def queue(self) -> tuple[int, int] | None:
        """(connections that wait to be accepted, how many may); None: unknown."""
        return queue_length(self.listener.sock)

    @property
    def steerable(self) -> bool:
        """Whether another generation can be opened beside this one."""
        return self.group is not None or (
            isinstance(self.address, UnixAddress) and not self.address.path.startswith("@")
        )

    def beside(self, backlog: int) -> Place:
        """The same address for another generation. LinuxError says why that cannot be."""
        if self.group is not None:
            return Place(self.address, self.group.beside(backlog=backlog, name=self.listener.name), self.group)
        return Place(self.address, self.listener.beside(backlog=backlog), over=self.listener)

    @contextmanager
    def way_in(self) -> Iterator[ConnectTo]:
        """What to connect to in order to reach this very listener. OSError: it cannot be reached.

        Not the path of a Unix socket: others may lead that to a socket to which they may not connect, and the manager
        may.
        """
        name = self.bound
        if isinstance(self.address, UnixAddress) and not self.address.path.startswith("@"):
            with self.listener.way_in() as way:
                yield way
        elif not isinstance(name, tuple) or name[0] not in ("::", "0.0.0.0"):
            yield name
        else:
            yield ("::1" if name[0] == "::" else "127.0.0.1", *name[1:])

    def take_traffic(self) -> Undo:
        """All new connections come here from now on. The answer takes that back, until `settle`."""
        if self.group is not None:
            return _steered(self.group, self.listener)
        over = self.over
        if over is None or not self.listener.trade_places(over):
            self.over = None
            return _nothing

        def undo() -> None:
            self.listener.trade_places(over)

        return undo

    def settle(self) -> None:
        """The traffic that was taken is to stay, until another place takes it."""
        over, self.over = self.over, None
        if over is not None:
            over.name = self.listener.name  # what it is of, wherever its file is now

    def can_come_back(self, taken_by: Place) -> bool:
        """Whether the traffic can be led back here, from the place that has taken it."""
        if self.group is not None:
            return self.group is taken_by.group
        return self.listener.path is not None and taken_by.listener.path is not None

    def refuse_new(self) -> None:
        """No new connection from now on; those that wait are still accepted. LinuxError where that cannot be had."""
        if self.group is not None:
            self.group.refuse_new()
        else:
            refuse_new(self.listener)

    def close(self) -> None:
        if self.group is not None:
            self.group.close(self.listener)
        else:
            self.listener.close()


class LostPlace(Place):
    """An address whose socket only its processes have: a manager before us opened it, and it could not be taken back.

    They serve on, and another generation can be opened beside them. They can not be given new siblings.
    """

    __slots__ = ("_bound", "_joined", "_lost")

    def __init__(self, address: Address, lost: LostListener, bound: ConnectTo) -> None:
        super().__init__(address, lost)
        self._lost = lost
        self._bound = bound
        self._joined: Group | None = None

    @property
    def bound(self) -> ConnectTo:
        return self._bound

    def queue(self) -> tuple[int, int] | None:
        if isinstance(self._bound, tuple):
            return tcp_queue(self._bound, self.listener.inode)
        return unix_queue(self.listener.inode)

    @property
    def steerable(self) -> bool:
        if not isinstance(self._bound, tuple):
            return self.listener.path is not None
        # A worker may have shut it down, and then nobody listens there whom another could stand beside.
        there = listening_at(self._bound)
        return isinstance(self.address, TcpAddress) and (there is None or self.listener.inode in there)

    def beside(self, backlog: int) -> Place:
        if not isinstance(self._bound, tuple):
            return super().beside(backlog)
        dual_stack = isinstance(self.address, TcpAddress) and self.address.host == "*" and ":" in self._bound[0]
        self._joined = Group.joined(self._lost, self._bound, backlog=backlog, dual_stack=dual_stack)
        return Place(self.address, self._joined.listeners[1], self._joined)

    def take_traffic(self) -> Undo:
        return _steered(self._joined, self.listener) if self._joined is not None else _nothing

    def refuse_new(self) -> None:
        if not self.listener.unlink():
            raise LinuxError(f"{self.listener.name}: new connections cannot be held off: the socket is not ours")

    def close(self) -> None:
        self.listener.close()
        if self._joined is not None:
            self._joined.lose(self._lost)


class Listening:
    """All addresses of one generation."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)
        self.refuses = False  # no new connection can come, at any address
        self.was_refused = False  # none is to come, wherever that could be had
        self._waited: frozenset[bytes] = frozenset()  # the connections in the queues
        self._nonblocking: set[int] = set()  # fds that processes have made so

    @property
    def listeners(self) -> tuple[Listener, ...]:
        return tuple(place.listener for place in self.places)

    @property
    def fds(self) -> list[int]:
        return [place.listener.fileno() for place in self.places]

    @property
    def names(self) -> list[ConnectTo]:
        """What the kernel calls them: by this it knows their connections."""
        return [place.bound for place in self.places]

    @property
    def lost(self) -> bool:
        """Whether a socket is not ours: no process can be spawned on it."""
        return any(isinstance(place, LostPlace) for place in self.places)

    @property
    def steerable(self) -> bool:
        """Whether a generation can be made beside this one."""
        return all(place.steerable for place in self.places)

    @property
    def can_share(self) -> bool:
        """Whether a part of the traffic can be led to a generation beside this one: on TCP only."""
        return all(place.group is not None for place in self.places)

    def take_traffic(self) -> None:
        """Lead all new connections to this generation, address after address, each in one step.

        LinuxError: one address cannot be had, and so they go where they went before, at all of them.
        """
        taken: list[Undo] = []
        try:
            for place in self.places:
                taken.append(place.take_traffic())
        except LinuxError:
            for undo in reversed(taken):
                undo()
            raise
        for place in self.places:
            place.settle()

    def can_come_back(self, taken_by: Listening) -> bool:
        """Whether all new connections can be led back here, from the generation that has taken them."""
        takers = {str(place.address): place for place in taken_by.places}
        return not self.lost and all(
            str(place.address) in takers and place.can_come_back(takers[str(place.address)]) for place in self.places
        )

    def come_back(self, taken_by: Listening) -> None:
        """Lead all new connections back here. LinuxError: they go where they went before."""
        takers = {str(place.address): place for place in taken_by.places}
        for place in self.places:
            if place.group is None:
                place.over = takers[str(place.address)].listener
        self.take_traffic()

    def begin_serving(self) -> None:
        """Lead all new connections here, where another generation may have had them, or nobody.

        LinuxError, and all is closed: that cannot be had.
        """
        try:
            self.take_traffic()
            for place in self.places:
                if place.group is not None:
                    place.group.admit_again()
        except LinuxError:
            with suppress(LinuxError):
                self.close()
            raise

    def share(self, percent: float) -> None:
        """Lead `percent` of the new connections here."""
        for place in self.places:
            assert place.group is not None  # a canary is refused where `can_share` is false
            place.group.share(place.listener, percent)

    @contextmanager
    def lead_ping(self, connection: socket.socket) -> Iterator[ConnectTo]:
        """Where `connection`, not yet connected, reaches the first listener, whoever else gets the traffic. OSError."""
        place = self.places[0]
        with place.way_in() as to:
            if place.group is not None and not place.group.gets_all(place.listener) and isinstance(to, tuple):
                connection.bind((to[0], 0))
                place.group.only_from(place.listener, connection.getsockname()[:2])
            yield to

    def refuse_new(self) -> None:
        """Let no new connection in. Where that cannot be (an abstract or a passed socket) they come until the end."""
        self.was_refused = True
        self.refuse_new_but(())
        self.refuses = all(isinstance(place.address, TcpAddress | UnixAddress) for place in self.places)

    def refuse_new_but(self, kept: Container[str]) -> None:
        """Let no new connection in, but at the addresses `kept`, which another generation has taken over."""
        for place in self.places:
            if str(place.address) not in kept and isinstance(place.address, TcpAddress | UnixAddress):
                place.refuse_new()

    def change(self, settings: PoolSettings) -> None:
        """Give the open sockets the backlog, mode and owner of these settings. LinuxError: which could not be."""
        owner = resolve_owner(settings.socket_owner) if settings.socket_owner else None
        for place in self.places:
            place.listener.set_backlog(settings.socket_backlog)
            place.listener.set_mode(settings.socket_mode)
            if owner is not None:
                place.listener.set_owner(*owner)

    def note_flags(self) -> None:
        """A process has taken the listeners: whether accept(2) on them waits is for its program to say."""
        if not self.lost:
            self._nonblocking.update(fd for fd in self.fds if not os.get_blocking(fd))

    def restore_flags(self) -> None:
        """A process has ended. Node gives its standard input back as it found it, and so makes its siblings wait in
        accept(2) that did not mean to: the flag is one for all of them.
        """
        for fd in self._nonblocking:
            if os.get_blocking(fd):
                os.set_blocking(fd, False)

    @property
    def waiting(self) -> int:
        """Connections that wait to be accepted, as far as that can be known."""
        return sum((place.queue() or (0, 0))[0] for place in self.places)

    def has_accepted(self) -> bool:
        """Whether something that waited when this was last asked has been accepted since (or its client has gone)."""
        before, self._waited = self._waited, waiting(self.names)
        return bool(before - self._waited)

    def queue_is_empty(self) -> bool:
        """Whether no connection waits to be accepted; where that cannot be known, it is taken to be so."""
        return not self.waiting

    def close(self) -> None:
        """Close all of them. LinuxError: the file of one cannot be removed; they are closed all the same."""
        refusal: LinuxError | None = None
        for place in self.places:
            try:
                place.close()
            except LinuxError as error:
                refusal = refusal or error
        if refusal is not None:
            raise refusal


def _steered(group: Group, listener: Listener) -> Undo:
    before = group.current
    group.steer_to(listener)
    return partial(group.steer_to, before)


def _nothing() -> None:
    """There is nothing to take back."""


def open_listening(
    settings: PoolSettings, inherited: Inherited, beside: Listening | None = None, store: FdStore | None = None
) -> Listening:
    """Bind every socket of a pool, next to those of the generation `beside` where it has the same addresses.

    `inherited`: fds passed by systemd, by name, and by others, as fd:N. `store`: where those of a manager before us
    may still be, open. LinuxError says which could not be bound, and why; none is left open.
    """
    owner = resolve_owner(settings.socket_owner) if settings.socket_owner else None
    neighbours = {str(place.address): place for place in beside.places} if beside is not None else {}
    places: list[Place] = []
    try:
        for address in settings.sockets:
            neighbour = neighbours.get(str(address))
            if neighbour is not None:
                place = neighbour.beside(settings.socket_backlog)
            else:
                place = _take_from(store, address, settings, owner) or _open(address, settings, owner, inherited)
            places.append(place)
            place.listener.set_blocking(settings.socket_blocking)
    except LinuxError:
        listening = Listening(places)
        if store is not None:
            store.let_go(listening)
        with suppress(LinuxError):  # what could not be opened is what to tell
            listening.close()
        raise
    return Listening(places)


def _take_from(
    store: FdStore | None, address: Address, settings: PoolSettings, owner: tuple[int, int] | None
) -> Place | None:
    """The socket of this address that a manager before us has left open, as these settings want it. LinuxError."""
    listener = store.take(address) if store is not None else None
    if listener is None:
        return None
    place = Place(address, listener)
    try:
        listener.set_backlog(settings.socket_backlog)
        if isinstance(address, UnixAddress):
            listener.set_mode(settings.socket_mode)
            if owner is not None:
                listener.set_owner(*owner)
    except LinuxError:
        assert store is not None  # it is from there
        store.let_go(Listening([place]))
        place.close()
        raise
    if isinstance(address, TcpAddress):
        with suppress(LinuxError):  # this kernel does not steer, or somebody else listens there too
            place.group = Group.restored([listener], listener)
    return place


def _open(address: Address, settings: PoolSettings, owner: tuple[int, int] | None, inherited: Inherited) -> Place:
    backlog = settings.socket_backlog
    match address:
        case TcpAddress(host, port):
            listener = open_tcp(host, port, backlog=backlog, reuseport=True)
            try:
                return Place(address, listener, Group(listener))
            except LinuxError:  # this kernel does not steer: a reload will be a rolling restart
                return Place(address, listener)
        case UnixAddress(path):
            return Place(address, open_unix(path, backlog=backlog, owner=owner, mode=settings.socket_mode))
        case InheritedAddress(fd):
            if str(address) not in inherited:
                raise LinuxError(
                    f"{address}: nothing was passed to the manager under this number; let whoever opens the socket "
                    "start the manager"
                )
            return Place(address, take_inherited(fd, backlog=backlog))
        case SystemdAddress(name):
            fds = inherited.get(name)
            if not fds:
                came = ", ".join(other for other in inherited if not other.startswith("fd:")) or "none"
                raise LinuxError(
                    f"systemd:{name}: no socket of this name was passed to the manager (passed: {came}); "
                    f"set FileDescriptorName={name} in the .socket unit that starts it"
                )
            return Place(address, take_inherited(fds[0], backlog=backlog, name=str(address)))
