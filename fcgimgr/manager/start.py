"""How the manager comes up: configuration, descriptors, directories, locks, logs and signals, and then the daemon.

What can go wrong at a start is said on standard error, with --daemon by the starter: a broken configuration ends it
with exit code 2, all else with 1.
"""

from __future__ import annotations

import asyncio
import errno
import getopt
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from fcgimgr.config.address import InheritedAddress
from fcgimgr.config.read import ConfigError, read
from fcgimgr.config.settings import Config, ManagerSettings, PoolSettings, ProcessSettings
from fcgimgr.core.generation import PoolState
from fcgimgr.core.process import Fatal
from fcgimgr.linux.accounts import resolve_owner
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import inherited_sockets
from fcgimgr.linux.logind import goes_at_logout
from fcgimgr.linux.memfd import read_memfd
from fcgimgr.linux.processes import (
    close_inherited,
    die_with_parent,
    raise_nofile,
    reset_ignored_signals,
    set_name,
    set_subreaper,
)
from fcgimgr.linux.returning import pick_out
from fcgimgr.linux.sdnotify import Notifier
from fcgimgr.linux.terminal import Terminal
from fcgimgr.manager.commands.presets import listen_to_signals
from fcgimgr.manager.commands.server import ControlServer
from fcgimgr.manager.daemon import Daemon
from fcgimgr.manager.daemonize import Starter, daemonize
from fcgimgr.manager.fleet.systemd import Service
from fcgimgr.manager.ground.signals import Signals
from fcgimgr.manager.logs import inhand
from fcgimgr.manager.logs.file import LogFile, Logs
from fcgimgr.manager.logs.journal import Journal
from fcgimgr.manager.logs.lines import printable
from fcgimgr.manager.logs.opening import open_log, open_reason, owner_of_logs
from fcgimgr.manager.logs.stream import Stream
from fcgimgr.manager.pools.watcher import Watcher
from fcgimgr.manager.succession import upgrading
from fcgimgr.manager.succession.inheritance import Estate, find_estate, inherit, running_config
from fcgimgr.manager.succession.own_files import Places, refuse_another
from fcgimgr.manager.succession.state import StateError, decode

if TYPE_CHECKING:
    from fcgimgr.manager.logs.target import Report, Target

FAILED = 1
BAD_CONFIG = 2


def main(words: list[str]) -> int:
    """Run the manager that `words` (the arguments) ask for; the exit code."""
    options = dict(
        getopt.getopt(words, "", ["config=", "daemon", "die-with=", "no-advice", "state=", "check-state="])[0]
    )
    if "--state" in options:
        return go_on(int(options["--state"]))
    if "--die-with" in options:
        die_with_parent(int(options["--die-with"]), signal.SIGTERM)
    try:
        config = read(options["--config"], os.environ)
        if "--check-state" in options:
            return check_state(int(options["--check-state"]))
    except ConfigError as error:
        print(*(f"warning: {warning}" for warning in error.warnings), error, sep="\n", file=sys.stderr)
        return BAD_CONFIG
    in_background = "--daemon" in options
    if in_background:
        for warning in daemon_warnings(config):
            print(f"{config.path}: warning: {warning}", file=sys.stderr)
    try:
        notifier = Notifier.from_environment()
        passed = inherited_sockets()
        came = pick_out(passed)
        sockets = given_sockets(config, passed)
        close_inherited(keep={fd for fds in sockets.values() for fd in fds} | {sock.fileno() for sock in came.values()})
    except LinuxError as error:
        print(error, file=sys.stderr)
        return FAILED
    starter = daemonize() if in_background else Starter()
    try:
        return run(config, starter, sockets, notifier, came=came, advises="--no-advice" not in options)
    except LinuxError as error:
        of_the_file = str(error).startswith("manager.")
        starter.fail(FAILED, f"{config.path}: {error}" if of_the_file else str(error))
        return FAILED


def check_state(fd: int) -> int:
    """Whether this code could take over a manager's state (succession/upgrading.py). Nothing is touched."""
    try:
        saved = decode(read_memfd(fd))
        if saved.trouble:
            raise StateError(saved.trouble)
        settings = running_config(saved).manager
        if settings.control_owner:
            resolve_owner(settings.control_owner)
    except (StateError, LinuxError) as error:
        print(f"the manager's state cannot be read: {error}", file=sys.stderr)
        return FAILED
    sys.stdout.flush()
    os.write(1, upgrading.GOOD)
    return 0


def go_on(fd: int) -> int:
    """Be the newer code of a manager that has executed us in its own place."""
    try:
        saved = decode(read_memfd(fd))
        if saved.handover is None:
            raise StateError("it says nothing of descriptors")
        sockets = {name: list(fds) for name, fds in saved.handover.sockets.items()}
        close_inherited(keep=set(saved.fds()))
        estate = Estate(saved)  # which opens descriptors, so only now
        return run(running_config(saved), Starter(), sockets, Notifier.from_environment(), estate)
    except (StateError, LinuxError) as error:
        print(f"fcgimgr: the manager's state cannot be taken over: {error}", file=sys.stderr)
        return FAILED


def run(
    config: Config,
    starter: Starter,
    sockets: dict[str, list[int]],
    notifier: Notifier,
    estate: Estate | None = None,
    came: Mapping[int, socket.socket] | None = None,
    *,
    advises: bool = True,
) -> int:
    """Manage until it is over; the exit code. `estate`: handed over by exec. LinuxError: it could not begin.

    came: the listeners, by inode, that systemd has kept since the manager before.
    """
    settings = config.manager
    handover = estate.saved.handover if estate is not None else None
    outlives_terminal = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup does it
    reset_ignored_signals()
    set_name("fcgimgr")
    set_subreaper()
    os.umask(settings.umask)
    if settings.directory is not None and handover is None:  # else we are there already
        change_directory(settings.directory)
    soft_nofile: int | None = raise_nofile(settings.minfds)
    with ExitStack() as held:
        if handover is None or estate is None:
            places = Places(settings, config.path)
        else:
            places = Places.kept(settings, handover.locks, handover.control, made_state_dir=estate.made_dir)
        held.callback(places.release)
        loop = asyncio.new_event_loop()
        held.callback(loop.close)
        journal, logs = open_logs(settings, loop, held, must_be_writable=handover is None)
        loop.set_exception_handler(partial(confess, journal, None))
        for warning in config.warnings:
            journal.warning(warning)
        if handover is not None:
            soft_nofile = handover.soft_nofile
        else:
            # What came back may have processes on it that serve on, though nothing else tells of them.
            estate = find_estate(settings.state_dir, journal, fresh=places.made_state_dir and not came)
        if estate is not None:
            held.callback(estate.close)
            places.made_state_dir |= estate.made_dir
            if estate.living and handover is None:
                refuse_another(settings, config.path, estate.saved.manager.path)
        daemon = Daemon(
            running_config(estate.saved, config) if estate is not None and estate.living and not handover else config,
            loop=loop,
            journal=journal,
            logs=logs,
            soft_nofile=soft_nofile,
            sockets=sockets,
            made_dir=places.made_state_dir,
        )
        daemon.advises = advises
        loop.set_exception_handler(partial(confess, journal, daemon))
        daemon.service_environment = notifier.environment
        service = Service(daemon, notifier)
        held.callback(service.end)
        service.begin(daemonised=starter.waits)
        daemon.fd_store.begin(notifier, service.say, came or {})
        signals = Signals(loop)
        held.callback(signals.close)
        daemon.outlives_terminal = handover.outlives_terminal if handover is not None else outlives_terminal
        terminal = None if daemon.outlives_terminal else Terminal.controlling()
        if terminal is not None:
            held.callback(terminal.close)
        listen_to_signals(daemon, signals, terminal)
        # Only now: what came during an exec has waited for its handler.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        server = ControlServer(daemon, places.control)
        if handover is not None and estate is not None:
            daemon.started, daemon.upgrades = estate.saved.manager.started, handover.upgrades
            daemon.departure.go_on(handover.draining, handover.draining_why)
        daemon.ground.begin(places, server)
        daemon.go_over = upgrading.GoOver(daemon, places, server, signals, logs.streams)
        return loop.run_until_complete(live(daemon, server, starter, estate, config))


def confess(journal: Journal, daemon: Daemon | None, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A fault of ours that nothing caught: the manager goes on, the log says where it was, and who waits is told."""
    error = context.get("exception")
    where = ""
    if isinstance(error, BaseException) and error.__traceback__ is not None:
        frame = error.__traceback__
        while frame.tb_next is not None:
            frame = frame.tb_next
        where = f"{os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}"
    journal.error("internal error", message=context.get("message"), error=repr(error), where=where)
    # With a socket or transport it is about one client of the control socket: no descriptor for it, say.
    if daemon is not None and isinstance(error, Exception) and not {"socket", "transport"} & context.keys():
        daemon.fault(error)


async def live(daemon: Daemon, server: ControlServer, starter: Starter, estate: Estate | None, config: Config) -> int:
    """From the first process to the last. `estate`: what a manager that was killed has left."""
    await server.open()
    _keep_what_is_in_hand(daemon)
    if estate is None or not estate.handed_over:
        daemon.journal.info(
            "starting", pid=os.getpid(), config=daemon.config.path, control=daemon.config.manager.control
        )
        if config.activated is not None:
            daemon.journal.info(f"pools without `python` run in the virtualenv that is active here: {config.activated}")
    daemon.watchers.append(TellStarter(daemon, starter))
    if estate is None:
        daemon.start()
    else:
        await inherit(daemon, estate, config)
    await daemon.ended
    daemon.end()
    daemon.journal.info("ended", code=daemon.exit_code)
    await server.close()
    return daemon.exit_code


def _keep_what_is_in_hand(daemon: Daemon) -> None:
    """Take what a manager that was killed had read and not yet logged, and have a place for what we shall read."""
    state_dir = daemon.config.manager.state_dir
    daemon.left = inhand.left_in(state_dir)
    try:
        inhand.keep_in(state_dir)
    except OSError as error:
        daemon.journal.warning(
            f"{state_dir}: {error.strerror}; if the manager were killed, the lines that it has just read would be lost"
        )


class TellStarter(Watcher):
    """Lets the starter go as soon as the manager is up, or has given up."""

    def __init__(self, daemon: Daemon, starter: Starter) -> None:
        self._daemon = daemon
        self._starter = starter

    def manager_changed(self) -> None:
        if self._daemon.state == "RUNNING":
            self._starter.tell(0, "\n".join(self._reasons()))
        elif self._daemon.state == "STOPPING" and self._daemon.exit_code == 0:
            self._starter.tell(FAILED, "the manager was told to stop before it was up")
        elif self._daemon.state == "STOPPING":
            self._starter.tell(FAILED, "\n".join(["the manager did not come up", *self._reasons()]))

    def _reasons(self) -> Iterator[str]:
        """Which logs cannot be written, and why each pool that is FATAL is so, with the last log lines of one of its
        processes.
        """
        for trouble in self._daemon.log_troubles:
            yield f"{trouble.path}: {trouble.problem}"
        for pool in self._daemon.pools.values():
            if pool.state is PoolState.FATAL:
                yield f"{pool.name}: {pool.why_fatal()}"
                serving = pool.serving
                fatal = (index for index, state in enumerate(serving.core.processes) if isinstance(state, Fatal))
                yield from (
                    f"    {printable(line)}" for index in islice(fatal, 1) for line in serving.last_words(index)
                )


def open_logs(
    settings: ManagerSettings, loop: asyncio.AbstractEventLoop, held: ExitStack, *, must_be_writable: bool
) -> tuple[Journal, Logs]:
    """The manager's own log, and the registry of all others; what they hold back is written when `held` ends."""

    def report(message: str) -> None:
        journal.warning(message)

    def report_aside(message: str) -> None:
        aside.warning(message)  # trouble with the log itself cannot be told to it
        for follower in followers:
            follower(message)

    followers: list[Report] = []
    output = Stream(1, report=report, loop=loop)
    errors = Stream(2, report=report, loop=loop)
    held.callback(errors.close)
    held.callback(output.close)
    aside = journal = Journal(settings.loglevel, settings.log_format, errors)
    own: Target = errors
    if settings.logfile != "-":
        owner = owner_of_logs(settings.logfile_owner)
        if must_be_writable:
            refuse_unless_writable(settings.logfile, owner, settings.logfile_mode)
        own = LogFile(
            settings.logfile,
            maxbytes=settings.logfile_maxbytes,
            backups=settings.logfile_backups,
            owner=owner,
            mode=settings.logfile_mode,
            report=report_aside,
        )
        held.callback(own.close)
        journal = Journal(settings.loglevel, settings.log_format, own)
    return journal, Logs(own, report=report, streams={1: output, 2: errors}, followers=followers)


def refuse_unless_writable(logfile: str, owner: tuple[int, int] | None, mode: int | None) -> None:
    """A log that cannot be opened later is survived; at the start, when somebody looks, it is refused.

    With --daemon nobody would hear of it: standard error leads nowhere.
    """
    try:
        os.close(open_log(logfile, owner=owner, mode=mode, note=lambda trouble: None))
    except OSError as error:
        mend = f"; make it: install -d {os.path.dirname(logfile)}" if error.errno == errno.ENOENT else ""
        raise LinuxError(f"manager.logfile: cannot open {logfile}: {open_reason(error)}{mend}") from error


def given_sockets(config: Config, passed: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The fds that were passed to us on purpose: systemd's (`passed`) by their names, the others as `fd:N`.

    To be called before anything is opened: later the number is one of our own.
    """
    sockets = dict(passed)
    for pool in config.pools.values():
        for address in pool.sockets:
            if isinstance(address, InheritedAddress) and os.path.exists(f"/proc/self/fd/{address.fd}"):
                sockets[str(address)] = [address.fd]
    return sockets


def change_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        raise LinuxError(f"manager.directory: cannot change to {path}: {error.strerror}") from error


def daemon_warnings(config: Config) -> list[str]:
    """What is lost in the background, where standard output and error lead nowhere, or after the logout."""
    warnings = []
    if goes_at_logout(control := config.manager.control):
        warnings.append(
            f"manager.control is {control}, which is removed when you log out, and then no command reaches the "
            "manager: loginctl enable-linger, or name a place of your own"
        )
    if config.manager.logfile == "-":
        warnings.append('manager.logfile is "-": in the background the manager\'s log is lost; name a file')
    if config.manager.directory is None:
        warnings += filter(None, map(_lost_directory, (*config.pools.values(), *config.programs.values())))
    return warnings


def _lost_directory(settings: ProcessSettings) -> str | None:
    """What to say of a pool or program whose files are found from where the manager is started, but not from /."""
    kind, words = "program", list(settings.command)
    if isinstance(settings, PoolSettings):
        kind = "pool"
        if settings.wsgi is not None:
            top = settings.wsgi.partition(":")[0].partition(".")[0]
            words = [top, f"{top}.py"]
    here = next((word for word in words if not os.path.isabs(word) and os.path.exists(word)), None)
    if here is None or settings.directory is not None or settings.chroot is not None:
        return None
    mend = f'write directory = "{os.getcwd()}"'
    return f"{kind}.{settings.name}: in the background it runs in /, and {here} is in {os.getcwd()}; {mend}"
