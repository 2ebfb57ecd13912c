"""Bytes to messages and back, without I/O.

Both ends use it. A line that is too long, is not JSON, or asks for what is not there becomes a `ControlError` that
carries the JSON-RPC code and, where it could be read, the request's id: the manager answers with it and goes on.
Nothing a peer sends raises anything else.
"""

from typing import Any, Final

import msgspec

from .messages import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    LINE_LIMIT,
    METHOD_NOT_FOUND,
    METHODS,
    NOTIFICATIONS,
    PARSE_ERROR,
    ControlError,
    Notice,
    Params,
    Problem,
    Request,
    RequestId,
    Response,
    Result,
)


class LineReader:
    """Cuts a stream of bytes into lines, holding at most `limit` bytes of an unfinished one."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, received: bytes) -> list[bytes]:
        """The lines that `received` completes, without their newlines; blank ones are skipped.

        ControlError when a line is longer than the limit. The stream cannot be trusted from there on: hang up.
        """
        self._buffer += received
        lines = []
        start = 0
        while (end := self._buffer.find(b"\n", max(start, self._searched))) >= 0:
            self._refuse_over_limit(end - start)
            line = bytes(self._buffer[start:end]).strip()
            if line:
                lines.append(line)
            start = end + 1
        del self._buffer[:start]
        self._searched = len(self._buffer)
        self._refuse_over_limit(self._searched)
        return lines

    def _refuse_over_limit(self, length: int) -> None:
        if length > self._limit:
            self._buffer.clear()
            self._searched = 0
            raise ControlError(f"a line is longer than {self._limit} bytes", code=INVALID_REQUEST)


# -- the manager's end ------------------------------------------------------------------------------------------------


class _Envelope(msgspec.Struct):
    jsonrpc: str
    method: str
    id: int | str | msgspec.UnsetType | None = msgspec.UNSET
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _OnlyId(msgspec.Struct):
    id: int | str | None = None


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_ONLY_ID: Final = msgspec.json.Decoder(_OnlyId)
_PARAMS: Final = {method: msgspec.json.Decoder(params) for method, params in METHODS.items()}

# RecursionError: an array nested a hundred thousand deep fits into a line. UnicodeDecodeError is a ValueError.
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)


def parse_request(line: bytes) -> Request:
    """The request in `line`, its parameters checked and typed. ControlError says what is wrong with it."""
    try:
        envelope = _ENVELOPE.decode(line)
    except msgspec.ValidationError as error:
        raise ControlError(f"not a JSON-RPC 2.0 request: {error}", code=INVALID_REQUEST, id=_id_of(line)) from error
    except _UNREADABLE as error:
        raise ControlError(f"not JSON: {error}", code=PARSE_ERROR) from error
    if envelope.id is msgspec.UNSET:
        raise ControlError("not a JSON-RPC 2.0 request: it has no id", code=INVALID_REQUEST)
    if envelope.jsonrpc != "2.0":
        raise ControlError('not a JSON-RPC 2.0 request: jsonrpc is not "2.0"', code=INVALID_REQUEST, id=envelope.id)
    decoder = _PARAMS.get(envelope.method)
    if decoder is None:
        known = ", ".join(METHODS)
        raise ControlError(
            f"no method {envelope.method[:64]!r}; there are {known}", code=METHOD_NOT_FOUND, id=envelope.id
        )
    try:
        params: Params = decoder.decode(envelope.params)
    except _UNREADABLE as error:
        raise ControlError(f"{envelope.method}: {error}", code=INVALID_PARAMS, id=envelope.id) from error
    return Request(id=envelope.id, method=envelope.method, params=params)


def _id_of(line: bytes) -> RequestId:
    try:
        return _ONLY_ID.decode(line).id
    except _UNREADABLE:
        return None


def encode_result(id: RequestId, result: Result | dict[str, Any]) -> bytes:
    """The line that answers request `id`."""
    return _line({"jsonrpc": "2.0", "id": id, "result": result})


def encode_error(id: RequestId, code: int, message: str) -> bytes:
    """The line that refuses request `id` (None where the request's id could not be read)."""
    return _line({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})


def encode_refusal(error: ControlError) -> bytes:
    """`encode_error` for what `parse_request` or `LineReader.feed` raised."""
    return encode_error(error.id, error.code, str(error))


def encode_notification(method: str, params: Notice | dict[str, Any]) -> bytes:
    """A line that answers no request: `method` is a key of messages.NOTIFICATIONS."""
    return _line({"jsonrpc": "2.0", "method": method, "params": params})


# -- the client's end -------------------------------------------------------------------------------------------------


class _Incoming(msgspec.Struct):
    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"{}")
    id: int | str | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: Problem | None = None


_INCOMING: Final = msgspec.json.Decoder(_Incoming)
_NOTICES: Final = {method: msgspec.json.Decoder(notice) for method, notice in NOTIFICATIONS.items()}


def encode_request(id: int, method: str, params: Params | dict[str, Any]) -> bytes:
    """The line that asks for `method`."""
    return _line({"jsonrpc": "2.0", "id": id, "method": method, "params": params})


def parse_message(line: bytes) -> Response | Notice | None:
    """What the manager sent; None for a notification of a kind that a newer manager may know."""
    try:
        incoming = _INCOMING.decode(line)
        if incoming.method is None:
            if not bytes(incoming.result) and incoming.error is None:
                raise ControlError("the manager's answer has neither a result nor an error", code=INVALID_REQUEST)
            return Response(id=incoming.id, result=incoming.result, error=incoming.error)
        decoder = _NOTICES.get(incoming.method)
        return None if decoder is None else decoder.decode(incoming.params)
    except _UNREADABLE as error:
        raise ControlError(f"what the manager sent is not understood: {error}", code=PARSE_ERROR) from error


# -- below both -------------------------------------------------------------------------------------------------------


def _line(message: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(message) + b"\n"
    except UnicodeEncodeError:
        # A path or an argument that is not UTF-8 reaches Python as lone surrogates (PEP 383), which JSON cannot hold.
        return msgspec.json.encode(_presentable(msgspec.to_builtins(message))) + b"\n"


def _presentable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_presentable(key): _presentable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_presentable(item) for item in value]
    return value
