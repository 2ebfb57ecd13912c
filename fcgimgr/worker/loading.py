"""`module:callable` → the WSGI application, or a message that its author can act on."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class LoadError(Exception):
    """The application cannot be had; the text holds its traceback, where it has one, and says what to do."""


def load_application(target: str) -> Callable[..., Any]:
    """Import `module` and follow the dotted name `callable` in it. Raises LoadError."""
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise LoadError(f"{target!r} names no application: write module:callable, such as app:application")
    found: Any = _import(target, module_name)
    where = f"module {module_name} ({getattr(found, '__file__', None) or 'built in'})"
    path = module_name
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise LoadError(f"cannot load {target!r}: {where} has no {name!r} in {path}") from None
        path += f".{name}"
    if not callable(found):
        raise LoadError(f"cannot load {target!r}: it is not callable but of type {type(found).__name__}")
    return found  # type: ignore[no-any-return]


@contextmanager
def told_when_late(target: str, patience: float | None) -> Iterator[None]:
    """Around the import of `target` by this thread: if it still goes on shortly before `patience` seconds are over,
    write to stderr where it is. After them the process is killed, and nobody would know why.

    By a thread, not by SIGALRM: what most often hangs is a library that connects to a database, which is in C.
    """
    if patience is None:
        yield
        return
    began, importing = time.monotonic(), threading.get_ident()

    def tell() -> None:
        frame = sys._current_frames().get(importing)
        stack = traceback.StackSummary.extract(traceback.walk_stack(frame))
        stack.reverse()
        while len(stack) > 1 and _is_of_the_import(stack[0].filename):
            del stack[0]
        shown = "".join(stack.format()).rstrip()
        took = time.monotonic() - began
        head = f"fcgimgr worker: the import of {target!r} has taken {took:.1f} s so far, and is here:"
        print(f"{head}\n{shown}", file=sys.stderr, flush=True)

    timer = threading.Timer(max(patience - max(0.1 * patience, 0.5), 0.5 * patience), tell)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # a limit of the system (RLIMIT_NPROC): the import may do without
        yield
        return
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # a zygote forks next


def _import(target: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise _failed(target, error) from error
        places = "\n  ".join(place or os.curdir for place in sys.path)
        raise LoadError(
            f"cannot load {target!r}: there is no module {error.name!r}; set directory or pythonpath to where it is. "
            f"Looked in:\n  {places}"
        ) from error
    except SystemExit as error:
        raise LoadError(
            f"cannot load {target!r}: the module called sys.exit({error.code!r}) while it was imported"
        ) from error
    except BaseException as error:  # whatever the application raises, its author must see where
        raise _failed(target, error) from error


def _failed(target: str, error: BaseException) -> LoadError:
    shown = traceback.format_exception(type(error), error, _below_the_import(error.__traceback__))
    return LoadError(f"cannot load {target!r}: {type(error).__name__}: {error}\n{''.join(shown).rstrip()}")


def _below_the_import(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the application's first frame on: ours and importlib's tell its author nothing."""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not _is_of_the_import(file):
            break
        trace = trace.tb_next
    return trace


def _is_of_the_import(file: str) -> bool:
    ours = file.startswith(os.path.dirname(__file__) + os.sep)
    return ours or file in (importlib.__file__, contextlib.__file__) or file.startswith("<frozen importlib")
