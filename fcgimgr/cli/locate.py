"""Which configuration and which manager a command is about.

`-s SOCKET` names the manager's control socket; else `-c FILE`, else ./pool.toml or /etc/fcgimgr/pool.toml, says where
it is. A file that is broken at the moment must not keep anyone from asking the manager that still runs: of such a file
only `[manager] control` is looked for. A sound file is not read whole either: with a thousand processes that
would take longer than asking the manager about them.

What lies in the directory that root happens to be in may be anybody's: root has to name it to have it taken.
"""

import os
import re
from typing import Any, Final

import click

from .failure import NO_MANAGER, USAGE, Failure

SEARCHED: Final = ("pool.toml", "/etc/fcgimgr/pool.toml")

_CONFIG_KEY: Final = "fcgimgr.config"
_SOCKET_KEY: Final = "fcgimgr.socket"

_CONTROL_LINE: Final = re.compile(r"""\s*control\s*=\s*(?:"([^"\\]*)"|'([^']*)')\s*(?:#.*)?$""")
_TABLE_LINE: Final = re.compile(r"\s*\[\s*([^]]*?)\s*\]")


def remember_config(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Option callback: the file given nearest to the command counts."""
    if value is not None:
        context.meta[_CONFIG_KEY] = value


def remember_socket(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Option callback: the socket given nearest to the command counts."""
    if value is not None:
        context.meta[_SOCKET_KEY] = value


def given_socket(context: click.Context) -> str | None:
    socket: str | None = context.meta.get(_SOCKET_KEY)
    return socket


def given_config(context: click.Context) -> str | None:
    config: str | None = context.meta.get(_CONFIG_KEY)
    return config


def find_config(context: click.Context) -> str | None:
    """The file given, else the first of SEARCHED that exists, as an absolute path; None when there is none.

    Failure: root found one that others may change.
    """
    given = given_config(context)
    if given is not None:
        return _absolute(given)
    found = next((os.path.abspath(path) for path in SEARCHED if os.path.exists(path)), None)
    if found is not None and os.geteuid() == 0:
        _refuse_of_others(found)
    return found


def _refuse_of_others(path: str) -> None:
    from fcgimgr.linux.directories import others_who_may_change

    if other := others_who_may_change(path):
        raise Failure(
            f"{path}: {other}, who can run anything as root by it; if that is what you want, name it: "
            f"-c {short_path(path)}",
            code=USAGE,
        )


def config_file(context: click.Context) -> str:
    """Like `find_config`; Failure when there is none."""
    path = find_config(context)
    if path is None:
        raise Failure(f"no configuration: give -c FILE (there is no {' and no '.join(SEARCHED)})", code=USAGE)
    return path


def control_socket(context: click.Context) -> str:
    """The path of the control socket that the command line, or the configuration, names. Failure: neither does."""
    socket = given_socket(context)
    if socket is not None:
        return _absolute(socket)
    path = find_config(context)
    if path is None:
        raise Failure(f"which manager? Give -c FILE or -s SOCKET (there is no {' and no '.join(SEARCHED)})", code=USAGE)
    return control_path(path)


def control_path(config: str) -> str:
    """The control socket of the manager that runs with the file `config`, which may be broken.

    Failure when the file cannot be read at all.
    """
    try:
        with open(config, "rb") as file:
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        raise Failure(f"{config}: {error.strerror or error}", code=USAGE) from error
    path = _control_path(config, _tables(text))
    if path == _default(config):
        path = _default_in_use(config)
        _refuse_squatted(os.path.dirname(path))
    return path


def _control_path(config: str, tables: dict[str, Any]) -> str:
    manager = tables.get("manager")
    control = manager.get("control") if isinstance(manager, dict) else None
    if isinstance(control, str) and (path := _expanded(control, os.path.dirname(config))) is not None:
        return path
    if control is None and "include" not in tables:
        return _default(config)
    return _from_a_full_read(config) or _default(config)


def _refuse_squatted(directory: str) -> None:
    """Without XDG_RUNTIME_DIR it is in /tmp, where another user may have made it, to answer in the manager's place."""
    if (uid := _squatter(directory)) is not None:
        raise Failure(
            f"{directory} belongs to uid {uid}: whoever answers there is not your manager; remove it, or set "
            "XDG_RUNTIME_DIR"
        )


def _squatter(directory: str) -> int | None:
    """The uid of whoever else has made it."""
    try:
        uid = os.lstat(directory).st_uid
    except OSError:
        return None  # then nobody is there to answer
    return uid if uid not in (0, os.geteuid()) else None


def refuse_another(running: str | None, config: str, socket: str) -> None:
    """Failure if the manager at `socket` runs another configuration (`running`; None: it does not say) than `config`.

    Two projects with a pool.toml each have the same control socket where neither says which.
    """
    if running is None or running == config.encode("utf-8", "backslashreplace").decode():
        return
    try:
        if os.path.samefile(running, config):
            return
    except OSError:
        pass  # one of them is not there any more, or lies where only the manager sees it
    raise Failure(
        f"the manager at {socket} runs {running}, not {config}\n"
        f'give each a control socket of its own: [manager] control = "…"; or name the one that you mean: -s {socket}',
        code=NO_MANAGER,
    )


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise Failure(
            f"{path}: the directory that you are in has been removed; go to one that exists, or give an absolute path",
            code=USAGE,
        ) from None


def short_path(path: str) -> str:
    """`path` relative to the working directory where that is shorter to read."""
    try:
        relative = os.path.relpath(path)
    except FileNotFoundError:  # we stand in a directory that has been removed
        return path
    return path if relative.startswith("..") else relative


def _tables(text: str) -> dict[str, Any]:
    import tomli

    try:
        return tomli.loads(text)
    except (tomli.TOMLDecodeError, RecursionError):
        return _salvaged(text)


def _salvaged(text: str) -> dict[str, Any]:
    """`[manager] control` of a text that is not TOML, line by line."""
    table = ""
    for line in text.splitlines():
        if header := _TABLE_LINE.match(line):
            table = header[1]
        elif table == "manager" and (control := _CONTROL_LINE.match(line)):
            return {"manager": {"control": control[1] if control[1] is not None else control[2]}}
    return {}


def _expanded(control: str, directory: str) -> str | None:
    """`control` of a file in `directory` as a path; None when it cannot be expanded."""
    if "%" in control:
        from fcgimgr.config.expansions import expand

        names: dict[str, str | int] = {f"ENV_{name}": value for name, value in os.environ.items()}
        names |= {"here": directory, "host_node_name": os.uname().nodename}
        try:
            control = expand(control, names)
        except ValueError:
            return None
    return os.path.normpath(os.path.join(directory, control))


def _from_a_full_read(config: str) -> str | None:
    """What only the whole reading knows: included files. None when the file is broken."""
    from fcgimgr.config.problems import ConfigError
    from fcgimgr.config.read import read

    try:
        return read(config, os.environ).manager.control
    except ConfigError:
        return None


def _default(config: str) -> str:
    from fcgimgr.config.settings import default_control

    return default_control(config)


def _default_in_use(config: str) -> str:
    """The default, or where it was for a manager that was started without our XDG_RUNTIME_DIR (by cron) or with one
    that we have not, if there is a socket.
    """
    from fcgimgr.config.settings import default_control

    default = default_control(config)
    if os.path.exists(default):
        return default
    elsewhere: tuple[dict[str, str], ...] = ({"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}"}, {})
    paths = (default_control(config, environ) for environ in elsewhere)
    found = (path for path in paths if os.path.exists(path) and _squatter(os.path.dirname(path)) is None)
    return next(found, default)
