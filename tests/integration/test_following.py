"""`tail -f` goes on with whoever has the place of the process that it was asked for."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.commands import words
from tests.integration.ports import free_address
from tests.integration.running import RunningManager
from tests.integration.scenes import managing, scene
from tests.integration.succession import pool, reload, write
from tests.waiting import eventually


@contextmanager
def following(manager: RunningManager, name: str, into: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`fcgimgr tail -f NAME`, whose output goes into a file."""
    with into.open("wb") as out:
        tail = subprocess.Popen(words("-c", manager.config, "tail", "-f", name), stdout=out, stderr=out)
    try:
        yield tail
    finally:
        tail.kill()
        tail.wait()


def test_tail_follows_over_reload_restart_and_scale_and_misses_and_doubles_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = pool(free_address("tcp", tmp_path), "numprocs = 2")
    with managing(write(tmp_path, table)) as manager, following(manager, "app:app_01", out):
        pids = [manager.pids("app")[1]]
        eventually(lambda: f"serving {pids[0]}" in out.read_text())
        for act in (
            lambda: reload(manager).ok,
            lambda: manager.restart("app").ok,
            lambda: manager.restart("app:app_01").ok,
            lambda: scaled(manager),
        ):
            assert act()
            pids.append(manager.pids("app")[1])
            eventually(lambda: f"serving {pids[-1]}" in out.read_text())
        assert out.read_text().splitlines() == [f"serving {pid}" for pid in pids]


def test_tail_follows_all_of_a_pool_that_had_one_process_and_names_them_once_there_are_more(tmp_path: Path) -> None:
    out = tmp_path / "out"
    says = '[program.one]\ncommand = ["sh", "-c", "echo $FCGIMGR_PROCESS; exec sleep 1000"]\nstartsecs = 0\n'
    with managing(scene(tmp_path, says)) as manager, following(manager, "one", out):
        eventually(lambda: out.read_text() == "one_00\n")
        assert manager.scale("one", "2").ok
        eventually(lambda: out.read_text() == "one_00\none:one_01| one_01\n")
        assert manager.restart("one:one_00").ok
        eventually(lambda: out.read_text() == "one_00\none:one_01| one_01\none:one_00| one_00\n")


def scaled(manager: RunningManager) -> bool:
    """Down, and up again."""
    return manager.scale("app", "1").ok and manager.scale("app", "2").ok


def test_tail_ends_with_a_word_when_its_pool_is_removed(tmp_path: Path) -> None:
    idle = '[program.idle]\ncommand = ["sh", "-c", "echo hello; exec sleep 1000"]\nstartsecs = 0\n'
    out = tmp_path / "out"
    config = scene(tmp_path, idle + idle.replace("idle", "other"))
    with managing(config) as manager, following(manager, "other", out) as tail:
        eventually(lambda: out.read_text() == "hello\n")
        config.write_text(config.read_text().partition("[program.other]")[0])
        subprocess.run(words("-c", config, "update"), check=True)
        assert tail.wait(30) == 1
        assert "other:other_00 is no more: an update has removed it" in out.read_text()
