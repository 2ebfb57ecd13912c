"""Parting: what a web server is told by, what is said, and when the end of a connection follows on a Unix socket."""

import socket

import pytest

from fcgimgr.fastcgi.records import ProtocolStatus, RecordReader, RecordType, end_request
from fcgimgr.worker import parting as parting_module
from fcgimgr.worker.parting import AT_ONCE, CROSSED_FOR, GOODBYE, LATE_FOR, HangingUp, Parting, last_words, parting_from


@pytest.mark.parametrize(
    ("software", "parting"),
    [
        ("nginx/1.22.1", Parting.RECORD),
        ("openresty/1.25.3.1", Parting.RECORD),
        ("nginx", Parting.RECORD),
        ("HAProxy 2.6.12", Parting.STATUS),
        ("Apache/2.4.71 (Debian)", Parting.END),
        ("h2o/2.2.5", Parting.END),
        ("Somebody/1.0", Parting.END),
        ("", Parting.RECORD),  # nginx says what it is told to say; all others say what they are
    ],
)
def test_a_web_server_is_known_by_its_software(software: str, parting: Parting) -> None:
    assert parting_from(software) is parting


@pytest.mark.parametrize("parting", Parting)
@pytest.mark.parametrize("request_id", [1, 7, 65535])
def test_an_answer_ends_as_it_would_but_for_what_says_that_it_was_the_last(parting: Parting, request_id: int) -> None:
    end = b"some of the answer" + end_request(request_id)
    said = last_words(end, parting)
    if parting is Parting.RECORD:
        assert said == end + GOODBYE
        return
    assert said[:-16] == end[:-16]
    (record,) = RecordReader().feed(said[-16:])
    assert (record.type, record.request_id, record.content[:4]) == (RecordType.END_REQUEST, request_id, bytes(4))
    told = ProtocolStatus.OVERLOADED if parting is Parting.STATUS else ProtocolStatus.REQUEST_COMPLETE
    assert record.content[4] == told


def ends(hanging_up: HangingUp, clock: list[float], *, sent_at: float, took: float) -> bool:
    clock[0] = sent_at
    hanging_up.sending()
    clock[0] += took
    return hanging_up.over()


def test_an_end_that_may_be_late_is_put_off_however_many_answers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(parting_module, "monotonic", lambda: clock[0])
    ours, peers = socket.socketpair()
    with ours, peers:
        hanging_up = HangingUp(ours)
        for answer in range(100):
            assert not ends(hanging_up, clock, sent_at=100 + answer / 101 * LATE_FOR, took=0.001)
        peers.send(b"the next request")
        assert not ends(hanging_up, clock, sent_at=100.5 + LATE_FOR, took=0.001)
        assert ends(hanging_up, clock, sent_at=101 + CROSSED_FOR, took=0.001)
        assert peers.recv(1) == b""


@pytest.mark.parametrize("took", [1e-6, 0.001])
def test_it_comes_at_once_where_it_is_not_late_or_has_been_for_long(
    took: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(parting_module, "monotonic", lambda: clock[0])
    ours, peers = socket.socketpair()
    with ours, peers:
        hanging_up = HangingUp(ours)
        if took > AT_ONCE:
            assert not ends(hanging_up, clock, sent_at=100, took=took)
            clock[0] += LATE_FOR
        assert ends(hanging_up, clock, sent_at=100 + LATE_FOR, took=took)
        assert peers.recv(1) == b""
