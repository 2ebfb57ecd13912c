"""How a worker's log names a request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.worker.asking import SHOWN, asked


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"REQUEST_METHOD": "GET", "REQUEST_URI": "/a%20b?c=%0A", "PATH_INFO": "/a b"}, "GET /a%20b?c=%0A"),
        (
            {"REQUEST_METHOD": "POST", "SCRIPT_NAME": "/s", "PATH_INFO": "/x", "QUERY_STRING": "a=1"},
            "POST /s/x?a=1",
        ),
        ({"REQUEST_METHOD": "GET", "PATH_INFO": "/a\nERROR forged", "QUERY_STRING": ""}, r"GET /a\nERROR forged"),
        ({}, "- -"),
        ({"REQUEST_METHOD": "GET", "REQUEST_URI": "/" + "x" * 9000}, "GET /" + "x" * (SHOWN - 1) + "..."),
    ],
)
def test_a_request_is_named_by_its_method_and_uri(params: dict[str, str], said: str) -> None:
    assert asked(params) == said


@given(st.dictionaries(st.sampled_from(["REQUEST_METHOD", "REQUEST_URI", "SCRIPT_NAME", "PATH_INFO"]), st.text()))
def test_whatever_a_client_sends_is_one_printable_line(params: dict[str, str]) -> None:
    assert asked(params).isprintable()
