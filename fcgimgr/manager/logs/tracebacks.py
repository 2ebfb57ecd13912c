r"""What our workers say in several lines, cut so that all of one thing is together: one record of a log in JSON.

A traceback, of an application's exception, of a request that takes too long, or of a crash (faulthandler's), is told
from other lines by its form. What the worker itself says has every line but the first indented for this
(fcgimgr/worker/saying.py), so that it is certain where it ends, whatever the message of an exception looks like.
"""

from __future__ import annotations

import re
from typing import Final

_INDENTED: Final = rb"(?:  [^\n]*\n)"
_STACK: Final = rb'(?:  (?:File "|\+ Exception Group )[^\n]*\n' + _INDENTED + rb"*)"
_HEAD: Final = rb"Traceback \(most recent call last\):\n"
_TRACEBACK: Final = rb"(?:" + _HEAD + _STACK + rb"[^\n]+\n)"
_LINK: Final = rb"\n(?:During handling of|The above exception)[^\n]*\n"
# At its end there may be the beginning of the next, if the rest has not come yet.
_BEGUN: Final = rb"(?:" + _LINK + rb"(?:\n(?:" + _HEAD + _STACK + rb"?)?)?|\n)?"
_CHAIN: Final = _TRACEBACK + rb"(?:" + _LINK + rb"\n" + _TRACEBACK + rb")*" + _BEGUN
_THREADS: Final = rb"(?:(?:Thread|Current thread) 0x[^\n]*\n" + _INDENTED + rb"*\n?)+(?:Extension modules: [^\n]*\n)?"

_RECORD: Final = re.compile(
    b"|".join(
        (
            rb"fcgimgr worker: [^\n]*\n" + _INDENTED + b"+",
            rb"Fatal Python error: [^\n]*\n(?:Python runtime state: [^\n]*\n)?\n?(?:" + _THREADS + rb")?",
            _THREADS,
            rb"(?:(?!Traceback \()[^\n]+\n)?" + _CHAIN,  # with the line that logging puts before it
            rb"(?:[^\n]*\n)?" + _STACK + rb"\n?",  # an entry of the slow log, and an exception group
            rb"[^\n]*\n",
            rb"[^\n]+\Z",
        )
    )
)

_OPEN: Final = re.compile(
    rb"fcgimgr worker: |Fatal Python error: |(?:Thread|Current thread) 0x|"
    rb'(?:.*\n)?(?:Traceback \(|  File "|  \+ Exception Group )'
)


def records(chunk: bytes) -> list[bytes]:
    """The chunk's records, each without its last end of line; all but those of several lines are lines."""
    if b"\n  " not in chunk and b"Fatal Python error: " not in chunk:  # as a rule, and ten times as quick
        return chunk.removesuffix(b"\n").split(b"\n")
    return [record.removesuffix(b"\n") for record in _RECORD.findall(chunk)]


def may_go_on(record: bytes) -> bool:
    """Whether lines that have not come yet may be of it: the interpreter writes a traceback bit by bit."""
    return _OPEN.match(record) is not None


def text_of(record: bytes) -> bytes:
    """A record as it was meant: what the worker has indented as it was, and no empty line at its end."""
    text = record.rstrip(b"\n")
    is_indented = text.startswith(b"fcgimgr worker: ") and text.count(b"\n") == text.count(b"\n  ")
    return text.replace(b"\n  ", b"\n") if is_indented else text
