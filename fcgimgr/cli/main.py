"""The `fcgimgr` command: which command is meant, and what becomes of its failures.

Each command lives in a module that is imported only when it is wanted, and imports what it needs only when it runs:
`fcgimgr status` is to take no longer than it takes Python to start. No traceback reaches a user: an error that is
expected says what is wrong in its own words, and any other one line, unless FCGIMGR_DEBUG asks where it was.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from . import failure
from .failure import Failure
from .options import common_options

COMPLETE_VARIABLE: Final = "_FCGIMGR_COMPLETE"

# In the order of the help. The module holds the command under the same name, with "_" appended.
_COMMANDS: Final = {
    "check": "configuration",
    "schema": "configuration",
    "run": "running",
    "status": "status",
    "start": "processes",
    "stop": "processes",
    "reload": "replacing",
    "update": "updating",
    "upgrade": "upgrading",
    "restart": "replacing",
    "scale": "processes",
    "signal": "processes",
    "tail": "logs",
    "log": "logs",
    "events": "logs",
    "reopen": "logs",
    "shutdown": "running",
    "drain": "draining",
    "probe": "running",
    "ping": "running",
    "request": "request",
    "dev": "dev",
    "demo": "demo",
    "completion": "completion",
    "help": "help",
}


class _Commands(click.Group):
    """The commands, imported one by one as they are asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from .words import meant_by_option

            if told := meant_by_option(error.option_name):
                raise click.UsageError(f"no option {error.option_name}; here: {told}", ctx) from None
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(f"fcgimgr.cli.{module}"), f"{cmd_name}_")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS and not ctx.resilient_parsing:
            from .words import meant

            raise click.UsageError(f"no command {args[0]!r}; {meant(args[0], _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    subcommand_metavar="[COMMAND [ARGS]…]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    params=common_options(),
)
@click.pass_context
def cli(context: click.Context) -> None:
    """A process manager for FastCGI and other socket-sharing servers.

    Without a command, `fcgimgr -c FILE` runs the manager in the foreground; every other command asks the manager that
    runs. FILE is ./pool.toml or /etc/fcgimgr/pool.toml when it is not given.

    NAME is a pool or program (app, or app:*), one process (app:app_00), a group, or all.

    Exit: 0 done; 1 it failed; 2 usage or configuration; 3 status: something is not running; 4 no manager there.

    More, also of each key of the configuration: `fcgimgr help`.
    """
    if context.invoked_subcommand is not None:
        return
    from .locate import SEARCHED, find_config, given_socket
    from .running import run_manager

    config = find_config(context)
    if socket := given_socket(context):
        from .words import OF_NGINX

        ask = f"here: {OF_NGINX[socket]}" if socket in OF_NGINX else "say what to ask it, such as status"
        raise click.UsageError(f"-s names the socket of a manager that runs: {ask}")
    if config is None:
        raise Failure(
            f"nothing to run: there is no {' and no '.join(SEARCHED)}\n"
            "to see it at work: fcgimgr demo; to run a WSGI application without a file: fcgimgr dev app:app; "
            "to write one: fcgimgr help first-pool; all commands: fcgimgr --help",
            code=failure.USAGE,
        )
    run_manager(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's own) and return the exit code."""
    # Names and paths that are not UTF-8 are shown escaped rather than refused.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        instruction = os.environ.get(COMPLETE_VARIABLE)
        if instruction:
            return _complete(instruction)
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return failure.INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return failure.PIPE_CLOSED
    except OSError as error:
        _abandon_stdout()
        _trace(error)
        what = os.fsdecode(error.filename) if error.filename else "input or output failed"
        return _say(f"{what}: {error.strerror or error}", failure.FAILED)


def _abandon_stdout() -> None:
    """Python would complain once more when it flushes stdout at its end: give it somewhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    try:
        with cli.make_context("fcgimgr", arguments) as context:
            cli.invoke(context)
        return failure.DONE
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.ClickException as error:
        sys.stdout.flush()
        error.show()
        return error.exit_code
    except click.Abort:
        return failure.INTERRUPTED
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - the one place where every failure of a command ends
        return _report(error)


def _report(error: Exception) -> int:
    """Say what went wrong, in the error's own words where it is of a kind that has them."""
    from fcgimgr.config.problems import ConfigError
    from fcgimgr.control.messages import INVALID_PARAMS, ControlError
    from fcgimgr.fastcgi.records import FastCGIError
    from fcgimgr.linux.errors import LinuxError

    sys.stdout.flush()
    match error:
        case Failure():
            return _say(str(error), error.code)
        case ConfigError():
            return _say(str(error), failure.USAGE, prefix="")
        case ControlError():
            return _say(str(error), failure.USAGE if error.code == INVALID_PARAMS else failure.FAILED)
        case FastCGIError() | LinuxError():
            return _say(str(error), failure.FAILED)
    _trace(error)
    name = type(error).__name__
    return _say(f"internal error: {name}: {error}; set FCGIMGR_DEBUG=1 to see where", failure.FAILED)


def _trace(error: Exception) -> None:
    if os.environ.get("FCGIMGR_DEBUG"):
        import traceback

        traceback.print_exception(error)


def _say(message: str, code: int, prefix: str = "fcgimgr: ") -> int:
    if message:
        print(f"{prefix}{message}", file=sys.stderr)
    return code


def _complete(instruction: str) -> int:
    from click.shell_completion import shell_complete

    from . import shells

    shells.register()
    return shell_complete(cli, {}, "fcgimgr", COMPLETE_VARIABLE, instruction)
