"""What the manager stands on may go away, or be of another encoding: it is told once, and nothing else suffers."""

import resource
from pathlib import Path

from fcgimgr.manager.succession.state import decode
from tests.integration.commands import fcgimgr
from tests.integration.ports import free_address
from tests.integration.running import RunningManager
from tests.integration.scenes import managing, scene
from tests.integration.succession import killed, next_one, pool, write
from tests.integration.test_adoption import state_of
from tests.waiting import eventually

IDLE = """
[program.idle]
command = "sleep 1000"
startsecs = 0
"""


def test_processes_start_after_the_directory_that_the_manager_was_started_in_is_gone(tmp_path: Path) -> None:
    (release := tmp_path / "release").mkdir()
    here = '\n[program.here]\ncommand = "./here"\nautostart = false\nstartretries = 0\n'
    with managing(scene(tmp_path, IDLE + here), prefix=["env", f"--chdir={release}"], ready=False) as manager:
        eventually(lambda: manager.pids("idle"))
        release.rmdir()
        before = manager.pids("idle")
        assert manager.restart("idle").ok
        assert manager.pids("idle") != before
        (refused,) = manager.start("here").processes
        assert "the directory that the manager was started in has been removed" in refused.detail


def test_a_command_works_in_a_directory_that_has_been_removed(tmp_path: Path) -> None:
    config = scene(tmp_path, IDLE)
    (release := tmp_path / "release").mkdir()

    assert "ok: 1 program" in fcgimgr("-c", config, "check", cwd=release, preexec_fn=release.rmdir).succeeds()
    release.mkdir()
    assert "go to one that exists" in fcgimgr("-c", "pool.toml", "check", cwd=release, preexec_fn=release.rmdir).fails(
        2
    )


def test_bytes_that_are_not_utf8_do_not_keep_the_processes_from_being_taken_over(tmp_path: Path) -> None:
    (tmp_path / "environment").write_bytes(b"PASSWORD=caf\xe9\n")
    table = pool(free_address("tcp", tmp_path), 'environment_file = "%(here)s/environment"')
    with killed(write(tmp_path, table + IDLE)) as first:
        pids = first.pids("app") + first.pids("idle")
        assert b"PASSWORD=caf\xe9" in Path(f"/proc/{pids[0]}/environ").read_bytes().split(b"\0")
        assert fcgimgr("-c", first.config, "upgrade").succeeds()
        assert first.pids("app") + first.pids("idle") == pids
        first.kill()
        with next_one(first) as second:
            assert second.pids("app") + second.pids("idle") == pids


def test_the_state_is_written_as_soon_as_the_disk_has_room_again(tmp_path: Path) -> None:
    with killed(write(tmp_path, pool(free_address("tcp", tmp_path)))) as first:
        limits = _let_write(first, 0)
        assert first.scale("app", "4").ok
        assert _processes_known(first) == 1
        _let_write(first, limits[0])
        eventually(lambda: _processes_known(first) == 4)
        pids = first.pids("app")
        first.kill()
        with next_one(first) as second:
            assert second.pids("app") == pids


def _processes_known(manager: RunningManager) -> int:
    return len(decode(state_of(manager.config).read_bytes()).processes)


def _let_write(manager: RunningManager, most: int) -> tuple[int, int]:
    """Let no file of the manager's grow beyond so many bytes, as on a disk without room; what held before."""
    hard = resource.prlimit(manager.pid, resource.RLIMIT_FSIZE)[1]
    return resource.prlimit(manager.pid, resource.RLIMIT_FSIZE, (most, hard))
