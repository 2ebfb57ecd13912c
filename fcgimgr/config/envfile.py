"""Environment files: one NAME=value a line, as systemd, Docker and most deployment tools write them.

Nothing is expanded in them, so that a password may hold any character. The values are bytes of the user's choice and
are decoded as Python decodes its own environment.

Root reads them for programs that may not: what it reads must be what root has named, not what a program's user has put
a link to in its place (linux/directories.py).
"""

import re
from typing import Final

from fcgimgr.config.files import read_regular
from fcgimgr.linux.directories import open_in_place

LARGEST: Final = 1024 * 1024

_LINE: Final = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*=\s*(.*)", re.DOTALL)


def read_environment_file(path: str) -> dict[str, str]:
    """The variables in the file; ValueError says which line is wrong, or why the file cannot be read."""
    try:
        content = read_regular(path, LARGEST, open_in_place)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    variables: dict[str, str] = {}
    # Editors on Windows put a byte order mark there.
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith(("#", ";")):
            continue
        match = _LINE.fullmatch(line)
        if not match or "\0" in line:
            raise ValueError(f"{path}: line {number}: expected NAME=value")
        variables[match[1]] = _unquoted(match[2], path, number)
    return variables


def _unquoted(value: str, path: str, number: int) -> str:
    quote = value[:1]
    if quote not in ('"', "'"):
        return value
    if len(value) < 2 or not value.endswith(quote):
        if re.match(r"\s+[#;]", value.partition(quote)[2].partition(quote)[2]):
            raise ValueError(f"{path}: line {number}: no comment may follow a value; put it on a line of its own")
        raise ValueError(f"{path}: line {number}: the closing {quote} is missing")
    return value[1:-1]
