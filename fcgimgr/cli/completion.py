"""`completion`: the script that makes a shell complete commands, options and the names of what runs."""

import click

from .options import Command


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    from . import shells
    from .main import COMPLETE_VARIABLE

    shells.register()
    complete = get_completion_class(shell)
    assert complete is not None  # click has all three
    print(complete(context.find_root().command, {}, "fcgimgr", COMPLETE_VARIABLE).source(), end="")
