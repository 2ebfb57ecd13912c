"""Parting: what a web server is told by, and what is said."""

import pytest

from fcgimgr.fastcgi.records import ProtocolStatus, RecordReader, RecordType, end_request
from fcgimgr.worker.parting import GOODBYE, Parting, last_words, parting_from


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
