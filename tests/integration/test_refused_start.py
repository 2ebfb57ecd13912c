"""A start that is refused says why, and leaves nothing behind: no directory, no lock, no socket."""

from pathlib import Path

import pytest

from tests.integration.scenes import fails, scene
from tests.integration.servers import need

IDLE = '[program.idle]\ncommand = "sleep 1000"\n'


@pytest.mark.parametrize(
    ("manager", "why"),
    [
        ('logfile = "%(here)s/none/manager.log"', "cannot open"),
        ('pidfile = "%(here)s/none/pid"', "create the directory"),
        ('directory = "%(here)s/none"', "cannot change to"),
        ('control_owner = "nobody-of-this-name"', "nobody-of-this-name"),
        ("minfds = 2000000000", "minfds"),
    ],
)
def test_what_cannot_be_had_leaves_nothing_behind(manager: str, why: str, tmp_path: Path) -> None:
    config = scene(tmp_path, IDLE, manager=manager)
    before = sorted(tmp_path.iterdir())
    code, said = fails(config)
    assert code in (1, 2)
    assert why in said
    assert sorted(tmp_path.iterdir()) == before


def test_neither_does_a_disk_that_is_full(tmp_path: Path) -> None:
    """Nothing can be written to a file, as on a full disk, but files can be made."""
    need("prlimit")
    config = scene(tmp_path, IDLE)
    before = sorted(tmp_path.iterdir())
    code, said = fails(config, prefix=["prlimit", "--fsize=0"])
    assert code == 1
    assert "cannot write the pid" in said
    assert sorted(tmp_path.iterdir()) == before
