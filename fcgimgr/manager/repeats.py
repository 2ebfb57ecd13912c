"""Identical last words are logged once: four processes that all fail by the same traceback, again and again, would bury
in the log what is wrong.

Whether a process fails is known when it is dead. So what one that is still starting says on its standard error is read
with a little delay (Pump.rest), for a traceback is followed by the end within milliseconds. It waits in the pipe, and
not with us: at its death all is read and logged at one go, and only a manager that is killed right then takes it along.
Only where it goes to the manager's own log, and of one whose end is told there: that says whose words these were. A
file of the pool's gets every line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fcgimgr.config.processes import ProcessPlan
    from fcgimgr.manager.generation import Generation
    from fcgimgr.manager.slots import Slot

#: Seconds for which the standard error of one that is starting is left in the pipe.
REST: Final = 0.5
#: Fewer lines bury nothing.
LINES: Final = 3
#: Seconds after which the same is logged once more: who looks then may not find it any more.
AGAIN: Final = 60.0


class Repeats:
    """What those of one generation said that have failed to start."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._said = b""
        self._by = ""
        self._at = 0.0

    def forget(self) -> None:
        """Somebody has ordered that they be started, and wants to see what comes of it."""
        self._said = b""

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
            if said.count(b"\n") >= LINES:
                self._said, self._by, self._at = said, slot.name, now
            return False

        return self._by if slot.hear_last_words(is_known) else ""

    def _rests(self, slot: Slot) -> bool:
        errors = slot.pump("stderr")
        return errors is not None and errors.rests
