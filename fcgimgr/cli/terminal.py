"""What a person sees: colour where there is a terminal that has it, one line of progress, and safe text.

In a pipe everything is plain and nothing is redrawn. NO_COLOR (https://no-color.org), TERM=dumb and FORCE_COLOR
(https://force-color.org: what reads the pipe can show it, as `watch -c` does) are respected, the first before the last.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Final, TextIO

_SGR: Final = {"green": "32", "yellow": "33", "red": "31", "cyan": "36", "grey": "90", "bold": "1"}

_STATE_COLOURS: Final = {
    "RUNNING": "green",
    "STARTING": "cyan",
    "STOPPING": "cyan",
    "DRAINING": "cyan",
    "BACKOFF": "yellow",
    "DEGRADED": "yellow",
    "EXITED": "yellow",
    "FATAL": "red",
    "STOPPED": "grey",
}

# A log line or a reason comes from a program nobody vouches for: shown raw, it could retitle or repaint the terminal.
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != ord("\t")}

_COLOUR: Final = re.compile(r"(\x1b\[[0-9;]*m)")

_CONTROL_OF_JSON: Final = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def safe(text: str) -> str:
    """`text` with control characters shown, not obeyed."""
    return text.translate(_CONTROL)


def safe_json(text: str) -> str:
    r"""`text`, which is JSON, with the controls that JSON lets stand written as \u00XX: the same to a parser."""
    return text.translate(_CONTROL_OF_JSON)


def has_colour(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def fitting(line: str, columns: int | None) -> str:
    """`line`, cut where it is longer than so many columns (None: it may be as long as it is); colours take none."""
    if columns is None or width(line) <= columns:
        return line
    kept, room = "", columns - 1
    for piece in _COLOUR.split(line):
        if _COLOUR.fullmatch(piece):
            kept += piece
        else:
            kept += piece[: max(room, 0)] + ("…" if 0 <= room < len(piece) else "")
            room -= len(piece)
    return kept


def laid_out(begin: str, pieces: Sequence[str], separator: str, columns: int | None, indent: str) -> list[str]:
    """`begin` and the pieces behind it on a line, or on more of them, with `indent`, where it is longer than columns.

    A piece stays whole where a line has room for it, so that a command in it can be copied; else it is broken between
    words.
    """
    whole = (begin + separator.join(pieces)).rstrip()
    if columns is None or width(whole) <= columns:
        return [whole]
    end = separator.rstrip()
    gap = separator[len(end) :]
    lines, line = [], begin
    for piece in [*(piece + end for piece in pieces[:-1]), *pieces[-1:]]:
        if width(line + piece) > columns:
            lines.append(line.rstrip())
            *full, line = _broken(piece, columns, indent)
            lines += full
        else:
            line += piece
        line += gap
    return [*lines, line.rstrip()]


def _broken(piece: str, columns: int, indent: str) -> Iterator[str]:
    """`piece` in lines that begin with `indent`."""
    room = max(columns - len(indent), 1)
    line = ""
    for word in piece.split(" "):
        if line and width(f"{line} {word}") > room:
            yield indent + line
            line = ""
        while not line and len(word) > room and not _COLOUR.search(word):  # a path, as a rule
            yield indent + word[:room]
            word = word[room:]
        line = f"{line} {word}" if line else word
    yield indent + line


def width(text: str) -> int:
    """How many columns it takes: colours take none."""
    return len(_COLOUR.sub("", text))


def columns_of(stream: TextIO) -> int | None:
    """How wide the terminal is that `stream` leads to; None: it is no terminal."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except OSError:
        return None


class Paint:
    """Colours text, or leaves it as it is."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def __call__(self, text: str, colour: str | None) -> str:
        return f"\x1b[{_SGR[colour]}m{text}\x1b[0m" if self._on and colour is not None else text

    def state(self, state: str, width: int = 0) -> str:
        """`state` in its colour, padded to `width` columns."""
        return self(state.ljust(width), _STATE_COLOURS.get(state))


class ProgressLine:
    """One line on stderr that is written over while a command waits; nothing at all where stderr is no terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = False

    def show(self, text: str) -> None:
        if self._on:
            # A line that wraps could not be erased.
            fitting = safe(text)[: max(_columns() - 1, 10)]
            sys.stderr.write(f"\r\x1b[K{fitting}")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
