"""What fails to start again and again by the same is logged once: four processes with the same traceback, each of them
four times, would bury in the log what is wrong. Of the first its last words, its end, and that it is in BACKOFF are
logged; the others, and their next starts, are counted, and how many there were is logged with what comes of it. Events
have each of them.

Whether a process fails is known when it is dead. So what one that is still starting says on its standard error is read
with a little delay (Pump.rest), for a traceback is followed by the end within milliseconds. It waits in the pipe, and
not with us: at its death all is read and logged at one go, and only a manager that is killed right then takes it along.
Only where it goes to the manager's own log, and of one that has failed. A file of the pool's gets every line.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fcgimgr.config.processes import ProcessPlan
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.pools.slots import Slot

#: Seconds for which the standard error of one that is starting is left in the pipe.
REST: Final = 0.5
#: Seconds after which the same is logged once more: who looks then may not find it any more.
AGAIN: Final = 60.0
#: So many failures that differ are remembered.
MOST: Final = 32

#: Two failures that differ in this alone are the same.
_TIME: Final = re.compile(r"\d[\d.]* m?s\b")


class Repeats:
    """Of those of one generation that fail to start."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._said = b""
        self._by = ""
        self._at = 0.0
        self._logged: dict[str, float] = {}  # failures, and when
        self._more = 0  # that were not logged
        self._unseen: set[Slot] = set()  # whose last failure, and start, were not logged

    def forget(self) -> None:
        """Somebody has ordered that they be started, and wants to see what comes of it."""
        self.tell()
        self._said = b""
        self._logged.clear()
        self._unseen.clear()

    def is_known(self, failure: str) -> bool:
        """Whether the same was logged of any of them already; else it is taken for logged now."""
        what, now = _TIME.sub("", failure), self._generation.daemon.loop.time()
        if now - self._logged.get(what, -AGAIN) < AGAIN:
            return True
        self.tell()
        self._logged.pop(what, None)  # so that the oldest is first
        self._logged[what] = now
        if len(self._logged) > MOST:
            del self._logged[next(iter(self._logged))]
        return False

    def has_failed(self, slot: Slot, why: str) -> bool:
        """One is in BACKOFF; whether that is to be logged."""
        if not self.is_known(why):
            self._unseen.discard(slot)
            return True
        self._more += 1
        self._unseen.add(slot)
        return False

    def is_unseen(self, slot: Slot) -> bool:
        """Whether its start is not logged, as one more of those that have failed so far."""
        return slot in self._unseen

    def is_over(self, slot: Slot) -> bool:
        """It does not go on as before; whether the start of its last process was not logged."""
        self.tell()
        unseen = slot in self._unseen
        self._unseen.discard(slot)
        return unseen

    def tell(self) -> None:
        """Log how many more have failed."""
        if self._more:
            more = f"{self._more} more start{' has' if self._more == 1 else 's have'} failed as logged before"
            name = self._generation.name
            self._generation.daemon.journal.info(f"{more}; each is in: fcgimgr events {name}", name=name)
            self._more = 0

    def listen(self, slot: Slot, plan: ProcessPlan) -> None:
        """A process in this slot is starting."""
        errors = slot.pump("stderr")
        path = plan.stdout_logfile if errors is slot.stdout else plan.stderr_logfile
        is_job = self._generation.settings.ready == "exit"  # which is starting for as long as it lives
        if errors is not None and path == "-" and not is_job:
            errors.rest(REST)

    def listen_no_more(self, slot: Slot) -> None:
        """It has started, or is told to end."""
        if (errors := slot.pump("stderr")) is not None:
            errors.rest(0.0)

    def hear_last_words(self, slot: Slot, *, may_repeat: bool) -> str:
        """It is dead; who has said the same before, which was logged then, or "" if it is logged now.

        may_repeat: whether it has failed to start, and that is told with what is answered here.
        """
        if not may_repeat or not self._rests(slot):
            slot.hear_last_words()
            return ""
        now = self._generation.daemon.loop.time()

        def is_known(said: bytes) -> bool:
            if said == self._said and now - self._at < AGAIN:
                return True
            self._said, self._by, self._at = said, slot.name, now
            return False

        return self._by if slot.hear_last_words(is_known) else ""

    def _rests(self, slot: Slot) -> bool:
        errors = slot.pump("stderr")
        return errors is not None and errors.rests
