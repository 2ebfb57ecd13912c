"""`module:callable` → the WSGI application, or a message that its author can act on."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
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
        if file not in (__file__, importlib.__file__) and not file.startswith("<frozen importlib"):
            break
        trace = trace.tb_next
    return trace
