"""What the user of a pool cannot reach is told by `check`, where it is root that asks."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.commands import fcgimgr
from tests.integration.scenes import NOBODY, open_directory
from tests.rights import as_root


@pytest.fixture
def place() -> Iterator[Path]:
    """With a directory `closed` that only root can enter, and a virtualenv `venv` that everybody can."""
    with open_directory() as directory:
        (directory / "closed/bin").mkdir(parents=True)
        (directory / "closed").chmod(0o700)
        (directory / "closed/bin/python").symlink_to(os.path.realpath(sys.executable))
        (directory / "venv/bin").mkdir(parents=True)
        yield directory


def warned(place: Path, keys: str) -> list[str]:
    config = place / "pool.toml"
    control = place / "pool.control"
    config.write_text(f"[manager]\ncontrol = '{control}'\n{keys}")
    return fcgimgr("-c", config, "check").err.splitlines()


def wsgi(python: Path) -> str:
    keys = ['socket = "127.0.0.1:9001"', 'wsgi = "app:app"', f'python = "{python}"', f'user = "{NOBODY}"']
    return "\n".join(["[pool.app]", *keys, ""])


def see(closed: Path) -> str:
    return f": see {closed} (mode 0700); put it where that user may go, such as /opt or /srv"


@as_root
def test_a_python_in_a_closed_directory(place: Path) -> None:
    python = place / "closed/bin/python"
    assert warned(place, wsgi(python)) == [
        f"warning: pool.app.python: nobody may not execute {python}{see(place / 'closed')}"
    ]
    program = f'[program.job]\ncommand = "{python} -V"\nuser = "{NOBODY}"\n'
    assert warned(place, program) == [
        f"warning: program.job.command: nobody may not execute {python}{see(place / 'closed')}"
    ]
    (place / "closed").chmod(0o711)
    assert warned(place, wsgi(python)) == []


@as_root
def test_a_virtualenv_whose_python_or_library_is_in_a_closed_directory(place: Path) -> None:
    python = place / "venv/bin/python"
    python.symlink_to(place / "closed/bin/python")
    assert warned(place, wsgi(python)) == [
        f"warning: pool.app.python: nobody may not execute {python}{see(place / 'closed')}"
    ]
    python.unlink()
    python.symlink_to(os.path.realpath(sys.executable))
    (place / "venv/pyvenv.cfg").write_text(f"home = {place}/closed/bin\n")
    assert warned(place, wsgi(python)) == [
        f"warning: pool.app.python: nobody may not go into {place}/closed/bin{see(place / 'closed')}"
    ]


@as_root
def test_what_the_user_has_put_there_neither_stops_root_nor_paints_its_terminal(place: Path) -> None:
    python = place / "venv/bin/python"
    python.symlink_to(os.path.realpath(sys.executable))
    os.mkfifo(place / "venv/pyvenv.cfg")
    assert warned(place, wsgi(python)) == []
    (place / "venv/pyvenv.cfg").unlink()
    painting = place / "\x1b[2J"
    painting.mkdir(mode=0o700)
    (place / "venv/pyvenv.cfg").write_text(f"home = {painting}\n")
    (said,) = warned(place, wsgi(python))
    assert f"{place}/\\x1b[2J" in said
