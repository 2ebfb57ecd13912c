"""What requests have in common is read faster, and never as anything else than what has come."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgimgr.fastcgi.arriving import decode_parameters, read_whole
from fcgimgr.fastcgi.common import LATER, LONGEST, SOON, Common
from fcgimgr.fastcgi.records import ProtocolError, encode_pairs
from tests.unit.test_fastcgi_arriving import request

names = st.sampled_from(["", "A", "HOST", "PATH_INFO", "QUERY_STRING", "caf\xe9", "L" * 200])
values = st.sampled_from(["", "/", "/x", "\x04\x01HOSTx", "caf\xe9", "v" * 127, "v" * 128])
#: In any order, and the same name more than once.
requests = st.lists(st.tuples(names, values), min_size=1, max_size=12)

SERVER = {"DOCUMENT_ROOT": "/srv/www", "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_SOFTWARE": "nginx/1.22.1"}
CLIENT = {"HTTP_HOST": "shop.example", "HTTP_USER_AGENT": "curl"}


def parameters(path: str, port: int, **more: str) -> dict[str, str]:
    return {"REQUEST_METHOD": "GET", "PATH_INFO": path, **SERVER, "REMOTE_PORT": str(port), **CLIENT, **more}


def wire_of(pairs: list[tuple[str, str]]) -> bytes:
    return encode_pairs((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs)


@given(st.lists(requests, min_size=1, max_size=6))
@settings(deadline=None)
def test_a_request_is_the_same_whatever_came_before_it(history: list[list[tuple[str, str]]]) -> None:
    common = Common()
    for pairs in history * 2:
        content, found, expected = wire_of(pairs), {"ours": "stays"}, {"ours": "stays"}
        decode_parameters(content, 0, len(content), found, common.runs)
        decode_parameters(content, 0, len(content), expected)
        assert found == expected == {"ours": "stays", **dict(pairs)}
        common.learn(content)


@given(st.lists(requests, min_size=2, max_size=4), st.integers(0))
@settings(deadline=None)
def test_what_is_cut_off_is_refused_whatever_came_before_it(history: list[list[tuple[str, str]]], cut: int) -> None:
    common = Common()
    for pairs in history * 2:
        common.learn(wire_of(pairs))
    content = wire_of(history[-1])
    content = content[: cut % len(content)]

    def outcome(common: Common) -> object:
        found: dict[str, str] = {}
        try:
            decode_parameters(content, 0, len(content), found, common.runs)
        except ProtocolError:
            return "refused"
        return found

    assert outcome(common) == outcome(Common())


def test_runs_are_learnt_from_two_requests_and_then_now_and_again() -> None:
    common = Common()
    for number in range(2 * SOON):
        assert not common.runs
        found: dict[str, str] = {}
        assert read_whole(request(parameters(f"/{number}", number)), found, common) is not None
        assert found == parameters(f"/{number}", number)
    assert {before: said for before, (_, said) in common.runs.items()} == {"PATH_INFO": SERVER, "REMOTE_PORT": CLIENT}
    for number in range(2 * LATER):
        found = {}
        read_whole(request(parameters("/", number, HTTP_HOST="other")), found, common)
        assert found == parameters("/", number, HTTP_HOST="other")
    assert common.runs["REMOTE_PORT"][1]["HTTP_HOST"] == "other"


@pytest.mark.parametrize("pairs", [{"HTTP_COOKIE": "x" * LONGEST}, {f"X{n}": "y" * 100 for n in range(99)}])
def test_no_more_is_held_than_a_request_of_a_usual_size(pairs: dict[str, str]) -> None:
    common = Common()
    for _ in range(4):
        common.learn(wire_of(list(pairs.items())))
    assert not common.runs
    for number in range(1000):
        common.learn(wire_of([(f"X{number}", "y"), (f"Y{number}", "y"), ("Z", "z")]))
    assert not common.runs
    assert len(common._known) == 3
