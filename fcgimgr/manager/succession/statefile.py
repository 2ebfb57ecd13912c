"""The state file: kept true at little cost, so that a manager that is killed can be followed by another.

A change is one line more at the end of the file; a spawn is written at once (the pid is all that leads back to the
process), everything else when the loop's turn is over. When the lines have become many more than what they tell of, the
whole is written anew, to a second file that is renamed over the first. Nothing is written while nothing happens.

It is not fsynced: a process whose machine has lost its memory is lost as well.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from fcgimgr import __version__
from fcgimgr.config.settings import PoolSettings, ProgramSettings
from fcgimgr.linux.procfs import boot_id
from fcgimgr.manager.logs import inhand
from fcgimgr.manager.sockets.listening import LostPlace, Place
from fcgimgr.manager.succession import state
from fcgimgr.manager.succession.state import (
    GenerationRecord,
    ListenerRecord,
    ManagerRecord,
    PoolRecord,
    ProcessRecord,
    Record,
)

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.pool import Pool

# Lines that may be appended for each thing that there is, and besides, before the file is written anew.
LINES_EACH: Final = 4
LINES_BESIDES: Final = 256
# Seconds after which what could not be written is tried again.
TRY_AGAIN: Final = 1.0


class StateFile:
    """Written from the first `all_changed` on, until it is closed or removed."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.path = os.path.join(daemon.config.manager.state_dir, state.NAME)
        self._boot = boot_id()
        self._fd = -1
        self._lines = 0
        self._most = 0
        self._begun = False
        self._scheduled = False
        self._all = False
        self._pools: dict[Pool, None] = {}
        self._generations: dict[Generation, None] = {}
        self._processes: dict[tuple[Generation, int], None] = {}
        self._failing = False
        self._retry: asyncio.TimerHandle | None = None

    # What has changed

    def all_changed(self) -> None:
        """Something is no more, or has another name."""
        self._begun = self._all = True
        self._write_soon()

    def pool_changed(self, pool: Pool) -> None:
        self._pools[pool] = None
        self._write_soon()

    def generation_changed(self, generation: Generation) -> None:
        # Generations share addresses: what one does to the order of the sockets there is true of the others.
        self._generations.update(dict.fromkeys(generation.pool.generations.values()))
        self._generations[generation] = None
        self._write_soon()

    def process_changed(self, generation: Generation, index: int) -> None:
        self._processes[generation, index] = None
        self._write_soon()

    def _write_soon(self) -> None:
        if self._begun and not self._scheduled:
            self._scheduled = True
            self._daemon.loop.call_soon(self._write_scheduled)

    def _write_scheduled(self) -> None:
        self._scheduled = False
        self.write()

    # Writing

    def write(self) -> None:
        """Write what has changed, now."""
        if not self._begun:
            return
        changed = list(self._changed())
        try:
            if self._all or self._fd < 0 or self._lines + len(changed) > self._most:
                self._write_all()
            elif changed:
                lines = b"".join(map(state.encode, changed))
                if os.write(self._fd, lines) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._lines += len(changed)
        except OSError as error:
            self._close_fd()
            reason = error.strerror or error
            if self._retry is None:
                self._retry = self._daemon.loop.call_later(TRY_AGAIN, self._try_again)
            if not self._failing:
                self._failing = True
                self._daemon.journal.error(
                    f"{self.path}: cannot be written: {reason}; if the manager were killed now, the next one would not "
                    "know its processes"
                )
            return
        if self._failing:
            self._failing = False
            self._daemon.journal.info(f"{self.path}: is written again")

    def put_back(self) -> list[str]:
        """Write all of it anew if somebody has removed it: its path if that was so."""
        if self._fd < 0 or (os.fstat(self._fd).st_nlink and os.path.exists(self.path)):
            return []
        self._close_fd()
        self.write()
        return [self.path] if self._fd >= 0 else []

    def _try_again(self) -> None:
        """A disk that was full may have room again while nothing changes that would be written down."""
        self._retry = None
        if self._failing:
            self.write()

    def _changed(self) -> Iterator[Record]:
        pools, self._pools = self._pools, {}
        generations, self._generations = self._generations, {}
        processes, self._processes = self._processes, {}
        if self._all or self._fd < 0:
            return
        for pool in pools:
            yield pool_record(pool)
        for generation in generations:
            yield generation_record(generation)
        for generation, index in processes:
            if index < len(generation.core.processes):
                yield process_record(generation, index)

    def _write_all(self) -> None:
        records = list(records_of(self._daemon, self._boot))
        self._close_fd()
        beside = os.path.join(os.path.dirname(self.path), state.BESIDE)
        with suppress(FileNotFoundError):
            os.unlink(beside)
        # Made by us and nobody else: what is found there may be a pipe, or another user's in a directory like /tmp.
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_APPEND, 0o600)
        try:
            left = memoryview(b"".join(map(state.encode, records)))
            while left:
                left = left[os.write(fd, left) :]
            os.rename(beside, self.path)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._all = False
        self._lines = len(records)
        self._most = LINES_EACH * len(records) + LINES_BESIDES

    def _close_fd(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """All has ended well: nothing is left for anybody to take over."""
        self._begun = False
        self._close_fd()
        for name in (state.NAME, state.BESIDE, inhand.NAME):
            path = os.path.join(os.path.dirname(self.path), name)
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._daemon.journal.error(f"{path}: cannot be removed: {error.strerror}")


def records_of(daemon: Daemon, boot: str) -> Iterator[Record]:
    """All that there is."""
    yield manager_record(daemon, boot)
    for pool in daemon.pools.values():
        yield pool_record(pool)
        for generation in pool.generations.values():
            yield generation_record(generation)
            for index in range(len(generation.core.processes)):
                yield process_record(generation, index)


def manager_record(daemon: Daemon, boot: str) -> ManagerRecord:
    return ManagerRecord(
        version=state.VERSION,
        release=__version__,
        boot=boot,
        pid=os.getpid(),
        started=daemon.started,
        path=daemon.config.path,
        made_dir=daemon.made_dir,
        settings=daemon.config.manager,
        groups=daemon.config.groups,
        notify=daemon.notify.abstract,
        abandoned=daemon.abandoned.records,
    )


def pool_record(pool: Pool) -> PoolRecord:
    core = pool.core
    return PoolRecord(
        name=pool.name,
        seed=pool.seed,
        serving=core.serving,
        last=core.last,
        discarded=pool.discarded,
        since=pool.since,
    )


def generation_record(generation: Generation) -> GenerationRecord:
    settings = generation.settings
    places = generation.listening.places if generation.listening is not None else ()
    return GenerationRecord(
        pool=generation.pool.name,
        number=generation.number,
        as_pool=settings if isinstance(settings, PoolSettings) else None,
        as_program=settings if isinstance(settings, ProgramSettings) else None,
        core=msgspec.structs.replace(generation.core, processes=()),
        listeners=tuple(map(listener_record, places)),
        orders=generation.causes.record,
    )


def listener_record(place: Place) -> ListenerRecord:
    bound = place.bound
    return ListenerRecord(
        address=place.address,
        name=place.listener.name,
        inode=place.listener.inode,
        fd=-1 if isinstance(place, LostPlace) else place.listener.fileno(),
        bound=(bound[0], bound[1]) if isinstance(bound, tuple) else os.fsdecode(bound),
        path=place.listener.path,
        order=tuple(member.inode for member in place.group.listeners) if place.group is not None else (),
    )


def process_record(generation: Generation, index: int) -> ProcessRecord:
    slot, current = generation.slots[index], generation.core.processes[index]
    return ProcessRecord(
        pool=generation.pool.name,
        generation=generation.number,
        index=index,
        state=current,
        born=slot.born if current.pid is not None else None,
        identity=slot.identity if current.pid is not None else None,
        started=slot.started,
        spawned=slot.spawned,
        exit=slot.exit,
        pipes=slot.pipes if current.pid is not None else (),
        board=slot.board.inode if slot.board is not None else 0,
        fresh_rss=slot.fresh_rss if current.pid is not None else None,
        crashes=slot.restarts.crashes,
        recycled=slot.restarts.recycled,
        by_hand=slot.restarts.by_hand,
        since=slot.since,
    )
