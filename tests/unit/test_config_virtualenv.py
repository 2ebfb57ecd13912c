"""A `wsgi` pool without `python` runs in the virtualenv that is active, unless that is somebody else's to change."""

import os
from pathlib import Path

import pytest

from fcgimgr.config.read import read
from fcgimgr.config.settings import Config
from tests.integration.scenes import NOBODY
from tests.rights import as_root

APP = '[pool.app]\nsocket = "127.0.0.1:9001"\nwsgi = "app:app"\n'


def virtualenv(directory: Path) -> Path:
    (directory / "venv" / "bin").mkdir(parents=True)
    (directory / "venv" / "bin" / "python").symlink_to("/bin/true")
    packages = directory / "venv" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "shop.pth").touch()
    (directory / "venv" / "pyvenv.cfg").touch()
    return directory / "venv"


def config(directory: Path, text: str, active: str | Path) -> Config:
    (directory / "pool.toml").write_text(text)
    return read(directory / "pool.toml", {"VIRTUAL_ENV": str(active)})


def test_it_is_taken_and_told_where_no_python_is_named(tmp_path: Path) -> None:
    active = virtualenv(tmp_path)
    found = config(tmp_path, APP, active)
    assert found.pools["app"].python == found.activated == f"{active}/bin/python"


@pytest.mark.parametrize(
    ("text", "python"),
    [
        (APP + 'python = "/usr/bin/python3"', "/usr/bin/python3"),
        (f'[defaults]\npython = "/usr/bin/python3"\n{APP}', "/usr/bin/python3"),
        (APP + 'chroot = "/srv/jail"', None),
        ('[pool.app]\nsocket = "127.0.0.1:9001"\ncommand = "true"\n', None),
    ],
    ids=["own", "defaults", "chroot", "command"],
)
def test_it_is_not_taken_where_it_has_no_say(text: str, python: str | None, tmp_path: Path) -> None:
    found = config(tmp_path, text, virtualenv(tmp_path))
    assert (found.pools["app"].python, found.activated) == (python, None)


@pytest.mark.parametrize("active", ["", "venv"])
def test_what_names_no_virtualenv_is_none(active: str, tmp_path: Path) -> None:
    assert config(tmp_path, APP, active).pools["app"].python is None


@as_root
@pytest.mark.parametrize(
    "of_others",
    [
        "venv",
        "venv/bin",
        "absent",
        "venv/pyvenv.cfg",
        "venv/lib",
        "venv/lib/python3.11",
        "venv/lib/python3.11/site-packages",
        "venv/lib/python3.11/site-packages/shop.pth",
    ],
)
def test_as_root_what_others_could_change_is_not_taken(of_others: str, tmp_path: Path) -> None:
    active = virtualenv(tmp_path)
    if of_others == "absent":
        (active / "bin" / "python").unlink()
    else:
        os.chown(tmp_path / of_others, NOBODY, NOBODY)
    assert config(tmp_path, APP, active).pools["app"].python is None
