"""What an operator does to a pool loses no POST and has none carried out twice, whichever program it runs.

On connections that nginx keeps, where a program that is told to end may have the next request in its buffer already. A
few acts each; `scripts/promises` does more of them.
"""

from pathlib import Path

import pytest

from tests.integration.servers import need
from tests.promises.programs import PROGRAMS, Socket
from tests.promises.trial import Acts, Trial

ACTS = Acts(posts=500, reloads=2, restarts=2, scales=1)


@pytest.mark.parametrize(
    ("program", "socket"),
    [(program.name, socket) for program in PROGRAMS.values() for socket in program.keys],
)
def test_no_act_of_an_operator_costs_a_post(program: str, socket: Socket, tmp_path: Path) -> None:
    need("nginx")
    outcome = Trial(PROGRAMS[program], socket, tmp_path).run(ACTS)
    assert list(outcome.losses()) == []
    assert outcome.posts >= ACTS.posts
