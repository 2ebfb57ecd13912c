"""Servers that finish by themselves what they have in hand are known by their command, and only where it is certain."""

import signal
from pathlib import Path

import pytest

from fcgimgr.config.read import read
from fcgimgr.config.selfdraining import drains_itself
from fcgimgr.config.settings import PoolSettings


@pytest.mark.parametrize(
    ("command", "stopsignal", "known"),
    [
        ("gunicorn --bind fd://0 app:app", signal.SIGTERM, True),
        ("/srv/shop/.venv/bin/gunicorn app:app", signal.SIGTERM, True),
        ("gunicorn app:app", signal.SIGINT, False),
        ("python -m gunicorn app:app", signal.SIGTERM, True),
        ("/usr/bin/python3.11 -u -X dev -m uvicorn --fd 0 app:app", signal.SIGINT, True),
        ("python -S /srv/bin/uvicorn --fd 0 app:app", signal.SIGTERM, True),
        ("python app.py -m gunicorn", signal.SIGTERM, False),
        ("python", signal.SIGTERM, False),
        ("python -m", signal.SIGTERM, False),
        ("php-cgi", signal.SIGTERM, False),
        ("node gunicorn", signal.SIGTERM, False),
        ("", signal.SIGTERM, False),
    ],
)
def test_who_drains_by_itself(command: str, stopsignal: int, known: bool) -> None:
    assert drains_itself(command.split(), stopsignal) is known


@pytest.mark.parametrize(
    ("keys", "drain"),
    [
        ('command = "gunicorn app:app"', "self"),
        ('command = "gunicorn app:app"\nstopsignal = "QUIT"', "watch"),
        ('command = "gunicorn app:app"\ndrain = "watch"', "watch"),
        ('command = "./serve"', "watch"),
        ('command = "./serve"\ndrain = "self"', "self"),
    ],
)
def test_the_key_is_set_for_them(keys: str, drain: str, tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(f'[pool.app]\nsocket = "127.0.0.1:9001"\n{keys}\n')
    settings = read(tmp_path / "pool.toml", {}).pools["app"]
    assert isinstance(settings, PoolSettings)
    assert settings.drain == drain
