"""What the users of the pools may not execute or read though it is to run as them: a Python below /root, say.

`check` asks as each of them, where it is root: only the kernel knows what modes, groups and access control lists come
to.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from fcgimgr.config.files import read_regular
from fcgimgr.config.pools import PoolSettings
from fcgimgr.config.processes import WORKER_MAIN, process_plan
from fcgimgr.config.settings import Config
from fcgimgr.linux.accounts import Account, resolve_user
from fcgimgr.linux.errors import LinuxError

_LARGEST: Final = 1 << 16  # bytes of a pyvenv.cfg


class _Wanted(NamedTuple):
    """key: whose value it comes from; way: each directory that the kernel goes through to it, and itself, links
    followed; how: os.X_OK or os.R_OK.
    """

    key: str
    path: str
    way: Sequence[str]
    how: int


def warnings(config: Config) -> Iterator[str]:
    """A line for each file that a process needs and its user may not have."""
    if os.geteuid() != 0:
        return
    for user, wanted in _by_user(config).items():
        try:
            account = resolve_user(user)
        except LinuxError:
            continue  # as its start says
        for one, at in zip(wanted, _kept_out(account, wanted), strict=True):
            if at is not None:
                mode = stat.S_IMODE(os.stat(at).st_mode)
                verb = "go into" if os.path.isdir(one.path) else "read" if one.how == os.R_OK else "execute"
                yield (
                    f"{one.key}: {account.name} may not {verb} {one.path}: see {at} (mode {mode:04o}); put it where "
                    "that user may go, such as /opt or /srv"
                )


def _by_user(config: Config) -> dict[str, list[_Wanted]]:
    found: dict[str, list[_Wanted]] = {}
    for kind, units in (("pool", config.pools), ("program", config.programs)):
        for name, settings in units.items():
            if settings.user is None or settings.chroot is not None:
                continue
            program = process_plan(settings, config, 0).argv[0]
            is_wsgi = isinstance(settings, PoolSettings) and settings.wsgi is not None
            needed = [(f"{kind}.{name}.{'python' if is_wsgi else 'command'}", program, os.X_OK)]
            if is_wsgi:
                needed += [(needed[0][0], home, os.X_OK) for home in _home(program)]
                needed.append((f"{kind}.{name}.user", WORKER_MAIN, os.R_OK))
            found.setdefault(settings.user, []).extend(
                _Wanted(key, path, list(_way(path)), how)
                for key, path, how in needed
                if os.path.isabs(path) and os.path.exists(path)  # else its start says so
            )
    return found


def _way(path: str) -> Iterator[str]:
    """Of a path that leads to something."""
    names, here = path.split("/"), "/"
    while names:
        name = names.pop(0)
        there = os.path.normpath(os.path.join(here, name))  # no link is left in it
        if os.path.islink(there):
            target = os.readlink(there)
            names[:0] = target.split("/")
            here = "/" if target.startswith("/") else here
        elif there != here:
            yield there
            here = there


def _home(python: str) -> Iterator[str]:
    """Where a virtualenv has its Python from, of which it needs the library."""
    try:
        path = os.path.join(os.path.dirname(os.path.dirname(python)), "pyvenv.cfg")
        words = [line.partition("=") for line in read_regular(path, _LARGEST).decode().splitlines()]
    except ValueError:  # there is none, or it is not what a virtualenv has there: the user may have put it there
        return
    yield from (value.strip() for key, _, value in words if key.strip() == "home")


def _kept_out(account: Account, wanted: Sequence[_Wanted]) -> list[str | None]:
    """For each, what keeps this user out; None: nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(account.groups)
            os.setgid(account.gid)
            os.setuid(account.uid)
            with open(writing, "w") as answer:
                json.dump([_first_closed(one) for one in wanted], answer)
        finally:
            os._exit(0)  # whatever it was: then nothing is known
    os.close(writing)
    with open(reading) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else [None] * len(wanted)


def _first_closed(one: _Wanted) -> str | None:
    if os.access(one.path, one.how):
        return None
    return next((path for path in one.way[:-1] if not os.access(path, os.X_OK)), one.way[-1])
