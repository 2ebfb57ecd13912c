"""Taking over from a manager that was killed: its processes serve on, and go on under this one as if nothing had been.

What it wrote down (state.py) is believed only as far as the kernel confirms it: a process is held by a pidfd first and
known by its start time after, a socket by its inode in the process's own table of descriptors, a log pipe likewise. A
socket comes back by pidfd_getfd(2); what was written to a pipe meanwhile is read on through /proc/PID/fd.

Both take the right to ptrace the process (the same user, dumpable, and Yama's leave). Where it is refused the process
serves on, and its pool is replaced as by a reload: the new generation opens its own socket beside the one that could
not be had.

Who died meanwhile is told to core as a death like any other. A reload that was under way is given up; what was leaving
goes on leaving. If the configuration has changed since, that is an update, after all this.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from fcgimgr import __version__
from fcgimgr.config.settings import Config, PoolSettings, ProgramSettings
from fcgimgr.core import generation as core
from fcgimgr.core import rollout
from fcgimgr.core.process import Exit, Exited, Ready, Retiring, Starting, State, Stopped
from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.glance import NoGlanceError, glance_fd
from fcgimgr.linux.holding import let_go
from fcgimgr.linux.listeners import Listener, LostListener, take_back
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.pipes import open_pipe
from fcgimgr.linux.procfs import descendants
from fcgimgr.linux.steering import Group
from fcgimgr.manager.children.abandoned import AbandonedRecord
from fcgimgr.manager.children.board import Board
from fcgimgr.manager.pools.causes import Restarts
from fcgimgr.manager.pools.generation import Generation
from fcgimgr.manager.sockets.listening import Listening, LostPlace, Place
from fcgimgr.manager.succession.state import GenerationRecord, ListenerRecord, ProcessRecord, Saved

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.logs.pump import Pump
    from fcgimgr.manager.pools.pool import Pool

Key = tuple[str, int, int]
#: So many processes of a pool may keep us waiting before no more of them are looked at.
MOST_UNSEEN: Final = 3


class Estate:
    """What a dead manager has left: its state, and by pidfd those of its processes that live (None: a child of ours).

    `saved` is None where there was a state, but it is of no use.
    """

    def __init__(self, saved: Saved | None) -> None:
        self._saved = saved
        self.living: dict[Key, PidFd | None] = {}
        ours = os.getpid()
        for key, record in saved.processes.items() if saved is not None else ():
            assert saved is not None
            pid = record.state.pid
            if pid is None or record.born is record.identity is None or (key[0], key[1]) not in saved.generations:
                continue
            if saved.handover is not None and procfs.parent(pid) == ours:
                self.living[key] = None
            elif (pidfd := PidFd.of(pid, record.born, saved.manager.boot, record.identity)) is not None:
                self.living[key] = pidfd

    @property
    def saved(self) -> Saved:
        assert self._saved is not None  # nobody lives of whom nothing is known
        return self._saved

    @property
    def abandoned(self) -> tuple[AbandonedRecord, ...]:
        """Those that it could not end."""
        return self._saved.manager.abandoned if self._saved is not None else ()

    @property
    def pid(self) -> int | None:
        """The dead manager's."""
        return self._saved.manager.pid if self._saved is not None else None

    @property
    def handed_over(self) -> bool:
        """Whether it was handed over by the manager itself, which executed us in its place."""
        return self._saved is not None and self._saved.handover is not None

    @property
    def made_dir(self) -> bool:
        """Whether state_dir was made by a manager."""
        return self._saved is not None and self._saved.manager.made_dir

    def sockets_held(self) -> set[int]:
        """The inodes of the listeners of those who live."""
        return self._inodes((name, number) for name, number, _ in self.living)

    def sockets_served(self) -> set[int]:
        """The inodes of the listeners that got the traffic."""
        pools = self._saved.pools if self._saved is not None else {}
        return self._inodes((name, pool.serving) for name, pool in pools.items())

    def _inodes(self, generations: Iterable[tuple[str, int]]) -> set[int]:
        known = self._saved.generations if self._saved is not None else {}
        return {one.inode for key in generations if key in known for one in known[key].listeners}

    def close(self) -> None:
        """Let go of the processes that nobody took."""
        for pidfd in self.living.values():
            if pidfd is not None:
                pidfd.close()
        self.living.clear()


def pools_of(saved: Saved) -> Iterator[str]:
    """The pools whose serving generation is known."""
    for name, pool in saved.pools.items():
        if (name, pool.serving) in saved.generations:
            yield name


def running_config(saved: Saved, now: Config | None = None) -> Config:
    """The configuration as the manager before ran it; with `now`, what [manager] says now, as any start takes it."""
    before = saved.manager.settings
    serving = {name: saved.generations[name, saved.pools[name].serving].settings for name in pools_of(saved)}
    return Config(
        path=now.path if now is not None else saved.manager.path,
        manager=msgspec.structs.replace(now.manager, environment=before.environment) if now is not None else before,
        groups=saved.manager.groups,
        pools={name: settings for name, settings in serving.items() if isinstance(settings, PoolSettings)},
        programs={name: settings for name, settings in serving.items() if isinstance(settings, ProgramSettings)},
    )


def adopt(daemon: Daemon, estate: Estate) -> list[PoolAdoption]:
    """Go on with these processes. What could not be had whole is to be replaced (`replace_incomplete`).

    Each that comes back is to be told by `settle` when nobody of the dead manager is left that is not known.
    """
    saved = estate.saved
    daemon.history.record("manager", daemon.config.manager.identifier, None, daemon.state, f"pid {os.getpid()}")
    number = len(estate.living)
    count = f"{number} " + ("process" if number == 1 else "processes")
    if saved.handover is not None:
        daemon.notify.take_over(saved.handover.notify)
        daemon.journal.info(f"fcgimgr {__version__} goes on for {saved.manager.release} with {count}", pid=os.getpid())
    else:
        daemon.notify.listen_again(saved.manager.notify)
        daemon.journal.info(f"a manager before this one was killed (pid {saved.manager.pid}): taking over {count}")
    if saved.trouble:
        daemon.journal.warning(f"{daemon.state_file.path}: {saved.trouble}; what stands before it is believed")
    adoptions = [PoolAdoption(daemon, daemon.pools[name], estate) for name in pools_of(saved)]
    for adoption in adoptions:
        adoption.adopt()
    daemon.state_file.all_changed()
    return adoptions


def replace_incomplete(daemon: Daemon) -> None:
    """New processes for pools that could not be had whole."""
    for pool in daemon.pools.values():
        serving = pool.serving
        if not serving.core.up or not serving.incomplete:
            continue
        serving.incomplete = False
        nobody = all(state.pid is None for state in serving.core.processes)
        if serving.listening is None or not serving.listening.lost or (pool.can_reload() and not nobody):
            daemon.journal.info("replacing the processes that could not be taken over whole", name=pool.name)
            pool.restart()
        else:
            daemon.journal.warning("its socket could not be taken back, nor shared: stop and start", name=pool.name)
            serving.feed(core.Stop())
            serving.feed(core.Start())


class PoolAdoption:
    """One pool or program."""

    def __init__(self, daemon: Daemon, pool: Pool, estate: Estate) -> None:
        self._daemon = daemon
        self._pool = pool
        self._estate = estate
        self._saved = estate.saved
        self._living = estate.living
        name = pool.name
        self._record = self._saved.pools[name]
        self._generations = {number: record for (of, number), record in self._saved.generations.items() if of == name}
        self._listeners: dict[int, Listener] = {}  # by inode; of those that live
        self._incomplete: set[int] = set()
        self._to_start: tuple[int, ...] = ()  # anew, when all that is left has its place
        self._shut_down: set[int] = set()  # of the listeners, by inode
        self._unseen = 0  # how many of its processes have let us wait
        self._unsteered = ""  # why the kernel does not steer for this pool

    def adopt(self) -> None:
        pool, record = self._pool, self._record
        alive = self._alive()
        coming = [number for number in self._generations if number == record.serving or number in alive]
        for number in coming:
            is_back = number in alive or self._saved.handover is not None
            for listener in self._generations[number].listeners if is_back else ():
                self._listeners[listener.inode] = self._take_back(number, listener)
        if self._incomplete and self._saved.handover is None:  # because who had the socket has died this moment?
            alive = self._alive()
            self._incomplete &= alive
            if record.serving not in alive:
                self._let_go_of_sockets(record.serving)
        groups = self._groups()
        leaving = frozenset(number for number in coming if number != record.serving)
        pool.seed = record.seed
        pool.discarded, pool.since = record.discarded, record.since
        pool.core = rollout.Rollout(serving=record.serving, last=record.last, leaving=leaving)
        generations = {}
        for number in sorted(coming, key=lambda number: number != record.serving):
            settings = self._generations[number].settings
            generations[number] = Generation(pool, number, settings, self._daemon.config)
            generations[number].causes.take_over(self._generations[number].orders)
        pool.generations = generations
        for number, generation in generations.items():
            self._restore(generation, self._generations[number], groups, some_live=number in alive)
        pool.state = pool.serving.state  # it came into it before, and there is nothing to tell
        for number in leaving:
            if not generations[number].core.left:
                self._daemon.journal.warning("the reload that was under way is given up", name=pool.name)
                generations[number].feed(core.Leave())
            elif generations[number].core.held:  # what was watched is taken for good
                generations[number].feed(core.Leave())
        for number in self._incomplete:
            generations[number].incomplete = True

    def _alive(self) -> set[int]:
        """The numbers of the generations of which somebody lives now."""
        ours = {key: pidfd for key, pidfd in self._living.items() if key[0] == self._pool.name}
        for key, pidfd in ours.items():
            if pidfd is not None and pidfd.has_ended():
                pidfd.close()
                del self._living[key]
        return {number for (_, number, _) in ours.keys() & self._living.keys()}

    # Sockets

    def _take_back(self, number: int, record: ListenerRecord) -> Listener:
        """The listener of the manager before, or what can be had of it."""
        refusal = ""
        for fd in self._copies(number, record):
            try:
                if (copy := fd()) is not None:
                    return take_back(copy, name=record.name, path=record.path, inode=record.inode)
            except LinuxError as error:  # a worker may have shut it down: that is its pool's trouble, and no other's
                refusal = str(error)
        refusal = refusal or "none of its processes shows that it has it"
        self._daemon.journal.warning(f"{record.name} cannot be taken back: {refusal}", name=self._pool.name)
        self._incomplete.add(number)
        return LostListener(record.name, record.inode, record.path)

    def _let_go_of_sockets(self, number: int) -> None:
        """Nobody is left for whom they would be kept open; they are opened anew, all of them."""
        for record in self._generations[number].listeners:
            listener = self._listeners.pop(record.inode)
            if not self._daemon.fd_store.give_back(listener):
                listener.close()

    def _copies(self, number: int, record: ListenerRecord) -> Iterator[Callable[[], int | None]]:
        """Where a descriptor of it may be had: each answers with one of ours, or none. LinuxError: not to be had."""
        if self._saved.handover is not None and record.fd >= 0:
            yield lambda: record.fd
            return
        left = self._daemon.fd_store.claim(record.inode)
        if left is not None:
            yield lambda: left
        for pid in self._who_may_have(number):
            yield partial(self._copy, pid, record.inode)

    def _copy(self, pid: int, inode: int) -> int | None:
        """What this process has of a socket. LinuxError: not to be had."""
        if self._unseen == MOST_UNSEEN:
            return None
        try:
            return glance_fd(lambda: copy_of(pid, inode))
        except NoGlanceError as error:
            self._unseen += 1
            raise LinuxError(f"pid {pid}: {error}") from error

    def _living_of(self, number: int) -> list[int]:
        pids = {key: self._saved.processes[key].state.pid for key in self._living}
        return [pid for key, pid in pids.items() if pid is not None and key[:2] == (self._pool.name, number)]

    def _who_may_have(self, number: int) -> Iterator[int]:
        pids = self._living_of(number)
        yield from pids
        for pid in pids:
            yield from descendants(pid)

    def settle(self) -> None:
        """Have the groups where that could not be before, and say why not if it still cannot be; start what is dead.

        A process that the dead manager had spawned and not yet written down listens beside us until it is ended.
        """
        if self._unsteered:
            self._unsteered = ""
            self._steer_again()
        if self._to_start and self._daemon.state != "STOPPING":
            self._daemon.journal.warning("none of its processes is left: starting it", name=self._pool.name)
            self._daemon.start_pool(self._pool, self._to_start)

    def _steer_again(self) -> None:
        listenings = (generation.listening for generation in self._pool.generations.values())
        places = [place for listening in listenings if listening is not None for place in listening.places]
        here = {place.listener.inode for place in places}
        self._listeners = {inode: listener for inode, listener in self._listeners.items() if inode in here}
        groups = self._groups(again=True)
        for place in places:
            if place.group is None:
                place.group = groups.get(place.listener.inode)
        self._daemon.state_file.generation_changed(self._pool.serving)
        if self._unsteered:
            self._daemon.journal.warning(self._unsteered, name=self._pool.name)

    def _groups(self, *, again: bool = False) -> dict[int, Group]:
        """The groups that the kernel steers in, by the inodes of their members."""
        found: dict[int, Group] = {}
        for record in self._generations[self._record.serving].listeners:
            serving = self._listeners.get(record.inode)
            inodes = [inode for inode in record.order if inode in self._listeners and inode not in self._shut_down]
            members = [self._listeners[inode] for inode in inodes]
            if not members or any(isinstance(member, LostListener) for member in members):
                continue
            # If it is gone, what serves is opened beside those that are left.
            serving = serving or members[-1]
            try:
                # When one leaves, the last takes its place. If it was the last, all is as it was.
                if members[1:] and inodes != list(record.order[: len(members)]):
                    if again:
                        raise LinuxError(f"{serving.name}: the order of its sockets is not known any more")
                    members = self._shut_down_all_but(serving, members)
                group = Group.restored(members, serving)
            except LinuxError as error:
                self._unsteered = str(error)
                continue
            found.update((member.inode, group) for member in members)
        return found

    def _shut_down_all_but(self, serving: Listener, members: list[Listener]) -> list[Listener]:
        """One from amid the others is gone, and nobody can tell in which order the kernel has what is left."""
        for member in members:
            if member is not serving:
                with suppress(OSError):  # ENOTCONN: a worker has done so
                    member.sock.shutdown(socket.SHUT_RDWR)
                self._daemon.fd_store.forget(member)
                member.close()
                self._shut_down.add(member.inode)
                self._listeners[member.inode] = LostListener(member.name, member.inode)
        return [serving]

    def _listening(self, record: GenerationRecord, groups: dict[int, Group]) -> Listening:
        places: list[Place] = []
        for one in record.listeners:
            listener = self._listeners[one.inode]
            if isinstance(listener, LostListener):
                bound = os.fsencode(one.bound) if isinstance(one.bound, str) and "\0" in one.bound else one.bound
                places.append(LostPlace(one.address, listener, bound))
            else:
                places.append(Place(one.address, listener, groups.get(one.inode)))
        return Listening(places)

    # Processes

    def _restore(
        self, generation: Generation, record: GenerationRecord, groups: dict[int, Group], *, some_live: bool
    ) -> None:
        processes = self._saved.processes_of(self._pool.name, generation.number)
        if (
            not (some_live or self._estate.handed_over)
            and generation.number == self._record.serving
            and record.core.open
            and isinstance(generation.settings, PoolSettings)
        ):
            self._start_anew(generation, record, processes)
            return
        count = max([record.core.wanted, *(index + 1 for index in processes)])
        states = [self._awaited(generation, processes[i].state) if i in processes else Stopped() for i in range(count)]
        before = msgspec.structs.replace(record.core, processes=tuple(states))
        try:
            generation.restore(before, self._listening(record, groups) if record.listeners else None)
        except LinuxError as error:
            self._daemon.journal.error(f"no process can be started anew: {error}", name=self._pool.name)
        dead: list[tuple[int, int]] = []
        for index, process in processes.items():
            key = (self._pool.name, generation.number, index)
            self._fill(generation, index, process)
            if key in self._living and process.state.pid is not None:
                self._take(generation, index, process, process.state.pid)
            elif process.state.pid is not None:
                dead.append((index, process.state.pid))
        generation.resume()
        for index, pid in dead:
            name = generation.process_name(index)
            self._daemon.journal.warning("it ended while there was no manager", name=name, pid=pid)
            self._daemon.died(generation, index, pid, Exit())
        if dead:
            self._daemon.loop.call_soon(self._daemon.leftovers.look)

    def _awaited(self, generation: Generation, state: State) -> State:
        """With its whole time to become ready once more: while there was no manager nobody pinged, nobody listened."""
        settings = generation.settings
        if not isinstance(state, Starting) or settings.ready in ("startsecs", "exit") or self._estate.handed_over:
            return state
        if settings.ready == "accepts" and state.takes:
            return state  # it has only to live for startsecs
        return msgspec.structs.replace(state, due=self._daemon.loop.time() + settings.ready_timeout)

    def _start_anew(
        self, generation: Generation, record: GenerationRecord, processes: dict[int, ProcessRecord]
    ) -> None:
        """Nobody is left who has its sockets: like any start, but for what is remembered of its processes."""
        fresh = core.new_generation(generation.settings, self._daemon.loop.time(), self._record.seed)
        at_rest: list[State] = [Stopped()] * record.core.wanted
        again = []
        for index, process in processes.items():
            if index < len(at_rest):
                # Fatal with an open socket (on_fatal = "keep"): that is open only if it is started.
                if isinstance(process.state, Stopped | Exited):
                    at_rest[index] = process.state
                else:
                    again.append(index)
        generation.restore(msgspec.structs.replace(fresh, wanted=len(at_rest), processes=tuple(at_rest)), None)
        for index, process in processes.items():
            if index < len(at_rest):
                self._fill(generation, index, process)
        if record.core.up:
            self._to_start = tuple(again)

    def _fill(self, generation: Generation, index: int, record: ProcessRecord) -> None:
        slot = generation.slots[index]
        slot.started, slot.spawned, slot.exit = record.started, record.spawned, record.exit
        slot.fresh_rss, slot.since = record.fresh_rss, record.since
        slot.restarts = Restarts(record.crashes, record.recycled, record.by_hand)
        more = self._saved.slots.get((self._pool.name, generation.number, index))
        if more is None:
            return
        slot.requests, slot.status_text = more.requests, more.status_text
        slot.lingering = [generation.take_pipe(index, "stdout", fd) for fd in more.lingering]
        if more.board >= 0:
            os.set_inheritable(more.board, False)
            slot.board = Board(more.board)
        pumps: list[Pump | None] = []
        for stream, pipe in (("stdout", more.stdout), ("stderr", more.stderr)):
            if pipe is None:
                pumps.append(None)
            else:
                pump = generation.take_pipe(index, stream, pipe.fd)
                pump.go_on(pipe.begun, pipe.inside_line, pipe.recent)
                pumps.append(pump)
        slot.hear(*pumps)

    def _take(self, generation: Generation, index: int, record: ProcessRecord, pid: int) -> None:
        slot = generation.slots[index]
        slot.born, slot.identity = record.born, record.identity
        if not self._estate.handed_over:
            self._find_pipes(generation, index, record, pid)
            self._find_board(generation, index, record, pid)
        pidfd = self._living.pop((self._pool.name, generation.number, index))
        if pidfd is None:
            self._daemon.children[pid] = (generation, index)
            child = PidFd(pid)  # if it has died, it was not reaped yet
            self._daemon.signalling.hold(child)
            if isinstance(record.state, Retiring):  # none else is held: whom an operator has stopped stays so
                self._let_go_on(child, generation.process_name(index))
            return
        self._daemon.adopted.watch(pidfd, generation, index)
        if generation.settings.ready == "notify" and isinstance(record.state, Starting):
            self._daemon.loop.call_later(generation.settings.startsecs, self._take_for_ready, generation, index, pid)
        self._let_go_on(pidfd, generation.process_name(index))

    def _let_go_on(self, process: PidFd, name: str) -> None:
        """The manager before us, or a helper of it, may have ended while it held it (linux/holding.py)."""
        try:
            if procfs.state(process.pid) == "T":
                let_go(process)
            for one in descendants(process.pid):
                if procfs.state(one) == "T" and (below := PidFd.below(one, process.pid)) is not None:
                    with below:
                        let_go(below)
        except LinuxError as error:
            self._daemon.journal.warning(str(error), name=name)

    def _take_for_ready(self, generation: Generation, index: int, pid: int) -> None:
        """READY=1 is said once, and may have been said when nobody listened: then it would never be ready."""
        state = generation.core.processes[index] if index < len(generation.core.processes) else None
        if isinstance(state, Starting) and state.pid == pid:
            name = generation.process_name(index)
            self._daemon.journal.info("taken for ready: it may have said so while there was no manager", name=name)
            generation.feed(core.Happened(index, Ready()))

    def _find_pipes(self, generation: Generation, index: int, record: ProcessRecord, pid: int) -> None:
        """Read on what it writes, through its own table of descriptors."""
        pumps: list[Pump | None] = [None, None]
        for number, (inode, stream) in enumerate(zip(record.pipes, ("stdout", "stderr"), strict=False)):
            try:
                fd = self._open_pipe(generation, pid, number + 1, inode)
            except OSError as error:
                self._incomplete.add(generation.number)
                self._daemon.journal.warning(
                    f"its {stream} cannot be read on: {error.strerror}", name=generation.process_name(index)
                )
            else:
                if fd is None:
                    continue
                pump = pumps[number] = generation.take_pipe(index, stream, fd)
                if (left := self._daemon.left.pop(inode, None)) is not None:
                    pump.recover(left)
        generation.slots[index].hear(*pumps)

    def _open_pipe(self, generation: Generation, pid: int, fd: int, inode: int) -> int | None:
        if generation.stranger is None:
            return open_pipe(pid, fd, inode)
        return self._daemon.readers.open(pid, fd, inode, generation.stranger)

    def _find_board(self, generation: Generation, index: int, record: ProcessRecord, pid: int) -> None:
        """Go on reading what it shows of its requests; else that is unknown from now on."""
        try:
            if self._unseen < MOST_UNSEEN:
                generation.slots[index].board = Board.of(pid, generation.settings, record.board)
        except (OSError, NoGlanceError) as error:
            self._unseen += isinstance(error, NoGlanceError)
            reason = error.strerror if isinstance(error, OSError) else error
            self._daemon.journal.warning(
                f"its scoreboard cannot be read on: {reason}", name=generation.process_name(index)
            )


def copy_of(pid: int, inode: int) -> int | None:
    """A descriptor of ours of a socket that a process has; None: it has not. May block. LinuxError: `PidFd.get_fd`."""
    for fd, found in (procfs.sockets(pid) or {}).items():
        if found == inode:
            with PidFd(pid) as pidfd:
                return pidfd.get_fd(fd)
    return None
