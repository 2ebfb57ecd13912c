"""The manual pages, man/fcgimgr.1 and man/fcgimgr.toml.5, of the commands' help and of the settings. Write them with

    python -m fcgimgr.cli.manpage man

A test fails while the files in the repository say something else; a wheel brings them to share/man.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click

from fcgimgr.cli.examples import EXAMPLES
from fcgimgr.cli.main import cli
from fcgimgr.cli.options import common_options
from fcgimgr.config.keys import Key, keys
from fcgimgr.config.pools import PoolSettings, ProcessSettings
from fcgimgr.config.reference import default_of, values_of
from fcgimgr.config.settings import GroupSettings, ManagerSettings

_CODE: Final = re.compile(r"`([^`]+)`")
_ESCAPES: Final = str.maketrans({"\\": r"\e", "-": r"\-", "…": "...", '"': r"\(dq", "'": r"\(aq"})


def pages() -> dict[str, str]:
    """Each page by the name of its file."""
    return {"fcgimgr.1": _page(_commands()), "fcgimgr.toml.5": _page(_configuration())}


def _page(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _commands() -> Iterator[str]:
    yield '.TH FCGIMGR 1 "" "fcgimgr" "User Commands"'
    yield from _section("NAME", r"fcgimgr \- a process manager for FastCGI and other socket-sharing servers")
    yield from _section("SYNOPSIS", ".B fcgimgr", r"[\-c FILE | \-s SOCKET] [COMMAND [ARGS]]")
    with cli.make_context("fcgimgr", [], resilient_parsing=True) as context:
        about = inspect.cleandoc(cli.help or "").partition("\n\n")[2]
        yield from _section("DESCRIPTION", *_paragraphs(about))
        yield from _section("OPTIONS")
        yield from _options(common_options(), context)
        yield from _section("COMMANDS")
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None  # it was listed
            yield from _command(command, click.Context(command, info_name=name, parent=context))
    yield from _section("FILES")
    yield from _item("./pool.toml, /etc/fcgimgr/pool.toml", "The configuration, where -c names no other.")
    yield from _item("/run/fcgimgr/pool.sock", "The control socket, where the configuration names no other.")
    yield from _section("SEE ALSO", r".BR fcgimgr.toml (5);", _text("`fcgimgr help` for the guides."))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    arguments = [
        parameter.make_metavar(context) for parameter in command.params if isinstance(parameter, click.Argument)
    ]
    yield f'.SS "{_text(" ".join([context.command_path, *arguments]))}"'
    yield from _paragraphs(inspect.cleandoc(command.help or "").partition("\f")[0])
    common = {option.name for option in common_options()}
    yield from _options([option for option in command.params if option.name not in common], context)
    for line, about in EXAMPLES[command.name or ""]:
        yield from _item(line, f"{about}.")


def _options(options: Iterable[click.Parameter], context: click.Context) -> Iterator[str]:
    for option in options:
        record = option.get_help_record(context)
        if isinstance(option, click.Option) and record is not None:
            yield from _item(*record)


def _configuration() -> Iterator[str]:
    yield '.TH FCGIMGR.TOML 5 "" "fcgimgr" "File Formats"'
    yield from _section("NAME", r"fcgimgr.toml \- the configuration of fcgimgr")
    about = (
        "A TOML file: [manager], [defaults], and a table for each [pool.NAME], [program.NAME] and [group.NAME]. "
        "`fcgimgr check` says what is wrong in it, `fcgimgr help configuration` how values are written."
    )
    yield from _section("DESCRIPTION", _text(about))
    shared = keys(ProcessSettings)
    yield from _section("[manager]", *_keys(keys(ManagerSettings).values()))
    yield from _section("[pool.NAME]", *_keys(key for key in keys(PoolSettings).values() if key.name not in shared))
    yield from _section("[pool.NAME] and [program.NAME]", *_keys(shared.values()))
    yield from _section("[group.NAME]", *_keys(keys(GroupSettings).values()))
    yield from _section("SEE ALSO", r".BR fcgimgr (1)")


def _keys(known: Iterable[Key]) -> Iterator[str]:
    for key in known:
        default = "required" if key.required else f"default: {default_of(key) or 'none'}"
        yield from _item(f"{key.name} = {values_of(key.kind)}".replace("`", ""), f"{key.description} ({default})")


def _section(title: str, *lines: str) -> Iterator[str]:
    yield f'.SH "{title}"'
    yield from lines


def _item(term: str, about: str) -> Iterator[str]:
    yield ".TP"
    yield rf"\fB{_text(term)}\fR"
    yield _text(about)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in filter(None, text.split("\n\n")):
        yield ".PP"
        yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """`text` as roff has it: code in bold, and nothing of it taken for a request."""
    escaped = text.translate(_ESCAPES)
    bold = _CODE.sub(r"\\fB\1\\fR", escaped)
    return rf"\&{bold}" if bold.startswith(".") else bold


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(sys.argv[1]) / name).write_text(text, encoding="utf-8")
