"""The processes of a generation, spawned: from what core wants to a child whose output is read.

Several are spawned at the same time, because each spawn is mostly waiting (linux/posixspawn.py). A process that has to
be forked is not waited for at all: core is told that there is one, and later how it went.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from fcgimgr.config.address import Address, SystemdAddress
from fcgimgr.config.processes import ProcessPlan
from fcgimgr.config.settings import PoolSettings
from fcgimgr.core.generation import Happened
from fcgimgr.core.process import Executed, Spawned, SpawnFailed, Spawning
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.pipes import log_pipe
from fcgimgr.linux.spawn import Forked, Order, Recipe, start
from fcgimgr.manager.board import Board, board_fd

if TYPE_CHECKING:
    from fcgimgr.manager.generation import Generation


class Begun(msgspec.Struct):
    """A process that is about to be spawned: how, and what we keep of it. `err_read` -1: stderr goes with stdout."""

    plan: ProcessPlan
    order: Order
    out_read: int
    err_read: int
    board: Board | None

    def let_go(self) -> None:
        """It has not been spawned."""
        for fd in {self.out_read, self.err_read} - {-1}:
            os.close(fd)
        if self.board is not None:
            self.board.close()


def spawn_due(generation: Generation, indexes: Iterable[int]) -> None:
    """Spawn those of the processes that core still wants: a stop may have overtaken the order."""
    states = generation.core.processes
    due = [index for index in dict.fromkeys(indexes) if index < len(states) and isinstance(states[index], Spawning)]
    outcomes: dict[int, Spawned | SpawnFailed] = {}
    begun: dict[int, Begun] = {}
    for index in due:
        try:
            begun[index] = begin(generation, index)
        except (LinuxError, OSError) as error:
            # EMFILE or ENOMEM may be over at the next try: a failed start like any other.
            outcomes[index] = SpawnFailed(str(error))
    children = start([each.order for each in begun.values()])
    for (index, each), child in zip(begun.items(), children, strict=True):
        for fd in {each.order.stdout, each.order.stderr}:
            os.close(fd)
        if isinstance(child, LinuxError):
            each.let_go()
            outcomes[index] = SpawnFailed(str(child))
        else:
            outcomes[index] = take_in(generation, index, each, child)
    # Together, so that nobody can react to the first before core knows of the last.
    generation.feed(*(Happened(index, outcomes[index]) for index in due))
    generation.daemon.state_file.write()


def begin(generation: Generation, index: int) -> Begun:
    """All that has to be there before the process is. LinuxError, OSError: it cannot be had, and nothing is left."""
    settings = generation.settings
    generation.slots[index].set_pumps_aside()
    plan, recipe = generation.plan_and_recipe(index)
    with ExitStack() as unless_done:
        out_read, out_write = log_pipe()
        unless_done.callback(os.close, out_read)
        unless_done.callback(os.close, out_write)
        err_read, err_write = -1, out_write
        if not settings.redirect_stderr:
            err_read, err_write = log_pipe()
            unless_done.callback(os.close, err_read)
            unless_done.callback(os.close, err_write)
        board = None
        if isinstance(settings, PoolSettings) and board_fd(settings) is not None:
            board = Board.new(settings)
        unless_done.pop_all()
    return Begun(plan, order_for(generation, recipe, out_write, err_write, board), out_read, err_read, board)


def order_for(generation: Generation, recipe: Recipe, stdout: int, stderr: int, board: Board | None) -> Order:
    """With the listeners in the way that the pool wants them."""
    settings, devnull = generation.settings, generation.daemon.devnull
    if not isinstance(settings, PoolSettings):
        return Order(recipe, devnull, stdout, stderr)
    assert generation.listening is not None  # core opens a generation before it spawns
    fds = generation.listening.fds
    others = () if board is None else (board.fd,)
    if settings.socket_pass == "stdin":
        return Order(recipe, fds[0], stdout, stderr, others=others)
    return Order(
        recipe,
        devnull,
        stdout,
        stderr,
        listeners=fds,
        listen_names=[socket_name(address, generation.name) for address in settings.sockets],
        listen_pid=settings.socket_pass == "systemd",
        others=others,
    )


def take_in(generation: Generation, index: int, begun: Begun, child: int | Forked) -> Spawned:
    """Read what the child writes from now on, and hear of its death."""
    daemon, slot, plan = generation.daemon, generation.slots[index], begun.plan
    pid = child.pid if isinstance(child, Forked) else child
    stdout = generation.pump(begun.out_read, plan, "stdout", plan.stdout_logfile)
    stderr = generation.pump(begun.err_read, plan, "stderr", plan.stderr_logfile) if begun.err_read >= 0 else None
    slot.begin(daemon.loop.time(), stdout, stderr, begun.board)
    daemon.children[pid] = (generation, index)
    daemon.journal.info("spawned", name=generation.process_name(index), pid=pid)
    if not isinstance(child, Forked):
        return Spawned(pid)
    slot.forked = child
    daemon.loop.add_reader(child.fileno(), hear_of_program, generation, index, child)
    return Spawned(pid, executed=False)


def hear_of_program(generation: Generation, index: int, child: Forked) -> None:
    """A child that was forked has come to its program, or never will."""
    generation.daemon.loop.remove_reader(child.fileno())
    generation.slots[index].forked = None
    fault = child.fault()
    generation.feed(Happened(index, Executed() if fault is None else SpawnFailed(str(fault))))


def socket_name(address: Address, pool: str) -> str:
    """What $LISTEN_FDNAMES calls a socket: as systemd itself, by its FileDescriptorName, else by the unit it is of.

    Never by its address, which holds colons: those separate the names (sd_listen_fds_with_names(3)).
    """
    return address.name if isinstance(address, SystemdAddress) else pool
