"""A pool's listeners: opened all together or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fcgimgr.config.address import Address, InheritedAddress, SystemdAddress, TcpAddress, UnixAddress
from fcgimgr.config.settings import PoolSettings
from fcgimgr.linux.accounts import resolve_owner
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import Listener, open_tcp, open_unix, take_inherited


def open_listeners(settings: PoolSettings, inherited: Mapping[str, Sequence[int]]) -> list[Listener]:
    """Bind every socket of a pool; `inherited`: fds passed by systemd, by name.

    LinuxError says which could not be bound, and why; then none is left open.
    """
    owner = resolve_owner(settings.socket_owner) if settings.socket_owner else None
    opened: list[Listener] = []
    try:
        for address in settings.sockets:
            listener = _open(address, settings, owner, inherited)
            opened.append(listener)
            listener.set_blocking(settings.socket_blocking)
    except LinuxError:
        for listener in opened:
            listener.close()
        raise
    return opened


def _open(
    address: Address, settings: PoolSettings, owner: tuple[int, int] | None, inherited: Mapping[str, Sequence[int]]
) -> Listener:
    match address:
        case TcpAddress(host, port):
            return open_tcp(host, port, backlog=settings.socket_backlog)
        case UnixAddress(path):
            return open_unix(path, backlog=settings.socket_backlog, owner=owner, mode=settings.socket_mode)
        case InheritedAddress(fd):
            return take_inherited(fd, backlog=settings.socket_backlog)
        case SystemdAddress(name):
            fds = inherited.get(name)
            if not fds:
                raise LinuxError(
                    f"systemd:{name}: no socket of this name was passed to the manager; "
                    f"set FileDescriptorName={name} in the .socket unit that starts it"
                )
            return take_inherited(fds[0], backlog=settings.socket_backlog, name=str(address))
