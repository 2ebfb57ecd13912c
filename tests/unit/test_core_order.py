"""The order of starting and stopping."""

from fcgimgr.config.settings import ProgramSettings
from fcgimgr.core.generation import PoolState
from fcgimgr.core.order import missing, start_order, stop_waves


def programs(**tables: dict[str, object]) -> dict[str, ProgramSettings]:
    return {name: ProgramSettings(name=name, command=("x",), **keys) for name, keys in tables.items()}


def test_lower_priority_starts_first_and_equals_start_as_written():
    assert start_order(programs(b={}, a={}, first={"priority": 1})) == ["first", "b", "a"]


def test_nothing_starts_before_what_it_depends_on_is_running():
    web = programs(web={"depends_on": ("db", "cache")})["web"]
    assert missing(web, {"db": PoolState.RUNNING, "cache": PoolState.DEGRADED}) == ("cache",)
    assert missing(web, {"db": PoolState.RUNNING, "cache": PoolState.RUNNING}) == ()


def test_equal_priorities_stop_together():
    assert stop_waves(programs(a={}, b={})) == [("a", "b")]


def test_higher_priority_stops_first():
    assert stop_waves(programs(db={"priority": 1}, web={"priority": 5}, log={"priority": 5})) == [
        ("web", "log"),
        ("db",),
    ]


def test_what_depends_on_another_stops_before_it():
    waves = stop_waves(programs(web={"depends_on": ("app",)}, app={"depends_on": ("db",)}, db={}))
    assert waves == [("web",), ("app",), ("db",)]


def test_a_dependency_outweighs_a_priority():
    assert stop_waves(programs(db={"priority": 9}, web={"priority": 1, "depends_on": ("db",)})) == [("web",), ("db",)]
