"""Records and name-value pairs: what is written is read back, in any split; what is no FastCGI is refused."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.fastcgi.records import (
    MAX_CONTENT,
    PairStream,
    ProtocolError,
    ProtocolStatus,
    Record,
    RecordReader,
    RecordType,
    Role,
    begin_request,
    decode_begin_request,
    decode_end_request,
    decode_pairs,
    encode_pairs,
    encode_record,
    encode_stream,
    end_request,
)

records = st.builds(Record, type=st.integers(0, 255), request_id=st.integers(0, 65535), content=st.binary(max_size=300))


def split(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(edges)]


def test_a_record_is_on_the_wire_as_the_specification_shows_it() -> None:
    assert encode_record(RecordType.STDOUT, 0x0102, b"abc") == bytes.fromhex("0106010200030500") + b"abc" + bytes(5)
    assert begin_request(1, Role.RESPONDER, keep_connection=True) == bytes.fromhex("01010001000800000001010000000000")
    assert end_request(1, 7, ProtocolStatus.OVERLOADED) == bytes.fromhex("01030001000800000000000702000000")


@given(st.lists(records, max_size=8), st.lists(st.integers(0), max_size=12))
def test_records_come_out_as_they_went_in_however_the_bytes_are_cut(sent: list[Record], cuts: list[int]) -> None:
    reader = RecordReader()
    wire = b"".join(encode_record(*record) for record in sent)
    received = [record for piece in split(wire, cuts) for record in reader.feed(piece)]
    assert received == sent
    assert reader.between_records


@given(st.integers(0, 255), st.binary(max_size=40))
def test_padding_of_any_length_is_passed_over(padding: int, content: bytes) -> None:
    wire = struct.pack(">BBHHBB", 1, 6, 1, len(content), padding, 0) + content + b"x" * padding
    reader = RecordReader()
    assert [r for byte in wire for r in reader.feed(bytes([byte]))] == [Record(6, 1, content)]


def test_the_largest_record_passes_and_a_larger_one_cannot_be_made() -> None:
    (record,) = RecordReader().feed(encode_record(RecordType.STDIN, 1, bytes(MAX_CONTENT)))
    assert len(record.content) == MAX_CONTENT
    with pytest.raises(ValueError, match="at most 65535"):
        encode_record(RecordType.STDIN, 1, bytes(MAX_CONTENT + 1))


@given(st.integers(0, 200_000))
def test_a_stream_is_cut_into_records_without_loss_and_without_an_early_end(length: int) -> None:
    content = bytes(length)
    out = RecordReader().feed(encode_stream(RecordType.STDIN, 1, content))
    assert b"".join(r.content for r in out) == content
    assert all(r.content for r in out)


@given(st.lists(st.binary(max_size=2000), max_size=20))
def test_any_bytes_in_any_split_give_records_or_an_error_in_bounded_memory(pieces: list[bytes]) -> None:
    reader = RecordReader()
    try:
        for piece in pieces:
            for record in reader.feed(piece):
                assert isinstance(record, Record)
            assert len(reader._buffer) <= 8 + 65535 + 255
    except ProtocolError:
        with pytest.raises(ProtocolError):
            reader.feed(b"")
        assert reader._buffer == b""


def test_another_version_is_refused_and_the_refusal_stays() -> None:
    reader = RecordReader()
    with pytest.raises(ProtocolError, match="version 72"):
        reader.feed(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(ProtocolError, match="version 72"):
        reader.feed(encode_record(RecordType.STDOUT, 1, b"ok"))


pairs = st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=200)), max_size=10)


@given(pairs)
def test_pairs_come_out_as_they_went_in(sent: list[tuple[bytes, bytes]]) -> None:
    assert decode_pairs(encode_pairs(sent)) == sent


@pytest.mark.parametrize("length", [0, 1, 127, 128, 255, 65536, 100_000])
def test_pairs_of_every_length_form_are_read_back(length: int) -> None:
    sent = [(b"N" * length, b"v" * length), (b"A", b"b")]
    assert decode_pairs(encode_pairs(sent)) == sent


@given(st.binary(max_size=300))
def test_any_bytes_give_pairs_or_an_error(content: bytes) -> None:
    try:
        decoded = decode_pairs(content)
    except ProtocolError:
        return
    assert sum(len(name) + len(value) for name, value in decoded) <= len(content)


@given(pairs.filter(bool), st.data())
def test_pairs_that_are_cut_off_are_an_error_unless_the_cut_is_between_two(
    sent: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    wire = encode_pairs(sent)
    cut = wire[: data.draw(st.integers(0, len(wire) - 1))]
    whole = [encode_pairs(sent[:count]) for count in range(len(sent))]
    if cut in whole:
        assert decode_pairs(cut) == sent[: whole.index(cut)]
    else:
        with pytest.raises(ProtocolError, match="cut off"):
            decode_pairs(cut)


@given(pairs, st.lists(st.integers(0), max_size=6))
def test_a_pair_may_lie_across_two_records(sent: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    stream = PairStream()
    for piece in split(encode_pairs(sent), cuts):
        stream.add(piece)
    assert stream.pairs() == sent


def test_parameters_above_the_limit_are_an_error_and_are_not_kept() -> None:
    stream = PairStream(limit=100)
    stream.add(bytes(60))
    with pytest.raises(ProtocolError, match="longer than 100 bytes"):
        stream.add(bytes(41))
    assert len(stream._joined) == 60


def test_the_bodies_of_begin_and_end_are_checked_for_their_length() -> None:
    assert decode_begin_request(bytes.fromhex("0001010000000000")) == (Role.RESPONDER, True)
    assert decode_end_request(bytes.fromhex("ffffffff03000000")) == (0xFFFFFFFF, ProtocolStatus.UNKNOWN_ROLE)
    with pytest.raises(ProtocolError, match="BEGIN_REQUEST holds 7 bytes"):
        decode_begin_request(bytes(7))
    with pytest.raises(ProtocolError, match="END_REQUEST holds 9 bytes"):
        decode_end_request(bytes(9))
