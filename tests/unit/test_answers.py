"""Looking on at a connection: what is seen of its answers depends on no split of the bytes, and none raises."""

from collections.abc import Iterable
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.answers import fastcgi, http
from fcgimgr.answers.conversation import Conversation, State
from fcgimgr.fastcgi.records import RecordType, begin_request, encode_record, encode_stream, end_request

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")
POST = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nx=y"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

bodies = st.binary(max_size=40) | st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", OK, b"HTTP/1.1 200 OK\r\n\r\n"])


def chunked(pieces: Iterable[bytes], trailer: bytes = b"") -> bytes:
    body = b"".join(b"%X;a=b\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
    return CHUNKED + body + b"0\r\n" + trailer + b"\r\n"


http_answers = st.one_of(
    bodies.map(lambda body: b"HTTP/1.1 200 OK\r\ncontent-LENGTH: %d\r\nA: b\r\n\r\n%s" % (len(body), body)),
    st.lists(bodies, max_size=3).map(chunked),
    st.lists(bodies, max_size=3).map(lambda pieces: chunked(pieces, b"Sum: 1\r\n")),
    st.sampled_from(
        [
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.0 304 Not Modified\r\nContent-Length: 100\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK,
            b"HTTP/1.1 200\nContent-Length: 2\n\nok",
        ]
    ),
)
cuts = st.lists(st.integers(0, 400), max_size=8)


def cut(whole: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(min(each, len(whole)) for each in at), len(whole)]
    return [whole[begin:end] for begin, end in pairwise(places)]


# -- HTTP


@given(st.lists(http_answers, min_size=1, max_size=4), cuts)
def test_each_http_answer_ends_where_it_ends_in_any_split(answers: list[bytes], at: list[int]) -> None:
    ends = list(accumulate(map(len, answers)))
    seen = http.Messages(answers=True)
    count = 0
    for piece in cut(b"".join(answers), at):
        seen.feed(piece)
        count += len(piece)
        assert seen.ended == sum(end <= count for end in ends)
    assert seen.is_between


@given(
    st.binary(max_size=200) | st.builds(lambda a, b: a + b, http_answers, st.binary(max_size=60)), cuts, st.booleans()
)
def test_whatever_comes_is_seen_alike_in_any_split(whole: bytes, at: list[int], answers: bool) -> None:
    at_once, in_pieces = http.Messages(answers=answers), http.Messages(answers=answers)
    at_once.feed(whole)
    for piece in cut(whole, at):
        in_pieces.feed(piece)
    assert (at_once.at, at_once.ended, at_once.asked) == (in_pieces.at, in_pieces.ended, in_pieces.asked)


@pytest.mark.parametrize(
    ("answer", "at"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", http.At.UPGRADED),
        (b"HTTP/1.0 200 OK\r\n\r\n", http.At.REST),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", http.At.REST),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\nContent-Length: 3\r\n\r\n", http.At.CHUNK_SIZE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", http.At.BODY),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", http.At.LOST),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n", http.At.LOST),
        (b"HTTP/2 200 OK\r\n\r\n", http.At.LOST),
        (CHUNKED + b"zz\r\n", http.At.LOST),
        (CHUNKED + b"1\r\nabc\r\n", http.At.LOST),
    ],
)
def test_what_an_answer_is(answer: bytes, at: http.At) -> None:
    seen = http.Messages(answers=True)
    seen.feed(answer)
    assert seen.at is at
    assert not seen.ended


def test_a_body_need_not_be_seen() -> None:
    seen = http.Messages(answers=True)
    seen.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nabc")
    assert seen.opaque == 999_997
    seen.skip(999_997)
    assert (seen.ended, seen.is_between) == (1, True)
    seen.skip(1)
    assert seen.at is http.At.LOST


# -- FastCGI

record_lists = st.lists(
    st.one_of(
        st.binary(max_size=30).map(lambda body: encode_stream(RecordType.STDOUT, 1, body)),
        st.just(encode_record(RecordType.STDERR, 1, b"oh")),
        st.just(end_request(1)),
    ),
    min_size=1,
    max_size=6,
)


@given(record_lists, cuts)
def test_each_request_ends_with_its_record_in_any_split(records: list[bytes], at: list[int]) -> None:
    ends = list(accumulate(map(len, records)))
    seen = fastcgi.Records(answers=True)
    count = 0
    for piece in cut(b"".join(records), at):
        seen.feed(piece)
        count += len(piece)
        ended = any(end <= count and record == end_request(1) for record, end in zip(records, ends, strict=True))
        assert bool(seen.ended) == ended
    assert seen.is_between


@given(st.binary(max_size=200), cuts, st.booleans())
def test_what_is_no_fastcgi_is_lost_and_raises_nothing(whole: bytes, at: list[int], answers: bool) -> None:
    at_once, in_pieces = fastcgi.Records(answers=answers), fastcgi.Records(answers=answers)
    at_once.feed(whole)
    for piece in cut(whole, at):
        in_pieces.feed(piece)
    assert at_once.is_lost == in_pieces.is_lost
    assert (at_once.begun, at_once.ended) == (in_pieces.begun, in_pieces.ended)


# -- Both, in a conversation


class Seen:
    """A conversation fed with bytes."""

    def __init__(self) -> None:
        self.conversation = Conversation()

    def came(self, *pieces: bytes) -> State:
        for piece in pieces:
            self.conversation.came(len(piece), lambda at, count, piece=piece: piece[at : at + count])
        return self.conversation.state

    def would(self, piece: bytes) -> bool:
        return self.conversation.would_be_answered(len(piece), lambda at, count: piece[at : at + count])

    def sent(self, *pieces: bytes) -> State:
        for piece in pieces:
            expected = self.would(piece)
            self.conversation.sent(len(piece), lambda at, count, piece=piece: piece[at : at + count])
            assert expected == (self.conversation.state is State.ANSWERED)
        return self.conversation.state


def test_a_request_is_in_hand_until_its_answer_is_whole() -> None:
    seen = Seen()
    assert seen.conversation.state is State.UNKNOWN
    assert seen.came(POST[:-1]) is State.IN_USE
    assert seen.came(POST[-1:]) is State.IN_USE
    assert seen.sent(OK[:-1]) is State.IN_USE
    assert seen.sent(OK[-1:]) is State.ANSWERED
    assert seen.came(GET) is State.IN_USE
    assert seen.sent(CHUNKED, b"2\r\nok\r\n") is State.IN_USE
    assert seen.sent(b"0\r\n\r\n") is State.ANSWERED


def test_an_answer_to_a_head_request_has_no_body() -> None:
    seen = Seen()
    seen.came(HEAD)
    assert seen.sent(OK[:-2]) is State.ANSWERED


def test_an_answer_to_a_head_request_that_nobody_saw_ends_with_the_next_request() -> None:
    seen = Seen()
    assert seen.sent(OK[:-2]) is State.IN_USE
    assert seen.came(GET) is State.IN_USE
    assert seen.sent(OK) is State.ANSWERED


def test_requests_sent_ahead_are_in_hand() -> None:
    seen = Seen()
    seen.came(GET + GET)
    assert seen.sent(OK) is State.IN_USE
    assert seen.sent(OK) is State.ANSWERED


def test_an_answer_before_the_whole_request_has_come_leaves_it_in_hand() -> None:
    seen = Seen()
    seen.came(POST[:-1])
    assert seen.sent(OK) is State.IN_USE


@pytest.mark.parametrize("middle", [b"half an answer", b"Half an answer", b"\x01\x02of a record", b"\x00\x00\x12\x04"])
def test_what_is_met_in_its_midst_is_unknown_until_the_next_request(middle: bytes) -> None:
    seen = Seen()
    assert seen.sent(middle) is State.UNKNOWN
    assert seen.came(GET) is State.IN_USE
    assert seen.sent(OK) is State.ANSWERED


def test_the_whole_answer_to_a_request_that_nobody_saw_is_one() -> None:
    assert Seen().sent(OK[:20], OK[20:]) is State.ANSWERED


def test_a_websocket_is_in_use_for_good() -> None:
    seen = Seen()
    seen.came(GET)
    seen.sent(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    assert seen.sent(b"\x81\x02hi") is State.IN_USE
    assert seen.came(b"\x81\x02hi") is State.IN_USE


def test_a_fastcgi_request_is_in_hand_until_its_end() -> None:
    asked = begin_request(1, keep_connection=True) + encode_record(RecordType.PARAMS, 1)
    seen = Seen()
    assert seen.came(asked) is State.IN_USE
    assert seen.sent(encode_stream(RecordType.STDOUT, 1, b"ok")) is State.IN_USE
    assert seen.came(encode_record(RecordType.STDIN, 1)) is State.IN_USE
    assert seen.sent(end_request(1)) is State.ANSWERED
    assert seen.came(asked, asked.replace(b"\x01\x01\x00\x01", b"\x01\x01\x00\x02")) is State.IN_USE
    assert seen.sent(end_request(1)) is State.IN_USE, "another one on the same connection"
    assert seen.sent(end_request(2)) is State.ANSWERED


def test_the_end_of_a_fastcgi_answer_that_was_met_in_its_midst_is_known() -> None:
    seen = Seen()
    assert seen.sent(b"of a record") is State.UNKNOWN
    assert seen.sent(b"and more of it." + end_request(1)) is State.ANSWERED


def test_what_cannot_be_seen_is_unknown_unless_it_does_not_matter() -> None:
    seen = Seen()
    seen.came(GET)
    seen.sent(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    seen.conversation.sent(10, lambda at, count: b"")
    assert seen.conversation.state is State.ANSWERED
    seen.came(GET)
    seen.conversation.sent(10, lambda at, count: b"")
    assert seen.conversation.state is State.UNKNOWN


@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=60) | st.sampled_from([GET, POST, OK, CHUNKED])), max_size=8)
)
def test_no_conversation_raises(pieces: list[tuple[bool, bytes]]) -> None:
    seen = Seen()
    for came, piece in pieces:
        if came:
            seen.came(piece)
        elif piece:
            seen.sent(piece)


# -- what a server costs that wants to keep us busy


class Wire:
    """A call that sends `whole`, of which single pieces are read; `piece`: the most that a buffer holds."""

    def __init__(self, whole: bytes, piece: int = 1 << 30) -> None:
        self.whole = whole
        self.reads = 0
        self._piece = piece

    def read(self, at: int, count: int) -> bytes:
        self.reads += 1
        return self.whole[at : at + min(count, self._piece)]


@pytest.mark.parametrize(
    "answer", [chunked([b"x" * 10_000_000] * 2), OK.replace(b": 2", b": 2000000") + b"x" * 1_999_998]
)
def test_a_large_answer_is_skipped_and_not_read(answer: bytes) -> None:
    wire, conversation = Wire(answer), Conversation()
    assert conversation.would_be_answered(len(answer), wire.read)
    conversation.sent(len(answer), wire.read)
    assert conversation.state is State.ANSWERED
    assert wire.reads < 20


def test_one_in_countless_pieces_is_given_up() -> None:
    wire, conversation = Wire(chunked([b"x"] * 100_000), piece=1), Conversation()
    conversation.sent(len(wire.whole), wire.read)
    assert conversation.state is State.UNKNOWN
    assert wire.reads < 300
    conversation.sent(len(OK), Wire(OK).read)
    assert conversation.state is State.ANSWERED


def test_requests_without_an_answer_are_not_counted_for_ever() -> None:
    conversation = Conversation()
    for _ in range(200):
        conversation.came(100 * len(GET), Wire(GET * 100).read)
    assert conversation.state is State.IN_USE
    conversation.sent(2000 * len(OK), Wire(OK * 2000).read)  # else 20,000 were waited for
    conversation.came(len(GET), Wire(GET).read)
    conversation.sent(len(OK), Wire(OK).read)
    assert conversation.state is State.ANSWERED
