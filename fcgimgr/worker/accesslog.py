r"""The access log: a line a request, in the characters of PHP-FPM's access.format, or as JSON.

    %R client's address   %u user     %t start of the request, %T of its line   %m method   %r path   %q query, %Q "?"
    before it             %s status   %l length of the request, %b of the answer, in bytes  %d time taken, in seconds
    %f script's file      %{NAME}e a FastCGI parameter    %p pid, %P parent's   %n pool     %% a percent sign

%{FORMAT}t and %{FORMAT}T take strftime(3), %{milliseconds}d and %{microseconds}d are other units: what may stand there
is said in fcgimgr/fastcgi/accessformat.py. What is not there is "-". Months and days are named in English, whatever
locale the application has set: who reads such a log knows no other.

No client can forge a line, or a field in quotes: of all that it may have chosen, whatever is not printable ASCII, and
`"` and `\`, are written as \xHH.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final, NamedTuple

from fcgimgr.fastcgi.accessformat import UNITS, Field, parse
from fcgimgr.worker.appending import AppendedFile
from fcgimgr.worker.saying import fault, say

_NAMED: Final = re.compile("%([aAbBhp%])")  # of strftime, what the locale has a word for
_DAYS: Final = "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_UNSAFE: Final = re.compile(r"[^ !#-\[\]-~]")  # all but printable ASCII, and of that " and \


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
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text or "-"
    return _UNSAFE.sub(_as_bytes, text)


def _as_bytes(match: re.Match[str]) -> str:
    # WSGI's text is bytes in disguise (PEP 3333); what the application has put there itself may be real text.
    found = match[0]
    encoded = found.encode("latin-1") if ord(found) < 256 else found.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in encoded)


def text_line(form: str) -> Line:
    """What makes a line, without its end, of a request; for this process alone. ValueError: `form` is none."""
    parts = parse(form)
    for at in range(len(parts)):
        if parts[at : at + 3] == _TARGET:
            parts[at : at + 3] = [Field("rQq")]
    template = "".join(part.replace("%", "%%") if isinstance(part, str) else "%s" for part in parts)
    pieces = [_piece(part) for part in parts if isinstance(part, Field)]
    return lambda served: template % tuple([piece(served) for piece in pieces])


def _param(name: str) -> Line:
    return lambda served: escaped(_said(served, name))


def _word(name: str) -> Line:
    """As `_param`, of what stands outside of quotes as a rule: a space in it must not shift what comes behind."""
    said = _param(name)
    return lambda served: said(served).replace(" ", r"\x20")


def _said(served: Served, name: str) -> str:
    """Of the environ: the web server puts text there, and the application what it likes."""
    return str(served.environ.get(name) or "")


def _piece(field: Field) -> Line:
    letter, argument = field
    if letter == "e":
        return _param(argument)
    if letter in "tT":
        return _time(argument, time.localtime, begun=letter == "t")
    if letter == "d":
        factor = UNITS[argument]
        digits = 0 if factor == 10**6 else 3
        return lambda served: f"{served.took * factor:.{digits}f}"
    if letter in "np":
        text = os.environ.get("FCGIMGR_POOL", "-") if letter == "n" else str(os.getpid())
        return lambda served: text
    return _PIECES[letter]


def _time(form: str, calendar: Callable[[float], time.struct_time], *, begun: bool) -> Line:
    known = -1, ""

    def shown(served: Served) -> str:
        nonlocal known
        now = int(served.ended - served.took if begun else served.ended)
        second, text = known  # at one go: another thread may replace it
        if now != second:
            text = _in_english(form, calendar(now))
            known = now, text
        return text

    return shown


def _in_english(form: str, moment: time.struct_time) -> str:
    def named(match: re.Match[str]) -> str:
        letter = match[1]
        if letter == "%":
            return match[0]
        if letter == "p":
            return "AM" if moment.tm_hour < 12 else "PM"
        name = _DAYS[moment.tm_wday] if letter in "aA" else _MONTHS[moment.tm_mon - 1]
        return name if letter in "AB" else name[:3]

    return time.strftime(_NAMED.sub(named, form), moment)


def _target(served: Served) -> str:
    path, _, query = served.uri.partition("?")
    return f"{escaped(path)}?{escaped(query)}" if query else escaped(path)


def _query(served: Served) -> str:
    query = served.uri.partition("?")[2]
    return escaped(query) if query else ""


#: What nearly every form has, as in "%m %r%Q%q": made at once.
_TARGET: Final = [Field("r"), Field("Q"), Field("q")]

_PIECES: Final[dict[str, Line]] = {
    "R": _word("REMOTE_ADDR"),
    "u": _word("REMOTE_USER"),
    "f": _param("SCRIPT_FILENAME"),
    "m": lambda served: escaped(served.method),
    "r": lambda served: escaped(served.uri.partition("?")[0]),
    "q": _query,
    "Q": lambda served: "?" if _query(served) else "",
    "rQq": _target,
    "s": lambda served: f"{served.status:03d}",
    "l": lambda served: escaped(_said(served, "CONTENT_LENGTH") or "0"),
    "b": lambda served: str(served.sent),
    "P": lambda served: str(os.getppid()),
}


def json_line() -> Line:
    """What makes a JSON object, one line of ASCII, of a request; for this process alone."""
    known = {"pool": os.environ.get("FCGIMGR_POOL"), "process": os.environ.get("FCGIMGR_PROCESS"), "pid": os.getpid()}
    about = json.dumps(known, separators=(",", ":"))[1:-1]
    second = _time("%Y-%m-%dT%H:%M:%S", time.gmtime, begun=True)

    def line(served: Served) -> str:
        millisecond = int((served.ended - served.took) % 1 * 1000)
        remote, user = _said(served, "REMOTE_ADDR"), _said(served, "REMOTE_USER")
        length = _said(served, "CONTENT_LENGTH") or "0"
        received = int(length) if length.isdecimal() and len(length) < 19 else "null"
        # Not by way of a dict: that takes twice as long.
        return (
            f'{{"time":"{second(served)}.{millisecond:03d}Z",{about}'
            f',"remote":{quoted(remote) if remote else "null"},"user":{quoted(user) if user else "null"}'
            f',"method":{quoted(served.method)},"uri":{quoted(served.uri)},"status":{served.status or "null"}'
            f',"received":{received},"sent":{served.sent},"seconds":{served.took:.6f}}}'
        )

    return line
