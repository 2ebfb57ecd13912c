"""What has been read of the children's output and is not yet in a log: kept where a `kill -9` leaves it.

Bytes that were read are in no pipe any more. So they are read into a file that is mapped into memory (mmap(2)), in
state_dir: to write there costs no system call, and what was written is in the file when the manager is dead. A header
says of which pipe the bytes are, how far they are in their log, and which log grows by them just now; the log's size
then tells the next manager the rest. One page each for some lines that are begun: a block-buffered program leaves
one with each of its writes; and more for a few that are long, or tracebacks that wait for their end.

All of it is given room when the file is made: a disk that is full would otherwise be a SIGBUS at the next line. Where
that cannot be had, or there is no file (in tests), the bytes are in ordinary memory, and lost with the manager.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from contextlib import suppress
from typing import Final, NamedTuple

READ_SIZE: Final = 256 * 1024
LINE_LIMIT: Final = 64 * 1024
#: How many lines that are begun are kept, and the longest of them, in bytes; long ones have places of their own.
MOST_SHORT: Final = 128
LONGEST_SHORT: Final = 4096 - 16
MOST_LONG: Final = 8
LONGEST_LONG: Final = LINE_LIMIT

NAME: Final = "lines"

# pipe: its inode, 0 for none in hand; end: 0 while it is being read; raw: what is written is what was read.
_PIPE: Final = struct.Struct("=Q")
_CHUNK: Final = struct.Struct("=III?")  # start, end, in the log up to, raw
_LOG: Final = struct.Struct("=QQQ")  # device and inode (0: none) of the log that is written to, its size before
_READING: Final = struct.Struct("=III?3xQQQ")  # both
_BEGUN: Final = struct.Struct("=QI")  # inode of the pipe (0: none), length
_CHUNK_AT: Final = 8
_LOG_AT: Final = 24
_HEADER: Final = 4096
_BUFFER: Final = LINE_LIMIT + READ_SIZE
_SHORT: Final = 4096
_LONG: Final = LINE_LIMIT + 4096
_SIZE: Final = _HEADER + _BUFFER + MOST_SHORT * _SHORT + MOST_LONG * _LONG


class Hand:
    """[header][LINE_LIMIT: the beginning of a line is put right before what is read][READ_SIZE: read here][begun lines:
    short ones, long ones]

    The loop runs one callback at a time, so one is enough for all pumps.
    """

    def __init__(self, memory: mmap.mmap, directory: str | None = None) -> None:
        """directory: where the file is that is mapped as `memory`; None: there is none."""
        self.memory = memory
        self.directory = directory
        whole = memoryview(memory)
        self._header = whole[:_HEADER]
        self.buffer = whole[_HEADER : _HEADER + _BUFFER]
        self.read_into = [self.buffer[LINE_LIMIT:]]
        self._read_at = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + _HEADER + LINE_LIMIT
        self._lines = whole[_HEADER + _BUFFER :]
        self._free = list(range(MOST_SHORT)), list(range(MOST_SHORT, MOST_SHORT + MOST_LONG))
        self._writing = 0  # bytes that are to be in a log before a chunk is done
        self._read = 0  # bytes that were read of it

    def go_on(self, before: Hand) -> None:
        """Have the lines that another has; between two callbacks of the loop."""
        self._free = before._free
        for place in {*range(MOST_SHORT + MOST_LONG)} - {*self._free[False], *self._free[True]}:
            part = slice(_at(place), _at(place + 1))  # the others stay untouched, and so take no memory
            self._lines[part] = before._lines[part]

    def newline(self, start: int, end: int) -> int:
        """Behind the last newline of this part of the buffer; 0: there is none."""
        return max(0, self.memory.rfind(b"\n", _HEADER + start, _HEADER + end) + 1 - _HEADER)

    # What is read, and handed on

    def begin(self, pipe: int, start: int) -> None:
        """Something of this pipe is about to be read, behind what is in the buffer from `start` on."""
        _READING.pack_into(self._header, _CHUNK_AT, start, 0, start, False, 0, 0, 0)
        _PIPE.pack_into(self._header, 0, pipe)

    def has_read(self, start: int, end: int, *, raw: bool) -> None:
        _CHUNK.pack_into(self._header, _CHUNK_AT, start, end, start, raw)

    def hand_on(self, count: int, read: int = 0) -> None:
        """So many bytes are about to be written to a log, for so many that were read."""
        self._writing, self._read = count, read

    def writes(self, device: int, inode: int, size: int) -> None:
        """The log that is this file, of this size, grows now."""
        if self._writing:
            _LOG.pack_into(self._header, _LOG_AT, device, inode, size)

    def wrote(self, count: int) -> None:
        """It has grown by so many bytes; what comes next may be written to another."""
        if not self._writing:
            return
        self._writing -= count
        start, end, done, raw = _CHUNK.unpack_from(self._header, _CHUNK_AT)
        of_it = count if raw else 0 if self._writing else self._read
        _READING.pack_into(self._header, _CHUNK_AT, start, end, done + of_it, raw, 0, 0, 0)

    def let_go(self, read: int) -> None:
        """Nothing is in hand. What was read makes room for zeros, by which the next bytes are told from it."""
        self._writing = 0
        _PIPE.pack_into(self._header, 0, 0)
        if read:
            ctypes.memset(self._read_at, 0, read)  # half as long as to copy zeros there

    # Lines that are begun

    def keep(self, place: int | None, pipe: int, line: bytes) -> int | None:
        """Keep the beginning of a line. The answer is its place, to be given again; None: it is not kept."""
        is_long = len(line) > LONGEST_SHORT
        if place is not None and (not line or is_long != _is_long(place)):
            _BEGUN.pack_into(self._lines, _at(place), 0, 0)
            self._free[_is_long(place)].append(place)
            place = None
        if not line or not self.can_keep(place, len(line)):
            return None
        if place is None:
            place = self._free[is_long].pop()
        at = _at(place)
        _BEGUN.pack_into(self._lines, at, 0, 0)
        self._lines[at + 16 : at + 16 + len(line)] = line
        _BEGUN.pack_into(self._lines, at, pipe, len(line))
        return place

    def can_keep(self, place: int | None, length: int) -> bool:
        """Whether there is room for so many bytes, for one whose line is at this place so far."""
        is_long = length > LONGEST_SHORT
        has_place = place is not None and _is_long(place) == is_long
        return length <= LONGEST_LONG and (has_place or bool(self._free[is_long]))


def _is_long(place: int) -> bool:
    return place >= MOST_SHORT


def _at(place: int) -> int:
    """Where a place begins among the begun lines."""
    return MOST_SHORT * _SHORT + (place - MOST_SHORT) * _LONG if _is_long(place) else place * _SHORT


def nowhere() -> Hand:
    """One that ends with the manager. (It is shared with who reads for it, reading.py.)"""
    return Hand(mmap.mmap(-1, _SIZE))


hand = nowhere()


def keep_in(state_dir: str) -> None:
    """Have what is in hand in a new file from now on. OSError: it stays where it is."""
    global hand
    path = os.path.join(state_dir, NAME)
    fd = os.open(f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, _SIZE)
        memory = mmap.mmap(fd, _SIZE)
        os.rename(f"{path}.new", path)
    finally:
        os.close(fd)
    before, hand = hand, Hand(memory, state_dir)
    hand.go_on(before)


def exchange() -> None:
    """Have another, and leave this one to who is still reading into it."""
    global hand
    before = hand
    if before.directory is not None:
        with suppress(OSError):
            keep_in(before.directory)
            return
    hand = nowhere()
    hand.go_on(before)


def put_back(state_dir: str) -> list[str]:
    """Have the file again, if somebody has removed it: its path if that was so. OSError."""
    path = os.path.join(state_dir, NAME)
    if os.path.lexists(path) or hand.directory is None:
        return []
    keep_in(state_dir)
    return [path]


class Left(NamedTuple):
    """What a dead manager had in hand of a pipe. `data`: not yet in a log, but for what `log` has grown by since.

    log: (device, inode, size before) of the log that was being written to; raw: by these very bytes.
    """

    data: bytes
    log: tuple[int, int, int] | None = None
    raw: bool = True


def left_in(state_dir: str) -> dict[int, Left]:
    """By the pipe's inode, what the manager before us had in hand. Nothing, where that is not known."""
    try:
        with open(os.path.join(state_dir, NAME), "rb", opener=_opener) as file:
            content = file.read(_SIZE + 1)
    except OSError:
        return {}
    if len(content) != _SIZE:
        return {}
    left: dict[int, Left] = {}
    for place in range(MOST_SHORT + MOST_LONG):
        at = _HEADER + _BUFFER + _at(place)
        pipe, length = _BEGUN.unpack_from(content, at)
        if pipe and length <= (LONGEST_LONG if _is_long(place) else LONGEST_SHORT):
            left[pipe] = Left(content[at + 16 : at + 16 + length])
    (pipe,) = _PIPE.unpack_from(content)
    start, end, done, raw = _CHUNK.unpack_from(content, _CHUNK_AT)
    if pipe and start <= done <= LINE_LIMIT + READ_SIZE and start <= LINE_LIMIT:
        buffer = content[_HEADER : _HEADER + _BUFFER]
        if not end:  # it was killed before it could say how much had come
            end = max(LINE_LIMIT, len(buffer.rstrip(b"\0")))
        device, inode, size = _LOG.unpack_from(content, _LOG_AT)
        left[pipe] = Left(buffer[done:end], (device, inode, size) if inode else None, raw)
    return left


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
