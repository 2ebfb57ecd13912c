"""Addresses move from one pool to another, and change places, in one update."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.commands import Manager, configuration
from tests.integration.ports import free_address
from tests.integration.scenes import are_gone, ask, scene

POOL = """
[pool.{name}]
socket = "{address}"
command = "{command}"
directory = "%(here)s"
startsecs = 0
ready_timeout = 3
stopwaitsecs = 2
reload_watch = 0
startretries = 0
"""
GOOD = "python -S -E answer.py"


def write(directory: Path, pools: dict[str, str], bad: str = "") -> Path:
    tables = (
        POOL.format(name=name, address=address, command="false" if name == bad else GOOD)
        for name, address in pools.items()
    )
    return configuration(directory, "".join(tables))


@pytest.fixture(params=["tcp", "unix"])
def addresses(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    if request.param == "tcp":
        return [free_address("tcp", tmp_path) for _ in range(4)]
    return [f"unix:{tmp_path}/{number}.sock" for number in range(4)]


@contextmanager
def serving(directory: Path, pools: dict[str, str]) -> Iterator[Manager]:
    scene(directory, "")  # for answer.py
    with Manager(write(directory, pools), directory / "fcgimgr.sock") as manager:
        yield manager


def who(address: str) -> str:
    return ask(address)["environ"]["FCGIMGR_POOL"]


def test_a_pool_takes_the_address_that_another_leaves_whichever_stands_first(
    addresses: list[str], tmp_path: Path
) -> None:
    one, two, three, four = addresses
    with serving(tmp_path, {"a": one, "b": two}) as manager:
        after = {"a": three, "b": one, "new": two}
        write(tmp_path, after)
        assert "failed" not in manager("update").succeeds()
        assert {name: who(address) for name, address in after.items()} == {name: name for name in after}
        after = {"new": four, "a": two, "b": three}
        write(tmp_path, after)
        manager("update").succeeds()
        assert {name: who(address) for name, address in after.items()} == {name: name for name in after}
        assert manager("update").succeeds() == "no pool or program has changed\n"


def test_pools_change_places(addresses: list[str], tmp_path: Path) -> None:
    one, two, three, four = addresses
    with serving(tmp_path, {"a": one, "b": two, "c": three, "d": four}) as manager:
        after = {"a": two, "b": one, "c": three, "d": four}
        write(tmp_path, after)
        manager("update").succeeds()
        assert {name: who(address) for name, address in after.items()} == {name: name for name in after}
        after = {"a": three, "b": two, "c": four, "d": one}
        write(tmp_path, after)
        manager("update").succeeds()
        assert {name: who(address) for name, address in after.items()} == {name: name for name in after}


def test_who_is_on_the_way_of_one_that_stays_keeps_its_place_and_is_told_why(
    addresses: list[str], tmp_path: Path
) -> None:
    """`a` cannot run what it is to run, and so it stays; and so `b` stays where it is, and serves there."""
    one, two, three, _ = addresses
    with serving(tmp_path, {"a": one, "b": two}) as manager:
        write(tmp_path, {"a": three, "b": one}, bad="a")
        done = manager("update")
        assert done.code == 1
        assert f"b: failed: {one}: a is still there; run update again when it has moved" in done.out
        assert (who(one), who(two)) == ("a", "b")
        write(tmp_path, {"a": three, "b": one})
        manager("update").succeeds()
        assert (who(three), who(one)) == ("a", "b")


@pytest.mark.parametrize("bad", ["a", "b"])
def test_if_one_of_two_that_change_places_fails_the_other_serves_where_it_was(
    bad: str, addresses: list[str], tmp_path: Path
) -> None:
    one, two, *_ = addresses
    with serving(tmp_path, {"a": one, "b": two}) as manager:
        write(tmp_path, {"a": two, "b": one}, bad=bad)
        done = manager("update")
        assert done.code == 1, done
        good = "b" if bad == "a" else "a"
        assert good in {who(address) for address in (one, two) if accepts(address)}
        write(tmp_path, {"a": two, "b": one})
        manager("update").succeeds()
        assert (who(two), who(one)) == ("a", "b")


def accepts(address: str) -> bool:
    try:
        ask(address)
    except OSError:
        return False
    return True


def test_a_pool_changes_its_name_and_a_program_gets_that(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    program = '[program.a]\ncommand = "sleep 1000"\nstartsecs = 0\n'
    with serving(tmp_path, {"a": address}) as manager:
        manager("stop", "a").succeeds()
        with write(tmp_path, {"b": address}).open("a") as config:
            config.write(program)
        assert manager("update").succeeds() == "b: updated: name changed: reload\na: added\n"
        manager("start", "b").succeeds()
        assert who(address) == "b"
        shown = {pool.name: [process.name for process in pool.processes] for pool in manager.status().pools}
        assert shown == {"b": ["b_00"], "a": ["a_00"]}


def test_the_old_processes_leave_also_if_the_new_ones_die_at_another_address(tmp_path: Path) -> None:
    keys = """
startsecs = 0.2
ready = "startsecs"
autorestart = false
"""
    one, two = (free_address("tcp", tmp_path) for _ in range(2))
    good, bad = (f'[pool.a]\nsocket = "{address}"\ncommand = {{}}{keys}' for address in (one, two))
    with Manager(configuration(tmp_path, good.format('"sleep 1000"')), tmp_path / "fcgimgr.sock") as manager:
        [old] = manager.pids("a")
        configuration(tmp_path, bad.format("""["sh", "-c", "sleep 0.25; exit 3"]"""))
        manager("update").succeeds()
        assert are_gone(old)
        assert manager.pool("a").processes[0].state == "EXITED"
        assert "internal error" not in manager.output()
