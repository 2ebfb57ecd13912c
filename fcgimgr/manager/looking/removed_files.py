"""The files that the manager stands on: put back, or made again, when somebody removes them under its feet.

A pool's socket whose file is gone serves on, and no client finds it; without its control socket the manager is deaf;
without its state a crash would cost every request in hand. Cleaners of /tmp do that, scripts that tidy up /run, and
servers that unlink the socket they were given when they end. So the files are watched (linux/presence.py), and looked
at when one may have gone, and at each update and reload, for where watching is not to be had. What has gone is told
once, and again only when it has been all right meanwhile.
"""

from __future__ import annotations

from asyncio import TimerHandle
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from fcgimgr.linux.directories import directory_of
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.listeners import Listener, LostListener
from fcgimgr.linux.presence import Presence
from fcgimgr.linux.socketfile import SocketFile
from fcgimgr.manager.ground.budget import Budgeted
from fcgimgr.manager.logs import inhand
from fcgimgr.manager.logs.opening import open_reason
from fcgimgr.manager.succession.own_files import UnsafeError
from fcgimgr.manager.succession.state import BESIDE

if TYPE_CHECKING:
    from fcgimgr.config.settings import ManagerSettings
    from fcgimgr.manager.commands.server import ControlServer
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation
    from fcgimgr.manager.sockets.listening import Listening
    from fcgimgr.manager.succession.own_files import Places

#: Seconds that whoever removes files may go on: what is made in a directory that he is about to remove stops him.
LATER: Final = 0.2
#: How often it is tried, then, to make them again, until that is given up and told.
TRIES: Final = 3
#: Seconds after a pool was reloaded for its socket's file, in which that is not done again: who removes it goes on.
NOT_AGAIN_WITHIN: Final = 60.0
#: What is told of files that are all there, in a directory that was given to somebody else.
UNSAFE: Final = "not safe any more where they are; a next manager will not start there"


class Ground:
    """Looked after from `begin` to `end`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._places: Places | None = None
        self._server: ControlServer | None = None
        self._presence: Presence | None = None
        self._later: TimerHandle | None = None
        self._heard: Budgeted | None = None
        self._tries = 0  # how often in a row something of ours could not be made
        self._told: set[str] = set()  # what it is known of that it is wrong
        self._removed: set[str] = set()  # whose file was removed before
        self._reloaded: dict[str, float] = {}  # the pools that were reloaded for it, when

    def begin(self, places: Places, server: ControlServer) -> None:
        self._places, self._server = places, server
        try:
            self._presence = Presence()
        except OSError as error:
            self._daemon.journal.warning(
                f"files that somebody removes are noticed late: {error.strerror}; raise fs.inotify.max_user_instances "
                "(sysctl)"
            )
        else:
            # Who may write to a directory that is watched could have us look for ever.
            self._heard = Budgeted(self._daemon.loop, self._presence, partial(self._hear, self._presence))
        self._watch_own()

    def end(self) -> None:
        self._places = self._server = None
        if self._later is not None:
            self._later.cancel()
        if self._heard is not None and self._presence is not None:
            self._heard.end()
            self._presence.close()
            self._heard = self._presence = None

    def watch(self, listening: Listening) -> None:
        """Look after the files of these listeners, as long as they are open."""
        for listener in listening.listeners:
            self._watch_socket(listener)
            # Nobody tells of what was removed before it was watched.
            with suppress(LinuxError):
                if self._presence is not None and listener.file is not None and not listener.file.is_in_place():
                    self._look_soon()

    def watch_request_log(self, fd: int) -> None:
        """Look after this file, which workers write to. One that is renamed is not missed: they make a new one."""
        if self._presence is not None:
            with suppress(OSError):
                self._presence.watch_file(f"/proc/self/fd/{fd}", moves=False)

    def _watch_socket(self, listener: Listener) -> None:
        if self._presence is None or listener.file is None:
            return
        # A mode that lets not even us read it, or no watches left: then it is looked at when something is done.
        with suppress(OSError), listener.way_in() as itself:
            self._presence.watch_file(itself)
        with suppress(OSError), directory_of(listener.file.path) as (directory, _):
            self._presence.watch_directory(f"/proc/self/fd/{directory}")

    def _watch_own(self) -> None:
        if self._presence is None or self._places is None:
            return
        self._watch_socket(self._places.control)
        with suppress(OSError):
            self._presence.watch_directory(self._daemon.config.manager.state_dir, files=True)
        for lock in self._places.locks:
            with suppress(OSError):
                self._presence.watch_file(f"/proc/self/fd/{lock.fileno()}")

    def _hear(self, presence: Presence) -> None:
        if not presence.hear(passing=BESIDE):  # written anew, by us
            return
        self._tries = 0
        self.put_sockets_back()
        self._look_soon()

    def _look_soon(self) -> None:
        if self._later is None:
            self._later = self._daemon.loop.call_later(LATER, self._look_later)

    def _look_later(self) -> None:
        self._later = None
        self.look()

    def put_sockets_back(self) -> None:
        """At once, where that can be done at once: clients come all the time."""
        if self._places is None or self._daemon.state == "STOPPING":
            return
        for generation, listener, file in self._sockets():
            with suppress(LinuxError):
                if not file.is_in_place() and file.put_back():
                    self._note(generation, listener)

    def open_control_to(self, settings: ManagerSettings) -> None:
        """Let those control us whom these settings name. LinuxError: it cannot be, and all is as it was."""
        if self._places is not None and self._server is not None:
            self._places.open_to(settings)
            self._server.open_to(settings)

    # Looking

    def look(self) -> None:
        """Put back what is gone, or make it again, and say what cannot be had."""
        if self._places is None or self._daemon.state == "STOPPING":
            return
        for each in self._sockets():
            self._look_at_socket(*each)
        self._look_at_request_logs()
        self._look_at_own(self._places)

    def _sockets(self) -> list[tuple[Generation, Listener, SocketFile]]:
        return [
            (generation, listener, listener.file)
            for pool in self._daemon.pools.values()
            for generation in pool.generations.values()
            for listener in (generation.listening.listeners if generation.listening is not None else ())
            if listener.file is not None and not isinstance(listener, LostListener)
        ]

    def _look_at_socket(self, generation: Generation, listener: Listener, file: SocketFile) -> None:
        try:
            if file.is_in_place():
                self._told.discard(listener.name)
                return
            back = file.put_back()
        except LinuxError as error:
            self._tell(listener.name, f"no client can come in: {error}", generation.name)
            return
        if back:
            self._note(generation, listener)
        elif generation.pool.serving is generation:
            self._replace(generation, listener)

    def _note(self, generation: Generation, listener: Listener) -> None:
        """Its file is there again. Of a server that removes it at its every end that is told once."""
        journal = self._daemon.journal
        leaves = generation.pool.serving is not generation
        log = journal.debug if leaves or generation.name in self._removed else journal.warning
        if not leaves:
            self._removed.add(generation.name)
        log(f"{listener.name}: its file was removed (by a server that ends?); put back", name=generation.name)

    def _replace(self, generation: Generation, listener: Listener) -> None:
        """No name is left of its file: only another socket can have its path, and so a generation of its own."""
        pool, now = generation.pool, self._daemon.loop.time()
        gone = f"{listener.name}: its file was removed, and no client can come in"
        before = self._reloaded.get(pool.name)
        if not generation.core.up or pool.core.coming is not None:
            return  # it is closed, or its path taken, in a moment
        if not pool.can_reload():
            self._tell(listener.name, f"{gone}; fcgimgr restart {pool.name}", pool.name)
        elif before is not None and now - before < NOT_AGAIN_WITHIN:
            self._tell(
                listener.name,
                f"{gone}, once more; find out who removes it, then: fcgimgr reload {pool.name}",
                pool.name,
            )
        else:
            self._reloaded[pool.name] = now
            self._daemon.journal.warning(f"{gone}: reloading, to have another", name=pool.name)
            pool.reload(pool.settings, pool.config)

    def _look_at_request_logs(self) -> None:
        logs = {
            path: (generation.name, rights)
            for pool in self._daemon.pools.values()
            for generation in pool.generations.values()
            for path, rights in generation.request_logs()
        }
        for path, (name, rights) in logs.items():
            try:
                made = self._daemon.request_files.put_back(path, rights)
            except OSError as error:
                self._tell(path, f"{path}: was removed, and cannot be made again: {open_reason(error)}", name)
                continue
            self._told.discard(path)
            if made is not None:
                self._daemon.journal.warning(f"{path}: {made}", name=name)

    def _look_at_own(self, places: Places) -> None:
        daemon = self._daemon
        made: list[str] = []
        for subject, put_back in (
            ("the manager's own files", places.put_back),
            ("the notify sockets", daemon.notify.put_back),
            ("the state file", daemon.state_file.put_back),
            ("what is in hand of logs", partial(inhand.put_back, daemon.config.manager.state_dir)),
        ):
            try:
                made += put_back()
            except UnsafeError as error:
                self._tell(UNSAFE, f"{subject}: {UNSAFE}: {error}")
                break  # nothing is made in a place of somebody else's
            except (LinuxError, OSError) as error:
                self._tries += 1
                if self._tries < TRIES:  # whoever removes them may have come between
                    self._look_soon()
                else:
                    self._tell(subject, f"{subject}: removed, and cannot be made again: {error}")
                break  # the others lie in what could not be made
            self._told -= {subject, UNSAFE}
        for path in made:
            daemon.journal.warning(f"{path}: was removed; made again")
        if made:
            self._watch_own()
            self._look_soon()  # nobody tells of what was removed between these two
        if self._server is not None and self._server.listener is not places.control:
            daemon.in_background(self._server.listen_on(places.control))

    def _tell(self, subject: str, message: str, name: str = "") -> None:
        if subject not in self._told:
            self._told.add(subject)
            self._daemon.journal.error(message, name=name)
