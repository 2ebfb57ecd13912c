"""The difference between two configurations, and the least that it takes."""

import pytest

from fcgimgr.config.difference import How, difference
from fcgimgr.config.read import read

BASE = """
[manager]
control = "%(here)s/c.sock"
[pool.app]
socket = "127.0.0.1:9001"
command = "app"
numprocs = 4
[program.queue]
command = "consume"
"""


@pytest.fixture
def compare(tmp_path):
    def compare(*edits: tuple[str, str], old: str = BASE, new: str | None = None):
        text = old if new is None else new
        for before, after in edits:
            assert before in text
            text = text.replace(before, after)
        path = tmp_path / "pool.toml"
        path.write_text(old)
        first = read(str(path), {})
        path.write_text(text)
        return difference(first, read(str(path), {}))

    return compare


def only(found):
    assert len(found.changes) == 1
    return found.changes[0]


def test_equal_files_differ_in_nothing(compare):
    assert not compare()


def test_an_untouched_pool_is_not_in_it(compare):
    assert only(compare(("consume", "eat"))).name == "queue"


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        ("numprocs = 4", "numprocs = 6", {How.SCALE}),
        ('command = "app"', 'command = "app2"', {How.RELOAD}),
        ('command = "app"', 'command = "app"\nenvironment = { A = "1" }', {How.RELOAD}),
        ('command = "app"', 'command = "app"\nuser = "nobody"', {How.RELOAD}),
        ('command = "app"', 'command = "app"\nsocket_backlog = 100', {How.SOCKET}),
        ('command = "app"', 'command = "app"\nstopwaitsecs = 60', {How.ADOPT}),
        ("127.0.0.1:9001", "127.0.0.1:9002", {How.RELOAD}),
        ("numprocs = 4", "numprocs = 6\nnice = 5\nstartsecs = 2", {How.SCALE, How.RELOAD, How.ADOPT}),
    ],
)
def test_a_change_takes_what_its_keys_take(compare, before, after, how):
    assert only(compare((before, after))).how == how


def test_mode_and_owner_are_of_the_socket(compare):
    unix = BASE.replace("127.0.0.1:9001", "/run/app.sock")
    found = compare(old=unix, new=unix.replace("numprocs = 4", 'numprocs = 4\nsocket_mode = "0666"'))
    assert only(found).how == {How.SOCKET}
    assert str(only(found)) == "app: socket_mode changed: change the socket"


def test_new_and_removed_pools(compare):
    found = compare(("[program.queue]", "[program.mail]"))
    assert [(change.name, change.how) for change in found.changes] == [("mail", {How.ADD}), ("queue", {How.REMOVE})]


def test_a_pool_that_goes_and_one_that_comes_on_the_same_address_are_one_renamed(compare):
    found = only(compare(("[pool.app]", "[pool.web]")))
    assert (found.before, found.name, found.how) == ("app", "web", {How.RELOAD})


def test_a_pool_that_becomes_a_program_is_another(compare):
    found = compare(new=BASE.replace("[pool.app]", "[program.app]").replace('socket = "127.0.0.1:9001"\n', ""))
    assert {change.how for change in found.changes} == {frozenset({How.ADD}), frozenset({How.REMOVE})}


def test_a_program_may_have_the_name_that_a_pool_leaves_for_another(compare):
    old = BASE[: BASE.index("[program.queue]")]
    program = '\n[program.app]\ncommand = "work"\n'
    found = compare(old=old, new=old.replace("[pool.app]", "[pool.web]") + program)
    assert [(change.name, change.before, change.how) for change in found.changes] == [
        ("web", "app", {How.RELOAD}),
        ("app", None, {How.ADD}),
    ]


def test_the_managers_environment_concerns_everybody(compare):
    found = compare(("[pool.app]", '[manager.environment]\nA = "1"\n[pool.app]'))
    assert [change.how for change in found.changes] == [{How.RELOAD}, {How.RELOAD}]
    assert found.restart == ()


def test_what_the_manager_was_started_with_is_named(compare):
    found = compare(("c.sock", "d.sock"))
    assert "control" in found.restart
    assert found.changes == ()


def test_the_loglevel_is_taken_over(compare):
    assert compare(("[manager]", '[manager]\nloglevel = "debug"')).manager == ("loglevel",)
