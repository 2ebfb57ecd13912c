"""The control socket's codec: nothing a peer sends does more than get an error answer."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.control import codec, messages
from fcgimgr.control.messages import ControlError, Event, Exit, ProcessStatus, ScaleParams, StatusParams


def request(**changed: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {}} | changed).encode()


def refusal(line: bytes) -> ControlError:
    with pytest.raises(ControlError) as caught:
        codec.parse_request(line)
    return caught.value


def test_lines_are_the_same_however_the_bytes_arrive():
    stream = b'{"a":1}\n\n{"b":2}\r\n{"c":3}\n'
    whole = codec.LineReader().feed(stream)
    reader = codec.LineReader()
    assert [line for at in range(len(stream)) for line in reader.feed(stream[at : at + 1])] == whole
    assert whole == [b'{"a":1}', b'{"b":2}', b'{"c":3}']


def test_an_unfinished_line_waits_for_its_end():
    reader = codec.LineReader()
    assert reader.feed(b"abc") == []
    assert reader.feed(b"d\ne") == [b"abcd"]


@pytest.mark.parametrize("stream", [b"x" * 11, b"x" * 11 + b"\n", b"ok\n" + b"x" * 11])
def test_a_line_over_the_limit_is_refused(stream: bytes):
    with pytest.raises(ControlError, match="longer than 10 bytes"):
        codec.LineReader(limit=10).feed(stream)


def test_a_line_of_just_the_limit_is_taken():
    assert codec.LineReader(limit=10).feed(b"x" * 10 + b"\n") == [b"x" * 10]


def test_a_request_comes_out_typed():
    parsed = codec.parse_request(request(method="status", params={"names": ["app"], "detail": False}))
    assert parsed.params == StatusParams(names=("app",), detail=False)
    assert codec.parse_request(request(method="status")).params == StatusParams()


@pytest.mark.parametrize("method", messages.METHODS)
def test_what_the_client_encodes_the_manager_reads(method: str):
    required = {"names": ("app",), "name": "app", "numprocs": "+1", "signal": "HUP", "kind": "live"}
    kind = messages.METHODS[method]
    params = kind(**{field: required[field] for field in kind.__struct_fields__ if field in required})
    (line,) = codec.LineReader().feed(codec.encode_request(7, method, params))
    assert codec.parse_request(line) == messages.Request(id=7, method=method, params=params)


@pytest.mark.parametrize(
    ("line", "code", "id"),
    [
        (b"nonsense", messages.PARSE_ERROR, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"', messages.PARSE_ERROR, None),
        (b'"\xff"', messages.INVALID_REQUEST, None),
        (b"[" * 500_000, messages.INVALID_REQUEST, None),
        (b'{"params":' + b"[" * 500_000, messages.PARSE_ERROR, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":' + b"[" * 400_000, messages.PARSE_ERROR, None),
        (b'{"id":' + b"9" * 5000 + b"}", messages.INVALID_REQUEST, None),
        (b"[]", messages.INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","id":4}', messages.INVALID_REQUEST, 4),
        (b'{"jsonrpc":"2.0","method":"ping"}', messages.INVALID_REQUEST, None),
        (request(jsonrpc="1.0"), messages.INVALID_REQUEST, 1),
        (request(method="reboot"), messages.METHOD_NOT_FOUND, 1),
        (request(params=[1]), messages.INVALID_PARAMS, 1),
        (request(params={"verbose": True}), messages.INVALID_PARAMS, 1),
        (request(method="start", params={}), messages.INVALID_PARAMS, 1),
        (request(method="start", params={"names": []}), messages.INVALID_PARAMS, 1),
        (request(method="stop", params={"names": [""]}), messages.INVALID_PARAMS, 1),
        (request(method="scale", params={"name": "app", "numprocs": "many"}), messages.INVALID_PARAMS, 1),
        (request(method="scale", params={"name": "app", "numprocs": 4}), messages.INVALID_PARAMS, 1),
        (request(method="tail", params={"name": "app", "lines": -1}), messages.INVALID_PARAMS, 1),
        (request(method="probe", params={"kind": "dead"}), messages.INVALID_PARAMS, 1),
    ],
)
def test_a_bad_request_is_named(line: bytes, code: int, id: int | None):
    error = refusal(line)
    assert (error.code, error.id) == (code, id)
    answer = json.loads(codec.encode_refusal(error))
    assert answer["id"] == id
    assert answer["error"]["code"] == code


def test_an_unknown_parameter_is_named():
    assert "`verbose`" in str(refusal(request(params={"verbose": True})))


@given(st.binary())
def test_any_bytes_are_a_request_or_a_control_error(line: bytes):
    try:
        codec.parse_request(line)
    except ControlError:
        return


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
keys = st.sampled_from(["names", "name", "numprocs", "wait", "signal", "lines", "follow", "n", "now", "kind", "detail"])


@given(
    st.fixed_dictionaries(
        {"jsonrpc": st.just("2.0") | json_values},
        optional={
            "id": json_values,
            "method": st.sampled_from(sorted(messages.METHODS)) | json_values,
            "params": st.dictionaries(keys, json_values, max_size=3) | json_values,
        },
    )
)
def test_any_object_is_a_request_or_a_control_error(value: dict[str, object]):
    try:
        codec.parse_request(json.dumps(value).encode())
    except ControlError as error:
        json.loads(codec.encode_refusal(error))


@given(st.binary())
def test_any_bytes_from_a_manager_are_a_message_or_a_control_error(line: bytes):
    try:
        codec.parse_message(line)
    except ControlError:
        return


def test_scale_counts_from_what_there_is():
    assert [ScaleParams(name="app", numprocs=n).target(4) for n in ("2", "+2", "-1", "0")] == [2, 6, 3, 0]


def test_an_event_is_spelt_from_and_to():
    event = Event(time=1.5, kind="process_state", name="app:app_00", from_state="STARTING", to_state="RUNNING")
    line = codec.encode_notification("event", event)
    assert json.loads(line)["params"]["from"] == "STARTING"
    assert codec.parse_message(line) == event


def test_an_exit_is_a_code_or_a_signal():
    assert json.loads(msgspec.json.encode(Exit(signal="SIGKILL"))) == {"signal": "SIGKILL"}
    assert json.loads(msgspec.json.encode(Exit(code=0))) == {"code": 0}


def test_what_is_unknown_is_null():
    shown = json.loads(msgspec.json.encode(ProcessStatus(name="app_00", pid=None, state="STOPPED")))
    assert shown["rss"] is None
    assert shown["busy"] is None


def test_a_newer_managers_notification_and_keys_are_skipped():
    assert codec.parse_message(b'{"jsonrpc":"2.0","method":"weather","params":{"rain":1}}') is None
    line = b'{"jsonrpc":"2.0","method":"progress","params":{"name":"app","state":"STARTING","mood":"good"}}'
    assert codec.parse_message(line) == messages.Progress(name="app", state="STARTING")


def test_text_that_is_not_utf8_is_shown_escaped():
    line = codec.encode_error(1, 2, "cannot open /srv/\udcff.log")
    assert json.loads(line)["error"]["message"] == "cannot open /srv/\\udcff.log"


def test_a_message_stays_on_one_line():
    assert codec.encode_error(1, 2, "one\ntwo\r\n").count(b"\n") == 1
