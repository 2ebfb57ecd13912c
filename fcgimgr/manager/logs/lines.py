"""How a line looks in a log: timestamps, JSON objects, and text that cannot forge another line.

Times are UTC with milliseconds and a `Z` (RFC 3339), so that the logs of two machines, or of one machine before and
after a change of the clocks, sort together. `tai64n` is what daemontools' multilog writes, for `tai64nlocal`.
A child's lines arrive as a chunk of whole lines; a prefix is put before each with one `replace`, never line by line.
In JSON the line is the `message` of an object. One that is a JSON object itself is `json` instead, for a collector to
look into; as a part of ours, not laid over it, so that no process can give itself another's name.
"""

import re
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from fcgimgr.manager.logs import tracebacks

Timestamps = Literal["none", "iso", "tai64n"]
LineFormat = Literal["raw", "json"]
Dress = Callable[[bytes, bool], bytes]
"""(chunk, whether it begins inside a line already begun) -> what is written."""
Split = Callable[[bytes], list[bytes]]
"""A chunk -> what each is to be a line of the log, without the end of the last of its own lines."""

TAI64_EPOCH = 0x400000000000000A  # 2**62 + 10 s: multilog adds the ten leap seconds of 1972 and no later one

encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode

# C0 and C1 but tab and the end of a line: what steers a terminal.
_CONTROLS = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")


def iso(now: int) -> str:
    """`2026-11-20T15:59:51.123Z` for `now`, nanoseconds since 1970."""
    seconds, nanoseconds = divmod(now, 1_000_000_000)
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}.{nanoseconds // 1_000_000:03d}Z"


def tai64n(now: int) -> str:
    """`@` and 24 hexadecimal digits for `now`, nanoseconds since 1970: a TAI64N label (cr.yp.to/libtai/tai64.html)."""
    seconds, nanoseconds = divmod(now, 1_000_000_000)
    return f"@{TAI64_EPOCH + seconds:016x}{nanoseconds:08x}"


def printable(text: str) -> str:
    """`text` with every control, separator and surrogate code point written as an escape (`\\n`, `\\x1b`, `\\u2028`).

    What it returns is one line for every reader, also for those that end lines at U+0085 or U+2028, cannot steer a
    terminal, and can be encoded.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def without_controls(chunk: bytes) -> bytes:
    """A chunk of lines with what would steer a terminal shown, not obeyed: `\\x1b`."""
    return _CONTROLS.sub(lambda found: b"\\x%02x" % found[0][-1], chunk)


def split_lines(chunk: bytes) -> list[bytes]:
    """A line of the log for each line."""
    return chunk.removesuffix(b"\n").split(b"\n")


def dress(
    *,
    timestamps: Timestamps,
    line_format: LineFormat,
    process: str,
    stream: str,
    label: str,
    clock: Callable[[], int],
    on_terminal: bool = False,
    split: Split = split_lines,
) -> Dress | None:
    """What turns a chunk of a child's lines into what is written, or None where it is written as it came.

    `clock` gives nanoseconds since 1970. The time of a line is the time at which its chunk was read. `label` is put
    between the timestamp and the line, as it is; JSON names the process anyway and takes no label. Where there is one
    each piece of an overlong line is a line of its own: what others write between two of them would else end the first,
    and the second would begin a line that has no label. `split` is for JSON alone.
    """
    if line_format == "json":
        return _json_dress(timestamps, process, stream, clock, split)
    shown = without_controls if on_terminal else bytes
    if timestamps == "none" and not label:
        return (lambda chunk, inside_line: shown(chunk)) if on_terminal else None
    fixed = printable(label).encode()

    def prefixed(chunk: bytes, inside_line: bool) -> bytes:
        match timestamps:
            case "iso":
                prefix = b"%b %b" % (iso(clock()).encode(), fixed)
            case "tai64n":
                prefix = b"%b %b" % (tai64n(clock()).encode(), fixed)
            case "none":
                prefix = fixed
        chunk = shown(chunk)
        if label:
            if inside_line and chunk[:1] == b"\n":
                chunk = chunk[1:]
            if chunk and chunk[-1] != 0x0A:
                chunk += b"\n"
            inside_line = False
        lines = chunk[:-1].replace(b"\n", b"\n" + prefix) + chunk[-1:]
        return lines if inside_line or not chunk else prefix + lines

    return prefixed


def _json_dress(timestamps: Timestamps, process: str, stream: str, clock: Callable[[], int], split: Split) -> Dress:
    stamp = tai64n if timestamps == "tai64n" else iso
    source = b'"process":%b,"stream":%b' % (encode_json(process), encode_json(stream))

    def as_json(chunk: bytes, inside_line: bool) -> bytes:
        # A piece of an overlong line is an object of its own, so what is written is always whole lines.
        lines = split(chunk)
        if inside_line and not lines[0]:
            del lines[0]
        head = b'{"time":"%b",%b,' % (stamp(clock()).encode(), source)
        return b"".join(b"%b%b}\n" % (head, _content(line)) for line in lines)

    return as_json


def _content(line: bytes) -> bytes:
    if line[:1] == b"{" and _is_json_object(line):
        return b'"json":%b' % line.replace(b"\r", b"")  # between its words only; some readers end a line at it
    if b"\n" in line:
        line = tracebacks.text_of(line)
    return b'"message":%b' % encode_json(line.decode("utf-8", "backslashreplace"))


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(_decode_json(line), dict)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
