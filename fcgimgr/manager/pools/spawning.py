"""The processes of a generation, spawned: from what core wants to a child whose output is read.

Several are spawned at the same time, because each spawn is mostly waiting (linux/posixspawn.py). A process that has to
be forked is not waited for at all: core is told that there is one, and later how it went.
"""

from __future__ import annotations

import errno
import resource
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from fcgimgr.config.address import Address, SystemdAddress
from fcgimgr.config.processes import ProcessPlan
from fcgimgr.config.settings import PoolSettings
from fcgimgr.core.generation import Happened
from fcgimgr.core.process import SIGKILL, Event, Executed, Spawned, SpawnFailed
from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.recipes import Recipe
from fcgimgr.linux.spawn import Forked, Order, start
from fcgimgr.manager.children.board import Board
from fcgimgr.manager.ground.faults import fault_of_ours
from fcgimgr.manager.logs.pipes import Pipes
from fcgimgr.manager.pools.slots import Slot

if TYPE_CHECKING:
    from fcgimgr.manager.pools.generation import Generation


class Begun(msgspec.Struct):
    """A process that is about to be spawned: how, and what we keep of it."""

    plan: ProcessPlan
    order: Order
    pipes: Pipes
    board: Board | None


def spawn_due(generation: Generation, indexes: Iterable[int]) -> None:
    """Spawn those of the processes that core still wants: a stop may have overtaken the order."""
    due = [index for index in dict.fromkeys(indexes) if generation.is_spawning(index)]
    for index in due:
        generation.name_anew(index)
    if generation.zygote is not None:
        for index in due:
            generation.zygote.want(index)
        generation.daemon.state_file.write()
        return
    outcomes: dict[int, Spawned | SpawnFailed] = {}
    begun: dict[int, Begun] = {}
    for index in due:
        try:
            begun[index] = begin(generation, index)
        except (LinuxError, OSError) as error:
            # EMFILE or ENOMEM may be over at the next try: a failed start like any other.
            outcomes[index] = SpawnFailed(why_not(error))
            generation.slots[index].count_spawn()
    children = start([each.order for each in begun.values()])
    for (index, each), child in zip(begun.items(), children, strict=True):
        try:
            outcomes[index] = take_in(generation, index, each, child)
        except Exception as error:  # noqa: BLE001 - it runs, and if we cannot know it, it must not
            generation.daemon.loop.call_exception_handler({"message": "a new process", "exception": error})
            if not isinstance(child, LinuxError):
                kill_unknown(generation, child if isinstance(child, int) else child.pid)
            outcomes[index] = SpawnFailed(fault_of_ours(error))
    # Together, so that nobody can react to the first before core knows of the last.
    generation.feed(*(Happened(index, outcomes[index]) for index in due))
    generation.daemon.state_file.write()


def give_up_spawning(generation: Generation, indexes: Iterable[int], why: str) -> None:
    """A fault of ours has cut it short: what core has not heard of must not run."""
    due = [index for index in indexes if generation.is_spawning(index)]
    for pid, place in tuple(generation.daemon.children.items()):
        if place[0] is generation and place[1] in due:
            kill_unknown(generation, pid)
    generation.feed(*(Happened(index, SpawnFailed(why)) for index in due))


def kill_unknown(generation: Generation, pid: int) -> None:
    """Of its death nobody is to hear; until it is reaped, as a stranger, the number is its own."""
    daemon = generation.daemon
    daemon.children.pop(pid, None)
    held = daemon.signalling.of(pid)
    if held is not None:
        daemon.signalling.release(held)
    with suppress(LinuxError), held or PidFd(pid) as process:
        process.signal(SIGKILL)


def why_not(error: LinuxError | OSError) -> str:
    """In words."""
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"the manager has no file descriptor left of {most}; raise LimitNOFILE= (systemd) or ulimit -Hn"
    return str(error)


def begin(generation: Generation, index: int) -> Begun:
    """All that has to be there before the process is. LinuxError, OSError: it cannot be had, and nothing is left."""
    generation.set_pumps_aside(index)
    recipe, plan = generation.prepare(index)
    pipes = Pipes(generation.settings, generation.close_pipe)
    try:
        board = generation.new_board()
    except LinuxError:
        pipes.close()
        raise
    return Begun(plan, order_for(generation, recipe, pipes, board), pipes, board)


def order_for(generation: Generation, recipe: Recipe, pipes: Pipes, board: Board | None) -> Order:
    """With the listeners in the way that the pool wants them."""
    settings, devnull = generation.settings, generation.daemon.devnull
    if not isinstance(settings, PoolSettings):
        return Order(recipe, devnull, pipes.stdout, pipes.stderr)
    assert generation.listening is not None  # core opens a generation before it spawns
    fds = generation.listening.fds
    others = () if board is None else (board.fd,)
    if settings.socket_pass == "stdin":
        return Order(recipe, fds[0], pipes.stdout, pipes.stderr, others=others)
    return Order(
        recipe,
        devnull,
        pipes.stdout,
        pipes.stderr,
        listeners=fds,
        listen_names=[socket_name(address, generation.name) for address in settings.sockets],
        listen_pid=settings.socket_pass == "systemd",
        others=others,
    )


def take_in(
    generation: Generation, index: int, begun: Begun, child: int | Forked | LinuxError
) -> Spawned | SpawnFailed:
    """What core is to be told of it; from now on we hear of the rest."""
    if isinstance(child, LinuxError):
        begun.pipes.close()
        if begun.board is not None:
            begun.board.close()
        generation.slots[index].count_spawn()
        return SpawnFailed(str(child))
    # Who is no Forked is of our own user, who has nothing to gain by keeping us waiting.
    pid, born = (child, procfs.start_time(child)) if isinstance(child, int) else (child.pid, child.born)
    generation.take_in(index, pid, born, begun.plan, begun.pipes, begun.board)
    if isinstance(child, Forked):
        await_program(generation.daemon.loop, generation.slots[index], child, partial(generation.happened, index))
    return Spawned(pid, executed=not isinstance(child, Forked))


def await_program(loop: AbstractEventLoop, slot: Slot, child: Forked, tell: Callable[[Event], None]) -> None:
    """Tell Executed or SpawnFailed of the process in this slot, as soon as it is known."""
    slot.forked = child
    loop.add_reader(child.fileno(), hear_of_program, loop, slot, tell)


def hear_of_program(loop: AbstractEventLoop, slot: Slot, tell: Callable[[Event], None]) -> None:
    """The process has come to its program, or never will; or it is dead."""
    child, slot.forked = slot.forked, None
    assert child is not None  # it is told once
    loop.remove_reader(child.fileno())
    fault = child.fault()
    tell(Executed() if fault is None else SpawnFailed(str(fault)))


def forget_program(loop: AbstractEventLoop, slot: Slot) -> None:
    """Nobody asks any more."""
    if slot.forked is not None:
        loop.remove_reader(slot.forked.fileno())
        slot.forked.close()
        slot.forked = None


def socket_name(address: Address, pool: str) -> str:
    """What $LISTEN_FDNAMES calls a socket: as systemd itself, by its FileDescriptorName, else by the unit it is of.

    Never by its address, which holds colons: those separate the names (sd_listen_fds_with_names(3)).
    """
    return address.name if isinstance(address, SystemdAddress) else pool
