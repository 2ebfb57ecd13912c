"""What somebody meets who starts fcgimgr for the first time, as an ordinary user above all: words that lead on."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest

from fcgimgr.cli import absent
from tests.hostile.users import MALLORY, words_as
from tests.integration.commands import fcgimgr, words
from tests.integration.ports import free_address
from tests.integration.running import RunningManager
from tests.integration.scenes import NOBODY, fails, managing, open_directory, ordinary_user, scene
from tests.rights import as_root
from tests.waiting import eventually

IDLE = '[program.idle]\ncommand = "sleep 1000"\nstartsecs = 0\n'
LINGER = Path("/var/lib/systemd/linger")
VICTIM = 64019
"""The uid of somebody whose place in /tmp another user has taken."""


def test_a_log_that_cannot_be_opened_names_the_file_and_the_mend(tmp_path: Path) -> None:
    config = scene(tmp_path, IDLE, manager='logfile = "%(here)s/none/manager.log"')
    code, said = fails(config)
    assert code == 1
    assert said.startswith(f"{config}: manager.logfile: cannot open {tmp_path}/none/manager.log: ")
    assert said.endswith(f"make it: install -d {tmp_path}/none\n")


def test_a_port_that_another_manager_has_is_told_with_its_configuration(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    table = f'[pool.app]\nsocket = "{address}"\ncommand = "python -S -E answer.py"\ndirectory = "%(here)s"\n'
    first = scene(tmp_path, table, name="first")
    with managing(first):
        code, said = fails(scene(tmp_path, table, name="second"))
    assert code == 1
    assert f"(fcgimgr -c {first})" in said


# -- the control socket of an ordinary user ---------------------------------------------------------------------------


@pytest.fixture
def lingering() -> Iterator[Path]:
    """The file by which systemd lets `nobody` linger, not there yet."""
    file, made = LINGER / "nobody", not LINGER.exists()
    if not LINGER.parent.is_dir() or file.exists():
        pytest.skip("this machine has no systemd, or nobody lingers")
    LINGER.mkdir(exist_ok=True)
    yield file
    file.unlink(missing_ok=True)
    if made:
        LINGER.rmdir()


@as_root
def test_a_control_socket_that_goes_at_the_logout_is_warned_of(lingering: Path) -> None:
    with ordinary_user() as (directory, prefix):
        config = directory / "pool.toml"
        config.write_text(f'[manager]\nlogfile = "manager.log"\n{IDLE}')

        def said() -> str:
            """It ends at once, for there is no such directory."""
            return subprocess.run(
                [*prefix, *words("-c", config, "run", "--daemon")],
                env=os.environ | {"XDG_RUNTIME_DIR": f"/run/user/{NOBODY}"},
                stderr=subprocess.PIPE,
                text=True,
                timeout=30,
            ).stderr

        assert f"manager.control is /run/user/{NOBODY}/fcgimgr/pool.sock, which is removed when you log out" in said()
        lingering.touch()
        assert "when you log out" not in said()


def test_a_manager_whose_runtime_directory_went_is_named_and_has_a_new_socket_by_hup(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    (tmp_path / "project").mkdir()
    config = tmp_path / "project" / "pool.toml"
    control = runtime / "fcgimgr" / "pool.sock"
    (runtime / "fcgimgr").mkdir()
    config.write_text(f'[manager]\ncontrol = "{control}"\n{IDLE}')
    manager = RunningManager(config, control)
    manager.log = tmp_path / "log"
    with manager:
        shutil.rmtree(runtime)
        eventually(lambda: "cannot be made again" in manager.output())
        refusal = fcgimgr("-c", config, "status").fails(4)
        assert f"pid {manager.pid} runs {config}" in refusal
        assert f"kill -HUP {manager.pid}" in refusal
        (runtime / "fcgimgr").mkdir(parents=True)
        os.kill(manager.pid, signal.SIGHUP)
        eventually(control.exists)
        assert fcgimgr("-c", config, "status").succeeds()


@as_root
def test_a_manager_that_was_started_without_a_runtime_directory_is_found_with_one() -> None:
    """By cron, say; the commands are typed after a login."""
    with ordinary_user() as (directory, prefix):
        config = directory / f"{directory.name}.toml"
        config.write_text(IDLE)
        control = Path(f"/tmp/fcgimgr-{NOBODY}/{directory.name}.sock")
        manager = RunningManager(config, control, prefix=prefix, environment={"XDG_RUNTIME_DIR": ""})
        manager.log = directory / "log"
        with manager:
            done = subprocess.run(
                [*prefix, *words("-c", config, "ping")],
                env=os.environ | {"XDG_RUNTIME_DIR": str(directory)},
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert done.returncode == 0, done
        with suppress(OSError):  # what another test has there
            control.parent.rmdir()


@as_root
def test_a_socket_that_another_user_has_put_where_it_might_be_is_not_asked() -> None:
    with open_directory() as directory:
        config = directory / "pool.toml"
        config.write_text(IDLE)
        squatted = Path(f"/tmp/fcgimgr-{VICTIM}")
        squatted.mkdir()
        try:
            os.chown(squatted, MALLORY, MALLORY)
            (squatted / "pool.sock").touch()
            done = subprocess.run(
                [*words_as(VICTIM), *words("-c", config, "ping")],
                env=os.environ | {"XDG_RUNTIME_DIR": str(directory / "runtime")},
                stderr=subprocess.PIPE,
                text=True,
                timeout=30,
            )
        finally:
            shutil.rmtree(squatted)
        assert done.returncode == 4
        assert f"no manager at {directory}/runtime/fcgimgr/pool.sock" in done.stderr


def test_a_pool_toml_that_lies_here_does_not_hide_the_manager_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_machine = scene(tmp_path, IDLE)
    here = tmp_path / "project"
    here.mkdir()
    (here / "pool.toml").write_text(f'[manager]\ncontrol = "none.sock"\n{IDLE}')
    monkeypatch.chdir(here)
    monkeypatch.setattr(absent, "SEARCHED", ("pool.toml", str(of_machine)))
    with managing(of_machine):
        assert f"fcgimgr -c {of_machine}" in absent.no_manager("none", _context()).args[0]
    assert "fcgimgr -c pool.toml" in absent.no_manager("none", _context()).args[0]
    assert str(of_machine) not in absent.no_manager("none", _context()).args[0]


def _context() -> click.Context:
    return click.Context(click.Command("status"))
