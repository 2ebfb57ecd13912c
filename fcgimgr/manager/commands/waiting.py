"""A command that waits: it watches the processes it is about until each has come to its end, good or bad."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from fcgimgr.control.messages import ProcessVerdict, Progress, Verdict
from fcgimgr.core.generation import PoolState
from fcgimgr.core.process import Backoff, Exited, Fatal, Running, Stopped
from fcgimgr.manager.commands.names import Chosen, indexes_of
from fcgimgr.manager.pools.pool import REMOVED
from fcgimgr.manager.pools.watcher import Watcher

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.pool import Pool

#: What has become of a process: its verdict, or None while it is still on its way.
Judge = Callable[["Generation", int], ProcessVerdict | None]


class Target(msgspec.Struct, frozen=True):
    """A process that a command is about. Its slot may go before anybody asks (scale), so its name is kept here."""

    generation: Generation
    index: int
    name: str
    judge: Judge


class Wait(Watcher):
    """Collects one verdict for each of `targets`, in their order."""

    def __init__(self, daemon: Daemon, targets: Iterable[Target], progress: Callable[[Progress], None]) -> None:
        self._daemon = daemon
        self._progress = progress
        self._targets = {(one.generation, one.index): one for one in targets}
        self._verdicts: dict[tuple[Generation, int], ProcessVerdict] = {}
        self._open = set(self._targets)
        self._done = daemon.loop.create_future()

    async def verdict(self) -> Verdict:
        """Wait for all of them."""
        for generation, index in tuple(self._open):
            self._judge(generation, index)
            self._tell(generation, index)  # what the command has begun already happened before we watched
        self._daemon.watchers.append(self)
        try:
            if self._open:
                await self._done
        finally:
            self._daemon.watchers.remove(self)
        verdicts = tuple(self._verdicts[target] for target in self._targets)
        return Verdict(ok=all(verdict.ok for verdict in verdicts), processes=verdicts)

    def process_changed(self, generation: Generation, index: int) -> None:
        if (generation, index) in self._open:
            self._judge(generation, index)
            self._tell(generation, index)

    def pool_changed(self, pool: Pool) -> None:
        for target in [target for target in self._open if target[0].pool is pool or target[0].core.waiting]:
            self._judge(*target)

    def fault(self, why: str) -> None:
        for generation, index in tuple(self._open):
            self._close(generation, index, verdict(False, "failed", why))

    def _tell(self, generation: Generation, index: int) -> None:
        if index < len(generation.core.processes):
            name = self._targets[generation, index].name
            self._progress(Progress(name=name, state=generation.core.processes[index].name))

    def _judge(self, generation: Generation, index: int) -> None:
        found = self._targets[generation, index].judge(generation, index)
        if found is None and generation.pool.removed:
            found = verdict(False, "failed", REMOVED)
        if found is not None:
            self._close(generation, index, found)

    def _close(self, generation: Generation, index: int, verdict: ProcessVerdict) -> None:
        name = self._targets[generation, index].name
        self._verdicts[generation, index] = ProcessVerdict(
            name=name, ok=verdict.ok, result=verdict.result, detail=verdict.detail, lines=verdict.lines
        )
        self._open.discard((generation, index))
        if not self._open and not self._done.done():
            self._done.set_result(None)


def targets(chosen: Chosen, judge: Callable[[Generation, int], Judge]) -> list[Target]:
    """Every chosen process with the judge made for it now, before the command takes effect."""
    return [
        Target(generation, index, generation.process_name(index), judge(generation, index))
        for generation, indexes in chosen.items()
        for index in indexes_of(generation, indexes)
    ]


def scale(daemon: Daemon, pool: Pool, numprocs: int) -> list[Target]:
    """Let the pool have so many processes; the targets are those that come and those that go."""
    serving = pool.serving
    before, stand_ins = serving.core.wanted, serving.core.stand_ins
    found = []
    if numprocs < before:  # else those behind the others are stand-ins, and no matter of this command's
        found = targets({serving: tuple(range(numprocs, len(serving.core.processes)))}, stopped)
    pool.scale(numprocs)
    if serving.core.up:
        coming = tuple(range(before, numprocs))
        found += targets({serving: tuple(i for i in coming if i not in stand_ins)}, started(daemon))
        found += targets({serving: tuple(i for i in coming if i in stand_ins)}, joined(daemon))
    return found


def started(daemon: Daemon) -> Callable[[Generation, int], Judge]:
    """Judges a start."""

    def make(generation: Generation, index: int) -> Judge:
        already = isinstance(generation.core.processes[index], Running) and not generation.core.refusing

        def judge(generation: Generation, index: int) -> ProcessVerdict | None:
            if generation.core.refusing:
                return _after_the_stop(daemon, generation, index)
            state = generation.core.processes[index] if index < len(generation.core.processes) else Stopped()
            match state:
                case Running():
                    return verdict(True, "already running" if already else "started")
                case Exited(exit=exit, done=True):
                    return verdict(True, "done", str(exit))
                case Exited(exit=exit, expected=expected):
                    return verdict(expected, "started" if expected else "failed", f"{exit} after its start")
                case Fatal(why=why):
                    return failed(generation, index, why)
                case Backoff(why=why) if generation.settings.startretries < 0:
                    return failed(generation, index, f"{why}; it is tried again for ever (startretries = -1)")
                case Stopped():
                    return _not_started(daemon, generation)
            return None

        return judge

    return make


def joined(daemon: Daemon) -> Callable[[Generation, int], Judge]:
    """Judges a scale-up that makes a stand-in one of the wanted: it is one more when another stands in instead."""

    def make(generation: Generation, index: int) -> Judge:
        judge_start = started(daemon)(generation, index)

        def judge(generation: Generation, index: int) -> ProcessVerdict | None:
            found = judge_start(generation, index)
            if found is None or not found.ok:
                return found
            stand_ins = [generation.core.processes[index] for index in generation.core.stand_ins]
            coming = any(not isinstance(state, Running) for state in stand_ins)
            return None if coming else verdict(True, "started")

        return judge

    return make


def _after_the_stop(daemon: Daemon, generation: Generation, index: int) -> ProcessVerdict | None:
    """Of a process that still serves what had come before its pool was told to stop: what is to become of it then."""
    return None if index in generation.core.again else _not_started(daemon, generation)


def _not_started(daemon: Daemon, generation: Generation) -> ProcessVerdict | None:
    core = generation.core
    if core.fault is not None:
        return verdict(False, "failed", core.fault)
    if core.up and core.waiting:
        hopeless = [name for name in core.waiting if not daemon.may_be_ready(name)]
        if not hopeless:
            return None
        states = {name: daemon.pools[name].state if name in daemon.pools else "no more" for name in hopeless}
        whom = ", ".join(f"{name}, which is {state}" for name, state in states.items())
        return verdict(False, "failed", f"it waits for {whom}")
    if core.up and not core.open:  # more were asked for, of a pool of which nothing runs or is tried
        why = f": {generation.why_fatal()}" if generation.state is PoolState.FATAL else ""
        advice = f"{'mend that, then' if why else 'to start it'}: fcgimgr start {generation.name}"
        return verdict(False, "failed", f"not started, as {generation.name} is {generation.state}{why}; {advice}")
    return verdict(False, "failed", "somebody stopped it in the meantime")


def stopped(generation: Generation, index: int) -> Judge:
    """Judges a stop."""
    before = generation.core.processes[index]
    idle = before.pid is None and not isinstance(before, Backoff)

    def judge(generation: Generation, index: int) -> ProcessVerdict | None:
        state = generation.core.processes[index] if index < len(generation.core.processes) else Stopped()
        # One that has another pid was started by somebody as soon as it was down.
        if isinstance(state, Stopped | Exited | Fatal) or (before.pid is not None and state.pid != before.pid):
            if left := generation.daemon.abandoned.of(before.pid):
                return verdict(False, "failed", _still_there(left))
            return verdict(True, "not running" if idle else "stopped")
        if isinstance(state, Running) and generation.core.up:  # else it serves what waits in the queue, and then ends
            return verdict(False, "failed", "somebody started it in the meantime")
        return None

    return judge


def restarted(daemon: Daemon) -> Callable[[Generation, int], Judge]:
    """Judges a rolling restart."""

    def make(generation: Generation, index: int) -> Judge:
        before, pid = generation.slots[index].spawned, generation.core.processes[index].pid

        def judge(generation: Generation, index: int) -> ProcessVerdict | None:
            if index >= len(generation.core.processes):
                return verdict(False, "failed", "scale took it away in the meantime")
            if generation.core.refusing:
                return _after_the_stop(daemon, generation, index)
            if index in generation.core.rolling:
                return None
            match generation.core.processes[index]:
                case Running() if generation.slots[index].spawned > before:
                    if left := daemon.abandoned.of(pid):
                        return verdict(False, "failed", f"a new one runs, but the one before is {_still_there(left)}")
                    return verdict(True, "restarted")
                case Running():
                    return verdict(False, "failed", "not restarted, because the one before it did not come up again")
                case Exited(exit=exit, done=True) if generation.slots[index].spawned > before:
                    return verdict(True, "done", str(exit))
                case Exited(exit=exit, expected=expected):
                    return verdict(expected, "restarted" if expected else "failed", f"{exit} after its start")
                case Backoff(why=why):
                    return failed(generation, index, f"{why}; it is tried again")
                case Fatal(why=why):
                    return failed(generation, index, why)
                case Stopped():
                    return _not_started(daemon, generation)
            return None

        return judge

    return make


def _still_there(left: str) -> str:
    return f"still there after SIGKILL, and given up: {left}"


def verdict(ok: bool, result: str, detail: str | None = None) -> ProcessVerdict:
    return ProcessVerdict(name="", ok=ok, result=result, detail=detail)


def failed(generation: Generation, index: int, why: str) -> ProcessVerdict:
    return ProcessVerdict(name="", ok=False, result="failed", detail=why, lines=generation.last_words(index))
