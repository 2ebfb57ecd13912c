"""`help`: what one sees, a command, a key of the configuration, or a page of the documentation, in the terminal."""

import sys
from collections.abc import Iterator

import click

from .failure import USAGE, Failure
from .options import Command


@click.command(
    "help",
    cls=Command,
    short_help="Explain what you see, a command or a key.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("topic", metavar="[COMMAND|KEY|PAGE|WORD]", required=False)
@click.pass_context
def help_(context: click.Context, topic: str | None) -> None:
    """Explain a command or a key of the configuration, or show a page of the documentation.

    A key or a command may be one of Supervisor, PHP-FPM, uWSGI, gunicorn or runit: then it says what that is here.
    PAGE.md is the page where a command or a key has the same name. `help nginx` says where the configuration for nginx
    is.

    WORD is what you see: a state (FATAL), what nginx answers (502), or what it looks like (hang, queue, slow, leak).
    """
    topic = topic and topic.lstrip("-")  # an option of others is a key of theirs
    _show(_overview(context) if not topic else _about(context, topic))


def _about(context: click.Context, topic: str) -> str:
    from .pages import nginx, page
    from .symptoms import symptom

    if topic == "nginx":
        return f"{nginx()}\n\n{(nginx() / 'README.md').read_text(encoding='utf-8')}"
    text = page(topic)
    if topic.endswith(".md") and text:
        return text
    found = [*_command(context, topic), *_keys(topic)]
    if found and text:
        found.append(f"There is a page of this name too: `fcgimgr help {topic}.md`")
    found += filter(None, [symptom(topic)])
    found = found or [*filter(None, [text])] or list(_foreign(topic))
    if not found:
        raise Failure(_unknown(context, topic), code=USAGE)
    return "\n\n".join(found)


def _show(text: str) -> None:
    """Through a pager on a terminal, where it is longer than that."""
    import shutil

    text = text.rstrip() + "\n"
    if sys.stdout.isatty() and text.count("\n") >= shutil.get_terminal_size().lines:
        click.echo_via_pager(text)
    else:
        sys.stdout.write(text)


def _overview(context: click.Context) -> str:
    import shlex

    from .pages import manual, titles

    pages, manuals = titles(), manual()
    width = max(map(len, pages))
    rows = [f"  {name:<{width}}  {title}" for name, title in pages.items()]
    return "\n".join(
        [
            context.find_root().get_help(),
            "\nPages, as in `fcgimgr help reload.md`:",
            *rows,
            "\nWhat you see, as in `fcgimgr help FATAL`: any state, 502, 504, hang, queue, slow, leak, permission.",
            "\nA key of the configuration, as in `fcgimgr help stopwaitsecs`; all: `fcgimgr help configuration`.",
            *(["\nThe manual pages, where `man fcgimgr` does not find them:"] if manuals else []),
            *(f"  {shlex.join(['man', '-l', str(page)])}" for page in manuals),
        ]
    )


def _command(context: click.Context, name: str) -> Iterator[str]:
    """What --help says, and below it what docs/commands.md has more."""
    from .pages import of_command

    root = context.find_root()
    assert isinstance(root.command, click.Group)
    command = root.command.get_command(root, name)
    if command is not None:
        with click.Context(command, info_name=name, parent=root) as its:
            yield command.get_help(its)
        if more := of_command(name):
            yield more


def _keys(topic: str) -> Iterator[str]:
    """Each key of this name, `stopwaitsecs` or `pool.stopwaitsecs`, with the tables that have it."""
    from fcgimgr.config.keys import keys
    from fcgimgr.config.pools import PoolSettings, ProgramSettings
    from fcgimgr.config.reference import default_of, values_of
    from fcgimgr.config.settings import GroupSettings, ManagerSettings

    table, dot, name = topic.rpartition(".")
    tables = {
        "manager": keys(ManagerSettings),
        "pool": keys(PoolSettings),
        "program": keys(ProgramSettings),
        "group": keys(GroupSettings),
    }
    of: dict[str, list[str]] = {}
    for kind, known in tables.items():
        if name in known and (not dot or kind == table):
            key = known[name]
            default = "required" if key.required else f"default: {default_of(key) or 'none'}"
            about = f"{name} = {values_of(key.kind)}   ({default})\n\n{_wrapped(key.description)}"
            of.setdefault(about.replace("`", ""), []).append(kind if kind == "manager" else f"{kind}.NAME")
    for about, kinds in of.items():
        yield "".join(f"[{kind}] " for kind in kinds) + about


def _wrapped(text: str) -> str:
    import textwrap

    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ")


def _foreign(topic: str) -> Iterator[str]:
    """A key, or a command, of others."""
    from fcgimgr.config.advice import foreign_key

    from .words import WORDS

    yield from foreign_key(topic)
    if topic in WORDS:
        yield f"{topic}: {WORDS[topic]}"


def _unknown(context: click.Context, topic: str) -> str:
    from difflib import get_close_matches

    from fcgimgr.config.keys import keys
    from fcgimgr.config.pools import PoolSettings
    from fcgimgr.config.settings import ManagerSettings

    from .pages import titles

    root = context.find_root()
    assert isinstance(root.command, click.Group)
    known = [*root.command.list_commands(root), *keys(PoolSettings), *keys(ManagerSettings), *titles()]
    near = get_close_matches(topic, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`fcgimgr help` lists what there is"
    return f"there is no command, key or page {topic!r}; {hint}"
