"""`tail`, `log`, `events`, `reopen`: what was written, what happened, and a new file for both."""

import sys
import time
from typing import TYPE_CHECKING, Final

import click

from .failure import Failure
from .moments import Moment
from .names import Name, complete_names, names_argument
from .options import Command

if TYPE_CHECKING:
    from fcgimgr.control.messages import Event, Notice, Tail

#: Events that are shown unless it is said how many, and that can be asked for.
_EVENTS: Final = 20
_MOST_EVENTS: Final = 100_000

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
@click.argument("of", metavar="[stdout|stderr]", type=click.Choice(["stdout", "stderr"]), required=False)
@_follow
@_lines
@click.option("--stderr", "stderr", is_flag=True, help="What it wrote to stderr, in place of stdout.")
@click.pass_context
def tail_(context: click.Context, name: str, of: str | None, follow: bool, lines: int, stderr: bool) -> None:
    """Show the last lines that a process wrote; of several processes, those of each, with its name before them."""
    from fcgimgr.control.messages import Tail, TailParams

    from .ask import ask, listen

    if stderr and of == "stdout":
        raise click.UsageError("--stderr and stdout: give one of the two")
    stream, other = ("stderr", "stdout") if stderr or of == "stderr" else ("stdout", "stderr")

    def of_stream(stream: str) -> TailParams:
        return TailParams(name=name, stream="stderr" if stream == "stderr" else "stdout", lines=lines, follow=follow)

    if follow:
        listen(context, "tail", of_stream(stream), Tail, _show_lines, _show_line)
    answer = ask(context, "tail", of_stream(stream), Tail)
    _show_lines(answer)
    if not answer.lines and lines:
        nothing = f"fcgimgr: {name} has written nothing to {stream} that is remembered"
        if ask(context, "tail", of_stream(other), Tail).lines:
            more = f", but to {other}: fcgimgr tail {name} {other}"
        elif stream == "stdout":
            more = "; many programs keep back what they write to a pipe: `fcgimgr help logs`"
        else:
            more = ""
        print(f"{nothing}{more}", file=sys.stderr)


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
@click.option(
    "-n",
    "count",
    metavar="N",
    type=click.IntRange(0, _MOST_EVENTS),
    help="So many to begin with. [default: 20; with --since all]",
)
@click.option("--since", metavar="TIME", type=Moment(), help="From then on: 5m, 1h30m, 2d; 2026-11-28T13:40:00.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def events_(
    context: click.Context,
    names: tuple[str, ...],
    follow: bool,
    count: int | None,
    since: float | None,
    as_json: bool,
) -> None:
    """Show what happened last, and why: states, listeners, load, logs, the manager itself."""
    from fcgimgr.control.messages import Event, Events, EventsParams, Notice

    from .ask import ask, listen

    if count is None:
        count = _EVENTS if since is None else _MOST_EVENTS
    begin = float("-inf") if since is None else since
    params = EventsParams(names=names or None, n=count, follow=follow)

    def told(notice: Notice) -> None:
        if isinstance(notice, Event) and notice.time >= begin:
            print(_shown(notice, as_json), flush=True)

    def answered(answer: Events) -> None:
        for event in answer.events:
            if event.time >= begin:
                print(_shown(event, as_json))
        sys.stdout.flush()

    if follow:
        listen(context, "events", params, Events, answered, told)
    answer = ask(context, "events", params, Events)
    answered(answer)
    first = answer.events[0].time if answer.events else begin
    if first > begin and since is not None and not names and len(answer.events) < count:
        print(f"fcgimgr: nothing before {_moment(first)} is remembered", file=sys.stderr)


def _shown(event: "Event", as_json: bool) -> str:
    from .terminal import Paint, has_colour, safe, safe_json

    if as_json:
        import msgspec

        return safe_json(msgspec.json.encode(event).decode())

    paint = Paint(has_colour(sys.stdout))
    parts = [_moment(event.time), event.name or event.kind]
    if event.to_state is not None:
        parts.append(f"{event.from_state or '-'} -> {paint.state(event.to_state)}")
    elif event.name:
        parts.append(event.kind)
    if event.detail:
        parts.append(safe(event.detail))
    return "  ".join(parts)


def _moment(seconds: float) -> str:
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    return f"{shown}.{int(seconds % 1 * 1000):03d}"


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
