"""A TCP pool's generations behind one address: which of its listeners gets the new connections, switched at once.

The listeners are a SO_REUSEPORT group: sockets bound to one address by one user, each with a queue of its own. A BPF
program chooses among them by their index in an array of the kernel's (net/core/sock_reuseport.c), and attaching another
is the switch: the next SYN meets it, none meets neither. The array is nowhere to be read, so Group keeps a copy by its
rules: a listener joins at the end, when it begins to listen; when one leaves, *the last takes its place*.

A listener leaves when its last descriptor is closed, and children have descriptors too. So `close` shuts the socket
down first, which takes it out at once, whoever has it open.
"""

import errno
import os
import socket
from collections.abc import Sequence

from fcgimgr.linux import bpf, procfs, sockdiag, tcpsocket
from fcgimgr.linux.errors import LinuxError, refuse
from fcgimgr.linux.listeners import Listener

_ADVICE = "a rolling restart on the one socket works everywhere"


class Group:
    """The listeners of one address. `current` gets all traffic that nothing else is said about."""

    def __init__(self, first: Listener) -> None:
        """A group of one, opened with `open_tcp(…, reuseport=True)`. LinuxError: this kernel or socket cannot."""
        self._order = [first]
        self._steer(first, bpf.to_index(0))

    @classmethod
    def restored(cls, order: Sequence[Listener], current: Listener) -> "Group":
        """A group from before an exec or a crash: its `listeners` of then, in that order. All traffic to `current`.

        LinuxError also when the order may have changed: somebody else listens at the address too, or one does no more.
        """
        group = cls.__new__(cls)
        group._order = list(order)
        group._refuse_strangers()
        group.steer_to(current)
        return group

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """In the order of the kernel's array. What `restored` needs to know again later."""
        return tuple(self._order)

    def beside(self, *, backlog: int, name: str | None = None) -> Listener:
        """One more listener on the same address. It gets no connection until the traffic is steered.

        LinuxError: the address cannot be shared (it was bound without SO_REUSEPORT, or by another user), or somebody
        else shares it already, and nobody could tell who has which index.
        """
        first = self._order[0].sock
        name = name or self._order[0].name
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
        self._steer(listener, bpf.to_index(self._index(listener)))

    def share(self, listener: Listener, percent: float) -> None:
        """Of new connections `percent` (0 to 100) by chance to this one, the others to `current`."""
        if not 0 <= percent <= 100:
            raise ValueError(f"{percent} is not a percentage")
        self._steer(self.current, bpf.share(percent, self._index(listener), self._index(self.current)))

    def only_from(self, listener: Listener, client: tuple[str, int]) -> None:
        """Connections from this address and port (a ping's own, `getsockname()`) to this one, others to `current`."""
        host, port = client
        self._steer(self.current, bpf.one_client(host, port, self._index(listener), self._index(self.current)))

    def close(self, listener: Listener) -> None:
        """Take it out of the group and close it; what still waits in its queue is reset, so drain it before.

        If it was `current`, the first of the others is from now on. (With two others left, and the traffic on the last
        of the array, the kernel spreads it over both for the microseconds until the program is set again.)
        """
        at = self._index(listener)
        steered = self.current
        self._order[at] = self._order[-1]
        self._order.pop()
        try:
            listener.sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # else one of its workers has shut it down already
                refuse(f"{listener.name}: cannot stop listening", error)
        finally:
            listener.close()
            if self._order:
                self.steer_to(steered if steered is not listener else self._order[0])

    def _index(self, listener: Listener) -> int:
        for index, member in enumerate(self._order):
            if member is listener:
                return index
        raise ValueError(f"{listener!r} is not of this group")

    def _steer(self, current: Listener, program: bpf.Program) -> None:
        try:
            bpf.attach_to_group(current.sock, program)
        except OSError as error:
            refuse(f"{current.name}: the kernel refuses to steer connections", error, _ADVICE)
        self.current = current

    def _refuse_strangers(self) -> None:
        """LinuxError unless exactly ours listen at this address. Where nobody can tell, nothing is refused."""
        first = self._order[0]
        there = sockdiag.listening_at(first.sock.getsockname())
        if there is None:
            return
        ours = {member.inode for member in self._order}
        if strangers := there - ours:
            raise LinuxError(
                f"{first.name}: somebody else listens on this address too{procfs.holders(strangers)}; stop that one: "
                f"while it is there connections cannot be steered safely; {_ADVICE}"
            )
        if ours - there:
            raise LinuxError(f"{first.name}: not all of its listeners listen any more; {_ADVICE}")


def refuse_new(listener: Listener) -> None:
    """No new connection from now on; what waits in the queue, or is in the midst of its handshake, is still accepted.

    TCP: a SYN is dropped, so a client tries again after 1 s and finds whoever listens by then, or nobody. Unix: the
    path is unlinked (if it is ours), so it finds nobody at once. LinuxError where the kernel will not: an abstract
    Unix socket has no path.
    """
    if listener.sock.family == socket.AF_UNIX:
        if not listener.unlink():
            raise LinuxError(f"{listener.name}: has no file of its own to unlink; new connections go on arriving")
        return
    try:
        bpf.attach_filter(listener.sock, bpf.DROP_SYN)
    except OSError as error:
        refuse(f"{listener.name}: cannot hold off new connections", error)


def admit_again(listener: Listener) -> None:
    """Take back `refuse_new` on TCP. LinuxError: it was not said."""
    try:
        bpf.detach_filter(listener.sock)
    except OSError as error:
        refuse(f"{listener.name}: cannot let new connections in again", error)


def migrates() -> bool:
    """Whether this kernel hands the queue of a closed listener to the others of its group (net.ipv4.tcp_migrate_req).

    Linux ≥ 5.14, off by default. A drain needs it not, but then loses nothing even at its deadline.
    """
    try:
        fd = os.open("/proc/sys/net/ipv4/tcp_migrate_req", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(fd, 8).strip() == b"1"
    finally:
        os.close(fd)
