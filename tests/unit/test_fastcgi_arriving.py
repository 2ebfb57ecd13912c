"""A request as it comes to a server: the same in one piece and in any other, and nothing that is sent does harm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.fastcgi.arriving import Arrival, decode_parameters, read_whole
from fcgimgr.fastcgi.common import Common
from fcgimgr.fastcgi.records import (
    ProtocolError,
    ProtocolStatus,
    RecordType,
    Role,
    begin_request,
    encode_pairs,
    encode_record,
    encode_stream,
    end_request,
)
from tests.unit.test_fastcgi_records import split

latin = st.text(st.characters(max_codepoint=255), max_size=300)
parameters = st.dictionaries(latin, latin, max_size=8)


def request(pairs: dict[str, str], body: bytes = b"", *, of: int = 1, keep: bool = True) -> bytes:
    params = encode_pairs((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs.items())
    return (
        begin_request(of, keep_connection=keep)
        + encode_stream(RecordType.PARAMS, of, params)
        + encode_record(RecordType.PARAMS, of)
        + encode_stream(RecordType.STDIN, of, body)
        + encode_record(RecordType.STDIN, of)
    )


@given(parameters, st.booleans())
def test_the_usual_shape_is_read_in_one_pass(pairs: dict[str, str], keep: bool) -> None:
    found = {"ours": "stays"}
    flags = read_whole(request(pairs, keep=keep), found, Common())
    if pairs:
        assert flags == keep
        assert found == {"ours": "stays", **pairs}
    else:
        assert flags is None


@given(parameters, st.binary(max_size=200), st.integers(1, 65535), st.lists(st.integers(0), max_size=12))
def test_a_request_is_the_same_however_its_bytes_are_cut(
    pairs: dict[str, str], body: bytes, of: int, cuts: list[int]
) -> None:
    arrival = Arrival({})
    for piece in split(request(pairs, body, of=of, keep=False), cuts):
        arrival.feed(piece)
    assert arrival.parameters == pairs
    assert b"".join(arrival.body) == body
    assert arrival.body_length == len(body)
    assert (arrival.request_id, arrival.body_ended, arrival.keep) == (of, True, False)
    arrival.over()
    assert arrival.between_requests
    assert arrival.replies == []


def test_the_parameters_of_each_request_are_put_into_a_copy_of_their_own() -> None:
    arrival = Arrival({})
    ours = {"ours": "stays"}
    for pairs in ({"a": "b"}, {"c": "d"}):
        for piece in split(request(pairs, b"", of=1, keep=True), [20, 30]):
            arrival.feed(piece, ours)
        assert arrival.parameters == {"ours": "stays", **pairs}
        arrival.over()
    assert ours == {"ours": "stays"}


@given(st.lists(st.integers(0), max_size=30))
def test_parameters_may_lie_across_records(cuts: list[int]) -> None:
    pairs = {f"name{number}": "v" * number for number in range(0, 300, 60)}
    joined = encode_pairs((name.encode(), value.encode()) for name, value in pairs.items())
    arrival = Arrival({})
    arrival.feed(begin_request(3))
    for piece in split(joined, cuts):
        if piece:
            arrival.feed(encode_record(RecordType.PARAMS, 3, piece))
    assert arrival.parameters is None
    arrival.feed(encode_record(RecordType.PARAMS, 3))
    assert arrival.parameters == pairs


@given(parameters, st.binary(max_size=60), st.lists(st.integers(0), max_size=6))
def test_requests_sent_ahead_wait_for_their_turn(pairs: dict[str, str], body: bytes, cuts: list[int]) -> None:
    arrival = Arrival({})
    wire = request(pairs, body) + request({"second": "2"})
    for piece in split(wire, cuts):
        arrival.feed(piece)
    assert arrival.parameters == pairs
    assert b"".join(arrival.body) == body
    arrival.over()
    arrival.feed(b"")
    assert arrival.parameters == {"second": "2"}
    assert arrival.body_ended


@given(st.lists(st.integers(0), max_size=6), st.booleans())
def test_the_rest_of_a_body_whose_request_is_over_is_passed_over_and_counted(cuts: list[int], ended: bool) -> None:
    """As it is when the answer came before the end of the body, whether the peer then sends that end or not."""
    arrival = Arrival({})
    arrival.feed(request({"a": "b"}, b"first")[: -len(encode_record(RecordType.STDIN, 1))])
    arrival.over()
    rest = encode_record(RecordType.STDIN, 1, b"rest") + (encode_record(RecordType.STDIN, 1) if ended else b"")
    for piece in split(rest, cuts):
        arrival.feed(piece)
    assert arrival.between_requests
    assert (arrival.passed_over, list(arrival.body)) == (4, [])
    arrival.feed(request({"second": "2"}))
    assert (arrival.parameters, arrival.body_ended, arrival.passed_over) == ({"second": "2"}, True, 0)


noise = st.one_of(
    st.binary(max_size=80),
    st.builds(encode_record, st.integers(0, 12), st.integers(0, 2), st.binary(max_size=30)),
    st.sampled_from([request({"a": "b"}), begin_request(1), begin_request(2, 9), encode_record(4, 1)]),
)


@given(st.lists(noise, max_size=8), st.lists(st.integers(0), max_size=8))
def test_whatever_is_sent_is_read_alike_in_any_split_or_refused(pieces: list[bytes], cuts: list[int]) -> None:
    """Hypothesis as the attacker: no exception but ProtocolError, and the outcome is no matter of timing."""

    def outcome(parts: list[bytes]) -> object:
        arrival = Arrival({})
        try:
            for part in parts:
                arrival.feed(part)
        except ProtocolError:
            return "refused"
        return arrival.parameters, b"".join(arrival.body), arrival.aborted, arrival.replies, arrival.rest

    wire = b"".join(pieces)
    assert outcome([wire]) == outcome(split(wire, cuts))


@given(st.binary(max_size=60))
def test_any_bytes_for_parameters_are_pairs_or_refused(content: bytes) -> None:
    found: dict[str, str] = {}
    try:
        decode_parameters(content, 0, len(content), found)
    except ProtocolError:
        return
    assert len(found) <= len(content)


@given(st.binary(min_size=24, max_size=200))
def test_any_bytes_in_one_piece_are_no_harm(wire: bytes) -> None:
    opening = request({"a": "b"})[:24]
    for attempt in (wire, opening + wire):
        try:
            read_whole(attempt, {}, Common())
        except ProtocolError:
            continue


def test_what_the_application_is_not_asked_about_is_answered() -> None:
    arrival = Arrival({b"FCGI_MAX_CONNS": b"4", b"FCGI_MPXS_CONNS": b"0"})
    arrival.feed(encode_record(RecordType.GET_VALUES, 0, encode_pairs([(b"FCGI_MAX_CONNS", b""), (b"X", b"")])))
    arrival.feed(encode_record(77, 0, b"what is this"))
    arrival.feed(begin_request(5, Role.AUTHORIZER, keep_connection=True))
    arrival.feed(encode_record(RecordType.PARAMS, 5, b"ignored") + encode_record(RecordType.PARAMS, 5))
    assert arrival.replies == [
        encode_record(RecordType.GET_VALUES_RESULT, 0, encode_pairs([(b"FCGI_MAX_CONNS", b"4")])),
        encode_record(RecordType.UNKNOWN_TYPE, 0, bytes([77, 0, 0, 0, 0, 0, 0, 0])),
        end_request(5, protocol_status=ProtocolStatus.UNKNOWN_ROLE),
    ]
    assert arrival.between_requests


def test_a_request_cannot_be_begun_without_a_number_and_nothing_of_it_is_kept() -> None:
    arrival = Arrival({})
    for _ in range(100):
        arrival.feed(encode_record(RecordType.BEGIN_REQUEST, 0, bytes(65535)))
    assert arrival.replies == [encode_record(RecordType.UNKNOWN_TYPE, 0, bytes([1, 0, 0, 0, 0, 0, 0, 0]))] * 100
    assert held_by(arrival) < 10_000
    arrival.feed(request({"a": "b"}))
    assert arrival.parameters == {"a": "b"}


@pytest.mark.parametrize("kind", range(13))
@pytest.mark.parametrize("of", [0, 1])
def test_no_record_is_kept_that_nobody_wants(kind: int, of: int) -> None:
    """Whatever stands on the wire before the request: the memory does not grow with it."""
    arrival = Arrival({})
    for _ in range(4):
        try:
            arrival.feed(encode_record(kind, of, bytes(60_000)))
        except ProtocolError:
            return
        arrival.replies.clear()
    assert held_by(arrival) < 70_000


def held_by(arrival: Arrival) -> int:
    """Bytes that it keeps, but for its replies, which are sent."""
    found = [value for value in vars(arrival).values() if isinstance(value, (bytes, bytearray))]
    return sum(map(len, found)) + len(arrival._pairs.joined()) + sum(map(len, arrival.body))


def test_a_second_request_at_the_same_time_is_refused_and_the_first_goes_on() -> None:
    arrival = Arrival({})
    arrival.feed(begin_request(1, keep_connection=True) + begin_request(2) + request({"a": "b"})[16:])
    assert arrival.replies == [end_request(2, protocol_status=ProtocolStatus.CANT_MPX_CONN)]
    assert arrival.parameters == {"a": "b"}
    assert arrival.keep


@pytest.mark.parametrize("records", [1, 2, 3, 4])
def test_a_request_may_be_aborted_after_any_record(records: int) -> None:
    pieces = [
        begin_request(1),
        encode_record(RecordType.PARAMS, 1, encode_pairs([(b"a", b"b")])),
        encode_record(RecordType.PARAMS, 1),
        encode_record(RecordType.STDIN, 1, b"body"),
        encode_record(RecordType.STDIN, 1),
    ]
    arrival = Arrival({})
    arrival.feed(
        b"".join(pieces[:records]) + encode_record(RecordType.ABORT_REQUEST, 1) + request({"next": "1"}, keep=False)
    )
    assert arrival.aborted
    arrival.over()
    arrival.feed(b"")
    assert arrival.parameters == {"next": "1"}


def test_parameters_have_a_limit() -> None:
    arrival = Arrival({}, max_parameters=1000)
    arrival.feed(begin_request(1) + encode_record(RecordType.PARAMS, 1, bytes(100)) * 10)
    with pytest.raises(ProtocolError, match="longer than 1000 bytes"):
        arrival.feed(encode_record(RecordType.PARAMS, 1, b"x"))


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        encode_record(RecordType.BEGIN_REQUEST, 1, b"short"),
        begin_request(1) * 2,
        begin_request(1) + encode_record(RecordType.STDIN, 1, b"too early"),
        begin_request(1) + encode_record(RecordType.STDIN, 1),
        begin_request(1) + encode_record(RecordType.PARAMS, 1) + encode_record(RecordType.PARAMS, 1, b"\0\0"),
        begin_request(1) + encode_record(RecordType.PARAMS, 1, b"\xff") + encode_record(RecordType.PARAMS, 1),
    ],
)
def test_what_is_no_fastcgi_is_refused(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        Arrival({}).feed(wire)
