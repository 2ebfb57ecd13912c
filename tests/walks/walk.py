"""A random walk: a real manager is given orders, configurations, faults and deaths one after the other, at random.

After each step the house must be in order: `status` shows every process of ours that lives, and none that does not; no
two have one place; the manager's log holds no internal error. At the end, whatever state it has come to, a shutdown
ends in time, and nothing is left that could be killed.
"""

import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fcgimgr.control.client import Client
from fcgimgr.control.messages import (
    INVALID_PARAMS,
    NO_SUCH_NAME,
    REFUSED,
    ControlError,
    ManagerGone,
    NamesParams,
    Params,
    ReloadParams,
    RestartParams,
    ScaleParams,
    ShutdownParams,
    Status,
    StatusParams,
    Updated,
    UpdateParams,
    UpgradeParams,
    Verdict,
)
from tests.integration.commands import Manager, configuration
from tests.integration.ports import free_address
from tests.integration.running import strays
from tests.integration.scenes import Child
from tests.waiting import eventually
from tests.walks.plans import LEFT, NAMES, Plan, plans, tables

SHUTDOWN_TIMEOUT: Final = 3
ENDS_WITHIN: Final = SHUTDOWN_TIMEOUT + 6
ANSWERS_WITHIN: Final = 30.0  # any command
# A manager that was killed between a spawn and its note of it leaves what the next one does not know: that is ended
# within 11 s (PATIENCE and DIES_WITHIN of manager/succession/inheritance.py), and not shown.
IN_ORDER_WITHIN: Final = 20.0
MANAGER: Final = f"shutdown_timeout = {SHUTDOWN_TIMEOUT}\n"
BAD: Final = ("internal error", "Traceback")
PLACE: Final = ("FCGIMGR_POOL", "FCGIMGR_PROCESS", "FCGIMGR_GENERATION")

Answer = TypeVar("Answer")

names = st.sampled_from([*NAMES, *(f"{name}:{name}_0{index}" for name in NAMES for index in range(2)), "all"])
pools = st.sampled_from(NAMES)
moments = st.sampled_from([0.0, 0.0, 0.005, 0.05, 0.2])


def without_time(line: str) -> str:
    """A line of the log, without when it was."""
    return line.partition(" ")[2]


class Stumbled(BaseException):
    """What was wrong, after which steps. No Exception: the next walk of the same steps may end well, for their moments
    are others, and Hypothesis would tell of that and of nothing else."""


class Walk(RuleBasedStateMachine):
    """One walk, from the start of a manager to the end of the last."""

    steps = 0  # of all walks
    acts: ClassVar[Counter[str]] = Counter()
    ports: ClassVar[list[str]] = []  # that all walks use, one after the other

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="fcgimgr-walk-"))
        while len(self.ports) < 3:
            self.ports.append(free_address("tcp", self.directory))
        self.addresses = [*self.ports, *(f"unix:{self.directory}/{number}.sock" for number in range(2))]
        self.managers = count(1)
        self.told: list[str] = []
        self.read = 0
        self.failed = False

    # Steps

    @initialize(plan=plans, end=st.sampled_from(["command", "TERM", "now"]))
    def begin(self, plan: Plan, end: str) -> None:
        """The first manager."""
        self.end = end
        self.manager = Manager(self.write(plan), self.directory / "fcgimgr.sock")
        self.come_up(self.manager)

    @rule()
    def a_look(self) -> None:
        """Nothing is done. (The simplest of the rules, and by its name the first: some walks are made of it alone.)"""
        self.act("a look")

    @rule(moment=moments)
    def a_moment_passes(self, moment: float) -> None:
        self.act("a moment passes", moment)
        time.sleep(moment)

    @rule(name=names, wait=st.booleans())
    def start(self, name: str, wait: bool) -> None:
        self.order("start", NamesParams(names=(name,), wait=wait))

    @rule(name=names, wait=st.booleans())
    def stop(self, name: str, wait: bool) -> None:
        self.order("stop", NamesParams(names=(name,), wait=wait))

    @rule(name=names, wait=st.booleans(), hard=st.booleans())
    def restart(self, name: str, wait: bool, hard: bool) -> None:
        self.order("restart", RestartParams(names=(name,), wait=wait, hard=hard))

    @rule(name=st.sampled_from([*NAMES, "all"]), wait=st.booleans())
    def reload(self, name: str, wait: bool) -> None:
        self.order("reload", ReloadParams(names=(name,), wait=wait))

    @rule(name=pools, action=st.sampled_from(["reload", "promote", "abort"]), wait=st.booleans())
    def canary(self, name: str, action: Any, wait: bool) -> None:
        percent = 20.0 if action == "reload" else None
        self.order("reload", ReloadParams(names=(name,), action=action, canary=percent, wait=wait))

    @rule(name=pools, number=st.sampled_from(["1", "2", "3", "+1", "-1"]), wait=st.booleans())
    def scale(self, name: str, number: str, wait: bool) -> None:
        self.order("scale", ScaleParams(name=name, numprocs=number, wait=wait))

    @rule(plan=plans)
    def update(self, plan: Plan) -> None:
        """What was asked for is there afterwards, or it was said what is not."""
        self.write(plan)
        updated = self.order("update", UpdateParams(), answer=Updated, more=str(plan))
        if updated is not None and updated.ok:
            self.check(partial(self.shows, {"base", *plan[0]}))

    def shows(self, names: set[str]) -> None:
        shown = {pool.name for pool in self.status().pools}
        assert shown == names, f"{sorted(shown)} after an update to {sorted(names)}"

    @rule(plan=plans)
    def update_by_signal(self, plan: Plan) -> None:
        self.write(plan)
        self.signal(signal.SIGHUP, str(plan))

    @rule(plan=plans)
    def write_broken(self, plan: Plan) -> None:
        """A broken file is refused, and nothing of it is applied."""
        good = self.manager.config.read_text()
        self.manager.config.write_text(good + "nonsense = 1\n")
        updated = self.order("update", UpdateParams(), answer=Updated, more="broken")
        assert updated is None or updated.problems
        self.manager.config.write_text(good)

    @rule()
    def reload_all_by_signal(self) -> None:
        self.signal(signal.SIGUSR2)

    @rule()
    def upgrade(self) -> None:
        """The same pid goes on, by the same code."""
        if self.order("upgrade", UpgradeParams()) is not None:
            eventually(self.answers, within=ANSWERS_WITHIN)

    @rule(plan=st.none() | plans, moment=moments)
    def kill_manager(self, plan: Plan | None, moment: float) -> None:
        """The next one takes over what the dead one has left, and may find another configuration."""
        self.act("kill the manager", plan)
        self.manager.kill()
        self.look_into_log()
        if plan is not None:
            self.write(plan)
        time.sleep(moment)
        self.manager = Manager(self.manager.config, self.manager.control, mark=self.manager.mark)
        self.come_up(self.manager)

    @rule(number=st.integers(0, 100), how=st.sampled_from([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]))
    def kill_process(self, number: int, how: signal.Signals) -> None:
        pids = [process.pid for pool in self.status().pools for process in pool.processes if process.pid is not None]
        pid = pids[number % len(pids)] if pids else None
        self.act("kill a process", how.name, pid)
        if pid is not None:
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                pass  # It has ended since.

    # What must hold

    @invariant()
    def is_in_order(self) -> None:
        if not hasattr(self, "manager"):
            return
        self.check(lambda: eventually(self.shows_what_is, within=IN_ORDER_WITHIN))
        self.check(self.look_into_log)

    def shows_what_is(self) -> bool:
        """Whether `status` shows what the kernel does."""
        status = self.status()
        shown = [
            process.pid
            for pool in status.pools
            for process in (*pool.processes, *pool.zygotes)
            if process.pid is not None
        ]
        living = self.living()
        assert status.manager.pid == self.manager.pid
        assert len(shown) == len(set(shown)), f"twice: {shown}"
        assert set(shown) == living.keys(), f"status shows {sorted(shown)}, there are {living}"
        twice = [place for place, number in Counter(living.values()).items() if number > 1]
        assert not twice, f"doubled: {twice}"
        return True

    def living(self) -> dict[int, tuple[str, ...]]:
        """By pid: pool, process and generation of each process that a manager of this walk has started."""
        found = {}
        for stray in strays(self.manager.mark):
            pid = int(stray.split()[0])
            environ = Child(pid).environ
            # The manager makes each a session's leader; what is another's child is its affair until the end.
            if os.getsid(pid) == pid and PLACE[0] in environ and LEFT not in environ:
                found[pid] = tuple(environ[key] for key in PLACE)
        return found

    # Means

    def act(self, *words: object) -> None:
        type(self).steps += 1
        self.acts[str(words[0])] += 1
        self.told.append(" ".join(str(word) for word in words))

    def check(self, hold: Callable[[], object]) -> None:
        try:
            hold()
        except Exception as error:
            self.failed = True
            steps, log = "\n".join(self.told), self.manager.output()
            # What a manager says again and again must not hide what it said before.
            log = "\n".join(line for line, _ in groupby(log.splitlines(), key=without_time))[-20000:]
            raise Stumbled(f"{error!r}\n-- the steps:\n{steps}\n-- the log:\n{log}") from error

    def write(self, plan: Plan) -> Path:
        return configuration(self.directory, MANAGER + tables(plan, self.addresses))

    def status(self) -> Status:
        return self.ask("status", StatusParams(detail=False), Status)

    def ask(self, method: str, params: Params | None, answer: type[Answer]) -> Answer:
        with Client(str(self.manager.control), timeout=ANSWERS_WITHIN) as client:
            return client.call(method, params, answer=answer)

    def order(self, method: str, params: Params, *, answer: Any = Verdict, more: str = "") -> Any:
        """A command, which comes to an end. What came of it; None: it was refused."""
        self.act(method, params, more)
        try:
            return self.ask(method, params, answer)
        except ControlError as error:
            if error.code not in (NO_SUCH_NAME, REFUSED, INVALID_PARAMS) or isinstance(error, ManagerGone):
                self.check(partial(self.fail, str(error)))
            return None

    def fail(self, why: str) -> None:
        raise AssertionError(why)

    def signal(self, number: signal.Signals, more: str = "") -> None:
        self.act(number.name, more)
        os.kill(self.manager.pid, number)

    def come_up(self, manager: Manager) -> None:
        manager.log = self.directory / f"manager-{next(self.managers)}.log"
        self.read = 0
        manager.begin()
        self.check(lambda: eventually(self.answers, within=ANSWERS_WITHIN))

    def answers(self) -> bool:
        if self.manager.ended:  # not an AssertionError: there is nothing left to wait for
            raise RuntimeError(f"the manager ended with {self.manager.wait()}")
        try:
            return self.status().manager.state in ("STARTING", "RUNNING")
        except ControlError:
            return False

    def look_into_log(self) -> None:
        log = self.manager.output()
        new, self.read = log[self.read :], len(log)
        for line in new.splitlines():
            assert not any(bad in line for bad in BAD), line

    # The end

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            shutil.rmtree(self.directory)
            return
        try:
            if not self.failed:
                self.check(self.come_to_an_end)
        finally:
            self.manager.end_by_force()
            shutil.rmtree(self.directory)

    def come_to_an_end(self) -> None:
        """It ends in time from whatever state, and leaves nothing."""
        self.told.append(f"shutdown: {self.end}")
        begun = time.monotonic()
        if self.end == "TERM":
            os.kill(self.manager.pid, signal.SIGTERM)
        else:
            with Client(str(self.manager.control)) as client:
                client.call("shutdown", ShutdownParams(now=self.end == "now", wait=False), answer=dict)
        code = self.manager.wait(ENDS_WITHIN)
        took = time.monotonic() - begun
        assert code == 0, f"it ended with {code}"
        assert took < ENDS_WITHIN
        assert not strays(self.manager.mark), f"left running: {strays(self.manager.mark)}"
        self.look_into_log()
