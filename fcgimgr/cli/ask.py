"""Asking the manager, for every command that does: connect, show progress while it waits, say what came of it."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import UnsupportedOperation
from time import monotonic
from typing import Final, NoReturn, Self, TypeVar

import click

from fcgimgr.control.client import Client
from fcgimgr.control.messages import ManagerGone, NoManager, Notice, Params, Pong, ProcessVerdict, Progress, Verdict

from .absent import no_manager
from .failure import Failure
from .locate import control_socket, find_config, given_socket, refuse_another
from .terminal import Paint, ProgressLine, has_colour, safe

T = TypeVar("T")

_ALL_GOES_ON: Final = "the {} goes on; fcgimgr status shows how far it is"
#: What the manager does when nobody waits any more, where that is not the whole of it.
_GOES_ON: Final = {
    "update": "what the update has begun goes on, and fcgimgr status shows it; another fcgimgr update does the rest",
    "upgrade": "an upgrade that nobody waits for is given up, unless it is done: fcgimgr ping shows which version runs",
    "drain": "the manager drains on; fcgimgr drain --undo ends that",
}

FOLD_ABOVE: Final = 50
"""More like outcomes than this in one pool are one line, unless -v asks for all."""


def connect(context: click.Context, timeout: float = 10.0) -> Client:
    """A client of the manager the command line means. Failure (exit 4) when it is not there, but nobody or another."""
    client = _connect(context, timeout)
    if given_socket(context) is not None or (config := find_config(context)) is None:
        return client
    try:
        refuse_another(client.call("ping", answer=Pong).config, config, client.path)
    except BaseException:
        client.close()
        raise
    return client


def _connect(context: click.Context, timeout: float = 10.0) -> Client:
    try:
        return Client(control_socket(context), timeout)
    except NoManager as error:
        raise no_manager(str(error), context) from error


def ask(context: click.Context, method: str, params: Params | None, answer: type[T]) -> T:
    """One question that the manager answers at once."""
    with connect(context) as client:
        return client.call(method, params, answer=answer)


def ask_and_wait(context: click.Context, method: str, params: Params, answer: type[T]) -> T:
    """One command that ends when the processes have done what it wants, with progress shown on a terminal."""
    with connect(context) as client:
        progress = WaitProgress()
        with told_that_it_goes_on(method), progress:
            return client.call(method, params, answer=answer, on_event=progress.heard, patient=True)


def listen(
    context: click.Context,
    method: str,
    params: Params,
    answer: type[T],
    answered: Callable[[T], None],
    told: Callable[[Notice], None],
) -> NoReturn:
    """Follow `tail` or `events` until Ctrl-C, or a Failure when the manager ends.

    What there is already may come as the answer, before what is told, or be told too, with the answer at the end.
    """
    with connect(context) as client:
        with suppress(UnsupportedOperation):  # not a file: then nobody can stop reading it
            client.heed_reader(sys.stdout.fileno())
        try:
            answered(client.call(method, params, answer=answer, on_event=told, patient=True))
            for notice in client.notices():
                told(notice)
        except ManagerGone:
            pass
    try:
        _connect(context).close()  # one that ends stops listening before it hangs up
    except Failure:
        raise Failure("the manager has ended") from None
    raise Failure("the manager has hung up, but runs on: its log says why")


class WaitProgress:
    """What the manager tells while a command waits, as one line that is written over."""

    def __init__(self) -> None:
        self._line = ProgressLine()
        self._began = monotonic()
        self._states: dict[str, str] = {}

    def heard(self, notice: Notice) -> None:
        if isinstance(notice, Progress):
            self._states[notice.name] = notice.state
            seconds = int(monotonic() - self._began)
            if notice.state == "RELOADING":  # all that there is to say is in its detail
                self._line.show(f"{notice.name}: {notice.detail}   [{seconds} s]")
                return
            tally = ", ".join(f"{count} {state}" for state, count in Counter(self._states.values()).items())
            detail = f" ({notice.detail})" if notice.detail else ""
            self._line.show(f"{notice.name}: {notice.state}{detail}   [{tally}; {seconds} s]")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._line.clear()


@contextmanager
def told_that_it_goes_on(method: str) -> Iterator[None]:
    """Whoever waits no more (Ctrl-C) has not taken back what was asked for."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"fcgimgr: {_GOES_ON.get(method, _ALL_GOES_ON.format(method))}", file=sys.stderr)
        raise


def show_verdict(verdict: Verdict, *, verbose: bool) -> None:
    """A line per process on stdout, log lines of failures indented. Failure (exit 1) unless all went well."""
    lines = verdict_lines(verdict, Paint(has_colour(sys.stdout)), verbose=verbose)
    if lines:
        print("\n".join(lines))
    if not verdict.ok:
        raise Failure


def verdict_lines(verdict: Verdict, paint: Paint, *, verbose: bool) -> list[str]:
    """The lines of `show_verdict`: many like successes in one pool are one line, unless `verbose`."""
    alike = Counter(_kind(process) for process in verdict.processes)
    folded = set()
    lines = []
    for process in verdict.processes:
        kind = _kind(process)
        if verbose or not process.ok or alike[kind] <= FOLD_ABOVE:
            lines += _process_lines(process, paint)
        elif kind not in folded:
            folded.add(kind)
            pool, result, _ = kind
            lines.append(f"{pool}: {alike[kind]} processes {paint(result, 'green')} (-v lists them)")
    return lines


def _kind(process: ProcessVerdict) -> tuple[str, str, str | None]:
    return process.name.partition(":")[0], process.result, process.detail


def _process_lines(process: ProcessVerdict, paint: Paint) -> list[str]:
    detail = f": {safe(process.detail)}" if process.detail else ""
    head = f"{process.name}: {paint(process.result, 'green' if process.ok else 'red')}{detail}"
    lines = [head, *(f"    {safe(line)}" for line in process.lines)]
    return [*lines, f"{process.name}: {safe(process.advice)}"] if process.advice else lines
