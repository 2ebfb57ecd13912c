"""A generation that lives: what core decides about it is carried out here, and what happens to it told to core.

There is no policy in this module. `feed` hands an event to core.generation.step and carries out the actions that come
back; answers that an action calls for (Opened) are fed in turn before anybody else is heard.
"""

from __future__ import annotations

import os
import socket
from asyncio import TimerHandle
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from signal import SIGCONT
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from fcgimgr.config.processes import ProcessPlan, process_plan
from fcgimgr.config.settings import Config, PoolSettings, ProcessSettings
from fcgimgr.core import generation as core
from fcgimgr.core import process
from fcgimgr.core.generation import PoolState, pool_state
from fcgimgr.core.process import (
    SIGKILL,
    Died,
    Due,
    Executed,
    Exit,
    Fatal,
    ImpossibleEventError,
    Retiring,
    Running,
    Spawned,
    SpawnFailed,
    Spawning,
    Starting,
    State,
    Stopping,
)
from fcgimgr.fastcgi import scoreboard
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.glance import NoGlanceError, glance
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.procfs import rss, start_time
from fcgimgr.linux.procfs import state as state_of
from fcgimgr.linux.recipes import Recipe, is_us
from fcgimgr.manager.children.board import Board
from fcgimgr.manager.children.recipes import LISTENERS_VARIABLE, Recipes
from fcgimgr.manager.ground.faults import fault_of_ours
from fcgimgr.manager.logs import requestfiles, requestlogs
from fcgimgr.manager.logs.pipes import Pipes
from fcgimgr.manager.logs.pump import Pump
from fcgimgr.manager.pools import losses
from fcgimgr.manager.pools.causes import Cause, Causes, last_word
from fcgimgr.manager.pools.repeats import Repeats
from fcgimgr.manager.pools.slots import Slot
from fcgimgr.manager.pools.spawning import forget_program, hear_of_program
from fcgimgr.manager.pools.telling import is_told, log_spawn, tell_change, tell_of_death, tell_of_kill
from fcgimgr.manager.pools.zygote import Zygote
from fcgimgr.manager.sockets.listening import Listening, open_listening

if TYPE_CHECKING:
    from fcgimgr.manager.pools.pool import Pool


StateT = TypeVar("StateT", bound=process.State)
#: With why, if that is known.
Change: TypeAlias = tuple[core.Changed, Cause | None]

# What of core the state file keeps, besides the processes; those have records of their own.
_SAVED: Final = tuple(name for name in core.Generation.__struct_fields__ if name != "processes")


class Generation:
    """The processes of a pool or program with these settings, at rest until it is fed a Start.

    `beside`: the generation that serves, next to whose listeners this one opens its own.
    """

    def __init__(
        self, pool: Pool, number: int, settings: ProcessSettings, config: Config, beside: Generation | None = None
    ) -> None:
        self.pool = pool
        self.number = number
        self.settings = settings
        self.config = config
        self.beside = beside
        self.daemon = pool.daemon
        self.name = settings.name
        self.core = core.new_generation(settings, self.daemon.loop.time(), pool.seed)
        self.slots: list[Slot] = []
        self._misnamed: set[int] = set()  # slots whose processes were named by other settings
        self.listening: Listening | None = None
        self.recipes: Recipes | None = None
        self.incomplete = False  # taken over from another manager, but not all of it could be had
        self.max_rss_in_vain: int | None = None  # the max_rss of which it was said that it is less than a new one uses
        self.pings: set[socket.socket] = set()  # the connections of pings that are under way
        self.pinged: deque[int] = deque(maxlen=1024)  # the other ends of pings, as inodes
        self.has_served = True  # False: no client has ever been led to it
        self.blind = False  # its processes may not be looked at (manager/looking/taking.py)
        self.lost = 0  # connections of clients whose request nobody has served, since it was to leave
        self.cut = 0  # those that its processes had in hand when their time was over, for whatever that was
        self.unseen_until = 0.0  # nobody of it is glanced at before, as one has kept us waiting
        self.ping_failure = ""  # why the last ping was not answered well
        self._drain_due: TimerHandle | None = None
        self._retry_due: TimerHandle | None = None
        self._inbox: deque[core.Event] = deque()
        self._feeding = False
        self.zygote = Zygote(self) if isinstance(settings, PoolSettings) and settings.preload else None
        self.causes = Causes(self)
        self.repeats = Repeats(self)
        self._grow()

    @property
    def state(self) -> PoolState:
        """Worked out from every process: not to be asked for at each of a thousand events."""
        return pool_state(self.core)

    @property
    def gone(self) -> bool:
        """Whether it has left, and nothing of it is left."""
        return self.core.left and self.down

    @property
    def down(self) -> bool:
        """Whether none of its processes lives or is to, and nobody who came to it is still served by another one."""
        zygote = self.zygote is not None and self.zygote.state.pid is not None
        lives = zygote or any(state.pid is not None for state in self.core.processes)
        return not lives and not self.core.open and not self.daemon.passing.carries(self)

    def process_name(self, index: int) -> str:
        """`app:app_00`"""
        return f"{self.name}:{self.slots[index].name}"

    # Events in, actions out

    def feed(self, *events: core.Event) -> None:
        """Let core decide on `events`, one after the other, and carry out what it says."""
        if self.zygote is not None and any(isinstance(event, core.Restart) for event in events):
            self.zygote.renew()
        self._inbox.extend(events)
        if self._feeding:
            return
        self._feeding = True
        changed: list[Change] = []
        try:
            while self._inbox:
                self._take(self._inbox.popleft(), changed)
        finally:
            self._feeding = False
        # Only now may others react: what they order must not come between an action and its answer.
        for change, cause in changed:
            self._announce(change, cause)
        if self.zygote is not None:
            self.zygote.look()
        self.daemon.look_at_soon(self.pool)

    def _take(self, event: core.Event, changed: list[Change]) -> None:
        before, order = self.core, self.causes.order
        self.causes.hear(event)
        if isinstance(event, core.Start | core.Restart):
            self.repeats.forget()
        try:
            self.core, actions = core.step(self.settings, self.core, event, self.daemon.loop.time())
        except ImpossibleEventError as error:
            self.daemon.journal.error(f"internal error, nothing was changed: {error}", name=self.name)
            return
        self._grow()
        self._arm_drain_timer()
        self._arm_retry_timer()
        if self.core.left or self.core.refusing:
            self.daemon.saturation.let_go(self)
        if self.causes.order is not order or any(
            getattr(before, name) is not getattr(self.core, name) for name in _SAVED
        ):
            self.daemon.state_file.generation_changed(self)
        recycled = {action.index: action.why for action in actions if isinstance(action, core.Recycling)}
        for action in actions:
            match action:
                case core.Changed(index, _, after):
                    self._arm_timer(index, after.due)
                    changed.append((action, self._note_change(event, recycled, action)))
                    self.daemon.state_file.process_changed(self, index)
                case core.SpawnProcess(index):
                    self.daemon.spawn_soon(self, index)
                case core.SignalProcess(index, pid, signal, group):
                    if losses.may_be(before.processes[index], event, signal):
                        losses.count(self, index, pid)
                    in_hand = losses.in_hand(self, index) if signal == SIGKILL else ""
                    if self._signal(index, pid, signal, group):
                        if signal == SIGKILL:
                            tell_of_kill(self, index, pid, before.processes[index], in_hand)
                        elif signal == self.settings.stopsignal and state_of(pid) == "T":
                            self._signal(index, pid, SIGCONT, group)  # it is stopped, and would not heed it before
                case core.AbandonProcess(index, pid):
                    self._abandon(index, pid)
                case core.Open():
                    self._inbox.append(self._open())
                case core.Refuse():
                    self._refuse()
                case core.Close():
                    # With its listener closed, the one before could not take its place any more.
                    for change, _ in changed:
                        self.pool.watch(self, change)
                    self._close()
                case core.Forget(index):
                    self._forget(index)
                case core.Recycling(index, why):
                    self.daemon.journal.info(f"recycling: {why}", name=self.process_name(index))
                case core.PutOff(index, why):
                    self.daemon.journal.warning(
                        f"not recycled yet: {why}; new ones ask for it as soon as they have started, so it waits for "
                        f"backoff_max ({self.settings.backoff_max:g} s)",
                        name=self.process_name(index),
                    )
                case core.NotRecycled(indexes):
                    names = ", ".join(map(self.process_name, indexes))
                    self.daemon.journal.warning(
                        f"a new process is no good: {names} not recycled; to be tried again", name=self.name
                    )

    def _note_change(self, event: core.Event, recycled: Mapping[int, str], change: core.Changed) -> Cause | None:
        """Why it came to that, if that is known and its state has another name."""
        if change.before.name == change.after.name:
            return None
        slot = self.slots[change.index]
        if isinstance(change.before, Starting) and change.after.pid is not None:
            self.repeats.listen_no_more(slot)
        slot.since = self.daemon.loop.time()
        cause = self.causes.of(event, recycled, change)
        if cause is not None:
            slot.restarts.next = cause.kind
        return cause

    def processes_in(self, kind: type[StateT]) -> dict[int, StateT]:
        """Those of its processes that are in this state, by index."""
        return {index: state for index, state in enumerate(self.core.processes) if isinstance(state, kind)}

    def is_there(self, index: int, pid: int) -> bool:
        """Whether this process has not been reaped. One that is Stopping has its pid until nothing of it is left, and
        by then that may be another's number.
        """
        return self.daemon.children.get(pid) == (self, index)

    def signal(self, index: int, pid: int, number: int, *, group: bool = False) -> bool:
        """Send it a signal, or its group; False: it has ended. LinuxError: not permitted."""
        return self.is_there(index, pid) and self.daemon.signalling.send(pid, number, group=group)

    def _signal(self, index: int, pid: int, signal: int, group: bool) -> bool:
        """Whether it was there to hear it."""
        if not self.is_there(index, pid):
            if signal == SIGKILL:
                self.daemon.leftovers.kill(pid)
            return False
        try:
            return self.signal(index, pid, signal, group=group)
        except LinuxError as error:  # a setuid program, and we are not root: nothing more can be done here
            self.daemon.journal.error(str(error), name=self.name)
            return False

    def _abandon(self, index: int, pid: int) -> None:
        slot = self.slots[index]
        forget_program(self.daemon.loop, slot)
        slot.exit = None
        slot.let_go_of_board()
        slot.hear_last_words()
        self.daemon.abandon(pid, self.process_name(index))

    def _grow(self) -> None:
        for index in range(len(self.slots), len(self.core.processes)):
            self.slots.append(Slot(self._slot_name(index)))

    def _slot_name(self, index: int) -> str:
        name = process_plan(self.settings, self.config, index).name
        if index in self.core.stand_ins and any(slot.name == name for slot in self.slots[:index]):
            return f"{name}-{index}"  # the stand-in for one whose name holds no number
        return name

    def name_anew(self, index: int) -> None:
        """What comes next in this place is called as the settings have it now, if they have changed since."""
        if index in self._misnamed:
            self._misnamed.discard(index)
            self.slots[index].name = self._slot_name(index)

    def _arm_timer(self, index: int, due: float | None) -> None:
        """Let the process have the timer that its state asks for, and no other."""
        slot = self.slots[index]
        if due == slot.armed:
            return
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None
        slot.armed = due
        if due is not None:
            slot.timer = self.daemon.loop.call_at(due, self._timer_fired, index, due)

    def _timer_fired(self, index: int, due: float) -> None:
        slot = self.slots[index]
        slot.timer = None
        if slot.armed != due:
            return
        slot.armed = None
        if self._is_killed(index):  # and is to be abandoned
            self.daemon.reap_children()  # the loop may have been kept from its death for all this time
            if not self._is_killed(index):
                return
        state = self.core.processes[index]
        busy = isinstance(state, Stopping) and state.patient and slot.may_be_busy(self.daemon.loop.time())
        self.feed(core.Happened(index, Due(busy)))

    def _is_killed(self, index: int) -> bool:
        state = self.core.processes[index] if index < len(self.core.processes) else None
        return (isinstance(state, Stopping) and state.killed) or (isinstance(state, Starting) and bool(state.fault))

    def _arm_drain_timer(self) -> None:
        due = self.core.draining
        armed = self._drain_due.when() if self._drain_due is not None else None
        if due == armed:
            return
        if self._drain_due is not None:
            self._drain_due.cancel()
            self._drain_due = None
        if due is not None:
            self._drain_due = self.daemon.loop.call_at(due, self._drain_timer_fired)
            self.daemon.draining.watch(self)

    def _drain_timer_fired(self) -> None:
        self._drain_due = None
        self.feed(core.DrainDue())

    def _arm_retry_timer(self) -> None:
        due = self.core.retry_at
        armed = self._retry_due.when() if self._retry_due is not None else None
        if due == armed:
            return
        if self._retry_due is not None:
            self._retry_due.cancel()
            self._retry_due = None
        if due is not None:
            self._retry_due = self.daemon.loop.call_at(due, self._retry_timer_fired)

    def _retry_timer_fired(self) -> None:
        self._retry_due = None
        self.feed(core.RetryDue())

    def have(self, settings: ProcessSettings, config: Config) -> None:
        """Have these settings from now on. LinuxError, and nothing has changed: their user does not exist."""
        if self.core.open:
            self.recipes = self._make_recipes(settings, config)
        self.settings, self.config, self.name = settings, config, settings.name
        self._misnamed = set(range(len(self.slots)))
        for index, state in enumerate(self.core.processes):
            if state.pid is None:
                self.name_anew(index)
        self.daemon.state_file.generation_changed(self)
        self.feed(core.SettingsChanged())
        self.daemon.limits.look_soon()

    def restore(self, before: core.Generation, listening: Listening | None) -> None:
        """Be what a generation of a manager before us was. LinuxError: new processes cannot be had, and all else can.

        Its slots are to be filled in by the caller, and then `resume` is to be called.
        """
        self.core = before
        self.listening = listening
        if listening is not None:
            self.daemon.ground.watch(listening)
            self.daemon.fd_store.keep(listening)
        self.slots.clear()  # those for numprocs: it may have been scaled down since
        self._grow()
        if before.open:
            self.recipes = self._make_recipes(self.settings, self.config)

    def resume(self) -> None:
        """Go on where the generation was when the manager before us ended."""
        for index, state in enumerate(self.core.processes):
            self._arm_timer(index, state.due)
            match state:
                case Spawning():
                    self.daemon.spawn_soon(self, index)
                case Retiring():
                    self.daemon.draining.watch(self)
                case Starting(executed=False):  # what it had to say went to the manager before us
                    self.daemon.loop.call_soon(self._go_on_starting, index, state)
        for path, rights in self.request_logs():
            self.daemon.request_files.create(path, rights)  # what is wrong with it is said at the next start, or reopen
        self._arm_drain_timer()
        self._arm_retry_timer()
        if self.listening is not None:
            self.listening.note_flags()
        if self.zygote is not None and self.core.up:
            self.zygote.start()
        if self.core.refusing:
            self._refuse()
        self.daemon.readiness.process_changed(self)
        for index in range(len(self.core.processes)):
            self.daemon.taking.process_changed(self, index)
        self.daemon.limits.look_soon()
        self.daemon.look_at_soon(self.pool)

    def _go_on_starting(self, index: int, state: State) -> None:
        if index < len(self.core.processes) and self.core.processes[index] is state:
            self.feed(core.Happened(index, Executed()))

    def take_pipe(self, index: int, stream: str, fd: int) -> Pump:
        """Read on what a process writes that a manager before us has spawned."""
        plan = process_plan(self.settings, self.config, index)
        return self._pump(fd, plan, stream, plan.stdout_logfile if stream == "stdout" else plan.stderr_logfile)

    # Listeners

    def _open(self) -> core.Opened | core.OpenFailed:
        settings = self.settings
        try:
            self.recipes = self._make_recipes(settings, self.config)
            if isinstance(settings, PoolSettings):
                listening = open_listening(settings, self.daemon.sockets, self._neighbours(), self.daemon.fd_store)
                if self.pool.serving is self:
                    listening.begin_serving()
                self.listening = listening
                self.daemon.ground.watch(listening)
                self.daemon.fd_store.keep(listening)
        except LinuxError as error:
            self.daemon.journal.error(str(error), name=self.name)
            return core.OpenFailed(str(error))
        except Exception as error:  # noqa: BLE001 - core waits for an answer, whatever our fault
            self.daemon.loop.call_exception_handler({"message": f"opening {self.name}", "exception": error})
            return core.OpenFailed(fault_of_ours(error))
        if self.listening is not None:
            self._tell("listening on")
        return core.Opened()

    def _neighbours(self) -> Listening | None:
        """Beside whose listeners it opens its own: those of the generation that serves.

        If that is this one, it was stopped, or has died, while another was leaving, which has the same ports.
        """
        if self.pool.serving is not self:
            return self.beside.listening if self.beside is not None else None
        others = [one.listening for one in self.pool.generations.values() if one is not self]
        shared = [place for one in others if one is not None for place in one.places if place.group is not None]
        return Listening(shared) if shared else None

    def _make_recipes(self, settings: ProcessSettings, config: Config) -> Recipes:
        return Recipes(
            settings,
            config,
            generation=self.number,
            notify_socket=self.daemon.notify_socket_for(settings),
            soft_nofile=self.daemon.soft_nofile,
        )

    def _stays(self) -> bool:
        """Whether its clients may go on coming, because systemd keeps the sockets for the manager after this one."""
        return (
            self.daemon.state == "STOPPING"
            and self.pool.serving is self
            and self.listening is not None
            and not self.listening.was_refused
            and self.daemon.fd_store.stays(self.listening)
        )

    def _refuse(self) -> None:
        if self.listening is None or self._stays():
            return
        try:
            self.listening.refuse_new()
        except LinuxError as error:
            # Then those who come until the end are served if there is time, and refused when the socket is closed.
            self.daemon.journal.debug(str(error), name=self.name)
        else:
            self._tell("no new connection on")

    def _close(self) -> None:
        if self.listening is None:
            return
        self.daemon.saturation.let_go(self)
        if self._stays():
            self._tell("left with systemd:")
            self.daemon.fd_store.leave(self.listening)
            self.listening = None
            return
        self.daemon.fd_store.let_go(self.listening)
        self.daemon.passing.end(self)
        losses.closing(self)
        try:
            self.listening.close()
        except LinuxError as error:  # its directory may not be written to any more; the socket is closed all the same
            self.daemon.journal.error(str(error), name=self.name)
        self._tell("closed")
        self.listening = None

    def _tell(self, what: str) -> None:
        assert self.listening is not None
        for listener in self.listening.listeners:
            self.daemon.journal.info(f"{what} {listener.name}", name=self.name, generation=self.number)
            self.daemon.history.record("listener", self.name, detail=f"{what} {listener.name}")

    def _forget(self, index: int) -> None:
        self.slots.pop().close()
        assert len(self.slots) == index
        self.daemon.state_file.all_changed()

    # Children

    def happened(self, index: int, event: process.Event) -> None:
        """Let core know what has happened to one process."""
        self.feed(core.Happened(index, event))

    def is_spawning(self, index: int) -> bool:
        """Whether core wants this process spawned, still."""
        return index < len(self.core.processes) and isinstance(self.core.processes[index], Spawning)

    def take_in(
        self, index: int, pid: int, born: int | None, plan: ProcessPlan, pipes: Pipes, board: Board | None
    ) -> None:
        """The process is there: read what it writes, and hear of its death. born: its start time, in ticks; None: who
        asks for it may have to wait, for it may run somebody's code by now.
        """
        slot = self.slots[index]
        self.listen_to(slot, plan, pipes, board)
        self.repeats.listen(slot, plan)
        self.daemon.children[pid] = (self, index)
        process = PidFd(pid)  # it is not reaped before the loop turns
        self.daemon.signalling.hold(process)
        slot.born, slot.identity = born, process.identity
        if born is None and slot.identity is None:
            slot.born = self._birth_of(pid)
        log_spawn(self, slot, self.process_name(index), pid)

    def _birth_of(self, pid: int) -> int | None:
        now = self.daemon.loop.time()
        if now >= self.unseen_until:
            try:
                return int(glance(lambda at: start_time(pid)) or 0) or None
            except NoGlanceError:
                self.unseen_until = now + losses.UNSEEN_FOR
        return None

    def listen_to(self, slot: Slot, plan: ProcessPlan, pipes: Pipes, board: Board | None = None) -> None:
        """A process of this plan writes to these pipes, and this board, from now on."""
        pipes.close_theirs()
        stdout = self._pump(pipes.from_stdout, plan, "stdout", plan.stdout_logfile)
        stderr = None
        if pipes.from_stderr is not None:
            stderr = self._pump(pipes.from_stderr, plan, "stderr", plan.stderr_logfile)
        slot.begin(self.daemon.loop.time(), stdout, stderr, board)

    def set_pumps_aside(self, index: int) -> None:
        """Make room for the pipes of the next process."""
        if told := self.slots[index].set_pumps_aside():
            self.daemon.journal.warning(told, name=self.process_name(index))

    def new_board(self) -> Board | None:
        """For the next process, if it is of a kind to have one. LinuxError."""
        settings = self.settings
        return Board.new(settings) if isinstance(settings, PoolSettings) and settings.wsgi is not None else None

    def prepare(self, index: int) -> tuple[Recipe, ProcessPlan]:
        """How to spawn this process now. LinuxError: it cannot be."""
        recipes = self._recipes()
        plan = recipes.plan(index)
        for path in requestlogs.files(plan):
            problem = self.daemon.request_files.create(path, self._rights(recipes))
            self.daemon.request_logs.note(path, self, problem)  # it serves without
        return recipes.recipe(plan), plan

    def request_logs(self) -> Iterator[tuple[str, requestfiles.Rights]]:
        """The files that its workers write to themselves, and whose they are; one may come more than once."""
        if self.recipes is not None:
            for index, slot in enumerate(self.slots):
                if slot.board is not None:
                    rights = self._rights(self.recipes)
                    yield from ((path, rights) for path in requestlogs.files(self.recipes.plan(index)))

    def reopen_request_logs(self) -> tuple[int, list[str]]:
        """Let the workers open their log files anew: how many there are, and what is wrong with others."""
        if self.recipes is None:
            return 0, []
        problems: dict[str, str] = {}
        for index, slot in enumerate(self.slots):
            if slot.board is not None and (paths := requestlogs.files(self.recipes.plan(index))):
                for path in paths:
                    if path not in problems:
                        problems[path] = self.daemon.request_files.create(path, self._rights(self.recipes))
                        self.daemon.request_logs.note(path, self, problems[path])
                slot.board.ask_to_reopen()
        wrong = [f"{path}: {problem}" for path, problem in problems.items() if problem]
        return len(problems) - len(wrong), wrong

    def _rights(self, recipes: Recipes) -> requestfiles.Rights:
        return requestfiles.Rights(recipes.account, recipes.log_owner, self.settings.logfile_mode)

    def hear_of_request_log(self, index: int, key: str, problem: str) -> None:
        """A worker says what is wrong with its access log or slow log; "" is nothing."""
        if self.recipes is None:
            return
        plan = self.recipes.plan(index)
        path = plan.access_log if key == "X_ACCESS_LOG" else plan.slowlog
        if path is not None and path != "-":
            self.daemon.request_logs.hear(path, self.slots[index], problem)

    def _recipes(self) -> Recipes:
        if self.recipes is None:  # taken over from a manager before us, and then they could not be made
            self.recipes = self._make_recipes(self.settings, self.config)
        return self.recipes

    # Children, by the zygote

    def prepare_zygote(self) -> tuple[Recipe, ProcessPlan]:
        """How to spawn the zygote now. LinuxError: it cannot be."""
        return self._recipes().zygote()

    def descriptors(self, board: Board | None) -> dict[str, list[int]]:
        """What a worker has to find open, by the variables that are to say where."""
        assert self.listening is not None  # core opens a generation before it spawns
        fds = {LISTENERS_VARIABLE: list(self.listening.fds)}
        return fds if board is None else fds | {scoreboard.VARIABLE: [board.fd]}

    def take_worker(self, index: int, pid: int, pipes: Pipes, board: Board | None) -> None:
        """The zygote has forked the process that is Spawning."""
        self.set_pumps_aside(index)
        self.take_in(index, pid, None, self._recipes().plan(index), pipes, board)
        self.happened(index, Spawned(pid))
        self.daemon.state_file.write()

    def could_not_spawn(self, index: int, why: str, words: list[bytes] | None = None) -> None:
        """The zygote could not fork the process that is Spawning; `words`: its own last, if that explains it."""
        slot = self.slots[index]
        slot.count_spawn()
        self.set_pumps_aside(index)
        if words is not None:
            slot.old_stdout = slot.old_stderr = words
        self.happened(index, SpawnFailed(why))

    def _pump(self, fd: int, plan: ProcessPlan, stream: str, path: str) -> Pump:
        settings = self.settings
        target = self.daemon.logs.open(
            path,
            maxbytes=getattr(settings, f"{stream}_logfile_maxbytes"),
            backups=getattr(settings, f"{stream}_logfile_backups"),
            owner=self.recipes.log_owner if self.recipes is not None else None,
            mode=settings.logfile_mode,
        )
        process = f"{self.name}:{plan.name}"
        return Pump(
            self.daemon.loop,
            fd,
            target,
            process=process,
            stream=stream,
            timestamps=settings.log_timestamps,
            format=settings.log_format,
            label=f"{process}| " if settings.log_label and self.daemon.logs.is_own(target) else "",
            gathers=isinstance(settings, PoolSettings) and settings.wsgi is not None,
            pipe=self.daemon.readers.pipe(fd, self.stranger, process) if self.stranger is not None else None,
            release=self.daemon.logs.release,
        )

    @property
    def stranger(self) -> str | None:
        """Whose its processes are, if that is another user than we, who is not to hold us up. None: they are ours."""
        account = self.recipes.account if self.recipes is not None else None
        is_ours = self.settings.user is None or os.geteuid() != 0 or (account is not None and is_us(account))
        return None if is_ours else self.settings.user

    def close_pipe(self, fd: int) -> None:
        """Close a descriptor of a pipe that one of its processes may have."""
        if self.stranger is None:
            os.close(fd)
        else:
            self.daemon.readers.close(fd)

    def died(self, index: int, pid: int, exit: Exit) -> None:
        """The process is dead and reaped."""
        slot = self.slots[index]
        if slot.forked is not None:  # its last word may tell why
            hear_of_program(self.daemon.loop, slot, partial(self.happened, index))
        if isinstance(state := self.core.processes[index], Starting) and state.fault:
            self.feed(core.Happened(index, Died(exit)))
            return
        expected = process.expected(self.settings, exit)
        if self.blind and expected and self.listening is not None and self.listening.has_accepted():
            # Whether it has served is to be known before it is decided what its end means.
            self.feed(core.Accepted(blind=True))
        if self.listening is not None:
            self.listening.restore_flags()
        slot.exit = exit
        in_hand = losses.in_hand(self, index)
        losses.died(self, index, exit)
        slot.let_go_of_board()
        was_ready = not isinstance(self.core.processes[index], Starting)
        told = is_told(self, index, exit)
        repeated = self.repeats.hear_last_words(slot, may_repeat=told and not was_ready)
        self.daemon.request_logs.ended(slot, self)
        word = last_word(self.settings, exit, slot.lines_before_its_end(), was_ready=was_ready)
        slot.end = f"{exit} after {self.daemon.loop.time() - slot.started:.1f} s{in_hand}{process.said(word)}"
        if told:
            name = self.process_name(index)
            tell_of_death(self, slot, name, pid, is_failed_start=not was_ready, repeated=repeated)
        self.feed(core.Happened(index, Died(exit, word=word)))

    # Telling others

    def _announce(self, change: core.Changed, cause: Cause | None) -> None:
        if change.index >= len(self.slots):
            return
        before, after = change.before.name, change.after.name
        if isinstance(change.after, Retiring):
            self.daemon.draining.watch(self)
        if before == after:
            self.pool.process_changed(self, change)
            return
        if isinstance(change.after, Running) and self.listening is not None:
            self.listening.note_flags()
        if isinstance(change.after, Running) and not isinstance(change.before, Retiring) and self.settings.max_rss:
            self.slots[change.index].fresh_rss = rss(change.after.pid)
        tell_change(self, change, cause)
        self.pool.process_changed(self, change)

    def last_lines(self, index: int, stream: str, count: int) -> list[bytes]:
        """The last lines that the process wrote, and if it wrote few, those of the one before it."""
        return self.slots[index].last_lines(stream, count, alive=self.core.processes[index].pid is not None)

    def last_words(self, index: int) -> tuple[str, ...]:
        """What explains the process's death."""
        lines = self.slots[index].last_words(alive=self.core.processes[index].pid is not None)
        return tuple(line.decode("utf-8", "backslashreplace") for line in lines)

    def why_fatal(self) -> str:
        """In words, for one who cannot see the log."""
        reasons = (process.describe(state) for state in self.core.processes if isinstance(state, Fatal))
        return self.core.fault or next(filter(None, reasons), "no reason is known")

    def advice(self, name: str) -> str:
        """To be added where it is told that this process, or this pool, is FATAL: what is to be done about it."""
        if not self.daemon.advises:
            return ""
        start = f"once it is mended: fcgimgr start {name}"
        retry_in = self.retry_in
        return f"; {start}" if retry_in is None else f"; next try in {retry_in:.0f} s; at once, {start}"

    @property
    def retry_in(self) -> float | None:
        """Seconds until what is FATAL is tried again; None: it is not."""
        due = self.core.retry_at
        return None if due is None else round(max(0.0, due - self.daemon.loop.time()), 3)

    def end(self) -> None:
        """Let go of everything that is still held."""
        self._close()
        self.daemon.request_logs.forget(self)
        for timer in (self._drain_due, self._retry_due):
            if timer is not None:
                timer.cancel()
        if self.zygote is not None:
            self.zygote.end()
        for slot in self.slots:
            forget_program(self.daemon.loop, slot)
            slot.close()
