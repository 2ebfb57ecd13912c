"""The zygote of a generation with `preload`: started as a worker would be, and asked for a worker at a time.

core.zygote decides about its life; here it is spawned, watched and asked. It gets no listener of its own: those that a
worker is to have go with the request (SCM_RIGHTS), beside the pipes for its output and one more, `go`, by which the
worker is let go on when it is known and written down. Of what comes back, nothing is believed that the kernel does not
confirm: who has sent a message is told by the kernel (SCM_CREDENTIALS), so that a worker can only be a process that
has come from the zygote; and it must be a child of ours.

The zygote ends when our end of the channel closes, which is also how it hears that the manager was killed. So nothing
of it is written down: a manager that takes over starts another one. It is reaped as any child, but is in no slot.
"""

from __future__ import annotations

import os
import socket
from asyncio import TimerHandle
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from fcgimgr.config.settings import PoolSettings
from fcgimgr.core import process
from fcgimgr.core import zygote as core
from fcgimgr.core.process import (
    SIGKILL,
    Backoff,
    Died,
    Due,
    Exit,
    Fatal,
    Ready,
    RestartAsked,
    Running,
    Spawned,
    SpawnFailed,
    Spawning,
    StartAsked,
    Starting,
    State,
    StopAsked,
    Stopped,
    Stopping,
)
from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.recipes import Recipe
from fcgimgr.linux.rights import dropping_rights
from fcgimgr.linux.spawn import Forked, Order, start
from fcgimgr.manager.children import zygote_channel
from fcgimgr.manager.children.board import Board
from fcgimgr.manager.logs.pipes import Pipes, closing_fd
from fcgimgr.manager.pools.causes import last_word
from fcgimgr.manager.pools.slots import Slot
from fcgimgr.manager.pools.spawning import await_program, forget_program, hear_of_program
from fcgimgr.manager.pools.telling import log_change, log_spawn, tell_of_death

if TYPE_CHECKING:
    from fcgimgr.manager.pools.generation import Generation

NAME: Final = "zygote"
# Seconds for a fork. It takes milliseconds; one that is not done by then hangs in a hook of the application's.
PATIENCE: Final = 20.0


class _Asked:
    """A worker that was asked for. `go`: to let it go on by; closed, it ends."""

    __slots__ = ("board", "go", "index", "number", "pipes", "timer")

    def __init__(self, number: int, index: int, pipes: Pipes, board: Board | None, go: int, timer: TimerHandle) -> None:
        self.number = number
        self.index = index
        self.pipes = pipes
        self.board = board
        self.go = go
        self.timer = timer

    def close(self) -> None:
        """There is no worker."""
        self.pipes.close()
        if self.board is not None:
            self.board.close()


class Zygote:
    """At rest until a worker is wanted. `state` is a process's; `slot` has its output."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.state: State = Stopped()
        self.slot = Slot(NAME)
        self._daemon = generation.daemon
        self._environment: dict[str, str] = {}
        self._channel: socket.socket | None = None
        self._waiting: dict[int, None] = {}  # workers to be forked, by index, in their order
        self._asked: _Asked | None = None
        self._last = 0  # the number of the last request

    @property
    def name(self) -> str:
        return f"{self.generation.name}:{NAME}"

    @property
    def settings(self) -> PoolSettings:
        settings = self.generation.settings
        assert isinstance(settings, PoolSettings)  # a program has no zygote
        return settings

    # What the generation tells

    def want(self, index: int) -> None:
        """Fork the worker that is Spawning, as soon as can be; or have it fail to start."""
        state = self.generation.core.processes[index] if index < len(self.generation.core.processes) else None
        if not isinstance(state, Spawning):  # one before it could not be had, and so it is not wanted any more
            return
        self._waiting[index] = None
        if (event := core.asked_for(self.settings, self.state, state.tries)) is not None:
            self.feed(event)
        if isinstance(self.state, Fatal):
            self._fail(self.state.why)
        self._ask_for_next()

    def start(self) -> None:
        """Be there before a worker has to be forked, if one may have to be."""
        if core.is_wanted(self.generation.core.processes):
            self.feed(StartAsked())

    def renew(self) -> None:
        """The workers that are forked from now on are to run the code that is on the disk now."""
        if not isinstance(self.state, Stopped):
            self.feed(RestartAsked())

    def look(self) -> None:
        """End it if no worker can be wanted any more."""
        if not isinstance(self.state, Stopped) and not core.is_wanted(self.generation.core.processes):
            self.feed(StopAsked())

    def _abandon(self, pid: int | None) -> None:
        """It will not end, and is of no use."""
        assert pid is not None  # core abandons nothing else
        forget_program(self._daemon.loop, self.slot)
        self.slot.exit = None
        self.slot.hear_last_words()
        self._fork_no_more()
        self._daemon.abandon(pid, self.name)

    def died(self, pid: int, exit: Exit) -> None:
        """It is dead and reaped. Its workers live on; the one that was being forked ends, and is forked anew."""
        if self.slot.forked is not None:  # its last word may tell why
            hear_of_program(self._daemon.loop, self.slot, self.feed)
        self.slot.exit = exit
        is_starting = isinstance(self.state, Starting)
        repeated = self.generation.repeats.hear_last_words(self.slot, may_repeat=is_starting)
        word = last_word(
            self.settings, exit, self.slot.lines_before_its_end(), was_ready=isinstance(self.state, Running)
        )
        self.slot.end = f"{exit} after {self._daemon.loop.time() - self.slot.started:.1f} s{process.said(word)}"
        if self.state.name != "STOPPING" and not (isinstance(self.state, Starting) and self.state.fault):
            tell_of_death(self.generation, self.slot, self.name, pid, is_failed_start=is_starting, repeated=repeated)
        self.slot.restarts.next = "by_hand" if self.state.name == "STOPPING" else "crash"
        self._fork_no_more()
        self.feed(Died(exit, word=word))

    def _fork_no_more(self) -> None:
        self._hang_up()
        if (asked := self._asked) is not None:
            self._end_asking(asked)
            asked.close()
            self._waiting = {asked.index: None, **self._waiting}

    def end(self) -> None:
        """Let go of all that is held. It ends by that, if it lives."""
        self._hang_up()
        if self._asked is not None:
            self._asked.close()
            self._end_asking(self._asked)
        forget_program(self._daemon.loop, self.slot)
        self.slot.close()

    # Events in, actions out

    def feed(self, event: process.Event) -> None:
        """Let core decide on `event` and carry out what it says."""
        before = self.state
        now = self._daemon.loop.time()
        self.state, actions = core.step(self.settings, before, event, now, self.generation.pool.seed)
        self._arm_timer(self.state.due)
        if self.state is not before:
            self._announce(before, self.state)
        for action in actions:
            match action:
                case process.Spawn():
                    self.feed(self._spawn())
                case process.Signal(number, group):
                    self._signal(before.pid, number, group)
                case process.Abandon():
                    self._abandon(before.pid)
        if self.state is not before:
            if isinstance(self.state, Backoff | Fatal):
                self._fail(self.state.why)
            self._ask_for_next()
            self._daemon.look_at_soon(self.generation.pool)

    def _announce(self, before: State, after: State) -> None:
        if before.name == after.name:
            return
        why = core.failure(after)
        if isinstance(before, Starting) and after.pid is not None:
            self.generation.repeats.listen_no_more(self.slot)
        text = after.name + (f": {why}" if why else "")
        log_change(self.generation, self.slot, self.name, before, after, text)
        self.slot.since = self._daemon.loop.time()
        self._daemon.history.record("process_state", self.name, before.name, after.name, why)

    def _arm_timer(self, due: float | None) -> None:
        slot = self.slot
        if due == slot.armed:
            return
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None
        slot.armed = due
        if due is not None:
            slot.timer = self._daemon.loop.call_at(due, self._timer_fired, due)

    def _timer_fired(self, due: float) -> None:
        self.slot.timer = None
        if self.slot.armed == due:
            self.slot.armed = None
            self.feed(Due())

    def _signal(self, pid: int | None, number: int, group: bool) -> None:
        if pid is None or self._daemon.zygotes.get(pid) is not self:
            return  # dead and reaped
        try:
            self._daemon.signalling.send(pid, number, group=group)
        except LinuxError as error:
            self._daemon.journal.error(str(error), name=self.name)

    # The process

    def _spawn(self) -> Spawned | SpawnFailed:
        slot = self.slot
        if told := slot.set_pumps_aside():
            self._daemon.journal.warning(told, name=self.name)
        try:
            recipe, plan = self.generation.prepare_zygote()
            pipes = Pipes(self.settings, self.generation.close_pipe)
        except (LinuxError, OSError) as error:
            return SpawnFailed(str(error))
        try:
            self._channel, its = zygote_channel.channel()
            with its:
                child = self._start(recipe, pipes, its.fileno())
        except (LinuxError, OSError) as error:
            pipes.close()
            if self._channel is not None:
                self._channel.close()
                self._channel = None
            return SpawnFailed(str(error))
        self._environment = recipe.environment
        self._daemon.loop.add_reader(self._channel, self._read)
        self.generation.listen_to(slot, plan, pipes)
        self.generation.repeats.listen(slot, plan)
        pid = child if isinstance(child, int) else child.pid
        self._daemon.zygotes[pid] = self
        self._daemon.signalling.hold(PidFd(pid))  # it is not reaped before the loop turns
        log_spawn(self.generation, slot, self.name, pid)
        if isinstance(child, Forked):
            await_program(self._daemon.loop, slot, child, self.feed)
        return Spawned(pid, executed=not isinstance(child, Forked))

    def _start(self, recipe: Recipe, pipes: Pipes, channel: int) -> int | Forked:
        [child] = start([Order(recipe, self._daemon.devnull, pipes.stdout, pipes.stderr, listeners=[channel])])
        if isinstance(child, LinuxError):
            raise child
        return child

    def _hang_up(self) -> None:
        """Hear no more of it, and let it hear that."""
        if self._channel is not None:
            self._daemon.loop.remove_reader(self._channel)
            with dropping_rights():
                self._channel.close()
            self._channel = None

    # Workers

    def _ask_for_next(self) -> None:
        """Ask for the worker that has waited longest: one at a time, for it could not fork two at once either."""
        while self._asked is None and self._waiting and isinstance(self.state, Running) and self._channel is not None:
            index = next(iter(self._waiting))
            del self._waiting[index]
            if self.generation.is_spawning(index):
                self._ask_for(index, self._channel)

    def _ask_for(self, index: int, channel: socket.socket) -> None:
        generation = self.generation
        with ExitStack() as undo:
            try:
                recipe, _ = generation.prepare(index)
                pipes = Pipes(self.settings, self.generation.close_pipe)
                undo.callback(pipes.close)
                pipes.give_to(recipe.account)
                if (board := generation.new_board()) is not None:
                    undo.callback(board.close)
                # No pipe: who reads from one may have its last close(2) wait (linux/pipereader.py).
                its_go, go = (end.detach() for end in socket.socketpair())
                undo.callback(os.close, go)
                with closing_fd(its_go):
                    descriptors = generation.descriptors(board)
                    number = self._last = self._last + 1
                    message = zygote_channel.request(number, self._environment, recipe.environment, descriptors)
                    others = [fd for fds in descriptors.values() for fd in fds]
                    socket.send_fds(channel, [message], [its_go, pipes.stdout, pipes.stderr, *others])
            except (BrokenPipeError, ConnectionResetError):  # it is dead, of which we are about to hear
                self._waiting = {index: None, **self._waiting}
                self._hang_up()
                return
            except (LinuxError, OSError) as error:
                generation.could_not_spawn(index, str(error))
                return
            undo.pop_all()
        pipes.close_theirs()
        timer = self._daemon.loop.call_later(PATIENCE, self._give_up, f"no worker within {PATIENCE:g} s")
        self._asked = _Asked(number, index, pipes, board, go, timer)

    def _end_asking(self, asked: _Asked) -> None:
        asked.timer.cancel()
        os.close(asked.go)
        self._asked = None

    def _read(self) -> None:
        assert self._channel is not None
        try:
            heard = zygote_channel.hear(self._channel)
        except BlockingIOError:
            return
        if heard is None:
            self._end_it()  # it is dead, or about to be
            return
        sender, answer = heard
        said, asked, itself = zygote_channel.understand(answer), self._asked, sender == self.state.pid
        match said:
            case zygote_channel.Imported() if itself and isinstance(self.state, Starting):
                self.feed(Ready())
            case zygote_channel.Imported() if itself and isinstance(self.state, Stopping):
                pass  # it has come too late
            case zygote_channel.Born(number) if (
                asked is not None and number == asked.number and not self._is_known(sender)
            ):
                self._take(asked, sender)
            case zygote_channel.Refused(number, why) if itself and asked is not None and number == asked.number:
                self._end_asking(asked)
                asked.close()
                self.generation.could_not_spawn(asked.index, why)
            case _:
                self._give_up(f"pid {sender} said what it should not: {answer[:80]!r}")
        self._ask_for_next()

    def _is_known(self, pid: int) -> bool:
        return pid in self._daemon.children or pid in self._daemon.zygotes

    def _take(self, asked: _Asked, pid: int) -> None:
        """The worker is there: let it go on."""
        index = asked.index
        try:
            if not self.generation.is_spawning(
                index
            ):  # a stop has overtaken it: it ends when it reads nothing from `go`
                asked.close()
            elif procfs.parent(pid) != os.getpid():
                asked.close()  # no child of ours, or killed and reaped: of its death we should not hear
                self.generation.could_not_spawn(index, "the worker died before it was known")
            else:
                self.generation.take_worker(index, pid, asked.pipes, asked.board)
                os.write(asked.go, zygote_channel.GO)
        except BrokenPipeError:  # it was killed just now, which its death will tell
            pass
        finally:
            self._end_asking(asked)

    def _give_up(self, why: str) -> None:
        """It is no use any more. Its end, and all that follows from that, is like any other's."""
        if self.state.pid in self._daemon.zygotes and self.state.name != "STOPPING":
            self._daemon.journal.error(f"killing it: {why}", name=self.name, pid=self.state.pid)
        self._end_it()

    def _end_it(self) -> None:
        self._hang_up()
        self._signal(self.state.pid, SIGKILL, True)

    def _fail(self, why: str) -> None:
        """All that wait for it have failed to start, for this reason; its last words are theirs."""
        words = self.slot.last_words(alive=False)
        waiting, self._waiting = self._waiting, {}
        for index in waiting:
            if self.generation.is_spawning(index):
                self.generation.could_not_spawn(index, f"{NAME}: {why}", words)
