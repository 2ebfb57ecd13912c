"""A server's answer as events: found across any cut, refused where it is none, in bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.fastcgi.records import ProtocolError, RecordType, encode_record, encode_stream, end_request
from fcgimgr.fastcgi.response import MAX_HEAD, Body, End, Event, Head, ResponseReader, Stderr, parse_head


def stdout(content: bytes) -> bytes:
    return encode_record(RecordType.STDOUT, 1, content)


def merged(events: list[Event]) -> list[Event]:
    """Neighbouring bodies as one: how a body is cut is not part of the promise."""
    out: list[Event] = []
    for event in events:
        if out and isinstance(event, Body) and isinstance(out[-1], Body):
            out[-1] = Body(out[-1].content + event.content)
        else:
            out.append(event)
    return out


@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
def test_head_and_body_are_found_wherever_records_and_reads_are_cut(newline: bytes) -> None:
    answer = newline.join([b"Status: 404 Not Found", b"X-A: 1", b"X-A: 2", b"", b"gone"])
    expected = [Head(404, (("X-A", "1"), ("X-A", "2"))), Body(b"gone"), End(0, 0)]
    for cut in range(1, len(answer)):
        wire = stdout(answer[:cut]) + stdout(answer[cut:]) + stdout(b"") + end_request(1)
        reader = ResponseReader()
        events = [event for byte in wire for event in reader.receive(bytes([byte]))]
        assert merged(events) == expected, cut
        assert reader.ended
        reader.eof()


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (b"Status: 201", 201),
        (b"status: 503 Try later", 503),
        (b"Content-Type: text/plain", 200),
        (b"Location: /elsewhere", 302),
        (b"Location: /elsewhere\r\nStatus: 301 Moved", 301),
    ],
)
def test_the_status_is_said_or_follows_from_the_headers(block: bytes, status: int) -> None:
    assert parse_head(block).status == status


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        (b"no colon here", "no header"),
        (b"Status: 200 OK\r\n folded", "no header"),
        (b"Sta tus: 1", "no header"),
        (b": empty", "no header"),
        (b"Status: 99", "no valid status"),
        (b"Status: 2000", "no valid status"),
        (b"Status: OK", "no valid status"),
        (b"Status: ", "no valid status"),
        (b"X: a\rb", "control character"),
        (b"X: a\0b", "control character"),
    ],
)
def test_a_header_that_is_none_is_refused(block: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        parse_head(block)


def test_stderr_comes_as_it_is_sent_also_before_the_head() -> None:
    wire = encode_record(RecordType.STDERR, 1, b"warning") + stdout(b"A: b\n\n") + end_request(1, 3)
    assert ResponseReader().receive(wire) == [Stderr(b"warning"), Head(200, (("A", "b"),)), End(3, 0)]


def test_other_requests_and_unknown_types_are_passed_over() -> None:
    noise = encode_record(RecordType.STDOUT, 2, b"not ours") + encode_record(99, 1, b"?") + encode_record(11, 0, b"?")
    wire = noise + stdout(b"A: b\n\n") + noise + end_request(2) + end_request(1) + stdout(b"late")
    assert ResponseReader().receive(wire) == [Head(200, (("A", "b"),)), End(0, 0)]


def test_an_end_without_any_output_is_an_answer_because_overloaded_has_no_other() -> None:
    assert ResponseReader().receive(end_request(1, 0, 2)) == [End(0, 2)]


@pytest.mark.parametrize(
    ("sent", "where"),
    [
        (b"", "without a response"),
        (stdout(b"Status: 2"), "in the middle of its response header"),
        (stdout(b"A: b\n\nbo"), "in the middle of its response"),
        (stdout(b"A: b\n\nbody") + stdout(b""), "in the middle of its response"),
    ],
)
def test_an_end_of_file_before_the_end_is_an_error_that_says_where(sent: bytes, where: str) -> None:
    reader = ResponseReader()
    reader.receive(sent)
    with pytest.raises(ProtocolError, match=f"{where}$"):
        reader.eof()
    with pytest.raises(ProtocolError):
        reader.receive(end_request(1))


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (stdout(b"\r\nbody"), "empty line"),
        (stdout(b"Half: a head") + end_request(1), "middle of its header"),
        (encode_stream(RecordType.STDOUT, 1, b"A: " + b"x" * MAX_HEAD), "longer than"),
        (encode_record(RecordType.END_REQUEST, 1, b"short"), "END_REQUEST"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "not FastCGI"),
    ],
)
def test_what_is_no_answer_is_an_error_and_stays_one(sent: bytes, complaint: str) -> None:
    reader = ResponseReader()
    for _ in range(2):
        with pytest.raises(ProtocolError, match=complaint):
            reader.receive(sent)


record_like = st.builds(
    encode_record,
    st.sampled_from([3, 6, 6, 6, 7, 11, 200]),
    st.sampled_from([0, 1, 1, 1, 2]),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([bytes(8), b"", b"\n", b"\r\n", b"\r\n\r\n", b"A: b\n\n", b"Status: 200 OK\r\n"]),
    ),
)


@given(st.lists(st.one_of(record_like, st.binary(max_size=60)), max_size=12), st.integers(1, 50))
def test_any_bytes_in_any_split_give_events_in_order_or_an_error_in_bounded_memory(
    pieces: list[bytes], step: int
) -> None:
    reader = ResponseReader(max_head=100)
    wire = b"".join(pieces)
    events: list[Event] = []
    try:
        for at in range(0, len(wire), step):
            events += reader.receive(wire[at : at + step])
            assert len(reader._records._buffer) <= 8 + 65535 + 255
            assert reader._head is None or len(reader._head) <= 100
        reader.eof()
    except ProtocolError:
        pass
    kinds = [type(event) for event in events if not isinstance(event, Stderr)]
    assert kinds.count(Head) <= 1
    assert kinds.count(End) <= 1
    assert Head not in kinds or kinds[0] is Head
    assert Body not in kinds or Head in kinds
    assert End not in kinds or kinds[-1] is End


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_a_body_of_any_bytes_comes_through_whole(body: bytes, step: int) -> None:
    reader = ResponseReader()
    wire = encode_stream(RecordType.STDOUT, 1, b"Status: 200 OK\r\n\r\n" + body) + end_request(1)
    events = [event for at in range(0, len(wire), step) for event in reader.receive(wire[at : at + step])]
    assert merged(events) == [Head(200, ()), *([Body(body)] if body else []), End(0, 0)]
