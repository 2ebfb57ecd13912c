"""Whether processes take their listener, and whether they have served: looked at while they are young.

"Ready" of a program that nobody has written for fcgimgr is what can be seen of it from outside: it, or a process below
it, waits for connections on the pool's listener (linux/taking.py), or has one in its hands. The same sights tell one
that recycles itself after so many requests from one that crashes, and one that listens on a port of its own while the
pool's clients wait in vain.

There is no event for any of this, so it is looked at, by a helper (sights.py), and only while somebody is STARTING, or
so young that its death would be an early one: some milliseconds after its start for the first time, and then less and
less often. Each look is at all such processes of a generation, with one question for their connections. It costs some
30 µs a process; so looks wait for the spawning to be done, and however many processes there are, no more than a
twentieth of the time is spent. Of one at which a look did not end nothing is known.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fcgimgr.config.settings import PoolSettings
from fcgimgr.core.generation import Accepted, Happened
from fcgimgr.core.process import EARLY, Astray, Running, Spawning, Starting, Takes
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.sockdiag import peer_inode
from fcgimgr.linux.taking import Sight
from fcgimgr.manager.ground.helpers import FaultError, StuckError
from fcgimgr.manager.looking.sights import Request, Seen, Wanted

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation

# Seconds from a start to the first look, where nothing waits for it before startsecs, and where something does.
SOON: Final = 0.02
VERY_SOON: Final = 0.003
LONGEST: Final = 0.25  # between two looks
LONGER: Final = 1.5  # times the pause before
SHARE: Final = 20  # the pause is so many times the look, at least
SLICE: Final = 50  # processes that are looked at together
# Seconds longer that one is looked at whose readiness is not a matter of its listener: to say that it goes astray.
LAST_LOOKS: Final = 0.5

# How servers that listen on a port of their own unless they are told otherwise are told.
_TOLD: Final = {
    "uvicorn": "--fd 0",
    "daphne": "--fd 0",
    "hypercorn": "--bind fd://0",
    "gunicorn": "--bind fd://0",
}


class Taking:
    """Looks at the generations that have processes to be looked at, and at nothing while there are none."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._looks: dict[Generation, Looks] = {}

    def process_changed(self, generation: Generation, index: int) -> None:
        """Look at this process soon, if it is to be looked at."""
        settings = generation.settings
        if not isinstance(settings, PoolSettings) or not is_looked_at(settings):
            return
        looks = self._looks.get(generation)
        state = generation.core.processes[index] if index < len(generation.core.processes) else None
        if isinstance(state, Spawning):
            if looks is not None and state.unseen:
                looks.missed_one()
            return
        if not isinstance(state, Starting | Running) or not is_watched(settings, state, self._daemon.loop.time()):
            return
        if looks is None:
            looks = self._looks[generation] = Looks(self._daemon, generation, settings)
            self._daemon.loop.create_task(self._look_until_done(looks)).add_done_callback(done)
        looks.saw(state.pid)

    async def _look_until_done(self, looks: Looks) -> None:
        try:
            await looks.again_and_again()
        finally:
            del self._looks[looks.generation]
            looks.job.drop()


def done(task: asyncio.Task[None]) -> None:
    """A fault of ours is to be heard of."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "the looks at a pool", "exception": error, "task": task})


def is_looked_at(settings: PoolSettings) -> bool:
    """Our own workers say themselves when they are ready, and ask to be recycled."""
    return settings.wsgi is None or settings.ready != "notify"


def is_watched(settings: PoolSettings, state: Starting | Running, now: float) -> bool:
    """Whether there is anything left to be seen of a process in this state."""
    age, young = now - state.since, max(settings.startsecs, EARLY)
    if isinstance(state, Running):
        return not state.seen and age < young + (LAST_LOOKS if settings.ready in ("startsecs", "notify") else 0)
    if state.fault or not state.executed:
        return False
    if state.takes:
        return not state.served and age < young
    return settings.ready not in ("startsecs", "notify") or age < young + LAST_LOOKS


class Looks:
    """The looks at one generation, from the first to the last."""

    def __init__(self, daemon: Daemon, generation: Generation, settings: PoolSettings) -> None:
        self.generation = generation
        self.job = daemon.helpers.job("sights")
        self._daemon = daemon
        self._first = VERY_SOON if settings.startsecs < SOON or generation.blind else SOON
        self._pause = self._first
        self._known: set[int] = set()  # the processes that there were already
        self._taking: set[int] = set()  # those that were seen to wait for connections
        self._unclear: set[int] = set()  # those that at the last look may have been
        self._told: set[str] = set()  # what was said of those that go astray
        self._fault = ""  # the last
        self._sleep: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def saw(self, pid: int) -> None:
        """This process is to be looked at."""
        if pid not in self._known:
            self._known.add(pid)
            self._pause = self._first
            self.soon(self._first)

    def missed_one(self) -> None:
        """One has ended as expected, too fast to be seen: what it has accepted does not wait any more.

        Its siblings are to be seen before the trust is used up.
        """
        if self._look_at_queue():
            # Not now: this is told amid another event.
            self._daemon.loop.call_soon(self.generation.feed, Accepted(blind=self.generation.blind))
        elif self.generation.core.trust.tokens < self.generation.core.wanted + 3:
            self.soon(VERY_SOON)

    def _look_at_queue(self) -> bool:
        listening = self.generation.listening
        return listening is not None and listening.has_accepted()

    def soon(self, pause: float) -> None:
        """Have the next look after `pause` seconds at the latest."""
        due = self._daemon.loop.time() + pause
        if self._timer is not None and self._timer.when() > due:
            self._timer.cancel()
            self._timer = self._daemon.loop.call_at(due, self._wake)

    def _wake(self) -> None:
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    async def again_and_again(self) -> None:
        pause = self._pause
        while True:
            self._sleep = self._daemon.loop.create_future()
            self._timer = self._daemon.loop.call_later(pause, self._wake)
            try:
                await self._sleep
            finally:
                self._timer.cancel()
                self._sleep = self._timer = None
            if self._daemon.is_spawning and self._first != VERY_SOON:
                continue  # there are more important things to do
            watched = self._watched()
            if not watched or self.generation.listening is None:
                return
            spent = await self._look(watched)
            pause = max(self._pause, spent * SHARE)
            self._pause = min(LONGEST, self._pause * LONGER)

    def _watched(self) -> dict[int, Starting | Running]:
        settings, now = self.generation.settings, self._daemon.loop.time()
        if not isinstance(settings, PoolSettings):
            return {}
        watched = {
            index: state
            for index, state in enumerate(self.generation.core.processes)
            if isinstance(state, Starting | Running) and is_watched(settings, state, now)
        }
        self._known = {state.pid for state in watched.values()}
        self._taking &= self._known
        self._unclear &= self._known
        return watched

    async def _look(self, watched: dict[int, Starting | Running]) -> float:
        """Look at all of these; seconds that it took."""
        spent = 0.0
        # Of those that may not be looked at the queue alone tells that they accept.
        if (self.generation.core.proved or self.generation.blind) and self._look_at_queue():
            self.generation.feed(Accepted(blind=self.generation.blind))
        all_of_them = list(watched.items())
        for begin in range(0, len(all_of_them), SLICE):
            together = all_of_them[begin : begin + SLICE]
            request = self._request([state for _, state in together], anew=not begin)
            try:
                took, seen = await self.job.ask(tuple(request), lambda told: None)
            except StuckError:
                return spent  # next time it will be known who is not to be looked at
            except LinuxError as error:
                self._daemon.journal.debug(str(error), name=self.generation.name)
                return LONGEST
            except FaultError as error:  # whatever it was, it may be over, and somebody waits
                self._fault = self._daemon.helpers.say_once(self.generation.name, str(error), self._fault)
                return LONGEST
            spent += took
            for (index, state), one in zip(together, seen, strict=True):
                self._heed(index, state.pid, Seen(*one))
        return spent

    def _request(self, states: list[Starting | Running], *, anew: bool) -> Request:
        listening, now = self.generation.listening, self._daemon.loop.time()
        return Request(
            anew=anew,
            names=tuple(listening.names) if listening is not None else (),
            inodes=tuple(listener.inode for listener in listening.listeners) if listening is not None else (),
            ours=tuple(self._pings()),
            wanted=tuple(
                tuple(
                    Wanted(
                        state.pid,
                        takes=state.pid not in self._taking and listening is not None,
                        elsewhere=self._has_settled(state, now) and not (isinstance(state, Starting) and state.astray),
                        enough=state.pid in self._unclear,
                    )
                )
                for state in states
            ),
        )

    def _pings(self) -> set[int]:
        """The connections that are our own pings, by their inodes."""
        return {*self.generation.pinged, *filter(None, map(peer_inode, self.generation.pings))}

    def _has_settled(self, state: Starting | Running, now: float) -> bool:
        return now - state.since >= max(self.generation.settings.startsecs, EARLY)

    def _heed(self, index: int, pid: int, seen: Seen) -> None:
        """What was seen of a process, if it is still this one."""
        if self._is_still(index, pid) and seen.sight is not None:
            self._see_if_it_takes(index, pid, Sight(seen.sight), seen.elsewhere)
        # Looked for only now: a ping that was accepted meanwhile is known for one.
        if seen.connection and seen.connection not in self._pings() and self._is_still(index, pid):
            self._taking.add(pid)
            self.generation.feed(Happened(index, Takes(served=True)))

    def _see_if_it_takes(self, index: int, pid: int, found: Sight, elsewhere: list[str]) -> None:
        generation = self.generation
        state = generation.core.processes[index]
        assert isinstance(state, Starting | Running)
        settled = self._has_settled(state, self._daemon.loop.time())
        if found is Sight.TAKES or (found is Sight.MAYBE and settled and pid in self._unclear):
            self._taking.add(pid)
            generation.feed(Happened(index, Takes()))
        elif found is Sight.UNKNOWN:
            self._taking.add(pid)
            if not self.generation.blind:
                self.generation.blind = True
                self._daemon.journal.debug(
                    "what it waits for may not be looked at: it counts as started after startsecs",
                    name=generation.process_name(index),
                )
            generation.feed(Happened(index, Takes(known=False)))
        elif elsewhere:
            self._tell_where_it_listens(index, pid, elsewhere)
        if found is Sight.MAYBE:
            self._unclear.add(pid)
        else:
            self._unclear.discard(pid)

    def _tell_where_it_listens(self, index: int, pid: int, names: list[str]) -> None:
        what = astray(self.generation.settings, names)
        if what not in self._told:
            self._told.add(what)
            self._daemon.journal.warning(what, name=self.generation.process_name(index), pid=pid)
        self.generation.feed(Happened(index, Astray(what)))

    def _is_still(self, index: int, pid: int) -> bool:
        """Whether this process is still this one, and alive: others may have had their turn since."""
        processes = self.generation.core.processes
        state = processes[index] if index < len(processes) else None
        return isinstance(state, Starting | Running) and state.pid == pid


def astray(settings: object, names: list[str]) -> str:
    """What is to be said of a process that listens at `names` and does not take the pool's socket."""
    assert isinstance(settings, PoolSettings)
    ours = "fd 0" if settings.socket_pass == "stdin" else "fd 3"
    programs = {word.rpartition("/")[2] for word in settings.command}
    how = next((f', as with "{told}"' for program, told in _TOLD.items() if program in programs), "")
    return (
        f"it listens on {' and '.join(names[:3])} itself; the pool's socket is {ours}, which it does not take: "
        f"let it serve that{how if settings.socket_pass == 'stdin' else ''}"
    )
