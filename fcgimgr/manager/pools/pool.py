"""A pool or program: its generations, and the traffic that is led to one of them.

Most of the time there is one generation and this is a thin cover around it. core.rollout decides about reloads; what it
says is carried out here, as everywhere by `feed`.
"""

from __future__ import annotations

import os
from asyncio import Future, TimerHandle
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from fcgimgr.config.settings import Config, PoolSettings, ProcessSettings
from fcgimgr.core import generation as core_generation
from fcgimgr.core import rollout as core
from fcgimgr.core.generation import PoolState
from fcgimgr.core.process import Backoff, Exited, Fatal, Running, Spawning, Starting, describe
from fcgimgr.linux.errors import LinuxError
from fcgimgr.manager.ground.faults import fault_of_ours
from fcgimgr.manager.ground.orders import giver
from fcgimgr.manager.pools import losses
from fcgimgr.manager.pools.generation import Generation
from fcgimgr.manager.sockets.listening import Listening

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon


REMOVED: Final = "it is no more: an update has removed it"


class Verdict:
    """How a reload ended: `ok` or not, why, and with a failed process its name and last words.

    `known`: False, it is not known how it will end; `switched`: the new processes serve, though it is not `ok`.
    """

    __slots__ = ("known", "lines", "ok", "process", "switched", "why")

    def __init__(
        self,
        ok: bool,
        why: str = "",
        process: str = "",
        lines: tuple[str, ...] = (),
        *,
        known: bool = True,
        switched: bool = False,
    ) -> None:
        self.ok = ok
        self.switched = switched
        self.known = known
        self.why = why
        self.process = process
        self.lines = lines


class Pool:
    """The pool or program of these settings, at rest until its generation is fed a Start."""

    def __init__(self, daemon: Daemon, settings: ProcessSettings, config: Config) -> None:
        self.daemon = daemon
        # The seed lets the back-off of two machines that fail together differ.
        self.seed = os.urandom(1)[0] / 256
        self.core = core.Rollout()
        self.generations: dict[int, Generation] = {1: Generation(self, 1, settings, config)}
        self.state = PoolState.STOPPED
        self.since = 0.0  # when it came into that, monotonic; 0: not known
        self.removed = False  # by an update: nothing more is to be heard of it
        self.discarded: str | None = None  # why the last reload came to nothing, if it was not an operator's wish
        self.verdict: Future[Verdict] | None = None  # of the reload that is under way
        # Who was lost last of what is watched, last words, why.
        self._lost: tuple[str, tuple[str, ...], str] | None = None
        self._until_gone: dict[int, Future[Verdict]] = {}  # of those that have switched, by the generation that leaves
        self._inbox: deque[core.Event] = deque()
        self._feeding = False
        self._timer: TimerHandle | None = None
        self._next = (settings, config)  # what the generation that comes next is started from

    @property
    def settings(self) -> ProcessSettings:
        """What the generation that serves was started from; a reload that fails changes nothing here."""
        return self.serving.settings

    @property
    def config(self) -> Config:
        return self.serving.config

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def kind(self) -> str:
        return "pool" if isinstance(self.settings, PoolSettings) else "program"

    @property
    def serving(self) -> Generation:
        """The generation that gets the traffic, and orders."""
        return self.generations[self.core.serving]

    # Reload

    def can_reload(self) -> bool:
        """Whether a new generation can be made beside the one that serves; else a rolling restart has to do."""
        listening = self.serving.listening
        return listening is not None and listening.steerable and not self.serving.core.refusing

    def reload(self, settings: ProcessSettings, config: Config, percent: float | None = None) -> Future[Verdict]:
        """Replace the processes by new ones with these settings. The answer comes when it is over."""
        assert isinstance(settings, PoolSettings)
        verdict: Future[Verdict] = self.daemon.loop.create_future()
        before = self._next, self.verdict
        self._next, self.verdict = (settings, config), verdict
        if not self.feed(core.Reload(patience=settings.reload_timeout, percent=percent)):
            self._next, self.verdict = before  # another one may be waiting for its turn
        return verdict

    def have(self, settings: ProcessSettings, config: Config) -> None:
        """Have these settings without new processes: those that are started from now on get them."""
        self.serving.have(settings, config)

    def scale(self, numprocs: int) -> None:
        """Have so many processes, also in the generation that is coming to take the place of the one that serves."""
        self.serving.feed(core_generation.Scale(numprocs))
        if self.core.coming is not None:
            self.generations[self.core.coming.number].feed(core_generation.Scale(numprocs))

    def decide(self, event: core.Event) -> Future[Verdict]:
        """Promote or abort what is coming. The answer comes when that is over."""
        verdict: Future[Verdict] = self.daemon.loop.create_future()
        before, self.verdict = self.verdict, verdict
        if not self.feed(event):
            self.verdict = before
            return verdict
        if before is not None and not before.done():
            verdict.add_done_callback(partial(pass_on, before))
        if isinstance(event, core.Abort):
            self.discarded = None
            self._decide(Verdict(False, event.why))  # where it was still waiting there was nothing to discard
        return verdict

    def restart(self) -> None:
        """Replace every process, by a new generation where that can be, else one after the other."""
        if self.can_reload():
            self.reload(self.settings, self.config)
        else:
            self.serving.feed(core_generation.Restart())

    def feed(self, event: core.Event) -> bool:
        """Let core decide on `event` and carry out what it says. False if that was refused."""
        self._inbox.append(event)
        if self._feeding:
            return True
        self._feeding = True
        refused = False
        try:
            while self._inbox:
                name = self.name
                self.core, actions = core.step(self.core, self._inbox.popleft(), self.daemon.loop.time())
                if self.name == name:
                    self.daemon.state_file.pool_changed(self)
                else:  # what stands there of it, and of its processes, stands there under another name
                    self.daemon.state_file.all_changed()
                self._arm_timer()
                for action in actions:
                    refused |= self._carry_out(action)
        finally:
            self._feeding = False
        self.daemon.look_at_soon(self)
        return not refused

    def _carry_out(self, action: core.Action) -> bool:
        journal = self.daemon.journal
        match action:
            case core.Begin(number):
                self.discarded = None
                self._tell(number, "begins")
                try:
                    self._begin(number)
                except Exception as error:  # noqa: BLE001 - core waits for an answer, whatever our fault
                    self.daemon.loop.call_exception_handler({"message": f"reload of {self.name}", "exception": error})
                    self._inbox.append(core.Failed(number, fault_of_ours(error)))
            case core.Share(number, percent):
                self._listening(number).share(percent)
                self._tell(number, f"gets {percent:g} % of the connections, as a canary")
                self.daemon.canaries.watch(self.generations[number])
                self._decide(Verdict(True))
            case core.Switch(number):
                self._listening(number).take_traffic()  # of a canary; any other has it already
                self.daemon.state_file.generation_changed(self.serving)
                self.daemon.canaries.forget(self.serving)
                self._tell(number, "serves")
            case core.Hold(number):
                self._decide_when_gone(number)
                self.generations[number].feed(core_generation.Hold())
            case core.Leave(number):
                self._decide_when_gone(number)
                self._abandon_addresses(self.core.serving)
                self.generations[number].feed(core_generation.Leave())
            case core.ComeBack(number):
                self._inbox.append(self._come_back(number))
            case core.Return(number, bad):
                self._return(number, bad)
            case core.Discard(number, why, served):
                self._discard(number, why, served=served)
            case core.Queued():
                journal.info("the reload waits until the generation before has left", name=self.name)
            case core.Refused(why):
                if self.verdict is not None and not self.verdict.done():
                    self.verdict.set_result(Verdict(False, why))
                return True
        return False

    def _decide_when_gone(self, number: int) -> None:
        """The reload is over when the generation before has left."""
        if number not in self._until_gone and self.verdict is not None:
            self._until_gone[number], self.verdict = self.verdict, None

    def _come_back(self, number: int) -> core.CameBack | core.Settle:
        """Lead the traffic back to this generation."""
        try:
            self._listening(number).come_back(self._listening(self.core.serving))
        except LinuxError as error:
            self.daemon.journal.error(f"the generation before cannot serve again: {error}", name=self.name)
            return core.Settle()
        return core.CameBack()

    def _return(self, number: int, bad: int) -> None:
        """This generation serves again, for the other one has died of it."""
        generation, old = self.generations[bad], self.generations[number]
        process, lines, why = self._lost or (self.name, (), "its processes died")
        self._lost = None
        why = f"{why}, within reload_watch; generation {number} serves again"
        self.discarded = f"generation {bad} was discarded: {why}"
        self._tell(bad, f"is discarded: {why}", error=True)
        old.feed(core_generation.Return())
        if old.settings.numprocs == generation.settings.numprocs:
            old.feed(core_generation.Scale(generation.core.wanted))
        self.daemon.passing.end(old)
        self._abandon_addresses(number)
        self.pass_on(bad)
        generation.feed(core_generation.Leave())
        self.daemon.state_file.all_changed()
        verdict = self._until_gone.pop(number, None)
        if verdict is not None and not verdict.done():
            verdict.set_result(Verdict(False, why, process, lines))

    def pass_on(self, number: int) -> None:
        """What waits in the queue of this generation is for the one that serves, if it does."""
        to = self.serving.listening
        if to is not None and not self.serving.core.refusing:
            self.daemon.passing.pass_on(self.generations[number], to)

    def _tell(self, number: int, what: str, *, error: bool = False) -> None:
        log = self.daemon.journal.error if error else self.daemon.journal.info
        log(f"the new generation {what}", name=self.name, generation=number)
        by = giver()
        detail = f"generation {number} {what}" + (f", by {by}" if by else "")
        self.daemon.history.record("reload", self.name, detail=detail, by=by or None)

    def _begin(self, number: int) -> None:
        settings, config = self._next
        serving = self.serving
        generation = Generation(self, number, settings, config, beside=serving)
        self.generations[number] = generation
        if settings.numprocs == serving.settings.numprocs:  # else the file asks for another number, and that counts
            generation.feed(core_generation.Scale(serving.core.wanted))
        generation.feed(core_generation.Start())
        if generation.core.fault is not None:
            self._inbox.append(core.Failed(number, generation.core.fault))

    def _abandon_addresses(self, number: int) -> None:
        """Where the generation that served until now listens and this one does not, nobody is let in any more."""
        settings = self.generations[number].settings  # it may have died since, and closed what it had
        kept = {str(address) for address in settings.sockets} if isinstance(settings, PoolSettings) else set()
        for generation in self.generations.values():
            if generation.number != number and generation.listening is not None:
                try:
                    generation.listening.refuse_new_but(kept)
                except LinuxError as error:  # they are let in until the old generation has gone
                    self.daemon.journal.debug(str(error), name=self.name)

    def _discard(self, number: int, why: str, *, served: bool) -> None:
        generation = self.generations.get(number)
        if generation is None:  # it could not even be made
            self._decide(Verdict(False, why))
            self._inbox.append(core.Gone(number))
            return
        if self.serving.listening is not None:
            self.serving.listening.take_traffic()
        process, lines = self._who_failed(generation)
        if why == core.NOT_READY:
            ping = f"; ping: {generation.ping_failure}" if generation.ping_failure else ""
            whys = (f"; {state.astray}" for state in generation.processes_in(Starting).values() if state.astray)
            why = f"{process}: {why}{ping}{next(whys, '')}"
        self.daemon.canaries.forget(generation)
        self.discarded = f"generation {number} was discarded: {why}"
        self._tell(number, f"is discarded: {why}", error=True)
        generation.has_served = served
        generation.feed(core_generation.Leave(served=served))
        self._decide(Verdict(False, why, process, lines))

    def _who_failed(self, generation: Generation) -> tuple[str, tuple[str, ...]]:
        for index, state in enumerate(generation.core.processes):
            if isinstance(state, Backoff | Fatal | Exited):
                return generation.process_name(index), generation.last_words(index)
        for index, state in enumerate(generation.core.processes):
            if not isinstance(state, Running):
                return generation.process_name(index), generation.last_words(index)
        return self.name, ()

    def _listening(self, number: int) -> Listening:
        listening = self.generations[number].listening
        assert listening is not None  # core switches only to a generation that is ready
        return listening

    def _decide(self, verdict: Verdict) -> None:
        if self.verdict is not None and not self.verdict.done():
            self.verdict.set_result(verdict)
        self.verdict = None

    def fault(self, why: str) -> None:
        """A fault of the manager's may have swallowed the end of a reload: whoever waits for one hears of it."""
        verdict = Verdict(False, why, known=False)
        self._decide(verdict)
        for waiting in self._until_gone.values():
            if not waiting.done():
                waiting.set_result(verdict)

    def _arm_timer(self) -> None:
        due = self.core.due
        if self._timer is not None and self._timer.when() == due:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self.daemon.loop.call_at(due, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.feed(core.Due(unproven=self.core.watch is not None and self._is_unproven(self.serving)))

    def _is_unproven(self, generation: Generation) -> bool:
        """Whether it leaves connections waiting (it may not take any), or is not whole."""
        listening = generation.listening
        return generation.state is not PoolState.RUNNING or (listening is not None and not listening.queue_is_empty())

    # What generations tell

    def process_changed(self, generation: Generation, change: core_generation.Changed) -> None:
        """A process of one generation went into another state."""
        self.daemon.process_changed(generation, change.index)
        self.watch(generation, change)
        if self.core.coming is None or self.core.coming.number != generation.number:
            return
        if isinstance(change.after, Backoff | Fatal | Exited) or (
            isinstance(change.before, Starting | Running)
            and isinstance(change.after, Spawning)
            and not change.after.follows  # one that recycles itself is none that dies
        ):
            why = describe(change.after) or str(generation.slots[change.index].exit)
            self.feed(core.Failed(generation.number, f"{generation.process_name(change.index)}: {why}"))

    def watch(self, generation: Generation, change: core_generation.Changed) -> None:
        """Whether a process of what serves since a moment ago was lost, and the generation before could serve again."""
        if self.core.watch is None or self.core.serving != generation.number:
            return
        exit = generation.slots[change.index].exit
        respawned = isinstance(change.before, Running) and isinstance(change.after, Spawning)
        unexpected = exit is None or exit.code not in generation.settings.exitcodes
        failed = isinstance(change.after, Backoff | Fatal) and not isinstance(change.before, Backoff)
        rests = isinstance(change.after, Exited) and not change.after.expected
        if not (failed or rests or (respawned and unexpected)):
            return
        old = self.generations[self.core.watch.old]
        if not old.core.open or old.listening is None or generation.listening is None:
            return
        if not old.listening.can_come_back(generation.listening):
            return
        name = generation.process_name(change.index)
        why = describe(change.after) or str(exit)
        self._lost = name, generation.last_words(change.index), f"{name}: {why}"
        self.feed(core.Lost(generation.number, change.index, generation.core.wanted))

    def refresh(self) -> bool:
        """After a rush of events: look at what they come to. True if the pool's state has changed."""
        self._switch_if_ready()
        for number in tuple(self.core.leaving):
            if self.generations[number].gone:
                left = self.generations.pop(number)
                left.end()
                self.daemon.state_file.all_changed()
                self.daemon.journal.info("a generation has left", name=self.name, generation=number)
                self.feed(core.Gone(number))
                verdict = self._until_gone.pop(number, None)
                if verdict is not None and not verdict.done():
                    verdict.set_result(self._verdict_on_leaving(left))
        before, self.state = self.state, self.serving.state
        if self.state is before:
            return False
        if (fault := self.serving.core.fault) is not None and self.state is PoolState.FATAL:
            self.daemon.journal.error(f"FATAL: {fault}{self.serving.advice(self.name)}", name=self.name)
        self.since = self.daemon.loop.time()
        self.daemon.state_file.pool_changed(self)
        why, by = self._why(before)
        self.daemon.history.record("pool_state", self.name, before.value, self.state.value, why, by=by or None)
        return True

    def _why(self, before: PoolState) -> tuple[str | None, str]:
        """Why it is in its state, and who has ordered that, as far as it is of use to know."""
        causes = self.serving.causes
        match self.state:
            case PoolState.FATAL:
                return self.why_fatal(), ""
            case PoolState.STOPPING | PoolState.STOPPED if not self.serving.core.up:
                return str(causes.end), causes.end.by
            case PoolState.STOPPING | PoolState.STOPPED | PoolState.EXITED:  # by themselves
                return str(causes.missing) or None, causes.missing.by
            case PoolState.DEGRADED | PoolState.STARTING if before in (PoolState.RUNNING, PoolState.DEGRADED):
                return str(causes.missing) or None, causes.missing.by
        return None, ""

    def _verdict_on_leaving(self, left: Generation) -> Verdict:
        serves = f"generation {self.core.serving} serves"
        if left.lost:
            lost = losses.connections(left.lost)
            return Verdict(False, f"{serves}, but {lost} of generation {left.number} lost: see the log", switched=True)
        cut = f"; {losses.connections(left.cut)} of generation {left.number} cut at stopwaitsecs" if left.cut else ""
        return Verdict(True, f"{serves}{cut}")

    def _switch_if_ready(self) -> None:
        coming = self.core.coming
        if not isinstance(coming, core.Arriving) or self.generations[coming.number].state is not PoolState.RUNNING:
            return
        if coming.percent is None:
            try:
                self._listening(coming.number).take_traffic()
            except LinuxError as error:  # somebody has removed or replaced the socket's file, say
                self.feed(core.Failed(coming.number, str(error)))
                return
            except Exception as error:  # noqa: BLE001 - nobody else would ever end this reload
                self.daemon.loop.call_exception_handler({"message": f"reload of {self.name}", "exception": error})
                self.feed(core.Failed(coming.number, fault_of_ours(error)))
                return
        hold, watch = self.patience
        self.feed(core.Ready(coming.number, hold, watch))

    @property
    def patience(self) -> tuple[float, float]:
        """Seconds: how long the old generation is to be held when another one takes its place, and that one watched."""
        if self.core.coming is None:
            return 0.0, 0.0
        settings = self.generations[self.core.coming.number].settings
        assert isinstance(settings, PoolSettings)  # no program is reloaded
        return settings.startsecs, settings.reload_watch

    # Going down

    def stop(self) -> None:
        """Stop the pool: what is coming is not wanted any more, what serves finishes, what leaves goes on leaving."""
        if self.core.coming is not None or self.core.waiting is not None:
            why = "the pool is being stopped"
            self.feed(core.Abort(why))
            self.discarded = None
            self._decide(Verdict(False, why))  # where it was still waiting there was nothing to discard
        self.feed(core.Settle())
        self.serving.feed(core_generation.Stop())

    def kill(self) -> None:
        for generation in tuple(self.generations.values()):
            generation.feed(core_generation.Kill())

    @property
    def down(self) -> bool:
        """Whether nothing of it runs, and nothing is on its way to."""
        return all(generation.down for generation in self.generations.values())

    def why_fatal(self) -> str:
        """In words, for one who cannot see the log."""
        return self.serving.why_fatal()

    def remove(self) -> None:
        """It is down, and an update does away with it: whoever waits for anything of it hears that."""
        self.end()
        self.removed = True
        self._decide(Verdict(False, REMOVED))
        for waiting in self._until_gone.values():
            if not waiting.done():
                waiting.set_result(Verdict(False, REMOVED))
        for watcher in tuple(self.daemon.watchers):
            watcher.pool_changed(self)

    def end(self) -> None:
        """The manager ends."""
        for generation in self.generations.values():
            generation.end()
        if self._timer is not None:
            self._timer.cancel()


def pass_on(waiting: Future[Verdict], decided: Future[Verdict]) -> None:
    """Whoever waits for the reload hears what came of the order that ended it."""
    if not waiting.done() and not decided.cancelled():
        waiting.set_result(decided.result())
