"""The zygote of a generation with `preload`: a process like the others, but that nobody waits for it to serve.

Its life is that of process.py, by the settings of its pool: it is ready when it says that the application is imported,
within ready_timeout; when it dies it is replaced, with back-off if that came soon; and after startretries imports that
failed it is FATAL. What is added here is how it hangs together with the workers, which are forked from it:

- It is there when the first of them is to be spawned, as long as one may have to be, and no longer.
- A worker that is to be spawned meanwhile waits. When the zygote fails, all that wait have failed to start: they back
  off and try again as from any failed start, and a reload is discarded.
- The workers that run live on, whatever becomes of it.
- Once it is FATAL, it is tried again for a worker that has not failed before (by an operator's order, or in the place
  of one that was running), and for one that is tried once more after it was FATAL itself (on_fatal = "retry").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from fcgimgr.config.settings import PoolSettings
from fcgimgr.core import process
from fcgimgr.core.process import (
    Backoff,
    Died,
    Exited,
    Fatal,
    Outcome,
    Ready,
    Rest,
    Running,
    StartAsked,
    State,
    Stopped,
    Stopping,
)

_DOWN: Final = (Stopped, Exited, Fatal)


def _as_zygote(settings: PoolSettings) -> PoolSettings:
    """The pool's settings as they hold for its zygote. It has nothing in hand, so that it can be killed at any time."""
    return msgspec.structs.replace(
        settings,
        ready="notify",
        autorestart=True,
        max_lifetime=None,
        stopsignal=process.SIGKILL,
        stopwaitsecs=0.0,
        stopasgroup=True,
        killasgroup=True,
    )


def step(settings: PoolSettings, state: State, event: process.Event, now: float, seed: float) -> Outcome:
    """As process.step, for the zygote of a pool with these settings."""
    if isinstance(event, Died):
        event = msgspec.structs.replace(event, spare=False)  # dies it as soon as it is ready, it is tried after a pause
    after, actions = process.step(process.Slot(_as_zygote(settings), seed=seed), state, event, now)
    if isinstance(event, Ready) and isinstance(after, Running) and after is not state:
        after = msgspec.structs.replace(after, since=now)  # how long it has been of use: an import may take its time
    return after, actions


def asked_for(settings: PoolSettings, state: State, tries: int) -> StartAsked | None:
    """What to tell it when a worker is to be forked whose starts have failed `tries` times in a row."""
    given_up_before = tries > settings.startretries >= 0
    return StartAsked() if tries == 0 or given_up_before or isinstance(state, Stopped | Exited) else None


def failure(state: State) -> str | None:
    """Why no worker can be had of it now; None: it can, or it is still to be seen."""
    return state.why if isinstance(state, Fatal | Backoff) else None


def is_wanted(processes: Iterable[State]) -> bool:
    """Whether one of these may still have to be forked, by an order or in the place of one that dies."""
    return any(
        not (isinstance(state, _DOWN) or (isinstance(state, Stopping) and isinstance(state.after, Rest)))
        for state in processes
    )
