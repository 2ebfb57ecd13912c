"""The manager's own log: what it did, and why, a line an event.

    2026-11-20T15:59:51.123Z info app:app_00: started pid=123
    {"time":"2026-11-20T15:59:51.123Z","level":"info","name":"app:app_00","message":"started","pid":123}

Writing to it never raises and never waits (its target sees to that). What children and clients can put into it (names,
last lines, error texts) cannot forge a line or steer the terminal that shows it: whatever is not printable is escaped,
and a value with a space or quote in it is quoted. The logging module is not used: it costs memory and start-up time,
and brings locks and handlers for threads that the manager does not have.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from fcgimgr.manager.logs.lines import encode_json, iso, printable
from fcgimgr.manager.logs.target import Target

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]

LEVELS: dict[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
REMEMBERED = 200  # lines that are kept for `fcgimgr log`, which of a file sees more
LONGEST = 2048  # characters of one value: a client may send a name of a megabyte


class Journal:
    """Lines at `level` and above to `target`. `clock`: nanoseconds since 1970.

    `name` is the process or pool that an event is about; `fields` are scalars or lists of them, anything else is
    written as its str().
    """

    __slots__ = ("_clock", "_followers", "_level", "_line", "_recent", "target")

    def __init__(
        self, level: Level, format: Format, target: Target, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.target = target
        self._level = LEVELS[level]
        self._line = json_line if format == "json" else text_line
        self._clock = clock
        self._recent: deque[bytes] = deque(maxlen=REMEMBERED)
        self._followers: dict[object, Callable[[list[bytes]], None]] = {}

    def last(self, count: int) -> list[bytes]:
        """At most so many of the newest lines that are remembered, oldest first."""
        return list(self._recent)[-count:] if count else []

    def follow(self, callback: Callable[[list[bytes]], None]) -> Callable[[], None]:
        """Call `callback` with lines as they are written, until the answer is called."""
        token = object()
        self._followers[token] = callback
        return lambda: self._followers.pop(token, None) and None

    def set_level(self, level: Level) -> None:
        self._level = LEVELS[level]

    def debug(self, message: str, /, *, name: str = "", **fields: object) -> None:
        if self._level <= 10:
            self._write("debug", message, name, fields)

    def info(self, message: str, /, *, name: str = "", **fields: object) -> None:
        if self._level <= 20:
            self._write("info", message, name, fields)

    def warning(self, message: str, /, *, name: str = "", **fields: object) -> None:
        if self._level <= 30:
            self._write("warning", message, name, fields)

    def error(self, message: str, /, *, name: str = "", **fields: object) -> None:
        self._write("error", message, name, fields)

    def _write(self, level: Level, message: str, name: str, fields: dict[str, object]) -> None:
        line = self._line(iso(self._clock()), level, name, message, fields)
        self.target.write(line)
        self._recent.append(line[:-1])
        for follower in tuple(self._followers.values()):
            follower([line[:-1]])


def text_line(stamp: str, level: str, name: str, message: str, fields: dict[str, object]) -> bytes:
    subject = f"{shown(name)}: " if name else ""
    pairs = "".join(f" {printable(key)}={value_text(value)}" for key, value in fields.items())
    return f"{stamp} {level} {subject}{shown(message)}{pairs}\n".encode()


def json_line(stamp: str, level: str, name: str, message: str, fields: dict[str, object]) -> bytes:
    entry: dict[str, object] = {"time": stamp, "level": level}
    if name:
        entry["name"] = encodable(name)
    entry["message"] = encodable(message)
    for key, value in fields.items():
        # A field must not stand in for what the line itself says: `time` becomes `time_`.
        entry[f"{key}_" if key in entry else encodable(key)] = plain(value)
    return encode_json(entry) + b"\n"


def value_text(value: object) -> str:
    """A field's value for the text format: bare where that is plain, in quotes where it is not."""
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case list() | tuple():
            text = ",".join(map(str, value))
        case bytes():
            text = value.decode("utf-8", "backslashreplace")
        case _:
            text = str(value)
    text = shorten(text)
    if text and text != "-" and text.isprintable() and not any(c in ' "\\=' for c in text):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def plain(value: object) -> object:
    """A field's value for JSON."""
    match value:
        case None | bool() | float():
            return value
        case int():
            return value if -(2**63) <= value < 2**64 else str(value)
        case bytes():
            return encodable(value.decode("utf-8", "backslashreplace"))
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return encodable(str(value))


def encodable(text: str) -> str:
    """`text` with surrogates (from file names that are not UTF-8) escaped: JSON is UTF-8."""
    return shorten(text).encode("utf-8", "backslashreplace").decode("utf-8")


def shown(text: str) -> str:
    return printable(shorten(text))


def shorten(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
