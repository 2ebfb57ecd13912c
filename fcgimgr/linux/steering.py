"""A TCP pool's generations behind one address: which of its listeners gets the new connections, switched at once.

The listeners are a SO_REUSEPORT group: sockets bound to one address by one user, each with a queue of its own. A BPF
program chooses among them by their index in an array of the kernel's (net/core/sock_reuseport.c), and attaching another
is the switch: the next SYN meets it, none meets neither. The array is nowhere to be read, so Group keeps a copy by its
rules: a listener joins at the end, when it begins to listen; when one leaves, *the last takes its place*.

A listener leaves when its last descriptor is closed, and children have descriptors too. So `close` shuts the socket
down first, which takes it out at once, whoever has it open.
"""

import errno
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from fcgimgr.linux import bpf, sockdiag, tcpsocket
from fcgimgr.linux.errors import LinuxError, refuse
from fcgimgr.linux.glance import holders
from fcgimgr.linux.listeners import Listener, LostListener

# Seconds for a connection to ourselves: a firewall on the loopback interface must not stop the manager.
_AT_ONCE: Final = 0.2
_ADVICE: Final = "a rolling restart on the one socket works everywhere"


class Group:
    """The listeners of one address. `current` gets all traffic that nothing else is said about."""

    _sharing: tuple[Listener, float] | None = None  # who gets what percentage of it

    def __init__(self, first: Listener) -> None:
        """A group of one, opened with `open_tcp(…, reuseport=True)`. LinuxError: this kernel or socket cannot."""
        self._order = [first]
        self._dead_end: _DeadEnd | None = None
        self._steer(first, bpf.to_index(0))

    @classmethod
    def restored(cls, order: Sequence[Listener], current: Listener) -> "Group":
        """A group from before an exec or a crash: its `listeners` of then, in that order. All traffic to `current`.

        LinuxError also when the order may have changed: somebody else listens at the address too, or one does no more.
        """
        group = cls.__new__(cls)
        group._order = list(order)
        group._dead_end = None
        group._refuse_strangers()
        group.steer_to(current)
        return group

    @classmethod
    def joined(cls, lost: LostListener, name: tuple[Any, ...], *, backlog: int, dual_stack: bool) -> "Group":
        """The group of a listener that we have no descriptor of, and of a new one of ours beside it (`listeners[1]`).

        All traffic goes on to the lost one. name: as its `getsockname()` is. LinuxError: another uid's, or others
        listen there too.
        """
        sock = tcpsocket.listen(
            lost.name,
            socket.AF_INET6 if ":" in name[0] else socket.AF_INET,
            name,
            backlog,
            dual_stack=dual_stack,
            sharing=tcpsocket.Sharing.BESIDE,
        )
        group = cls.__new__(cls)
        group._order = [lost, Listener(lost.name, sock)]
        group._dead_end = None
        try:
            group._refuse_strangers()
            group.steer_to(lost)
        except LinuxError:
            sock.close()
            raise
        return group

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """In the order of the kernel's array. What `restored` needs to know again later."""
        return tuple(self._order)

    @property
    def _ours(self) -> Listener | None:
        """One that we have a descriptor of."""
        return next((member for member in self._order if not isinstance(member, LostListener)), None)

    def lose(self, lost: LostListener) -> None:
        """Its processes have ended, and it with them."""
        if lost in self._order and lost.inode not in (sockdiag.listening_at(self._name) or ()):
            self._remove(lost)

    @property
    def _name(self) -> tuple[Any, ...]:
        ours = self._ours
        assert ours is not None  # who has a group has a listener in it
        name: tuple[Any, ...] = ours.sock.getsockname()
        return name

    def beside(self, *, backlog: int, name: str | None = None) -> Listener:
        """One more listener on the same address. It gets no connection until the traffic is steered.

        LinuxError: the address cannot be shared (it was bound without SO_REUSEPORT, or by another user), or somebody
        else shares it already, and nobody could tell who has which index.
        """
        ours = self._ours
        assert ours is not None  # who has a group has a listener in it
        first = ours.sock
        name = name or ours.name
        # What a program of shares or ports says of an index that is still free would be said of the newcomer.
        self.steer_to(self.current)
        dual_stack = first.family == socket.AF_INET6 and not first.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        try:
            sock = tcpsocket.listen(
                name,
                first.family,
                first.getsockname(),
                backlog,
                dual_stack=dual_stack,
                sharing=tcpsocket.Sharing.BESIDE,
            )
        except LinuxError as error:
            raise LinuxError(f"no second listener can be had beside the first: {error}; {_ADVICE}") from error
        listener = Listener(name, sock)
        self._order.append(listener)
        try:
            self._refuse_strangers()
        except LinuxError:
            self.close(listener)
            raise
        return listener

    def steer_to(self, listener: Listener) -> None:
        """From now on every new connection goes to this one. What waits in the queues of others stays there."""
        self._sharing = None
        self._steer(listener, bpf.to_index(self._index(listener)))

    def gets_all(self, listener: Listener) -> bool:
        """Whether every new connection goes to this one."""
        return self.current is listener and self._sharing is None

    def share(self, listener: Listener, percent: float) -> None:
        """Of new connections `percent` (0 to 100) by chance to this one, the others to `current`."""
        if not 0 <= percent <= 100:
            raise ValueError(f"{percent} is not a percentage")
        self._steer(self.current, bpf.share(percent, self._index(listener), self._index(self.current)))
        self._sharing = listener, percent

    def only_from(self, listener: Listener, client: tuple[str, int]) -> None:
        """Connections from this address and port (a ping's own, `getsockname()`) to this one, others as before."""
        host, port = client
        others = bpf.to_index(self._index(self.current))
        if self._sharing is not None:
            sharer, percent = self._sharing
            others = bpf.share(percent, self._index(sharer), self._index(self.current))
        self._steer(self.current, bpf.one_client(host, port, self._index(listener), others))

    def refuse_new(self) -> None:
        """No new connection from now on: SYNs are dropped. What waits in queues is still accepted, and handshakes end.

        A client tries again after 1 s, and finds whoever listens by then, or nobody. Needs no privilege: the traffic is
        steered to one more listener, whose backlog is 0 and whose one place is taken by a connection of our own; the
        kernel drops the SYNs of a full queue. LinuxError: that could not be had, and nothing has changed.
        """
        if self._dead_end:
            return
        before = self.current
        end = self.beside(backlog=0)
        try:
            plug = _plug(self, end)
        except (OSError, LinuxError) as error:
            self.close(end)
            raise LinuxError(f"{before.name}: cannot hold off new connections: {error}") from error
        self._dead_end = _DeadEnd(end, plug, before)
        self.steer_to(end)

    def admit_again(self) -> None:
        """Take back `refuse_new`: the traffic goes where it went before, or has been steered since.

        Nothing to do if it was not said.
        """
        if self._dead_end:
            if self.current is self._dead_end.listener:
                self.steer_to(self._dead_end.before)
            self.close(self._dead_end.listener)

    def close(self, listener: Listener) -> None:
        """Take it out of the group and close it; what still waits in its queue is reset, so drain it before.

        If it was `current`, the first of the others is from now on. (With two others left, and the traffic on the last
        of the array, the kernel spreads it over both for the microseconds until the program is set again.)
        """
        self._index(listener)
        if self._dead_end and self._dead_end.listener is listener:
            self._dead_end.plug.close()
            self._dead_end = None
        try:
            listener.sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # else one of its workers has shut it down already
                refuse(f"{listener.name}: cannot stop listening", error)
        finally:
            listener.close()
            self._remove(listener)

    def _remove(self, listener: Listener) -> None:
        """Follow the kernel, which has taken it out of its array."""
        steered = self.current
        self._order[self._index(listener)] = self._order[-1]
        self._order.pop()
        if self._dead_end and self._order == [self._dead_end.listener]:
            self.close(self._dead_end.listener)  # nobody is left for whom it would hold off anybody
        elif self._ours is not None:
            self.steer_to(steered if steered is not listener else self._order[0])

    def _index(self, listener: Listener) -> int:
        for index, member in enumerate(self._order):
            if member is listener:
                return index
        raise ValueError(f"{listener!r} is not of this group")

    def _steer(self, current: Listener, program: bpf.Program) -> None:
        ours = self._ours
        assert ours is not None  # who steers has a listener in the group
        try:
            bpf.attach_to_group(ours.sock, program)
        except OSError as error:
            refuse(f"{current.name}: the kernel refuses to steer connections", error, _ADVICE)
        self.current = current

    def _refuse_strangers(self) -> None:
        """LinuxError unless exactly ours listen at this address. Where nobody can tell, nothing is refused."""
        first = self._order[0]
        there = sockdiag.listening_at(self._name)
        if there is None:
            return
        ours = {member.inode for member in self._order}
        if strangers := there - ours:
            raise LinuxError(
                f"{first.name}: somebody else listens on this address too{holders(strangers)}; stop that one: "
                f"while it is there connections cannot be steered safely; {_ADVICE}"
            )
        if ours - there:
            raise LinuxError(
                f"{first.name}: not all of its listeners listen any more: a process has shut one down; stop the pool "
                "and start it"
            )


class _DeadEnd(NamedTuple):
    """Where new connections are steered to be dropped, what fills it, and where they went before."""

    listener: Listener
    plug: socket.socket
    before: Listener


def _plug(group: Group, end: Listener) -> socket.socket:
    """A connection of our own that fills the queue of `end`. OSError, LinuxError: it did not come to that."""
    name = end.sock.getsockname()
    family, loopback = (socket.AF_INET6, "::1") if ":" in name[0] else (socket.AF_INET, "127.0.0.1")
    if name[0] == "::" and not end.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        family, loopback = socket.AF_INET, "127.0.0.1"
    here = (loopback, name[1]) if name[0] in ("::", "0.0.0.0") else name
    plug = tcpsocket.stream_socket(family)
    try:
        plug.settimeout(_AT_ONCE)
        plug.bind((here[0], 0, *here[2:]))
        group.only_from(end, plug.getsockname()[:2])
        plug.connect(here)
        length = sockdiag.queue_length(end.sock)
        if length is None or not length[0]:
            raise LinuxError("a connection to ourselves did not arrive where it was steered")
    except BaseException:
        plug.close()
        raise
    return plug


def refuse_new(listener: Listener) -> None:
    """No new connection from now on; what waits in the queue, or is in the midst of its handshake, is still accepted.

    For a listener in no group. TCP: a filter drops SYNs, as `Group.refuse_new` does without one. Unix: the path is
    unlinked (if it is ours), and a client finds nobody at once. LinuxError where the kernel will not: an abstract Unix
    socket has no path, and the filter takes CAP_NET_ADMIN on newer kernels.
    """
    if listener.sock.family == socket.AF_UNIX:
        if not listener.unlink():
            raise LinuxError(f"{listener.name}: has no file of its own to unlink; new connections go on arriving")
        return
    try:
        bpf.attach_filter(listener.sock, bpf.DROP_SYN)
    except OSError as error:
        advice = "the filter takes CAP_NET_ADMIN here" if isinstance(error, PermissionError) else ""
        refuse(f"{listener.name}: cannot hold off new connections", error, advice)


def admit_again(listener: Listener) -> None:
    """Take back `refuse_new` of TCP. LinuxError: it was not said."""
    try:
        bpf.detach_filter(listener.sock)
    except OSError as error:
        refuse(f"{listener.name}: cannot let new connections in again", error)
