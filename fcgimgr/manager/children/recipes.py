"""What a child is started from: its words, environment and privileges, put together from the settings.

What is the same for every process of a pool is made once, when the pool opens; what differs is added at each spawn.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Final

import msgspec

from fcgimgr.config.processes import ProcessPlan, process_plan
from fcgimgr.config.settings import Config, PoolSettings, ProcessSettings
from fcgimgr.config.virtualenv import python_in
from fcgimgr.fastcgi import scoreboard
from fcgimgr.linux.accounts import Account, resolve_user
from fcgimgr.linux.executables import find_executable
from fcgimgr.linux.recipes import Recipe
from fcgimgr.linux.spawn import FIRST_LISTENER
from fcgimgr.manager.children.board import board_fd
from fcgimgr.manager.logs import requestlogs
from fcgimgr.manager.logs.opening import owner_of_logs

# Tells a WSGI worker, which may run in a virtualenv without it, where flup is (fcgimgr/worker/__init__.py).
FLUP_VARIABLE: Final = "FCGIMGR_FLUP"

# Tells a WSGI worker how its lines are logged (fcgimgr/worker/saying.py).
LOG_FORMAT_VARIABLE: Final = "FCGIMGR_LOG_FORMAT"

# Tells a WSGI worker which descriptors are its listeners (fcgimgr/worker/listening.py).
LISTENERS_VARIABLE: Final = "FCGI_LISTEN_FD"
# The plans of a pool's processes differ in the number; one with so many figures has the longest name.
_LAST_PROCESS: Final = 9_999

# What the manager's own supervisor told the manager is not for its children: they would answer in its place.
_FOR_THE_MANAGER_ONLY: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "MAINPID",
)


class Recipes:
    """The recipes of one pool, and whose its logs are. LinuxError when one of these users does not exist."""

    def __init__(
        self,
        settings: ProcessSettings,
        config: Config,
        *,
        generation: int,
        notify_socket: str | None,
        soft_nofile: int | None,
    ) -> None:
        self._settings = settings
        self._config = config
        self._soft_nofile = soft_nofile
        self.account: Account | None = resolve_user(settings.user) if settings.user else None
        self.log_owner = owner_of_logs(settings.logfile_owner)
        self._environment = self._common_environment(generation, notify_socket)

    def plan(self, index: int) -> ProcessPlan:
        return process_plan(self._settings, self._config, index)

    def recipe(self, plan: ProcessPlan) -> Recipe:
        """How to spawn the process of this plan now. LinuxError when its command is not there or not executable."""
        settings = self._settings
        environment = {
            **self._environment,
            "FCGIMGR_PROCESS": plan.name,
            "SUPERVISOR_PROCESS_NAME": plan.name,
            **requestlogs.environment(plan),
            **plan.environment,
        }
        return Recipe(
            argv=plan.argv,
            executable=find_executable(
                plan.argv[0],
                environment.get("PATH", os.defpath),
                plan.directory,
                chroot=settings.chroot,
                key=_key(settings),
            ),
            environment=environment,
            directory=plan.directory,
            umask=settings.umask,
            account=self.account,
            nice=settings.nice,
            rlimits=settings.rlimits,
            no_new_privs=settings.no_new_privs,
            oom_score_adj=settings.oom_score_adj,
            chroot=settings.chroot,
            soft_nofile=self._soft_nofile,
        )

    def zygote(self) -> tuple[Recipe, ProcessPlan]:
        """How to spawn the zygote: in all as the first process, of which it has the logs as well, but for its name.

        That is none that a process could have, and so long that any of theirs can be written over it.
        """
        longest = len(os.fsencode(self.plan(_LAST_PROCESS).name))
        plan = msgspec.structs.replace(self.plan(0), name="zygote")
        recipe = self.recipe(plan)
        environment = {**recipe.environment, "FCGIMGR_PROCESS": ":zygote".ljust(longest, ":")}
        return msgspec.structs.replace(recipe, environment=environment), plan

    def _common_environment(self, generation: int, notify_socket: str | None) -> dict[str, str]:
        settings = self._settings
        environment = {name: value for name, value in os.environ.items() if name}  # "=C:=x", which no exec would take
        if settings.clear_env:
            environment = {"PATH": environment.get("PATH", os.defpath)}
        for name in _FOR_THE_MANAGER_ONLY:
            environment.pop(name, None)
        if self.account is not None:
            # Supervisor leaves root's HOME to a program of www-data, and that program fails in /root: told by many.
            environment.update(
                HOME=self.account.home, USER=self.account.name, LOGNAME=self.account.name, SHELL=self.account.shell
            )
        if isinstance(settings, PoolSettings):
            environment.update(_pool_environment(settings))
        if notify_socket is not None:
            environment["NOTIFY_SOCKET"] = notify_socket
        groups = self._config.groups.items()
        group = next((name for name, group in groups if settings.name in group.programs), settings.name)
        environment.update(
            FCGIMGR_POOL=settings.name,
            FCGIMGR_GENERATION=str(generation),
            SUPERVISOR_ENABLED="1",
            SUPERVISOR_GROUP_NAME=group,
        )
        return environment


def _key(settings: ProcessSettings) -> str:
    """Where the program to execute was set, for the message that it is not there."""
    if not isinstance(settings, PoolSettings) or settings.wsgi is None:
        return "command"
    activated = settings.python is not None and settings.python == python_in(os.environ)
    return "python ($VIRTUAL_ENV)" if activated else "python"


def _pool_environment(settings: PoolSettings) -> dict[str, str]:
    environment = {}
    if settings.socket_allowed:
        environment["FCGI_WEB_SERVER_ADDRS"] = ",".join(settings.socket_allowed)
    if settings.socket_pass == "env":
        fds = range(FIRST_LISTENER, FIRST_LISTENER + len(settings.sockets))
        environment[settings.socket_env] = ",".join(map(str, fds))
    if (place := board_fd(settings)) is not None:
        environment[scoreboard.VARIABLE] = str(place)
    if settings.wsgi is not None:
        environment[LOG_FORMAT_VARIABLE] = settings.log_format
    if settings.wsgi is not None and (home := flup_home()) is not None:
        environment[FLUP_VARIABLE] = home
    return environment


def flup_home() -> str | None:
    """The directory that holds the package flup, for an application's interpreter that has none of its own."""
    found = importlib.util.find_spec("flup")
    if found is None or not found.submodule_search_locations:
        return None
    return os.path.dirname(found.submodule_search_locations[0])
