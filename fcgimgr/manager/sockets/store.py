"""The listeners that are left with systemd (FileDescriptorStoreMax=), and those that come back from there.

Every listener that the manager opens is left there too, and taken away from there when it is closed. So it outlives the
manager: who comes while there is none waits in its queue, and the next manager, which gets it passed by systemd, takes
it back where its configuration has that address still. When the manager itself ends, what serves then stays open for
whoever comes after; a `systemctl stop` lets systemd close it.

Sockets of `.socket` units and other passed ones are not left: they are systemd's own. Without systemd, or if it keeps
nothing, nothing is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from fcgimgr.config.address import Address, TcpAddress, UnixAddress
from fcgimgr.linux import returning
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import Listener, LostListener, take_back
from fcgimgr.linux.sdnotify import Notifier

if TYPE_CHECKING:
    import socket

    from fcgimgr.manager.logs.journal import Journal
    from fcgimgr.manager.sockets.listening import Listening


class FdStore:
    """What is left with systemd. It has nothing and does nothing until `begin`."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._notifier = Notifier(None)
        self._tell: Callable[[Callable[[], bool]], None] = lambda message: None
        self._came: dict[int, socket.socket] = {}  # by inode, from the manager before, until somebody wants it
        self._open: dict[int, Listener] = {}  # by inode: those that are ours, and to be left
        self._left: set[int] = set()  # the inodes of those that systemd has, or is about to get
        self._arrived: set[int] = set()  # of those that it has got
        self._kept: list[Listening] = []  # of what has ended and is not to be closed
        self._served: Collection[int] = ()
        self._told_of_lack = False

    def begin(
        self, notifier: Notifier, tell: Callable[[Callable[[], bool]], None], came: Mapping[int, socket.socket]
    ) -> None:
        """`tell`: has a message delivered, in its turn. `came`: from the manager before us, by inode."""
        self._notifier, self._tell = notifier, tell
        self._came = dict(came)
        self._left, self._arrived = set(came), set(came)

    # Left there

    def keep(self, listening: Listening) -> None:
        """These are open now: leave them, too."""
        if not self._notifier.room:
            return
        for place in listening.places:
            if isinstance(place.address, TcpAddress | UnixAddress) and not isinstance(place.listener, LostListener):
                self._open[place.listener.inode] = place.listener
        self._leave_them()

    def let_go(self, listening: Listening) -> None:
        """These are about to be closed: nobody is to come to them any more."""
        for place in listening.places:
            self.forget(place.listener, shut_down=place.group is None)  # a group shuts down its members itself

    def forget(self, listener: Listener, *, shut_down: bool = True) -> None:
        """As `let_go`, of one. `shut_down`: else whoever closes it does that."""
        if self._open.pop(listener.inode, None) is None and listener.inode not in self._left:
            return
        # Before systemd has closed its own, a client would come to a queue that nobody serves.
        if shut_down and not isinstance(listener, LostListener):
            returning.shut_down(listener.sock)
        self._take_away(listener.inode)
        self._leave_them()

    def stays(self, listening: Listening) -> bool:
        """Whether clients may go on coming to all of these when the manager has ended."""
        own = [place for place in listening.places if isinstance(place.address, TcpAddress | UnixAddress)]
        inodes = {place.listener.inode for place in own}
        return bool(own) and inodes <= self._arrived and inodes <= self._open.keys()

    def leave(self, listening: Listening) -> None:
        """They are not closed, but for our descriptors, with the manager itself: groups are steered by them."""
        self._kept.append(listening)

    def lost(self) -> None:
        """Something was not delivered: whether systemd has any of them is unknown, so none is relied on."""
        self._left.clear()
        self._arrived.clear()

    def _leave_them(self) -> None:
        for listener in [listener for inode, listener in self._open.items() if inode not in self._left]:
            if len(self._left) >= self._notifier.room:
                self._tell_of_lack(listener)
                return
            self._left.add(listener.inode)
            self._tell(partial(self._leave, listener))

    def _leave(self, listener: Listener) -> bool:
        if listener.sock.fileno() < 0:  # closed before systemd would listen; its number may be another's by now
            return True
        if not self._notifier.store_fds(returning.name_for(listener.inode), [listener.fileno()]):
            return False
        self._arrived.add(listener.inode)
        return True

    def _take_away(self, inode: int) -> None:
        self._left.discard(inode)
        self._arrived.discard(inode)
        if self._notifier.address is not None:
            self._tell(partial(self._notifier.forget_fds, returning.name_for(inode)))

    def _tell_of_lack(self, listener: Listener) -> None:
        if not self._told_of_lack:
            self._told_of_lack = True
            self._journal.warning(
                f"{listener.name}: systemd keeps no more than {self._notifier.room} sockets for us; it is lost if the "
                "manager is killed; set FileDescriptorStoreMax= to twice the number of addresses"
            )

    # Coming back

    def sort_out(self, addresses: Iterable[Address], held: Collection[int], served: Collection[int]) -> None:
        """Close all that came back but what is wanted: those in `held`, and of the others one for each address.

        held: the inodes of those whose processes have lived on. served: of those that got the traffic.
        """
        if not self._came:
            return
        self._served = served
        wanted = set(held)
        theirs = [sock for inode, sock in self._came.items() if inode in held]
        for address in addresses:
            best = next(iter(self._of(address)), None)
            # Its queue is lost, but beside one that nobody serves no group could be had with those that live.
            if best is not None and not any(returning.is_beside(self._came[best], sock) for sock in theirs):
                wanted.add(best)
        for inode in [inode for inode in self._came if inode not in wanted]:
            self._close(inode, self._came.pop(inode))

    def give_up_rest(self) -> None:
        """Close what nobody has taken: the manager is up."""
        while self._came:
            self._close(*self._came.popitem())

    def claim(self, inode: int) -> int | None:
        """A descriptor of the listener with this inode; None: it is not here."""
        sock = self._came.pop(inode, None)
        return sock.detach() if sock is not None else None

    def take(self, address: Address) -> Listener | None:
        """The listener of this address, open as it was left; None: there is none."""
        if not self._came:
            return None
        for inode in self._of(address):
            sock = self._came.pop(inode)
            queued = returning.waiting(sock)
            path = address.path if isinstance(address, UnixAddress) and not address.path.startswith("@") else None
            try:
                listener = take_back(sock.detach(), name=str(address), path=path, inode=inode)
            except LinuxError as error:
                self._journal.warning(str(error))
                self._take_away(inode)
                continue
            self._journal.info(f"{address}: taken back from systemd", waiting=queued)
            return listener
        return None

    def give_back(self, listener: Listener) -> bool:
        """Have one that was claimed here again, as it was; False: systemd does not have it."""
        if listener.inode not in self._left or isinstance(listener, LostListener):
            return False
        self._came[listener.inode] = listener.sock.dup()
        listener.leave()
        return True

    def _of(self, address: Address) -> list[int]:
        """The inodes of those that came back and serve this address; the one that had the traffic, or seems so, first.

        Of two that are left from a reload only one can be had: whoever waits at the other is lost.
        """
        found = [inode for inode, sock in self._came.items() if returning.listens(sock) and _serves(sock, address)]
        return sorted(found, key=lambda inode: (inode not in self._served, -returning.waiting(self._came[inode])))

    def _close(self, inode: int, sock: socket.socket) -> None:
        name, queued = returning.describe(sock), returning.waiting(sock) if returning.listens(sock) else 0
        try:
            returning.end(sock)
        except LinuxError as error:
            self._journal.warning(str(error))
        self._take_away(inode)
        log = self._journal.warning if queued else self._journal.info
        log(f"{name}: came back from systemd, and no pool wants it: closed", waiting=queued)


def _serves(sock: socket.socket, address: Address) -> bool:
    match address:
        case TcpAddress(host, port):
            try:
                return returning.serves_tcp(sock, host, port)
            except LinuxError:  # no address is known for the host: whoever opens it will hear of it
                return False
        case UnixAddress(path):
            return returning.serves_unix(sock, path)
        case _:
            return False
