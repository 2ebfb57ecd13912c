"""What every command takes, before its name or after it: -c, -s, --version, -h."""

from typing import TYPE_CHECKING, Any, Final

import click

from fcgimgr import __version__

from .examples import EXAMPLES
from .locate import remember_config, remember_socket

if TYPE_CHECKING:
    FloatType = click.ParamType[float]
else:
    FloatType = click.ParamType  # generic from click 8.4 on only

#: Where the context has the words behind the command's name.
ARGUMENTS: Final = "fcgimgr.arguments"


def common_options() -> list[click.Parameter]:
    """Fresh parameter objects: click ties each to the command that owns it."""
    return [
        click.Option(
            ["-c", "--config"],
            metavar="FILE",
            type=click.Path(readable=False),
            expose_value=False,
            callback=remember_config,
            help="The configuration; names the control socket too.",
        ),
        click.Option(
            ["-s", "--socket"],
            metavar="SOCKET",
            type=click.Path(readable=False),
            expose_value=False,
            callback=remember_socket,
            help="The control socket of the manager to ask.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version and end.",
        ),
    ]


class Command(click.Command):
    """A command that takes the common options after its name too, and whose help ends with examples."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params += common_options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            formatter.write_dl(EXAMPLES[self.name or ""])


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        print(f"fcgimgr {__version__}")
        context.exit()
