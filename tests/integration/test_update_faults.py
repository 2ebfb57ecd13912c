"""An update that a fault of the manager's own breaks off, at whichever step, loses nothing, and the next is right."""

from pathlib import Path

import pytest

from fcgimgr.control.client import Client
from fcgimgr.control.messages import ControlError, Updated, UpdateParams
from fcgimgr.linux import procfs, sockdiag
from tests.integration.commands import Manager, configuration
from tests.integration.ports import free_port
from tests.integration.running import strays
from tests.integration.scenes import Child
from tests.waiting import eventually

# Read by the manager's Python at its start: the step that the file names breaks when it is come to next.
SITECUSTOMIZE = """\
import importlib, os, sys

def breaking(name, whole):
    def step(*args, **more):
        try:
            with open({sign!r}) as file:
                broken = file.read()
        except FileNotFoundError:
            broken = None
        if broken == name:
            os.unlink({sign!r})
            raise RuntimeError("not foreseen")
        return whole(*args, **more)
    return step

if "fcgimgr.manager" in sys.orig_argv:
    for name in {steps!r}:
        module, _, path = name.partition(":")
        *way, last = path.split(".")
        place = importlib.import_module("fcgimgr.manager." + module)
        for word in way:
            place = getattr(place, word)
        setattr(place, last, breaking(name, getattr(place, last)))
"""

STEPS = [
    "commands.updating:adopt_manager_settings",
    "commands.updating:moves",
    "commands.updating:_remove",
    "commands.updating:stopped",
    "commands.updating:_refuse_what_another_has",
    "commands.updating:_add",
    "commands.updating:_change",
    "commands.updating:rename",
    "commands.updating:_know_by_name",
    "commands.updating:running_config",
    "commands.waiting:scale",
    "commands.waiting:Wait.verdict",
    "commands.waiting:Wait.process_changed",
    "daemon:Daemon.start_pool",
    "daemon:Daemon.wait_anew",
    "daemon:spawn_due",
    "pools.pool:Pool.__init__",
    "pools.pool:Pool.have",
    "pools.pool:Pool.reload",
    "pools.pool:Pool.scale",
    "pools.pool:Pool.stop",
    "pools.pool:Pool.end",
    "pools.pool:Pool.refresh",
    "pools.pool:Pool._begin",
    "pools.pool:Pool._switch_if_ready",
    "pools.pool:Pool.process_changed",
    "pools.generation:Generation.__init__",
    "pools.generation:Generation.have",
    "pools.generation:Generation.feed",
    "pools.generation:Generation.end",
    "pools.generation:Generation.prepare",
    "pools.generation:Generation.take_in",
    "pools.generation:Generation.died",
    "pools.generation:Generation._open",
    "pools.generation:Generation._close",
    "pools.generation:Generation._announce",
    "pools.generation:open_listening",
    "sockets.listening:Listening.take_traffic",
    "succession.statefile:StateFile.write",
]

UNIT = """
[{kind}.{name}]
command = "sleep 1000"
numprocs = {numprocs}
environment = {{ COLOUR = "{colour}" }}
startsecs = 0
stopwaitsecs = 1
backoff_initial = 0.1
{socket}
"""


class House:
    """Two configurations to go to and fro between. What each unit is to have: kind, numprocs, colour, port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        first, second, third, fourth = (free_port() for _ in range(4))
        kept = {"keep": ("program", 1, 0, None)}
        self.plans = [
            kept
            | {
                "reloads": ("pool", 2, 0, first),
                "before": ("pool", 1, 0, second),
                "left": ("pool", 1, 0, third),
                "right": ("pool", 1, 0, fourth),
                "grows": ("program", 1, 0, None),
                "restarts": ("program", 1, 0, None),
                "goes": ("program", 1, 0, None),
            },
            kept
            | {
                "reloads": ("pool", 2, 1, first),
                "after": ("pool", 1, 0, second),
                "left": ("pool", 1, 0, fourth),
                "right": ("pool", 1, 0, third),
                "grows": ("program", 2, 0, None),
                "restarts": ("program", 1, 1, None),
                "comes": ("program", 1, 0, None),
            },
        ]

    def write(self, number: int) -> Path:
        text = "shutdown_timeout = 5\n"
        for name, (kind, numprocs, colour, port) in self.plans[number].items():
            socket = f'socket = "127.0.0.1:{port}"\nready = "startsecs"\nreload_watch = 0' if port else ""
            text += UNIT.format(kind=kind, name=name, numprocs=numprocs, colour=colour, socket=socket)
        return configuration(self.directory, text)

    def is_right(self, manager: Manager, number: int) -> bool:
        """Whether exactly what the configuration asks for is there, in `status` and in the kernel."""
        status = manager.status()
        plan = self.plans[number]
        assert sorted(pool.name for pool in status.pools) == sorted(plan)
        shown = set()
        for pool in status.pools:
            _, numprocs, colour, port = plan[pool.name]
            assert [process.state for process in pool.processes] == ["RUNNING"] * numprocs, pool
            for process in pool.processes:
                assert process.pid is not None
                shown.add(process.pid)
                environ = Child(process.pid).environ
                assert (environ.get("FCGIMGR_POOL"), environ.get("COLOUR")) == (pool.name, str(colour))
                if port is not None:
                    listening = sockdiag.listening_at(("127.0.0.1", port))
                    assert listening == {(procfs.sockets(process.pid) or {})[0]}
        living = {int(stray.split()[0]) for stray in strays(manager.mark)}
        assert living == shown | {manager.pid}
        return True


def update(manager: Manager) -> Updated | ControlError:
    with Client(str(manager.control)) as client:
        try:
            return client.call("update", UpdateParams(), answer=Updated, patient=True)
        except ControlError as error:
            return error


@pytest.mark.parametrize("part", range(4))
def test_the_next_update_after_one_that_was_broken_off_is_right(part: int, tmp_path: Path) -> None:
    house = House(tmp_path)
    sign, site = tmp_path / "broken", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE.format(sign=str(sign), steps=STEPS))
    path = f"{site}:{Path(__file__).parents[2]}"
    config = house.write(0)
    with Manager(config, tmp_path / "fcgimgr.sock", environment={"PYTHONPATH": path}) as manager:
        now = 0
        keep = manager.pids("keep")
        for step in STEPS[part::4]:
            now = 1 - now
            house.write(now)
            sign.write_text(step)
            first = update(manager)
            was_broken = not sign.exists()
            sign.unlink(missing_ok=True)
            second = update(manager)
            told = f"{step}: {first}\n{second}"
            assert was_broken, told
            assert isinstance(second, Updated), told
            assert second.ok, told
            try:
                eventually(lambda now=now: house.is_right(manager, now), within=5)
            except AssertionError as error:
                error.add_note(told)
                raise
            assert manager.pids("keep") == keep, told
