"""What root reads for a pool's user is what root has named, and not what that user has led it to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fcgimgr.config.envfile import read_environment_file
from tests.hostile.users import MALLORY, directory_of, need_root, run_as
from tests.integration.commands import fcgimgr
from tests.integration.scenes import Child, managing, scene


@pytest.fixture(autouse=True)
def _root() -> None:
    need_root()


@pytest.fixture
def secret(place: Path) -> Path:
    path = place / "secret.env"
    path.write_text("DB_PASSWORD=only-root-may-read-this\n")
    path.chmod(0o600)
    return path


@contextmanager
def as_mallory() -> Iterator[None]:
    """This very process, for as long as that lasts."""
    os.setegid(MALLORY)
    os.seteuid(MALLORY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_linked_environment_file_gives_nothing_away(place: Path, secret: Path) -> None:
    own = directory_of(MALLORY, place / "app")
    run_as(MALLORY, "ln", "-s", secret, own / ".env")
    tables = f"""
    [program.app]
    command = "sleep 1000"
    user = "{MALLORY}:{MALLORY}"
    environment_file = "{own}/.env"
    """
    refused = fcgimgr("-c", scene(place, tables), "check").fails(2)
    assert "environment_file" in refused
    assert "on its path .env is a symbolic link that another user may have put there" in refused
    assert "only-root" not in refused


@pytest.mark.parametrize("how", ["symbolic", "hard", "directory"])
def test_no_link_of_theirs_is_read(how: str, place: Path, secret: Path) -> None:
    own = directory_of(MALLORY, place / "app")
    path = own / "secret.env"
    if how == "symbolic":
        path.symlink_to(secret)
    elif how == "hard":
        os.link(secret, path)  # as she could where fs.protected_hardlinks is 0
    else:
        (own / "conf").symlink_to(place)
        path = own / "conf/secret.env"
    with pytest.raises(ValueError, match="it is not read: "):
        read_environment_file(str(path))


def test_a_link_of_roots_own_is_read(place: Path, secret: Path) -> None:
    """Also a file of root's among theirs: so a program may be given what its user cannot read."""
    (place / "app.env").symlink_to("secret.env")
    own = directory_of(MALLORY, place / "app")
    (own / "app.env").write_text("KEY=value\n")
    (own / "app.env").chmod(0o600)
    tables = f"""
    [program.linked]
    command = "sleep 1000"
    environment_file = "{place}/app.env"
    [program.among_theirs]
    command = "sleep 1000"
    environment_file = "{own}/app.env"
    """
    with managing(scene(place, tables)) as manager:
        for program, name, value in (
            ("linked", "DB_PASSWORD", "only-root-may-read-this"),
            ("among_theirs", "KEY", "value"),
        ):
            (pid,) = manager.pids(program)
            assert Child(pid).environ[name] == value


def test_an_ordinary_user_follows_what_links_there_are(place: Path) -> None:
    own = directory_of(MALLORY, place / "app")
    (place / "real.env").write_text("KEY=value\n")
    (own / ".env").symlink_to(place / "real.env")
    with as_mallory():
        assert read_environment_file(str(own / ".env")) == {"KEY": "value"}
