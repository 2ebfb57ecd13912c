"""`tail`, `log`, `events`, `reopen`: what was written, what happened, and a new file for both."""

import sys
import time
from typing import TYPE_CHECKING

import click

from .failure import Failure
from .names import Name, complete_names, names_argument
from .options import Command

if TYPE_CHECKING:
    from fcgimgr.control.messages import Event, Notice, Tail

_follow = click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")


_lines = click.option(
    "-n",
    "--lines",
    metavar="N",
    type=click.IntRange(0, 100_000),
    default=10,
    show_default=True,
    help="So many lines to begin with.",
)


@click.command("tail", cls=Command, short_help="Show the last lines that processes wrote.")
@click.argument("name", cls=Name, metavar="NAME", shell_complete=complete_names)
@_follow
@_lines
@click.option(
    "--stderr", "stream", flag_value="stderr", default="stdout", help="What it wrote to stderr, in place of stdout."
)
@click.pass_context
def tail_(context: click.Context, name: str, follow: bool, lines: int, stream: str) -> None:
    """Show the last lines that a process wrote; of several processes, those of each, with its name before them."""
    from fcgimgr.control.messages import Tail, TailParams

    from .ask import ask, listen

    params = TailParams(name=name, stream="stderr" if stream == "stderr" else "stdout", lines=lines, follow=follow)
    if follow:
        listen(context, "tail", params, Tail, _show_lines, _show_line)
    answer = ask(context, "tail", params, Tail)
    _show_lines(answer)
    if not answer.lines and lines:
        print(f"fcgimgr: {name} has written nothing to {stream} that is remembered", file=sys.stderr)


@click.command("log", cls=Command, short_help="Show the last lines of the manager's own log.")
@_follow
@_lines
@click.pass_context
def log_(context: click.Context, follow: bool, lines: int) -> None:
    """Show the last lines of the manager's own log: of its logfile, or the last 200 where it has none."""
    from fcgimgr.control.messages import LogParams, Tail

    from .ask import ask, listen

    params = LogParams(lines=lines, follow=follow)
    if follow:
        listen(context, "log", params, Tail, _show_lines, _show_line)
    _show_lines(ask(context, "log", params, Tail))


def _show_line(notice: "Notice") -> None:
    from fcgimgr.control.messages import Line

    if not isinstance(notice, Line):
        return
    if notice.skipped:
        print(f"fcgimgr: {notice.skipped} lines skipped: they came faster than they were read", file=sys.stderr)
    else:
        print(_labelled(notice.process if notice.several else "", notice.text), flush=True)


def _show_lines(answer: "Tail") -> None:
    for number, line in enumerate(answer.lines):
        print(_labelled(answer.processes[number] if answer.processes else "", line))
    sys.stdout.flush()


def _labelled(process: str, line: str) -> str:
    from .terminal import safe

    shown = safe(line) if sys.stdout.isatty() else line
    return f"{process}| {shown}" if process else shown


@click.command("events", cls=Command, short_help="Show what happened last.")
@names_argument(required=False)
@_follow
@click.option("-n", "count", metavar="N", type=click.IntRange(0, 100_000), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def events_(context: click.Context, names: tuple[str, ...], follow: bool, count: int, as_json: bool) -> None:
    """Show what happened last, and why: states, listeners, load, logs, the manager itself."""
    from fcgimgr.control.messages import Event, Events, EventsParams, Notice

    from .ask import ask, listen

    params = EventsParams(names=names or None, n=count, follow=follow)

    def told(notice: Notice) -> None:
        if isinstance(notice, Event):
            print(_shown(notice, as_json), flush=True)

    def answered(answer: Events) -> None:
        for event in answer.events:
            print(_shown(event, as_json))
        sys.stdout.flush()

    if follow:
        listen(context, "events", params, Events, answered, told)
    answered(ask(context, "events", params, Events))


def _shown(event: "Event", as_json: bool) -> str:
    from .terminal import Paint, has_colour, safe, safe_json

    if as_json:
        import msgspec

        return safe_json(msgspec.json.encode(event).decode())

    paint = Paint(has_colour(sys.stdout))
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
    parts = [f"{moment}.{int(event.time % 1 * 1000):03d}", event.name or event.kind]
    if event.to_state is not None:
        parts.append(f"{event.from_state or '-'} -> {paint.state(event.to_state)}")
    elif event.name:
        parts.append(event.kind)
    if event.detail:
        parts.append(safe(event.detail))
    return "  ".join(parts)


@click.command("reopen", cls=Command, short_help="Open the log files anew, for logrotate.")
@click.pass_context
def reopen_(context: click.Context) -> None:
    """Open the log files anew, after something (logrotate) has moved them."""
    from fcgimgr.control.messages import Reopened

    from .ask import ask

    answer = ask(context, "reopen", None, Reopened)
    print(f"reopened {answer.reopened} log file{'' if answer.reopened == 1 else 's'}")
    if answer.problems:
        raise Failure("\n".join(answer.problems))
