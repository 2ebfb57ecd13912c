"""What signals to the manager mean: the presets of `[manager] signals`.

The signal says what is wanted and nothing else; what came of it is in the log. A terminal that hangs up sends SIGHUP
too (linux/terminal.py). Whoever runs the manager in its foreground and closes it wants it to end, as every program does
then; and it would go on with nobody to see it. So that one is a TERM, whatever the preset.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import Final

from fcgimgr.control.messages import ControlError
from fcgimgr.linux.terminal import Terminal
from fcgimgr.manager.commands import table, updating
from fcgimgr.manager.commands.names import Chosen
from fcgimgr.manager.daemon import Daemon
from fcgimgr.manager.ground.orders import given_by
from fcgimgr.manager.ground.signals import Signals


def terminate(daemon: Daemon, name: str) -> None:
    """Stop everything after drain_delay; the second time sooner."""
    if daemon.state == "STOPPING":
        daemon.shutdown_now(f"{name} for the second time")
    elif daemon.ending:
        daemon.shutdown(f"{name} for the second time: drain_delay is cut short")
    else:
        daemon.departure.shutdown(name)


def update(daemon: Daemon, name: str) -> None:
    """`fcgimgr update`"""
    if not daemon.ending:
        daemon.in_background(_update(daemon, name.removeprefix("SIG")))


def reload_all(daemon: Daemon, name: str) -> None:
    """`fcgimgr reload all`, of what is up."""
    if not daemon.ending:
        daemon.in_background(_reload(daemon, name.removeprefix("SIG")))


def reopen(daemon: Daemon, name: str) -> None:
    """`fcgimgr reopen`"""
    daemon.reopen_logs()


#: By the name of the preset, what each signal does.
PRESETS: Final[dict[str, dict[signal.Signals, Callable[[Daemon, str], None]]]] = {
    "php-fpm": {
        signal.SIGTERM: terminate,
        signal.SIGINT: terminate,
        signal.SIGQUIT: terminate,
        signal.SIGHUP: update,
        signal.SIGUSR1: reopen,
        signal.SIGUSR2: reload_all,
    },
}


def listen_to_signals(daemon: Daemon, signals: Signals, terminal: Terminal | None) -> None:
    """Obey signals as the configuration says. `terminal`: the one whose end is also the manager's."""
    preset = PRESETS[daemon.config.manager.signals]
    for number, order in preset.items():
        signals.handle(number, partial(order, daemon, number.name))
    signals.handle(signal.SIGCHLD, daemon.reap_children)
    if terminal is not None:
        signals.handle(signal.SIGHUP, partial(hang_up, daemon, terminal, preset[signal.SIGHUP]))
        daemon.loop.add_reader(terminal, note_hangup, daemon, terminal)


def note_hangup(daemon: Daemon, terminal: Terminal) -> None:
    """The terminal has hung up; its signal may follow."""
    terminal.look(daemon.loop.time())
    daemon.loop.remove_reader(terminal)


def hang_up(daemon: Daemon, terminal: Terminal, order: Callable[[Daemon, str], None]) -> None:
    """SIGHUP, from whomever."""
    if terminal.ended_lately(daemon.loop.time()):
        terminate(daemon, "SIGHUP: the terminal has hung up")
    else:
        order(daemon, signal.SIGHUP.name)


async def _update(daemon: Daemon, name: str) -> None:
    with given_by(f"SIG{name}"), daemon.reloading():
        await updating.update_and_log(daemon, name)
    daemon.ground.look()


async def _reload(daemon: Daemon, name: str) -> None:
    daemon.journal.info(f"{name}: reloading all")
    with given_by(f"SIG{name}"), daemon.reloading():
        chosen: Chosen = {pool.serving: None for pool in daemon.pools.values() if pool.serving.core.up}
        try:
            shares = table.canary_shares(chosen, None)
        except ControlError as error:
            daemon.journal.error(f"{name}: {error}")
            return
        verdict = await table.replace(daemon, chosen, table.Nobody(), shares=shares)
    updating.log_verdicts(daemon, name, verdict.processes)
