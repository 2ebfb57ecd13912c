"""A pool's user may write to the directory of its socket. That leads to no other pool's, whatever it puts there."""

import os
import socket
import sys
from pathlib import Path

import pytest

from fcgimgr.config.address import parse_address
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import LostListener, open_unix
from fcgimgr.manager.sockets.listening import Place
from tests.hostile.users import BANK, MALLORY, directory_of, need_root, run_as
from tests.integration.commands import Manager, fcgimgr
from tests.integration.scenes import ask, managing, scene
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def _root() -> None:
    need_root()


def lead(own: Path, elsewhere: Path) -> None:
    """Mallory puts a link in the place of a directory of hers."""
    run_as(MALLORY, "sh", "-c", f"mv {own} {own}.old && ln -s {elsewhere} {own}")


def test_a_link_in_the_place_of_its_directory_takes_no_other_pools_socket(place: Path) -> None:
    directory_of(MALLORY, place / "mallory")
    directory_of(MALLORY, place / "mallory/run")
    directory_of(BANK, place / "bank")
    directory_of(BANK, place / "bank/run")
    lead(place / "mallory/run", place / "bank/run")
    tables = "".join(
        f"""
        [pool.{name}]
        socket = "{place}/{name}/run/fcgi.sock"
        command = "{sys.executable} {place}/answer.py"
        user = "{uid}:{uid}"
        """
        for name, uid in (("mallory", MALLORY), ("bank", BANK))
    )
    with managing(scene(place, tables), ready=False) as manager:
        eventually(lambda: manager.pool("bank").state == "RUNNING" and manager.pool("mallory").state == "FATAL")
        assert ask(f"unix:{place}/bank/run/fcgi.sock")["environ"]["FCGIMGR_POOL"] == "bank"
        assert "on its path run is a symbolic link that another user may have put there" in manager.output()


def test_a_link_of_roots_own_is_followed(place: Path) -> None:
    directory_of(BANK, place / "data/run")
    (place / "srv").symlink_to("data")
    with open_unix(f"{place}/srv/run/fcgi.sock", backlog=8) as listener:
        assert (place / "data/run/fcgi.sock").is_socket()
        assert listener.sock.getsockname() == f"{place}/srv/run/fcgi.sock"
    assert list((place / "data/run").iterdir()) == []


@pytest.fixture
def theirs(place: Path) -> tuple[Path, Path]:
    """Mallory's directory, and one of the bank's that has a file of each name that she uses."""
    own = directory_of(MALLORY, place / "mallory")
    own = directory_of(MALLORY, own / "run")
    bank = directory_of(BANK, place / "bank")
    return own, bank


def test_it_unlinks_nothing_elsewhere(theirs: tuple[Path, Path]) -> None:
    own, bank = theirs
    listener = open_unix(f"{own}/fcgi.sock", backlog=8)
    os.link(own / "fcgi.sock", bank / "fcgi.sock")  # the very file: nothing else tells the two ways apart
    lead(own, bank)
    with pytest.raises(LinuxError, match="symbolic link"):
        listener.close()
    assert (bank / "fcgi.sock").is_socket()


def test_it_exchanges_nothing_elsewhere(theirs: tuple[Path, Path]) -> None:
    own, bank = theirs
    with open_unix(f"{own}/fcgi.sock", backlog=8) as old, old.beside(backlog=8) as new:
        for name in ("fcgi.sock", "fcgi.sock.new"):
            os.link(own / name, bank / name)
        before = [os.stat(bank / name).st_ino for name in ("fcgi.sock", "fcgi.sock.new")]
        lead(own, bank)
        with pytest.raises(LinuxError, match="symbolic link"):
            new.trade_places(old)
        assert [os.stat(bank / name).st_ino for name in ("fcgi.sock", "fcgi.sock.new")] == before
        own.unlink()
        own.with_name("run.old").rename(own)


def test_it_puts_nothing_back_elsewhere(theirs: tuple[Path, Path]) -> None:
    own, bank = theirs
    listener = open_unix(f"{own}/fcgi.sock", backlog=8)
    assert listener.file is not None
    lead(own, bank)
    for what in (listener.file.put_back, listener.file.is_in_place):
        with pytest.raises(LinuxError, match="symbolic link"):
            what()
    listener.file.keep()
    assert list(bank.iterdir()) == []
    listener.leave()


@pytest.mark.parametrize("removed", [False, True], ids=["in place", "removed"])
def test_nothing_elsewhere_is_taken_for_one_of_a_manager_before(removed: bool, theirs: tuple[Path, Path]) -> None:
    own, bank = theirs
    with open_unix(f"{bank}/fcgi.sock", backlog=8) as listener:
        lead(own, bank)
        if removed:  # then it has a hidden name there
            (bank / "fcgi.sock").unlink()
        assert LostListener("lost", listener.inode, f"{own}/fcgi.sock").path is None
        assert (bank / "fcgi.sock").exists() is not removed
        assert LostListener("lost", listener.inode, f"{bank}/fcgi.sock").path is not None


def test_the_manager_itself_connects_to_no_other_socket(theirs: tuple[Path, Path]) -> None:
    """It may connect where she may not; and of what it passes on she may have written each byte."""
    own, bank = theirs
    address = parse_address(f"unix:{own}/fcgi.sock")
    with open_unix(f"{bank}/fcgi.sock", backlog=8) as other:
        listener = open_unix(f"{own}/fcgi.sock", backlog=8)
        lead(own, bank)
        place = Place(address, listener)
        with socket.socket(socket.AF_UNIX) as client, place.way_in() as way:
            client.connect(way)
            for each in (listener, other):
                each.set_blocking(False)
            listener.sock.accept()[0].close()
            with pytest.raises(BlockingIOError):
                other.sock.accept()
        listener.leave()
        with pytest.raises(OSError, match="Bad file descriptor"), place.way_in():
            pass


def test_a_socket_whose_directory_was_made_anew_is_put_back_by_a_reload(place: Path) -> None:
    directory_of(MALLORY, place / "run")
    table = f"""
    [pool.app]
    socket = "{place}/run/fcgi.sock"
    command = "{sys.executable} {place}/answer.py"
    startsecs = 0
    """
    config = scene(place, table)
    with Manager(config, config.with_suffix(".control")) as manager:
        run_as(MALLORY, "rm", "-f", place / "run/fcgi.sock")
        manager("reload", "app").succeeds()
        assert ask(f"unix:{place}/run/fcgi.sock")["environ"]["FCGIMGR_GENERATION"] == "2"


def everything_in(directory: Path) -> str:
    """Keys that have the manager's files and a pool's, all of them, right in this directory."""
    return f"""
    [manager]
    control = "{directory}/own.sock"
    pidfile = "{directory}/own.pid"
    logfile = "{directory}/own.log"
    [pool.app]
    socket = "{directory}/app.sock"
    command = "{sys.executable} {directory.parent}/answer.py"
    stdout_logfile = "{directory}/app.log"
    """


def test_all_of_it_may_lie_right_in_a_directory_that_a_link_of_roots_leads_to(place: Path) -> None:
    """As /var/run leads to /run on Debian."""
    (place / "run").mkdir()
    (place / "var").symlink_to("run")
    config = scene(place, "")
    config.write_text(everything_in(place / "var"))
    assert fcgimgr("-c", config, "check").err == ""
    with Manager(config, place / "var/own.sock") as manager:
        manager("status").succeeds()
        manager("reload", "app").succeeds()
        assert ask(f"unix:{place}/run/app.sock")["environ"]["FCGIMGR_GENERATION"] == "2"
        files = {"own.sock", "own.state", "own.pid", "own.log", "app.sock", "app.log"}
        assert files <= {path.name for path in (place / "run").iterdir()}


def test_a_link_that_anybody_could_have_put_there_is_refused_and_check_says_so(place: Path) -> None:
    (place / "run").mkdir()
    place.chmod(0o1777)
    run_as(MALLORY, "ln", "-s", "run", place / "var")
    config = scene(place, "")
    config.write_text(everything_in(place / "var"))
    os.chmod(config, 0o600)
    warned = fcgimgr("-c", config, "check").err
    said = fcgimgr("-c", config).fails(1)
    refused = (
        f"manager.control: the directory {place}/var: on its path var is a symbolic link that another user may have"
    )
    assert f"warning: {refused}" in warned
    assert refused in said
    assert list((place / "run").iterdir()) == []
