"""In which order pools are changed, so that each address is free when another is to have it."""

from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.config.address import TcpAddress
from fcgimgr.config.difference import Change, How
from fcgimgr.config.moves import Moves, moves
from fcgimgr.config.settings import PoolSettings, ProcessSettings, ProgramSettings

Where = dict[str, tuple[int, ...]]


def pool(name: str, *ports: int, host: str = "127.0.0.1") -> PoolSettings:
    return PoolSettings(name=name, command=("app",), sockets=tuple(TcpAddress(host, port) for port in ports))


def settings(pools: Where) -> dict[str, ProcessSettings]:
    return {name: pool(name, *ports) for name, ports in pools.items()}


def change(name: str, how: How = How.RELOAD, before: str | None = None) -> Change:
    return Change(name, frozenset({how}), before=before)


def moved(before: Where, after: Where) -> Moves:
    changes = [change(name, How.RELOAD if name in before else How.ADD) for name in after]
    return moves(changes, settings(before), settings(after))


def test_who_is_to_have_an_address_waits_for_the_one_that_leaves_it():
    order = moved({"a": (1,), "b": (2,)}, {"b": (1,), "a": (3,), "c": (2,)})
    assert order == Moves({"b": frozenset("a"), "a": frozenset(), "c": frozenset("b")})


def test_of_two_that_change_places_one_yields():
    order = moved({"a": (1,), "b": (2,)}, {"a": (2,), "b": (1,)})
    assert order == Moves({"a": frozenset("b"), "b": frozenset()}, frozenset("a"))


def test_an_address_of_all_interfaces_is_on_the_way_of_one():
    before = {"a": pool("a", 1, host="*"), "b": pool("b", 2)}
    after = {"a": pool("a", 3, host="*"), "b": pool("b", 1)}
    assert moves([change("a"), change("b")], before, after).after["b"] == {"a"}


def test_a_program_that_gets_the_name_of_a_pool_waits_until_that_has_another():
    before, after = {"a": pool("a", 1)}, {"b": pool("b", 1), "a": ProgramSettings(name="a", command=("app",))}
    order = moves([change("b", before="a"), change("a", How.ADD)], before, after)
    assert order == Moves({"b": frozenset(), "a": frozenset("b")})


places = st.permutations(range(8)).flatmap(
    lambda ports: st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 2)).map(
        lambda found: {
            name: tuple(ports[2 * i % 8 : 2 * i % 8 + n]) for i, (name, n) in enumerate(found.items()) if i < 4
        }
    )
)


@given(before=places, after=places)
def test_in_this_order_nobody_comes_to_an_address_that_another_still_has(before: Where, after: Where):
    order = moved(before, {name: after[name] for name in after})
    left = {name: ports for name, ports in before.items() if name in after and name not in order.yielding}
    waiting = set(after)
    while waiting:
        turn = {name for name in waiting if not order.after[name] & waiting}
        assert turn, "they wait for each other"
        for name in turn:
            others = {port for other, ports in left.items() if other != name for port in ports}
            assert not others & set(after[name])
        for name in turn:
            left[name] = after[name]
        waiting -= turn
