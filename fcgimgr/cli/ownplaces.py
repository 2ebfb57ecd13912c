"""Where the manager's own files and the sockets are to lie: `check` asks there what the start will ask."""

import os
from collections.abc import Callable, Iterator

from fcgimgr.config.address import UnixAddress
from fcgimgr.config.settings import Config
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.locks import look_at_lock
from fcgimgr.linux.owndirectory import look_at_directory
from fcgimgr.linux.socketfile import look_at_place

_Looks = Iterator[tuple[str, Callable[[str], object]]]


def warnings(config: Config) -> Iterator[str]:
    """A line for each place that would be refused if this user started the manager now, as the start would say it."""
    settled: set[str] = set()  # what is made by the start, or refused by it, with all that is in there
    for path, look in _looks(config):
        try:
            if os.path.dirname(path) in settled or look(path) is False:
                settled.add(path)
        except LinuxError as error:
            settled.add(path)
            if not isinstance(error.__cause__, PermissionError):  # the manager may look where this user may not
                yield str(error)


def _looks(config: Config) -> _Looks:
    """(path, what raises LinuxError if it is refused; False: it is made)"""
    manager = config.manager
    yield os.path.dirname(manager.control), lambda path: look_at_directory(path, "control")
    yield manager.state_dir, lambda path: look_at_directory(path, "state_dir")
    yield manager.control, lambda path: look_at_place(path, path)
    if manager.pidfile is not None:
        yield manager.pidfile, look_at_lock
    addresses = (address for pool in config.pools.values() for address in pool.sockets)
    for path in dict.fromkeys(address.path for address in addresses if isinstance(address, UnixAddress)):
        if not path.startswith("@"):
            yield path, lambda path: look_at_place(f"unix:{path}", path)
