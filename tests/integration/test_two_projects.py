"""Two projects of one user, whose configurations have the same control socket: neither is taken for the other."""

from pathlib import Path

from tests.integration.commands import fcgimgr
from tests.integration.running import RunningManager
from tests.integration.scenes import fails
from tests.integration.succession import to_be_killed

IDLE = """
[program.idle]
command = "sleep 1000"
startsecs = 0
"""


def project(directory: Path, name: str, program: str = "idle") -> Path:
    """A project with a pool.toml that has its control socket where its neighbours have theirs."""
    (directory / name).mkdir()
    config = directory / name / "pool.toml"
    config.write_text(f'[manager]\ncontrol = "{directory}/pool.sock"\n{IDLE.replace("idle", program)}')
    return config


def test_no_command_reaches_the_manager_of_another_project(tmp_path: Path) -> None:
    here, other = project(tmp_path, "here"), project(tmp_path, "other")
    with RunningManager(here, tmp_path / "pool.sock") as manager:
        before = manager.pids("idle")
        for words in (
            ["stop", "all"],
            ["update"],
            ["restart", "idle"],
            ["status"],
            ["shutdown"],
            ["tail", "-f", "idle"],
        ):
            refusal = fcgimgr(*words, cwd=other.parent).fails(4)
            assert f"the manager at {tmp_path}/pool.sock runs {here}, not {other}" in refusal
            assert "[manager] control" in refusal
        assert manager.pids("idle") == before
        assert fcgimgr("-s", tmp_path / "pool.sock", "restart", "idle", cwd=other.parent).succeeds()
        assert manager.pids("idle") != before


def test_one_file_is_one_project_by_whatever_path(tmp_path: Path) -> None:
    config = project(tmp_path, "release-1")
    (tmp_path / "current").symlink_to("release-1")
    with RunningManager(tmp_path / "current" / "pool.toml", tmp_path / "pool.sock"):
        assert fcgimgr("-c", config, "status").succeeds()
        assert fcgimgr("-c", "current/pool.toml", "status", cwd=tmp_path).succeeds()


def test_a_second_manager_is_refused_with_the_name_of_the_first_ones_configuration(tmp_path: Path) -> None:
    here, other = project(tmp_path, "here"), project(tmp_path, "other")
    with RunningManager(here, tmp_path / "pool.sock"):
        code, said = fails(other)
        assert code == 1
        assert f"{tmp_path}/pool.sock is the control socket of {here}" in said
        assert f'[manager] control = "{tmp_path}/other.sock"' in said
        code, said = fails(here)
        assert code == 1
        assert "is a manager running already" in said


def test_processes_of_another_project_are_not_taken_over(tmp_path: Path) -> None:
    here, other = project(tmp_path, "here"), project(tmp_path, "other", "another")
    with to_be_killed(RunningManager(here, tmp_path / "pool.sock")) as first:
        pids = first.pids("idle")
        first.kill()
        code, said = fails(other)
        assert code == 1
        assert f"is the control socket of {here}" in said
        with RunningManager(here, tmp_path / "pool.sock", mark=first.mark) as second:
            assert second.pids("idle") == pids
        with RunningManager(other, tmp_path / "pool.sock") as third:
            assert third.pids("another")


def test_processes_of_a_configuration_that_was_moved_are_taken_over(tmp_path: Path) -> None:
    here = project(tmp_path, "here")
    with to_be_killed(RunningManager(here, tmp_path / "pool.sock")) as first:
        pids = first.pids("idle")
        first.kill()
        here.parent.rename(tmp_path / "moved")
        with RunningManager(tmp_path / "moved" / "pool.toml", tmp_path / "pool.sock", mark=first.mark) as second:
            assert second.pids("idle") == pids
