"""What must survive the manager: which processes there are, on which sockets, and how each is doing.

It is a file of JSON lines. Each line is one record, and replaces what an earlier line said of the same thing; so a
change is one short line more, a last line that was cut off by a crash is no loss, and now and then the whole is written
anew (statefile.py). Times are those of the monotonic clock, which goes on while the machine is up: with another boot id
all of it is void.

A pid may be another process's by now. It counts together with the start time, or the `identity`, only (linux/pidfd.py).

Environments, paths and arguments are bytes to Unix, and those that are not UTF-8 are lone surrogates here (PEP 383).
msgspec neither writes nor reads these; JSON has escapes for them (`"caf\\udce9"`), so lines with such text go through
the standard library's json, and only those.
"""

from __future__ import annotations

import os
import stat
from typing import Final, TypeVar

import msgspec

from fcgimgr.config.address import Address
from fcgimgr.config.settings import GroupSettings, ManagerSettings, PoolSettings, ProcessSettings, ProgramSettings
from fcgimgr.core.generation import Generation
from fcgimgr.core.process import Exit, State
from fcgimgr.manager.children.abandoned import AbandonedRecord
from fcgimgr.manager.pools.causes import OrdersRecord

#: The file, in state_dir.
NAME: Final = "state.jsonl"
#: To which it is written as a whole, before that is renamed.
BESIDE: Final = f"{NAME}.new"

#: Of the records' shapes. A field that is added with a default needs no new one; whatever else changes does.
VERSION: Final = 1


class ManagerRecord(msgspec.Struct, frozen=True, kw_only=True, tag="manager"):
    """The manager that wrote this. `release`: of fcgimgr; `notify`: its abstract notify sockets, which have no file.

    `made_dir`: it made state_dir, so that whoever ends well removes it.
    """

    version: int
    release: str
    boot: str
    pid: int
    started: float
    path: str
    settings: ManagerSettings
    made_dir: bool = False
    groups: dict[str, GroupSettings] = {}
    notify: tuple[str, ...] = ()
    abandoned: tuple[AbandonedRecord, ...] = ()


class PoolRecord(msgspec.Struct, frozen=True, kw_only=True, tag="pool"):
    """A pool or program. `serving`, `last`: numbers of generations; `discarded`: what came of the last reload; `since`:
    as of a process."""

    name: str
    seed: float
    serving: int
    last: int
    discarded: str | None = None
    since: float = 0.0


class ListenerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One socket of a generation.

    `fd`: what the manager had it as; `bound`: its `getsockname()`, of TCP (host, port); `path`: of its file, if it has
    one; `order`: the inodes of all that share its address, as the kernel counts them.
    """

    address: Address
    name: str
    inode: int
    fd: int
    bound: tuple[str, int] | str = ""
    path: str | None = None
    order: tuple[int, ...] = ()


class GenerationRecord(msgspec.Struct, frozen=True, kw_only=True, tag="generation"):
    """One generation: what it was started from (a pool or a program), and all of its core but the processes."""

    pool: str
    number: int
    as_pool: PoolSettings | None = None
    as_program: ProgramSettings | None = None
    core: Generation
    listeners: tuple[ListenerRecord, ...] = ()
    orders: OrdersRecord | None = None

    @property
    def settings(self) -> ProcessSettings:
        settings = self.as_pool or self.as_program
        assert settings is not None  # `read` lets nothing else through
        return settings


class PipeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A log pipe that is handed over: `begun`: of a line whose end has not come; `recent`: what was read last."""

    fd: int
    begun: bytes = b""
    inside_line: bool = False
    recent: bytes = b""


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True, tag="process"):
    """One process. `born`: its start time in ticks; `identity`: that of its pidfd, where there is such a thing.

    `started`: monotonic seconds; `pipes`: inodes of its log pipes; `board`: the inode of its scoreboard, 0 is none;
    `fresh_rss`: bytes of memory that it had when it was ready. `crashes`, `recycled`, `by_hand`: how often it was
    started anew because of what; `since`: when it came into its state, monotonic seconds (0: not known).
    """

    pool: str
    generation: int
    index: int
    state: State
    born: int | None = None
    identity: int | None = None
    started: float = 0.0
    spawned: int = 0
    exit: Exit | None = None
    pipes: tuple[int, ...] = ()
    board: int = 0
    fresh_rss: int | None = None
    crashes: int = 0
    recycled: int = 0
    by_hand: int = 0
    since: float = 0.0


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True, tag="slot"):
    """What else is handed over of a process. `lingering`: pipes of those before it that somebody still writes to;
    `board`: the descriptor of its scoreboard."""

    pool: str
    generation: int
    index: int
    stdout: PipeRecord | None = None
    stderr: PipeRecord | None = None
    lingering: tuple[int, ...] = ()
    board: int = -1
    requests: int | None = None
    status_text: str | None = None


class HandoverRecord(msgspec.Struct, frozen=True, kw_only=True, tag="handover"):
    """What a manager hands over to the code that it executes in its own place: descriptors, by what they are of.

    `sockets`: passed by systemd, by name, or by another, as fd:N; `soft_nofile`: the limit of open files that children
    are to get; `draining`: since when the manager drains; `outlives_terminal`: it is to go on without its terminal.
    """

    control: int = -1
    locks: dict[str, int] = {}
    notify: dict[str, int] = {}
    sockets: dict[str, tuple[int, ...]] = {}
    soft_nofile: int | None = None
    upgrades: int = 0
    outlives_terminal: bool = False
    draining: float | None = None
    draining_why: str = ""


Record = ManagerRecord | PoolRecord | GenerationRecord | ProcessRecord | SlotRecord | HandoverRecord


class Saved:
    """A state that was read: the last word on each thing."""

    def __init__(self, manager: ManagerRecord) -> None:
        self.manager = manager
        self.pools: dict[str, PoolRecord] = {}
        self.generations: dict[tuple[str, int], GenerationRecord] = {}
        self.processes: dict[tuple[str, int, int], ProcessRecord] = {}
        self.slots: dict[tuple[str, int, int], SlotRecord] = {}
        self.handover: HandoverRecord | None = None
        self.trouble = ""  # what of it could not be read, and why

    def add(self, record: Record) -> None:
        match record:
            case PoolRecord(name=name):
                self.pools[name] = record
            case GenerationRecord(pool=pool, number=number):
                self.generations[pool, number] = record
            case ProcessRecord(pool=pool, generation=number, index=index):
                self.processes[pool, number, index] = record
            case SlotRecord(pool=pool, generation=number, index=index):
                self.slots[pool, number, index] = record
            case HandoverRecord():
                self.handover = record

    def processes_of(self, pool: str, number: int) -> dict[int, ProcessRecord]:
        """The processes of one generation, by index."""
        return {key[2]: record for key, record in self.processes.items() if key[:2] == (pool, number)}

    def fds(self) -> list[int]:
        """Every descriptor that is handed over."""
        handover = self.handover
        assert handover is not None
        found = [handover.control, *handover.locks.values(), *handover.notify.values()]
        found += [fd for fds in handover.sockets.values() for fd in fds]
        found += [listener.fd for record in self.generations.values() for listener in record.listeners]
        for slot in self.slots.values():
            found += [pipe.fd for pipe in (slot.stdout, slot.stderr) if pipe is not None]
            found += (*slot.lingering, slot.board)
        return [fd for fd in found if fd >= 0]


class StateError(Exception):
    """A state that is of no use, and why."""


class _Head(msgspec.Struct, frozen=True):
    """As much of the first line as tells whether the rest can be understood."""

    version: int
    release: str = ""
    boot: str = ""


_T = TypeVar("_T")

_encoder: Final = msgspec.json.Encoder()
_head: Final = msgspec.json.Decoder(_Head)
_first: Final = msgspec.json.Decoder(ManagerRecord)
_decoder: Final = msgspec.json.Decoder(PoolRecord | GenerationRecord | ProcessRecord | SlotRecord | HandoverRecord)
_SURROGATE: Final = rb"\ud"


# What is said of what cannot be read: by msgspec, by json (a ValueError, as of bytes that are not UTF-8), and of
# brackets without end.
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)


def encode(record: Record) -> bytes:
    """The record's line."""
    try:
        return _encoder.encode(record) + b"\n"
    except UnicodeEncodeError:
        import json  # few managers ever need it

        return json.dumps(msgspec.to_builtins(record), separators=(",", ":")).encode() + b"\n"


def _decode(line: bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    if _SURROGATE not in line:
        return decoder.decode(line)
    import json

    return msgspec.convert(json.loads(line), decoder.type)


def decode(content: bytes) -> Saved:
    """The state from its lines. StateError: nothing of it can be read. What is damaged ends it (Saved.trouble)."""
    first, *lines = content.split(b"\n")
    try:
        head = _decode(first, _head)
        if head.version > VERSION:
            raise StateError(f"it was written by a later release ({head.release}, state version {head.version})")
        saved = Saved(_decode(first, _first))
    except UNREADABLE as error:
        raise StateError(f"its first line cannot be read: {error}") from error
    for number, line in enumerate(lines[:-1], 2):  # behind the last newline is nothing, or a line that was cut off
        try:
            record = _decode(line, _decoder)
            if isinstance(record, GenerationRecord) and not (record.as_pool or record.as_program):
                raise msgspec.ValidationError("a generation without settings")
            saved.add(record)
        except UNREADABLE as error:
            saved.trouble = f"line {number} cannot be read: {error}"
            break
    return saved


def read(path: str, boot: str) -> Saved | None:
    """What the manager before has left at `path`; None: nothing. StateError: it is of no use."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"it cannot be opened: {error.strerror}") from error
    with open(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise StateError("it is not a regular file")
        if about.st_uid != os.geteuid() or about.st_mode & 0o022:
            raise StateError(f"it belongs to uid {about.st_uid}, or others may write to it (mode {about.st_mode:o})")
        try:
            content = file.read()
        except OSError as error:
            raise StateError(f"it cannot be read: {error.strerror}") from error
    saved = decode(content)
    if saved.manager.boot != boot:
        raise StateError("it is of another boot of this machine: none of its processes is left")
    return saved
