"""A pool's user may write to the directory of its log. That gives it nothing of root's."""

import os
import stat
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fcgimgr.linux.directories import LinkRefusedError
from fcgimgr.manager.logs.file import LogFile, Logs
from fcgimgr.manager.logs.opening import open_log, open_to_read
from fcgimgr.manager.logs.requestfiles import RequestFiles, Rights
from fcgimgr.manager.logs.target import NOWHERE
from fcgimgr.manager.pools.tail import end_of_file
from tests.hostile.users import MALLORY, directory_of, need_root, run_as, words_as
from tests.integration.commands import Manager, comes, words
from tests.integration.scenes import scene


@pytest.fixture(autouse=True)
def _root() -> None:
    need_root()


@pytest.fixture
def own(place: Path) -> Path:
    return directory_of(MALLORY, place / "mallory")


def nothing(trouble: str) -> None:
    raise AssertionError(trouble)


def test_a_hard_link_in_its_directory_is_not_written_to(place: Path, own: Path) -> None:
    program = place / "program"
    program.write_text("precious")
    program.chmod(0o4755)
    os.link(program, own / "app.log")  # as she could where fs.protected_hardlinks is 0
    troubles: list[str] = []
    log = LogFile(str(own / "app.log"), maxbytes=10, backups=3, report=troubles.append)
    log.write(b"#!/bin/sh\n" * 5)
    log.close()
    assert program.read_text() == "precious"
    assert "it has another name (a hard link)" in troubles[0]
    assert sorted(os.listdir(own)) == ["app.log"]


def test_a_hard_link_in_a_directory_of_roots_is_written_to(place: Path) -> None:
    (place / "one.log").write_text("")
    os.link(place / "one.log", place / "two.log")
    os.close(open_log(str(place / "two.log"), owner=None, mode=None, note=nothing))


def test_no_rotation_makes_a_file_that_runs_as_another(place: Path) -> None:
    """Whatever the old file's mode was."""
    path = place / "app.log"
    path.write_text("old\n")
    path.chmod(0o6755)
    log = LogFile(str(path), maxbytes=10, backups=3, report=nothing)
    log.write(b"one line\nand another one\n")
    log.close()
    assert oct(path.stat().st_mode & 0o7777) == oct(0o755)


def test_no_directory_of_roots_is_given_away_in_the_place_of_one_that_is_made_again(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """She may rename whatever lies in a directory of hers, also between any two steps of the manager's."""
    directory_of(MALLORY, own / "log")
    (own / "roots").mkdir(mode=0o700)
    (own / "roots/secret").touch()
    troubles: list[str] = []
    log = LogFile(str(own / "log/app.log"), report=troubles.append, clock=count(0.0, 2.0).__next__)
    run_as(MALLORY, "mv", own / "log", own / "before")
    (own / "before/app.log").unlink()
    mkdir = os.mkdir

    def and_she_is_quick(*args: Any, **kwargs: Any) -> None:
        mkdir(*args, **kwargs)
        run_as(MALLORY, "sh", "-c", f"mv {own}/log {own}/made && mv {own}/roots {own}/log")

    monkeypatch.setattr(os, "mkdir", and_she_is_quick)
    log.write(b"a line\n")
    log.close()
    assert "somebody has put another directory in its place" in troubles[0]
    assert (own / "log/secret").exists()
    assert (os.stat(own / "log").st_uid, stat.S_IMODE(os.stat(own / "log").st_mode)) == (0, 0o700)


def test_tail_reads_the_very_file_that_is_written_to(place: Path) -> None:
    own, secret = directory_of(MALLORY, place / "mallory/log"), place / "secret"
    os.chown(own.parent, MALLORY, MALLORY)
    secret.mkdir(mode=0o700)
    (secret / "app.log").write_text("only root may read this\n" * 100)
    tables = f"""
    [program.app]
    command = ["sh", "-c", "echo mine; exec sleep 1000"]
    user = "{MALLORY}:{MALLORY}"
    stdout_logfile = "{own}/app.log"
    """
    config = scene(place, tables, manager=f'control_owner = "{MALLORY}:{MALLORY}"')
    with Manager(config, config.with_suffix(".control")) as manager:
        comes(own / "app.log", "mine")
        run_as(MALLORY, "sh", "-c", f"mv {own} {own}.old && ln -s {secret} {own}")
        tail = words("-s", str(manager.control), "tail", "-n", "50", "app")
        for order in ((), ("stop", "app")):  # while it is written to, and when nobody does
            if order:
                manager(*order).succeeds()
            done = subprocess.run([*words_as(MALLORY), *tail], capture_output=True, text=True, timeout=30, cwd=place)
            assert (done.returncode, done.stdout) == (0, "mine\n"), done


@pytest.mark.parametrize("how", ["symbolic", "hard", "directory"])
def test_of_a_process_that_is_down_no_link_is_read_either(how: str, place: Path, own: Path) -> None:
    (place / "secret").mkdir()
    secret = place / "secret/app.log"
    secret.write_text("only root may read this\n")
    path = own / "app.log"
    if how == "symbolic":
        path.symlink_to(secret)
    elif how == "hard":
        os.link(secret, path)
    else:
        (own / "log").symlink_to(secret.parent)
        os.lchown(own / "log", MALLORY, MALLORY)
        path = own / "log/app.log"
    assert end_of_file(Logs(NOWHERE, report=nothing), str(path), 10) == []
    with pytest.raises(LinkRefusedError if how == "directory" else OSError):
        open_to_read(str(path))


@pytest.mark.parametrize("how", ["symbolic", "hard", "moved"])
def test_no_file_is_given_to_her_by_the_owner_and_mode_of_her_log(how: str, place: Path, own: Path) -> None:
    """She may put another in its place, also one of root's that she has got there somehow."""
    secret = place / "secret"
    secret.write_text("only root may read this\n")
    secret.chmod(0o600)
    path = own / "app.log"
    if how == "symbolic":
        path.symlink_to(secret)
    elif how == "hard":
        os.link(secret, path)
    else:
        secret.rename(path)
        secret = path
    troubles: list[str] = []
    log = LogFile(str(path), owner=(MALLORY, MALLORY), mode=0o666, report=troubles.append)
    log.write(b"one\n")
    assert log.reopen() is None or how != "moved"
    log.close()
    rights = Rights(None, (MALLORY, MALLORY), 0o666)
    problem = RequestFiles(lambda fd: None).create(str(path), rights)
    assert how != "moved" or not problem, problem
    found = secret.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600)
