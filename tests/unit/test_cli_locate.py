"""Which manager a command is about: also when its configuration file is broken at the moment."""

from pathlib import Path

import pytest

from fcgimgr.cli import locate
from fcgimgr.cli.failure import Failure
from fcgimgr.config.read import read

POOL = '\n[pool.app]\nsocket = "127.0.0.1:9001"\ncommand = "true"\n'


def written(directory: Path, text: str) -> str:
    (directory / "site.toml").write_text(text)
    return str(directory / "site.toml")


@pytest.fixture(autouse=True)
def _runtime_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("PLACE", "/run/place")


@pytest.mark.parametrize(
    "manager",
    [
        "",
        "[manager]",
        '[manager]\ncontrol = "/run/x.sock"',
        '[manager]\ncontrol = "x.sock"',
        '[manager]\ncontrol = "../x.sock"',
        '[manager]\ncontrol = "%(here)s/x.sock"',
        '[manager]\ncontrol = "%(ENV_PLACE)s/x.sock"',
        'include = ["more.toml"]',
        'include = ["more.toml"]\n[manager]\ncontrol = "/run/y.sock"',
    ],
)
def test_it_is_where_the_whole_reading_says(tmp_path: Path, manager: str):
    if "y.sock" not in manager:
        (tmp_path / "more.toml").write_text('[manager]\ncontrol = "/run/included.sock"\n')
    else:
        (tmp_path / "more.toml").write_text("")
    config = written(tmp_path, manager + POOL)
    assert locate.control_path(config) == read(config, locate.os.environ).manager.control


@pytest.mark.parametrize(
    "broken",
    [
        '[manager]\ncontrol = "/run/x.sock"\nspeed = 3\n',
        '[manager]\ncontrol = "/run/x.sock"\n[pool.app\n',
        "[ manager ] # mine\n  control='/run/x.sock' # here\n[pool.app]\nsocket = = 1\n",
        '[pool.app]\ncontrol = "/no"\nnumprocs = "many\n[manager]\ncontrol = "/run/x.sock"\n',
    ],
)
def test_a_broken_file_still_names_its_manager(tmp_path: Path, broken: str):
    assert locate.control_path(written(tmp_path, broken)) == "/run/x.sock"
    in_place = broken.replace("/run/x.sock", "%(here)s/%(ENV_PLACE)s.sock")
    assert locate.control_path(written(tmp_path, in_place)) == f"{tmp_path}/run/place.sock"


@pytest.mark.parametrize(
    "broken", ["[pool.app\n", "[manager]\ncontrol = 3\n", '[manager]\ncontrol = "%(x\n', "\0", "manager = 1"]
)
def test_a_file_too_broken_to_tell_means_the_usual_place(tmp_path: Path, broken: str):
    sound = written(tmp_path, POOL)
    usual = read(sound, locate.os.environ).manager.control
    assert locate.control_path(written(tmp_path, broken)) == usual


def test_a_missing_file_is_said(tmp_path: Path):
    with pytest.raises(Failure, match=r"no\.toml: No such file") as caught:
        locate.control_path(str(tmp_path / "no.toml"))
    assert caught.value.code == 2
