"""A fault of the manager's own (an exception that nobody foresaw) leaves nobody waiting for ever."""

from pathlib import Path

import pytest

from tests.integration.backends import pool
from tests.integration.commands import Manager, configuration
from tests.integration.ports import free_address
from tests.waiting import eventually

# Read by every Python that starts; the manager's gets a method that fails as long as there is a file.
SITECUSTOMIZE = """\
import os, sys
if "fcgimgr.manager" in sys.orig_argv:
    from fcgimgr.manager.pools import {module} as module
    whole = module.{method}
    def broken(*args, **more):
        if os.path.exists({sign!r}):
            raise RuntimeError("not foreseen")
        return whole(*args, **more)
    module.{method} = broken
"""


@pytest.mark.parametrize(
    ("method", "order"),
    [
        ("generation.Generation.died", "stop app"),
        ("generation.Generation.died", "restart app"),
        ("generation.Generation.take_in", "scale app 2"),
        ("pool.Pool._switch_if_ready", "reload app"),
        ("pool.Pool._switch_if_ready", "update"),
        ("generation.Generation.died", "update"),
    ],
)
def test_a_command_that_waits_is_told_and_fails(method: str, order: str, tmp_path: Path) -> None:
    sign = tmp_path / "broken"
    module, _, attribute = method.partition(".")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE.format(module=module, method=attribute, sign=str(sign)))
    text = pool(tmp_path, "c", free_address("tcp", tmp_path), numprocs=1)
    if order == "update" and "died" in method:
        text += '[program.gone]\ncommand = "sleep 1000"\nstartsecs = 0\n'
    config = configuration(tmp_path, text)
    path = f"{site}:{Path(__file__).parents[2]}"
    manager = Manager(config, tmp_path / "fcgimgr.sock", environment={"PYTHONPATH": path})
    try:
        manager.begin()
        eventually(manager.is_up)
        if order == "update":
            changed = config.read_text().replace("[pool.app]", '[pool.app]\nenvironment = { A = "1" }')
            config.write_text(changed.partition("[program.gone]")[0])
        sign.touch()
        done = manager(*order.split())
        assert done.code == 1, done
        assert "internal error in the manager: RuntimeError('not foreseen'); how far it came" in str(done)
        sign.unlink()
        manager("ping").succeeds()
    finally:
        manager.end_by_force()
