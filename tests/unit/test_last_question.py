"""Who is about to be given up may be dead already: a loop that was kept from its work asks before it says so."""

from types import SimpleNamespace
from typing import Any

import pytest

from fcgimgr.core.process import Exit, Exited, Rest, Starting, State, Stopping
from fcgimgr.manager.pools.generation import Generation

DUE = 5.0
GIVEN_UP = [
    Stopping(pid=100, due=DUE, after=Rest(), killed=True),
    Starting(pid=100, since=0.0, due=DUE, tries=1, fault="exec: no such file"),
]


class Kept(Generation):
    """In the place of a generation whose loop has heard of nothing until this timer."""

    def __init__(self, state: State, after: State) -> None:
        self.core: Any = SimpleNamespace(processes=(state,))
        self.slots: Any = [SimpleNamespace(timer=None, armed=DUE)]
        self.fed: list[object] = []

        def reap_children() -> None:
            self.core.processes = (after,)

        self.daemon: Any = SimpleNamespace(reap_children=reap_children)

    def feed(self, *events: object) -> None:
        self.fed += events


@pytest.mark.parametrize("state", GIVEN_UP, ids=lambda state: type(state).__name__)
def test_who_turns_out_to_be_dead_is_not_given_up(state: State) -> None:
    generation = Kept(state, after=Exited(exit=Exit(code=0), expected=True))
    generation._timer_fired(0, DUE)
    assert generation.fed == []


@pytest.mark.parametrize("state", GIVEN_UP, ids=lambda state: type(state).__name__)
def test_who_is_still_there_is(state: State) -> None:
    generation = Kept(state, after=state)
    generation._timer_fired(0, DUE)
    assert len(generation.fed) == 1
