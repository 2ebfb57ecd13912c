"""A row of the tables that say what the words of others are here (foreign.py, foreign_tools.py), and how it is read.

A cell is Markdown, as the page shows it; the keys are its words in code. `here` begins with code where it is another
name for the same thing ("here it is …" in a message), and is a sentence in itself where there is no such thing. What a
message says is the cell as plain text.
"""

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

_CODE: Final = re.compile(r"`([^`]+)`")
_LINK: Final = re.compile(r"\[([^]]+)\]\([^)]+\)")
# A key, also as an option or with a value: `lazy-apps = true`, `--check-config`, `php_admin_value[x]`.
_KEY: Final = re.compile(r"(?:--)?([A-Za-z][\w.-]*)(?: = \"?(\w+)\"?)?")
# A table that a cell is about, and not only where one of its keys stands: `[program:x]`, but not "`user` in `[x]`".
_TABLE: Final = re.compile(r"(?:^|, )`\[([\w-]+)(?::x)?\]`")


class Row(Struct, frozen=True):
    """`theirs`: a cell for each column of the page. `wsgi`: what it is for a `wsgi` pool, where that is not `here`."""

    theirs: tuple[str, ...]
    here: str
    wsgi: str = ""

    @property
    def keys(self) -> dict[str, str]:
        """The keys that it is about, as `plain_key` writes them, each with the value of which alone it is, or ""."""
        words = (word for cell in self.theirs for word in _CODE.findall(cell))
        return {plain_key(found[1]): (found[2] or "").lower() for word in words if (found := _KEY.fullmatch(word))}

    @property
    def tables(self) -> Iterator[str]:
        """The tables that it is about, as `plain_key` writes them."""
        return (plain_key(name) for cell in self.theirs for name in _TABLE.findall(cell))


def one(theirs: str, here: str, wsgi: str = "") -> Row:
    """A row of a table with one column of theirs."""
    return Row((theirs,), here, wsgi)


def plain_key(key: str) -> str:
    """`key` as the rows have it: uWSGI's hyphens and gunicorn's underscores mean the same."""
    return key.lower().replace("-", "_")


def named(cell: str) -> list[str]:
    """The words of a cell that stand in code, up to a value: the keys that are advised."""
    return [word.split(" = ")[0] for word in _CODE.findall(cell)]


def message(cell: str) -> str:
    """What `check` says of a key whose row has this cell under `here`."""
    text = _LINK.sub(r"\1", cell)
    plain = _CODE.sub(lambda code: code[0] if code[1].startswith("fcgimgr ") else code[1], text)
    return f"here it is {plain}" if text.startswith("`") else plain
