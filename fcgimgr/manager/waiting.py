"""A command that waits: it watches the processes it is about until each has come to its end, good or bad."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fcgimgr.control.messages import ProcessVerdict, Progress, Verdict
from fcgimgr.core.pool import PoolState
from fcgimgr.core.process import Backoff, Exited, Fatal, Running, Stopped
from fcgimgr.manager.daemon import Watcher
from fcgimgr.manager.names import Chosen, indexes_of

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools import Pool

#: What has become of a process: its verdict, or None while it is still on its way.
Judge = Callable[["Pool", int], ProcessVerdict | None]


class Wait(Watcher):
    """Collects one verdict for each of `targets`, in their order."""

    def __init__(
        self, daemon: Daemon, targets: Iterable[tuple[Pool, int, Judge]], progress: Callable[[Progress], None]
    ) -> None:
        self._daemon = daemon
        self._progress = progress
        # A process's slot may go while we wait (scale), so its name is taken now.
        self._targets = {(pool, index): (pool.process_name(index), judge) for pool, index, judge in targets}
        self._verdicts: dict[tuple[Pool, int], ProcessVerdict] = {}
        self._open = set(self._targets)
        self._done = daemon.loop.create_future()

    async def verdict(self) -> Verdict:
        """Wait for all of them."""
        for pool, index in tuple(self._open):
            self._judge(pool, index)
            self._tell(pool, index)  # what the command has begun already happened before we watched
        self._daemon.watchers.append(self)
        try:
            if self._open:
                await self._done
        finally:
            self._daemon.watchers.remove(self)
        verdicts = tuple(self._verdicts[target] for target in self._targets)
        return Verdict(ok=all(verdict.ok for verdict in verdicts), processes=verdicts)

    def process_changed(self, pool: Pool, index: int) -> None:
        if (pool, index) in self._open:
            self._judge(pool, index)
            self._tell(pool, index)

    def pool_changed(self, pool: Pool) -> None:
        for target in [target for target in self._open if target[0] is pool]:
            self._judge(*target)

    def _tell(self, pool: Pool, index: int) -> None:
        if index < len(pool.core.processes):
            name, _ = self._targets[pool, index]
            self._progress(Progress(name=name, state=pool.core.processes[index].name))

    def _judge(self, pool: Pool, index: int) -> None:
        name, judge = self._targets[pool, index]
        verdict = judge(pool, index)
        if verdict is None:
            return
        self._verdicts[pool, index] = ProcessVerdict(
            name=name, ok=verdict.ok, result=verdict.result, detail=verdict.detail, lines=verdict.lines
        )
        self._open.discard((pool, index))
        if not self._open and not self._done.done():
            self._done.set_result(None)


def targets(chosen: Chosen, judge: Callable[[Pool, int], Judge]) -> list[tuple[Pool, int, Judge]]:
    """Every chosen process with the judge made for it now, before the command takes effect."""
    return [
        (pool, index, judge(pool, index)) for pool, indexes in chosen.items() for index in indexes_of(pool, indexes)
    ]


def started(daemon: Daemon) -> Callable[[Pool, int], Judge]:
    """Judges a start."""

    def make(pool: Pool, index: int) -> Judge:
        already = isinstance(pool.core.processes[index], Running)

        def judge(pool: Pool, index: int) -> ProcessVerdict | None:
            state = pool.core.processes[index] if index < len(pool.core.processes) else Stopped()
            match state:
                case Running():
                    return verdict(True, "already running" if already else "started")
                case Exited(exit=exit, expected=expected):
                    return verdict(expected, "started" if expected else "failed", f"it {exit} again")
                case Fatal(why=why):
                    return failed(pool, index, why)
                case Backoff(why=why) if pool.settings.startretries < 0:
                    return failed(pool, index, f"{why}; it is tried again for ever (startretries = -1)")
                case Stopped():
                    return _not_started(daemon, pool)
            return None

        return judge

    return make


def _not_started(daemon: Daemon, pool: Pool) -> ProcessVerdict | None:
    core = pool.core
    if core.fault is not None:
        return verdict(False, "failed", core.fault)
    if core.up and core.waiting:
        hopeless = [name for name in core.waiting if daemon.pools[name].state in (PoolState.STOPPED, PoolState.FATAL)]
        if not hopeless:
            return None
        states = ", ".join(f"{name}, which is {daemon.pools[name].state.value}" for name in hopeless)
        return verdict(False, "failed", f"it waits for {states}")
    return verdict(False, "failed", "somebody stopped it in the meantime")


def stopped(pool: Pool, index: int) -> Judge:
    """Judges a stop."""
    before = pool.core.processes[index]
    idle = before.pid is None and not isinstance(before, Backoff)

    def judge(pool: Pool, index: int) -> ProcessVerdict | None:
        if index >= len(pool.core.processes):
            return verdict(True, "stopped")
        state = pool.core.processes[index]
        if isinstance(state, Stopped | Exited | Fatal):
            return verdict(True, "not running" if idle else "stopped")
        if isinstance(state, Running):
            return verdict(False, "failed", "somebody started it in the meantime")
        return None

    return judge


def restarted(daemon: Daemon) -> Callable[[Pool, int], Judge]:
    """Judges a rolling restart."""

    def make(pool: Pool, index: int) -> Judge:
        before = pool.slots[index].spawned

        def judge(pool: Pool, index: int) -> ProcessVerdict | None:
            if index >= len(pool.core.processes):
                return verdict(False, "failed", "scale took it away in the meantime")
            if index in pool.core.rolling:
                return None
            match pool.core.processes[index]:
                case Running() if pool.slots[index].spawned > before:
                    return verdict(True, "restarted")
                case Running():
                    return verdict(False, "failed", "not restarted, because the one before it did not come up again")
                case Exited(exit=exit, expected=expected):
                    return verdict(expected, "restarted" if expected else "failed", f"it {exit} again")
                case Backoff(why=why):
                    return failed(pool, index, f"{why}; it is tried again")
                case Fatal(why=why):
                    return failed(pool, index, why)
                case Stopped():
                    return _not_started(daemon, pool)
            return None

        return judge

    return make


def verdict(ok: bool, result: str, detail: str | None = None) -> ProcessVerdict:
    return ProcessVerdict(name="", ok=ok, result=result, detail=detail)


def failed(pool: Pool, index: int, why: str) -> ProcessVerdict:
    return ProcessVerdict(name="", ok=False, result="failed", detail=why, lines=pool.last_words(index))
