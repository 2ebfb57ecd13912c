"""What is to be said where no manager answers: the way to start one, or to the one that runs all the same."""

import os

import click

from .failure import NO_MANAGER, Failure
from .locate import SEARCHED, control_path, control_socket, find_config, given_config, given_socket, short_path


def no_manager(problem: str, context: click.Context) -> Failure:
    """The failure of a command that found nobody."""
    config = find_config(context)
    lines = [problem, _mend(config, control_socket(context)), *_another(context, config)]
    return Failure("\n".join(lines), code=NO_MANAGER)


def _mend(config: str | None, socket: str) -> str:
    if (pid := _holder_of_lock(socket)) is not None:
        return f"pid {pid} runs without it, as somebody has removed it; it is made again by: kill -HUP {pid}"
    if config is not None and (pid := _manager_of(config)) is not None:
        return (
            f"pid {pid} runs {short_path(config)}, and its control socket is another, or went with its directory when "
            "you logged out (loginctl enable-linger prevents that); if the directory is there again, make it again by: "
            f"kill -HUP {pid}"
        )
    return f"start one with: fcgimgr -c {'pool.toml' if config is None else short_path(config)}"


def _holder_of_lock(socket: str) -> int | None:
    """The pid of the manager that has this control socket, though it may have been removed; None: none is known."""
    import fcntl

    lock = os.path.join(socket.removesuffix(".sock") + ".state", "lock")
    try:
        with open(lock, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(20))
    except (OSError, ValueError):
        pass
    return None


def _manager_of(config: str) -> int | None:
    """The pid of a manager that runs this configuration, and that is ours to signal."""
    from fcgimgr.linux.procfs import configuration_of, pids

    return next((pid for pid in pids() if configuration_of(pid) == config and _is_ours(pid)), None)


def _is_ours(pid: int) -> bool:
    try:
        return os.geteuid() in (0, os.stat(f"/proc/{pid}").st_uid)
    except OSError:  # it has ended
        return False


def _another(context: click.Context, config: str | None) -> list[str]:
    """Of the configuration of the machine, where the one that lies here was taken and nobody named it."""
    of_machine = SEARCHED[-1]
    if given_socket(context) or given_config(context) or config in (None, of_machine):
        return []
    try:
        runs = os.path.exists(control_path(of_machine))
    except Failure:  # there is none, or it is not for us to read
        return []
    return [f"the manager of {of_machine} is asked by: fcgimgr -c {of_machine}"] if runs else []
