r"""The access log: a line a request, in the characters of PHP-FPM's access.format, or as JSON.

    %R client's address   %u user     %t start of the request, %T of its line   %m method   %r path   %q query, %Q "?"
    before it             %s status   %l length of the request, %b of the answer, in bytes  %d time taken, in seconds
    %f script's file      %{NAME}e a FastCGI parameter    %p pid, %P parent's   %n pool     %% a percent sign

%{FORMAT}t and %{FORMAT}T take strftime(3), %{milliseconds}d and %{microseconds}d are other units: what may stand there
is said in fcgimgr/fastcgi/accessformat.py. What is not there is "-".

No client can forge a line, or a field in quotes: of all that it may have chosen, whatever is not printable ASCII, and
`"` and `\`, are written as \xHH.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from fcgimgr.fastcgi.accessformat import UNITS, Field, parse
from fcgimgr.worker.appending import AppendedFile
from fcgimgr.worker.saying import fault, say

_PLAIN: Final = re.compile(r"[ !#-\[\]-~]*").fullmatch  # printable ASCII but " and \
_UNSAFE: Final = re.compile(r"[^ !#-\[\]-~]")


class Served(NamedTuple):
    """A request that is over. `uri`: path and query; `ended`: seconds since 1970; `took`: seconds."""

    environ: Mapping[str, Any]
    method: str
    uri: str
    status: int
    sent: int
    ended: float
    took: float


Line = Callable[[Served], str]


class AccessLog:
    """Writes a line for each request, in this `form` ("json", or as above), to `file`. ValueError: no such form."""

    def __init__(self, form: str, file: AppendedFile) -> None:
        self._line = json_line() if form == "json" else text_line(form)
        self._file = file
        self._failed = False

    def write(self, served: Served) -> None:
        """Raises nothing."""
        try:
            line = f"{self._line(served)}\n".encode("utf-8", "backslashreplace")
        except BaseException as error:  # noqa: BLE001  # the application may have left anything in its environ
            if not self._failed:
                self._failed = True
                asked = f"{escaped(served.method)} {escaped(served.uri)}"
                say(f"{asked} has no line in the access log, nor has any other like it: {escaped(fault(error))}")
            return
        self._file.write(line)


def escaped(text: str) -> str:
    r"""`text` as one word of a line: "-" for none, and \xHH for what could be taken for an end of it."""
    if not text:
        return "-"
    return text if _PLAIN(text) else _UNSAFE.sub(_as_bytes, text)


def _as_bytes(match: re.Match[str]) -> str:
    # WSGI's text is bytes in disguise (PEP 3333); what the application has put there itself may be real text.
    found = match[0]
    encoded = found.encode("latin-1") if ord(found) < 256 else found.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in encoded)


def text_line(form: str) -> Line:
    """What makes a line, without its end, of a request; ValueError: `form` is none."""
    pieces = [_constant(part) if isinstance(part, str) else _piece(part) for part in parse(form)]
    return lambda served: "".join([piece(served) for piece in pieces])


def _constant(text: str) -> Line:
    return lambda served: text


def _param(name: str) -> Line:
    return lambda served: escaped(_said(served, name))


def _said(served: Served, name: str) -> str:
    """Of the environ: the web server puts text there, and the application what it likes."""
    return str(served.environ.get(name) or "")


def _piece(field: Field) -> Line:
    if field.letter == "e":
        return _param(field.argument)
    if field.letter in "tT":
        return _time(field.argument, begun=field.letter == "t")
    if field.letter == "d":
        factor = UNITS[field.argument]
        digits = 0 if factor == 10**6 else 3
        return lambda served: f"{served.took * factor:.{digits}f}"
    return _PIECES[field.letter]


def _time(form: str, *, begun: bool) -> Line:
    known = -1, ""

    def shown(served: Served) -> str:
        nonlocal known
        now = int(served.ended - served.took if begun else served.ended)
        second, text = known  # at one go: another thread may replace it
        if now != second:
            text = time.strftime(form, time.localtime(now))
            known = now, text
        return text

    return shown


def _query(served: Served) -> str:
    _, mark, query = served.uri.partition("?")
    return escaped(query) if mark and query else ""


_PIECES: Final[dict[str, Line]] = {
    "R": _param("REMOTE_ADDR"),
    "u": _param("REMOTE_USER"),
    "f": _param("SCRIPT_FILENAME"),
    "m": lambda served: escaped(served.method),
    "r": lambda served: escaped(served.uri.partition("?")[0]),
    "q": _query,
    "Q": lambda served: "?" if _query(served) else "",
    "s": lambda served: f"{served.status:03d}",
    "l": lambda served: escaped(_said(served, "CONTENT_LENGTH") or "0"),
    "b": lambda served: str(served.sent),
    "p": lambda served: str(os.getpid()),
    "P": lambda served: str(os.getppid()),
    "n": lambda served: os.environ.get("FCGIMGR_POOL", "-"),
}


def json_line() -> Line:
    """What makes a JSON object, one line of ASCII, of a request."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    about = {"pool": os.environ.get("FCGIMGR_POOL"), "process": os.environ.get("FCGIMGR_PROCESS")}

    def line(served: Served) -> str:
        begun = served.ended - served.took
        length = _said(served, "CONTENT_LENGTH") or "0"
        return encode(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(begun)) + f".{int(begun % 1 * 1000):03d}Z",
                **about,
                "pid": os.getpid(),
                "remote": _said(served, "REMOTE_ADDR") or None,
                "user": _said(served, "REMOTE_USER") or None,
                "method": served.method,
                "uri": served.uri,
                "status": served.status or None,
                "received": int(length) if length.isdecimal() and len(length) < 19 else None,
                "sent": served.sent,
                "seconds": round(served.took, 6),
            }
        )

    return line
