"""The files of a configuration: the one named by the user, and those it includes.

Only regular files of a sane size are read, so that neither a FIFO nor /dev/zero can hang or fill the manager, which
reads its configuration again while it serves. A file that several patterns name is read once.

Who may write to them may run anything as whoever runs the manager. So root is told of each that others may change, and
reads none that anybody may.
"""

import os
import stat
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from fcgimgr.config.expansions import expand
from fcgimgr.config.problems import ConfigError, Problem
from fcgimgr.config.syntax import parse
from fcgimgr.config.values import refusal, text_of
from fcgimgr.linux.directories import LinkRefusedError, others_who_may_change

LARGEST: Final = 4 * 1024 * 1024
MOST_FILES: Final = 10_000


class SourceFile(msgspec.Struct, frozen=True):
    """A file that has been parsed.

    shown: its path as the user would write it; directory: absolute; text: what it says; tables: its top level, without
    `include`.
    """

    shown: str
    directory: str
    text: str
    tables: dict[str, Any]


class Loaded(msgspec.Struct, frozen=True):
    """All files of a configuration that could be read, the main one first, with what was wrong or strange about them.

    With a problem there may be tables that nobody has seen.
    """

    files: list[SourceFile]
    problems: list[Problem]
    warnings: list[Problem]


def load(path: str, names: Mapping[str, str | int]) -> Loaded:
    """Read the file at `path` and all that it includes; names: the expansions known everywhere."""
    loaded = Loaded([], [], [])
    seen: set[str] = set()
    _load(path, names, loaded, seen)
    return loaded


def read_regular(path: str, largest: int, open_file: Callable[[str, int], int] = os.open) -> bytes:
    """The bytes of a regular file of at most `largest` bytes; ValueError in words when that is not what it is."""
    try:
        # Without O_NONBLOCK the open itself would wait for the writer of a FIFO.
        fd = open_file(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError("it is a directory" if stat.S_ISDIR(mode) else "it is not a regular file")
            with open(fd, "rb", closefd=False) as file:
                content = file.read(largest + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except LinkRefusedError as error:
        raise ValueError(f"it is not read: {error.strerror}") from None
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest // 1024} KB, so it can hardly be what was meant")
    return content


def _load(path: str, names: Mapping[str, str | int], loaded: Loaded, seen: set[str]) -> None:
    real = os.path.realpath(path)
    if real in seen:
        return
    seen.add(real)
    try:
        tables, text = parse(path, read_regular(path, LARGEST))
    except ConfigError as error:
        loaded.problems.extend(error.problems)
        return
    except ValueError as error:
        loaded.problems.append(Problem(path, "", str(error)))
        return
    if os.geteuid() == 0 and not _is_roots(path, loaded):
        return
    include = tables.pop("include", [])
    directory = os.path.dirname(os.path.abspath(path))
    loaded.files.append(SourceFile(path, directory, text, tables))
    try:
        patterns = _patterns(include, {**names, "here": directory})
    except ValueError as error:
        loaded.problems.append(Problem(path, "include", str(error)))
        return
    for pattern in patterns:
        _include(os.path.join(os.path.dirname(path), pattern), path, names, loaded, seen)


def _is_roots(path: str, loaded: Loaded) -> bool:
    """Whether root may go by what it says; who else may change it is told."""
    try:
        other = others_who_may_change(path)
    except OSError as error:
        loaded.problems.append(Problem(path, "", f"it cannot be looked at: {error.strerror}"))
        return False
    if other is None:
        return True
    if other.anybody:
        told = f"{other}: root does not run what anybody may have written; let only root write to it, or move the file"
        loaded.problems.append(Problem(path, "", told))
    else:
        told = f"{other}, who can run anything as root by it; let only root write to it"
        loaded.warnings.append(Problem(path, "", told))
    return not other.anybody


def _patterns(include: object, names: Mapping[str, str | int]) -> list[str]:
    wanted = 'a list of files, as in ["conf.d/*.toml"]'
    if isinstance(include, dict):
        raise refusal(wanted, include, 'write include = ["conf.d/*.toml"] above the first table')
    patterns = include if isinstance(include, list) else [include]
    found = dict.fromkeys(expand(text_of(pattern, wanted), names) for pattern in patterns)
    if not all(found):
        raise refusal(wanted, "")
    return list(found)


def _include(pattern: str, including: str, names: Mapping[str, str | int], loaded: Loaded, seen: set[str]) -> None:
    import glob  # only a configuration with includes pays for it

    if not glob.has_magic(pattern):
        paths = [pattern]
    else:
        paths = sorted(path for path in glob.iglob(pattern) if not os.path.isdir(path))
    if not paths:
        loaded.warnings.append(Problem(including, "include", f"no file matches {pattern}"))
    for path in paths:
        if len(seen) >= MOST_FILES:
            loaded.problems.append(Problem(including, "include", f"more than {MOST_FILES} files"))
            return
        if not os.path.exists(path):
            loaded.problems.append(Problem(including, "include", f"there is no file {path}"))
        else:
            _load(path, names, loaded, seen)
