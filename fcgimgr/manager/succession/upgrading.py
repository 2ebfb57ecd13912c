"""Newer code in the place of this one: the same pid, the same children, the same sockets, and not one request lost.

The code that is installed now is tried first, in a process of its own that reads the configuration and this manager's
state and touches nothing. Only if it can, this process executes it (execve keeps the pid and the children) and passes
on its descriptors and its state, the latter in a sealed memfd. In between nobody accepts commands: they wait in the
control socket's queue. Signals are held off and wait as well. Who is connected is told, and hung up on, before.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from fcgimgr.control.messages import REFUSED, ControlError, ProcessVerdict, Verdict
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.memfd import exec_keeping, memfd
from fcgimgr.linux.procfs import boot_id
from fcgimgr.manager.ground.signals import Signals
from fcgimgr.manager.logs.pump import Pump
from fcgimgr.manager.logs.stream import Stream
from fcgimgr.manager.logs.target import Target
from fcgimgr.manager.succession import state
from fcgimgr.manager.succession.own_files import Places
from fcgimgr.manager.succession.state import HandoverRecord, PipeRecord, Record, SlotRecord
from fcgimgr.manager.succession.statefile import records_of

if TYPE_CHECKING:
    from fcgimgr.manager.commands.server import ControlServer
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.slots import Slot

#: What the new code says last when it can read everything.
GOOD: Final = b"fcgimgr: this state can be taken over\n"
# Seconds that the new code has to say so.
PATIENCE: Final = 30.0
MOST_LINES: Final = 20


async def upgrade(daemon: Daemon) -> Verdict:
    """Try the installed code, and if it is good, go over to it when this answer is out."""
    refuse_unless_quiet(daemon)
    daemon.updating = True  # no update, and no second upgrade, while this goes on
    try:
        said = await _try_new_code(daemon)
    finally:
        daemon.updating = False
    if said is not None:
        daemon.journal.error("upgrade: the installed code cannot take over; this one goes on")
        lines = tuple(said.decode("utf-8", "backslashreplace").splitlines()[-MOST_LINES:])
        detail = "the installed code cannot take over; the old one goes on"
        return Verdict(ok=False, processes=(_verdict(daemon, False, "failed", detail, lines),))
    refuse_unless_quiet(daemon)
    assert daemon.go_over is not None  # the manager is up
    daemon.in_background(daemon.go_over())
    return Verdict(ok=True, processes=(_verdict(daemon, True, "upgrading"),))


def _verdict(
    daemon: Daemon, ok: bool, result: str, detail: str | None = None, lines: tuple[str, ...] = ()
) -> ProcessVerdict:
    return ProcessVerdict(name=daemon.config.manager.identifier, ok=ok, result=result, detail=detail, lines=lines)


def refuse_unless_quiet(daemon: Daemon) -> None:
    """ControlError while anything is half done that is not written down."""
    if trouble := next(_unquiet(daemon), None):
        raise ControlError(f"{trouble}; upgrade when that is over", code=REFUSED)


def _unquiet(daemon: Daemon) -> Iterator[str]:
    if daemon.state != "RUNNING" or daemon.taking_over:
        yield f"the manager is {daemon.state}"
    if daemon.ending:
        yield "the manager is about to stop"
    if daemon.updating or daemon.reloads:
        yield "an update or another upgrade is under way"
    for pool in daemon.pools.values():
        if pool.core.coming is not None or pool.core.leaving or pool.core.waiting is not None:
            yield f"{pool.name}: a reload or canary is under way"
        if any(one.core.draining is not None or one.core.refusing for one in pool.generations.values()):
            yield f"{pool.name} is stopping"
    if daemon.leftovers:
        yield "what dead processes have left is being ended"


# Trying


async def _try_new_code(daemon: Daemon) -> bytes | None:
    """None: it can take over. Else what it said."""
    fd = memfd("fcgimgr-state", _content(daemon, HandoverRecord()))
    try:
        trial = subprocess.Popen(
            [*_words(daemon), "--check-state", str(fd)],
            executable=sys.executable,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[fd],
            start_new_session=True,
        )
    except OSError as error:
        return str(error).encode()
    finally:
        os.close(fd)
    assert trial.stdout is not None
    try:
        said = await asyncio.wait_for(_all_of(daemon, trial.stdout.fileno()), PATIENCE)
    except TimeoutError:
        trial.kill()
        return b"it has not said within 30 s that it can"
    finally:
        trial.stdout.close()
        trial.poll()  # whoever reaps it, this or the daemon
    return None if said.endswith(GOOD) else said or b"it ended without a word"


async def _all_of(daemon: Daemon, fd: int) -> bytes:
    """All that comes out of a pipe until its end."""
    os.set_blocking(fd, False)
    said = b""
    ended = daemon.loop.create_future()

    def read() -> None:
        nonlocal said
        received = os.read(fd, 65536)
        said = (said + received)[-65536:]
        if not received and not ended.done():
            ended.set_result(None)

    daemon.loop.add_reader(fd, read)
    try:
        await ended
    finally:
        daemon.loop.remove_reader(fd)
    return said


def _words(daemon: Daemon) -> list[str]:
    """The words that run the installed code on this configuration."""
    # What stood before the module's name: -P, -I, -X … as this process was started.
    before = sys.orig_argv[1 : sys.orig_argv.index("-m")] if "-m" in sys.orig_argv else []
    return [sys.executable, *before, "-m", "fcgimgr.manager", "--config", daemon.config.path]


# Going over


class GoOver:
    """The going over itself, with all that is at hand only where the manager was put together."""

    def __init__(
        self, daemon: Daemon, places: Places, server: ControlServer, signals: Signals, streams: Iterable[Target]
    ) -> None:
        self._daemon = daemon
        self._places = places
        self._server = server
        self._signals = signals
        self._streams = streams

    async def __call__(self) -> None:
        """Does not return, unless something came between: then all is as before."""
        daemon = self._daemon
        daemon.history.record("manager", daemon.config.manager.identifier, daemon.state, "UPGRADING")
        control = await self._server.pause()
        self._signals.hold()
        try:
            # We, or a helper, should go on as the tracer of those whose gates are closed, and not know it.
            await daemon.draining.pause()
            await daemon.helpers.end()
            await asyncio.sleep(0)  # an order that a signal has given may be about to begin
            refuse_unless_quiet(daemon)
            self._execute(control)
        except (ControlError, LinuxError, OSError) as error:
            daemon.journal.error(f"upgrade: {error}; the old code goes on")
            daemon.history.record("manager", daemon.config.manager.identifier, "UPGRADING", daemon.state, str(error))
        finally:
            self._signals.let_come()
            daemon.draining.watch_all()
            await self._server.open()

    def _execute(self, control: int) -> None:
        daemon = self._daemon
        daemon.readers.finish()
        daemon.state_file.write()
        handover = HandoverRecord(
            control=control,
            locks={lock.path: lock.fileno() for lock in self._places.locks},
            notify=daemon.notify.fds,
            sockets={name: tuple(fds) for name, fds in daemon.sockets.items()},
            soft_nofile=daemon.soft_nofile,
            upgrades=daemon.upgrades + 1,
            outlives_terminal=daemon.outlives_terminal,
            draining=daemon.departure.since,
            draining_why=daemon.departure.why,
        )
        saved = state.decode(content := _content(daemon, handover))
        daemon.journal.info("executing the installed code", pid=os.getpid())
        for stream in self._streams:
            if isinstance(stream, Stream):
                stream.flush()
        fd = memfd("fcgimgr-state", content)
        try:
            exec_keeping(
                sys.executable,
                [*_words(daemon), "--state", str(fd)],
                {**{name: value for name, value in os.environ.items() if name}, **daemon.service_environment},
                [fd, *saved.fds()],
            )
        finally:
            os.close(fd)


def _content(daemon: Daemon, handover: HandoverRecord) -> bytes:
    return b"".join(map(state.encode, (*records_of(daemon, boot_id()), *_slots(daemon), handover)))


def _slots(daemon: Daemon) -> Iterator[Record]:
    for pool in daemon.pools.values():
        for generation in pool.generations.values():
            for index, slot in enumerate(generation.slots):
                yield _slot_record(pool.name, generation.number, index, slot)


def _slot_record(pool: str, generation: int, index: int, slot: Slot) -> SlotRecord:
    return SlotRecord(
        pool=pool,
        generation=generation,
        index=index,
        stdout=_pipe_record(slot.stdout),
        stderr=_pipe_record(slot.stderr),
        lingering=tuple(pump.hand_over()[0] for pump in slot.lingering if not pump.closed),
        board=slot.board.fd if slot.board is not None else -1,
        requests=slot.requests,
        status_text=slot.status_text,
    )


def _pipe_record(pump: Pump | None) -> PipeRecord | None:
    if pump is None or pump.closed:
        return None
    fd, begun, inside_line, recent = pump.hand_over()
    return PipeRecord(fd=fd, begun=begun, inside_line=inside_line, recent=recent)
