"""`module:callable` → the WSGI application, or a message that its author can act on."""

from __future__ import annotations

import _thread
import contextlib
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

from fcgimgr.worker.interpreter import another_virtualenv, has_options, key_for, who_lacks
from fcgimgr.worker.patched import get_ident
from fcgimgr.worker.saying import say, text_of

#: What applications are called as a rule; Django and PEP 3333 have the first.
USUAL: Final = ("application", "app", "wsgi")


class LoadError(Exception):
    """The application cannot be had; the text holds its traceback, where it has one. mend: what to do, of its own."""

    def __init__(self, said: str, mend: str = "") -> None:
        super().__init__(said)
        self.mend = mend


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
            mend = _mend_of_name(module_name) or _near(found, name, path) if path == module_name else ""
            whose = where if path == module_name else f"{path} of {where}"
            raise LoadError(f"cannot load {target!r}: {whose} has no {name!r}{mend}") from None
        except BaseException as error:  # of a module's own __getattr__, say
            raise _failed(target, error) from error
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
    began, importing = time.monotonic(), get_ident()

    def tell() -> None:
        frame = sys._current_frames().get(importing)
        stack = traceback.StackSummary.extract(traceback.walk_stack(frame))
        stack.reverse()
        while len(stack) > 1 and _is_of_the_import(stack[0].filename):
            del stack[0]
        shown = "".join(stack.format()).rstrip()
        took = time.monotonic() - began
        head = f"the import of {target!r} has taken {took:.1f} s so far, and is here:"
        say(f"{head}\n{shown}")

    # Of the simplest that Python has: gevent puts its own in the place of everything else while this waits.
    over, ended = _thread.allocate_lock(), _thread.allocate_lock()
    due = max(patience - max(0.1 * patience, 0.5), 0.5 * patience)

    def wait() -> None:
        try:
            if not over.acquire(timeout=due):
                tell()
        finally:
            ended.release()

    over.acquire()
    ended.acquire()
    try:
        _thread.start_new_thread(wait, ())
    except RuntimeError:  # a limit of the system (RLIMIT_NPROC): the import may do without
        yield
        return
    try:
        yield
    finally:
        over.release()
        ended.acquire()  # a zygote forks next


def _import(target: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not isinstance(error.name, str):
            raise _failed(target, error) from error
        if not (name == error.name or name.startswith(error.name + ".")):
            raise _failed(target, error, who_lacks(error.name)) from error
        raise LoadError(f"cannot load {target!r}: {_no_module(error.name)}") from error
    except SystemExit as error:
        # Python prints what is neither a number nor None, and exits with 1.
        with_number = error.code is None or isinstance(error.code, int)
        called = f"sys.exit({'' if error.code is None else error.code})" if with_number else "sys.exit"
        message = "" if with_number else f": {text_of(error.code)}"
        what = f"the module called {called} while it was imported{message}"
        raise LoadError(f"cannot load {target!r}: {what}\n{_traceback(error)}") from error
    except BaseException as error:  # whatever the application raises, its author must see where
        raise _failed(target, error) from error


def _no_module(name: str) -> str:
    """Why there is no module of this name, and what to do."""
    parent = name.rpartition(".")[0]
    known = sys.modules.get(parent)
    mend = _mend_of_name(parent)
    if known is not None and (mend or not hasattr(known, "__path__")):
        what = "" if hasattr(known, "__path__") else ", which is no package"
        return f"there is no module {name!r}: {parent!r} is {_file(known) or 'built into Python'}{what}{mend}"
    places = "\n  ".join(place or os.curdir for place in sys.path)
    keys = "give --directory or PYTHONPATH, which say" if has_options() else "set directory or pythonpath to"
    other = another_virtualenv()
    named = "" if other is None else f"; if it is in the virtualenv {other}: {key_for(other)}"
    return f"there is no module {name!r}; {keys} where it is{named}. Looked in:\n  {places}"


def _near(module: Any, name: str, path: str) -> str:
    """To be added where a module has no such name: which of its names may be meant, if one may."""
    names = getattr(module, "__dict__", {})
    callables = [each for each, thing in names.items() if callable(thing) and not each.startswith("_")]
    near = [each for each in USUAL if each in callables]
    with contextlib.suppress(Exception):  # it may be a difflib.py of the application's
        from difflib import get_close_matches

        near = get_close_matches(name, callables, n=1) or near
    return f"; did you mean {path}:{near[0]}?" if near else ""


def _mend_of_name(name: str) -> str:
    """To be added where a module was found and is not what was meant: if it is Python's own. Those that are imported
    before anything of the application (site, say) hide one of the same name, wherever that stands on sys.path."""
    known = sys.modules.get(name)
    if known is None or not _is_pythons_own(_file(known)):
        return ""
    for place in sys.path:
        for found in (os.path.join(place or os.getcwd(), name), os.path.join(place or os.getcwd(), f"{name}.py")):
            there = os.path.isdir(found) if not found.endswith(".py") else os.path.isfile(found)
            if there and not _is_pythons_own(found):
                return f"; it is Python's own and hides {found}: give that another name"
    return "; it is Python's own: a module of yours must have another name"


def _is_pythons_own(file: str | None) -> bool:
    """Whether it is of the standard library. None: it is in no file."""
    if file is None:
        return True
    library = os.path.realpath(os.path.dirname(os.__file__)) + os.sep
    real = os.path.realpath(file)
    return real.startswith(library) and not real.startswith((f"{library}site-packages", f"{library}dist-packages"))


def _file(module: object) -> str | None:
    file = getattr(module, "__file__", None)
    places = list(getattr(module, "__path__", ()))  # a directory without __init__.py has no file
    return file if isinstance(file, str) else str(places[0]) if places else None


def _failed(target: str, error: BaseException, mend: str = "") -> LoadError:
    return LoadError(f"cannot load {target!r}: {type(error).__name__}: {text_of(error)}\n{_traceback(error)}", mend)


def _traceback(error: BaseException) -> str:
    below = _below_the_import(error.__traceback__)
    try:
        shown = traceback.format_exception(type(error), error, below)
    except Exception:  # noqa: BLE001  # the exception is of the application's making, and so are its attributes
        shown = [*traceback.format_tb(below), f"{type(error).__name__}: {text_of(error)}"]
    return "".join(shown).rstrip()


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
