"""docs/commands.md: what each command takes, written between the prose of a person. Write it again with

    python -m fcgimgr.cli.reference docs/commands.md

The file holds a block for each command, `<!-- options of NAME -->` to `<!-- end of NAME -->`; what lies between is
taken from the command itself. A test fails while the file in the repository says something else.
"""

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from fcgimgr.cli.examples import lines
from fcgimgr.cli.main import cli
from fcgimgr.cli.options import common_options

_BLOCK: Final = re.compile(r"(<!-- options of ([\w-]+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def written_again(text: str) -> str:
    """`text` with every block of a command as the command is now. KeyError: there is no such command."""
    known = blocks()
    return _BLOCK.sub(lambda block: f"{block[1]}\n{known[block[2]].strip()}\n\n{block[3]}", text)


def blocks() -> Mapping[str, str]:
    """What belongs into the block of each command, by its name; "fcgimgr" is what all of them take."""
    with cli.make_context("fcgimgr", [], resilient_parsing=True) as context:
        found = {"fcgimgr": _table(cli, context, without=())}
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None  # it was listed
            found[name] = _block(command, click.Context(command, info_name=name, parent=context))
    return found


def names_in(text: str) -> list[str]:
    """The commands that have a block in `text`, in its order."""
    return [name for _, name, _ in _BLOCK.findall(text)]


def _block(command: click.Command, context: click.Context) -> str:
    about = inspect.cleandoc(command.help or "").partition("\f")[0].rstrip()
    examples = "\n".join(lines(command.name or ""))
    table = _table(command, context, without=_COMMON)
    return f"```text\n{_usage(command, context)}\n```\n\n{about}\n{table}\n```sh\n{examples}\n```\n"


def _usage(command: click.Command, context: click.Context) -> str:
    words = [context.command_path]
    if any(name not in _COMMON for name, _ in _options(command, context)):
        words.append("[OPTIONS]")
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            word = parameter.make_metavar(context)
            words.append(word if parameter.required or word.startswith("[") else f"[{word}]")
    return " ".join(words)


def _table(command: click.Command, context: click.Context, *, without: tuple[str, ...]) -> str:
    options = [(name, about) for name, about in _options(command, context) if name not in without]
    if not options:
        return ""
    rows = [f"| `{_cell(name)}` | {_cell(about)} |" for name, about in options]
    return "\n" + "\n".join(["| option | meaning |", "|---|---|", *rows]) + "\n"


def _options(command: click.Command, context: click.Context) -> list[tuple[str, str]]:
    """How each option is written, and what it does, in the words of --help."""
    records = [
        parameter.get_help_record(context) for parameter in command.params if isinstance(parameter, click.Option)
    ]
    return [record for record in records if record is not None]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _common() -> tuple[str, ...]:
    context = click.Context(click.Command("fcgimgr"))
    records = [option.get_help_record(context) for option in common_options() if isinstance(option, click.Option)]
    return tuple(record[0] for record in records if record is not None)


_COMMON: Final = _common()


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(written_again(file.read_text(encoding="utf-8")), encoding="utf-8")
